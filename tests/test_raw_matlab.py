"""Data sets in MATLAB files: the wrong version, other content and damage are told in one line that names the file."""

import numpy as np
import pytest
import scipy.io
from raw_depth_trees import TREES, cells, matlab_7_3
from raw_trees import refused

from jdepth.data.sources import matlab, raw_set
from jdepth.data.sources.raw import Item


@pytest.fixture(autouse=True)
def fresh():
    """These tests write files that a process would otherwise keep open."""
    yield
    matlab._file.cache_clear()


def opened(name, root):
    """(the raw set, its first training item) of a tree that is built below `root`."""
    found, _ = raw_set(name), TREES[name](root)
    return found, found.items(root, "train")[0]


def rewritten(path):
    """The file, empty and open for writing; readers shall see the new one."""
    matlab._file.cache_clear()
    return matlab_7_3(path)


def test_missing_variable_of_the_labelled_set(tmp_path):
    found, item = opened("nyu_labelled", tmp_path)
    scipy.io.savemat(tmp_path / "splits.mat", {"testNdxs": [[1]]})
    refused(lambda: found.items(tmp_path, "train"), tmp_path / "splits.mat", "'trainNdxs'")
    with rewritten(item.place["file"]) as file:
        file["depths"] = np.ones(3)
    refused(lambda: found.read(item), item.place["file"], "images")


def test_missing_variable_of_sun(tmp_path):
    found, _ = opened("sun37", tmp_path)
    toolbox = tmp_path / "SUNRGBDtoolbox"
    scipy.io.savemat(toolbox / "Metadata/SUNRGBDMeta.mat", {"SUNRGBDMeta": {"rgbname": "a.jpg"}})
    refused(lambda: found.items(tmp_path, "train"), "SUNRGBDMeta.mat", "'rgbpath'")
    scipy.io.savemat(toolbox / "Metadata/SUNRGBDMeta.mat", {"SUNRGBDMeta": 1})
    refused(lambda: found.items(tmp_path, "train"), "SUNRGBDMeta.mat", "'rgbpath'")
    scipy.io.savemat(toolbox / "traintestSUNRGBD/allsplit.mat", {"trainvalsplit": 1})
    for name in ("sun", "sun37"):
        refused(lambda: raw_set(name).items(tmp_path, "train"), "allsplit.mat" if name == "sun" else "SUNRGBDMeta.mat")


def test_older_file_where_7_3_is_expected(tmp_path):
    found, item = opened("nyu_labelled", tmp_path)
    path = item.place["file"]
    content = path.read_bytes()
    path.unlink()
    scipy.io.savemat(path, {"images": np.zeros((2, 2)), "rawDepths": np.zeros((2, 2))})
    refused(lambda: found.read(item), path, "MATLAB 7.3 file (HDF5)", "is it the right file")
    for length in (0, 600, len(content) // 2):
        path.write_bytes(content[:length])
        refused(lambda: found.read(item), path, "wholly downloaded")
    path.unlink()
    refused(lambda: found.read(item), "file not found", path)


def test_7_3_where_an_older_file_is_expected(tmp_path):
    found, _ = opened("nyu_labelled", tmp_path)
    path = tmp_path / "splits.mat"
    with matlab_7_3(path) as file:
        file["trainNdxs"] = [[1]]
    refused(lambda: found.items(tmp_path, "train"), path, "expected version 7 or older")
    path.write_text("a page that says: not found")
    refused(lambda: found.items(tmp_path, "train"), path, "download it again")
    path.write_bytes(b"")
    refused(lambda: found.items(tmp_path, "train"), path)


def test_labelled_frames_of_other_shapes(tmp_path):
    found, item = opened("nyu_labelled", tmp_path)
    refused(lambda: found.read(Item("x", {**item.place, "index": 99})), item.place["file"])
    with rewritten(item.place["file"]) as file:
        file["images"], file["rawDepths"] = np.zeros((6, 3, 8, 6), np.uint8), np.ones((6, 6, 8), np.float32)
    refused(lambda: found.read(item), item.place["file"], "shape (3, 8, 6)")
    with rewritten(item.place["file"]) as file:
        file["images/a"] = 1
    refused(lambda: found.read(item), item.place["file"])


def test_frames_are_numbered_from_one(tmp_path):
    found, _ = opened("nyu_labelled", tmp_path)
    for bad in ([[0], [3]], [[]], "text"):
        scipy.io.savemat(tmp_path / "splits.mat", {"trainNdxs": bad})
        refused(lambda: found.items(tmp_path, "train"), tmp_path / "splits.mat", "from 1")


def test_one_frame_is_read_at_a_time(tmp_path):
    """The file is kept open, and what is read of it is the frame alone."""
    found, item = opened("nyu_labelled", tmp_path)
    found.read(item)
    assert matlab._file.cache_info().currsize == 1
    found.read(item)
    assert matlab._file.cache_info().hits == 1


def test_segments_of_other_content(tmp_path):
    found, item = opened("sun37", tmp_path)
    path = item.place["label"]
    refused(lambda: found.read(Item("x", {**item.place, "index": 99})), path)
    for label, part in ((np.full((5, 7), 38), "value 38"), (np.ones(5), "no map"), (np.full((5, 7), 0.5), "no map")):
        with rewritten(path) as file:
            file["a"] = label
            file["SUNRGBD2Dseg/seglabel"] = [[file["a"].ref]] * 8
        refused(lambda: found.read(item), path, part)
    with rewritten(path) as file:
        file["SUNRGBD2Dseg/seglabel"] = np.ones((8, 1))
    refused(lambda: found.read(item), path)


def test_frame_that_the_toolbox_does_not_know(tmp_path):
    found, _ = opened("sun37", tmp_path)
    path = tmp_path / "SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat"
    scipy.io.savemat(path, {"alltrain": cells(["/n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU9999"])})
    refused(lambda: found.items(tmp_path, "train"), "SUNRGBDMeta.mat", "kv1/NYUdata/NYU9999")
