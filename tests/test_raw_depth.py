"""Data sets with depth in their original layout: which items there are, what they read as, and what is refused."""

import pickle

import cv2
import numpy as np
import pytest
import scipy.io
from raw_depth_trees import LAYOUTS, TREES, cells, write_16_bits
from raw_trees import refused

from jdepth.data import raw_folder
from jdepth.data.sources import raw_set, sun_rgbd, taskonomy
from jdepth.data.sources.raw import Item

ALL = TREES | LAYOUTS
FILES = [name for name in TREES if name not in ("nyu_labelled", "sun37")]
# Where depth is a PNG, its file is found by this pattern below the raw folder.
PNGS = {
    "nyu": "**/sync_depth_00010.png",
    "sun": "**/NYU0003/depth/*.png",
    "matterport": "17DRP5sb8fy/**/*_d0_5.png",
    "taskonomy": "depth_zbuffer/**/arona/point_0_*.png",
    "kitti": "train/2011_09_26_drive_0001*/**/*.png",
}


def opened(name, root):
    """(the raw set, its expected splits) of a tree that is built below `root`."""
    return raw_set(name.split()[0]), ALL[name](root)


def first(name, root, split="train"):
    """(the raw set, the split's first item, what it must read as)."""
    found, splits = opened(name, root)
    item = found.items(root, split)[0]
    return found, item, splits[split][item.id]


def depth_file(name, root):
    """(the raw set, its first training item, the PNG of its depth)."""
    found, item, _ = first(name, root)
    (path,) = root.glob(PNGS[name])
    return found, item, path


