"""TFDS's own prepared copy of NYU Depth v2, written here as its builder writes it, read without TensorFlow."""

import json
import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
from tiny_config import ROOT

from jdepth.data import sources
from jdepth.data.sources.nyu_tfds import NyuTfds
from jdepth.errors import BadItem, UserError

COUNTS = {"train": 3, "validation": 2}


@pytest.fixture
def copy(tmp_path):
    """(folder of a copy, its expected items by split: (H, W, 3) uint8 RGB and (H, W) float32 metres)."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(480, 640, 3)),
            "depth": tfds.features.Tensor(shape=(480, 640), dtype=np.float16),
        }
    )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    folder, rng, expected = tmp_path / "nyu_depth_v2/0.0.1", np.random.default_rng(0), {}
    folder.mkdir(parents=True)
    for split, count in COUNTS.items():
        path = folder / f"nyu_depth_v2-{split}.array_record-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        expected[split] = []
        for _ in range(count):
            image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
            metres = rng.integers(0, 1280, (480, 640)) / 128  # what float16 holds exactly below 16 m
            stored = metres.astype(np.float16)
            stored[0, :3], metres[0, :3] = (np.nan, np.inf, -1), 0
            encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
            writer.write(serializer.serialize_example(features.encode_example({"image": encoded, "depth": stored})))
            expected[split].append((image, metres.astype(np.float32)))
        writer.close()
    infos = [tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in COUNTS.items()]
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=infos, check_data=False)
    return folder, expected


def changed(folder, **fields):
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(call, *parts, kind=UserError):
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


@pytest.mark.parametrize("split", COUNTS)
def test_items(copy, split):
    folder, expected = copy
    source = NyuTfds(split, path=folder)
    assert len(source) == COUNTS[split] and source.classes == () and source.name == "nyu_tfds"
    assert [source.item_id(i) for i in range(len(source))] == [f"{split}/{i:05d}" for i in range(COUNTS[split])]
    for index, (image, metres) in enumerate(expected[split]):
        item = source[index]
        np.testing.assert_array_equal(item["image"], image, strict=True)
        np.testing.assert_array_equal(item["depth"], metres, strict=True)
    with pytest.raises(IndexError):
        source[len(source)]


def test_where_it_is_looked_for(copy):
    folder, _ = copy
    for path in (folder, folder.parent, folder.parent.parent, str(folder)):
        assert len(NyuTfds("train", path=path)) == 3
    assert len(NyuTfds("train", data_dir=folder.parent.parent)) == 3
    assert len(sources.open_source("nyu_tfds", split="train", data_dir=folder.parent.parent)) == 3


def test_images_alone(copy):
    folder, expected = copy
    item = NyuTfds("validation", path=folder, read=())[1]
    assert set(item) == {"image"}
    np.testing.assert_array_equal(item["image"], expected["validation"][1][0])
    refused(lambda: NyuTfds("train", path=folder, read=("label",)), "has no label")


def test_goes_to_another_process(copy):
    folder, expected = copy
    source = pickle.loads(pickle.dumps(NyuTfds("train", path=folder)))
    np.testing.assert_array_equal(source[2]["depth"], expected["train"][2][1])


def test_needs_neither_tensorflow_nor_jax(copy):
    code = f"""
import sys
from jdepth.data.sources.nyu_tfds import NyuTfds
NyuTfds("train", path={str(copy[0])!r})[0]
assert not {{"tensorflow", "torch", "jax"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_tfrecord_copy(copy):
    folder, _ = copy
    changed(folder, fileFormat="tfrecord")
    for path in folder.glob("*.array_record-*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    command = f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
    refused(lambda: NyuTfds("train", path=folder), folder, "stored as tfrecord", command)


def test_copy_in_both_formats(copy):
    """What the conversion leaves in the folder of the copy."""
    folder, expected = copy
    changed(folder, fileFormat="tfrecord", alternativeFileFormats=["array_record"])
    np.testing.assert_array_equal(NyuTfds("train", path=folder)[0]["depth"], expected["train"][0][1])


def test_no_copy(tmp_path):
    refused(lambda: NyuTfds("train", data_dir=tmp_path), tmp_path / "nyu_depth_v2/0.0.1", "tfds build nyu_depth_v2")
    assert not any(tmp_path.iterdir())


def test_other_content(copy):
    folder, _ = copy
    refused(lambda: NyuTfds("test", path=folder), folder, "no split 'test'", "train, validation")
    changed(folder, name="mnist")
    refused(lambda: NyuTfds("train", path=folder), folder, "holds 'mnist'")
    (folder / "dataset_info.json").write_text("{")
    refused(lambda: NyuTfds("train", path=folder), folder)


def test_damage(copy):
    folder, _ = copy
    (path,) = folder.glob("*-train.*")
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[len(data) // 6 : len(data) // 6 + 100] = bytes(100)
    path.write_bytes(damaged)
    refused(lambda: NyuTfds("train", path=folder)[0], folder, "train/00000", kind=BadItem)
    path.write_bytes(data[: len(data) // 2])
    refused(lambda: NyuTfds("train", path=folder)[0], folder)
    path.unlink()
    refused(lambda: NyuTfds("train", path=folder)[0], folder)
