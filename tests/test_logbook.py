"""What a run writes down: rows that survive a kill, speeds, the progress line, curves and pictures."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from jdepth import logbook, pictures


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: clock[0] += seconds."""
    now = [100.0]
    monkeypatch.setattr(logbook.time, "perf_counter", lambda: now[0])
    return now


def test_rows_are_written_and_read(tmp_path):
    book = logbook.Logbook(tmp_path, 0, tensorboard=False)
    book.metrics(1, {"depth/loss": 2.5})
    book.metrics(2, {"depth/loss": math.inf, "evaluation/AbsRel": 0.1})
    book.speed(2, {"steps_per_second": 3.0})
    book.close()
    rows = logbook.read_rows(tmp_path / "metrics.jsonl")
    # JSON has no infinity: what is not a finite number is null.
    assert rows == [{"step": 1, "depth/loss": 2.5}, {"step": 2, "depth/loss": None, "evaluation/AbsRel": 0.1}]
    assert logbook.read_rows(tmp_path / "speed.jsonl") == [{"step": 2, "speed/steps_per_second": 3.0}]
    assert not (tmp_path / "tensorboard").exists()


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path):
    book = logbook.Logbook(tmp_path, 0, tensorboard=False)
    for step in (1, 2, 3):
        book.metrics(step, {"depth/loss": float(step)})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    # A kill in the middle of a row, after the checkpoint of step 2.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "dep')
    assert [row["step"] for row in logbook.read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    book = logbook.Logbook(tmp_path, 2, tensorboard=False)
    assert [row["step"] for row in logbook.read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    book.metrics(3, {"depth/loss": 3.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole, "the same bytes as without the kill"


def test_no_rows_yet(tmp_path):
    assert logbook.read_rows(tmp_path / "nothere.jsonl") == []


def test_tensorboard_holds_the_numbers(tmp_path):
    book = logbook.Logbook(tmp_path, 0, tensorboard=True)
    book.metrics(1, {"depth/loss": 2.5, "note": "text is left out"})
    book.speed(1, {"steps_per_second": 3.0})
    book.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"depth/loss" in content and b"speed/steps_per_second" in content and b"note" not in content


def test_files_are_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    logbook.write_atomically(path, "old")

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(logbook.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        logbook.write_atomically(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    logbook.write_atomically(path, "new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_stopwatch(clock):
    watch = logbook.Stopwatch(step=10, total=110, images_per_step=8)
    clock[0] += 4
    watch.waited(1.0)
    lap = watch.lap(20)
    assert lap == {
        "steps_per_second": 2.5, "images_per_second": 20.0, "waiting_for_data": 0.25, "seconds_left": 36.0,
    }  # fmt: skip
    # Evaluation and saving are kept out; a lap starts from nothing.
    clock[0] += 105
    watch.paused(100.0)
    lap = watch.lap(30)
    assert lap["steps_per_second"] == pytest.approx(2.0) and lap["waiting_for_data"] == 0
    assert lap["seconds_left"] == pytest.approx(40.0)


def test_stopwatch_without_time_or_progress(clock):
    watch = logbook.Stopwatch(step=0, total=10, images_per_step=1)
    assert all(math.isfinite(value) for value in watch.lap(0).values())


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (61, "1:01"), (3599.7, "1:00:00"), (3723, "1:02:03")],
)
def test_duration(seconds, text):
    assert logbook.duration(seconds) == text


def test_progress_line():
    values = {"depth/loss": 0.51234, "depth/silog": 9.0, "mldc/loss": 0.25, "rate": 1e-4}
    lap = {"steps_per_second": 2.5, "images_per_second": 20.0, "waiting_for_data": 0.03, "seconds_left": 3723}
    line = logbook.progress_line(20, 900, [values], lap)
    assert line == (
        "step 20/900  depth 0.5123  mldc 0.2500  rate 1.00e-04  |  2.50 steps/s  20.0 images/s  "
        "waiting for data 3%  ETA 1:02:03"
    )
    line = logbook.progress_line(20, 900, [values, {"depth/loss": 0.25, "rate": 1e-4}], lap)
    assert line.startswith("step 20/900  depth 0.2500-0.5123  mldc 0.2500  rate")


def test_curves(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    logbook.draw_curves(tmp_path, {"": tmp_path})
    assert not (tmp_path / "curves.png").exists(), "nothing to draw yet"
    rows = [{"step": s, "depth/loss": 1 / s, "rate": 0.1} for s in range(1, 80)]
    rows += [{"step": 40, "evaluation/AbsRel": 0.3}, {"step": 79, "evaluation/AbsRel": 0.2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    logbook.draw_curves(tmp_path, {"": tmp_path})
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.size == (880, 330), "one panel for the loss, one for the score"


def test_depth_sheet(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (28, 42, 3), dtype=np.uint8) for _ in range(3)]
    truths = [rng.uniform(1, 5, (60, 84)).astype(np.float32), np.zeros((60, 84), np.float32), np.ones((200, 300))]
    predictions = [truth + 1 for truth in truths]
    pictures.depth_sheet(tmp_path / "sheet.png", images, truths, predictions)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.mode == "RGB"
        # Small ones are enlarged to 168 rows; under each caption three pictures and a legend.
        assert sheet.height >= 2 * 168 + 200 and sheet.width >= 3 * 300
