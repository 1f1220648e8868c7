"""Geometric operations on the host, on images (H, W, 3) uint8 and maps (H, W) of depth or labels alike.

Sizes are (height, width). Image and map go through the same call, so that they cannot drift apart.
"""

import cv2
import numpy as np

from jdepth.errors import BadItem

KB_CROP = (352, 1216)
# OpenCV's resize costs a fifth of its warp per pixel (measured): a crop of up to a fifth of an image is warped alone.
_RESIZE_FASTER = 5


def resize(image: np.ndarray, size: tuple[int, int], area: bool = False) -> np.ndarray:
    """Image to (height, width): bilinear without antialiasing, or area averages where neither side grows."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    # Where an image grows, OpenCV's area averages give steps: at whole factors its nearest pixels.
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if area and shrinks else cv2.INTER_LINEAR)


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


def resize_crop(image: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """The rows top:bottom and columns left:right of the image resized to (height, width), bilinear.

    box: (top, bottom, left, right) in pixels of the resized image.
    """
    top, bottom, left, right = box
    height, width = bottom - top, right - left
    if size[0] * size[1] <= _RESIZE_FASTER * height * width:
        return resize(image, size)[top:bottom, left:right]
    rows, columns = image.shape[0] / size[0], image.shape[1] / size[1]
    matrix = np.array([[columns, 0, (left + 0.5) * columns - 0.5], [0, rows, (top + 0.5) * rows - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def resize_crop_label(label: np.ndarray, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """The same of class ids, nearest as OpenCV and mmsegmentation do it: the top-left of a source cell."""
    top, bottom, left, right = box
    rows, columns = _nearest(label.shape[0], size[0]), _nearest(label.shape[1], size[1])
    return label.take(rows[top:bottom], 0).take(columns[left:right], 1)


def _nearest(source: int, target: int) -> np.ndarray:
    """Index of the source row for each target row; the reciprocal twice, as OpenCV rounds."""
    return np.minimum((np.arange(target) * (1.0 / (target / source))).astype(np.int64), source - 1)


def cut(
    image: np.ndarray, values: np.ndarray, box: tuple[int, int, int, int], degrees: float = 0.0, flip: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Turn clockwise about ((w - 1) / 2, (h - 1) / 2), mirror, then cut out a box; only its pixels are computed.

    box: (top, bottom, left, right) of the turned and mirrored picture. The image is bilinear, the map nearest, both
    are 0 where the picture has turned away.
    """
    top, bottom, left, right = box
    height, width = image.shape[:2]
    if not degrees:
        columns = slice(width - right, width - left) if flip else slice(left, right)
        parts = image[top:bottom, columns], values[top:bottom, columns]
        return tuple(cv2.flip(part, 1) if flip else np.ascontiguousarray(part) for part in parts)
    turn = cv2.getRotationMatrix2D(((width - 1) * 0.5, (height - 1) * 0.5), degrees, 1.0)  # where a pixel comes from
    place = np.array([[-1.0 if flip else 1.0, 0, width - 1 - left if flip else left], [0, 1, top], [0, 0, 1]])
    matrix, size = turn @ place, (right - left, bottom - top)
    image = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return image, cv2.warpAffine(values, matrix, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)


def fixed_crop(array: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """Rows top to bottom and columns left to right (last ones excluded): box = (top, bottom, left, right)."""
    top, bottom, left, right = box
    height, width = array.shape[:2]
    if bottom > height or right > width:
        raise BadItem(
            f"fixed crop rows {top}:{bottom}, columns {left}:{right} does not fit an image of {height}x{width} "
            "(height x width); set fixed_crop to none or resize first"
        )
    return array[top:bottom, left:right]


def kb_crop(array: np.ndarray) -> np.ndarray:
    """KITTI benchmark crop: the lowest 352 rows, the middle 1216 columns."""
    height, width = array.shape[:2]
    if height < KB_CROP[0] or width < KB_CROP[1]:
        raise BadItem(
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
