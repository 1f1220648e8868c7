"""What a run writes down, and what stops it: predictions that died, numbers that are none, two runs in one folder."""

import json

import numpy as np
import pytest
from tiny_config import plain

from jdepth import population, record
from jdepth.errors import UserError


def test_a_dead_depth_head_stops_the_run():
    dead = record.DeadHead(warmup_steps=10)
    dead.check([1.0] * 50, 50)  # the first ten are warm-up
    dead.check([1.0] * 5 + [0.5] + [1.0] * 4, 60)  # one step alive starts the count again
    dead.check([1.0] * 45, 105)
    with pytest.raises(UserError, match="dead ReLU"):
        dead.check([1.0], 106)


@pytest.mark.parametrize("name", ["depth/loss", "mldc/loss", "depth/gradient_norm"])
def test_rows_that_are_not_finite_are_refused(name):
    row = {"depth/loss": 1.0, "mldc/loss": 1.0, "depth/gradient_norm": 1.0, "depth/at_min_depth": 0.0}
    assert record._mean_rows([row, row | {name: 3.0}])["mean"][name] == 2.0
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match=f"{name} is not finite"):
            record._mean_rows([row, row | {name: value}, row])


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    held = record.lock(tmp_path)
    with pytest.raises(UserError, match="another run is writing there"):
        record.lock(tmp_path)
    held.close()
    record.lock(tmp_path).close()


def test_the_best_parameters_are_those_of_the_lowest_absrel(tmp_path):
    """Whatever the other scores say; of two that are equal, the earlier ones stay."""
    saved, kept = [], []

    class Saved:
        def save_best(self, number, params):
            saved.append((number, params))

        def keep_best(self, number, last):
            kept.append(number)

    clock = {"step": 0, "best_step": None, "best_AbsRel": None}
    held = record.Record(population.Member("", plain(tmp_path)), clock, Saved())
    # RMSE, d1 and mIoU each would choose other steps.
    rows = [(0.2, 1.0, 0.5), (0.3, 0.5, 0.9), (0.1, 2.0, 0.4), (0.1, 0.1, 1.0), (0.11, 0.1, 1.0)]
    for number, (absrel, rmse, d1) in enumerate(rows, 1):
        held.score(number, {"AbsRel": absrel, "RMSE": rmse, "d1": d1, "mIoU": d1}, f"parameters {number}")
        held.keep_best()
    held.close()
    assert saved == [(1, "parameters 1"), (3, "parameters 3")] and kept == [1, 1, 3, 3, 3]
    assert (clock["best_step"], clock["best_AbsRel"]) == (3, 0.1)
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["evaluation/AbsRel"], row["evaluation/RMSE"]) for row in written] == [
        (number, absrel, rmse) for number, (absrel, rmse, _) in enumerate(rows, 1)
    ]
