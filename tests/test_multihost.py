"""Runs of two processes on one machine: equal to one process, stopped, killed, and started wrongly.

The processes have one CPU device each; what they must equal is one process with two. They share a compilation cache.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_train import assert_same_run, finish, start
from tiny_config import ROOT

from jdepth import checkpoint, lifeline, logbook, multihost
from jdepth.errors import UserError

SHORT = {"steps": 20, "checkpoint.every": 10, "evaluate.every": 20}
# On a single core XLA sums with as many threads as a process has devices, otherwise with one per core: bytes are equal
# where threads are as many.
same_threads = pytest.mark.skipif(
    hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) < 2, reason="needs two cores"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def free_port() -> int:
    """A port that is free, and the one after it too, most likely."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return min(server.getsockname()[1], 65000)


def start_two(cache, workdir, *flags, changes=({}, {}), **variables) -> list[subprocess.Popen]:
    """Both processes of a run on the tiny config."""
    port, processes = free_port(), []
    for number, own in enumerate(changes):
        given = {
            "JDEPTH_COORDINATOR": f"127.0.0.1:{port}", "JDEPTH_PROCESSES": "2", "JDEPTH_PROCESS": str(number),
        } | variables  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            processes.append(start(cache, workdir, 1, *flags, **(SHORT | own)))
    return processes


def finish_two(processes: list[subprocess.Popen], code: int = 0) -> list[str]:
    """What both print: standard output for the codes 0 and 75, error output otherwise."""
    results = [process.communicate(timeout=900) for process in processes]
    for process, (_, error) in zip(processes, results, strict=True):
        assert process.returncode == code, error[-3000:]
    return [out if code in (0, 75) else error for out, error in results]


def wait_for_row(process: subprocess.Popen, workdir, step: int) -> None:
    while process.poll() is None:
        if any(row["step"] >= step for row in logbook.read_rows(workdir / "metrics.jsonl")):
            return
        time.sleep(0.005)
    raise AssertionError(process.communicate()[1][-3000:])


# ---- Runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_process(cache, tmp_path_factory):
    """The run of one process with two devices that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "one"
    finish(start(cache, workdir, 2, **SHORT))
    return workdir


@same_threads
@pytest.mark.slow
def test_two_processes_compute_what_one_computes(cache, one_process, tmp_path):
    """The same bytes: with two devices every sum over devices has two terms."""
    first, second = finish_two(start_two(cache, tmp_path / "run"))
    assert "process 0 of 2" in first and "step 20/20" in first
    assert "process 1 of 2" in second and "step" not in second
    assert_same_run(one_process, tmp_path / "run")


@same_threads
@pytest.mark.slow
def test_a_stopped_run_started_again_is_the_same_run(cache, one_process, tmp_path):
    """One of the processes is told to end; both save after the log interval. One process of two devices goes on."""
    workdir = tmp_path / "run"
    processes = start_two(cache, workdir)
    wait_for_row(processes[0], workdir, 5)
    processes[1].send_signal(signal.SIGTERM)
    # As srun does: when one has ended, the other is told to, which is closing down by then.
    while all(process.poll() is None for process in processes):
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    first, _ = finish_two(processes, 75)
    stopped = checkpoint.read_clock(workdir)["step"]
    assert f"stopped by SIGTERM after step {stopped} of 20" in first
    assert stopped in (5, 10, 15)
    assert f"going on from step {stopped}" in finish(start(cache, workdir, 2, **SHORT))
    assert_same_run(one_process, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other(victim, cache, tmp_path):
    workdir = tmp_path / "run"
    processes = start_two(cache, workdir, changes=({"steps": 1000, "evaluate.every": 1000},) * 2)
    wait_for_row(processes[0], workdir, 5)
    processes[victim].kill()
    began = time.monotonic()
    _, error = processes[1 - victim].communicate(timeout=120)
    print(f"the other ended after {time.monotonic() - began:.1f} s")
    assert processes[1 - victim].returncode not in (0, 75)
    assert f"error: process {victim} of 2 on " in error and "has died" in error


def test_a_mistake_in_one_process_ends_both(cache, tmp_path):
    processes = start_two(cache, tmp_path / "run", changes=({}, {"seed": 1}))
    for error in finish_two(processes, 2):
        assert "process 1 has another config than process 0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_before_training_ends_both_at_once(cache, tmp_path):
    processes = start_two(cache, tmp_path / "run")
    assert any("process 0 of 2" in line for line in processes[0].stdout)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 75 and "ended by SIGTERM outside of training" in error
    assert not checkpoint.steps(tmp_path / "run", "last")


AGREES = """
import pathlib, signal, sys
from jdepth import multihost
from jdepth.errors import UserError
multihost.FILE_SEEN = 2
folder = pathlib.Path(sys.argv[1])
with multihost.joined(False, 60, 60):
    number, count = multihost.shard()
    assert count == 2 and multihost.is_first() == (number == 0)
    assert multihost.gather(7 + number).tolist() == [7, 8]
    multihost.check_same("text", "a")
    for texts in ("ab", "ba"):
        try:
            multihost.check_same("text", texts[number])
        except UserError as error:
            assert "process 1 has another text than process 0" in str(error)
        else:
            raise AssertionError("two texts count as the same")
    with multihost.Termination() as termination:
        assert not termination.agreed()
        if number == 1:
            signal.raise_signal(signal.SIGTERM)
        assert termination.agreed()
    multihost.check_shared(folder, folder / "token")
assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
"""


@pytest.mark.parametrize("folders, code", [(("a", "a"), 0), (("a", "b"), 2)])
def test_two_processes_agree_and_their_workdir_must_be_shared(folders, code, tmp_path):
    """What a run exchanges: values in the order of the processes, texts to compare, a request to end, a folder."""
    port, processes = free_port(), []
    for number, folder in enumerate(folders):
        (tmp_path / folder).mkdir(exist_ok=True)
        own = {"JDEPTH_COORDINATOR": f"127.0.0.1:{port}", "JDEPTH_PROCESSES": "2", "JDEPTH_PROCESS": str(number)}
        command = [sys.executable, "-c", AGREES, str(tmp_path / folder)]
        environment = os.environ | own | {"JAX_PLATFORMS": "cpu"}
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    for error in finish_two(processes, code):
        assert code == 0 or "config.workdir: process 1 of 2 does not see" in error


@pytest.mark.slow
def test_one_process_stops_and_saves_too(cache, tmp_path):
    workdir = tmp_path / "run"
    process = start(cache, workdir, 2, **(SHORT | {"steps": 1000, "evaluate.every": 1000, "data.workers": 2}))
    wait_for_row(process, workdir, 5)
    # As a cluster does it: to every process, the workers that read data among them, which shall not end.
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    others = [int(pid) for pid in workers.read_text().split()] if workers.exists() else []
    for pid in (*others, process.pid):
        os.kill(pid, signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 75
    assert checkpoint.steps(workdir, "last") == [logbook.read_rows(workdir / "metrics.jsonl")[-1]["step"]]


@same_threads
@pytest.mark.slow
def test_jax_finds_the_processes_by_itself(cache, one_process, tmp_path):
    """By the variables of a Slurm job, as it would in a TPU pod by those of the pod."""
    workdir, processes = tmp_path / "run", []
    job = {"JOB_ID": str(random.randrange(4000)), "STEP_NODELIST": "localhost", "NTASKS": "2", "STEP_NUM_NODES": "1"}
    for number in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in (job | {"PROCID": number, "LOCALID": number}).items():
                patch.setenv(f"SLURM_{name}", value)
            processes.append(start(cache, workdir, 1, "--multihost", **SHORT))
    finish_two(processes)
    assert_same_run(one_process, workdir)


def test_the_first_ctrl_c_asks_and_the_second_ends(monkeypatch, capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with multihost.Termination() as termination:
            assert not termination.agreed()
            signal.raise_signal(signal.SIGINT)
            assert termination.agreed() and termination.by == "Ctrl-C" and "saved" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        # After a SIGTERM a first Ctrl-C still lets it be saved.
        with multihost.Termination() as termination:
            signal.raise_signal(signal.SIGTERM)
            assert termination.agreed() and termination.by == "SIGTERM"
            signal.raise_signal(signal.SIGINT)
            assert termination.agreed()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with multihost.Termination() as termination:
            signal.raise_signal(signal.SIGINT)
            assert not termination.agreed()
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_a_cluster_jax_finds_nothing(cache, tmp_path):
    error = finish(start(cache, tmp_path / "run", 1, "--multihost", **SHORT), code=2)
    assert "--multihost: jax finds no cluster here" in error.splitlines()[-1]


# ---- Starting --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address, count, number, message",
    [
        ("node1:9000", "2", "", "JDEPTH_PROCESS: not set"),
        ("", "2", "0", "JDEPTH_COORDINATOR: not set"),
        ("node1", "2", "0", "JDEPTH_COORDINATOR: 'node1' is not host:port"),
        ("node1:65535", "2", "0", "is not host:port"),
        ("node1:0", "2", "0", "is not host:port"),
        (":9000", "2", "0", "is not host:port"),
        ("node1:9000", "two", "0", "JDEPTH_PROCESSES: 'two'"),
        ("node1:9000", "0", "0", "JDEPTH_PROCESSES: '0' is not a number of processes"),
        ("node1:9000", "2", "2", "JDEPTH_PROCESS: '2' is not a number from 0 to 1"),
        ("node1:9000", "2", "-1", "JDEPTH_PROCESS: '-1' is not a number from 0 to 1"),
    ],
)
def test_wrong_variables_are_named(address, count, number, message):
    given = dict(zip(multihost.VARIABLES, (address, count, number), strict=True))
    with pytest.raises(UserError, match=message):
        multihost.from_environment(given)


def test_without_the_variables_a_process_is_alone():
    assert multihost.from_environment({"SLURM_NTASKS": "4"}) is None
    given = dict(zip(multihost.VARIABLES, ("node1:9000", "2", "1"), strict=True))
    assert multihost.from_environment(given) == ("node1:9000", 1, 2)


def test_wrong_variables_are_one_line(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("JDEPTH_PROCESSES", "2")
    error = finish(start(cache, tmp_path / "run", **SHORT), code=2)
    assert error.splitlines()[-1].startswith("error: JDEPTH_COORDINATOR, JDEPTH_PROCESS: not set")


@pytest.mark.parametrize(
    "number, message",
    [(0, "1 of 2 processes have come to .* within 2 s; missing: process 1"), (1, "process 1 of 2: no roll call by")],
)
def test_a_missing_process_is_named_in_time(number, message, cache, tmp_path):
    began = time.monotonic()
    with pytest.raises(UserError, match=message):
        lifeline.roll_call(f"127.0.0.1:{free_port()}", number, 2, timeout=2, silence=10)
    assert time.monotonic() - began < 10


def test_a_missing_process_ends_the_command(cache, tmp_path):
    process = start_two(cache, tmp_path / "run", "--start_timeout=2", changes=({},))[0]
    error = finish(process, code=2)
    assert "missing: process 1" in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "hellos, message",
    [
        ([{"process": 1, "processes": 4}], "JDEPTH_PROCESSES: process 1 on .* says 4, process 0 says 3"),
        ([{"process": 1, "processes": 3}] * 2, "JDEPTH_PROCESS: two processes, .* say that they are number 1"),
    ],
)
def test_processes_that_do_not_fit_together_are_told(hellos, message):
    port, answers = free_port(), []

    def come():
        peers = []
        for hello in hellos:
            while True:
                try:
                    peers.append(lifeline.Peer.of(socket.create_connection(("127.0.0.1", port))))
                    break
                except OSError:
                    time.sleep(0.05)
            peers[-1].send(**hello)
        answers.extend(peer.receive(10) for peer in peers)

    others = threading.Thread(target=come)
    others.start()
    with pytest.raises(UserError, match=message) as raised:
        lifeline.roll_call(f"127.0.0.1:{port}", 0, 3, timeout=10, silence=10)
    others.join()
    assert answers == [{"error": str(raised.value)}] * len(hellos)


def test_strangers_at_the_port_are_ignored():
    port = free_port()
    stranger = threading.Thread(
        target=lambda: (time.sleep(0.3), socket.create_connection(("127.0.0.1", port)).sendall(b"GET / HTTP/1.1\n"))
    )
    stranger.start()
    with pytest.raises(UserError, match="missing: process 1"):
        lifeline.roll_call(f"127.0.0.1:{port}", 0, 2, timeout=2, silence=10)
    stranger.join()


def test_a_process_that_falls_silent_counts_as_dead(tmp_path):
    """Stopped, not killed: its connection stays open."""
    port = free_port()
    code = "import sys, time; from jdepth import lifeline; number = int(sys.argv[1])\n"
    code += f"lifeline.roll_call('127.0.0.1:{port}', number, 2, 60, 2); time.sleep(60)"
    commands = [[sys.executable, "-c", code, str(k)] for k in (0, 1)]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    time.sleep(3)
    both[1].send_signal(signal.SIGSTOP)
    _, error = both[0].communicate(timeout=30)
    assert both[0].returncode == 1
    assert "error: process 1 of 2 on " in error and "has given no sign of life for 2 s" in error
    both[1].kill()
    both[1].communicate()
