"""COCO-Stuff: 80 kinds of things and 91 of stuff in the photographs of COCO 2017.

Raw layout: train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip all unpack to folders train2017/ and
val2017/; the maps may have a folder of their own, or all may lie in one:

    {train2017,val2017}/ID.jpg, or the same below images/
    stuffthingmaps_trainval2017/{train2017,val2017}/ID.png, or below stuffthingmaps/ or annotations/, or ID.png there

Maps are 8-bit: the makers' category id - 1, so 0..181, and 255 = unlabelled. (Their list of labels counts from 1, the
10k edition from 1 with 0 = unlabelled: other files.) Eleven categories have no annotation; the other 171 are numbered
without gaps. `ID_labelTrainIds.png` files, which mmsegmentation writes beside the maps, are not looked at.
"""

from pathlib import Path
from typing import Any

from jdepth.data.sources.raw import IGNORE, Item, RawSet, lookup, pairs, read_labels
from jdepth.errors import UserError

CLASSES = (
    # things
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
    # stuff
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet",
    "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff",
    "dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower",
    "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper", "pavement",
    "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river", "road", "rock",
    "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs",
    "stone", "straw", "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other",
    "waterdrops", "window-blind", "window-other", "wood",
)  # fmt: skip
# Stored ids without annotations: street sign, hat, shoe, eye glasses, plate, mirror, window, desk, door, blender,
# hair brush. One that occurs means other files (the 10k edition, ids that count from 1).
UNUSED = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
STORED = [value for value in range(182) if value not in UNUSED]
TABLE = lookup({**{value: i for i, value in enumerate(STORED)}, 255: IGNORE})

IMAGES = (".", "images")
MAPS = ("stuffthingmaps_trainval2017", "stuffthingmaps", "annotations", ".")


def items(raw: Path, split: str) -> list[Item]:
    """Images of one split ("train" or "val"), by name.

    Raises:
      UserError: images or maps are in none of the folders in which they may be.
    """
    images = _find(raw, IMAGES, f"{split}2017", ".jpg", "images", f"{split}2017.zip")
    maps = _find(raw, MAPS, f"{split}2017", ".png", "label maps", "stuffthingmaps_trainval2017.zip")
    return pairs(images.glob("*.jpg"), lambda path: path.stem, lambda path: maps / f"{path.stem}.png", "label")


def read(item: Item) -> dict[str, Any]:
    """Image bytes and train ids (H, W) uint8."""
    return read_labels(item, TABLE)


def _find(raw: Path, parents: tuple[str, ...], name: str, suffix: str, what: str, archive: str) -> Path:
    """The first folder `name` below one of the `parents` that holds files of a kind."""
    places = [raw / parent / name for parent in parents]
    for place in places:
        if next(place.glob(f"*{suffix}"), None) is not None:
            return place
    known = " or ".join(str(place.relative_to(raw)) for place in places)
    raise UserError(f"{raw}: no {what} of COCO-Stuff; expected the folder {known}; unpack {archive} there")


COCO_STUFF = RawSet(
    name="coco_stuff",
    title="COCO-Stuff 164k",
    counts={"train": 118287, "val": 5000},
    items=items,
    read=read,
    expects=(),  # several layouts: `items` says what is missing
    source="cocodataset.org: train2017.zip and val2017.zip; github.com/nightrome/cocostuff: "
    "stuffthingmaps_trainval2017.zip",
    terms="images: Flickr's terms of use; annotations: CC BY 4.0",
    download="18 GB (train), 1 GB (val) and 0.7 GB (maps)",
    classes=CLASSES,
    note="stored 255 (unlabelled) is ignored; the 11 categories without annotations are left out; some images are grey",
)
