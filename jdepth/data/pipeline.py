"""Joint batches for training, read ahead by threads or by worker processes (grain).

A batch is made by one call (`streams.JointBatches`) before grain sees it as an element of a stream, so the
number of workers changes who makes a batch, never what is in it. The position of a run is the number of
batches consumed, an integer of ours: grain's own iterator state is bound to the number of workers.
"""

import os
import signal
import sys
from collections.abc import Callable

import grain
import numpy as np
from absl import flags

from jdepth.data import pool
from jdepth.data.streams import AuxiliaryStream, DepthStream, JointBatches, Replaced
from jdepth.errors import UserError

__all__ = ["AuxiliaryStream", "DepthStream", "JointIterator", "joint_batches"]

# Any end beyond what a run can reach.
_END = 2**40


def joint_batches(
    depth: DepthStream,
    auxiliary: AuxiliaryStream | None = None,
    *,
    batch_depth: int,
    batch_auxiliary: int | None = None,
    seed: int,
    start: int = 0,
    workers: int = 0,
    threads: int | None = None,
    ahead: int = 2,
    shard: tuple[int, int] = (0, 1),
    bad_share: float = 0.001,
    tell: Callable[[str], None] = lambda line: None,
) -> "JointIterator":
    """Endless iterator over joint batches, a pure function of (seed, batch index).

    Args:
      depth: depth source and augmentation.
      auxiliary: auxiliary mixture, or None for the depth-only baseline.
      batch_depth: depth samples per global batch.
      batch_auxiliary: auxiliary samples per global batch; default: as many.
      seed: the run's seed.
      start: joint batches consumed before: the first one delivered has this index.
      workers: processes that make batches; 0: threads of this process.
      threads: reading threads per process; default: the cores, at most 4, without workers; 1 with them.
      ahead: batches held ready by each worker (or by the threads).
      shard: (number, count): deliver only this process's consecutive rows of each batch.
      bad_share: the share of a set's items that may be bad, i.e. replaced by the next of its order.
      tell: gets a line about each item that is found bad.

    Yields:
      A dict of dicts of arrays with a leading batch axis. "depth": image (B, h, w, 3) uint8 RGB, depth
      (B, h, w) float32 metres, 0 = invalid, colour (B, 5) float32 (`jdepth.colour.depth_colour`).
      "auxiliary", if there is one: image (B, h, w, 3) uint8 RGB, of which valid_size (B, 2) int32 rows and
      columns are image; dataset_id (B,) int32; photometric (B, 5) float32 (`jdepth.colour.photometric`); and
      by task classes (B, K) float32 multi-hot, class_id (B,) int32 (-1 = none) or label (B, h, w) uint8
      (255 = ignore).

    Raises:
      UserError: settings that do not fit together; from `next`, whatever is wrong with the data.
    """
    if workers < 0 or start < 0 or seed < 0:
        raise UserError(f"workers ({workers}), start ({start}) and seed ({seed}) must not be negative")
    batches = JointBatches(depth, auxiliary, batch_depth, batch_auxiliary, seed, shard)
    return JointIterator(batches, start, workers, threads, ahead, bad_share, tell)


class JointIterator:
    """Iterator with `position` (the index of the next batch) and `close()`; also a context manager.

    Close it at the end of a run: it stops threads and workers.
    """

    def __init__(
        self,
        batches: JointBatches,
        start: int,
        workers: int,
        threads: int | None,
        ahead: int,
        bad_share: float,
        tell: Callable[[str], None],
    ):
        self.position = start
        self._bad_share, self._tell = bad_share, tell
        # By set: id -> reason.
        self.bad: dict[str, dict[str, str]] = {}
        if threads is None:
            threads = 1 if workers else min(4, os.cpu_count() or 1)
        read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(ahead, threads))
        stream = grain.MapDataset.range(start, _END).map(batches).to_iter_dataset(read)
        if workers:
            if not flags.FLAGS.is_parsed():
                # grain reads its own flags when it starts workers; outside absl.app.run nobody parsed them.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
            stream = stream.mp_prefetch(options, worker_init_fn=_start_worker)
        self._iterator = iter(stream)

    def __iter__(self) -> "JointIterator":
        return self

    def __next__(self) -> dict[str, dict[str, np.ndarray]]:
        if self._iterator is None:
            raise StopIteration
        try:
            batch = next(self._iterator)
        except BaseException as error:
            self.close()
            user_error = _find_user_error(error)
            if user_error is None:
                raise
            # A fresh one: grain adds notes about its own stack trace to what it passes on.
            raise UserError(str(user_error)) from error
        for item in batch.pop("replaced"):
            self._note(item)
        self.position += 1
        return batch

    def _note(self, item: Replaced) -> None:
        """Tell of an item found bad for the first time; UserError where its set has too many of them."""
        bad = self.bad.setdefault(item.name, {})
        if item.id in bad:
            return
        bad[item.id] = item.reason
        self._tell(f"{item.name}: {item.id} is left out, the next one takes its place: {item.reason}")
        if len(bad) > self._bad_share * item.size:
            self.close()
            reasons = "; ".join(list(bad.values())[:10]) + ("; ..." if len(bad) > 10 else "")
            raise UserError(
                f"data set '{item.name}': {len(bad)} of {item.size} items cannot be used, more than the share of "
                f"{self._bad_share:g} that config.data.bad_share allows: {reasons}"
            )

    def close(self) -> None:
        """Stop reading; may be called more than once."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> "JointIterator":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _start_worker(index: int, count: int) -> None:
    """In a worker: no accelerator, should anything ever start a jax backend, one thread per worker, and no end by a
    signal: the run goes on to the end of its log interval. (grain ends workers by an event, and kills the late.)"""
    pool.leave_signals_to_parent(signal.SIGINT, signal.SIGTERM)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # grain has imported it, and it has read the variable already
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    import cv2

    cv2.setNumThreads(1)


def _find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError at the root of what grain raised, if there is one."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None
