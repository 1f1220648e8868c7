"""Pascal VOC 2012 segmentation with the Semantic Boundaries Dataset (SBD): 20 objects and background.

Raw layout, both below one folder, as their archives unpack:

    VOCdevkit/VOC2012/{JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt}
    benchmark_RELEASE/dataset/{img, cls/ID.mat, train.txt, val.txt}

VOC's labels are palette PNG files: 0 = background, a class of its own; 1..20 = objects; 255 = border, ignored. SBD's
are MATLAB files with GTcls.Segmentation, 0..20, without a border (the last is not verified).

The paper's 8.5K images are taken for SBD's train list (8,498), not mmsegmentation's trainaug (10,582); no other list
has that number. SBD train overlaps VOC's val, which is harmless for an auxiliary task that is not scored there. Terms
and download sizes are not verified.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jdepth.data.sources import decode, matlab
from jdepth.data.sources.raw import IGNORE, Item, RawSet, listed, lookup, train_ids
from jdepth.errors import UserError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
TABLE = lookup({**{i: i for i in range(len(CLASSES))}, 255: IGNORE})

VOC, SBD = Path("VOCdevkit/VOC2012"), Path("benchmark_RELEASE/dataset")


def _voc(raw: Path, names: list[str]) -> list[Item]:
    folder = raw / VOC
    return [
        Item(name, {"image": folder / f"JPEGImages/{name}.jpg", "label": folder / f"SegmentationClass/{name}.png"})
        for name in names
    ]


def _sbd(raw: Path, names: list[str]) -> list[Item]:
    folder = raw / SBD
    return [Item(name, {"image": folder / f"img/{name}.jpg", "label": folder / f"cls/{name}.mat"}) for name in names]


def _names(path: Path) -> list[str]:
    return sorted(row[0] for row in listed(path, 1))


def items(train: str, raw: Path, split: str) -> list[Item]:
    """Images of one split; `train` says which list trains: "sbd", "voc" or "trainaug" (VOC's own, then SBD's
    train and val without VOC's val)."""
    lists = raw / VOC / "ImageSets/Segmentation"
    if split == "val":
        return _voc(raw, _names(lists / "val.txt"))
    if train == "sbd":
        return _sbd(raw, _names(raw / SBD / "train.txt"))
    own = _names(lists / "train.txt")
    if train == "voc":
        return _voc(raw, own)
    taken = {*own, *_names(lists / "val.txt")}
    others = {name for part in ("train.txt", "val.txt") for name in _names(raw / SBD / part)} - taken
    return _voc(raw, own) + _sbd(raw, sorted(others))


def read(item: Item) -> dict[str, Any]:
    """Image bytes and train ids (H, W) uint8, from a palette PNG (VOC) or a MATLAB file (SBD)."""
    path = item.place["label"]
    stored = matlab_ids(path, "GTcls", "Segmentation") if path.suffix == ".mat" else decode.read_ids(path)
    return {"image": decode.read_bytes(item.place["image"]), "label": train_ids(stored, TABLE, path)}


def matlab_ids(path: Path, variable: str, field: str = "") -> np.ndarray:
    """(H, W) stored whole numbers of a MATLAB file: a variable, or one field of a struct."""
    (value,) = matlab.variables(path, variable)
    what = f"{variable}.{field}" if field else variable
    try:
        value = np.asarray(value[field][0, 0] if field else value)
    except (IndexError, TypeError, ValueError):  # no struct, or none with this field
        raise UserError(f"{path} has no {what}: damaged, or another kind of label file; unpack it again") from None
    whole = value.dtype.kind in "ui" or (value.dtype.kind == "f" and np.array_equal(value, np.floor(value)))
    if value.ndim != 2 or not whole:
        held = f"{value.dtype} of shape {value.shape}"
        raise UserError(f"{path}: {what} is {held}; expected (height, width) whole numbers")
    return value


_SCORED = (VOC / "JPEGImages", VOC / "SegmentationClass", VOC / "ImageSets/Segmentation/val.txt")
_OWN = (VOC / "ImageSets/Segmentation/train.txt",)
_ADDED = (SBD / "img", SBD / "cls", SBD / "train.txt")


def _variant(name: str, title: str, train: str, count: int, expects: tuple[Path, ...], note: str) -> RawSet:
    sbd = train != "voc"
    return RawSet(
        name=name,
        title=title,
        counts={"train": count, "val": 1449},
        items=partial(items, train),
        read=read,
        # The archives beyond VOC's own are for training alone.
        expects=tuple(("" if path in _SCORED else "train:") + path.as_posix() for path in expects),
        source="VOCtrainval_11-May-2012.tar (host.robots.ox.ac.uk/pascal/VOC/voc2012)"
        + (" and SBD's benchmark.tgz (home.bharathh.info/home/sbd)" if sbd else ""),
        terms="Flickr's terms of use for the photographs; research use",
        download="2 GB (VOC)" + (" and 1.4 GB (SBD)" if sbd else ""),
        classes=CLASSES,
        note=note,
    )


SBD_TRAIN = _variant(
    "voc21",
    "Pascal VOC 2012, SBD train",
    "sbd",
    8498,
    _SCORED + _ADDED,
    "trains on SBD's train list, which overlaps val: not for scores on VOC",
)
VOC_TRAIN = _variant(
    "voc21_train",
    "Pascal VOC 2012, its own train list",
    "voc",
    1464,
    _SCORED + _OWN,
    "stored 255 (borders of objects) is ignored",
)
TRAINAUG = _variant(
    "voc21_trainaug",
    "Pascal VOC 2012, trainaug",
    "trainaug",
    10582,
    _SCORED + _OWN + _ADDED + (SBD / "val.txt",),
    "VOC's own labels for its train list, SBD's for the other images; none of VOC's val",
)
