"""What prediction leaves behind: 16-bit PNG, .npy, coloured pictures and a sheet of all images."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

from jdepth import colourmap
from jdepth.predictor import METRIC, Prediction

# Part of the files' names.
STEMS = {METRIC: "depth"}
RELATIVE_STEM = "disparity"
# The sheet's rows, and the height of its pictures: a sheet is looked at, not measured.
SHEET_ROWS, SHEET_HEIGHT = 40, 240


def stem(prediction: Prediction) -> str:
    """"depth" or "disparity": what the files of this prediction are called."""
    return STEMS.get(prediction.kind, RELATIVE_STEM)


def png_scale(prediction: Prediction, max_depth: float | None) -> float:
    """Values per metre of the PNG: millimetres where 16 bits are enough for the model's range, else KITTI's 1/256 m,
    else all 16 bits. Of disparity: all 16 bits for this image."""
    furthest = max_depth if max_depth is not None else max(float(prediction.values.max()), 1e-30)
    fixed = (1000.0, 256.0) if max_depth is not None else ()
    # Any other scale is rounded as the file's text has it, so that reading the file back is exact.
    return next((s for s in fixed if furthest * s <= 65535), float(f"{65535 / furthest:g}"))


def write(folder: Path, name: str, prediction: Prediction, max_depth: float | None) -> float:
    """Write the three files of one image; returns the PNG's scale.

    Args:
      max_depth: metres that the model can predict at most; None for a relative one.
    """
    scale = write_png(folder / f"{name}_{stem(prediction)}.png", prediction, max_depth)
    np.save(folder / f"{name}_{stem(prediction)}.npy", prediction.values)
    coloured, legend = colours(prediction)
    Image.fromarray(colourmap.contact_sheet([[coloured, legend]])).save(folder / f"{name}_colour.png")
    return scale


def write_png(path: Path, prediction: Prediction, max_depth: float | None) -> float:
    """Write the 16-bit PNG, which says in its text what its values are; returns its scale."""
    scale, values = png_scale(prediction, max_depth), prediction.values
    if prediction.kind == METRIC:
        unit = "metres = value / scale"
    else:
        unit = "disparity = value / scale, larger is nearer, known up to a scale and a shift"
    text = PngImagePlugin.PngInfo()
    for key, entry in {"unit": unit, "scale": f"{scale:g}", "kind": prediction.kind}.items():
        text.add_text(key, entry)
    # 0 would read as "no value", so the smallest depths become 1.
    stored = np.clip(np.round(values * scale), values > 0, 65535).astype(np.uint16)
    Image.fromarray(stored).save(path, pnginfo=text)
    return scale


def colours(prediction: Prediction, limits: tuple[float, float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(picture (H, W, 3), legend (H, ..., 3)) uint8 RGB, near is warm; `limits`: values of the scale's ends."""
    disparity = prediction.kind != METRIC
    low, high = limits or colourmap.depth_range(prediction.values)
    picture = colourmap.colour_depth(prediction.values, low, high, disparity=disparity)
    return picture, colourmap.legend(low, high, picture.shape[0], disparity=disparity)


class Sheet:
    """One picture of the first images and their depth, row by row."""

    def __init__(self):
        self._rows, self._captions, self._left_out = [], [], 0

    def add(self, name: str, pixels: np.ndarray, prediction: Prediction) -> None:
        if len(self._rows) == SHEET_ROWS:
            self._left_out += 1
            return
        disparity = prediction.kind != METRIC
        low, high = colourmap.depth_range(prediction.values)
        pixels, values = _small(pixels), _small(prediction.values)
        coloured = colourmap.colour_depth(values, low, high, disparity=disparity)
        legend = colourmap.legend(low, high, coloured.shape[0], disparity=disparity)
        self._rows.append([pixels, coloured, legend])
        self._captions.append([name, prediction.kind, prediction.unit or ""])

    def write(self, path: Path) -> None:
        """Write what was added; nothing if nothing was."""
        if self._rows:
            captions = [list(row) for row in self._captions]
            if self._left_out:
                captions[-1][0] += f" (and {self._left_out} more, not shown)"
            Image.fromarray(colourmap.contact_sheet(self._rows, captions)).save(path)


def _small(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if height <= SHEET_HEIGHT:
        return picture
    size = max(1, round(width * SHEET_HEIGHT / height)), SHEET_HEIGHT
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
