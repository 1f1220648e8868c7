"""What a run writes down: metric rows, speed rows, TensorBoard, the progress line and the curves.

    WORKDIR/metrics.jsonl    what was computed: the same bytes however often the run was interrupted
    WORKDIR/speed.jsonl      how fast: steps/s, images/s, share of time waiting for data
    WORKDIR/tensorboard/     both
    WORKDIR/curves.png       losses and scores against steps
    WORKDIR/bad_items.txt    items of the data that could not be used, where there are any
"""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Evaluation scores that are drawn as curves, besides every loss.
SCORES = ("evaluation/AbsRel", "evaluation/d1", "evaluation/auxiliary_loss", "evaluation/mAP", "evaluation/mIoU")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a last line cut short by a kill is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step, so that a kill leaves the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text; what is not a finite number becomes null, for which JSON has no other word."""

    def plain(item):
        if isinstance(item, Mapping):
            return {k: plain(v) for k, v in item.items()}
        if isinstance(item, list | tuple):
            return [plain(v) for v in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(plain(value), indent=indent)


def _rows_up_to(path: Path, step: int) -> None:
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


class Logbook:
    """Writer of one run's rows, going on after `step`: rows beyond it are dropped first."""

    def __init__(self, workdir: Path, step: int, tensorboard: bool):
        self._metrics, self._speed = workdir / "metrics.jsonl", workdir / "speed.jsonl"
        self._bad = workdir / "bad_items.txt"
        self._told = set(self._bad.read_text().splitlines()) if self._bad.is_file() else set()
        for path in (self._metrics, self._speed):
            _rows_up_to(path, step)
        self._board = None
        if tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def _write(self, path: Path, step: int, values: Mapping[str, Any]) -> None:
        with open(path, "a") as file:
            file.write(to_json({"step": step, **values}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(key, value, step)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """One row of computed values."""
        self._write(self._metrics, step, values)

    def speed(self, step: int, values: Mapping[str, Any]) -> None:
        """One row of timings."""
        self._write(self._speed, step, {f"speed/{k}": v for k, v in values.items()})

    def bad_item(self, line: str) -> None:
        """Tell of an item that cannot be used, and keep the line in bad_items.txt, once."""
        print(line, flush=True)
        if line not in self._told:
            self._told.add(line)
            with open(self._bad, "a") as file:
                file.write(line + "\n")

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()


class Stopwatch:
    """Speed of the loop: call `waited` around fetching a batch, `lap` at every log line."""

    def __init__(self, step: int, total: int, images_per_step: int):
        self._step, self._total, self._images = step, total, images_per_step
        self._mark, self._waiting, self._paused = time.perf_counter(), 0.0, 0.0

    def waited(self, seconds: float) -> None:
        """Time that the loop stood still for data."""
        self._waiting += seconds

    def paused(self, seconds: float) -> None:
        """Time spent on evaluation or saving, kept out of the rates."""
        self._paused += seconds

    def lap(self, step: int) -> dict[str, float]:
        """Rates since the last lap, and seconds to go at this rate."""
        now = time.perf_counter()
        elapsed = max(now - self._mark - self._paused, 1e-9)
        rate = (step - self._step) / elapsed
        lap = {
            "steps_per_second": rate,
            "images_per_second": rate * self._images,
            "waiting_for_data": min(self._waiting / elapsed, 1.0),
            "seconds_left": (self._total - step) / max(rate, 1e-9),
        }
        self._step, self._mark, self._waiting, self._paused = step, now, 0.0, 0.0
        return lap


def duration(seconds: float) -> str:
    """"1:02:03" or "2:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def progress_line(step: int, total: int, rows: Sequence[Mapping[str, float]], lap: Mapping[str, float]) -> str:
    """The line printed while training: losses of the run's row, or the range of those of several members."""
    losses: dict[str, list[float]] = {}
    for key, value in ((k, v) for row in rows for k, v in row.items() if k.endswith("/loss")):
        losses.setdefault(key.removesuffix("/loss"), []).append(value)
    shown = "  ".join(f"{k} " + "-".join(f"{v:.4f}" for v in sorted({min(vs), max(vs)})) for k, vs in losses.items())
    return (
        f"step {step}/{total}  {shown}  rate {rows[0]['rate']:.2e}  |  {lap['steps_per_second']:.2f} steps/s  "
        f"{lap['images_per_second']:.1f} images/s  waiting for data {lap['waiting_for_data']:.0%}  "
        f"ETA {duration(lap['seconds_left'])}"
    )


def draw_curves(workdir: Path, runs: Mapping[str, Path]) -> None:
    """Losses and evaluation scores of runs (by name, their folders) against steps, as WORKDIR/curves.png."""
    # Not pyplot, which would choose a display for the whole process.
    from matplotlib.figure import Figure

    read = {name: read_rows(folder / "metrics.jsonl") for name, folder in runs.items()}
    keys = sorted({k for rows in read.values() for row in rows for k in row if k.endswith("/loss") or k in SCORES})
    if not keys:
        return
    figure = Figure(figsize=(4 * len(keys), 3))
    axes = figure.subplots(1, len(keys), squeeze=False)
    for axis, key in zip(axes[0], keys, strict=True):
        for name, rows in read.items():
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            if points:
                axis.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", linewidth=1, label=name)
        axis.set_title(key, fontsize=9)
        axis.set_xlabel("global step", fontsize=8)
        axis.grid(alpha=0.3)
        if len(read) > 1:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(workdir / "curves.png", dpi=110)
