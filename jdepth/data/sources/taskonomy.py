"""Taskonomy: some four million rendered views of 512x512 in scanned buildings, as the Omnidata downloader lays it out.

Raw layout:

    {rgb,depth_zbuffer,mask_valid}/taskonomy/BUILDING/point_P_view_V_domain_{rgb,depth_zbuffer,mask_valid}.png
    train_val_test_full.csv                           columns id,train,val,test, of which one is 1

Depth is in 1/512 m along the axis, 65535 where the scan has a hole; mask_valid, where the folder is there, says
likewise (0 = missing). The CSV names the buildings of the subset; of another subset (tiny, medium, fullplus), its
CSV may lie there instead. A tenth of the images, as the paper uses, is chosen when they are prepared.

Unverified: the number of images of the `full` subset (the counts below are the paper's rounded ones, and for test an
estimate by the number of buildings); the size of the download.
"""

import csv
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdepth.data.sources import decode
from jdepth.data.sources.raw import Item, RawSet, read_depth
from jdepth.errors import UserError

HOLE = 65535
COLUMNS = {"id", "train", "val", "test"}
# Buildings that Omnidata leaves out: no images, or wrong viewpoints.
EXCLUDED = {"mosquito", "tansboro", "tomkins", "darnestown", "brinnon", "rough", "woodbine"}
_IMAGE = re.compile(r"point_(0|[1-9]\d*)_view_(0|[1-9]\d*)_domain_rgb\.png")


class Views(Sequence):
    """Items of many buildings, kept as two numbers per view: three million of them take 26 MB.

    Args:
      raw: the raw folder.
      buildings: names, in order.
    """

    def __init__(self, raw: Path, buildings: Sequence[str]):
        self._raw, self._buildings = raw, list(buildings)
        self._masked = (raw / "mask_valid").is_dir()
        self._views = [_views(raw / "rgb/taskonomy" / building) for building in buildings]
        self._ends = np.cumsum([len(views) for views in self._views]).tolist()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]  # from the end, too
        number = bisect_right(self._ends, index)
        point, view = self._views[number][index - self._ends[number]]
        name = f"{self._buildings[number]}/point_{point}_view_{view}"
        kinds = {"image": "rgb", "depth": "depth_zbuffer"} | ({"mask": "mask_valid"} if self._masked else {})
        place = {key: self._raw / f"{kind}/taskonomy/{name}_domain_{kind}.png" for key, kind in kinds.items()}
        return Item(name, place)


def items(raw: Path, split: str) -> Views:
    """Views of one split, by building, point and view."""
    path = _split_file(raw)
    chosen = sorted(set(_buildings(path, split)) - EXCLUDED)
    for building in chosen:
        if not (raw / "rgb/taskonomy" / building).is_dir():
            raise UserError(
                f"{raw / 'rgb/taskonomy' / building}: no such folder, but {path.name} names the building; download it, "
                "or put the CSV of your subset there instead"
            )
    return Views(raw, chosen)


def read(item: Item) -> dict[str, Any]:
    """Image and stored depth, 0 where it is missing."""
    found = read_depth(item)
    depth = np.where(found["depth"] == HOLE, np.uint16(0), found["depth"])
    if "mask" in item.place:
        mask = decode.read_values(item.place["mask"])
        if mask.shape != depth.shape:
            raise UserError(f"mask {item.place['mask']} is of another size than {item.place['depth'].name}")
        depth[mask == 0] = 0
    return found | {"depth": depth}


def _views(folder: Path) -> np.ndarray:
    """(N, 2) int32 numbers of point and view, sorted."""
    with os.scandir(folder) as entries:
        found = [match.groups() for entry in entries if (match := _IMAGE.fullmatch(entry.name))]
    numbers = np.array(found, np.int32).reshape(-1, 2)
    return numbers[np.lexsort((numbers[:, 1], numbers[:, 0]))]


def _split_file(raw: Path) -> Path:
    found = sorted(raw.glob("train_val_test_*.csv"))
    full = raw / "train_val_test_full.csv"
    if full in found or len(found) == 1:
        return full if full in found else found[0]
    raise UserError(
        f"{full}: split file not found; copy it there from omnidata_tools/dataset/starter_dataset/component_datasets/"
        "taskonomy/ of github.com/EPFL-VILAB/omnidata"
    )


def _buildings(path: Path, split: str) -> list[str]:
    """Names of a split's buildings."""
    try:
        # Some copies end lines with a bare carriage return, which opening as text makes a newline of.
        lines = [line.replace(" ", "") for line in path.read_text(encoding="utf-8-sig").splitlines()]
        rows = list(csv.DictReader(line for line in lines if line))
        numbers = [number for number, line in enumerate(lines, 1) if line][1:]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not rows or not COLUMNS <= set(rows[0]):
        raise UserError(f"{path}: expected the columns id,train,val,test; copy the file again")
    for number, row in zip(numbers, rows, strict=True):
        if not row["id"] or {row[column] for column in ("train", "val", "test")} - {"0", "1"}:
            raise UserError(f"{path}, line {number}: expected a building and 0 or 1 for train, val and test")
    return [row["id"] for row in rows if row[split] == "1"]


TASKONOMY = RawSet(
    name="taskonomy",
    title="Taskonomy",
    counts={"train": 3_200_000, "val": 498_000, "test": 542_000},
    items=items,
    read=read,
    expects=("rgb/taskonomy", "depth_zbuffer/taskonomy", "train_val_test_*.csv"),
    source=(
        "github.com/EPFL-VILAB/omnidata: omnitools.download rgb depth_zbuffer mask_valid --components taskonomy "
        "--subset full; train_val_test_full.csv is in that repository"
    ),
    terms="non-commercial research, no redistribution",
    download="terabytes for the full subset",
    per_metre=512.0,
    size=(512, 512),
    approximate=True,
    farthest=100.0,
    note=(
        "subset full by buildings, without the seven that Omnidata leaves out; the paper takes a random tenth of the "
        "images; counts are rounded; holes (65535) are 0; a few files are known to be damaged"
    ),
)
