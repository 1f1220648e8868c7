"""Damaged items while training: replaced by the next of their own set's order, counted, told, and limited."""

import os
import resource
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import prepared_set
import pytest
from test_data_pipeline import AUXILIARY, PLAIN, Tiny, digest

from jdepth.data import records
from jdepth.data.pipeline import AuxiliaryStream, DepthStream, joint_batches
from jdepth.data.sources.prepared import Prepared
from jdepth.errors import BadItem, UserError


class Damaged(Tiny):
    """Some of its items cannot be used."""

    def __getitem__(self, index):
        if index in self.faulty:
            raise BadItem(f"file {self.name}/{index}.png is damaged")
        return super().__getitem__(index)


def depth_of(source, count: int, **options) -> list[int]:
    """Which items the first batches of one image hold."""
    with joint_batches(DepthStream(source, PLAIN), batch_depth=1, seed=3, bad_share=1, **options) as batches:
        return [int(next(batches)["depth"]["image"][0, 0, 0, 2]) for _ in range(count)]


def test_the_next_of_the_same_permutation_takes_its_place():
    whole = depth_of(Tiny(8), 24)
    bad = {5, 2}
    expected = [next(item for item in whole[place:] if item not in bad) for place in range(16)]
    assert depth_of(Damaged(8, faulty=bad), 16) == expected
    # Others stay where they are.
    assert [item for item in whole[:16] if item not in bad] == [
        item for item, before in zip(expected, whole, strict=False) if before not in bad
    ]


def mixture() -> AuxiliaryStream:
    members = (Damaged(6, 3, "one", faulty=(1,)), Damaged(20, 4, "two", faulty=(0, 7)), Damaged(3, 3, "three"))
    return AuxiliaryStream(members, AUXILIARY, "mldc")


def test_same_batches_whatever_the_workers_and_from_any_place():
    def taken(workers: int, start: int) -> list[str]:
        depth = DepthStream(Damaged(9, faulty=(4,)), PLAIN)
        with joint_batches(depth, mixture(), batch_depth=2, batch_auxiliary=4, seed=0, workers=workers, start=start,
                           bad_share=1) as batches:  # fmt: skip
            return [digest(next(batches)) for _ in range(12 - start)]

    alone = taken(0, 0)
    assert taken(2, 0) == alone and taken(0, 5) == alone[5:] and taken(1, 5) == alone[5:]


def test_the_member_stays():
    def members(stream: AuxiliaryStream) -> list[int]:
        depth = DepthStream(Tiny(9), PLAIN)
        with joint_batches(depth, stream, batch_depth=1, batch_auxiliary=29, seed=1, bad_share=1) as batches:
            return next(batches)["auxiliary"]["dataset_id"].tolist()

    good = AuxiliaryStream((Tiny(6, 3, "one"), Tiny(20, 4, "two"), Tiny(3, 3, "three")), AUXILIARY, "mldc")
    assert members(mixture()) == members(good)
    assert Counter(members(good)) == {0: 6, 1: 20, 2: 3}


@pytest.mark.parametrize("workers", [0, 1])
def test_told_once_and_stopped_beyond_the_share(workers):
    told = []
    with joint_batches(DepthStream(Damaged(10, faulty=(3, 8)), PLAIN), batch_depth=1, seed=0, bad_share=0.2,
                       workers=workers, tell=told.append) as batches:  # fmt: skip
        for _ in range(30):
            next(batches)
        assert set(batches.bad["tiny"]) == {"tiny 3", "tiny 8"}
    assert len(told) == 2 and all("is left out" in line and "damaged" in line for line in told)
    with joint_batches(DepthStream(Damaged(10, faulty=(3, 8)), PLAIN), batch_depth=1, seed=0, bad_share=0.1,
                       workers=workers) as batches:  # fmt: skip
        with pytest.raises(UserError, match=r"2 of 10 items cannot be used, .* 0\.1 .*tiny/\d.*; .*tiny/\d"):
            for _ in range(30):
                next(batches)


def test_a_set_without_a_usable_item():
    with joint_batches(DepthStream(Damaged(5, faulty=range(5)), PLAIN), batch_depth=1, seed=0, bad_share=1) as batches:
        with pytest.raises(UserError, match="100 items of 'tiny' in a row"):
            next(batches)


def test_a_damaged_record(tmp_path):
    """Bytes of one record overwritten: training goes on without it, and says which it was."""
    prepared_set.frames(tmp_path / "raw", 24)
    assert prepared_set.run("nyu", "--raw", tmp_path / "raw", "--out", tmp_path) == 0
    shard = records.shard_path(tmp_path / "nyu", "nyu", "train", 0, 1)
    whole = shard.read_bytes()
    for place in range(len(whole) // 3, len(whole), 500):  # where the damage is one record's
        shard.write_bytes(whole[:place] + bytes(8) + whole[place + 8 :])
        source = Prepared(tmp_path / "nyu", "train")
        bad = [index for index in range(len(source)) if not usable(source, index)]
        if len(bad) == 1:
            break
    assert len(bad) == 1

    told, source = [], Prepared(tmp_path / "nyu", "train")
    with joint_batches(DepthStream(source, PLAIN), batch_depth=4, seed=0, bad_share=0.05, tell=told.append) as batches:
        for _ in range(12):
            assert np.isfinite(next(batches)["depth"]["depth"]).all()
    assert len(told) == 1 and source.item_id(bad[0]) in told[0] and "damaged" in told[0]


def test_a_frame_of_another_size_is_named_and_replaced(tmp_path):
    raw = prepared_set.frames(tmp_path / "raw", 12)
    odd = sorted(raw.glob("train_scene_0/*"))
    for path in odd[:1] + [path for path in odd if path.suffix == ".png"][:1]:
        picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert cv2.imwrite(str(path), picture[:20, :30])
    assert prepared_set.run("nyu", "--raw", raw, "--out", tmp_path) == 0
    told, source = [], Prepared(tmp_path / "nyu", "train")
    cropped = replace(PLAIN, crop=(24, 32))
    with joint_batches(DepthStream(source, cropped), batch_depth=4, seed=0, bad_share=0.1, tell=told.append) as batches:
        for _ in range(6):
            assert next(batches)["depth"]["image"].shape == (4, 24, 32, 3)
    assert len(told) == 1 and odd[0].stem in told[0] and "larger than the image, 20x30" in told[0]


def test_too_many_open_files_is_no_damage(tmp_path, monkeypatch):
    prepared_set.frames(tmp_path / "raw", 40)
    monkeypatch.setattr(records, "PER_SHARD", 1)
    assert prepared_set.run("nyu", "--raw", tmp_path / "raw", "--out", tmp_path) == 0
    source = Prepared(tmp_path / "nyu", "train")
    assert len(source.item_id(0)) and len(list((tmp_path / "nyu").glob("nyu-train*-of-00040"))) == 40
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, before[1]))
    try:
        with pytest.raises(UserError, match="cannot be read .*see ulimit -n") as caught:
            for index in range(40):
                source[index]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not isinstance(caught.value, BadItem)
    again = Prepared(tmp_path / "nyu", "train")
    assert len([again[index] for index in range(40)]) == 40


def usable(source: Prepared, index: int) -> bool:
    try:
        source[index]
    except BadItem:
        return False
    return True
