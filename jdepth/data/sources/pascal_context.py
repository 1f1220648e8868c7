"""Pascal Context: the photographs of Pascal VOC 2010 with every pixel labelled, here with the 59 most frequent classes.

Raw layout: VOCtrainval_03-May-2010.tar unpacks to VOCdevkit/VOC2010/{JPEGImages, ImageSets}; the labels are one of

- VOCdevkit/VOC2010/SegmentationClassContext/STEM.png: mmsegmentation's conversion of trainval_merged.json, 8-bit,
  0 = other, 1..59 = the classes;
- trainval/STEM.mat, below VOCdevkit/VOC2010 or beside VOCdevkit: the original files (trainval.tar.gz), `LabelMap` of
  459 ids, of which 59 become classes; the others are ignored.

Where both are there, the PNG files count. The split is VOC 2010's own division of its 10,103 training and validation
images: ImageSets/SegmentationContext/{train,val}.txt where the conversion has written them, else
ImageSets/Main/{train,val}.txt of the archive itself. That both give the same division is not verified. Terms and
download sizes are not either.
"""

from pathlib import Path
from typing import Any

from jdepth.data.sources import decode
from jdepth.data.sources.pascal_voc import matlab_ids
from jdepth.data.sources.raw import IGNORE, Item, RawSet, listed, lookup, train_ids
from jdepth.errors import UserError

# By id in the original files. Ascending ids are the classes in alphabetical order, and the order of the PNG values.
ORIGINAL = {
    2: "aeroplane", 9: "bag", 18: "bed", 19: "bedclothes", 22: "bench", 23: "bicycle", 25: "bird", 31: "boat",
    33: "book", 34: "bottle", 44: "building", 45: "bus", 46: "cabinet", 59: "car", 65: "cat", 68: "ceiling",
    72: "chair", 80: "cloth", 85: "computer", 98: "cow", 104: "cup", 105: "curtain", 113: "dog", 115: "door",
    144: "fence", 158: "floor", 159: "flower", 162: "food", 187: "grass", 189: "ground", 207: "horse",
    220: "keyboard", 232: "light", 258: "motorbike", 259: "mountain", 260: "mouse", 284: "person", 295: "plate",
    296: "platform", 308: "pottedplant", 324: "road", 326: "rock", 347: "sheep", 349: "shelves", 354: "sidewalk",
    355: "sign", 360: "sky", 366: "snow", 368: "sofa", 397: "table", 415: "track", 416: "train", 420: "tree",
    424: "truck", 427: "tvmonitor", 440: "wall", 445: "water", 454: "window", 458: "wood",
}  # fmt: skip
CLASSES = tuple(ORIGINAL.values())

PNG_TABLE = lookup({0: IGNORE, **{i + 1: i for i in range(len(CLASSES))}})
MAT_TABLE = lookup({**dict.fromkeys(range(460), IGNORE), **{value: i for i, value in enumerate(ORIGINAL)}})

ROOT = Path("VOCdevkit/VOC2010")
LABELS = {f"{ROOT}/SegmentationClassContext": ".png", f"{ROOT}/trainval": ".mat", "trainval": ".mat"}
LISTS = ("SegmentationContext", "Main")


def items(raw: Path, split: str) -> list[Item]:
    """Images of one split ("train" or "val"), by name.

    Raises:
      UserError: there is no folder of labels, or no list of the split.
    """
    found = [(raw / folder, suffix) for folder, suffix in LABELS.items() if (raw / folder).is_dir()]
    if not found:
        raise UserError(
            f"{raw}: no labels of Pascal Context; expected the folder {' or '.join(LABELS)}; "
            "unpack trainval.tar.gz there"
        )
    labels, suffix = found[0]
    lists = [raw / ROOT / "ImageSets" / folder / f"{split}.txt" for folder in LISTS]
    names = sorted(row[0] for row in listed(next((path for path in lists if path.is_file()), lists[-1]), 1))
    images = raw / ROOT / "JPEGImages"
    return [Item(name, {"image": images / f"{name}.jpg", "label": labels / f"{name}{suffix}"}) for name in names]


def read(item: Item) -> dict[str, Any]:
    """Image bytes and train ids (H, W) uint8, from a converted PNG or an original MATLAB file."""
    path = item.place["label"]
    if path.suffix == ".mat":
        label = train_ids(matlab_ids(path, "LabelMap"), MAT_TABLE, path)
    else:
        label = train_ids(decode.read_ids(path), PNG_TABLE, path)
    return {"image": decode.read_bytes(item.place["image"]), "label": label}


CONTEXT = RawSet(
    name="context59",
    title="Pascal Context, 59 classes",
    counts={"train": 4998, "val": 5105},
    items=items,
    read=read,
    expects=(f"{ROOT}/JPEGImages", f"{ROOT}/ImageSets"),
    source="VOCtrainval_03-May-2010.tar (host.robots.ox.ac.uk/pascal/VOC/voc2010) and trainval.tar.gz "
    "(cs.stanford.edu/~roozbeh/pascal-context)",
    terms="Flickr's terms of use for the photographs; none stated for the annotations",
    download="about 1.3 GB (VOC 2010) and less than 0.1 GB (labels)",
    classes=CLASSES,
    note="everything but the 59 classes is ignored; shares photographs with Pascal VOC 2012",
)
