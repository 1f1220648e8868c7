"""A small folder set, written on the spot, that tests may bend."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from jdepth.data.sources.folder import Folder
from jdepth.errors import UserError

HEIGHT, WIDTH = 6, 8


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


@pytest.fixture
def made(tmp_path):
    """A set of 3 training images and 1 validation image; returns (its folder, its description as a dict)."""
    tmp_path = tmp_path / "set"
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for number in range(count):
            stem = tmp_path / split
            write(stem / "rgb" / f"a{number}.png", rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
            write(stem / "depth" / f"a{number}.png", rng.integers(0, 20000, (HEIGHT, WIDTH)).astype(np.uint16))
            write(stem / "label" / f"a{number}.png", rng.integers(0, 3, (HEIGHT, WIDTH), dtype=np.uint8))
    fields = {
        "name": "made",
        "image": "{split}/rgb/{id}.png",
        "depth": {"file": "{split}/depth/{id}.png", "scale": 0.001, "max": 10},
        "label": {"file": "{split}/label/{id}.png", "classes": ["wall", "floor", "bed"]},
        "splits": {"train": {"glob": "*"}, "val": {"glob": "*"}},
    }
    return tmp_path, fields


def opened(made, split="train", **options) -> Folder:
    path, fields = made
    (path / "dataset.json").write_text(json.dumps(fields))
    return Folder(path, split, **options)


def refused(made, *parts: str, split="train", read_item: int | None = None, **options) -> str:
    """Opening (or reading) raises one line that contains all the parts."""
    with pytest.raises(UserError) as caught:
        source = opened(made, split, **options)
        if read_item is not None:
            source[read_item]
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def label_of(made, stored: np.ndarray, **fields) -> np.ndarray:
    full = np.zeros((HEIGHT, WIDTH), stored.dtype)
    full[0, : len(stored)] = stored
    for number in range(3):
        write(made[0] / f"train/label/a{number}.png", full)
    made[1]["label"] |= fields
    return opened(made, read="label")[0]["label"][0, : len(stored)]
