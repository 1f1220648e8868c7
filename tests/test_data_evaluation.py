"""Evaluation protocols and batches."""

import hashlib
from dataclasses import asdict, replace

import numpy as np
import pytest

from jdepth.data import protocols, sources
from jdepth.data.evaluation import auxiliary_evaluation_batches, evaluation_batches
from jdepth.data.protocols import PROTOCOLS, describe, prepare, protocol, valid_mask
from jdepth.data.streams import AuxiliaryStream
from jdepth.data.transforms import NEUTRAL_PHOTOMETRIC, AuxiliaryAugmentation
from jdepth.errors import UserError


class Sizes:
    """A source with images of given sizes, each filled with its own index."""

    name, classes = "sizes", ("a", "b", "c")

    def __init__(self, sizes, faulty=None):
        self.sizes, self.faulty = sizes, faulty

    def __len__(self):
        return len(self.sizes)

    def item_id(self, index):
        return f"image {index}"

    def __getitem__(self, index):
        if index == self.faulty:
            raise UserError(f"file {index} is damaged")
        height, width = self.sizes[index]
        return {
            "image": np.full((height, width, 3), index, np.uint8),
            "depth": np.full((height, width), 1 + index, np.float32),
            "label": np.full((height, width), index % 3, np.uint8),
        }


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("nyu", (480, 640), (45, 471, 41, 601)),
        ("kitti", (352, 1216), (143, 349, 43, 1172)),
        ("kitti_eigen", (352, 1216), (117, 321, 43, 1172)),
        ("sun", (530, 730), (45, 471, 41, 601)),
        ("sun", (427, 561), (45, 427, 41, 561)),
        ("diode_indoor_zoedepth", (768, 1024), (45, 471, 41, 601)),
        ("diode_indoor", (768, 1024), (0, 768, 0, 1024)),
        ("rooms", (96, 128), (0, 96, 0, 128)),
        ("whole80", (7, 9), (0, 7, 0, 9)),
    ],
)
def test_crops(name, size, expected):
    assert box(valid_mask(protocol(name), np.full(size, 2, np.float32))) == expected


