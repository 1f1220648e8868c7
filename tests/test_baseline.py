"""The record of what the code computes: a comparison tells what differs, and where."""

import sys

import pytest
from tiny_config import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import baseline

from jdepth.errors import UserError

ROWS = [{"step": 1, "depth/loss": 0.5}, {"step": 2, "depth/loss": 0.25}]


@pytest.mark.parametrize(
    ("part", "before", "now", "told"),
    [
        ("runs", {"quickstart": ROWS}, {"quickstart": [ROWS[0], {"step": 2, "depth/loss": 0.3}]}, "depth/loss in row 2"),
        ("runs", {"quickstart": ROWS}, {"quickstart": ROWS[:1]}, "2 rows before, 1 now"),
        ("runs", {"quickstart": ROWS}, {"quickstart": [ROWS[0], {"step": 2, "loss": 0.25}]}, "other names"),
        ("runs", {"quickstart": ROWS}, {"quickstart": [ROWS[0], {"step": 2, "depth/loss": float("nan")}]}, "inf at most"),
        ("runs", {"quickstart": ROWS}, {}, "only before"),
        ("sizes", {"a": {"FLOPs": 3.0}}, {"a": {"FLOPs": 4.0}}, "FLOPs: 3.0 -> 4.0"),
        ("texts", {"a": {"sha256": "x", "operations": {"add": 3}}}, {"a": {"sha256": "y", "operations": {"add": 4}}},
         "add: 3 -> 4"),
        ("texts", {"a": {"sha256": "x", "operations": {"add": 3}}}, {"a": {"sha256": "y", "operations": {"add": 3}}},
         "in other places"),
    ],
)  # fmt: skip
def test_what_differs_is_told(part, before, now, told, capsys):
    assert not baseline.compare(part, before, now)
    assert told in capsys.readouterr().out
    assert baseline.compare(part, before, before)


def test_rounding_is_told_and_allowed(capsys):
    exact = "quickstart in float64"
    for size, same in ((1e-12, True), (1e-6, False)):
        now = [ROWS[0], {"step": 2, "depth/loss": 0.25 * (1 + size)}]
        assert baseline.compare("runs", {exact: ROWS}, {exact: now}) == same
        assert "depth/loss in row 2" in capsys.readouterr().out


def test_a_record_is_read_as_it_was_written(tmp_path):
    baseline.write(tmp_path, "sizes", {"a": {"FLOPs": 3.0}})
    assert baseline.read(tmp_path, "sizes") == {"a": {"FLOPs": 3.0}}
    with pytest.raises(UserError, match=r"texts\.json: no readable record"):
        baseline.read(tmp_path, "texts")


def test_the_record_that_is_kept_is_complete():
    held = {part: baseline.read(baseline.RESULTS / "baseline", part) for part in baseline.PARTS}
    assert held["runs"].keys() == baseline.RUNS.keys()
    assert all(len(rows) > baseline.STEPS for rows in held["runs"].values())
    assert held["texts"].keys() == {f"{step}, {platform}" for step in held["sizes"] for platform in baseline.PLATFORMS}
