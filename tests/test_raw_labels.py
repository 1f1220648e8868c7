"""Labelled data sets in their original layout: which items there are, what they read as, and what is refused."""

import pickle
import shutil

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image
from raw_label_trees import TREES, write_context, write_grey, write_palette, write_sbd
from raw_trees import refused

from jdepth.data import raw_folder
from jdepth.data.sources import raw_set


def opened(name, root):
    """(the raw set, its expected splits) of a tree that is built below `root`."""
    return raw_set(name.removesuffix(" (mat)")), TREES[name](root)


def first(name, root, split="train"):
    """(the raw set, the split's first item, what it must read as)."""
    found, splits = opened(name, root)
    item = found.items(root, split)[0]
    return found, item, splits[split][item.id]


def matches(item, expected):
    image = cv2.imdecode(np.frombuffer(item["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(image, expected.image)
    assert item["label"].dtype == np.uint8
    np.testing.assert_array_equal(item["label"], expected.values)


@pytest.mark.parametrize("name", TREES)
def test_items_and_values(name, tmp_path):
    found, splits = opened(name, tmp_path)
    assert found.kind == "label" and set(splits) == set(found.counts)
    for split, expected in splits.items():
        items = raw_folder.items(found, tmp_path, split)
        assert [item.id for item in items] == [*expected] and len(items) >= 3
        for item in items:
            assert item.id.isprintable() and not set(item.id) & set(" /")
            matches(found.read(item), expected[item.id])


@pytest.mark.parametrize("name", TREES)
def test_every_train_id_has_a_class(name, tmp_path):
    """The trees hold all ids of their sets but Pascal Context's original ones."""
    found, splits = opened(name, tmp_path)
    values = np.unique(np.concatenate([item.values.ravel() for split in splits.values() for item in split.values()]))
    known = [*range(len(found.classes))]
    if name == "context59 (mat)":
        assert set(values) - {255} <= set(known)
    else:
        assert [*values[values < 255]] == known


@pytest.mark.parametrize("name", TREES)
def test_work_in_another_process(name, tmp_path):
    found, splits = opened(name, tmp_path)
    copy = pickle.loads(pickle.dumps(found))
    item = pickle.loads(pickle.dumps(copy.items(tmp_path, "val")[0]))
    matches(copy.read(item), splits["val"][item.id])


def test_grey_photographs_stay_as_they_are(tmp_path):
    found, _ = opened("coco_stuff", tmp_path)
    modes = [Image.open(item.place["image"]).mode for item in found.items(tmp_path, "train")]
    assert modes == ["RGB", "L", "RGB"]


@pytest.mark.parametrize(
    "images, maps",
    [
        ("images", "annotations"),
        ("images", "stuffthingmaps"),
        (".", "stuffthingmaps"),
        ("images", "stuffthingmaps_trainval2017"),
        ("images", "."),
    ],
)
def test_layouts_of_coco_stuff(images, maps, tmp_path):
    found, splits = opened("coco_stuff", tmp_path)
    if maps != ".":
        (tmp_path / "stuffthingmaps_trainval2017").rename(tmp_path / maps)
    (tmp_path / images).mkdir(exist_ok=True)
    if images != ".":
        for split in ("train2017", "val2017"):
            (tmp_path / split).rename(tmp_path / images / split)
    if maps == ".":
        for split in ("train2017", "val2017"):
            (tmp_path / "stuffthingmaps_trainval2017" / split).rename(tmp_path / split)
    for split in splits:
        for item in found.items(tmp_path, split):
            matches(found.read(item), splits[split][item.id])


def test_folders_of_coco_stuff_are_named(tmp_path):
    found, _ = opened("coco_stuff", tmp_path)
    (tmp_path / "stuffthingmaps_trainval2017").rename(tmp_path / "maps")
    refused(lambda: found.items(tmp_path, "val"), tmp_path, "stuffthingmaps/val2017", "annotations/val2017")
    (tmp_path / "val2017").rename(tmp_path / "val")
    refused(lambda: found.items(tmp_path, "val"), tmp_path, "val2017 or images/val2017", "unpack val2017.zip")


def test_original_labels_of_context_beside_voc(tmp_path):
    found, splits = opened("context59 (mat)", tmp_path)
    (tmp_path / "VOCdevkit/VOC2010/trainval").rename(tmp_path / "trainval")
    for item in found.items(tmp_path, "train"):
        matches(found.read(item), splits["train"][item.id])
    shutil.rmtree(tmp_path / "trainval")
    refused(lambda: found.items(tmp_path, "train"), "SegmentationClassContext or", "unpack trainval.tar.gz")


def test_lists_of_context(tmp_path):
    """The converter's list counts where it is there; without any, the archive's is named."""
    found, splits = opened("context59 (mat)", tmp_path)
    lists = tmp_path / "VOCdevkit/VOC2010/ImageSets"
    (lists / "SegmentationContext").mkdir()
    (lists / "SegmentationContext/val.txt").write_text("2008_000003\n")
    assert [item.id for item in found.items(tmp_path, "val")] == ["2008_000003"]
    assert [item.id for item in found.items(tmp_path, "train")] == [*splits["train"]]
    shutil.rmtree(lists)
    refused(lambda: found.items(tmp_path, "val"), lists / "Main/val.txt")


@pytest.mark.parametrize(
    "name, split, list_file",
    [
        ("voc21", "train", "benchmark_RELEASE/dataset/train.txt"),
        ("voc21", "val", "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"),
        ("voc21_train", "train", "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt"),
        ("voc21_trainaug", "train", "benchmark_RELEASE/dataset/val.txt"),
    ],
)
def test_missing_list(name, split, list_file, tmp_path):
    found, _ = opened(name, tmp_path)
    (tmp_path / list_file).unlink()
    refused(lambda: found.items(tmp_path, split), tmp_path / list_file)
    wanted = list_file, "benchmark.tgz" if "SBD" in found.source else "VOC"
    refused(lambda: raw_folder.items(found, tmp_path, split), *wanted)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("kind", ["image", "label"])
def test_missing_file(name, kind, tmp_path):
    found, item, _ = first(name, tmp_path)
    path = item.place[kind]
    path.unlink()
    refused(lambda: found.read(item), path, "" if path.suffix == ".mat" else "not found")


@pytest.mark.parametrize(
    "name, split, write, value",
    [
        ("ade20k", "train", write_grey, 151),
        ("ade20k", "val", write_grey, 255),
        ("cityscapes34", "train", write_grey, 34),
        ("cityscapes19", "val", write_grey, 200),
        ("coco_stuff", "train", write_grey, 11),
        ("coco_stuff", "val", write_grey, 90),
        ("coco_stuff", "val", write_grey, 182),
        ("voc21", "val", write_palette, 21),
        ("voc21", "train", write_sbd, 21),
        ("voc21_trainaug", "train", write_palette, 254),
        ("context59", "train", write_grey, 60),
        ("context59 (mat)", "val", write_context, 460),
        ("context59 (mat)", "val", write_context, 65535),
    ],
)
def test_value_that_is_no_id(name, split, write, value, tmp_path):
    found, item, expected = first(name, tmp_path, split)
    ids = np.ones(expected.values.shape, int)
    ids[3, 5] = value
    write(item.place["label"], ids)
    refused(lambda: found.read(item), item.place["label"], f"value {value}")


@pytest.mark.parametrize("name", [name for name in TREES if name not in ("voc21", "context59 (mat)")])
def test_colours_instead_of_ids(name, tmp_path):
    found, item, _ = first(name, tmp_path)
    path = item.place["label"]
    Image.open(path).convert("RGB").save(path)
    refused(lambda: found.read(item), path, "one channel")


@pytest.mark.parametrize("name", [name for name in TREES if name != "context59 (mat)"])
def test_palette_or_grey_is_all_the_same(name, tmp_path):
    """Decoders differ in what they make of a palette; only the indices count."""
    found, item, expected = first(name, tmp_path, "val")
    path = item.place["label"]
    with Image.open(path) as image:
        ids = np.asarray(image)
    for write in (write_grey, write_palette):
        write(path, ids)
        matches(found.read(item), expected)


@pytest.mark.parametrize("name", ["ade20k", "cityscapes34", "coco_stuff", "voc21_train", "context59"])
def test_label_of_16_bits(name, tmp_path):
    found, item, expected = first(name, tmp_path)
    path = item.place["label"]
    with Image.open(path) as image:
        ids = np.asarray(image).astype(np.uint16)
    assert cv2.imwrite(str(path), ids)
    matches(found.read(item), expected)
    ids[0, 0] = 1000
    assert cv2.imwrite(str(path), ids)
    refused(lambda: found.read(item), path, "value 1000")


@pytest.mark.parametrize("name", TREES)
def test_truncated_label(name, tmp_path):
    found, item, expected = first(name, tmp_path)
    path = item.place["label"]
    data = path.read_bytes()
    for length in range(0, len(data) - 4, 11 if path.suffix == ".mat" else 50):
        path.write_bytes(data[:length])
        refused(lambda: found.read(item), path)


def mat(name, root):
    """(the raw set, an item with a MATLAB label, what it must read as, write it with another array)."""
    found, item, expected = first(name, root)
    path = item.place["label"]

    def write(ids, variable=None, field=None):
        held = {field or "Segmentation": ids} if name == "voc21" else ids
        scipy.io.savemat(path, {variable or ("GTcls" if name == "voc21" else "LabelMap"): held})

    return found, item, expected, write


MATS = pytest.mark.parametrize("name", ["voc21", "context59 (mat)"])


@MATS
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_matlab_label_of_another_type(name, dtype, tmp_path):
    found, item, expected, write = mat(name, tmp_path)
    stored = np.where(np.arange(expected.values.size) % 2, 2, 9).reshape(expected.values.shape)
    wanted = stored if name == "voc21" else np.where(stored == 2, 0, 1)
    write(stored.astype(dtype))
    label = found.read(item)["label"]
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, wanted)


@MATS
def test_matlab_label_that_is_no_map(name, tmp_path):
    found, item, _, write = mat(name, tmp_path)
    path = item.place["label"]
    for ids in (np.full((5, 7), 1.5), np.full((5, 7), np.nan), np.ones((5, 7, 3), np.uint8), "text", np.array([{}])):
        write(ids)
        refused(lambda: found.read(item), path, "expected (height, width) whole numbers")
    write(np.full((5, 7), -1.0))
    refused(lambda: found.read(item), path, "outside 0..65535")


@MATS
def test_matlab_file_of_other_content(name, tmp_path):
    found, item, _, write = mat(name, tmp_path)
    path = item.place["label"]
    ids = np.ones((5, 7), np.uint8)
    write(ids, variable="GTinst")
    refused(lambda: found.read(item), path, "no variable 'GTcls'" if name == "voc21" else "no variable 'LabelMap'")
    if name == "voc21":
        write(ids, field="Boundaries")
        refused(lambda: found.read(item), path, "has no GTcls.Segmentation")
        scipy.io.savemat(path, {"GTcls": ids})
        refused(lambda: found.read(item), path, "has no GTcls.Segmentation")
    path.write_text("a page that says: not found")
    refused(lambda: found.read(item), path)
    # The header of version 7.3, which is HDF5.
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" + bytes(512))
    refused(lambda: found.read(item), path, "7.3")


def test_ade20k_sample(samples, tmp_path):
    """Two real images of the validation split."""
    folder = samples / "seg/ade20k_sample"
    if not folder.is_dir():
        pytest.skip("no sample of ADE20K among the real sample data")
    found = raw_set("ade20k")
    for kind in ("images", "annotations"):
        shutil.copytree(folder / kind, tmp_path / f"ADEChallengeData2016/{kind}/validation")
    items = found.items(tmp_path, "val")
    assert [item.id for item in items] == ["ADE_val_00000001", "ADE_val_00000002"]
    for item in items:
        read = found.read(item)
        stored = np.asarray(Image.open(item.place["label"])).astype(int)
        image = cv2.imdecode(np.frombuffer(read["image"], np.uint8), cv2.IMREAD_COLOR)
        assert read["image"] == item.place["image"].read_bytes() and read["label"].shape == image.shape[:2]
        np.testing.assert_array_equal(read["label"], np.where(stored == 0, 255, stored - 1))
    # A house behind a lawn, under the sky; towers against the sky.
    lawn, towers = (np.array([*found.classes, ""])[np.minimum(found.read(item)["label"], 150)] for item in items)
    assert (lawn[5:40, 5:-5] == "sky").all() and (lawn[450:-5, 40:500] == "grass").mean() > 0.95
    assert (towers[5:20, 5:300] == "sky").all()
    assert (lawn == "building").mean() > 0.3 and (towers == "building").mean() > 0.2
    assert {*np.unique(lawn), *np.unique(towers)} <= {
        "", "wall", "building", "sky", "tree", "road", "grass", "plant", "earth"
    }  # fmt: skip
