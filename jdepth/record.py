"""What a run writes down of each of its members, and what it says of them."""

import fcntl
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from jdepth import checkpoint, logbook, multihost, population
from jdepth.checkpoint import Checkpoints
from jdepth.errors import UserError
from jdepth.step import TrainState

Config = Mapping[str, Any]
# Consecutive steps with a constant prediction after which a run is given up (a dead ReLU).
DEAD_STEPS, DEAD_SHARE = 50, 0.99
LOCK = ".lock"


class Record:
    """What one member of a run leaves behind: rows, its best parameters, and at the end a run's folder of its own."""

    def __init__(self, member: population.Member, clock: dict[str, Any], checkpoints: Checkpoints):
        """`clock` and `checkpoints` are those of the whole run; the clock's best score is kept up to date here."""
        config = member.config
        self._name, self._workdir, self._last = member.name, Path(config["workdir"]), checkpoints
        self._best = clock["members"][member.name] if member.name else clock
        self._checkpoints = checkpoints
        self._lock = None
        if member.name:
            if multihost.is_first():
                self._workdir.mkdir(parents=True, exist_ok=True)
                self._lock = lock(self._workdir)
                self._check_untouched(clock["step"])
                logbook.write_atomically(self._workdir / "config.json", json.dumps(config, indent=1) + "\n")
            self._checkpoints = Checkpoints(self._workdir)
        self.book = book_of(self._workdir, clock["step"], config)
        self._dead = DeadHead(round(config["loss"]["silog_warmup_fraction"] * config["steps"]))

    def log(self, number: int, recent: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Write the mean over the calls since the last row, which ended with step `number`."""
        try:
            row = _mean_rows(recent)
            self._dead.check(row["each"], number)
        except UserError as error:
            raise UserError(f"member {self._name}: {error}" if self._name else str(error)) from None
        self.book.metrics(number, row["mean"])
        return row["mean"]

    def score(self, number: int, scores: Mapping[str, float], params: Any) -> None:
        """Write an evaluation's scores, and keep the parameters if they are the best so far."""
        self.book.metrics(number, {f"evaluation/{k}": v for k, v in scores.items()})
        name = f"{self._name}  " if self._name else ""
        print(f"step {number}  {name}evaluation without flip  {shown(scores)}", flush=True)
        if self._best["best_AbsRel"] is None or scores["AbsRel"] < self._best["best_AbsRel"]:
            self._best |= {"best_step": number, "best_AbsRel": scores["AbsRel"]}
            self._checkpoints.save_best(number, params)

    def keep_best(self) -> None:
        """Drop older `best` checkpoints once the `last` that names the newest is complete."""
        self._checkpoints.keep_best(self._best["best_step"], self._last)

    def finish(self, state: TrainState, clock: Mapping[str, Any]) -> None:
        """Leave the member as its own finished run."""
        own = {k: v for k, v in clock.items() if k != "members"} | dict(self._best)
        if not checkpoint.steps(self._workdir, "last"):
            self._checkpoints.save(state, own)

    def _check_untouched(self, step: int) -> None:
        """Raise UserError where another run has been at work in the member's folder since."""
        found = checkpoint.steps(self._workdir, "last")
        if found and found[-1] != step:
            raise UserError(
                f"{self._workdir}: holds a run of its own, at step {found[-1]}, while the population is at step {step}: "
                "move that folder away"
            )

    def close(self) -> None:
        """Flush rows and finish writing."""
        self.book.close()
        if self._name:
            self._checkpoints.close()
        if self._lock is not None:
            self._lock.close()


def lock(workdir: Path) -> TextIO:
    """Keep a second run out of the workdir until the file is closed, or this process ends however it may."""
    file = open(workdir / LOCK, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{workdir}: another run is writing there; wait for it or set config.workdir") from error
    return file


class Unwritten:
    """In place of the logbook in processes that write no files."""

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Process 0 has the same row."""

    def speed(self, step: int, values: Mapping[str, Any]) -> None:
        """Process 0 measures as well."""

    def bad_item(self, line: str) -> None:
        """Rows of a batch are read by one process each, so that process 0 does not know of this item."""
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """There is no file."""


def book_of(workdir: Path, step: int, config: Config) -> "logbook.Logbook | Unwritten":
    """The logbook of a folder, which process 0 alone writes."""
    return logbook.Logbook(workdir, step, config["log"]["tensorboard"]) if multihost.is_first() else Unwritten()


class DeadHead:
    """Stops a run whose depth head has collapsed to a constant, as a ReLU regressor sometimes does."""

    def __init__(self, warmup_steps: int):
        self._after = warmup_steps
        self._in_a_row = 0

    def check(self, shares: list[float], last_step: int) -> None:
        """Count the steps of a log interval; raise UserError after too many in a row."""
        for offset, share in enumerate(shares):
            after_warmup = last_step - len(shares) + 1 + offset > self._after
            self._in_a_row = self._in_a_row + 1 if after_warmup and share > DEAD_SHARE else 0
            if self._in_a_row >= DEAD_STEPS:
                raise UserError(
                    f"the depth head predicts the minimum depth everywhere for {DEAD_STEPS} steps in a row (a dead "
                    "ReLU): start again with another config.seed or a smaller config.optimizer.rate"
                )


def _mean_rows(rows: list) -> dict[str, Any]:
    """Means of the metrics of some calls, each of one step or of several."""
    host = []
    for row in jax.device_get(rows):
        steps = zip(*(np.atleast_1d(value) for value in row.values()), strict=True)
        host += [dict(zip(row, values, strict=True)) for values in steps]
    mean = {k: float(np.mean([row[k] for row in host], dtype=np.float64)) for k in sorted(host[0])}
    # The gradient too: a loss masked pixel by pixel can be finite where the prediction is not.
    bad = [k for k, v in mean.items() if k.endswith(("/loss", "/gradient_norm")) and not np.isfinite(v)]
    if bad:
        raise UserError(f"{bad[0]} is not finite: lower config.optimizer.rate, or look for depth values that are no depth")
    return {"mean": mean, "each": [float(row["depth/at_min_depth"]) for row in host]}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Last and best scores of every member, one line each."""
    width = max(map(len, results))
    lines = [f"\n{'member':<{width}}  {'AbsRel last':>11} {'best':>8}   {'RMSE last':>9} {'best':>8}"]
    for name, own in results.items():
        last, best = own["last"], own["best"]
        scores = f"{last['AbsRel']:>11.4f} {best['AbsRel']:>8.4f}   {last['RMSE']:>9.4f} {best['RMSE']:>8.4f}"
        lines.append(f"{name:<{width}}  {scores}")
    return "\n".join(lines)


def shown(scores: Mapping[str, float]) -> str:
    """The scores that a line of output has room for."""
    names = ("AbsRel", "RMSE", "d1", "auxiliary_loss", "mAP", "mAP_constant", "mIoU", "accuracy")
    return "  ".join(f"{k} {scores[k]:.4f}" for k in names if k in scores)
