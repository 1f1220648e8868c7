"""From original downloads to records: what comes out, killed and started again, checked, shown, listed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import raw_depth_trees
import raw_label_trees
from PIL import Image
from tiny_config import ROOT

from jdepth import command_line, prepare
from jdepth.data import build, records, sources
from jdepth.data.sources.prepared import Prepared

TREES = {**raw_depth_trees.TREES, **raw_label_trees.TREES}


def run(*arguments: object) -> int:
    given = ["prepare", *map(str, arguments)]
    if "--raw" in given and "--workers" not in given:
        given += ["--workers", "0"]
    return command_line.call(prepare.main, prepare.USAGE, prepare.define, given)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("key", TREES)
def test_every_set_comes_out_with_the_expected_metres_and_train_ids(key, tmp_path, capsys):
    name = key.split()[0]
    expected = TREES[key](tmp_path / "raw")
    assert run(name, "--raw", tmp_path / "raw", "--out", tmp_path / "data") == 0
    printed = capsys.readouterr().out
    for split, items in expected.items():
        assert f"{name} {split}: {len(items)} images" in printed
        assert "warning" in printed  # a miniature has not the published count
        source = sources.open_source(name, split=split, data_dir=tmp_path / "data")
        assert [source.item_id(index) for index in range(len(source))] == list(items)
        for index, item in enumerate(items.values()):
            read = source[index]
            np.testing.assert_array_equal(read["image"], item.image)
            values = read["depth" if source.read == ("depth",) else "label"]
            assert values.dtype == item.values.dtype
            np.testing.assert_array_equal(values, item.values)
    assert source.classes == sources.raw_set(name).classes
    assert run(name, "--check", "--out", tmp_path / "data") == 0


def frames(folder: Path, count: int, size=(40, 56)) -> Path:
    """A raw `nyu` folder of so many frames to train and three to test."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 3)):
        lines = []
        for index in range(number):
            scene = folder / f"{split}_scene_{index % 3}"
            scene.mkdir(parents=True, exist_ok=True)
            stem = f"{scene.name}/rgb_{index:05d}.jpg", f"{scene.name}/sync_depth_{index:05d}.png"
            coarse = cv2.resize(rng.integers(0, 256, (5, 7, 3)).astype(np.uint8), size[::-1])
            cv2.imwrite(str(folder / stem[0]), coarse)
            cv2.imwrite(str(folder / stem[1]), rng.integers(0, 9000, size).astype(np.uint16))
            lines.append(f"/{stem[0]} /{stem[1]} 518.8579\n")
        (folder / f"nyu_{split}.txt").write_text("".join(lines))
    return folder


def test_a_record_is_the_original_file_and_the_stored_numbers(tmp_path):
    raw = frames(tmp_path / "raw", 4)
    assert run("nyu", "--raw", raw, "--out", tmp_path) == 0
    reader = records.Reader(tmp_path / "nyu", "train")
    for index, line in enumerate(sorted((raw / "nyu_train.txt").read_text().splitlines())):
        image, depth, _ = (word.lstrip("/") for word in line.split())
        assert reader[index]["image"] == (raw / image).read_bytes()
        stored = cv2.imread(str(raw / depth), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(reader[index]["depth"], stored)
    about = records.read_about(tmp_path / "nyu")["splits"]["train"]
    valid = [record["depth"][record["depth"] > 0] for record in reader]
    numbers = about["statistics"]
    assert numbers["nearest"] == min(v.min() for v in valid) and numbers["farthest"] == max(v.max() for v in valid)
    assert numbers["valid"] == sum(v.size for v in valid) and numbers["pixels"] == 4 * 40 * 56


def test_tfds_reads_the_folder(tmp_path):
    import tensorflow_datasets as tfds

    frames(tmp_path / "raw", 5)
    assert run("nyu", "--raw", tmp_path / "raw", "--out", tmp_path) == 0
    builder = tfds.builder_from_directory(str(tmp_path / "nyu"))
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {"train": 5, "test": 3}
    item = builder.as_data_source("train[:60%]")[2]
    assert item["image"].shape == (40, 56, 3) and item["depth"].dtype == np.uint16


def test_limit_fraction_and_split(tmp_path, capsys):
    frames(tmp_path / "raw", 200)
    given = ("nyu", "--raw", tmp_path / "raw", "--split", "train")
    assert run(*given, "--limit", 7, "--out", tmp_path / "a") == 0
    assert run(*given, "--fraction", 0.3, "--seed", 1, "--out", tmp_path / "b") == 0
    assert run(*given, "--fraction", 0.1, "--seed", 1, "--out", tmp_path / "c") == 0
    assert "published" not in capsys.readouterr().out  # a part was asked for
    first, large, small = (set(Ids(tmp_path / part / "nyu")) for part in "abc")
    assert len(first) == 7 and 40 < len(large) < 80 and 8 < len(small) < 34 and small < large
    assert set(records.read_about(tmp_path / "a" / "nyu")["splits"]) == {"train"}
    assert run("nyu", "--raw", tmp_path / "raw", "--fraction", 0.1, "--split", "test", "--out", tmp_path / "c") == 0
    assert len(Prepared(tmp_path / "c/nyu", "test")) == 3  # what is scored is not thinned out
    assert run("--list", "--out", tmp_path / "c") == 0
    assert f"train {len(small)} (0.1 of it), test 3" in capsys.readouterr().out
    # The other split joins later.
    assert run("nyu", "--raw", tmp_path / "raw", "--split", "test", "--out", tmp_path / "a") == 0
    assert len(Prepared(tmp_path / "a/nyu", "test")) == 3 and len(Prepared(tmp_path / "a/nyu", "train")) == 7


def Ids(folder: Path) -> list[str]:
    return records.Reader(folder, "train").ids


def test_many_shards_and_processes_write_what_one_writes(tmp_path, monkeypatch):
    frames(tmp_path / "raw", 30)
    monkeypatch.setattr(records, "PER_SHARD", 4)
    given = ("nyu", "--raw", tmp_path / "raw")
    assert run(*given, "--out", tmp_path / "one") == 0
    assert run(*given, "--out", tmp_path / "two", "--workers", 2) == 0
    one = contents(tmp_path / "one/nyu")
    assert len([name for name in one if "train.array_record" in name]) == 2 * 8
    assert one == contents(tmp_path / "two/nyu")
    # Nothing is written again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one/nyu").glob("*array_record*")}
    assert run(*given, "--out", tmp_path / "one") == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_started_again(kills, tmp_path):
    """SIGKILL to the whole process, its workers left to notice: the records are those of an undisturbed build."""
    frames(tmp_path / "raw", 30 + 10 * kills)
    code = "from jdepth.data import records; records.PER_SHARD = 2; " \
        "from jdepth import prepare, command_line; command_line.run(prepare.main, '', prepare.define)"  # fmt: skip

    def start(out: Path) -> subprocess.Popen:
        # PER_SHARD is read when shards are planned, in the first process alone.
        arguments = ["nyu", "--raw", str(tmp_path / "raw"), "--out", str(out), "--workers", "2"]
        return subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, cwd=ROOT)  # fmt: skip

    assert start(tmp_path / "whole").wait(120) == 0
    rng, killed = random.Random(1), 0
    for _ in range(kills):
        process = start(tmp_path / "killed")
        done = len(list((tmp_path / "killed/nyu").glob("*.json")))
        deadline, stop_at = time.time() + 60, done + rng.randrange(1, 5)
        while process.poll() is None and time.time() < deadline:
            if len(list((tmp_path / "killed/nyu").glob("*.json"))) >= stop_at:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert killed
    assert start(tmp_path / "killed").wait(120) == 0
    assert contents(tmp_path / "killed/nyu") == contents(tmp_path / "whole/nyu")


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
    assert len(Ids(tmp_path / "nyu")) == 4
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


