"""Several processes as one run: how they meet, what they agree on, how they end.

A run of one process needs none of this and passes through. Otherwise each process is told, by the launcher,

    JDEPTH_COORDINATOR   host:port of process 0; the port after it is used too
    JDEPTH_PROCESSES     how many there are
    JDEPTH_PROCESS       which one this is, from 0

or, with the flag --multihost, jax finds this out from the machine (a TPU pod, Slurm, Open MPI).
"""

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdepth import command_line, lifeline
from jdepth.errors import Stopped, UserError

VARIABLES = ("JDEPTH_COORDINATOR", "JDEPTH_PROCESSES", "JDEPTH_PROCESS")
# Seconds within which a file that process 0 wrote shows up on the other hosts of a network file system.
FILE_SEEN = 60.0
# Seconds for the news that another process has died, which this one first meets as a broken connection of jax.
NEWS = 5.0


@contextlib.contextmanager
def joined(detect: bool, start_timeout: float, lost_timeout: float) -> Iterator[None]:
    """Run a block as one of the processes of a run; a failure inside ends this process and the others.

    Only process 0 prints to standard output. To be entered before jax touches a device.

    Args:
      detect: let jax find the other processes where the three variables are not set.
      start_timeout: seconds to wait for all processes.
      lost_timeout: seconds of silence after which a process counts as dead.

    Raises UserError for variables that do not fit, and for processes that do not come.
    """
    given = from_environment(os.environ)
    if given[2] == 1 if given else not detect:
        before = _end_by_signal(None)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        return
    line = None
    if given is not None:
        address, number, count = given
        line = lifeline.roll_call(address, number, count, start_timeout, lost_timeout)
        host, port = address.rsplit(":", 1)
        given = f"{host}:{int(port) + 1}", count, number
    with _ended_together(line), contextlib.ExitStack() as closing:
        _initialize(given, start_timeout, lost_timeout)
        import jax

        # To the very end: the launcher may send it to those that end last.
        _end_by_signal(line)
        # Now, while all are here: CPU processes wait 30 s for each other when they connect, later without a limit.
        gather(0)
        print(f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} devices", flush=True)
        if jax.process_index() > 0:
            closing.enter_context(contextlib.redirect_stdout(closing.enter_context(open(os.devnull, "w"))))
        yield
    if line is not None:
        line.leave()
    # Launchers send SIGTERM to those that end last. While Python closes down its handlers are gone, and the signal would
    # change the exit code, by which a run that was saved is started again; to be ignored stays.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def from_environment(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """(host:port, number, count) of the three variables, or None where none is set."""
    values = [environment.get(name, "") for name in VARIABLES]
    if not any(values):
        return None
    if not all(values):
        absent = ", ".join(name for name, value in zip(VARIABLES, values, strict=True) if not value)
        raise UserError(f"{absent}: not set, while others of {', '.join(VARIABLES)} are: set all three or none")
    address, count, number = values
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise UserError(f"JDEPTH_COORDINATOR: {address!r} is not host:port, such as node1:9000")
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"JDEPTH_PROCESSES: {count!r} is not a number of processes")
    if not number.isdecimal() or int(number) >= int(count):
        raise UserError(f"JDEPTH_PROCESS: {number!r} is not a number from 0 to {int(count) - 1} (JDEPTH_PROCESSES - 1)")
    return address, int(number), int(count)


def _initialize(given: tuple[str, int, int] | None, start_timeout: float, lost_timeout: float) -> None:
    import jax

    # CPU devices of several processes: jax's default cannot compute across them.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # "deactivate": a Slurm job's variables would limit each process to one GPU.
    where = dict(zip(("coordinator_address", "num_processes", "process_id"), given or (), strict=False))
    try:
        jax.distributed.initialize(
            **where,
            cluster_detection_method="deactivate" if where else None,
            initialization_timeout=int(start_timeout),
            heartbeat_timeout_seconds=int(lost_timeout),
        )
    except (RuntimeError, ValueError) as error:
        if where:
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--multihost: jax finds no cluster here ({reason}): set {', '.join(VARIABLES)} instead"
        ) from error


def _end_by_signal(line: lifeline.Lifeline | None) -> Any:
    """From now on SIGTERM ends this process and the others at once: outside of training there is nothing to save.

    Returns what SIGTERM did before.
    """

    def end(number, frame):
        reason = "ended by SIGTERM outside of training: the same command goes on"
        if line is not None:
            line.fail(reason, Stopped.CODE)
        os.write(2, f"error: {reason}\n".encode())
        os._exit(Stopped.CODE)

    # In place of jax's own, which feeds a service that is not used here.
    return signal.signal(signal.SIGTERM, end)


