"""Checkpoints of a run: `last` to go on from, `best` to use.

    WORKDIR/checkpoints/last/STEP   parameters, optimizer states, clock
    WORKDIR/checkpoints/best/STEP   parameters only

A checkpoint appears under its name only when it is complete, so a run may be killed at any moment. The
clock (plain JSON) holds the step, the number of joint batches consumed, the best score so far and the
fingerprint of the frozen backbone, which is never saved itself.
"""

import contextlib
import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from jdepth import multihost, parallel
from jdepth.errors import UserError
from jdepth.step import TrainState


class Restored(NamedTuple):
    """What `last` held."""

    state: TrainState
    clock: dict[str, Any]


def folder(workdir: Path, kind: str) -> Path:
    """WORKDIR/checkpoints/last or …/best."""
    return (Path(workdir) / "checkpoints" / kind).absolute()


def steps(workdir: Path, kind: str) -> list[int]:
    """Steps of the complete checkpoints of one kind, ascending."""
    root = folder(workdir, kind)
    return sorted(int(p.name) for p in root.glob("*") if p.name.isdigit()) if root.is_dir() else []


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or abstract arrays) of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def check_space(workdir: Path, state: TrainState) -> None:
    """Raise UserError unless the disk holds two `last` and two `best` checkpoints, as it must for a moment."""
    needed = 2 * tree_bytes((state.params, state.optimizers)) + 2 * tree_bytes(state.params)
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise UserError(
            f"{workdir}: {free / 1e9:.2f} GB free, checkpoints need {needed / 1e9:.2f} GB: "
            "free some space or set config.workdir to another disk"
        )


class Checkpoints:
    """Writer and reader of one run's checkpoints; saving `last` does not hold up training."""

    def __init__(self, workdir: Path):
        self._workdir = Path(workdir)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=True, create=True, cleanup_tmp_directories=True
        )
        self._last = ocp.CheckpointManager(folder(workdir, "last"), options=options)
        self._best = ocp.StandardCheckpointer()
        if multihost.is_first():
            for unfinished in folder(workdir, "best").glob("*orbax-checkpoint-tmp*"):
                shutil.rmtree(unfinished)

    def save(self, state: TrainState, clock: dict[str, Any]) -> None:
        """Start saving `last`."""
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            optimizers=ocp.args.StandardSave(state.optimizers),
            clock=ocp.args.JsonSave(copy.deepcopy(clock)),  # written later, when the caller's may have moved on
        )
        self._last.save(int(clock["step"]), args=items)

    def save_best(self, step: int, params: Any) -> None:
        """Save `best`, and return once it is complete, so that a later `last` may name it."""
        path = folder(self._workdir, "best") / str(step)
        self._best.save(path, params, force=True)
        self._best.wait_until_finished()

    def keep_best(self, step: int | None, named_by: "Checkpoints | None" = None) -> None:
        """Drop every `best` but that of `step`, once the `last` that names it (this run's own, or that of the
        population `named_by`) is complete.

        Waits only if there is one to drop, that is after a new best.
        """
        others = [other for other in steps(self._workdir, "best") if other != step]
        if others:
            (named_by or self).wait()
        for other in others if multihost.is_first() else ():
            shutil.rmtree(folder(self._workdir, "best") / str(other))

    def restore(self, like: TrainState) -> Restored | None:
        """The newest complete `last`, placed as `like` is; None if there is none."""
        step = self._last.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, (like.params, like.optimizers))
        with _reading(folder(self._workdir, "last") / str(step)):
            items = self._last.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(abstract[0]),
                    optimizers=ocp.args.StandardRestore(abstract[1]),
                    clock=ocp.args.JsonRestore(),
                ),
            )
            clock = items["clock"]
        counter = parallel.put(np.asarray(clock["step"], like.step.dtype), like.step.sharding)
        return Restored(TrainState(items["params"], items["optimizers"], counter), clock)

    def wait(self) -> None:
        """Until everything that was started is on disk."""
        self._last.wait_until_finished()

    def close(self) -> None:
        """Finish what was started and stop the writers."""
        self._last.close()
        self._best.close()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell of a damaged checkpoint in one line: Orbax raises whatever its readers meet."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path}: cannot be restored, so it is damaged or of another model: put back a copy, or start a new "
            f"config.workdir ({reason[:300]})"
        ) from error


def _newest(workdir: Path, kind: str) -> tuple[Path, int]:
    found = steps(workdir, kind)
    if not found:
        raise UserError(f"{folder(workdir, kind)}: no checkpoint; has the run saved one yet?")
    path = folder(workdir, kind) / str(found[-1])
    return (path / "params" if kind == "last" else path), found[-1]


def read_params(workdir: Path, kind: str, like: Any) -> tuple[Any, int]:
    """Parameters of the newest checkpoint of `kind`, and its step.

    Args:
      like: abstract arrays with the wanted tree.

    Raises UserError when there is none or it holds another model.
    """
    path, step = _newest(workdir, kind)
    with _reading(path), ocp.StandardCheckpointer() as reader:
        return reader.restore(path, like), step


def read_any_params(workdir: Path, kind: str) -> Any:
    """Parameters of the newest checkpoint of `kind`, whatever tree it holds, on one device."""
    path, _ = _newest(workdir, kind)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _reading(path), ocp.StandardCheckpointer() as reader:
        held = reader.metadata(path).item_metadata
        if held is None:
            raise ValueError("it holds no description of its arrays")
        like = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), held.tree)
        return reader.restore(path, like)


def read_clock(workdir: Path) -> dict[str, Any]:
    """The clock of the newest `last`: step, consumed batches, best score, backbone's fingerprint."""
    found, around = steps(workdir, "last"), Path(workdir).absolute().parent
    if not found and around.name == "members":
        return read_clock(around.parent)  # until its end a population keeps one clock for all
    if not found:
        raise UserError(f"{folder(workdir, 'last')}: no checkpoint; has the run saved one yet?")
    with _reading(folder(workdir, "last")), ocp.CheckpointManager(folder(workdir, "last")) as manager:
        return manager.restore(found[-1], args=ocp.args.Composite(clock=ocp.args.JsonRestore()))["clock"]
