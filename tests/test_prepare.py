"""From original downloads to records: what comes out, killed and started again, checked, shown, listed."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from prepared_set import TREES, contents, frames, run, train_ids
from tiny_config import ROOT

from jdepth.data import records, sources
from jdepth.data.sources.prepared import Prepared


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
    first, large, small = (set(train_ids(tmp_path / part / "nyu")) for part in "abc")
    assert len(first) == 7 and 40 < len(large) < 80 and 8 < len(small) < 34 and small < large
    assert set(records.read_about(tmp_path / "a" / "nyu")["splits"]) == {"train"}
    assert run("nyu", "--raw", tmp_path / "raw", "--fraction", 0.1, "--split", "test", "--out", tmp_path / "c") == 0
    assert len(Prepared(tmp_path / "c/nyu", "test")) == 3  # what is scored is not thinned out
    assert run("--list", "--out", tmp_path / "c") == 0
    assert f"train {len(small)} (0.1 of it), test 3" in capsys.readouterr().out
    # The other split joins later.
    assert run("nyu", "--raw", tmp_path / "raw", "--split", "test", "--out", tmp_path / "a") == 0
    assert len(Prepared(tmp_path / "a/nyu", "test")) == 3 and len(Prepared(tmp_path / "a/nyu", "train")) == 7


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
