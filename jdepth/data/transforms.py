"""Training augmentation on the host: geometry is done here, colour is only drawn here (the device applies it).

Every number of a pipeline is a field of a frozen dataclass, so that data sets differ in data only. All
random numbers of a sample come from one generator; switching a step off does not shift those of the others.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from jdepth.data import geometry, targets
from jdepth.errors import BadItem, UserError


@dataclass(frozen=True)
class DepthAugmentation:
    """Depth training pipeline of the DINOv2 recipe (Monocular-Depth-Estimation-Toolbox), in this order.

    Attributes:
      resize: (height, width) to bring images to first, or None. Image bilinear, depth nearest.
      resize_area: average areas instead of bilinear sampling; better where images shrink more than twice.
      fixed_crop: (top, bottom, left, right) as slices, or None.
      kb_crop: KITTI benchmark crop to 352 x 1216.
      rotate_probability, rotate_degrees: angle uniform in +-rotate_degrees, positive = clockwise; corners
        that turn in are black and have no depth.
      flip_probability: horizontal mirror.
      crop: (height, width) at a uniform whole-pixel offset, or None for the whole image.
      max_depth: metres beyond which depth counts as missing; 0: all of it counts.
      colour_probability, gamma, brightness, colour: ranges of the colour augmentation on the 0..255 scale
        (`jdepth.colour.depth_colour`); `colour` is drawn for each channel.
    """

    resize: tuple[int, int] | None = None
    resize_area: bool = False
    fixed_crop: tuple[int, int, int, int] | None = None
    kb_crop: bool = False
    rotate_probability: float = 0.5
    rotate_degrees: float = 2.5
    flip_probability: float = 0.5
    crop: tuple[int, int] | None = (416, 544)
    max_depth: float = 0.0
    colour_probability: float = 0.5
    gamma: tuple[float, float] = (0.9, 1.1)
    brightness: tuple[float, float] = (0.75, 1.25)
    colour: tuple[float, float] = (0.9, 1.1)


def augment_depth(
    item: dict[str, np.ndarray], augmentation: DepthAugmentation, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One training sample.

    Args:
      item: image (H, W, 3) uint8 and depth (H, W) float32 metres, 0 = invalid.
      rng: the sample's own generator (`jdepth.data.order.generator`).

    Returns:
      image (h, w, 3) uint8, depth (h, w) float32, colour (5,) float32: gamma, brightness and factors of
      R, G, B, all 1 where the colour stays.

    Raises:
      UserError: the image is smaller than a crop.
    """
    rotate = rng.random() < augmentation.rotate_probability
    # The reference draws the angle even where it does not rotate.
    degrees = rng.uniform(-augmentation.rotate_degrees, augmentation.rotate_degrees)
    flip = rng.random() < augmentation.flip_probability
    row, column = rng.random(), rng.random()
    recolour = rng.random() < augmentation.colour_probability
    colour = np.array(
        [
            rng.uniform(*augmentation.gamma),
            rng.uniform(*augmentation.brightness),
            *rng.uniform(*augmentation.colour, size=3),
        ],
        np.float32,
    )

    image, depth = item["image"], item["depth"]
    if augmentation.resize is not None:
        image = geometry.resize(image, augmentation.resize, augmentation.resize_area)
        depth = geometry.resize_map(depth, augmentation.resize)
    if augmentation.kb_crop:
        image, depth = geometry.kb_crop(image), geometry.kb_crop(depth)
    if augmentation.fixed_crop is not None:
        image = geometry.fixed_crop(image, augmentation.fixed_crop)
        depth = geometry.fixed_crop(depth, augmentation.fixed_crop)
    height, width = augmentation.crop or image.shape[:2]
    space = image.shape[0] - height, image.shape[1] - width
    if min(space) < 0:
        raise BadItem(
            f"crop {height}x{width} is larger than the image, {image.shape[0]}x{image.shape[1]} "
            "(height x width, after resize and fixed crop); choose a smaller crop or set resize"
        )
    top, left = int(row * (space[0] + 1)), int(column * (space[1] + 1))
    box = (top, top + height, left, left + width)
    image, depth = geometry.cut(image, depth, box, degrees if rotate else 0.0, flip)
    if augmentation.max_depth:
        depth = np.where(depth > augmentation.max_depth, np.float32(0), depth)
    return {"image": image, "depth": depth, "colour": colour if recolour else np.ones(5, np.float32)}


@dataclass(frozen=True)
class AuxiliaryAugmentation:
    """Segmentation training pipeline of mmsegmentation 1.2.2, in this order.

    Attributes:
      scale: (width, height) of the box that images are fitted into before the random ratio.
      ratio: range of the factor on that box; aspect ratio is kept, image bilinear, label nearest.
      crop: (height, width), offset redrawn up to `crop_attempts` times while one class covers
        `cat_max_ratio` or more of the labelled pixels.
      flip_probability: horizontal mirror.
      photometric_probability, brightness, contrast, saturation, hue: PhotoMetricDistortion
        (`jdepth.colour.photometric`); brightness in grey levels, hue in steps of 2 degrees.
      canvas: (height, width) all samples are padded to, at the bottom and right; at least `crop`.
    """

    scale: tuple[int, int] = (2048, 512)
    ratio: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] = (512, 512)
    crop_attempts: int = 10
    cat_max_ratio: float = 0.75
    flip_probability: float = 0.5
    photometric_probability: float = 0.5
    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18
    canvas: tuple[int, int] = (512, 512)

    def __post_init__(self):
        if self.crop[0] > self.canvas[0] or self.crop[1] > self.canvas[1]:
            raise UserError(f"auxiliary crop {self.crop} is larger than the canvas {self.canvas} (height, width)")


