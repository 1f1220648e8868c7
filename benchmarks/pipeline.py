"""What one core can read and augment: python benchmarks/pipeline.py [--seconds 2] [--workers 0 1 2]

Pictures are rendered rooms of 480 x 640, written as JPEG and 16-bit PNG (millimetres), and PNG labels, to a
temporary folder: nothing is downloaded. Rows above the line are single calls on one thread, per second of
processor time; rows below are whole joint batches (4 depth and 4 auxiliary samples, NYU and ADE20K pipelines)
through grain, per second of real time.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from jdepth.data import order, transforms
from jdepth.data.sources import decode, open_source

NYU = transforms.DepthAugmentation(fixed_crop=(45, 472, 43, 608))


def rate(call: Callable[[int], object], seconds: float, clock: Callable[[], float] = time.thread_time) -> float:
    """Calls per second, after one call to warm up; `call` gets a running number.

    By default per second of this thread's processor time, which other work on the machine does not distort.
    """
    call(0)
    count, begin = 0, clock()
    while (elapsed := clock() - begin) < seconds:
        count += 1
        call(count)
    return count / elapsed


def write_folder(folder: Path, rooms) -> None:
    """The rooms as a folder source with its description."""
    for index in range(len(rooms)):
        item = rooms[index]
        for kind in ("rgb", "depth", "label"):
            (folder / kind).mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"rgb/{index}.jpg"), item["image"][..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(folder / f"depth/{index}.png"), (item["depth"] * 1000).astype(np.uint16))
        cv2.imwrite(str(folder / f"label/{index}.png"), item["label"])
    description = {
        "name": "rendered",
        "image": "rgb/{id}.jpg",
        "depth": {"file": "depth/{id}.png", "scale": 0.001},
        "label": {"file": "label/{id}.png", "classes": list(rooms.classes)},
        "splits": {"train": {"glob": "*"}},
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def single_calls(folder: Path, seconds: float) -> dict[str, float]:
    """Samples per second of each stage on one thread."""
    cv2.setNumThreads(1)
    depth = open_source("folder", split="train", path=folder, read="depth")
    labels = open_source("folder", split="train", path=folder, read="label")
    size = len(depth)
    item, labelled = depth[0], labels[0]
    auxiliary = transforms.AuxiliaryAugmentation()

    def rooms(height: int, width: int) -> Callable:
        source = open_source("rooms", split="train", size=10**6, height=height, width=width, cache=False)
        return source.__getitem__

    def augment_depth(number: int):
        return transforms.augment_depth(item, NYU, order.generator(0, "depth", number))

    def augment_auxiliary(number: int):
        return transforms.augment_auxiliary(labelled, auxiliary, order.generator(0, "auxiliary", number))

    calls = {
        "rooms, rendering 84x112": rooms(84, 112),
        "rooms, rendering 168x224": rooms(168, 224),
        "decode JPEG 480x640": lambda number: decode.read_image(folder / f"rgb/{number % size}.jpg"),
        "decode 16-bit PNG 480x640": lambda number: decode.read_values(folder / f"depth/{number % size}.png"),
        "folder item: image and depth": lambda number: depth[number % size],
        "NYU augmentation to 416x544": augment_depth,
        "folder item and NYU augmentation": lambda number: transforms.augment_depth(
            depth[number % size], NYU, order.generator(0, "depth", number)
        ),
        "folder item: image and label": lambda number: labels[number % size],
        "auxiliary augmentation to 512x512": augment_auxiliary,
    }
    return {name: rate(call, seconds) for name, call in calls.items()}


def joint(folder: Path, workers: int, seconds: float) -> float:
    """Joint batches per second with so many worker processes (0: threads)."""
    from jdepth.data.pipeline import AuxiliaryStream, DepthStream, joint_batches

    depth = DepthStream(open_source("folder", split="train", path=folder, read="depth"), NYU)
    labels = open_source("folder", split="train", path=folder, read="label")
    auxiliary = AuxiliaryStream((labels,), transforms.AuxiliaryAugmentation(), "mldc")
    with joint_batches(depth, auxiliary, batch_depth=4, seed=0, workers=workers) as batches:
        for _ in range(4 * max(workers, 1)):
            next(batches)  # start-up and what was read ahead
        return rate(lambda _: next(batches), max(seconds, 4.0), time.perf_counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="time per row")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="worker counts for joint batches")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, OpenCV {cv2.__version__}, NumPy {np.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder, open_source("rooms", split="train", size=16, height=480, width=640))
        print(f"{'':36} {'per second':>10} {'ms':>8}")
        for row, value in single_calls(folder, arguments.seconds).items():
            print(f"{row:36} {value:10.1f} {1000 / value:8.2f}")
        print("-" * 56)
        for workers in arguments.workers:
            value = joint(folder, workers, arguments.seconds)
            kind = f"{workers} workers" if workers else "threads"
            print(f"{'joint batches of 4 + 4, ' + kind:36} {value:10.2f} {1000 / value:8.1f}")


if __name__ == "__main__":
    main()
