"""MATLAB's files: up to version 7, which SciPy reads whole, and 7.3, which is HDF5 and is read piece by piece."""

import contextlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from jdepth.errors import UserError


def variables(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a file of version 7 or older, as SciPy gives them.

    Raises:
      UserError: the file is missing, damaged, of version 7.3, or lacks a variable.
    """
    try:
        with path.open("rb") as file:
            content = scipy.io.loadmat(file, variable_names=names)
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except NotImplementedError:
        raise UserError(
            f"{path} is a MATLAB 7.3 file, expected version 7 or older; take the file as it is distributed"
        ) from None
    except Exception as error:  # SciPy reports damaged files in many ways
        raise UserError(f"cannot read {path} as a MATLAB file ({type(error).__name__}); download it again") from None
    for name in names:
        if name not in content:
            raise UserError(f"{path} has no variable '{name}'; is it the right file?")
    return [content[name] for name in names]


def texts(cells: np.ndarray, path: Path) -> list[str]:
    """Strings of a cell array, or of one field of a struct array, whatever its shape."""
    found = [np.ravel(cell) for cell in np.ravel(cells)] if cells.dtype == object else []
    if not found or not all(cell.size == 1 and cell.dtype.kind == "U" for cell in found):
        raise UserError(f"{path} holds {cells.dtype} values of shape {cells.shape}, expected a list of strings")
    return [str(cell[0]) for cell in found]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """An open file of version 7.3 (`h5py.File`); what goes wrong within is one line that names the file."""
    try:
        yield _file(str(path), os.getpid())
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except (OSError, KeyError, ValueError, IndexError, TypeError, AttributeError) as error:
        # h5py's ways to say: another format, damaged, no such variable, no such frame, not an array.
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise UserError(
            f"cannot read {path} as a MATLAB 7.3 file (HDF5): {reason}; is it the right file, wholly downloaded?"
        ) from None


@lru_cache(maxsize=4)
def _file(path: str, process: int):
    # One per process: HDF5 files do not survive a fork, and opening one anew for each frame costs more than reading.
    import h5py

    return h5py.File(path, "r")