def test_range_is_strict_and_invalid_depth_never_counts():
    depth = np.array([[0, 0.001, 0.0011, 9.999, 10, 10.5, -1, np.nan, np.inf]], np.float32)
    np.testing.assert_array_equal(valid_mask(PROTOCOLS["whole"], depth)[0], [0, 0, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(valid_mask(PROTOCOLS["whole80"], depth * 8)[0, 3:6], [1, 0, 0])


def test_pixel_crop_on_another_size_is_an_error():
    with pytest.raises(UserError, match="480x640.*got 240x320.*'whole'"):
        valid_mask(PROTOCOLS["nyu"], np.ones((240, 320), np.float32))


def test_sun_clips_ground_truth_before_the_range():
    depth = np.full((530, 730), 30, np.float32)
    depth[100, 100] = 7
    image, clipped = prepare(PROTOCOLS["sun"], np.zeros((530, 730, 3), np.uint8), depth)
    assert image.shape == (480, 640, 3) and clipped.shape == (530, 730)
    assert set(np.unique(clipped)) == {7, 8} and valid_mask(PROTOCOLS["sun"], clipped)[200, 200]
    assert PROTOCOLS["sun"].prediction_range == (0.001, 8.0) and PROTOCOLS["kitti"].prediction_range == (0.001, 80.0)


def test_kitti_crops_image_and_ground_truth():
    rows, columns = np.mgrid[:375, :1242]
    image = np.stack([rows % 256, columns % 256, rows], axis=-1).astype(np.uint8)
    cropped, depth = prepare(PROTOCOLS["kitti"], image, (rows + columns / 10000).astype(np.float32))
    assert cropped.shape == (352, 1216, 3) and depth.shape == (352, 1216)
    assert cropped[0, 0].tolist() == [23, 13, 23] and depth[0, 0] == np.float32(23 + 13 / 10000)


def test_describe_says_it_all():
    for entry in PROTOCOLS.values():
        line = describe(entry)
        assert line.startswith(f"{entry.name}: ") and "\n" not in line and "mean over images" in line
    assert describe(PROTOCOLS["nyu"]) == (
        "nyu: 0.001 < depth < 10 m, rows 45:471, columns 41:601, flip averaged, mean over images "
        "(Eigen crop, 654 test images)"
    )
    assert "no flip" in describe(replace(PROTOCOLS["nyu"], flip=False))
    assert "clipped at 8 m" in describe(PROTOCOLS["sun"]) and "input 480x640" in describe(PROTOCOLS["sun"])
    with pytest.raises(UserError, match="did you mean 'nyu'"):
        protocol("nyuu")


def test_batches_group_sizes_and_fill_ragged_ends():
    source = Sizes([(8, 10), (8, 10), (6, 10), (8, 10), (6, 10), (6, 10), (6, 10), (8, 10), (4, 4)])
    batches = list(evaluation_batches(source, PROTOCOLS["whole"], batch=3))
    assert sorted(batch["image"].shape for batch in batches) == [
        (3, 4, 4, 3), (3, 6, 10, 3), (3, 6, 10, 3), (3, 8, 10, 3), (3, 8, 10, 3),
    ]  # fmt: skip
    seen = []
    for batch in batches:
        assert set(batch) == {"image", "depth", "mask", "weight", "index"}
        assert batch["image"].dtype == np.uint8 and batch["depth"].dtype == np.float32 and batch["mask"].dtype == bool
        assert batch["weight"].dtype == np.float32 and batch["index"].dtype == np.int32
        for row in range(3):
            if batch["weight"][row]:
                index = batch["index"][row]
                seen.append(index)
                assert (batch["image"][row] == index).all() and (batch["depth"][row] == 1 + index).all()
                assert batch["mask"][row].all()
            else:
                assert batch["index"][row] == -1 and not batch["mask"][row].any()
    assert sorted(seen) == list(range(9))


def test_native_depth_beside_resized_input():
    source = Sizes([(8, 10), (6, 10)])
    resized = replace(PROTOCOLS["whole"], resize=(16, 12))
    batches = list(evaluation_batches(source, resized, batch=2))
    assert [batch["image"].shape for batch in batches] == [(2, 16, 12, 3)] * 2
    assert [batch["depth"].shape for batch in batches] == [(2, 8, 10), (2, 6, 10)]


def by_hash(size: int) -> list[int]:
    """The images of a set of `Sizes` by the SHA-256 of their names."""
    return sorted(range(size), key=lambda index: hashlib.sha256(f"image {index}".encode()).hexdigest())


def indices(batches) -> list[int]:
    return [int(index) for batch in batches for index in batch["index"] if index >= 0]


def test_limit_is_a_fixed_subset():
    """The six images whose names have the smallest SHA-256, whatever the batch and wherever they stand in the set."""
    source = Sizes([(4, 4)] * 30)
    expected = sorted(by_hash(30)[:6])
    assert expected != list(range(6))
    for batch in (3, 4, 40):
        assert indices(evaluation_batches(source, PROTOCOLS["whole"], batch, limit=6)) == expected
    for limit in (None, 0, 30, 31):
        assert indices(evaluation_batches(source, PROTOCOLS["whole"], 4, limit=limit)) == list(range(30))


def test_errors_reach_the_caller_and_early_stop_is_clean():
    source = Sizes([(4, 4)] * 30, faulty=5)
    batches = evaluation_batches(source, PROTOCOLS["whole"], 1)
    assert next(batches)["index"][0] == 0
    with pytest.raises(UserError, match="file 5 is damaged"):
        list(batches)
    stopped = evaluation_batches(source, PROTOCOLS["whole"], 1)
    next(stopped)
    stopped.close()
    with pytest.raises(UserError, match="batch must be at least 1"):
        next(evaluation_batches(source, PROTOCOLS["whole"], 0))


@pytest.mark.parametrize("task", ["mldc", "segmentation", "single_label", "reconstruction"])
def test_auxiliary_evaluation(task):
    augmentation = AuxiliaryAugmentation(scale=(40, 20), crop=(16, 16), canvas=(16, 18))
    members = (Sizes([(20, 40)] * 3), Sizes([(10, 14)] * 2))
    stream = AuxiliaryStream(members, augmentation, task)
    batches = list(auxiliary_evaluation_batches(stream, batch=3))
    assert len(batches) == 2
    ids = np.concatenate([batch["dataset_id"] for batch in batches])
    weight = np.concatenate([batch["weight"] for batch in batches])
    assert ids[:5].tolist() == [0, 0, 0, 1, 1] and weight.tolist() == [1] * 5 + [0]
    for batch in batches:
        assert batch["image"].shape == (3, 16, 18, 3)
        np.testing.assert_array_equal(batch["photometric"], np.tile(NEUTRAL_PHOTOMETRIC, (3, 1)))
    second = batches[1]
    assert second["valid_size"].tolist() == [[16, 16], [16, 16], [16, 18]] and second["index"].tolist() == [0, 1, -1]
    if task == "mldc":
        assert second["classes"].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    elif task == "segmentation":
        assert (second["label"][1, :, :16] == 1).all() and (second["label"][1, :, 16:] == 255).all()
        assert (second["label"][2] == 255).all()
    elif task == "single_label":
        assert second["class_id"].tolist() == [0, 1, -1]
    (limited,) = auxiliary_evaluation_batches(stream, batch=8, limit=1)
    assert limited["weight"].sum() == 2 and limited["dataset_id"][:2].tolist() == [0, 1]
    chosen = [by_hash(3)[0], by_hash(2)[0]]
    assert limited["index"][:2].tolist() == chosen != [0, 0]


EIGEN = {"crop": (45, 471, 41, 601)}
GARG = {"crop": (0.40810811, 0.99189189, 0.03594771, 0.96405229), "crop_fraction": True}
EIGEN_KITTI = {"crop": (0.3324324, 0.91351351, 0.0359477, 0.96405229), "crop_fraction": True}


def test_every_protocol_is_the_published_one():
    """Numbers of the Monocular-Depth-Estimation-Toolbox and of ZoeDepth; a change of one changes every score."""
    published = {
        "nyu": {"max_depth": 10, "native": (480, 640), **EIGEN},
        "kitti": {"max_depth": 80, "kb_crop": True, **GARG},
        "kitti_eigen": {"max_depth": 80, "kb_crop": True, **EIGEN_KITTI},
        "sun": {"max_depth": 10, "clip": 8, "resize": (480, 640), **EIGEN},
        "matterport": {"max_depth": 10, "resize": (480, 640)},
        "taskonomy": {"max_depth": 10},
        "diode_indoor": {"max_depth": 10},
        "diode_outdoor": {"max_depth": 80},
        "diode_indoor_zoedepth": {"max_depth": 10, "native": (768, 1024), "resize": (480, 640), **EIGEN},
        "diode_outdoor_zoedepth": {"max_depth": 80, "resize": (480, 640), **GARG},
        "rooms": {"max_depth": 10, "flip": False},
        "whole": {"max_depth": 10},
        "whole80": {"max_depth": 80},
    }
    usual = {
        "min_depth": 0.001, "crop": None, "crop_fraction": False, "native": None, "kb_crop": False, "clip": None,
        "resize": None, "resize_area": False, "flip": True, "average": "image",
    }  # fmt: skip
    held = {name: asdict(entry) for name, entry in PROTOCOLS.items()}
    for fields in held.values():
        del fields["note"]
    assert held == {name: usual | {"name": name} | own for name, own in published.items()}


def test_each_set_is_scored_by_the_protocol_of_its_name():
    own = {"nyu", "kitti", "sun", "matterport", "taskonomy", "diode_indoor", "diode_outdoor", "rooms"}
    renamed = {"nyu_labelled": "nyu", "nyu_tfds": "nyu"}
    found = {name: protocols.default(name) for name in sources.NAMES}
    assert found == {name: renamed.get(name, name if name in own else "whole") for name in sources.NAMES}
