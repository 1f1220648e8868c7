"""ADE20K scene parsing: 150 classes of things and surfaces, indoors and outdoors.

Raw layout, as ADEChallengeData2016.zip unpacks:

    ADEChallengeData2016/images/{training,validation}/ADE_{train,val}_XXXXXXXX.jpg
    ADEChallengeData2016/annotations/{training,validation}/ADE_{train,val}_XXXXXXXX.png

Labels are 8-bit: 0 = other objects, ignored; 1..150 = the classes. The full ADE20K release (labels in colours,
thousands of names) is another download. Terms and download size are not verified.
"""

from pathlib import Path
from typing import Any

from jdepth.data.sources.raw import IGNORE, Item, RawSet, lookup, pairs, read_labels

# The first name of each class in the makers' list.
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk",
    "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column", "signboard",
    "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path",
    "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway", "river", "bridge", "bookcase",
    "blind", "coffee table", "toilet", "flower", "book", "hill", "bench", "countertop", "stove", "palm",
    "kitchen island", "computer", "swivel chair", "boat", "bar", "arcade machine", "hovel", "bus", "towel", "light",
    "truck", "tower", "chandelier", "awning", "streetlight", "booth", "television receiver", "airplane",
    "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman", "bottle", "buffet", "poster",
    "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool",
    "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank",
    "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture",
    "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)  # fmt: skip
TABLE = lookup({0: IGNORE, **{i + 1: i for i in range(len(CLASSES))}})

ROOT = Path("ADEChallengeData2016")
FOLDERS = {"train": "training", "val": "validation"}


def items(raw: Path, split: str) -> list[Item]:
    """Images of one split ("train" or "val"), by name."""
    images, labels = (raw / ROOT / kind / FOLDERS[split] for kind in ("images", "annotations"))
    return pairs(
        images.glob(f"ADE_{split}_*.jpg"), lambda path: path.stem, lambda path: labels / f"{path.stem}.png", "label"
    )


def read(item: Item) -> dict[str, Any]:
    """Image bytes and train ids (H, W) uint8."""
    return read_labels(item, TABLE)


ADE20K = RawSet(
    name="ade20k",
    title="ADE20K scene parsing",
    counts={"train": 20210, "val": 2000},
    items=items,
    read=read,
    expects=tuple(
        f"{split}:{ROOT}/{kind}/{part}" for kind in ("images", "annotations") for split, part in FOLDERS.items()
    ),
    source="ADEChallengeData2016.zip (sceneparsing.csail.mit.edu)",
    terms="images: non-commercial research and education; annotations: BSD 3-Clause",
    download="about 1 GB",
    classes=CLASSES,
    note="stored 0 (other objects) is ignored; train id = stored id - 1; some images are grey or very small",
)
