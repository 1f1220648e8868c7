"""Images as people have them, read into upright RGB arrays; damaged and hostile files are told, never run."""

import logging
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jdepth.errors import UserError

# What Pillow's readers raise on damaged and hostile files, on opening as well as on decoding.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Formats of several pictures that are alike. Others keep previews, layers or gain maps beside the one picture.
_SERIES = {"GIF": "frames", "PNG": "frames", "WEBP": "frames", "TIFF": "pages"}


def read_image(image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, Pillow image or array; upright as its EXIF tag says.

    Grey is repeated, alpha dropped, and of 16 bits the upper eight are taken, as in training. Raises
    UserError for anything else, such as floating-point pixels, whose range nothing tells. Of an animation
    or a file of several pages the first one, which is logged.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UserError(f"image array of shape {image.shape} and type {image.dtype}: expected (H, W, 3) uint8 RGB")
        return image
    if isinstance(image, Image.Image):
        return _pixels(image, "image")
    if not isinstance(image, str | Path):
        raise UserError(f"image of type {type(image).__name__}: expected a path, a Pillow image or a NumPy array")
    try:
        with Image.open(image) as opened:
            pixels = _pixels(opened, str(image))
            if (count := _count(opened)) > 1:
                logging.warning("%s: the first of %d %s is used", image, count, _SERIES[opened.format])
            return pixels
    except FileNotFoundError as error:
        raise UserError(f"{image}: no such file") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{image}: not an image file") from error
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise UserError(f"{image}: has more than {most} megapixels; make it smaller") from error
    except _DAMAGE as error:
        raise UserError(f"{image}: not a readable image ({error})") from error


def _count(image: Image.Image) -> int:
    """Pictures in an opened file; 1 where a later one is damaged, which does not matter to the first."""
    try:
        return image.n_frames if image.format in _SERIES else 1
    except _DAMAGE:
        return 1


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            values = np.asarray(upright)
            if values.min() < 0 or values.max() > 65535:
                raise UserError(f"{name}: pixels from {values.min()} to {values.max()}, expected 8 or 16 bits")
            upright = Image.fromarray((values >> 8).astype(np.uint8))
        elif upright.mode == "F":
            raise UserError(f"{name}: floating-point pixels, expected 8 or 16 bits")
        return np.asarray(upright.convert("RGB"))
    except _DAMAGE as error:
        raise UserError(f"{name}: not a readable image ({error})") from error


# EXIF: the folder of camera settings in the file, and in it the focal length of a 35 mm camera that sees as much.
_EXIF_FOLDER, _FOCAL_35MM = 0x8769, 0xA405
_DIAGONAL_35MM = math.hypot(36.0, 24.0)


def focal_length(path: str | Path) -> tuple[float] | None:
    """Focal length in pixels after the EXIF tag "focal length in 35 mm film", None where there is none.

    The tag compares diagonals (CIPA DCG-001), so that it holds for any aspect ratio, and for turned images.
    """
    try:
        with Image.open(path) as image:
            millimetres = float(image.getexif().get_ifd(_EXIF_FOLDER).get(_FOCAL_35MM, 0))
            diagonal = math.hypot(*image.size)
    except _DAMAGE:
        return None
    return (millimetres / _DIAGONAL_35MM * diagonal,) if math.isfinite(millimetres) and millimetres > 0 else None
