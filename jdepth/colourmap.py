"""Depth maps as pictures: false colours, a legend in metres, and sheets of captioned images.

NumPy arrays in and out, RGB uint8. OpenCV is imported on first use, so that importing this module
costs nothing.
"""

from collections.abc import Sequence

import numpy as np

BLACK = (0, 0, 0)
INK = (235, 235, 235)
PAPER = (24, 24, 24)


def depth_range(*depths: np.ndarray) -> tuple[float, float]:
    """Metres between which to spread the colours of one or several depth maps together: the 2nd and
    98th percentile of their valid pixels, so that a few outliers do not flatten the rest."""
    valid = np.concatenate([depth[_valid(depth)].ravel() for depth in depths])
    if not valid.size:
        return 0.0, 1.0
    low, high = np.percentile(valid, (2, 98))
    return float(low), float(high)


def colour_depth(
    depth: np.ndarray,
    low: float | None = None,
    high: float | None = None,
    invalid: tuple[int, int, int] = BLACK,
    disparity: bool = False,
) -> np.ndarray:
    """False colours of a depth map on the Turbo scale, linear in metres (or in disparity): near is warm
    (red), far is cold (blue).

    Args:
        depth: (H, W) metres; not finite or <= 0 is invalid.
        low: metres shown in the warmest colour; by default from `depth_range`.
        high: metres shown in the coldest colour, likewise.
        invalid: RGB of invalid pixels.
        disparity: values grow towards the viewer, and 0, the furthest, is valid; `low` is then the coldest.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    import cv2

    depth = np.asarray(depth, np.float64)
    valid = np.isfinite(depth) if disparity else _valid(depth)
    chosen = depth_range(depth)
    low = chosen[0] if low is None else low
    high = chosen[1] if high is None else high
    nearness = (high - np.where(valid, depth, high)) / max(high - low, 1e-9)
    nearness = 1 - nearness if disparity else nearness
    level = np.rint(255 * np.clip(nearness, 0, 1)).astype(np.uint8)
    picture = np.ascontiguousarray(cv2.applyColorMap(level, cv2.COLORMAP_TURBO)[..., ::-1])
    picture[~valid] = invalid
    return picture


def legend(low: float, high: float, height: int, width: int = 72, disparity: bool = False) -> np.ndarray:
    """Vertical colour bar with ticks in metres (or in disparity), near at the bottom: (height, width, 3) uint8
    RGB, to be put beside a picture of `colour_depth(depth, low, high)`."""
    import cv2

    panel = np.full((height, width, 3), PAPER, np.uint8)
    margin, bar = 10, max(width // 4, 4)
    rows = max(height - 2 * margin, 2)
    values = np.linspace(*((low, high) if disparity else (high, low)), rows)
    # A legend has no invalid colour: even 0 m is a place on the scale.
    colours = colour_depth(values[:, None] - low + 1, 1, high - low + 1, disparity=disparity)
    panel[margin : margin + rows, :bar] = colours[: height - margin]
    for tick in _ticks(low, high):
        share = (tick - low if disparity else high - tick) / max(high - low, 1e-9)
        y = margin + round(share * (rows - 1))
        cv2.line(panel, (bar, y), (bar + 4, y), INK, 1)
        _write(panel, f"{tick:g}" if disparity else f"{tick:g} m", (bar + 7, y + 4))
    return panel


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]] | None = None,
    gap: int = 6,
) -> np.ndarray:
    """Images in rows on one sheet, each under its caption.

    Args:
        rows: rows of (H, W, 3) uint8 RGB images of any size; rows may differ in length.
        captions: one text per image in the same nesting, "" for none.
        gap: pixels between images.

    Returns:
        (height, width, 3) uint8 RGB. Images keep their size; each row is as high as its highest.

    Raises:
        ValueError: the captions do not match the images.
    """
    if captions is not None and [len(row) for row in rows] != [len(row) for row in captions]:
        raise ValueError("contact_sheet: captions must be nested like the images, one per image")
    title = 20 if captions is not None else 0
    width = max(sum(image.shape[1] + gap for image in row) for row in rows) + gap
    heights = [max(image.shape[0] for image in row) + title + gap for row in rows]
    sheet = np.full((sum(heights) + gap, width, 3), PAPER, np.uint8)
    top = gap
    for index, (row, height) in enumerate(zip(rows, heights, strict=True)):
        left = gap
        for column, image in enumerate(row):
            high, wide = image.shape[:2]
            sheet[top + title : top + title + high, left : left + wide] = image
            if captions is not None:
                # Written on its own strip, so that a long caption stops at its image's edge.
                strip = np.full((title, wide, 3), PAPER, np.uint8)
                _write(strip, captions[index][column], (2, title - 6))
                sheet[top : top + title, left : left + wide] = strip
            left += wide + gap
        top += height
    return sheet


def _valid(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0)


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** np.floor(np.log10(span / 3))
    # The logarithm may round up to the next power, as for 0.3 / 3, which is just below 0.1.
    step = next(step for step in (5, 2, 1) if step * power <= span / 3 * (1 + 1e-9)) * power
    first, last = np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9)
    return [float(round(n * step, 9)) for n in np.arange(first, last + 1)]


def _write(picture: np.ndarray, text: str, position: tuple[int, int]) -> None:
    import cv2

    cv2.putText(picture, text, position, cv2.FONT_HERSHEY_SIMPLEX, 0.4, INK, 1, cv2.LINE_AA)