@contextlib.contextmanager
def _ended_together(line: lifeline.Lifeline | None) -> Iterator[None]:
    """Leave by an exception: tell it here and to the others, and end at once, since they wait for this process."""
    try:
        yield
    except KeyboardInterrupt:
        reason, code = "interrupted", 130
    except (UserError, OSError) as error:
        told = command_line.of_system(error) if isinstance(error, OSError) else str(error)
        reason, code = " ".join(told.split()), 2
    except Exception as error:
        no_device = command_line.no_device()
        if line is not None and not no_device:
            # What looks like a failure of this process may be the end of another: then its name comes first.
            time.sleep(NEWS)
        if no_device:
            reason, code = no_device, 2
        else:
            traceback.print_exc()
            reason, code = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", 1
    else:
        return
    if line is not None:
        line.fail(reason, code)
    print(f"error: {reason}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


# ---- What the processes of a run agree on ----------------------------------------------------------


def is_first() -> bool:
    """Whether this process writes the run's files."""
    import jax

    return jax.process_index() == 0


def shard() -> tuple[int, int]:
    """(number, count): this process among those of the run."""
    import jax

    return jax.process_index(), jax.process_count()


def gather(value: int) -> np.ndarray:
    """(processes,) int32: the value that each process gives; all must call it at the same place."""
    import jax

    if jax.process_count() == 1:
        return np.array([value], np.int32)
    collect, own = _gathering()
    return np.asarray(collect(jax.make_array_from_process_local_data(own, np.array([value], np.int32))))


@functools.cache
def _gathering():
    import jax
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    mesh = Mesh(
        np.array(devices).reshape(jax.process_count(), -1), ("process", "local"), axis_types=(AxisType.Auto,) * 2
    )
    everywhere, own = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("process"))
    return jax.jit(lambda values: values, out_shardings=everywhere), own


def check_same(what: str, value: Any) -> None:
    """Raise UserError, in every process, unless all give the same value (of what JSON can write)."""
    digest = zlib.crc32(json.dumps(value, sort_keys=True, default=list).encode()) & 0x7FFFFFFF
    digests = gather(digest)
    other = np.flatnonzero(digests != digests[0])
    if other.size:
        raise UserError(
            f"process {other[0]} has another {what} than process 0: start all processes with the same command, the "
            "same files and the same versions"
        )


def check_shared(folder: Path, file: Path) -> None:
    """Raise UserError, in every process, unless all see the `file` that process 0 now writes into `folder`."""
    import jax

    if jax.process_count() == 1:
        return
    token = int(gather(int.from_bytes(os.urandom(3)))[0])
    if is_first():
        file.write_text(f"{token}\n")
    gather(0)
    deadline = time.monotonic() + FILE_SEEN
    while not (seen := file.is_file() and file.read_text() == f"{token}\n") and time.monotonic() < deadline:
        time.sleep(0.5)
    blind = np.flatnonzero(gather(int(seen)) == 0)
    if blind.size:
        raise UserError(
            f"config.workdir: process {blind[0]} of {jax.process_count()} does not see {folder} as process 0 wrote it: "
            "name a folder on a file system that all hosts share"
        )


class Termination:
    """SIGTERM and a first Ctrl-C as a request to save and end, while this context is open.

    Attributes:
      by: what asked, in words.
    """

    def __init__(self):
        self._asked = False
        self.by = "SIGTERM"

    def __enter__(self) -> "Termination":
        # Python delivers signals to the main thread alone; elsewhere they keep their meaning. A shell ignores Ctrl-C for
        # what it runs in the background.
        main = threading.current_thread() is threading.main_thread()
        wanted = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._ask) for number in wanted if main}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame) -> None:
        if number == signal.SIGINT:
            if self.by == "Ctrl-C":
                raise KeyboardInterrupt
            self.by = "Ctrl-C"
            os.write(2, b"Ctrl-C: the run is saved after this log interval, and ends; Ctrl-C again ends it at once\n")
        elif not self._asked:
            os.write(2, b"SIGTERM: the run is saved after this log interval, and ends\n")
        self._asked = True

    def agreed(self) -> bool:
        """Whether any process was asked; the same answer in all, which must call it at the same step."""
        return bool(gather(int(self._asked)).any())