def matches(found, item, expected):
    read = found.read(item)
    image = cv2.imdecode(np.frombuffer(read["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(image, expected.image)
    assert read[found.kind].dtype == found.dtype
    if found.kind == "depth":
        metres = np.divide(read["depth"], np.float32(found.per_metre), dtype=np.float32)
        np.testing.assert_array_equal(metres, expected.values, strict=True)
    else:
        np.testing.assert_array_equal(read["label"], expected.values, strict=True)


@pytest.mark.parametrize("name", ALL)
def test_items_and_values(name, tmp_path):
    found, splits = opened(name, tmp_path)
    assert found.name == name.split()[0] and set(splits) == set(found.counts)
    for split, expected in splits.items():
        items = raw_folder.items(found, tmp_path, split)
        assert [item.id for item in items] == [*expected] and len(items) >= 3
        for item in items:
            assert item.id.isprintable() and " " not in item.id
            matches(found, item, expected[item.id])


@pytest.mark.parametrize("name", ALL)
def test_work_in_another_process(name, tmp_path):
    found, splits = opened(name, tmp_path)
    split = [*found.counts][-1]
    copy = pickle.loads(pickle.dumps(found))
    item = pickle.loads(pickle.dumps(copy.items(tmp_path, split)[-1]))
    matches(copy, item, splits[split][item.id])


@pytest.mark.parametrize("name", ALL)
def test_facts(name):
    found = raw_set(name.split()[0])
    for text in (found.title, found.source, found.terms, found.download, found.note):
        assert text and "\n" not in text
    assert bool(found.per_metre) == bool(found.farthest) != bool(found.classes)


@pytest.mark.parametrize("name", FILES)
def test_image_files_stay_as_they_are(name, tmp_path):
    found, item, _ = first(name, tmp_path)
    files = {path.read_bytes() for suffix in ("jpg", "png") for path in tmp_path.glob(f"**/*.{suffix}")}
    assert found.read(item)["image"] in files


@pytest.mark.parametrize("name", PNGS)
def test_truncated_depth(name, tmp_path):
    found, item, path = depth_file(name, tmp_path)
    data = path.read_bytes()
    for length in (0, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refused(lambda: found.read(item), path)


@pytest.mark.parametrize("name", PNGS)
def test_depth_of_8_bits(name, tmp_path):
    found, item, path = depth_file(name, tmp_path)
    assert cv2.imwrite(str(path), np.full((15, 17), 9, np.uint8))
    refused(lambda: found.read(item), path, "uint8", "expected 16-bit")


@pytest.mark.parametrize("name", PNGS)
def test_image_and_depth_swapped(name, tmp_path):
    found, item, path = depth_file(name, tmp_path)
    assert cv2.imwrite(str(path), np.zeros((15, 17, 3), np.uint8))
    refused(lambda: found.read(item), path, "one channel")


@pytest.mark.parametrize("name", PNGS)
def test_depth_that_is_not_there(name, tmp_path):
    found, item, path = depth_file(name, tmp_path)
    path.unlink()
    refused(lambda: found.read(item), path.parent if name == "sun" else path)


@pytest.mark.parametrize(
    "name, file, parts",
    [
        ("nyu", "nyu_train.txt", ["copy nyu_train.txt", "cleinc/bts", "Monocular-Depth-Estimation-Toolbox"]),
        ("kitti", "kitti_eigen_train.txt", ["copy kitti_eigen_train.txt", "Monocular-Depth-Estimation-Toolbox"]),
        ("matterport", "scenes_train.txt", ["copy scenes_train.txt", "niessner/Matterport"]),
        ("taskonomy", "train_val_test_full.csv", ["EPFL-VILAB/omnidata"]),
        ("nyu_labelled", "splits.mat", ["file not found"]),
        ("sun", "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat", ["file not found"]),
        ("sun37", "SUNRGBDtoolbox/Metadata/SUNRGBDMeta.mat", ["file not found"]),
    ],
)
def test_missing_list_file(name, file, parts, tmp_path):
    found, _ = opened(name, tmp_path)
    (tmp_path / file).unlink()
    refused(lambda: found.items(tmp_path, "train"), tmp_path / file, *parts)


@pytest.mark.parametrize("name", ["nyu", "kitti"])
def test_list_of_other_content(name, tmp_path):
    found, _ = opened(name, tmp_path)
    path = tmp_path / {"nyu": "nyu_train.txt", "kitti": "kitti_eigen_train.txt"}[name]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "one_word"]))
    refused(lambda: found.items(tmp_path, "train"), f"{path}, line {len(lines) + 1}")
    path.write_bytes(b"\xff\xfe\x00")
    refused(lambda: found.items(tmp_path, "train"), path)
    path.write_text("elsewhere/image.jpg elsewhere/depth.png 1.0\n")
    refused(lambda: found.items(tmp_path, "train"), tmp_path, "elsewhere")
    path.write_text("")
    assert not found.items(tmp_path, "train")


def test_kitti_without_a_drives_depth(tmp_path):
    found, _ = opened("kitti", tmp_path)
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    refused(lambda: found.items(tmp_path, "test"), "2011_09_26_drive_0002_sync", "gt_depth/, train/, val/", "unpack")
    assert found.items(tmp_path, "train")


def test_matterport_without_a_house(tmp_path):
    found, _ = opened("matterport", tmp_path)
    (tmp_path / "17DRP5sb8fy").rename(tmp_path / "elsewhere")
    refused(lambda: found.items(tmp_path, "train"), tmp_path / "17DRP5sb8fy", "scenes_train.txt")
    assert found.items(tmp_path, "val")


def test_taskonomy_subsets(tmp_path):
    found, splits = opened("taskonomy", tmp_path)
    full = tmp_path / "train_val_test_full.csv"
    full.rename(tmp_path / "train_val_test_tiny.csv")
    assert len(found.items(tmp_path, "train")) == len(splits["train"])
    (tmp_path / "train_val_test_medium.csv").write_text("id,train,val,test\nihlen,1,0,0\n")
    refused(lambda: found.items(tmp_path, "train"), full)
    full.write_text("id,train,val,test\nihlen,1,0,0\nhanson,0,0,1\n")
    assert [item.id for item in found.items(tmp_path, "train")] == [*splits["test"]]
    full.write_text("id,train,val,test\nairport,1,0,0\n")
    refused(lambda: found.items(tmp_path, "train"), tmp_path / "rgb/taskonomy/airport", full.name)
    full.write_text("building train\n")
    refused(lambda: found.items(tmp_path, "train"), full, "id,train,val,test")


def test_taskonomy_items_take_little_memory(tmp_path):
    folder = tmp_path / "rgb/taskonomy/hanson"
    folder.mkdir(parents=True)
    for view in range(300):
        (folder / f"point_{view // 7}_view_{view % 7}_domain_rgb.png").touch()
    views = taskonomy.Views(tmp_path, ["hanson"])
    assert len(pickle.dumps(views)) < 300 * 8 + 2000
    assert len({item.id for item in views}) == len(views) == 300
    assert views[-1] == views[299] and views[:2] == [views[0], views[1]]
    with pytest.raises(IndexError):
        views[300]


def test_taskonomy_mask(tmp_path):
    found, item, _ = first("taskonomy", tmp_path)
    mask = item.place["mask"]
    assert cv2.imwrite(str(mask), np.full((3, 5), 255, np.uint8))
    refused(lambda: found.read(item), mask, "another size")
    mask.unlink()
    refused(lambda: found.read(item), mask)


@pytest.mark.parametrize("name", ["diode_indoor", "diode_outdoor"])
def test_diode_mask(name, tmp_path):
    found, item, _ = first(name, tmp_path)
    np.save(item.place["mask"], np.ones((3, 5), np.float32))
    refused(lambda: found.read(item), item.place["mask"], "another size")
    data = item.place["depth"].read_bytes()
    item.place["depth"].write_bytes(data[:-9])
    refused(lambda: found.read(item), item.place["depth"])


def test_sun_frame_with_other_files(tmp_path):
    found, item, path = depth_file("sun", tmp_path)
    path.with_name("second.png").write_bytes(path.read_bytes())
    refused(lambda: found.read(item), path.parent, "expected one .png file, found 2")
    path.parent.rename(path.parent.with_name("depth_away"))
    refused(lambda: found.read(item), path.parent, "cannot be looked into")


def test_sun_bits(tmp_path):
    """Every millimetre that 16 bits hold, from what the provider stores for it."""
    millimetres = np.arange(1 << 16)
    stored = [int(f"{bits[3:]}{bits[:3]}", 2) for bits in (f"{value:016b}" for value in millimetres)]
    assert stored[1000] == 8000
    write_16_bits(tmp_path / "depth/a.png", np.reshape(stored, (256, 256)))
    (tmp_path / "image").mkdir()
    assert cv2.imwrite(str(tmp_path / "image/a.jpg"), np.zeros((256, 256, 3), np.uint8))
    read = sun_rgbd.read(Item("a", {"folder": tmp_path}))
    np.testing.assert_array_equal(read["depth"].ravel(), np.minimum(millimetres, 8000))


def test_sun_paths_of_another_form(tmp_path):
    found, _ = opened("sun", tmp_path)
    path = tmp_path / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    texts = ["/data/SUNRGBD/kv1//NYUdata/NYU0003/", "/data/SUNRGBD/kv2/a frame"]
    scipy.io.savemat(path, {"alltrain": cells(texts).T})
    assert [item.id for item in found.items(tmp_path, "train")] == ["kv1/NYUdata/NYU0003", "kv2/a_frame"]
    for bad in (cells(["/data/elsewhere/kv1"]), np.arange(3), np.array([["a", "b"]], object)[:, :0]):
        scipy.io.savemat(path, {"alltrain": bad})
        refused(lambda: found.items(tmp_path, "train"), path)


def test_sun_small_copy_with_moved_numbers(tmp_path):
    found, _ = opened("sun37 small", tmp_path)
    for path in sorted((tmp_path / "SUNRGBD-train_images").iterdir()):
        path.rename(path.with_name(path.name.replace("00000", "00505")))
    refused(lambda: found.items(tmp_path, "train"), "img-005051.jpg: expected img-000001.jpg")


def test_real_sun_depth(samples, tmp_path):
    """Real Kinect v2 frames in the provider's folders: bits rotated by plain arithmetic, and depths of a room."""
    folder = samples / "rgbd/sunrgbd_kv2"
    if not folder.is_dir():
        pytest.skip("no sample of SUN RGB-D among the real sample data")
    for number in range(1, 9):
        frame = tmp_path / f"kv2/{number}"
        for kind in ("image", "depth"):
            (frame / kind).mkdir(parents=True)
        stored = cv2.imread(str(folder / f"depth_raw/{number:06d}.png"), cv2.IMREAD_UNCHANGED)
        write_16_bits(frame / "depth/a.png", stored)
        assert cv2.imwrite(str(frame / "image/b.jpg"), cv2.imread(str(folder / f"color/{number:04d}.png")))
        depth = sun_rgbd.read(Item("a", {"folder": frame}))["depth"]
        wide = stored.astype(np.int64)
        millimetres = wide // 8 + wide % 8 * 8192
        np.testing.assert_array_equal(depth, np.minimum(millimetres, 8000))
        assert 400 < depth[depth > 0].min() and 1000 < np.median(depth[depth > 0]) < 6000
        assert (wide % 8 != 0).any() or millimetres.max() < 8192


def test_real_sun_depth_of_another_sensor(samples, tmp_path):
    folder = samples / "rgbd/open3d_other_formats"
    if not folder.is_dir():
        pytest.skip("no sample of other formats among the real sample data")
    for kind, name in (("image", "SUN_color.jpg"), ("depth", "SUN_depth.png")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / name).write_bytes((folder / name).read_bytes())
    read = sun_rgbd.read(Item("a", {"folder": tmp_path}))
    stored = cv2.imread(str(folder / "SUN_depth.png"), cv2.IMREAD_UNCHANGED).astype(np.int64)
    np.testing.assert_array_equal(read["depth"], np.minimum(stored // 8 + stored % 8 * 8192, 8000))
    assert 500 < np.median(read["depth"][read["depth"] > 0]) < 8000
    assert read["image"] == (folder / "SUN_color.jpg").read_bytes()


@pytest.mark.parametrize("line", ["hanson,1,0", "hanson,1,0,yes", ",1,0,0"])
def test_a_wrong_line_of_taskonomys_list_is_named(line, tmp_path):
    found, _ = opened("taskonomy", tmp_path)
    path = tmp_path / "train_val_test_full.csv"
    path.write_text(path.read_text().replace("\r", "\n") + f"\n\n{line}\n")
    number = len(path.read_text().splitlines())
    refused(lambda: found.items(tmp_path, "train"), path, f"line {number}:", "0 or 1")
