"""Class names and the way from stored to train ids against the reference tables, class by class."""

import json
from pathlib import Path

import numpy as np
import pytest

from jdepth.data.sources import ade20k, cityscapes, coco_stuff, pascal_context, pascal_voc, raw, raw_set
from jdepth.errors import UserError

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "label_maps.json"


@pytest.fixture(scope="module")
def reference():
    if not REFERENCE.is_file():
        pytest.skip(f"reference tables not found at {REFERENCE.parent.name}/{REFERENCE.name} beside the project")
    return json.loads(REFERENCE.read_text(encoding="utf-8"))


def agree(table: np.ndarray, expected: dict[int, int]) -> None:
    """Stored ids map as expected, one by one; those that are not named are refused."""
    for stored, train in expected.items():
        found = raw.train_ids(np.full((1, 2), stored, np.uint16), table, "label.png")
        assert found.dtype == np.uint8 and (found == train).all(), stored
    for stored in {*range(600), 1000, 65535} - set(expected):
        with pytest.raises(UserError, match=f"label.png holds the value {stored},"):
            raw.train_ids(np.full((1, 2), stored, np.uint16), table, "label.png")
    assert [*np.flatnonzero(table >= 0)] == sorted(expected)


def minus_one(entry: dict) -> dict[int, int]:
    assert entry["reduce_zero_label"] and entry["raw_ignore"] == [0]
    return {0: 255, **{i + 1: i for i in range(entry["num_classes"])}}


def names_agree(name: str, names: list[str], count: int) -> None:
    classes = raw_set(name).classes
    assert len(classes) == count
    for i, (ours, theirs) in enumerate(zip(classes, names, strict=True)):
        assert ours == theirs, i
        assert ours == ours.strip() and ours


def test_ade20k(reference):
    entry = reference["ade20k"]
    names_agree("ade20k", entry["names"], 150)
    agree(ade20k.TABLE, minus_one(entry))
    # Each name is one of those that the makers' own list gives the class.
    for ours, theirs in zip(ade20k.CLASSES, entry["official_synonyms"], strict=True):
        assert ours.lower() in theirs.lower().split(", "), (ours, theirs)


def test_sun37(reference):
    from jdepth.data.sources import sun_rgbd

    entry = reference["sunrgbd37"]
    assert raw_set("sun37") is sun_rgbd.LABELS
    names_agree("sun37", entry["names"], 37)
    agree(sun_rgbd.TABLE, minus_one(entry))


def test_cityscapes34(reference):
    entry = reference["cityscapes"]
    names_agree("cityscapes34", entry["label_id_names"], 34)
    agree(cityscapes.LABEL_TABLE, {**{i: i for i in range(34)}, 255: 255})


def test_cityscapes19(reference):
    entry = reference["cityscapes"]
    names_agree("cityscapes19", entry["train_id_names"], 19)
    expected = {int(stored): train for stored, train in entry["label_id_to_train_id"].items()}
    agree(cityscapes.TRAIN_TABLE, {**expected, 255: 255})
    # A label id and its train id bear the same name, and what is left out is what the benchmark leaves out.
    for stored, train in expected.items():
        if train != 255:
            assert cityscapes.LABELS[stored] == cityscapes.SCORED[train]
    assert [stored for stored, train in expected.items() if train == 255] == entry["ignored_in_official_eval"]


def test_coco_stuff(reference):
    entry = reference["coco_stuff_164k"]
    names_agree("coco_stuff", entry["names"], 171)
    expected = {int(stored): train for stored, train in entry["raw_to_train"].items()}
    assert len(expected) == 171 and not set(expected) & set(entry["unused_pixel_values"])
    agree(coco_stuff.TABLE, {**expected, 255: 255})
    assert sorted(coco_stuff.UNUSED) == entry["unused_pixel_values"]


def test_voc21(reference):
    entry = reference["voc21"]
    for name in ("voc21", "voc21_train", "voc21_trainaug"):
        names_agree(name, entry["names"], 21)
    assert entry["rule"] == "identity" and entry["raw_ignore"] == [255]
    agree(pascal_voc.TABLE, {**{i: i for i in range(21)}, 255: 255})


def test_context59_converted(reference):
    entry = reference["pascal_context59"]
    names_agree("context59", entry["names"], 59)
    agree(pascal_context.PNG_TABLE, minus_one(entry))


def test_context59_original(reference):
    entry = reference["pascal_context59"]
    expected = {int(stored): train for stored, train in entry["raw459_to_train59"].items()}
    assert len(expected) == 59
    agree(pascal_context.MAT_TABLE, dict.fromkeys(range(460), 255) | expected)
    # Both forms of the labels lead to the same class.
    for value, stored in enumerate(entry["raw459_ids_by_converted_value"]):
        assert pascal_context.PNG_TABLE[value] == pascal_context.MAT_TABLE[stored]
        if value:
            assert pascal_context.ORIGINAL[stored] == entry["names"][value - 1]
