"""Preparing what is damaged, incomplete, in the wrong place or in the way: told in one line, mended later, nothing lost."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
from prepared_set import TREES, contents, frames, run, train_ids

from jdepth.data import build, records
from jdepth.data.sources.prepared import Prepared


def test_bad_files_are_listed_left_out_and_taken_in_once_mended(tmp_path, capsys, monkeypatch):
    raw = frames(tmp_path / "raw", 9)
    monkeypatch.setattr(records, "PER_SHARD", 3)
    good = {path: path.read_bytes() for path in sorted(raw.glob("train_scene_*/*"))}
    jpg, png, swapped, small, empty = [p for p in good if p.suffix == ".jpg"][:5]
    jpg.write_bytes(good[jpg][:200])
    depth = {p: p.with_name(p.name.replace("rgb", "sync_depth").replace(".jpg", ".png")) for p in good}
    depth[png].write_bytes(good[depth[png]][:-40])
    depth[swapped].write_bytes(good[swapped])
    cv2.imwrite(str(depth[small]), np.ones((10, 10), np.uint16))
    cv2.imwrite(str(depth[empty]), np.zeros((40, 56), np.uint16))
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 1
    printed = capsys.readouterr().out
    for path, reason in (
        (jpg, "damaged"), (depth[png], "damaged"), (depth[swapped], "16-bit|one channel"),
        (depth[small], "10x10, but its image has 40x56"), (depth[empty], "no valid depth"),
    ):  # fmt: skip
        line = next(line for line in printed.splitlines() if line.startswith("not used") and path.name in line)
        assert any(part in line for part in reason.split("|")), line
    assert "5 files could not be used" in printed
    assert len(train_ids(tmp_path / "nyu")) == 4
    for path, content in good.items():
        path.write_bytes(content)
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 0
    assert run("nyu", "--raw", raw, "--out", tmp_path / "fresh") == 0
    assert contents(tmp_path / "nyu") == contents(tmp_path / "fresh/nyu")


def test_shards_with_bad_items_are_not_made_again_until_these_change(tmp_path, monkeypatch):
    raw = frames(tmp_path / "raw", 8)
    monkeypatch.setattr(records, "PER_SHARD", 2)
    bad = sorted(raw.glob("train_scene_0/*.jpg"))[0]
    good = bad.read_bytes()
    bad.write_bytes(b"no picture")
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 1
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "nyu").glob("*array_record*")}
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 1
    assert times == {path: path.stat().st_mtime_ns for path in times}
    # A file that can be read now, although nothing about it has changed.
    monkeypatch.setattr(build, "_usable", lambda raw_set, item: True)
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 1
    assert sum(times[path] != path.stat().st_mtime_ns for path in times) == 2  # its shard, and the note beside it
    monkeypatch.undo()
    monkeypatch.setattr(records, "PER_SHARD", 2)
    # Other files under the same names are taken in, too.
    bad.write_bytes(good)
    other = sorted(raw.glob("train_scene_1/*.png"))[0]
    cv2.imwrite(str(other), np.full((40, 56), 7000, np.uint16))
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 0
    items = {record["id"]: record for record in records.Reader(tmp_path / "nyu", "train")}
    identity = f"{other.parent.name}/{other.stem.replace('sync_depth', 'rgb')}"
    assert len(items) == 8 and (items[identity]["depth"] == 7000).all()


def test_a_split_without_a_usable_item_is_not_finished(tmp_path, capsys):
    raw = frames(tmp_path / "raw", 3)
    for path in raw.glob("train_scene_*/*.jpg"):
        path.write_bytes(b"no picture")
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 2
    assert "none of the 3 items of 'train' can be used" in capsys.readouterr().err
    assert run("--list", "--out", tmp_path) == 0
    assert "begun" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("nyu "))


@pytest.mark.parametrize("content", ["", "[1]", '{"version": 1, "splits": {}}', '{"version": 1, "splits": {"train": {}}}'])
def test_a_damaged_description_of_records(content, tmp_path, capsys):
    raw = frames(tmp_path / "raw", 3)
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 0
    whole = (tmp_path / "nyu/records.json").read_text()
    (tmp_path / "nyu/records.json").write_text(content)
    assert run("nyu", "--check", "--out", tmp_path) == 2
    assert "records.json: " in capsys.readouterr().err
    assert run("--list", "--out", tmp_path) == 0
    assert "damaged" in capsys.readouterr().out
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 0
    assert (tmp_path / "nyu/records.json").read_text() == whole


def test_only_what_a_split_needs_must_be_there(tmp_path):
    TREES["diode_indoor"](tmp_path / "raw")
    shutil.rmtree(tmp_path / "raw/train")
    assert run("diode_indoor", "--raw", tmp_path / "raw", "--split", "val", "--out", tmp_path) == 0
    assert run("diode_indoor", "--raw", tmp_path / "raw", "--out", tmp_path) == 2


def test_missing_scenes_are_named_before_anything_is_written(tmp_path, capsys):
    raw = frames(tmp_path / "raw", 6)
    shutil.rmtree(raw / "train_scene_1")
    (raw / "sync.zip").write_bytes(b"PK")
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert "1 of the 3 listed folders are missing: train_scene_1" in error
    assert "unpack sync.zip there first" in error and "get it from" in error
    assert not list((tmp_path / "nyu").glob("*array_record*"))


def test_bad_items_count_across_starts(tmp_path, capsys):
    raw = frames(tmp_path / "raw", 8)
    for path in sorted(raw.glob("train_scene_*/*.jpg"))[:2]:
        path.write_bytes(b"no picture")
    assert run("nyu", "--raw", raw, "--out", tmp_path, "--max_bad", 2) == 1
    assert run("nyu", "--raw", raw, "--out", tmp_path, "--max_bad", 2) == 1
    for path in sorted(raw.glob("test_scene_*/*.jpg"))[:1]:
        path.write_bytes(b"no picture")
    assert run("nyu", "--raw", raw, "--out", tmp_path, "--max_bad", 2) == 2
    assert "more than 2 files" in capsys.readouterr().err


def test_a_mended_frame_of_a_folder_is_taken_in(tmp_path):
    """SUN RGB-D's items are folders."""
    expected = TREES["sun"](tmp_path / "raw")
    identity = next(iter(expected["train"]))
    (image,) = (tmp_path / "raw/SUNRGBD" / identity / "image").glob("0*.jpg")
    good = image.read_bytes()
    image.write_bytes(good[:100])
    assert run("sun", "--raw", tmp_path / "raw", "--out", tmp_path) == 1
    image.write_bytes(good)
    assert run("sun", "--raw", tmp_path / "raw", "--out", tmp_path) == 0
    assert len(Prepared(tmp_path / "sun", "train")) == len(expected["train"])


