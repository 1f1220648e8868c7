"""NYU Depth v2: indoor Kinect frames of 480x640, as BTS prepared them (24,231 / 654) and as the labelled set.

Raw layout of `BTS`, either of

    SCENE/rgb_NNNNN.jpg, SCENE/sync_depth_NNNNN.png                   all scenes directly below the raw folder
    sync/SCENE/..., official_splits/test/SCENE/...                    as BTS's archive and script leave them

with nyu_train.txt and nyu_test.txt beside them. The archive holds more frames than the list uses: the list counts.

Raw layout of `LABELLED`: nyu_depth_v2_labeled.mat (MATLAB 7.3: images (N, 3, W, H), rawDepths (N, W, H) metres, as
HDF5 shows them) and splits.mat (older format: trainNdxs, testNdxs, counted from 1).

Unverified: the sizes of the downloads; the terms, since no licence text comes with the data.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from jdepth.data.sources import matlab, mde_lists
from jdepth.data.sources.raw import Item, RawSet, read_depth
from jdepth.errors import UserError

ORIGIN = (
    "splits/ of github.com/zhyever/Monocular-Depth-Estimation-Toolbox "
    "(github.com/cleinc/bts has the same lists under other names, in train_test_inputs/)"
)
FRAMES = "nyu_depth_v2_labeled.mat"
# What BTS's script leaves of a test image: its rows and columns, the ends excluded. The rest is black.
ROWS, COLUMNS = slice(7, 474), slice(7, 632)


def items(raw: Path, split: str) -> list[Item]:
    """Images of one split of `BTS`."""
    found = mde_lists.rows(raw / f"nyu_{split}.txt", ORIGIN)
    if not found:
        return []
    places = {"train": ("sync", ""), "test": ("official_splits/test", "")}[split]
    root = mde_lists.root(raw, places, (image for image, _ in found))
    return [Item(mde_lists.identity(image), {"image": root / image, "depth": root / depth}) for image, depth in found]


def labelled_items(raw: Path, split: str) -> list[Item]:
    """Frames of one split of `LABELLED`; an id is the frame's number from 0, as in BTS's file names."""
    path = raw / "splits.mat"
    name = f"{split}Ndxs"
    (numbers,) = matlab.variables(path, name)
    frames = sorted(int(number) - 1 for number in np.ravel(numbers)) if numbers.dtype.kind in "uif" else []
    if not frames or frames[0] < 0:
        raise UserError(f"{path}: expected frame numbers from 1 in '{name}'; is it the right file?")
    return [Item(f"{i:05d}", {"file": raw / FRAMES, "index": i, "test": split == "test"}) for i in frames]


def read_labelled(item: Item) -> dict[str, Any]:
    """One frame: image as PNG, raw depth in whole millimetres, cut off as BTS's script does it."""
    path, index = item.place["file"], item.place["index"]
    with matlab.opened(path) as file:
        image, metres = file["images"][index], file["rawDepths"][index]
    if image.ndim != 3 or len(image) != 3 or image.dtype != np.uint8 or metres.shape != image.shape[1:]:
        raise UserError(
            f"{path}: frame {index} has an image of shape {image.shape} ({image.dtype}) and a depth of {metres.shape}, "
            "expected (3, width, height) uint8 and (width, height)"
        )
    image = image.transpose(2, 1, 0)
    if item.place["test"]:
        kept = np.zeros_like(image)
        kept[ROWS, COLUMNS] = image[ROWS, COLUMNS]
        image = kept
    _, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return {"image": encoded.tobytes(), "depth": (metres.T * 1000).astype(np.uint16)}


BTS = RawSet(
    name="nyu",
    title="NYU Depth v2, BTS's sync split",
    counts={"train": 24231, "test": 654},
    items=items,
    read=read_depth,
    expects=("train:nyu_train.txt", "test:nyu_test.txt"),
    source=(
        "github.com/cleinc/bts: sync.zip, and the test images that its extraction script writes; nyu_train.txt and "
        "nyu_test.txt from splits/ of github.com/zhyever/Monocular-Depth-Estimation-Toolbox"
    ),
    terms="no licence text comes with the data; cite Silberman et al. 2012, research use",
    download="several GB",
    per_metre=1000.0,
    farthest=10.0,
    size=(480, 640),
    note="millimetres, holes are 0; the test images are black outside rows 7..473 and columns 7..631",
)

LABELLED = RawSet(
    name="nyu_labelled",
    title="NYU Depth v2, labelled set",
    counts={"train": 795, "test": 654},
    items=labelled_items,
    read=read_labelled,
    expects=(FRAMES, "splits.mat"),
    source="cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html: nyu_depth_v2_labeled.mat and splits.mat",
    terms="no licence text comes with the data; cite Silberman et al. 2012, research use",
    download="about 3 GB",
    per_metre=1000.0,
    farthest=10.0,
    size=(480, 640),
    note=(
        "raw depth, not the in-filled one, in whole millimetres as BTS writes it; test images black outside rows "
        "7..473 and columns 7..631 as BTS's, training images unchanged; images are kept without loss, BTS's are JPEG"
    ),
)
