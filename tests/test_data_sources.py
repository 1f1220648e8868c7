"""Data sets by name, fixed subsets of them, and what is decoded before a run starts."""

import json
import re

import numpy as np
import pytest
from folder_set import HEIGHT, WIDTH, opened, write
from tiny_config import plain

from jdepth import inputs, recipe
from jdepth.data import protocols, sources
from jdepth.data.sources.subset import Subset, fixed_subset
from jdepth.errors import UserError


def test_registry_errors(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'nyuu'.*did you mean 'nyu'.*known: .*kitti"):
        sources.open_source("nyuu", split="train")
    with pytest.raises(UserError, match=r"data not found: nyu; expected .*nyu; prepare .*jdepth\.prepare nyu.*Your own"):
        sources.open_source("nyu", split="train", data_dir=tmp_path)
    with pytest.raises(UserError, match="needs a path"):
        sources.open_source("folder", split="train")
    with pytest.raises(UserError, match="no option 'sise'.*did you mean 'size'"):
        sources.open_source("rooms", split="train", sise=3)


def test_named_sets_are_found_by_their_description(made):
    path, fields = made
    assert sources.missing(["nyu", "mix6", "rooms"], path) == ["nyu", *sources.MIXTURES["mix6"]]
    assert sources.find("nyu", path) is None and sources.find("rooms", path) is None
    fields["root"] = ".."
    (path / "nyu").mkdir()
    (path / "nyu/dataset.json").write_text(json.dumps(fields))
    assert sources.find("nyu", path) == path / "nyu/dataset.json"
    assert "nyu" not in sources.missing(["nyu", "sun"], path)
    assert len(sources.open_source("nyu", split="train", data_dir=path, read="depth")) == 3
    assert len(sources.open_source("folder", split="val", path=path / "nyu")) == 1


def test_every_set_has_the_split_that_it_is_scored_on():
    splits = {name: sources.held_out(name) for name in sources.NAMES}
    assert {name for name, split in splits.items() if split == "test"} == {"nyu", "nyu_labelled", "sun", "sun37", "kitti"}
    assert splits["nyu_tfds"] == "validation" and splits["folder"] == splits["matterport"] == "val"
    assert all(split in sources.raw_set(name).counts for name, split in splits.items() if name in sources.RAW_SETS)
    assert protocols.default("nyu_labelled") == "nyu" and protocols.default("kitti") == "kitti"
    assert protocols.default("folder") == "whole"


def test_every_set_has_the_published_counts():
    """Images per split, classes, stored depth numbers per metre and, where all images have one, their size."""
    published = {
        "nyu": ({"train": 24_231, "test": 654}, 0, 1000, (480, 640)),
        "nyu_labelled": ({"train": 795, "test": 654}, 0, 1000, (480, 640)),
        "sun": ({"train": 5_285, "test": 5_050}, 0, 1000, None),
        # Shares of 10,800 panoramas of 18 views: 61, 11 and 18 of 90 houses.
        "matterport": ({"train": 61 * 2160, "val": 11 * 2160, "test": 18 * 2160}, 0, 4000, (1024, 1280)),
        "taskonomy": ({"train": 3_200_000, "val": 498_000, "test": 542_000}, 0, 512, (512, 512)),
        "diode_indoor": ({"train": 8_574, "val": 325}, 0, 1, (768, 1024)),
        "diode_outdoor": ({"train": 16_884, "val": 446}, 0, 1, (768, 1024)),
        "kitti": ({"train": 23_158, "test": 652}, 0, 256, None),
        "ade20k": ({"train": 20_210, "val": 2_000}, 150, 0, None),
        "sun37": ({"train": 5_285, "test": 5_050}, 37, 0, None),
        "cityscapes34": ({"train": 2_975, "val": 500}, 34, 0, (1024, 2048)),
        "cityscapes19": ({"train": 2_975, "val": 500}, 19, 0, (1024, 2048)),
        "coco_stuff": ({"train": 118_287, "val": 5_000}, 171, 0, None),
        "voc21": ({"train": 8_498, "val": 1_449}, 21, 0, None),
        "voc21_train": ({"train": 1_464, "val": 1_449}, 21, 0, None),
        "voc21_trainaug": ({"train": 10_582, "val": 1_449}, 21, 0, None),
        "context59": ({"train": 4_998, "val": 5_105}, 59, 0, None),
    }
    sets = {name: sources.raw_set(name) for name in sources.RAW_SETS}
    assert {n: (dict(s.counts), len(s.classes), s.per_metre, s.size) for n, s in sets.items()} == published
    # Nobody publishes these: a set of another size is no mistake.
    assert {name for name, own in sets.items() if own.approximate} == {"matterport", "taskonomy"}
    assert sum(sets[name].counts["train"] for name in sources.members("mix6")) == 160_253
    assert all(name == own.name for name, own in sets.items())


def test_mixtures_are_named_by_their_members():
    mix6 = ("ade20k", "sun37", "cityscapes34", "coco_stuff", "voc21", "context59")  # in the order of their heads
    assert sources.members("mix6") == mix6 and sources.members("nyu") == ("nyu",)
    assert list(sources.MIXTURES) == ["mix6"]
    assert sources.members("voc21_train+ade20k") == ("voc21_train", "ade20k")
    assert sources.is_mixture("a+b") and sources.is_mixture("mix6") and not sources.is_mixture("nyu")
    with pytest.raises(UserError, match="twice"):
        sources.members("mix6+voc21")
    with pytest.raises(UserError, match="unknown data set 'voc'"):
        sources.members("voc+ade20k")
    with pytest.raises(UserError, match="mixture of data sets; name one of them: ade20k, voc21"):
        sources.open_source("ade20k+voc21", split="train")
    message = str(sources.missing_error(["sun37"], "data", mix6))
    assert "--config.data.auxiliary.name=ade20k+cityscapes34+coco_stuff+voc21+context59," in message


def test_fixed_subset_depends_on_ids_only(made):
    class Ids:
        name, classes = "ids", ()

        def __init__(self, ids):
            self.ids = ids

        def __len__(self):
            return len(self.ids)

        def item_id(self, index):
            return self.ids[index]

        def __getitem__(self, index):
            return self.ids[index]

    ids = [f"image {i}" for i in range(100)]
    first = Subset(Ids(ids), 10)
    backwards = Subset(Ids(ids[::-1]), 10)
    assert len(first) == 10 and {first[i] for i in range(10)} == {backwards.item_id(i) for i in range(10)}
    larger = Subset(Ids(ids), 20)
    assert {first[i] for i in range(10)} < {larger[i] for i in range(20)}
    assert fixed_subset(Ids(ids), None) == fixed_subset(Ids(ids), 0) == list(range(100))
    # Fixed for good: a change of the hash would change every published number.
    assert fixed_subset(Ids(ids), 3) == [25, 71, 82]
    assert len(Subset(opened(made), 2)) == 2


# What is decoded before a run starts


@pytest.mark.parametrize("kind", ["depth", "label"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_small_sets_are_decoded_before_the_start(made, tmp_path, kind, split):
    opened(made)
    given = {"name": "folder", "path": str(made[0]), "split": "train"}
    changes = {f"data.{part}.{key}": value for part in ("depth", "auxiliary") for key, value in given.items()}
    config = plain(tmp_path / "run", **changes, **{"data.auxiliary.eval_split": "val", "evaluate.split": "val"})
    inputs.read_small_sets(config)
    bad = made[0] / split / kind / "a0.png"
    write(bad, np.full((HEIGHT, WIDTH, 3) if kind == "depth" else (HEIGHT, WIDTH), 7, np.uint8))
    with pytest.raises(UserError, match=re.escape(str(bad))):
        inputs.read_small_sets(config)
    if kind == "label":
        inputs.read_small_sets(config | {"alpha": 1.0, "beta": None})  # no auxiliary task, no labels read


@pytest.mark.parametrize("name", ["cityscapes19", "context59", "ade20k+cityscapes34", "mix6"])
def test_published_pipelines_of_single_sets_and_mixtures(name, tmp_path):
    config = plain(tmp_path / "run", **{"data.auxiliary.name": name})
    config["data"]["auxiliary"]["augmentation"] = dict(recipe.RELEASED["data"]["auxiliary"]["augmentation"])
    given = dict(zip(sources.members(name), inputs.member_augmentations(config), strict=True))
    expected = {"cityscapes19": (2048, 1024), "cityscapes34": (2048, 1024), "context59": (520, 520)}
    assert {member: own.scale for member, own in given.items()} == {m: expected.get(m, (2048, 512)) for m in given}
    assert all(own.crop == ((480, 480) if member == "context59" else (512, 512)) for member, own in given.items())
