"""What a core can read and augment: python benchmarks/pipeline.py [--images 400] [--peer] [--memory]

Raw sets in the original layouts are written to a temporary folder and prepared; nothing is downloaded. Pictures are
rendered rooms with the grain of photographs, at the sets' sizes and in MIX6's proportions.

- Above the line: one thread, per second of its processor time. The floor decodes the original image file and the
  PNG of depth or labels with OpenCV, and does nothing else, on the same images.
- Below: joint batches of 4 + 4 through grain, per second of real time; with --peer beside a PyTorch DataLoader that
  does the whole published pipeline (colour and normalisation too) on the host, with as many workers.
- --memory: resident memory of this process and its workers over 10,000 batches of small crops.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import raw_sets
from measure import RESULTS, Results

from jdepth.data import build, order, sources, streams, transforms

NYU = transforms.DepthAugmentation(fixed_crop=(45, 472, 43, 608))
MEAN, STD = np.array([123.675, 116.28, 103.53], np.float32), np.array([58.395, 57.12, 57.375], np.float32)
MEMBERS = sources.MIXTURES["mix6"]
CLASSES = 171
# Raw (image, depth or label) files by set, as `prepare` wrote them.
FILES: dict[str, list[tuple[Path, Path]]] = {}


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


def prepare(folder: Path, images: int) -> tuple[list, list]:
    """Raw sets and their records; returns (image, depth) and (image, label) files of NYU and of MIX6 together."""
    nyu = raw_sets.write_nyu(folder / "raw/nyu", images)
    mix = raw_sets.write_mix6(folder / "raw", images)
    FILES.update(mix, depth=nyu)
    for name in ("nyu", *MEMBERS):
        build.build(sources.raw_set(name), folder / "raw" / name, folder / "data" / name, ["train"], workers=0)
    return nyu, [pair for pairs in mix.values() for pair in pairs]


def depth_stream(folder: Path, augmentation: transforms.DepthAugmentation = NYU) -> streams.DepthStream:
    source = sources.open_source("nyu", split="train", data_dir=folder / "data", read=("depth",))
    return streams.DepthStream(source, augmentation)


def mix6_stream(folder: Path, **changes: object) -> streams.AuxiliaryStream:
    members = [sources.open_source(n, split="train", data_dir=folder / "data", read=("label",)) for n in MEMBERS]
    own = [transforms.SET_CHANGES.get(name, {}) | changes for name in MEMBERS]
    return streams.AuxiliaryStream(tuple(members), tuple(transforms.AuxiliaryAugmentation(**o) for o in own), "mldc")


def decode_both(files: Sequence[tuple[Path, Path]]) -> Callable[[int], object]:
    """The floor: OpenCV's decoding of an image file and of the PNG beside it."""
    order_of = np.random.default_rng(0).permutation(len(files))

    def call(number: int) -> None:
        image, other = files[order_of[number % len(files)]]
        cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR)
        cv2.imdecode(np.fromfile(other, np.uint8), cv2.IMREAD_UNCHANGED)

    return call


def one_thread(folder: Path, nyu: list, mix: list, seconds: float) -> dict[str, float]:
    """Samples per second of each stage."""
    cv2.setNumThreads(1)
    depth, mixture = depth_stream(folder), mix6_stream(folder)
    joint = streams.JointBatches(depth, mixture, 1, 1, seed=0)
    places = order.Union([len(member) for member in mixture.members], 0, "auxiliary order")
    item = depth.source[0]

    def read_mix(number: int) -> object:
        member, index = places[number]
        return mixture.members[member][index]

    def rooms(height: int, width: int) -> Callable:
        source = sources.open_source("rooms", split="train", size=10**6, height=height, width=width, cache=False)
        return source.__getitem__

    calls = {
        "rooms, rendering 84x112": rooms(84, 112),
        "rooms, rendering 168x224": rooms(168, 224),
        "NYU: decode JPEG and PNG (floor)": decode_both(nyu),
        "NYU: read a record": lambda number: depth.source[number % len(depth.source)],
        "NYU: augmentation to 416x544": lambda n: transforms.augment_depth(item, NYU, order.generator(0, "a", n)),
        "NYU: whole pipeline": lambda number: joint._depth_sample(number, []),
        "MIX6: decode image and PNG (floor)": decode_both(mix),
        "MIX6: read a record": read_mix,
        "MIX6: whole pipeline, MLDC": lambda number: joint._auxiliary_sample(number, []),
    }
    # Rounds, so that a machine that slows down or speeds up meets all rows alike.
    rounds = [{name: rate(call, seconds / 3) for name, call in calls.items()} for _ in range(3)]
    return {name: float(np.median([row[name] for row in rounds])) for name in calls}


