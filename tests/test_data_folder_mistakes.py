"""Folder sources: what users get wrong is told in one line that names the file or key."""

import shutil

import numpy as np
import pytest
from folder_set import HEIGHT, WIDTH, label_of, opened, refused, write

from jdepth.data.sources import folder
from jdepth.data.sources.folder import Folder
from jdepth.errors import UserError


def test_missing_files_are_listed_with_their_count(made):
    (made[0] / "train/depth/a1.png").unlink()
    refused(made, "1 of 3 depth files of split 'train' not found", "train/depth/a1.png")
    shutil.rmtree(made[0] / "train/depth")
    refused(made, "3 of 3 depth files", "a0.png, train/depth/a1.png")


def test_size_mismatch_names_both_sizes(made):
    write(made[0] / "train/depth/a2.png", np.zeros((HEIGHT, WIDTH + 1), np.uint16))
    refused(made, "rgb/a2.png is 6x8", "depth/a2.png is 6x9")


def test_size_mismatch_beyond_the_sampled_headers_is_found_when_read(made, monkeypatch):
    monkeypatch.setattr(folder, "HEADERS_AT_OPEN", 1)
    write(made[0] / "train/depth/a2.png", np.zeros((HEIGHT, WIDTH + 1), np.uint16))
    assert len(opened(made)) == 3
    refused(made, "rgb/a2.png is 6x8", "depth/a2.png is 6x9", read_item=2)


def test_not_an_image(made):
    (made[0] / "train/rgb/a1.png").write_text("hello")
    refused(made, "a1.png is not an image file")


@pytest.mark.parametrize("name", ["rgb.png", "depth.png", "label.png", "rgb.jpg"])
def test_truncated_file(made, name):
    kind, suffix = name.split(".")
    if suffix == "jpg":
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for number in range(3):
            write(made[0] / f"train/rgb/a{number}.jpg", noise)
        made[1]["image"] = "{split}/rgb/{id}.jpg"
    path = made[0] / f"train/{kind}/a1.{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    refused(made, str(path), read_item=1)
    with pytest.raises(UserError, match=r"a1\."):
        opened(made).check()


def test_damaged_content(made):
    path = made[0] / "train/depth/a1.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))
    refused(made, str(path), read_item=1)
    path.write_bytes(b"")
    refused(made, str(path))


def test_pickled_npy_is_refused(made):
    for number in range(3):
        np.save(made[0] / f"train/depth/a{number}.npy", np.full((HEIGHT, WIDTH), None, object), allow_pickle=True)
    made[1]["depth"]["file"] = "train/depth/{id}.npy"
    refused(made, "a0.npy", read_item=0)


