"""Real photographs and depth put into the original layouts, prepared, and read back to their metres and classes."""

import shutil

import cv2
import numpy as np
import scipy.io
from prepared_set import run
from raw_depth_trees import cells

from jdepth.data import protocols, sources


def prepared(name, raw, split):
    assert run(name, "--raw", raw, "--out", raw.parent / "data") == 0
    return sources.open_source(name, split=split, data_dir=raw.parent / "data")


def listed(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_kitti_lidar_projected_into_the_image(samples, tmp_path):
    """Points through the published calibration; stored, as KITTI does, in 1/256 m."""
    place, raw = samples / "rgbd/kitti_object/training", tmp_path / "raw"
    lines = (place / "calib/000001.txt").read_text().split("\n")
    calibration = {k: np.array(v.split(), float) for k, v in (line.split(":") for line in lines if ":" in line)}
    points = np.fromfile(place / "velodyne/000001.bin", np.float32).reshape(-1, 4)[:, :3]
    homogeneous = np.c_[points, np.ones(len(points))].T
    to_camera = np.eye(4)
    to_camera[:3] = calibration["Tr_velo_to_cam"].reshape(3, 4)
    rectify = np.eye(4)
    rectify[:3, :3] = calibration["R0_rect"].reshape(3, 3)
    u, v, depth = calibration["P2"].reshape(3, 4) @ rectify @ to_camera @ homogeneous
    image = cv2.imread(str(place / "image_2/000001.png"))
    height, width = image.shape[:2]
    row, column = np.rint(v / depth).astype(int), np.rint(u / depth).astype(int)
    inside = (depth > 1) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    order = np.argsort(-depth[inside])  # the nearest point of a pixel is written last
    truth = np.zeros((height, width))
    truth[row[inside][order], column[inside][order]] = depth[inside][order]

    drive = "2011_09_26_drive_0001_sync"
    for folder, content in ((f"2011_09_26/{drive}/image_02/data", image),
                            (f"train/{drive}/proj_depth/groundtruth/image_02", np.rint(truth * 256))):  # fmt: skip
        (raw / folder).mkdir(parents=True)
        content = content if content.ndim == 3 else content.astype(np.uint16)
        assert cv2.imwrite(str(raw / folder / "0000000001.png"), content)
    line = f"2011_09_26/{drive}/image_02/data/0000000001.png {drive}/proj_depth/groundtruth/image_02/0000000001.png 721.5\n"
    for split in ("train", "test"):
        listed(raw / f"kitti_eigen_{split}.txt", line)
    item = prepared("kitti", raw, "test")[0]
    assert np.abs(item["depth"] - truth).max() <= 0.5 / 256 + 1e-6 and not item["depth"][truth == 0].any()
    assert 15_000 < (item["depth"] > 0).sum() < 25_000 and 60 < item["depth"].max() < 85
    kitti = protocols.protocol("kitti")
    image, depth = protocols.prepare(kitti, item["image"], item["depth"])
    assert image.shape == (352, 1216, 3) and protocols.valid_mask(kitti, depth).sum() > 5_000


def test_sun_kinect_2(samples, tmp_path):
    """Eight frames whose depth is stored with rotated bits."""
    place, raw = samples / "rgbd/sunrgbd_kv2", tmp_path / "raw"
    for sensor in ("kv1", "realsense", "xtion"):
        (raw / "SUNRGBD" / sensor).mkdir(parents=True)
    frames = {}
    for image in sorted((place / "color").glob("*.png")):
        frame = f"kv2/kinect2data/{image.stem}"
        for kind in ("image", "depth"):
            (raw / "SUNRGBD" / frame / kind).mkdir(parents=True)
        assert cv2.imwrite(str(raw / "SUNRGBD" / frame / "image/a.jpg"), cv2.imread(str(image)))
        depth = place / f"depth_raw/{int(image.stem):06d}.png"
        shutil.copy(depth, raw / "SUNRGBD" / frame / "depth/b.png")
        frames[frame] = cv2.imread(str(depth), cv2.IMREAD_UNCHANGED).astype(np.int64)
    (raw / "SUNRGBDtoolbox/traintestSUNRGBD").mkdir(parents=True)
    lists = {key: cells(f"/n/fs/sun3d/data/SUNRGBD/{frame}" for frame in frames) for key in ("alltrain", "alltest")}
    scipy.io.savemat(raw / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat", lists)
    source = prepared("sun", raw, "test")
    assert len(source) == len(frames) == 8
    for index in range(8):
        stored, item = frames[source.item_id(index)], source[index]
        millimetres = stored // 8 + stored % 8 * 8192
        np.testing.assert_array_equal(item["depth"], (np.minimum(millimetres, 8000) / 1000).astype(np.float32))
        assert item["image"].shape == (530, 730, 3) and 0.4 < item["depth"][item["depth"] > 0].min()


def test_ade20k(samples, tmp_path):
    place, raw = samples / "seg/ade20k_sample", tmp_path / "raw"
    root = raw / "ADEChallengeData2016"
    for split, part in (("training", "train"), ("validation", "val")):
        for kind, suffix in (("images", "jpg"), ("annotations", "png")):
            (root / kind / split).mkdir(parents=True)
            for number in (1, 2):
                shutil.copy(place / f"{kind}/ADE_val_0000000{number}.{suffix}",
                            root / kind / split / f"ADE_{part}_0000000{number}.{suffix}")  # fmt: skip
    source = prepared("ade20k", raw, "val")
    for index in range(2):
        stored = cv2.imread(str(place / f"annotations/ADE_val_0000000{index + 1}.png"), cv2.IMREAD_UNCHANGED).astype(int)
        np.testing.assert_array_equal(source[index]["label"], np.where(stored == 0, 255, stored - 1))
        present = {source.classes[i] for i in np.unique(source[index]["label"]) if i != 255}
        assert "building" in present or "wall" in present, present