def test_too_many_bad_files(tmp_path, capsys):
    raw = frames(tmp_path / "raw", 6)
    for path in raw.glob("train_scene_*/*.jpg"):
        path.write_bytes(b"no picture")
    assert run("nyu", "--raw", raw, "--out", tmp_path, "--max_bad", 3) == 2
    error = capsys.readouterr().err
    assert "more than 3 files cannot be used" in error and "--max_bad" in error


def test_no_space(tmp_path, capsys, monkeypatch):
    frames(tmp_path / "raw", 6)
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and _Usage())
    assert run("nyu", "--raw", tmp_path / "raw", "--out", tmp_path) == 2
    assert "are free; make space" in capsys.readouterr().err


class _Usage:
    free = 1000


def test_two_builds_at_once(tmp_path, capsys):
    import fcntl

    frames(tmp_path / "raw", 3)
    (tmp_path / "nyu").mkdir()
    with (tmp_path / "nyu/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("nyu", "--raw", tmp_path / "raw", "--out", tmp_path) == 2
    assert "another process prepares it now" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["above", "below", "packed", "file", "missing", "unknown split", "no name"])
def test_mistakes(kind, tmp_path, capsys):
    raw = frames(tmp_path / "raw", 3)
    (tmp_path / "data").mkdir()
    given = {"--raw": raw, "--out": tmp_path / "data"}
    arguments, parts = ["nyu"], ()
    if kind == "above":
        given["--raw"], parts = tmp_path, (f"lies in {raw}", "give that folder")
    elif kind == "below":
        given["--raw"], parts = raw / "train_scene_0", (f"lies in {raw.resolve()}",)
    elif kind == "packed":
        given["--raw"] = tmp_path / "download"
        given["--raw"].mkdir()
        (given["--raw"] / "sync.zip").write_bytes(b"PK")
        parts = ("nyu_train.txt", "unpack sync.zip", "terms:")
    elif kind == "file":
        given["--raw"], parts = raw / "nyu_train.txt", ("is a file, not a folder",)
    elif kind == "missing":
        given["--raw"], parts = tmp_path / "nothing", ("no such folder", "get it from")
    elif kind == "unknown split":
        given["--split"], parts = "val", ("--split val", "train, test")
    else:
        arguments, parts = [], ("--list",)
    assert run(*arguments, *(part for pair in given.items() for part in pair)) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in parts), error
    assert len(error.strip().splitlines()) == 1 and "Traceback" not in error
    assert not (tmp_path / "data/nyu/records.json").exists()


def test_records_of_other_items_are_not_overwritten(tmp_path, capsys):
    raw = frames(tmp_path / "raw", 6)
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 0
    before = contents(tmp_path / "nyu")
    assert run("nyu", "--raw", raw, "--out", tmp_path, "--limit", 2) == 2
    assert "made of other items" in capsys.readouterr().err
    assert before == contents(tmp_path / "nyu")
    about = json.loads((tmp_path / "nyu/records.json").read_text())
    (tmp_path / "nyu/records.json").write_text(json.dumps(about | {"version": 99}))
    assert run("nyu", "--check", "--out", tmp_path) == 2
    assert "not of this version" in capsys.readouterr().err
