"""Miniature copies of labelled data sets as their makers distribute them: folders, names, encodings.

Each builder writes one below a folder and returns, by split and id and in the expected order, what reading must give.
The rules from stored to train ids are written out here and do not use the package's tables.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image
from raw_trees import SIZES, Expected, Splits

ADE20K = {0: 255, **{v: v - 1 for v in range(1, 151)}}
CITYSCAPES34 = {**{v: v for v in range(34)}, 255: 255}
SCORED = {
    7: 0, 8: 1,  # road, sidewalk
    11: 2, 12: 3, 13: 4,  # building, wall, fence
    17: 5, 19: 6, 20: 7,  # pole, traffic light, traffic sign
    21: 8, 22: 9, 23: 10,  # vegetation, terrain, sky
    24: 11, 25: 12,  # person, rider
    26: 13, 27: 14, 28: 15,  # car, truck, bus
    31: 16, 32: 17, 33: 18,  # train, motorcycle, bicycle
}  # fmt: skip
CITYSCAPES19 = {v: SCORED.get(v, 255) for v in (*range(34), 255)}
WITHOUT_PIXELS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_STUFF = {
    **{v: v - sum(u < v for u in WITHOUT_PIXELS) for v in range(182) if v not in WITHOUT_PIXELS},
    255: 255,
}
VOC = {**{v: v for v in range(21)}, 255: 255}
SBD = {v: v for v in range(21)}
CONTEXT_PNG = {0: 255, **{v: v - 1 for v in range(1, 60)}}
CONTEXT_MAT = {
    0: 255, 1: 255, 3: 255, 430: 255, 431: 255, 459: 255,  # none of the 59
    2: 0, 9: 1, 18: 2,  # aeroplane, bag, bed
    98: 19, 284: 36, 347: 42,  # cow, person, sheep
    397: 49, 415: 50, 416: 51,  # table, track, train
    427: 54, 440: 55, 445: 56, 454: 57, 458: 58,  # tvmonitor, wall, water, window, wood
}  # fmt: skip


class Maker:
    """Random photographs and label maps, each item of another size."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.made = 0

    def item(
        self,
        image: Path,
        label: Path,
        rule: Mapping[int, int],
        write: Callable[[Path, np.ndarray], None],
        grey: bool = False,
    ) -> Expected:
        """Write one item; its label holds every id of `rule`."""
        size = SIZES[self.made % len(SIZES)]
        self.made += 1
        pixels = self.rng.integers(0, 256, size if grey else (*size, 3), dtype=np.uint8)
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(image), pixels)
        stored = self.rng.permutation(np.resize(list(rule), size[0] * size[1])).reshape(size)
        write(label, stored)
        values = np.array([[rule[int(value)] for value in row] for row in stored], np.uint8)
        return Expected(cv2.imread(str(image), cv2.IMREAD_COLOR)[..., ::-1].copy(), values)


def write_grey(path: Path, ids: np.ndarray) -> None:
    """8-bit PNG of one channel."""
    Image.fromarray(ids.astype(np.uint8)).save(path)


def write_palette(path: Path, ids: np.ndarray) -> None:
    """8-bit PNG of palette indices, with VOC's colours."""
    image = Image.new("P", ids.shape[::-1])
    image.putdata(ids.ravel().tolist())
    image.putpalette([channel for index in range(256) for channel in _colour(index)])
    image.save(path)


def _colour(index: int) -> list[int]:
    """VOC's colour of an index: its bits, dealt out to red, green and blue, highest first."""
    return [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]


def write_sbd(path: Path, ids: np.ndarray) -> None:
    """SBD's struct: boundaries of each class (sparse), segmentation, classes that occur."""
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = scipy.sparse.csc_matrix(ids == index + 1)
    present = np.unique(ids[ids > 0]).astype(np.uint8)[:, None]
    fields = {"Boundaries": boundaries, "Segmentation": ids.astype(np.uint8), "CategoriesPresent": present}
    scipy.io.savemat(path, {"GTcls": fields}, do_compression=True)


def write_context(path: Path, ids: np.ndarray) -> None:
    """The original file of Pascal Context: one map of 16-bit ids."""
    scipy.io.savemat(path, {"LabelMap": ids.astype(np.uint16)}, do_compression=True)


def _list(path: Path, names: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names))  # some lists lack the last newline


def ade20k(root: Path) -> Splits:
    root, make, splits = root / "ADEChallengeData2016", Maker(1), {}
    for split, part in (("train", "training"), ("val", "validation")):
        splits[split] = {}
        for number in (1, 2, 10):
            name = f"ADE_{split}_{number:08d}"
            image, label = root / f"images/{part}/{name}.jpg", root / f"annotations/{part}/{name}.png"
            splits[split][name] = make.item(image, label, ADE20K, write_grey, grey=number == 2)
    for extra in ("objectInfo150.txt", "sceneCategories.txt"):
        (root / extra).write_text("Idx\tRatio\n")
    return splits


