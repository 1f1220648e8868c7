"""SUN RGB-D: indoor frames of four sensors, with depth (`DEPTH`) and with 37 classes (`LABELS`); 5,285 / 5,050.

Raw layout, both archives unpacked into one folder:

    SUNRGBD/{kv1,kv2,realsense,xtion}/SOURCE/.../FRAME/{image/*.jpg, depth/*.png}     one file of each per frame
    SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat      alltrain, alltest: the provider's paths of frame folders
    SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat           field rgbpath: which frame has which number
    SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat          SUNRGBD2Dseg/seglabel: labels by that number (MATLAB 7.3)

or, for the labels alone, the small copy of github.com/ankurhanda/sunrgbd-meta-data, each archive in its own folder:

    SUNRGBD-{train,test}_images/img-NNNNNN.jpg        both count from 1
    sunrgbd_train_test_labels/img-NNNNNN.png          test first: training image k has label 5050 + k

The files behind an image and its depth differ in name in some sources, so folders are looked into. Unverified: the
sizes of the downloads and the licence; that small copy's numbers, which rest on public code that reads it.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from jdepth.data.sources import decode, matlab
from jdepth.data.sources.raw import IGNORE, Item, RawSet, lookup, read_depth, train_ids
from jdepth.errors import UserError

CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor_mat", "clothes", "ceiling", "books",
    "fridge", "tv", "paper", "towel", "shower_curtain", "box", "whiteboard", "person", "night_stand", "toilet", "sink",
    "lamp", "bathtub", "bag",
)  # fmt: skip
TABLE = lookup({0: IGNORE, **{i + 1: i for i in range(len(CLASSES))}})

COUNTS = {"train": 5285, "test": 5050}
FARTHEST_MM = 8000
IMAGES = "SUNRGBD"
SPLITS = Path("SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat")
META = Path("SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat")
SEGMENTS = Path("SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat")
SMALL_LABELS = "sunrgbd_train_test_labels"
SOURCE = "rgbd.cs.princeton.edu: SUNRGBD.zip and SUNRGBDtoolbox.zip"
TERMS = "research use, cite Song et al. 2015"


def items(raw: Path, split: str) -> list[Item]:
    """Frames of one split, with depth."""
    return [Item(_identity(frame), {"folder": raw / IMAGES / frame}) for frame in _frames(raw, split)]


def read(item: Item) -> dict[str, Any]:
    """Image and millimetres, at most 8000; 0 = invalid. Stored are millimetres whose 16 bits are rotated left by 3."""
    folder = item.place["folder"]
    found = read_depth(Item(item.id, {"image": _image(folder), "depth": _only(folder / "depth", ".png")}))
    millimetres = (found["depth"] >> 3) | (found["depth"] << 13)
    return found | {"depth": np.minimum(millimetres, np.uint16(FARTHEST_MM))}


def label_items(raw: Path, split: str) -> list[Item]:
    """Frames of one split, with labels."""
    if not (raw / SPLITS).exists() and (raw / SMALL_LABELS).is_dir():
        return _small_items(raw, split)
    numbers = _numbers(raw / META)
    found = []
    for frame in _frames(raw, split):
        if frame not in numbers:
            raise UserError(f"{raw / META}: frame {frame} of {SPLITS.name} is not in it; take both from one toolbox")
        place = {"folder": raw / IMAGES / frame, "label": raw / SEGMENTS, "index": numbers[frame]}
        found.append(Item(_identity(frame), place))
    return found


def read_label(item: Item) -> dict[str, Any]:
    """Image and train ids."""
    path = item.place["label"]
    if "index" in item.place:
        image, stored = _image(item.place["folder"]), _segment(path, item.place["index"])
    else:
        image, stored = item.place["image"], decode.read_ids(path)
    return {"image": decode.read_bytes(image), "label": train_ids(stored, TABLE, path)}


def _frames(raw: Path, split: str) -> list[str]:
    """Frame folders of a split below SUNRGBD, in order."""
    path = raw / SPLITS
    (cells,) = matlab.variables(path, f"all{split}")
    return sorted(_local(text, path) for text in matlab.texts(cells, path))


def _local(text: str, path: Path) -> str:
    """What follows SUNRGBD/ in one of the provider's own paths."""
    _, found, rest = text.partition(f"/{IMAGES}/")
    if not found or not rest.strip("/"):
        raise UserError(f"{path}: expected paths of the form .../{IMAGES}/kv1/..., found '{text}'")
    return "/".join(part for part in rest.split("/") if part)


