"""Reading single image, depth and label files into arrays; every failure names the file.

OpenCV reads images and depth (JPEG, PNG, PGM, TIFF, ...). Pillow reads headers, labels (palette files must
give their indices, which OpenCV expands into colours), PFM (OpenCV divides by the file's scale entry) and grey
values of fewer than 8 bits (both stretch them to 0..255; Pillow says by how much).
"""

import contextlib
import io
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from jdepth.errors import UserError

# What OpenCV and libtiff would print about a damaged file stands in our one line.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Orientation tags are ignored: depth and label files carry none, so a turned image would not fit them.
_COLOUR = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

_PNG = b"\x89PNG\r\n\x1a\n"
# Grey and colour files whose header names the largest value.
_PNM = (b"P2", b"P3", b"P5", b"P6")
# Where a JPEG has a marker that is neither a stuffed byte of the picture's data nor a restart.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
# Pillow's names of packed grey values, and the factor by which it stretches them.
_STRETCHED = {"L;2": 85, "L;4": 17}


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB as stored: grey is repeated, alpha dropped, 16 bits reduced, no rotation by EXIF.

    PGM and PPM with a largest value to which OpenCV does not rescale are refused.
    """
    return decode_image(read_bytes(path), path)


def decode_image(data: bytes, name: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file's bytes, as `read_image`; `name` stands in the error."""
    if data.startswith(_PNM):
        with _blame(name), Image.open(io.BytesIO(data)) as image:
            largest = _largest(image)
        if largest not in (None, 255, 65535) and (largest > 255 or data.startswith((b"P5", b"P6"))):
            raise UserError(
                f"{name} has the largest value {largest} in its header; write it with 255 or 65535, or as PNG"
            )
    return _decode(data, name, _COLOUR)


def read_values(path: Path) -> np.ndarray:
    """(H, W) stored numbers of a one-channel depth or mask file: bool, whole or floating point.

    A `.npy` file may have a last axis of length 1; it must hold real numbers. ASCII PGM with a largest value
    other than 255 or 65535, and PBM, are refused: readers do not give the numbers that they store.
    """
    if path.suffix == ".npy":
        return _one_channel(_load_npy(path), path)
    data = read_bytes(path)
    if path.suffix.lower() == ".pfm" or _stretched_by_opencv(data):
        values = _load_pillow(data, path)
    else:
        values = _decode(data, path, cv2.IMREAD_UNCHANGED)
    return _one_channel(values, path)


def read_ids(path: Path) -> np.ndarray:
    """(H, W) stored whole numbers of a label file; palette files give their indices.

    PGM with a largest value other than 255 or 65535, and PBM, are refused as in `read_values`.
    """
    ids = _load_npy(path) if path.suffix == ".npy" else _load_pillow(read_bytes(path), path)
    ids = _one_channel(ids, path)
    if ids.dtype.kind not in "biu":
        raise UserError(f"label file {path} holds {ids.dtype} values; expected whole numbers")
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def header_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, depth or label file, read from its header only."""
    if path.suffix == ".npy":
        shape = _load_npy(path, header_only=True).shape
        if len(shape) < 2:
            raise UserError(f"array in {path} has shape {shape}; expected (height, width)")
        return shape[0], shape[1]
    with _blame(path), Image.open(path) as image:
        width, height = image.size
        return height, width


@contextlib.contextmanager
def _blame(path: str | Path):
    """Turn whatever goes wrong into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image file") from None
    except Exception as error:  # Pillow and NumPy report damaged files in more ways than they document
        reason = getattr(error, "strerror", None) or _one_line(error) or type(error).__name__
        raise UserError(f"cannot read {path}: {reason}") from None