def _cityscapes(rule: Mapping[int, int], root: Path) -> Splits:
    make, splits = Maker(2), {}
    frames = {
        "train": ("aachen_000000_000019", "aachen_000012_000019", "zurich_000001_000019"),
        "val": ("frankfurt_000000_000294", "frankfurt_000001_055172", "lindau_000010_000019"),
        "test": ("berlin_000000_000019",),
    }
    for split, names in frames.items():
        splits[split] = {}
        for name in names:
            folder = f"{split}/{name.split('_')[0]}"
            image = root / f"leftImg8bit/{folder}/{name}_leftImg8bit.png"
            label = root / f"gtFine/{folder}/{name}_gtFine_labelIds.png"
            found = make.item(image, label, rule, write_grey)
            splits[split][name] = found
            beside = label.with_name(label.name.removesuffix("labelIds.png"))
            height, width = found.values.shape
            Image.new("RGBA", (width, height)).save(f"{beside}color.png")
            assert cv2.imwrite(f"{beside}instanceIds.png", np.full((height, width), 26001, np.uint16))
            write_grey(Path(f"{beside}labelTrainIds.png"), np.zeros((height, width)))
            Path(f"{beside}polygons.json").write_text(json.dumps({"imgHeight": height, "imgWidth": width}))
    del splits["test"]
    return splits


def coco_stuff(root: Path) -> Splits:
    make, splits = Maker(3), {}
    for split, numbers in (("train", (9, 25, 581921)), ("val", (139, 285, 581781))):
        splits[split] = {}
        for number in numbers:
            name = f"{number:012d}"
            image = root / f"{split}2017/{name}.jpg"
            label = root / f"stuffthingmaps_trainval2017/{split}2017/{name}.png"
            found = make.item(image, label, COCO_STUFF, write_grey, grey=number in (25, 285))
            splits[split][name] = found
            write_grey(label.with_name(f"{name}_labelTrainIds.png"), found.values // 2)
    return splits


def _voc(train: str, root: Path) -> Splits:
    """VOC 2012 and SBD, which share photographs and disagree on labels; `train` says what trains."""
    make = Maker(4)
    lists = {
        "train": ["2007_000032", "2007_000039", "2008_000008"],
        "val": ["2007_000033", "2007_000042", "2008_000009"],
    }
    added = {
        "train": ["2008_000008", "2008_000009", "2008_000002", "2009_000003"],
        "val": ["2007_000032", "2007_000033", "2008_000026"],
    }
    voc, sbd = root / "VOCdevkit/VOC2012", root / "benchmark_RELEASE/dataset"
    own, other = {}, {}
    for split, names in lists.items():
        _list(voc / f"ImageSets/Segmentation/{split}.txt", names)
        for name in names:
            image, label = voc / f"JPEGImages/{name}.jpg", voc / f"SegmentationClass/{name}.png"
            own[name] = make.item(image, label, VOC, write_palette)
    for split, names in added.items():
        _list(sbd / f"{split}.txt", names)
        for name in names:
            other[name] = make.item(sbd / f"img/{name}.jpg", sbd / f"cls/{name}.mat", SBD, write_sbd)
    _list(voc / "ImageSets/Segmentation/trainval.txt", lists["train"] + lists["val"])
    _list(voc / "ImageSets/Main/train.txt", [*own])
    (voc / "JPEGImages/2011_003276.jpg").write_bytes(b"a photograph of no list")
    val = {name: own[name] for name in lists["val"]}
    trained = {
        "sbd": {name: other[name] for name in sorted(added["train"])},
        "voc": {name: own[name] for name in lists["train"]},
        "trainaug": {name: own[name] for name in lists["train"]}
        | {name: other[name] for name in ("2008_000002", "2008_000026", "2009_000003")},
    }
    return {"train": trained[train], "val": val}


def _context(original: bool, root: Path) -> Splits:
    """Pascal Context, converted as mmsegmentation does or in its original files."""
    make, splits, voc = Maker(5), {}, root / "VOCdevkit/VOC2010"
    lists = {
        "train": ["2008_000008", "2008_000015", "2010_006086"],
        "val": ["2008_000002", "2008_000003", "2010_006079"],
    }
    for split, names in lists.items():
        _list(voc / f"ImageSets/{'Main' if original else 'SegmentationContext'}/{split}.txt", names)
        splits[split] = {}
        for name in names:
            image = voc / f"JPEGImages/{name}.jpg"
            if original:
                splits[split][name] = make.item(image, voc / f"trainval/{name}.mat", CONTEXT_MAT, write_context)
            else:
                label = voc / f"SegmentationClassContext/{name}.png"
                splits[split][name] = make.item(image, label, CONTEXT_PNG, write_grey)
    _list(voc / "ImageSets/Segmentation/train.txt", lists["train"][:1])
    (voc / "JPEGImages/2009_000001.jpg").write_bytes(b"a photograph of no list")
    return splits


# By the name of the set; "context59 (mat)" is the set "context59" in its original files.
TREES: dict[str, Callable[[Path], Splits]] = {
    "ade20k": ade20k,
    "cityscapes34": lambda root: _cityscapes(CITYSCAPES34, root),
    "cityscapes19": lambda root: _cityscapes(CITYSCAPES19, root),
    "coco_stuff": coco_stuff,
    "voc21": lambda root: _voc("sbd", root),
    "voc21_train": lambda root: _voc("voc", root),
    "voc21_trainaug": lambda root: _voc("trainaug", root),
    "context59": lambda root: _context(False, root),
    "context59 (mat)": lambda root: _context(True, root),
}
