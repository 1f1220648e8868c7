"""Reading single image, depth and label files into arrays; every failure names the file.

OpenCV reads images and depth (JPEG, PNG, PGM, TIFF, ...). Pillow reads headers, labels (palette files must
give their indices, which OpenCV expands into colours) and PFM (OpenCV divides by the file's scale entry).
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from jdepth.errors import UserError

# Orientation tags are ignored: depth and label files carry none, so a turned image would not fit them.
_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB as stored: grey is repeated, alpha dropped, 16 bits reduced, no rotation by EXIF."""
    return cv2.cvtColor(_decode(path, _COLOUR), cv2.COLOR_BGR2RGB)


def read_values(path: Path) -> np.ndarray:
    """(H, W) stored numbers of a one-channel depth or mask file: uint8, uint16 or floating point.

    A `.npy` file may have a last axis of length 1; pickled objects in it are refused.
    """
    if path.suffix == ".npy":
        values = _load_npy(path)
    elif path.suffix.lower() == ".pfm":
        values = _load_pillow(path)
    else:
        values = _decode(path, cv2.IMREAD_UNCHANGED)
    return _one_channel(values, path)


def read_ids(path: Path) -> np.ndarray:
    """(H, W) stored whole numbers of a label file; palette files give their indices."""
    ids = _load_npy(path) if path.suffix == ".npy" else _load_pillow(path)
    ids = _one_channel(ids, path)
    if ids.dtype.kind not in "biu":
        raise UserError(f"label file {path} holds {ids.dtype} values; expected whole numbers")
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def header_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, depth or label file, read from its header only."""
    try:
        if path.suffix == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            if len(shape) < 2:
                raise UserError(f"array in {path} has shape {shape}; expected (height, width)")
            return shape[0], shape[1]
        with Image.open(path) as image:
            width, height = image.size
            return height, width
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image file") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}") from None


def _decode(path: Path, flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(np.frombuffer(_read_bytes(path), np.uint8), flags)
    except cv2.error as error:
        raise UserError(f"cannot decode {path}: {_one_line(error)}") from None
    if image is None:
        raise UserError(f"{path} is damaged or not an image that OpenCV reads")
    return image


def _load_pillow(path: Path) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(_read_bytes(path))) as image:
            return np.asarray(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} is damaged or not an image file") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow reports damaged files as any of these
        raise UserError(f"cannot read {path}: {_one_line(error)}") from None


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not data:
        raise UserError(f"{path} is empty")
    if _truncated(data):
        raise UserError(f"{path} is damaged: the file ends early")
    return data


def _truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end; some decoders return such files half grey, without an error."""
    if data.startswith(b"\xff\xd8"):
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND") < data.rfind(b"IDAT")
    return False


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {_one_line(error)}") from None


def _one_channel(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2:
        raise UserError(f"{path} has shape {values.shape}; depth, label and mask files have one channel")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
