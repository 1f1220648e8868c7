"""Class names and the way from stored to train ids against the reference tables, class by class."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from jdepth.data.sources import (
    RAW_SETS,
    ade20k,
    cityscapes,
    coco_stuff,
    pascal_context,
    pascal_voc,
    raw,
    raw_set,
    sun_rgbd,
)
from jdepth.errors import UserError

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference" / "label_maps.json"


# SHA-256 of each table as `digest` writes it; made of the reference tables, to which each was found equal.
DIGESTS = {
    "ade20k": (ade20k.TABLE, "8dbddae0b1373af8abce54e4333dacecb6adc7591d386cd1a6dc2256f4b4b1a9"),
    "sun37": (sun_rgbd.TABLE, "066ee67893f4892177bf1b999eb5b81085351c3e6c669b12d9043e5ed74aec05"),
    "cityscapes34": (cityscapes.LABEL_TABLE, "f27ced3f03819e03beed2f98a1766b122c7619a3db4e51a91d4cba8c0d7dfb1f"),
    "cityscapes19": (cityscapes.TRAIN_TABLE, "fc71b329c1f241da0cee2bbab5a85f3a0e8ffb1070429dcf4d494c12c98c9b5a"),
    "coco_stuff": (coco_stuff.TABLE, "d5886a8507e7f2516438e5adcab33f310f7cd4b001e662f54703a255dca6cd49"),
    "voc21": (pascal_voc.TABLE, "581b315c2aa026affd6f9086ac1f6191cf11e81d8540a50cc443b4f84e2918d1"),
    "voc21_train": (pascal_voc.TABLE, "581b315c2aa026affd6f9086ac1f6191cf11e81d8540a50cc443b4f84e2918d1"),
    "voc21_trainaug": (pascal_voc.TABLE, "581b315c2aa026affd6f9086ac1f6191cf11e81d8540a50cc443b4f84e2918d1"),
    "context59": (pascal_context.PNG_TABLE, "0c84ab65b299d27d6755facf41ad08f4de80b641cdb27292ff5552aa6cd56354"),
    "context59 (mat)": (pascal_context.MAT_TABLE, "0fa872f43906535998bc868096c0d8df4e1423618baec5fc3c2190a0dbaa3ec6"),
}


def digest(classes: tuple[str, ...], table: np.ndarray) -> str:
    """Of the names by train id, and of the train id of every stored id that the set knows."""
    known = [(int(stored), int(table[stored])) for stored in np.flatnonzero(table >= 0)]
    return hashlib.sha256(json.dumps([list(classes), known]).encode()).hexdigest()


@pytest.mark.parametrize("name", DIGESTS)
def test_names_and_table_are_the_published_ones(name):
    """Needs no reference beside the project; the tests below say which entry is wrong, this one only that one is."""
    table, expected = DIGESTS[name]
    assert digest(raw_set(name.removesuffix(" (mat)")).classes, table) == expected


def test_every_labelled_set_has_a_digest():
    assert {name.removesuffix(" (mat)") for name in DIGESTS} == {n for n in RAW_SETS if raw_set(n).kind == "label"}


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
