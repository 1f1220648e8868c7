"""Raw data sets to measure with, written on the spot: rendered rooms in the original layouts, names and encodings.

NYU's frames, and the six members of MIX6 at their usual sizes and in the proportions of their training sets.
"""

import itertools
from pathlib import Path

import cv2
import numpy as np

from jdepth.data.sources import open_source

# (height, width) and share of MIX6's 160,253 images.
MIX6 = {
    "ade20k": ((512, 683), 20210),
    "sun37": ((530, 730), 5285),
    "cityscapes34": ((1024, 2048), 2975),
    "coco_stuff": ((480, 640), 118287),
    "voc21": ((375, 500), 8498),
    "context59": ((375, 500), 4998),
}
DISTINCT = 48


def _rooms(height: int, width: int, count: int) -> list[dict[str, np.ndarray]]:
    """Rendered at half the size and enlarged, with the grain of a photograph."""
    source = open_source("rooms", split="train", size=count, height=height // 2, width=width // 2, cache=False)
    rng, items = np.random.default_rng(0), []
    for index in range(count):
        item = source[index]
        image = cv2.resize(item["image"], (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        image += cv2.GaussianBlur(rng.normal(0, 12, image.shape).astype(np.float32), (3, 3), 0.8)
        nearest = {"dsize": (width, height), "interpolation": cv2.INTER_NEAREST}
        depth = cv2.resize(item["depth"], **nearest) * rng.normal(1, 0.002, (height, width)).astype(np.float32)
        items.append({"image": np.clip(image, 0, 255).astype(np.uint8), "depth": depth,
                      "label": cv2.resize(item["label"], **nearest)})  # fmt: skip
    return items


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def _png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array)[1].tobytes()


def _put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_nyu(raw: Path, count: int) -> list[tuple[Path, Path]]:
    """`count` training frames of 480x640; returns (image, depth) files. Pictures repeat after `DISTINCT`."""
    made = [(_jpeg(r["image"]), _png((r["depth"] * 1000).astype(np.uint16))) for r in _rooms(480, 640, DISTINCT)]
    files, lines = [], []
    for index, (jpeg, png) in zip(range(count), itertools.cycle(made), strict=False):
        scene = f"scene_{index % 284:04d}"
        image, depth = f"{scene}/rgb_{index:05d}.jpg", f"{scene}/sync_depth_{index:05d}.png"
        files.append((_put(raw / image, jpeg), _put(raw / depth, png)))
        lines.append(f"/{image} /{depth} 518.8579\n")
    for split in ("train", "test"):
        _put(raw / f"nyu_{split}.txt", "".join(lines))
    return files


def write_mix6(raw: Path, count: int) -> dict[str, list[tuple[Path, Path]]]:
    """About `count` images of all members together, each below RAW/NAME; returns (image, label) files per member."""
    total = sum(share for _, share in MIX6.values())
    files = {}
    for name, (size, share) in MIX6.items():
        number = max(1, round(count * share / total))
        rooms = _rooms(*size, min(number, DISTINCT))
        pairs = [_LAYOUTS[name](raw / name, i, rooms[i % len(rooms)]) for i in range(number)]
        files[name] = pairs
        _LISTS.get(name, lambda folder, pairs: None)(raw / name, pairs)
    return files


def _ade20k(raw: Path, index: int, room: dict) -> tuple[Path, Path]:
    stem, root = f"ADE_train_{index:08d}", raw / "ADEChallengeData2016"
    for kind in ("images", "annotations"):
        (root / kind / "validation").mkdir(parents=True, exist_ok=True)
    label = _put(root / f"annotations/training/{stem}.png", _png(room["label"] + 1))
    return _put(root / f"images/training/{stem}.jpg", _jpeg(room["image"])), label


def _cityscapes(raw: Path, index: int, room: dict) -> tuple[Path, Path]:
    stem = f"aachen_{index:06d}_000019"
    for kind in ("leftImg8bit", "gtFine"):
        (raw / kind / "val/lindau").mkdir(parents=True, exist_ok=True)
    label = _put(raw / f"gtFine/train/aachen/{stem}_gtFine_labelIds.png", _png(room["label"]))
    return _put(raw / f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png", _png(room["image"][..., ::-1])), label


def _coco(raw: Path, index: int, room: dict) -> tuple[Path, Path]:
    for kind in ("", "stuffthingmaps/"):
        (raw / f"{kind}val2017").mkdir(parents=True, exist_ok=True)
    label = _put(raw / f"stuffthingmaps/train2017/{index:012d}.png", _png(np.minimum(room["label"], 10)))
    return _put(raw / f"train2017/{index:012d}.jpg", _jpeg(room["image"])), label


def _voc(raw: Path, index: int, room: dict) -> tuple[Path, Path]:
    import scipy.io

    sbd = raw / "benchmark_RELEASE/dataset"
    label = np.minimum(room["label"], 20)
    segmentation = np.zeros((1, 1), [("Segmentation", object)])
    segmentation["Segmentation"][0, 0] = label
    (sbd / "cls").mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(sbd / f"cls/2008_{index:06d}.mat", {"GTcls": segmentation}, do_compression=True)
    return _put(sbd / f"img/2008_{index:06d}.jpg", _jpeg(room["image"])), _put(raw / f"png/{index}.png", _png(label))


def _voc_lists(raw: Path, pairs: list) -> None:
    names = "".join(f"{image.stem}\n" for image, _ in pairs)
    for part in ("train", "val"):
        _put(raw / f"benchmark_RELEASE/dataset/{part}.txt", names)
        _put(raw / f"VOCdevkit/VOC2012/ImageSets/Segmentation/{part}.txt", names)
    for part in ("JPEGImages", "SegmentationClass"):
        (raw / "VOCdevkit/VOC2012" / part).mkdir(parents=True, exist_ok=True)


def _context(raw: Path, index: int, room: dict) -> tuple[Path, Path]:
    voc = raw / "VOCdevkit/VOC2010"
    label = _put(voc / f"SegmentationClassContext/2008_{index:06d}.png", _png(room["label"] + 1))
    return _put(voc / f"JPEGImages/2008_{index:06d}.jpg", _jpeg(room["image"])), label


def _context_lists(raw: Path, pairs: list) -> None:
    for part in ("train", "val"):
        names = "".join(f"{image.stem}\n" for image, _ in pairs)
        _put(raw / f"VOCdevkit/VOC2010/ImageSets/SegmentationContext/{part}.txt", names)


def _sun(raw: Path, index: int, room: dict) -> tuple[Path, Path]:
    """SUN RGB-D as its small copy has it: training image k has label 5050 + k."""
    (raw / "SUNRGBD-test_images").mkdir(parents=True, exist_ok=True)
    label = _put(raw / f"sunrgbd_train_test_labels/img-{5051 + index:06d}.png", _png(room["label"] + 1))
    return _put(raw / f"SUNRGBD-train_images/img-{index + 1:06d}.jpg", _jpeg(room["image"])), label


_LAYOUTS = {"ade20k": _ade20k, "sun37": _sun, "cityscapes34": _cityscapes, "coco_stuff": _coco, "voc21": _voc,
            "context59": _context}  # fmt: skip
_LISTS = {"voc21": _voc_lists, "context59": _context_lists}
