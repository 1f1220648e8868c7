"""The stream of joint batches: order, independence of workers, restart, and what goes wrong in workers."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from jdepth.data import order, streams
from jdepth.data.pipeline import AuxiliaryStream, DepthStream, joint_batches
from jdepth.data.transforms import AuxiliaryAugmentation, DepthAugmentation
from jdepth.errors import UserError

DEPTH = DepthAugmentation(crop=(24, 32))
PLAIN = DepthAugmentation(rotate_probability=0, flip_probability=0, crop=None, colour_probability=0)
AUXILIARY = AuxiliaryAugmentation(scale=(64, 40), crop=(32, 32), canvas=(32, 32))


class Tiny:
    """A source whose images carry their own index, in every pixel of the blue channel."""

    def __init__(self, size=11, classes=5, name="tiny", faulty=()):
        self.size, self.name, self.faulty = size, name, faulty
        self.classes = tuple(f"class {i}" for i in range(classes))

    def __len__(self):
        return self.size

    def item_id(self, index):
        return f"{self.name} {index}"

    def __getitem__(self, index):
        if index in self.faulty:
            raise UserError(f"file {self.name}/{index}.png is damaged: the file ends early")
        noise = np.random.default_rng(index)
        image = noise.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        image[..., 2] = index
        label = noise.integers(0, len(self.classes), (40, 56)).astype(np.uint8)
        return {"image": image, "depth": noise.uniform(1, 9, (40, 56)).astype(np.float32), "label": label}


class Report(Tiny):
    """Says in its images what the process that reads it has started and imported."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        from jax._src import xla_bridge

        faults = [
            xla_bridge.backends_are_initialized(),
            "torch" in sys.modules,
            "tensorflow" in sys.modules,
            sys.modules["jax"].config.jax_platforms != "cpu",
            os.environ.get("JAX_PLATFORMS") != "cpu",
            multiprocessing.parent_process() is None,
        ]
        item["image"][:] = sum(1 << bit for bit, fault in enumerate(faults) if fault)
        return item


def mixture(task="mldc", sizes=(3, 9, 6), **options) -> AuxiliaryStream:
    members = tuple(Tiny(size, 3 + place, f"member {place}") for place, size in enumerate(sizes))
    return AuxiliaryStream(members, AUXILIARY, task, **options)


def stream(**options):
    arguments = {"batch_depth": 4, "batch_auxiliary": 3, "seed": 5} | options
    return joint_batches(DepthStream(Tiny(), DEPTH), mixture(), **arguments)


