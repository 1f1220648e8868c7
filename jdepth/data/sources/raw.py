"""What every data set in its original download has in common: facts, a list of items, and how to read one.

A data set's own file (`nyu.py`, `ade20k.py`, ...) fills in a `RawSet` for each of its variants; `jdepth.prepare`
turns it into records.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jdepth.data.sources import decode
from jdepth.errors import UserError

IGNORE = 255


@dataclass(frozen=True)
class Item:
    """One image of a raw data set.

    Attributes:
      id: its name within the set; stable, printable, without white space.
      place: what `RawSet.read` needs to find it: files (`Path`), or a file and an index in it.
    """

    id: str
    place: Mapping[str, Any]


@dataclass(frozen=True)
class RawSet:
    """A data set as its makers distribute it.

    Attributes:
      name: folder of its records, and what configs call it.
      title: its name in print.
      counts: images per split, as published; also the splits' names.
      approximate: the counts are estimates, nobody publishes them.
      items: (raw folder, split) -> all items of the split, in a fixed order; reads lists and names only.
      read: item -> {"image": encoded bytes of an image file, and "depth": (H, W) uint16 or float32 stored numbers,
        0 = invalid, or "label": (H, W) uint8 train ids, 255 = ignored}. UserError where a file is damaged.
      expects: files and folders below the raw folder (patterns allowed) that must be there; with a split's name and
        a colon before it, for that split only.
      per_metre: stored depth numbers per metre; 0 for a set without depth.
      classes: names of the train ids; () for a set without labels.
      farthest: metres beyond which a depth is suspicious; a warning, nothing is left out.
      size: (height, width) of every image, where all have one; others are warned of.
      source: where to get it.
      terms: under which conditions.
      download: size of the download in words.
      note: choices and deviations that a user must know.
    """

    name: str
    title: str
    counts: Mapping[str, int]
    items: Callable[[Path, str], Sequence[Item]]
    read: Callable[[Item], dict[str, Any]]
    expects: tuple[str, ...]
    source: str
    terms: str
    download: str
    per_metre: float = 0.0
    classes: tuple[str, ...] = ()
    farthest: float = 0.0
    size: tuple[int, int] | None = None
    approximate: bool = False
    note: str = ""

    @property
    def kind(self) -> str:
        """What it has beside images: "depth" or "label"."""
        return "depth" if self.per_metre else "label"

    @property
    def dtype(self) -> str:
        """NumPy type of the stored numbers: metres are floating point, finer units whole numbers."""
        return "uint8" if self.kind == "label" else "float32" if self.per_metre == 1 else "uint16"


def listed(path: Path, columns: int) -> list[list[str]]:
    """Lines of a split file as words, empty ones and comments left out.

    Raises:
      UserError: the file is missing, no text, or a line has fewer than `columns` words.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < columns:
            raise UserError(f"{path}, line {number}: {len(words)} words, expected {columns}: {line.strip()[:80]}")
        rows.append(words)
    return rows


def pairs(
    images: Iterable[Path], name: Callable[[Path], str], partner: Callable[[Path], Path], key: str
) -> list[Item]:
    """Items of image files, by id, each with a second file (`key`: "depth" or "label") that `partner` names.

    Whether the second file exists is seen when the item is read.
    """
    found = [Item(name(path), {"image": path, key: partner(path)}) for path in images]
    return sorted(found, key=lambda item: item.id)


def lookup(table: Mapping[int, int]) -> np.ndarray:
    """(65536,) int16 train ids by stored id: 255 = ignored, -1 = not a stored id of this set."""
    values = np.full(1 << 16, -1, np.int16)
    values[list(table)] = list(table.values())
    return values


def train_ids(stored: np.ndarray, table: np.ndarray, path: str | Path) -> np.ndarray:
    """Stored ids (H, W) to train ids (H, W) uint8 by a `lookup` table; UserError for an id that it lacks."""
    if stored.dtype not in (np.uint8, np.uint16):
        if stored.min(initial=0) < 0 or stored.max(initial=0) >= 1 << 16:
            raise UserError(f"label file {path} holds values outside 0..65535")
        stored = stored.astype(np.uint16)
    ids = table.take(stored)
    if ids.min(initial=0) < 0:
        raise UserError(f"label file {path} holds the value {stored[ids < 0].min()}, which is no id of this data set")
    return ids.astype(np.uint8)


def read_labels(item: Item, table: np.ndarray) -> dict[str, Any]:
    """An image file and a label file of stored ids."""
    path = item.place["label"]
    return {"image": decode.read_bytes(item.place["image"]), "label": train_ids(decode.read_ids(path), table, path)}


def read_depth(item: Item) -> dict[str, Any]:
    """An image file and a 16-bit depth file, numbers as stored."""
    path = item.place["depth"]
    stored = decode.read_values(path)
    if stored.dtype != np.uint16:
        raise UserError(f"depth file {path} holds {stored.dtype} numbers, expected 16-bit ones")
    return {"image": decode.read_bytes(item.place["image"]), "depth": stored}

