"""Geometric operations on the host, on images (H, W, 3) uint8 and maps (H, W) of depth or labels alike.

Sizes are (height, width). Image and map go through the same call, so that they cannot drift apart.
"""

import cv2
import numpy as np

from jdepth.errors import UserError

KB_CROP = (352, 1216)


def resize(image: np.ndarray, size: tuple[int, int], area: bool = False) -> np.ndarray:
    """Image to (height, width): bilinear without antialiasing, or area averages (for shrinking by 2 and more)."""
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)


def resize_cubic(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Image to (height, width) float32, cubic without antialiasing, neither rounded nor clipped."""
    image = image.astype(np.float32)
    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth to (height, width), nearest by pixel centres, so that no metres are invented between surfaces."""
    if values.shape == tuple(size):
        return values
    return cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Class ids to (height, width), nearest as OpenCV and mmsegmentation do it: the top-left of a source cell."""
    return cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


def rotate(image: np.ndarray, values: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn clockwise about ((w - 1) / 2, (h - 1) / 2), size kept; image bilinear, map nearest, both 0 outside."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) * 0.5, (height - 1) * 0.5), -degrees, 1.0)
    size = (width, height)
    image = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    values = cv2.warpAffine(
        values, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    return image, values


def fixed_crop(array: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Rows top to bottom and columns left to right (last ones excluded): box = (top, bottom, left, right)."""
    top, bottom, left, right = box
    height, width = array.shape[:2]
    if bottom > height or right > width:
        raise UserError(
            f"fixed crop rows {top}:{bottom}, columns {left}:{right} does not fit an image of {height}x{width} "
            "(height x width); set fixed_crop to none or resize first"
        )
    return array[top:bottom, left:right]


def kb_crop(array: np.ndarray) -> np.ndarray:
    """KITTI benchmark crop: the lowest 352 rows, the middle 1216 columns."""
    height, width = array.shape[:2]
    if height < KB_CROP[0] or width < KB_CROP[1]:
        raise UserError(
            f"the KITTI benchmark crop needs {KB_CROP[0]}x{KB_CROP[1]} (height x width); got {height}x{width}"
        )
    top, left = height - KB_CROP[0], (width - KB_CROP[1]) // 2
    return array[top:, left : left + KB_CROP[1]]


def pad(array: np.ndarray, size: tuple[int, int], value: int) -> np.ndarray:
    """Fill up at the bottom and at the right."""
    height, width = array.shape[:2]
    if (height, width) == tuple(size):
        return array
    padded = np.full((*size, *array.shape[2:]), value, array.dtype)
    padded[:height, :width] = array
    return padded