def digest(batch: dict) -> str:
    total = hashlib.sha256()
    for part in sorted(batch):
        for key in sorted(batch[part]):
            array = batch[part][key]
            total.update(f"{part}.{key} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def taken(count: int, **options) -> list[str]:
    with stream(**options) as batches:
        return [digest(next(batches)) for _ in range(count)]


# What is in a batch


def test_batch():
    with stream() as batches:
        batch = next(batches)
    assert set(batch) == {"depth", "auxiliary"}
    shapes = {part: {key: (a.shape, str(a.dtype)) for key, a in arrays.items()} for part, arrays in batch.items()}
    assert shapes["depth"] == {
        "image": ((4, 24, 32, 3), "uint8"),
        "depth": ((4, 24, 32), "float32"),
        "colour": ((4, 5), "float32"),
    }
    assert shapes["auxiliary"] == {
        "image": ((3, 32, 32, 3), "uint8"),
        "valid_size": ((3, 2), "int32"),
        "dataset_id": ((3,), "int32"),
        "photometric": ((3, 5), "float32"),
        "classes": ((3, 5), "float32"),
    }


@pytest.mark.parametrize(
    ("task", "key", "shape", "dtype"),
    [
        ("single_label", "class_id", (3,), "int32"),
        ("segmentation", "label", (3, 32, 32), "uint8"),
        ("reconstruction", None, None, None),
    ],
)
def test_tasks(task, key, shape, dtype):
    auxiliary = mixture(task)
    batch = streams.JointBatches(DepthStream(Tiny(), DEPTH), auxiliary, 4, 3, 0)(0)["auxiliary"]
    others = set(batch) - {"image", "valid_size", "dataset_id", "photometric"}
    assert others == ({key} if key else set())
    if key:
        assert batch[key].shape == shape and batch[key].dtype == dtype
    assert auxiliary.classes == ((3, 3, 3) if task == "reconstruction" else (3, 4, 5))


def test_depth_only_and_default_auxiliary_batch():
    assert set(next(stream_of(None))) == {"depth"}
    assert next(stream_of(mixture(), batch_auxiliary=None))["auxiliary"]["image"].shape[0] == 4


def stream_of(auxiliary, **options):
    return joint_batches(DepthStream(Tiny(), DEPTH), auxiliary, **{"batch_depth": 4, "seed": 0} | options)


# Order


def test_each_image_once_per_epoch_and_another_order_every_time():
    shuffled = order.Shuffled(50, seed=3, stream="x")
    epochs = [[shuffled[epoch * 50 + i] for i in range(50)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [order.Shuffled(50, 4, "x")[i] for i in range(50)] != epochs[0]
    assert [order.Shuffled(50, 3, "y")[i] for i in range(50)] != epochs[0]
    assert [shuffled[i] for i in (149, 3, 60, 0)] == [epochs[2][49], epochs[0][3], epochs[1][10], epochs[0][0]]


def test_depth_images_once_per_epoch_across_batch_borders():
    plain = DepthAugmentation(rotate_probability=0, crop=(24, 32))
    with joint_batches(DepthStream(Tiny(), plain), batch_depth=4, seed=5) as batches:
        seen = [index for _ in range(11) for index in next(batches)["depth"]["image"][:, 0, 0, 2]]
    assert len(seen) == 44
    for epoch in range(4):
        assert sorted(seen[11 * epoch : 11 * epoch + 11]) == list(range(11))


def test_mixture_is_one_permutation_of_the_union():
    with stream() as batches:
        ids = np.concatenate([next(batches)["auxiliary"]["dataset_id"] for _ in range(12)])
    assert Counter(ids[:18].tolist()) == Counter(ids[18:].tolist()) == {0: 3, 1: 9, 2: 6}
    assert ids[:18].tolist() != ids[18:].tolist()
    union = order.Union((3, 9, 6), 5, "auxiliary order")
    places = [union[p] for p in range(18)]
    assert sorted(places) == [(m, i) for m, size in enumerate((3, 9, 6)) for i in range(size)]
    assert [member for member, _ in places] == ids[:18].tolist()


def test_weighted_draws_each_member_by_its_own_permutations(monkeypatch):
    monkeypatch.setattr(order, "_BLOCK", 64)
    weighted = order.Weighted((3, 50, 6), (1, 2, 1), 0, "x")
    places = [weighted[p] for p in range(1000)]
    counts = Counter(member for member, _ in places)
    assert abs(counts[1] - 500) < 65 and abs(counts[0] - 250) < 55
    for member, size in enumerate((3, 50, 6)):
        own = [index for m, index in places if m == member]
        for start in range(0, len(own) - size, size):
            assert sorted(own[start : start + size]) == list(range(size))
    again = order.Weighted((3, 50, 6), (1, 2, 1), 0, "x")
    assert [again[p] for p in (999, 5, 640, 63)] == [places[p] for p in (999, 5, 640, 63)]


def test_random_numbers_are_independent_of_everything_else():
    draw = order.generator(1, "depth augmentation", 7).random()
    assert draw == order.generator(1, "depth augmentation", 7).random()
    others = {
        order.generator(2, "depth augmentation", 7).random(),
        order.generator(1, "auxiliary augmentation", 7).random(),
        order.generator(1, "depth augmentation", 8).random(),
        draw,
    }
    assert len(others) == 4


def test_streams_share_no_random_numbers():
    """At one position both streams draw for themselves, and read their sets in orders of their own."""
    depth = DepthStream(Tiny(60), DepthAugmentation(crop=(24, 32), colour_probability=1))
    own = AuxiliaryAugmentation(scale=(64, 40), crop=(32, 32), canvas=(32, 32), photometric_probability=1)
    batch = streams.JointBatches(depth, AuxiliaryStream((Tiny(60),), own, "reconstruction"), 60, 60, 5)(0)
    read = [batch[part]["image"][..., 2].max(axis=(1, 2)) for part in ("depth", "auxiliary")]
    assert sorted(read[0]) == sorted(read[1]) == list(range(60)) and (read[0] == read[1]).mean() < 0.2
    brightness, before, saturation, hue, after = batch["auxiliary"]["photometric"].T
    drawn = [*batch["depth"]["colour"].T, brightness, before * after, saturation, hue]  # contrast is before or after
    assert all(len(np.unique(numbers)) > 20 for numbers in drawn)
    assert np.abs(np.corrcoef(drawn) - np.eye(9)).max() < 0.5


def test_same_image_is_augmented_anew_in_the_next_epoch():
    depth = DepthStream(Tiny(size=1), DEPTH)
    batch = streams.JointBatches(depth, None, 3, None, 0)(0)["depth"]["image"]
    assert not (batch[0] == batch[1]).all() and not (batch[1] == batch[2]).all()


# Workers and restart


def test_batches_do_not_depend_on_workers():
    expected = taken(6)
    assert len(set(expected)) == 6
    assert taken(6, threads=0) == taken(6, threads=3, ahead=5) == expected
    assert taken(6, workers=1) == taken(6, workers=2) == expected


@pytest.mark.slow
def test_batches_do_not_depend_on_four_workers():
    assert taken(9, workers=4) == taken(9)
    assert taken(4, workers=4, start=5) == taken(9)[5:]


def test_restart_anywhere_gives_the_same_bytes():
    expected = taken(9)
    for start in (1, 5):
        with stream(start=start) as batches:
            assert batches.position == start
            assert [digest(next(batches)) for _ in range(4)] == expected[start : start + 4]
            assert batches.position == start + 4


def test_another_seed_gives_other_batches():
    assert not set(taken(3)) & set(taken(3, seed=6))


def test_shards_side_by_side_are_the_global_batch():
    with stream(batch_auxiliary=6) as batches:
        expected = next(batches)
    parts = []
    for number in range(2):
        with stream(batch_auxiliary=6, shard=(number, 2)) as batches:
            parts.append(next(batches))
    for part, arrays in expected.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(np.concatenate([p[part][key] for p in parts]), array)
    with pytest.raises(UserError, match="batch of 3 cannot be divided among 2"):
        stream(batch_auxiliary=3, shard=(0, 2))


def test_workers_start_no_backend_and_import_no_other_framework():
    with joint_batches(DepthStream(Report(), PLAIN), batch_depth=1, seed=0, workers=1) as batches:
        assert next(batches)["depth"]["image"].max() == 0


def test_restart_with_workers_and_close():
    before = set(multiprocessing.active_children())
    batches = stream(workers=2, start=5)
    assert [digest(next(batches)) for _ in range(4)] == taken(9)[5:]
    assert set(multiprocessing.active_children()) - before
    batches.close()
    batches.close()
    assert set(multiprocessing.active_children()) <= before
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_data_surfaces_as_the_original_message(workers):
    depth = DepthStream(Tiny(size=4, faulty=(2,)), DEPTH)
    with joint_batches(depth, batch_depth=1, seed=0, workers=workers) as batches:
        with pytest.raises(UserError, match=r"^file tiny/2\.png is damaged: the file ends early$"):
            for _ in range(4):
                next(batches)
    assert not multiprocessing.active_children()


def test_outside_of_absl_app_and_without_jax_or_grain_in_the_sources():
    """A plain script: flags were never parsed, and reading data imports neither jax nor grain."""
    script = """
import sys
import jdepth.data.sources, jdepth.data.sources.folder, jdepth.data.protocols, jdepth.data.transforms
import jdepth.data.evaluation, jdepth.data.streams, jdepth.data.targets
assert not {"jax", "grain", "torch", "tensorflow", "absl"} & set(sys.modules), "imported too much"
import jdepth.data.pipeline
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
assert not {"torch", "tensorflow"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


# Settings that do not fit


def test_bad_settings():
    with pytest.raises(UserError, match="must not be negative"):
        stream(workers=-1)
    with pytest.raises(UserError, match="no members"):
        AuxiliaryStream((), AUXILIARY, "mldc")
    with pytest.raises(UserError, match="unknown auxiliary task 'mldx'.*mldc"):
        mixture("mldx")
    with pytest.raises(UserError, match="expected 3 numbers > 0"):
        mixture(weights=(1, 2))
    with pytest.raises(UserError, match="3 auxiliary members but 2 augmentations"):
        AuxiliaryStream(mixture().members, (AUXILIARY,) * 2, "mldc")
    with pytest.raises(UserError, match="same canvas"):
        other = AuxiliaryAugmentation()
        AuxiliaryStream(mixture().members, (AUXILIARY, AUXILIARY, other), "mldc")
    with pytest.raises(UserError, match="'tiny' has no classes"):
        AuxiliaryStream((Tiny(classes=0),), AUXILIARY, "segmentation")
    with pytest.raises(UserError, match="'tiny' is empty"):
        joint_batches(DepthStream(Tiny(size=0), DEPTH), batch_depth=1, seed=0)


def test_images_of_different_sizes_in_one_batch():
    class Mixed(Tiny):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {key: array[: 40 - index] for key, array in item.items()}

    with pytest.raises(UserError, match="different sizes.*set crop or resize"):
        next(joint_batches(DepthStream(Mixed(), PLAIN), batch_depth=4, seed=0))


def test_sources_without_depth_or_label():
    class Bare(Tiny):
        def __getitem__(self, index):
            return {"image": super().__getitem__(index)["image"]}

    with pytest.raises(UserError, match="'tiny' gives no depth"):
        next(joint_batches(DepthStream(Bare(), DEPTH), batch_depth=1, seed=0))
    with pytest.raises(UserError, match="'tiny' gives no labels; task 'mldc'"):
        next(stream_of(AuxiliaryStream((Bare(),), AUXILIARY, "mldc")))
    assert "label" not in next(stream_of(AuxiliaryStream((Bare(),), AUXILIARY, "reconstruction")))["auxiliary"]