def test_check_finds_every_changed_byte_that_matters(tmp_path, capsys):
    frames(tmp_path / "raw", 6)
    assert run("nyu", "--raw", tmp_path / "raw", "--out", tmp_path) == 0
    shard = records.shard_path(tmp_path / "nyu", "nyu", "train", 0, 1)
    whole = shard.read_bytes()
    found = 0
    for place in range(100, len(whole) - 1, max(len(whole) // 12, 1)):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        found += run("nyu", "--check", "--out", tmp_path) != 0
    # Some bytes pad the file's blocks.
    assert found >= 4
    shard.write_bytes(whole)
    assert run("nyu", "--check", "--out", tmp_path) == 0
    capsys.readouterr()
    shard.write_bytes(whole[:-50])
    assert run("nyu", "--check", "--out", tmp_path) == 2
    assert f"{shard.name}: missing or not as it was written" in capsys.readouterr().err
    # Preparing again mends it.
    assert run("nyu", "--raw", tmp_path / "raw", "--out", tmp_path) == 0
    assert shard.read_bytes() == whole


def test_show_and_list(tmp_path, capsys):
    frames(tmp_path / "raw", 3, size=(480, 640))
    assert run("nyu", "--raw", tmp_path / "raw", "--out", tmp_path / "data", "--show", 2) == 0
    sheet = np.asarray(Image.open(tmp_path / "data/nyu/train.png"))
    assert sheet.shape[0] > 2 * 200 and sheet.shape[1] > 4 * 200 and sheet.std() > 20
    TREES["voc21"](tmp_path / "voc")
    assert run("voc21", "--raw", tmp_path / "voc", "--out", tmp_path / "data", "--show", 3) == 0
    assert np.asarray(Image.open(tmp_path / "data/voc21/val.png")).std() > 20
    capsys.readouterr()
    assert run("--list", "--out", tmp_path / "data") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in sources.RAW_SETS) and "train 3, test 3" in printed


def test_list_and_help_import_no_grain():
    for flag in ("--list", "--help"):
        code = f"import sys, runpy; sys.argv = ['p', {flag!r}]\ntry:\n    runpy.run_module('jdepth.prepare', " \
            "run_name='__main__')\nexcept SystemExit as end:\n    assert end.code == 0\n" \
            "assert not {'grain', 'jax', 'tensorflow', 'torch'} & set(sys.modules), sys.modules.keys()"  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-1000:]


def test_shards_share_the_items_out():
    for items in (0, 1, 255, 256, 257, 24_231, 3_200_000):
        count = records.shard_count(items)
        parts = [records.shard_items(items, count, number) for number in range(count)]
        assert parts[0].start == 0 and all(a.stop == b.start for a, b in zip(parts, parts[1:], strict=False))
        assert sum(map(len, parts)) == items and count <= records.MOST_SHARDS
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


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