def test_colour_depth_is_refused(made):
    write(made[0] / "train/depth/a0.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    refused(made, "depth/a0.png has shape (6, 8, 3)", "one channel", read_item=0)


def test_bit_formula_on_float_files_names_the_file(made):
    for number in range(3):
        write(made[0] / f"train/depth/a{number}.npy", np.ones((HEIGHT, WIDTH), np.float32))
    made[1]["depth"] = {"file": "train/depth/{id}.npy", "formula": "v >> 3"}
    refused(made, "a0.npy", "whole numbers", read_item=0)


def test_empty_split(made):
    made[1]["splits"]["train"] = {"glob": "b*"}
    refused(made, "split 'train' is empty", "train/rgb/b*.png")
    (made[0] / "empty.txt").write_text("\n# nothing\n")
    made[1]["splits"]["train"] = {"list": "empty.txt"}
    refused(made, "split 'train' is empty", "empty.txt lists no item")


def test_unknown_split_and_keys_get_a_suggestion(made):
    refused(made, "no split 'tran'", "did you mean 'train'", "splits: train, val", split="tran")
    made[1]["depth"]["formla"] = made[1]["depth"].pop("scale")
    refused(made, "depth.formla", "did you mean 'formula'")
    made[1]["depth"]["scale"] = made[1]["depth"].pop("formla")
    made[1]["labels"] = made[1].pop("label")
    refused(made, "labels", "did you mean 'label'")


def test_folder_one_level_off(made):
    path, fields = made
    opened(made)
    for wrong in (path.parent, path / "train"):
        with pytest.raises(UserError) as caught:
            Folder(wrong, "train")
        assert f"there is one at {path / 'dataset.json'}" in str(caught.value)
    inner = path / "inner"
    shutil.move(path / "train", inner / "train")
    refused(made, "split 'train' is empty", f"Set root to {inner}")
    fields["root"] = "inner/train"
    refused(made, "split 'train' is empty", f"Set root to {inner}")
    fields["splits"]["train"] = {"list": "l.txt"}
    (path / "l.txt").write_text("a0\n")
    refused(made, "1 of 1 image files", f"Set root to {inner}")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"root": "nowhere"}, "root: folder not found"),
        ({"name": 3}, "name: expected str"),
        ({"splits": {}}, "splits: expected at least one"),
        ({"splits": {"train": {}}}, "splits.train: give either list"),
        ({"splits": {"train": {"glob": "*", "columns": ["id"]}}}, "columns belong to list"),
        ({"splits": {"train": "all"}}, "splits.train: expected an object"),
        ({"depth": {"file": "x", "scale": 1, "formula": "v"}}, "depth: give either scale"),
        ({"depth": {"file": "x", "scale": 0}}, "depth.scale: expected a positive number"),
        ({"depth": {"file": "x", "formula": "v / w"}}, "dataset.json: depth formula 'v / w': 'w' is not allowed"),
        ({"depth": {"scale": 1}}, "depth.file: missing"),
        ({"depth": {"file": "x", "scale": 1, "invalid": ["0"]}}, "depth.invalid: expected numbers"),
        ({"label": {"file": "x", "classes": []}}, "label.classes: expected 1 to 255"),
        ({"label": {"file": "x", "classes": ["a"], "map": {"0": 1}}}, "label.map: '0': 1"),
        ({"label": {"file": "x", "classes": ["a"], "map": {"a": 0}}}, "label.map: 'a': 0"),
        ({"label": {"file": "x", "classes": ["a"], "map": {"0": 0}, "reduce_zero_label": True}}, "exclude"),
        ({"label": {"file": "x", "classes": ["a"], "map": {"1": 0, "01": None}}}, "label.map: stored value 1"),
        ({"label": {"file": "x", "classes": ["a"], "map": {"1": 0}, "ignore": [1]}}, "map gives 1 a class"),
        ({"depth": {"file": "x", "scale": 10**400}}, "depth.scale: expected a positive number"),
        ({"depth": {"file": "x", "scale": 1e300}}, "dataset.json: depth formula 'v * 1e+300'"),
        ({"depth": {"file": "x", "scale": 1, "max": 10**400}}, "depth.max: expected a positive number"),
        ({"depth": {"file": "x", "scale": 1, "invalid": [10**400]}}, "depth.invalid: expected numbers"),
        ({"depth": {"file": "x", "formula": "v /\n 0x"}}, "is not an arithmetic expression"),
        ({"label": {"file": "x", "classes": ["a"], "ignore": [float("nan")]}}, "label.ignore: expected whole numbers"),
        ({"label": {"file": "x", "classes": ["a"], "ignore": [float("inf")]}}, "label.ignore: expected whole numbers"),
        ({"label": {"file": "x", "classes": ["a"], "ignore": [0.5]}}, "label.ignore: expected whole numbers"),
        ({"label": {"file": "x", "classes": ["a"], "ignore": [-1]}}, "label.ignore: expected whole numbers"),
        ({"label": {"file": "x", "classes": ["a"], "map": {"7" * 5000: 0}}}, "label.map: '7777"),
        ({"label": {"file": "x", "classes": ["a"], "map": {"70000": 0}}}, "label.map: '70000'"),
        ({"splits": {"train": {"list": "l.txt", "columns": [1]}}}, "splits.train.columns: expected names, got [1]"),
        ({"splits": {"train": {"list": "l.txt", "columns": [["id"]]}}}, "splits.train.columns: expected names"),
        ({"splits": {"train": {"glob": "**"}}}, "splits.train.glob: cannot look for 'train/rgb/**.png'"),
        ({"splits": {"train": {"glob": "**/a**"}}}, "splits.train.glob: cannot look for"),
        ({"image": "/abs/rgb/{id}.png"}, "expected an image pattern relative to root"),
        ({"image": "{id}", "splits": {"train": {"glob": ""}}}, "splits.train.glob: cannot look for ''"),
        ({"root": "\0"}, "root: expected a path without control characters"),
        ({"root": "\ud800"}, "root: expected a path without control characters"),
        ({"depth": {"file": "x\0/{id}", "scale": 1}}, "depth.file: expected a path without control characters"),
        ({"image": "rgb/{name}.png"}, "{name}"),
        ({"depth": {"file": "{name}.png", "scale": 1}}, "{name}"),
    ],
)
def test_bad_descriptions(made, change, part):
    made[1].update(change)
    refused(made, part, str(made[0]))


def test_description_that_is_no_json(made):
    (made[0] / "dataset.json").write_text('{"name": "x",\n oops}')
    with pytest.raises(UserError, match="is not JSON: .* in line 2"):
        Folder(made[0], "train")
    (made[0] / "dataset.json").write_text("[1]")
    with pytest.raises(UserError, match="expected an object"):
        Folder(made[0], "train")
    for content in ("[" * 200_000, '{"name": ' + "1" * 5000 + "}"):
        (made[0] / "dataset.json").write_text(content)
        with pytest.raises(UserError, match=r"cannot read .*dataset\.json"):
            Folder(made[0], "train")
    with pytest.raises(UserError, match="not found"):
        Folder(made[0] / "nope", "train")


def test_whole_numbers_may_have_a_point(made):
    np.testing.assert_array_equal(label_of(made, np.uint8([0, 39]), ignore=[39.0]), [0, 255])


def test_list_with_a_zero_byte(made):
    (made[0] / "list.txt").write_text("a\0/b\n")
    made[1]["splits"]["train"] = {"list": "list.txt"}
    refused(made, "1 of 1 image files of split 'train' not found")
