"""What stops a run: predictions that died, numbers that are none, two runs in one folder."""

import numpy as np
import pytest

from jdepth import record
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