def _decode(data: bytes, path: str | Path, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UserError(f"cannot decode {path}: {_one_line(error)}") from None
    if image is None:
        raise UserError(f"{path} is damaged or not an image that OpenCV reads")
    return image


def _load_pillow(data: bytes, path: Path) -> np.ndarray:
    with _blame(path), Image.open(io.BytesIO(data)) as image:
        factor = _stretch(image, path)  # before the pixels are read, which forgets how they are packed
        values = np.asarray(image)
        return values if factor == 1 else values // factor


def _largest(image: Image.Image) -> int | None:
    """The largest value that a PGM's or PPM's header names, where Pillow looks at it."""
    if not image.tile:
        return None
    codec, _, _, arguments = image.tile[0]
    return arguments[1] if codec.startswith("ppm") and isinstance(arguments, tuple) and len(arguments) > 1 else None


def _stretch(image: Image.Image, path: Path) -> int:
    """By what factor Pillow multiplies the stored numbers; UserError where it changes them in other ways."""
    if not image.tile:
        return 1
    arguments = image.tile[0][3]
    packing = arguments[0] if isinstance(arguments, tuple) else arguments
    largest = _largest(image)
    if largest not in (None, 255, 65535):
        raise UserError(
            f"{path} has the largest value {largest} in its header, to which readers rescale; "
            "write it with 255 or 65535, or as PNG"
        )
    if str(packing).startswith(("1;", "L;")) and packing not in _STRETCHED:
        raise UserError(f"{path} stores white as 0 or its bits in reverse, which readers undo; write it as PNG")
    return _STRETCHED.get(packing, 1)


def _stretched_by_opencv(data: bytes) -> bool:
    """Whether a file holds grey values of fewer than 8 bits, or ASCII ones, which OpenCV rescales."""
    if data.startswith(_PNG):
        bits, colour_type = data[24:25], data[25:26]
        return bits < b"\x08" and colour_type == b"\0"
    return data.startswith((b"P1", b"P2", b"P4"))


def read_bytes(path: Path) -> bytes:
    """An image file as it is, after its end and checksums were looked at."""
    with _blame(path):
        data = path.read_bytes()
    if not data:
        raise UserError(f"{path} is empty")
    if data.startswith(b"\xff\xd8"):
        damage = _jpeg_damage(data)
    elif data.startswith(_PNG):
        damage = _png_damage(data)
    else:
        damage = None
    if damage:
        raise UserError(f"{path} is damaged: {damage}")
    return data


def _jpeg_damage(data: bytes) -> str | None:
    """What is wrong with a JPEG that lacks its end; decoders return such files half grey, without an error.

    Its segments are walked: thumbnails before the picture and videos behind it have markers of their own.
    """
    marker = _JPEG_MARKER.search(data, 2)
    while marker and marker[1] != b"\xd9":
        length = int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        marker = _JPEG_MARKER.search(data, marker.end() + length)
    return None if marker else "the file ends early"


def _png_damage(data: bytes) -> str | None:
    """What is wrong with a PNG that lacks its end or has a wrong checksum, of which libpng would print a line."""
    view, start = memoryview(data), len(_PNG)
    while True:
        kind = data[start + 4 : start + 8]
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if end + 4 > len(data):
            return "the file ends early"
        # Small letters are parts that decoders may skip, such as text.
        if kind[:1].isupper() and zlib.crc32(view[start + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return "its checksum does not fit its content"
        if kind == b"IEND":
            return None
        start = end + 4


def _load_npy(path: Path, header_only: bool = False) -> np.ndarray:
    """The array of a `.npy` file, which with `header_only` stays on the disk. Pickled objects are refused."""
    with _blame(path):
        if header_only:
            values = np.lib.format.open_memmap(path, mode="r")
        else:
            with path.open("rb") as file:
                values = np.lib.format.read_array(file)
    if values.dtype.kind not in "buif":
        raise UserError(f"{path} holds {values.dtype} values; expected real numbers")
    return values


def _one_channel(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2:
        raise UserError(f"{path} has shape {values.shape}; depth, label and mask files have one channel")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
