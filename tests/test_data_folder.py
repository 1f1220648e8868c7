"""Folder sources: small sets written here, and everything a user may get wrong."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_config import plain

from jdepth import inputs
from jdepth.data import sources
from jdepth.data.sources import folder
from jdepth.data.sources.folder import Folder
from jdepth.data.sources.subset import Subset, fixed_subset
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


def test_item(made):
    source = opened(made)
    assert len(source) == 3 and source.name == "made" and source.classes == ("wall", "floor", "bed")
    assert [source.item_id(i) for i in range(3)] == ["a0", "a1", "a2"]
    item = source[1]
    raw = cv2.imread(str(made[0] / "train/depth/a1.png"), cv2.IMREAD_UNCHANGED)
    metres = (raw / 1000.0).astype(np.float32)
    np.testing.assert_array_equal(item["depth"], np.where(metres <= 10, metres, 0))
    np.testing.assert_array_equal(item["image"], np.asarray(Image.open(made[0] / "train/rgb/a1.png")))
    np.testing.assert_array_equal(item["label"], np.asarray(Image.open(made[0] / "train/label/a1.png")))
    assert [item[k].dtype for k in ("image", "depth", "label")] == [np.uint8, np.float32, np.uint8]
    assert source.check() == 3 and len(opened(made, "val")) == 1


def test_read_chooses_what_is_decoded(made):
    assert set(opened(made, read=("depth",))[0]) == {"image", "depth"}
    assert set(opened(made, read="label")[0]) == {"image", "label"}
    assert set(opened(made, read=())[0]) == {"image"}
    del made[1]["label"]
    refused(made, "has no label", read=("label",))


def test_pickled_source_reads_the_same(made):
    import pickle

    source = opened(made)
    copy = pickle.loads(pickle.dumps(source))
    for key, value in source[2].items():
        np.testing.assert_array_equal(copy[2][key], value)


# Image and depth formats


def test_grey_alpha_and_16_bit_images_become_rgb(made):
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(grey).save(made[0] / "train/rgb/a0.png")
    Image.fromarray(np.dstack([grey, grey, grey, 255 - grey])).save(made[0] / "train/rgb/a1.png")
    write(made[0] / "train/rgb/a2.png", grey.astype(np.uint16) * 256)
    for index in range(3):
        np.testing.assert_array_equal(opened(made)[index]["image"], np.repeat(grey[..., None], 3, axis=2))


def test_orientation_tag_is_ignored_so_that_depth_fits(made):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(made[0] / "train/rgb/a0.jpg", exif=exif, quality=95)
    made[1]["image"] = "train/rgb/a0.jpg"
    made[1]["splits"]["train"] = {"list": "list.txt"}
    (made[0] / "list.txt").write_text("a0\n")
    assert opened(made)[0]["image"].shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("suffix", [".npy", ".tiff", ".pfm"])
def test_float_depth(made, suffix):
    metres = np.random.default_rng(2).uniform(0.5, 9, (HEIGHT, WIDTH)).astype(np.float32)
    metres[0, :4] = 0, -1, np.inf, np.nan
    metres[1, 0] = 50
    for number in range(3):
        path = made[0] / f"train/depth/a{number}{suffix}"
        if suffix == ".pfm":
            # Bottom row first; the number is a scale that readers must not apply to depth.
            path.write_bytes(f"Pf\n{WIDTH} {HEIGHT}\n-0.5\n".encode() + metres[::-1].astype("<f4").tobytes())
        else:
            write(path, metres[..., None] if suffix == ".npy" else metres)
    made[1]["depth"] = {"file": "train/depth/{id}" + suffix, "scale": 1, "max": 10}
    expected = metres.copy()
    expected[0, :4] = 0
    expected[1, 0] = 0
    np.testing.assert_array_equal(opened(made)[0]["depth"], expected)


def test_invalid_values_clip_and_mask(made):
    raw = np.full((HEIGHT, WIDTH), 2000, np.uint16)
    raw[0, :4] = 0, 65535, 9000, 777
    for number in range(3):
        write(made[0] / f"train/depth/a{number}.png", raw)
        mask = np.ones((HEIGHT, WIDTH, 1))
        mask[5, 5] = 0
        write(made[0] / f"train/mask/a{number}.npy", mask)
    made[1]["depth"] = {
        "file": "train/depth/{id}.png", "formula": "v / 1000", "invalid": [0, 777, 65535], "clip": 8,
        "mask": "train/mask/{id}.npy",
    }  # fmt: skip
    depth = opened(made)[0]["depth"]
    np.testing.assert_array_equal(depth[0, :5], np.float32([0, 0, 8, 0, 2]))
    assert depth[5, 5] == 0 and np.count_nonzero(depth == 2) == HEIGHT * WIDTH - 5


def test_no_invalid_value_lets_zero_be_a_depth(made):
    for number in range(3):
        write(made[0] / f"train/depth/a{number}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    made[1]["depth"] = {"file": "train/depth/{id}.png", "formula": "(v + 0.5) / 10", "invalid": []}
    np.testing.assert_allclose(opened(made)[0]["depth"], 0.05, rtol=1e-6)


# Labels


def label_of(made, stored: np.ndarray, **fields) -> np.ndarray:
    full = np.zeros((HEIGHT, WIDTH), stored.dtype)
    full[0, : len(stored)] = stored
    for number in range(3):
        write(made[0] / f"train/label/a{number}.png", full)
    made[1]["label"] |= fields
    return opened(made, read="label")[0]["label"][0, : len(stored)]


def test_labels_ignore(made):
    np.testing.assert_array_equal(label_of(made, np.uint8([0, 1, 2, 39, 255]), ignore=[39]), [0, 1, 2, 255, 255])


def test_labels_reduce_zero(made):
    result = label_of(made, np.uint8([0, 1, 2, 3, 255]), reduce_zero_label=True)
    np.testing.assert_array_equal(result, [255, 0, 1, 2, 255])


def test_labels_map(made):
    result = label_of(made, np.uint16([0, 7, 8, 500, 255]), map={"0": None, "7": 2, "8": 2, "500": 0})
    np.testing.assert_array_equal(result, [255, 2, 2, 0, 255])


def test_labels_map_other(made):
    np.testing.assert_array_equal(label_of(made, np.uint8([0, 7, 99]), map={"7": 2, "other": None}), [255, 2, 255])


def test_palette_labels_give_indices(made):
    ids = np.tile(np.arange(3, dtype=np.uint8), (HEIGHT, WIDTH))[:, :WIDTH]
    for number in range(3):
        image = Image.fromarray(ids, mode="P")
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
        image.save(made[0] / f"train/label/a{number}.png")
    np.testing.assert_array_equal(opened(made)[0]["label"], ids)


def test_label_above_class_count_names_file_value_and_count(made):
    with pytest.raises(UserError, match=r"a0\.png holds the value 3, which is no class.*3 classes"):
        label_of(made, np.uint8([0, 3]))


def test_negative_labels_are_refused(made):
    for number in range(3):
        write(made[0] / f"train/label/a{number}.npy", np.full((HEIGHT, WIDTH), -1))
    made[1]["label"]["file"] = "train/label/{id}.npy"
    refused(made, "value -1", read_item=0)


# Lists


def test_list_with_columns_as_in_bts_split_files(made):
    (made[0] / "list.txt").write_text(
        "# comment\n\n/rgb/a2.png /depth/a2.png 518.8579\nrgb/a0.png None 518.8\nrgb/a1.png depth/a1.png 518.8"
    )
    made[1]["image"] = "train/{image}"
    made[1]["depth"]["file"] = "train/{depth}"
    made[1]["splits"] = {"train": {"list": "list.txt", "columns": ["image", "depth"]}}
    source = opened(made, read="depth")
    assert [source.item_id(i) for i in range(len(source))] == ["train/rgb/a2", "train/rgb/a1"]
    del made[1]["label"]
    made[1]["splits"]["train"]["columns"] = ["image", "nothing"]
    refused(made, "{depth}", "split 'train' does not define")
    made[1]["splits"]["train"]["columns"] = ["image", "depth", "focal", "more"]
    refused(made, "list.txt, line 3", "3 columns, expected 4")


def test_list_beside_a_description_that_lies_apart(made, tmp_path_factory):
    apart = tmp_path_factory.mktemp("apart")
    (apart / "mine.txt").write_text("a1\n")
    made[1]["root"] = str(made[0])
    made[1]["splits"] = {"train": {"list": "mine.txt"}}
    (apart / "dataset.json").write_text(json.dumps(made[1]))
    assert Folder(apart, "train").item_id(0) == "a1"
    made[1]["root"] = f"../{made[0].name}"
    shutil.copytree(made[0], apart.parent / "copy_of_data")
    made[1]["root"] = "../copy_of_data"
    (apart / "other.json").write_text(json.dumps(made[1]))
    assert len(Folder(apart / "other.json", "train")) == 1


def test_missing_list_and_glob_below_subfolders(made):
    made[1]["splits"]["train"] = {"list": "nowhere.txt"}
    refused(made, "splits.train", "list file not found", "nowhere.txt")
    write(made[0] / "deep/x/y/i.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    made[1].update({"image": "deep/{id}.png", "splits": {"train": {"glob": "**/*"}}})
    assert opened(made, read=()).item_id(0) == "x/y/i"


# What users get wrong


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


# The registry


def test_registry_errors(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'nyuu'.*did you mean 'nyu'.*known: .*kitti"):
        sources.open_source("nyuu", split="train")
    with pytest.raises(UserError, match=r"data not found: nyu; expected .*nyu.dataset\.json.*Your own data"):
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
    assert set(sources.DESCRIBED) < set(sources.DATASETS)
    assert all(member in sources.DATASETS for members in sources.MIXTURES.values() for member in members)


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
