"""A picture of a prepared data set: images with depth or classes, as they are and as training sees them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from jdepth import colour, colourmap, inputs, recipe
from jdepth.data import order, records, transforms
from jdepth.data.sources.prepared import Prepared
from jdepth.data.sources.subset import fixed_subset

# Pictures are shrunk to this height, and a legend names so many classes.
HEIGHT, NAMED = 200, 12


def write(folder: Path, name: str, count: int, splits: Sequence[str] = ()) -> list[Path]:
    """Write FOLDER/SPLIT.png for each split, `count` items each; returns the paths.

    A row holds the image, its depth or classes, both after the published augmentation (colours as the device makes
    them), and a legend in metres or class names.
    """
    about = records.read_about(folder)
    paths = []
    for split in splits or (about["splits"] if about else (name,)):
        source = Prepared(folder, split)
        rows, captions = [], []
        for index in fixed_subset(source, count):
            row, legend = (_depth_row if "depth" in source.read else _label_row)(source, name, index)
            rows.append([*map(_small, row), legend])
            captions.append([source.item_id(index)[-40:], source.read[0], "in training", "", ""])
        paths.append(folder / f"{split}.png")
        Image.fromarray(colourmap.contact_sheet(rows, captions)).save(paths[-1])
    return paths


def _depth_row(source: Prepared, name: str, index: int) -> tuple[list[np.ndarray], np.ndarray]:
    item, rng = source[index], order.generator(0, "sheet", index)
    released = recipe.released(**recipe.DEPTH_SETS.get(name, {}))
    sample = transforms.augment_depth(item, inputs.depth_augmentation(released), rng)
    coloured = np.asarray(colour.depth_colour(sample["image"][None], sample["colour"][None])[0])
    low, high = colourmap.depth_range(item["depth"])
    depths = [colourmap.colour_depth(depth, low, high) for depth in (item["depth"], sample["depth"])]
    return [item["image"], depths[0], coloured.astype(np.uint8), depths[1]], colourmap.legend(low, high, HEIGHT)


def _label_row(source: Prepared, name: str, index: int) -> tuple[list[np.ndarray], np.ndarray]:
    item, rng = source[index], order.generator(0, "sheet", index)
    own = replace(transforms.AuxiliaryAugmentation(), **transforms.SET_CHANGES.get(name, {}))
    sample = transforms.augment_auxiliary(item, own, rng)
    coloured = np.asarray(colour.photometric(sample["image"][None], sample["photometric"][None])[0])
    labels = [class_colours()[label] for label in (item["label"], sample["label"])]
    counts = np.bincount(item["label"].ravel(), minlength=256)[:255]
    present = [int(c) for c in np.argsort(-counts, kind="stable")[:NAMED] if counts[c]]
    shares = [f"{source.classes[c]} {counts[c] / item['label'].size:.0%}" for c in present]
    legend = _named(shares, [class_colours()[c] for c in present])
    return [item["image"], labels[0], coloured.astype(np.uint8), labels[1]], legend


def class_colours() -> np.ndarray:
    """(256, 3) uint8 RGB: a colour per class id, neighbouring ids far apart, black for 255 (ignored)."""
    ids = np.arange(256)
    # Steps of the golden angle around the colour circle.
    hue = (ids * 137.508 / 2 % 180).astype(np.uint8)
    saturation, value = (150 + ids * 37 % 106).astype(np.uint8), (150 + ids * 53 % 106).astype(np.uint8)
    palette = cv2.cvtColor(np.stack([hue, saturation, value], -1)[None], cv2.COLOR_HSV2RGB)[0]
    palette[255] = 0
    return palette


def _named(texts: Sequence[str], colours: Sequence[np.ndarray], width: int = 190) -> np.ndarray:
    """Squares of colour with a text beside each: (HEIGHT, width, 3) uint8 RGB."""
    panel = np.full((HEIGHT, width, 3), colourmap.PAPER, np.uint8)
    for line, (text, tint) in enumerate(zip(texts, colours, strict=True)):
        y = 4 + line * 16
        panel[y : y + 12, 2:14] = tint
        cv2.putText(panel, text, (18, y + 10), cv2.FONT_HERSHEY_SIMPLEX, 0.38, colourmap.INK, 1, cv2.LINE_AA)
    return panel


def _small(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    size = (max(round(width * HEIGHT / height), 1), HEIGHT)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if height > HEIGHT else cv2.INTER_NEAREST)
