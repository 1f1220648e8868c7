"""Folder sources on real files in many formats: decoded values against the formats' own definitions."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from jdepth.data import sources

DESCRIPTIONS = Path(__file__).parent / "descriptions"


@pytest.fixture
def opened(samples):
    return lambda name, split="val", **options: sources.open_source(
        "folder", split=split, path=DESCRIPTIONS / f"{name}.json", **options
    )


def test_nyuv2_labelled(opened, samples):
    train, val = opened("nyuv2_labelled", "train"), opened("nyuv2_labelled")
    assert (len(train), len(val)) == (240, 60)
    assert not {train.item_id(i) for i in range(240)} & {val.item_id(i) for i in range(60)}
    item, identity = train[5], train.item_id(5)
    folder = samples / "rgbd/nyuv2_labeled/train"
    stored = np.asarray(Image.open(folder / f"depth/{identity}.png")).astype(np.float64)
    np.testing.assert_allclose(item["depth"], (stored + 0.5) * 9.99547 / 255, rtol=1e-6)
    assert item["depth"].min() > 0.01
    ids = np.asarray(Image.open(folder / f"label40/{identity}.png"))
    np.testing.assert_array_equal(item["label"], np.where(ids == 39, 255, ids))
    assert item["image"].shape == (480, 640, 3) and len(train.classes) == 39
    assert np.abs(item["image"].astype(int) - np.asarray(Image.open(folder / f"rgb/{identity}.jpg"))).max() <= 3


def test_camvid(opened):
    train, val = opened("camvid", "train"), opened("camvid")
    assert (len(train), len(val)) == (66, 12)
    label = train[0]["label"]
    assert label.shape == (360, 480) and set(np.unique(label)) <= {*range(11), 255}


def test_sunrgbd_rotated_bits(opened, samples):
    source = opened("sunrgbd_kv2")
    stored = cv2.imread(str(samples / "rgbd/sunrgbd_kv2/depth_raw/000003.png"), cv2.IMREAD_UNCHANGED)
    index = [source.item_id(i) for i in range(len(source))].index("0003")
    depth = source[index]["depth"]
    # Where the three low bits are free, the rotation is a division by 8.
    plain = stored % 8 == 0
    assert plain.mean() > 0.9
    np.testing.assert_allclose(depth[plain], stored[plain] / 8000, rtol=1e-6)
    assert 0.2 < (depth == 0).mean() < 0.5 and 0.4 < depth[depth > 0].min() and depth.max() < 12


def test_tum(opened, samples):
    source = opened("tum")
    stored = cv2.imread(str(samples / "rgbd/tum_slambook2/1_depth.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_allclose(source[0]["depth"], stored / 5000, rtol=1e-6)


def test_7scenes(opened, samples):
    source = opened("7scenes")
    assert len(source) == 13
    stored = cv2.imread(str(samples / "rgbd/7scenes_tsdf/frame-000080.depth.png"), cv2.IMREAD_UNCHANGED)
    depth = source[1]["depth"]
    np.testing.assert_allclose(depth, np.where(stored == 65535, 0, stored) / 1000, rtol=1e-6)
    assert 0.3 < depth[depth > 0].min() and depth.max() < 10


def test_ade20k_zero_is_ignored(opened, samples):
    source = opened("ade20k_sample")
    stored = np.asarray(Image.open(samples / "seg/ade20k_sample/annotations/ADE_val_00000002.png")).astype(int)
    np.testing.assert_array_equal(source[1]["label"], np.where(stored == 0, 255, stored - 1))


def test_pfm_disparity(opened, samples):
    raw = (samples / "stereo/middlebury2014_Q/Motorcycle/disp0GT.pfm").read_bytes()
    disparity = np.frombuffer(raw.split(b"\n", 3)[3], "<f4").reshape(497, 741)[::-1].astype(np.float64)
    known = np.isfinite(disparity)
    depth = opened("motorcycle")[0]["depth"]
    assert not depth[~known].any()
    np.testing.assert_allclose(depth[known], 193.001 * 999.421 / (disparity[known] + 32.778) / 1000, rtol=1e-6)


def test_kitti_disparity(opened, samples):
    stored = cv2.imread(str(samples / "stereo/kitti2015/training/disp_occ_0/000046_10.png"), cv2.IMREAD_UNCHANGED)
    depth = opened("kitti2015")[0]["depth"]
    assert not depth[stored == 0].any()
    near = stored > 721.5377 * 0.54 * 256 / 79
    np.testing.assert_allclose(depth[near], 721.5377 * 0.54 / (stored[near] / 256.0), rtol=1e-6)


@pytest.mark.slow
def test_every_file_of_every_sample_decodes(opened):
    for path in DESCRIPTIONS.glob("*.json"):
        source = opened(path.stem)
        assert source.check() == len(source)
