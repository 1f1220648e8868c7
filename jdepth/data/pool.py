"""Work on many shards in processes of their own, with progress by the item.

A task calls `tick` for each item that it takes up; the first process sees the sum while tasks run.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, TypeVar

from jdepth.errors import UserError

Task, Result = TypeVar("Task"), TypeVar("Result")
# How often progress is looked at, seconds.
_INTERVAL = 0.2

# Set in each worker, and here where there are none.
_tick: Callable[[], None] = lambda: None  # noqa: E731


def tick() -> None:
    """Called by a task: one more item is done."""
    _tick()


def over(
    call: Callable[[Task], Result], tasks: Iterable[Task], workers: int, progress: Callable[[int], None]
) -> Iterator[Result]:
    """Results of `call(task)`, in the order in which tasks end.

    Args:
      call: a function of a module; it and its tasks are copied to other processes.
      workers: processes; 0: none but this one.
      progress: called with the number of ticks so far.

    Raises:
      UserError: a worker was killed; and whatever `call` raises.
    """
    if not workers:
        yield from _here(call, tasks, progress)
        return
    context = multiprocessing.get_context("spawn")
    done = context.Value("Q", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(done,))
    try:
        # A few tasks ahead of the workers: millions of items are not copied into a queue at once.
        waiting, rest, more = set(), iter(tasks), True
        while more or waiting:
            while more and len(waiting) < 2 * workers:
                task = next(rest, None)
                more = task is not None
                if more:
                    waiting.add(pool.submit(call, task))
            ended, waiting = wait(waiting, _INTERVAL, FIRST_COMPLETED) if waiting else (set(), waiting)
            progress(done.get_obj().value)  # without its lock, which a worker that was killed may still hold
            yield from (future.result() for future in ended)
    except BrokenProcessPool:
        raise UserError("a worker process was killed, probably for memory; start again with fewer --workers") from None
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()  # what is half done is done again; nobody shall wait for it now
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _here(call: Callable[[Task], Result], tasks: Iterable[Task], progress: Callable[[int], None]) -> Iterator[Result]:
    global _tick
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1
        progress(count)

    before, _tick = _tick, counted
    try:
        for task in tasks:
            yield call(task)
    finally:
        _tick = before


def _start_worker(done: Any) -> None:
    """In a worker: one OpenCV thread, Ctrl-C left to the parent, and an end when the parent is gone."""
    global _tick
    import cv2

    cv2.setNumThreads(1)
    leave_signals_to_parent(signal.SIGINT)

    def count() -> None:
        with done.get_lock():
            done.value += 1

    _tick = count


def leave_signals_to_parent(*numbers: int) -> None:
    """In a worker: signals that a terminal or a cluster sends to all processes at once are the parent's to answer, and
    the worker ends when the parent is gone."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
