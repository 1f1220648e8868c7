"""What tests of prepared data sets share: trees of raw sets, frames of one, the command."""

from pathlib import Path

import cv2
import numpy as np
import raw_depth_trees
import raw_label_trees

from jdepth import command_line, prepare
from jdepth.data import records

TREES = {**raw_depth_trees.TREES, **raw_label_trees.TREES}


def run(*arguments: object) -> int:
    given = ["prepare", *map(str, arguments)]
    if "--raw" in given and "--workers" not in given:
        given += ["--workers", "0"]
    return command_line.call(prepare.main, prepare.USAGE, prepare.define, given)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def frames(folder: Path, count: int, size=(40, 56)) -> Path:
    """A raw `nyu` folder of so many frames to train and three to test."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 3)):
        lines = []
        for index in range(number):
            scene = folder / f"{split}_scene_{index % 3}"
            scene.mkdir(parents=True, exist_ok=True)
            stem = f"{scene.name}/rgb_{index:05d}.jpg", f"{scene.name}/sync_depth_{index:05d}.png"
            coarse = cv2.resize(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8), size[::-1])
            cv2.imwrite(str(folder / stem[0]), coarse)
            cv2.imwrite(str(folder / stem[1]), rng.integers(0, 9000, size).astype(np.uint16))
            lines.append(f"/{stem[0]} /{stem[1]} 518.8579\n")
        (folder / f"nyu_{split}.txt").write_text("".join(lines))
    return folder


def train_ids(folder: Path) -> list[str]:
    return records.Reader(folder, "train").ids
