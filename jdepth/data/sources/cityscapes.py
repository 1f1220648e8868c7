"""Cityscapes: street scenes with fine annotations, 1024x2048, with 34 label ids or the 19 classes of its benchmark.

Raw layout, as leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip unpack into one folder:

    leftImg8bit/{train,val}/CITY/CITY_SSSSSS_FFFFFF_leftImg8bit.png
    gtFine/{train,val}/CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png (8-bit label ids 0..33)

Both variants read the label ids that are shipped; `_gtFine_labelTrainIds.png` files are made by the user and not
looked at. The licence plate has id -1. The makers' tools leave negative ids undrawn, so none should be there; where
other tools have stored it in 8 bits it is 255, and ignored. The test split has no real labels and is not offered.
Download sizes are not verified.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jdepth.data.sources.raw import IGNORE, Item, RawSet, lookup, pairs, read_labels

# By label id.
LABELS = (
    "unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road",
    "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole",
    "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car", "truck",
    "bus", "caravan", "trailer", "train", "motorcycle", "bicycle",
)  # fmt: skip
# By train id: what the makers' benchmark scores.
SCORED = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
PLATE = 255

LABEL_TABLE = lookup({**{i: i for i in range(len(LABELS))}, PLATE: IGNORE})
TRAIN_TABLE = lookup(
    {**{i: SCORED.index(name) if name in SCORED else IGNORE for i, name in enumerate(LABELS)}, PLATE: IGNORE}
)

_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def _name(image: Path) -> str:
    return image.name.removesuffix(_IMAGE)


def items(raw: Path, split: str) -> list[Item]:
    """Images of one split ("train" or "val"), by name, which is CITY_SSSSSS_FFFFFF."""
    labels = raw / "gtFine" / split
    return pairs(
        (raw / "leftImg8bit" / split).glob(f"*/*{_IMAGE}"),
        _name,
        lambda path: labels / path.parent.name / f"{_name(path)}{_LABEL}",
        "label",
    )


def read_label_ids(item: Item) -> dict[str, Any]:
    """Image bytes and label ids (H, W) uint8, all 34 of them classes."""
    return read_labels(item, LABEL_TABLE)


def read_train_ids(item: Item) -> dict[str, Any]:
    """Image bytes and train ids (H, W) uint8 of the 19 scored classes; the other label ids are ignored."""
    return read_labels(item, TRAIN_TABLE)


def _variant(
    name: str, title: str, read: Callable[[Item], dict[str, Any]], classes: tuple[str, ...], note: str
) -> RawSet:
    return RawSet(
        name=name,
        title=title,
        counts={"train": 2975, "val": 500},
        items=items,
        read=read,
        size=(1024, 2048),
        expects=tuple(f"{split}:{kind}/{split}/*" for kind in ("leftImg8bit", "gtFine") for split in ("train", "val")),
        source="www.cityscapes-dataset.com (registration): leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
        terms="Cityscapes' own licence: non-commercial, no redistribution",
        download="about 11 GB (images) and 0.25 GB (labels)",
        classes=classes,
        note=note,
    )


LABEL_IDS = _variant(
    "cityscapes34",
    "Cityscapes, 34 label ids",
    read_label_ids,
    LABELS,
    "the void ids 0..6 are ordinary classes here; ego vehicle, rectification border and out of roi are in nearly "
    "every image",
)
TRAIN_IDS = _variant(
    "cityscapes19",
    "Cityscapes, 19 classes",
    read_train_ids,
    SCORED,
    "computed from the label ids; the other 15 ids are ignored",
)