def joint(folder: Path, workers: int, seconds: float) -> float:
    """Joint batches per second with so many worker processes (0: threads)."""
    from jdepth.data.pipeline import joint_batches

    with joint_batches(depth_stream(folder), mix6_stream(folder), batch_depth=4, seed=0, workers=workers) as batches:
        for _ in range(4 * max(workers, 1)):
            next(batches)  # start-up and what was read ahead
        return rate(lambda _: next(batches), max(seconds, 6.0), time.perf_counter)


class Published:
    """A PyTorch dataset of joint samples that does everything on the host, as the published toolboxes do."""

    def __init__(self, folder: Path):
        self.depth, self.mix = depth_stream(folder), mix6_stream(folder)
        self.places = order.Union([len(member) for member in self.mix.members], 0, "auxiliary order")
        self.files = dict(FILES)

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, number: int):
        import torch

        cv2.setNumThreads(1)
        rng = np.random.default_rng(number)
        image, depth = self._depth(rng, number)
        other, classes = self._auxiliary(rng, number)
        return tuple(map(torch.from_numpy, (image, depth, other, classes)))

    def _depth(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        files = self.files["depth"]
        path, other = files[number % len(files)]
        image = cv2.imread(str(path))[45:472, 43:608]
        depth = cv2.imread(str(other), cv2.IMREAD_UNCHANGED).astype(np.float32)[45:472, 43:608] / 1000
        if rng.random() < 0.5:
            size = image.shape[1], image.shape[0]
            turn = cv2.getRotationMatrix2D(((size[0] - 1) / 2, (size[1] - 1) / 2), rng.uniform(-2.5, 2.5), 1)
            image, depth = cv2.warpAffine(image, turn, size), cv2.warpAffine(depth, turn, size, flags=cv2.INTER_NEAREST)
        if rng.random() < 0.5:
            image, depth = cv2.flip(image, 1), cv2.flip(depth, 1)
        top, left = rng.integers(12), rng.integers(22)
        image, depth = image[top : top + 416, left : left + 544], depth[top : top + 416, left : left + 544]
        image = image.astype(np.float32)
        if rng.random() < 0.5:
            image = image ** np.float32(rng.uniform(0.9, 1.1)) * np.float32(rng.uniform(0.75, 1.25))
            image = np.clip(image * rng.uniform(0.9, 1.1, 3).astype(np.float32), 0, 255)
        return _normalised(image), np.ascontiguousarray(depth)

    def _auxiliary(self, rng: np.random.Generator, number: int) -> tuple[np.ndarray, np.ndarray]:
        member, index = self.places[number]
        path, other = self.files[MEMBERS[member]][index]
        own = self.mix.augmentations[member]
        image, label = cv2.imread(str(path)), cv2.imread(str(other), cv2.IMREAD_UNCHANGED)
        height, width = transforms._fitted(image.shape[:2], own.scale, rng.uniform(0.5, 2.0))
        image = cv2.resize(image, (width, height))
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        for _ in range(11):
            top, left = rng.integers(max(height - 512, 0) + 1), rng.integers(max(width - 512, 0) + 1)
            ids, counts = np.unique(label[top : top + 512, left : left + 512], return_counts=True)
            counts = counts[ids != 255]
            if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
                break
        image, label = image[top : top + 512, left : left + 512], label[top : top + 512, left : left + 512]
        if rng.random() < 0.5:
            image, label = cv2.flip(image, 1), cv2.flip(label, 1)
        image = _normalised(_distorted(image, rng))
        canvas = np.zeros((3, 512, 512), np.float32)
        canvas[:, : image.shape[1], : image.shape[2]] = image
        return canvas, (np.bincount(label.ravel(), minlength=256)[:CLASSES] > 0).astype(np.float32)


def _distorted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """PhotoMetricDistortion on the host."""

    def scaled(values: np.ndarray, factor: float, add: float = 0.0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * factor + add, 0, 255).astype(np.uint8)

    if rng.random() < 0.5:
        image = scaled(image, 1, rng.uniform(-32, 32))
    first = rng.random() < 0.5
    if first and rng.random() < 0.5:
        image = scaled(image, rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = scaled(hsv[..., 1], rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not first and rng.random() < 0.5:
        image = scaled(image, rng.uniform(0.5, 1.5))
    return image


def _normalised(image: np.ndarray) -> np.ndarray:
    image = (cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32) - MEAN) / STD
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def torch_joint(folder: Path, workers: int, seconds: float) -> float:
    """Joint batches per second of the PyTorch loader."""
    import torch

    loader = torch.utils.data.DataLoader(Published(folder), batch_size=4, num_workers=workers)
    batches = iter(loader)
    for _ in range(4 * max(workers, 1)):
        next(batches)
    return rate(lambda _: next(batches), max(seconds, 6.0), time.perf_counter)


def resident(pid: int) -> float:
    """MiB of a process and its children."""
    total = 0.0
    for process in [pid, *_children(pid)]:
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except FileNotFoundError:
            continue
        total += sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    return total


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found + [grandchild for child in found for grandchild in _children(child)]


def memory(folder: Path, workers: int, count: int = 10_000) -> None:
    """Print resident memory along so many batches of small crops, read from all seven sets."""
    from jdepth.data.pipeline import joint_batches

    small = {"crop": (56, 84), "resize": (60, 90), "fixed_crop": None}
    depth = depth_stream(folder, transforms.DepthAugmentation(**small))
    mixture = mix6_stream(folder, scale=(84, 56), crop=(56, 84), canvas=(56, 84))
    with joint_batches(depth, mixture, batch_depth=1, seed=0, workers=workers) as batches:
        for number in range(count + 1):
            next(batches)
            if number % (count // 10) == 0:
                print(f"batch {number:6}  {resident(os.getpid()):8.1f} MiB resident, workers included", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400, help="images of NYU, and of MIX6")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per row")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="worker counts for joint batches")
    parser.add_argument("--peer", action="store_true", help="beside a PyTorch DataLoader")
    parser.add_argument("--memory", action="store_true", help="memory over 10,000 batches, and nothing else")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON file lies")
    arguments = parser.parse_args()
    results = Results("pipeline", f"{os.cpu_count()} cores {platform.machine()}", arguments.results)
    print(f"{platform.processor() or platform.machine()}, OpenCV {cv2.__version__}, NumPy {np.__version__}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nyu, mix = prepare(folder, arguments.images)
        if arguments.memory:
            return memory(folder, max(arguments.workers))
        rates = one_thread(folder, nyu, mix, arguments.seconds)
        print(f"{'':40} {'per second':>10} {'ms':>8}")
        for row, value in rates.items():
            kind = row.split(":")[0]
            floor = next((v for k, v in rates.items() if k.startswith(f"{kind}:") and "floor" in k), None)
            ratio = f"  {floor / value:5.2f} × the floor's time" if floor and "whole" in row else ""
            print(f"{row:40} {value:10.1f} {1000 / value:8.2f}{ratio}")
            results.add(f"{row}, one thread", {"per_second": value})
        print("-" * 60)
        for workers in arguments.workers:
            kind = f"{workers} workers" if workers else "threads"
            value = joint(folder, workers, arguments.seconds)
            print(f"{'joint batches of 4 + 4, ' + kind:40} {value:10.2f} {1000 / value:8.1f}", flush=True)
            results.add(f"joint batches of 4 + 4, {kind}", {"per_second": value})
            if arguments.peer and workers:
                peer = torch_joint(folder, workers, arguments.seconds)
                print(f"{'the same in PyTorch':40} {peer:10.2f} {1000 / peer:8.1f}  {value / peer:.2f} × as fast here")
                row = {"per_second": peer, "times_as_fast": value / peer}
                results.add(f"joint batches of 4 + 4, {kind}, PyTorch", row)
    print(f"written to {results.path}")


if __name__ == "__main__":
    main()