def _numbers(path: Path) -> dict[str, int]:
    """Which number a frame folder has, from 0."""
    (meta,) = matlab.variables(path, "SUNRGBDMeta")
    if not meta.dtype.names or "rgbpath" not in meta.dtype.names:
        raise UserError(f"{path}: 'SUNRGBDMeta' has no field 'rgbpath'; is it the toolbox's file?")
    # .../FRAME/image/NAME.jpg
    images = (_local(text, path) for text in matlab.texts(meta["rgbpath"], path))
    return {image.rsplit("/", 2)[0]: number for number, image in enumerate(images)}


def _segment(path: Path, index: int) -> np.ndarray:
    """(H, W) stored class numbers; MATLAB's columns are HDF5's rows."""
    with matlab.opened(path) as file:
        stored = np.asarray(file[np.ravel(file["SUNRGBD2Dseg/seglabel"][index])[0]])
    if stored.ndim != 2 or stored.dtype.kind not in "uif" or (stored.dtype.kind == "f" and (stored % 1 != 0).any()):
        raise UserError(f"{path}: label {index} is no map of whole numbers, but {stored.dtype} of shape {stored.shape}")
    return stored.T


def _small_items(raw: Path, split: str) -> list[Item]:
    before = COUNTS["test"] if split == "train" else 0
    found = []
    for number, image in enumerate(sorted((raw / f"SUNRGBD-{split}_images").glob("*.jpg")), 1):
        # Some copies give the training images their labels' numbers: those must not be shifted once more.
        if image.name != f"img-{number:06d}.jpg":
            raise UserError(f"{image}: expected img-{number:06d}.jpg; unpack SUNRGBD-{split}_images.tgz there again")
        label = raw / SMALL_LABELS / f"img-{before + number:06d}.png"
        found.append(Item(label.stem, {"image": image, "label": label}))
    return found


def _identity(frame: str) -> str:
    return "_".join(frame.split())


def _image(folder: Path) -> Path:
    return _only(folder / "image", ".jpg")


def _only(folder: Path, suffix: str) -> Path:
    """The one file of a kind in a frame's folder."""
    try:
        found = [name for name in os.listdir(folder) if name.lower().endswith(suffix) and not name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be looked into ({error.strerror}); unpack SUNRGBD.zip again") from None
    if len(found) != 1:
        raise UserError(f"{folder}: expected one {suffix} file, found {len(found)}; unpack SUNRGBD.zip again")
    return folder / found[0]


DEPTH = RawSet(
    name="sun",
    title="SUN RGB-D, depth",
    counts=COUNTS,
    items=items,
    read=read,
    expects=(*(f"{IMAGES}/{sensor}" for sensor in ("kv1", "kv2", "realsense", "xtion")), str(SPLITS)),
    source=SOURCE,
    terms=TERMS,
    download="about 7 GB",
    per_metre=1000.0,
    farthest=FARTHEST_MM / 1000,
    note=(
        "raw depth (depth/, not the filled depth_bfx/), beyond 8 m set to 8 m; its training part holds NYU's 795 "
        "labelled training images, its test part NYU's 654 test images: do not train on the test part and score NYU"
    ),
)

LABELS = RawSet(
    name="sun37",
    title="SUN RGB-D, 37 classes",
    counts=COUNTS,
    items=label_items,
    read=read_label,
    expects=(f"{IMAGES}*/",),
    source=f"{SOURCE}; or the images and labels of github.com/ankurhanda/sunrgbd-meta-data, without depth",
    terms=TERMS,
    download="about 7 GB",
    classes=CLASSES,
    note="0 (unlabelled) is ignored; its training part holds NYU's 795 labelled training images",
)
