"""Turning whatever is wrong inside a file into one readable line.

Readers raise `Fault` for what they understand; parsers below them (zip, pickle opcodes, JSON) raise
their own kinds on damaged bytes. `blame` makes one `UserError` of either, with the file's name.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jdepth.errors import UserError

LISTED = 6  # names shown before "and N more"
LONGEST = 120  # characters of a foreign name shown


class Fault(Exception):
    """What is wrong with a file, without the file's name: `blame` adds that."""


# What the standard library raises on damaged bytes. ValueError covers JSON and Unicode errors.
_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,  # zipfile on encrypted records and unknown compression; too deep a recursion
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@contextmanager
def blame(path: str | Path) -> Iterator[None]:
    """Raise every failure of the block as a one-line UserError that names `path`.

    Wrap parsing and reading only: a mistake in our own code would be reported as a damaged file.
    """
    try:
        yield
    except Fault as fault:
        raise UserError(f"{path}: {fault}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or shown(error)})") from None
    except MemoryError:
        raise UserError(f"{path}: asks for more memory than this machine has") from None
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged or truncated ({shown(error)}); fetch it again") from error


def shown(value: object) -> str:
    """Foreign text made safe for one line: printable ASCII, at most LONGEST characters."""
    text = str(value)[: LONGEST + 1]
    if not (text.isascii() and text.isprintable()):
        text = ascii(text)[1:-1]
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """The first names, each made safe, and how many more there are."""
    names = list(names)
    text = ", ".join(shown(name) for name in names[:LISTED])
    return text + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
