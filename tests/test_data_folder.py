"""Folder sources: every image, depth and label format, and lists, on small sets written here."""

import json
import shutil

import cv2
import numpy as np
import pytest
from folder_set import HEIGHT, WIDTH, label_of, opened, refused, write
from PIL import Image

from jdepth.data.sources.folder import Folder
from jdepth.errors import UserError


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_invalid_values_are_compared_as_they_are_stored(made, dtype):
    """9.99 rounded to float32 is another number than 9.99; the largest float64 is no float32."""
    stored = np.full((HEIGHT, WIDTH), 2, dtype)
    stored[0, :3] = 9.99, 0.1, np.finfo(dtype).max
    for number in range(3):
        write(made[0] / f"train/depth/a{number}.npy", stored)
    invalid = [9.99, 0.1] + ([] if dtype == np.float64 else [float(np.finfo(dtype).max)])
    made[1]["depth"] = {"file": "train/depth/{id}.npy", "scale": 1, "invalid": invalid}
    depth = opened(made)[0]["depth"]
    assert not depth[0, :3].any() and np.count_nonzero(depth == 2) == HEIGHT * WIDTH - 3


def test_no_invalid_value_lets_zero_be_a_depth(made):
    for number in range(3):
        write(made[0] / f"train/depth/a{number}.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    made[1]["depth"] = {"file": "train/depth/{id}.png", "formula": "(v + 0.5) / 10", "invalid": []}
    np.testing.assert_allclose(opened(made)[0]["depth"], 0.05, rtol=1e-6)


# Labels


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


def test_labels_map_of_255_and_beyond_16_bits(made):
    np.testing.assert_array_equal(label_of(made, np.uint8([0, 255]), map={"0": 0, "255": 1}), [0, 1])
    for number in range(3):
        write(made[0] / f"train/label/a{number}.npy", np.resize(np.int32([-1, 7, 70000]), (HEIGHT, WIDTH)))
    made[1]["label"] |= {"file": "train/label/{id}.npy", "map": {"7": 2, "other": None}}
    np.testing.assert_array_equal(opened(made)[0]["label"][0, :3], [255, 2, 255])


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


def test_a_byte_order_mark_is_no_part_of_a_name(made):
    path = opened(made)._description.path
    path.write_text(path.read_text(), encoding="utf-8-sig")
    (made[0] / "l.txt").write_text("a1\n", encoding="utf-8-sig")
    fields = json.loads(path.read_text(encoding="utf-8-sig"))
    fields["splits"]["train"] = {"list": "l.txt"}
    path.write_text(json.dumps(fields), encoding="utf-8-sig")
    assert Folder(path, "train").item_id(0) == "a1"


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
