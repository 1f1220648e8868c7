"""Checkpoints on disk: the room they need, which ones count as complete, whose clock a member of a population has."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jdepth import checkpoint
from jdepth.errors import UserError
from jdepth.step import TrainState


def test_the_disk_must_hold_two_of_each_kind(tmp_path, monkeypatch):
    """Parameters of 1 GB and optimizers of 2 GB: `last` has both, `best` the parameters."""

    def of_bytes(count: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count // 4,), jnp.float32)

    state = TrainState({"a": of_bytes(10**9)}, {"o": of_bytes(10**9), "p": of_bytes(10**9)}, None)
    free = SimpleNamespace(free=2 * 3 * 10**9 + 2 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    checkpoint.check_space(tmp_path, state)
    free.free -= 10**7
    with pytest.raises(UserError, match=f"{tmp_path}: 7.99 GB free, checkpoints need 8.00 GB"):
        checkpoint.check_space(tmp_path, state)


def test_what_was_left_unfinished_is_no_checkpoint_and_is_removed(tmp_path):
    assert checkpoint.steps(tmp_path, "best") == []
    best = checkpoint.folder(tmp_path, "best")
    for name in ("9", "10", "11.orbax-checkpoint-tmp-0"):
        (best / name).mkdir(parents=True)
    assert checkpoint.steps(tmp_path, "best") == [9, 10]
    checkpoint.Checkpoints(tmp_path).close()
    assert sorted(path.name for path in best.iterdir()) == ["10", "9"]


def test_until_its_end_a_member_has_the_clock_of_its_population(tmp_path):
    member, other = tmp_path / "members" / "alpha=0.5", tmp_path / "elsewhere" / "alpha=0.5"
    with pytest.raises(UserError, match=f"{tmp_path}/checkpoints/last: no checkpoint"):
        checkpoint.read_clock(member)

    def save(workdir, step: int) -> None:
        checkpoints = checkpoint.Checkpoints(workdir)
        checkpoints.save(TrainState({"a": jnp.zeros(1)}, {"o": jnp.zeros(1)}, jnp.zeros((), jnp.int32)), {"step": step})
        checkpoints.close()

    save(tmp_path, 2)
    assert checkpoint.read_clock(member) == {"step": 2}
    with pytest.raises(UserError, match="elsewhere/alpha=0.5/checkpoints/last: no checkpoint"):
        checkpoint.read_clock(other)
    save(member, 3)
    assert checkpoint.read_clock(member) == {"step": 3} and checkpoint.read_clock(tmp_path) == {"step": 2}