# What mmsegmentation sets otherwise for some data sets.
SET_CHANGES = {
    "cityscapes34": {"scale": (2048, 1024)},
    "cityscapes19": {"scale": (2048, 1024)},
    "context59": {"scale": (520, 520), "crop": (480, 480)},
}

# brightness (added), contrast before the HSV steps, saturation, hue (added, 0 = not applied), contrast after.
NEUTRAL_PHOTOMETRIC = np.array([0, 1, 1, 0, 1], np.float32)
NEUTRAL_PHOTOMETRIC.flags.writeable = False


def augment_auxiliary(
    item: dict[str, np.ndarray], augmentation: AuxiliaryAugmentation, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One auxiliary training sample.

    Args:
      item: image (H, W, 3) uint8 and, where the set has classes, label (H, W) uint8, 255 = ignore.
      rng: the sample's own generator.

    Returns:
      image (h, w, 3) uint8 on the canvas, valid_size (2,) int32: rows and columns that are image,
      photometric (5,) float32 as `NEUTRAL_PHOTOMETRIC`; if the item has a label, label (h, w) uint8 and, where the
      crop was chosen by it, class_counts (255,): pixels of each class.
    """
    image, label = item["image"], item.get("label")
    ratio = rng.uniform(*augmentation.ratio)
    flip = rng.random() < augmentation.flip_probability
    photometric = draw_photometric(augmentation, rng)
    size = _fitted(image.shape[:2], augmentation.scale, ratio)
    box, label, counts = _draw_crop(label, size, augmentation, rng)  # last: it draws a varying number of times
    image = geometry.resize_crop(image, size, box)
    if flip:  # OpenCV: NumPy copies a mirrored view of three channels 15 times slower
        image = cv2.flip(image, 1)
        label = None if label is None else cv2.flip(label, 1)
    sample = _on_canvas(image, label, augmentation.canvas) | {"photometric": photometric}
    return sample if counts is None else sample | {"class_counts": counts}


def centre_auxiliary(item: dict[str, np.ndarray], augmentation: AuxiliaryAugmentation) -> dict[str, np.ndarray]:
    """The same sample without randomness, for held-out evaluation: box at ratio 1, centre crop, true colours."""
    image, label = item["image"], item.get("label")
    size = _fitted(image.shape[:2], augmentation.scale, 1.0)
    height, width = (min(part, whole) for part, whole in zip(augmentation.crop, size, strict=True))
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    box = (top, top + height, left, left + width)
    image = geometry.resize_crop(image, size, box)
    label = None if label is None else geometry.resize_crop_label(label, size, box)
    return _on_canvas(image, label, augmentation.canvas) | {"photometric": NEUTRAL_PHOTOMETRIC.copy()}


def draw_photometric(augmentation: AuxiliaryAugmentation, rng: np.random.Generator) -> np.ndarray:
    """(5,) float32 parameters of PhotoMetricDistortion; steps whose coin says no get their neutral value."""
    brightness_on, contrast_on, saturation_on, hue_on = rng.random(4) < augmentation.photometric_probability
    contrast_first = rng.random() < 0.5
    brightness = rng.uniform(-augmentation.brightness, augmentation.brightness)
    contrast = rng.uniform(*augmentation.contrast)
    saturation = rng.uniform(*augmentation.saturation)
    hue = int(rng.integers(-augmentation.hue, augmentation.hue)) if augmentation.hue else 0
    parameters = NEUTRAL_PHOTOMETRIC.copy()
    if brightness_on:
        parameters[0] = brightness
    if contrast_on:
        parameters[1 if contrast_first else 4] = contrast
    if saturation_on:
        parameters[2] = saturation
    if hue_on and augmentation.hue:
        # A drawn 0 still goes through HSV and back, which rounds: a full turn (180 steps) says so.
        parameters[3] = hue if hue else 180
    return parameters


def _fitted(image: tuple[int, int], scale: tuple[int, int], ratio: float) -> tuple[int, int]:
    """(height, width) that fits the box scale * ratio, aspect kept; the box has no orientation: long side to long."""
    height, width = image
    box = int(scale[0] * ratio), int(scale[1] * ratio)
    factor = min(max(box) / max(height, width), min(box) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def _draw_crop(
    label: np.ndarray | None, size: tuple[int, int], augmentation: AuxiliaryAugmentation, rng: np.random.Generator
) -> tuple[tuple[int, int, int, int], np.ndarray | None, np.ndarray | None]:
    """Where to crop the image resized to `size`, as (top, bottom, left, right), the label map there and its counts."""
    height, width = (min(part, whole) for part, whole in zip(augmentation.crop, size, strict=True))
    space = size[0] - height, size[1] - width

    def draw() -> tuple[int, int, int, int]:
        top, left = int(rng.integers(space[0] + 1)), int(rng.integers(space[1] + 1))
        return top, top + height, left, left + width

    box = draw()
    if label is None:
        return box, None, None
    crop = geometry.resize_crop_label(label, size, box)
    if augmentation.cat_max_ratio >= 1:
        return box, crop, None
    counts = targets.class_counts(crop)
    for _ in range(augmentation.crop_attempts):
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < augmentation.cat_max_ratio:
            break
        if space == (0, 0):
            break  # one place only: drawing again changes nothing
        box = draw()
        crop = geometry.resize_crop_label(label, size, box)
        counts = targets.class_counts(crop)
    return box, crop, counts


def _on_canvas(image: np.ndarray, label: np.ndarray | None, canvas: tuple[int, int]) -> dict[str, np.ndarray]:
    sample = {
        "image": np.ascontiguousarray(geometry.pad(image, canvas, 0)),
        "valid_size": np.array(image.shape[:2], np.int32),
    }
    if label is not None:
        sample["label"] = np.ascontiguousarray(geometry.pad(label, canvas, 255))
    return sample
