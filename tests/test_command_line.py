"""The commands' common front: exit codes, one line per mistake, help."""

import errno
import os
import subprocess
import sys

import pytest
from absl import flags
from tiny_run import call, refused

from jdepth import command_line, convert, evaluate, main, predict
from jdepth.errors import UserError

COMMANDS = (main, evaluate, predict, convert)


class Command:
    """A command that takes `--number` and does what it is told."""

    USAGE = "Do something."

    def __init__(self, action):
        self.action = action

    def define(self, values):
        flags.DEFINE_integer("number", 0, "a number", lower_bound=0, flag_values=values)

    def main(self, values, arguments):
        return self.action(values, arguments)


def raising(error):
    def action(values, arguments):
        raise error

    return Command(action)


def test_exit_codes(capsys):
    assert call(Command(lambda values, arguments: None)) == 0
    assert call(Command(lambda values, arguments: 1)) == 1
    assert call(Command(lambda values, arguments: values.number), "--number=3") == 3
    assert call(raising(KeyboardInterrupt())) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_mistake_is_one_line_and_code_2(capsys):
    assert refused(capsys, raising(UserError("depth.png:\n  not an\n image"))) == "error: depth.png: not an image"


def test_a_full_disk_or_a_forbidden_path_is_one_line(capsys):
    line = refused(capsys, raising(PermissionError(errno.EACCES, "Permission denied", "runs/x")))
    assert line == "error: runs/x: Permission denied: check the path, its permissions and the free space"
    assert "No space left" in refused(capsys, raising(OSError(errno.ENOSPC, "No space left on device")))


@pytest.mark.parametrize("platform, said", [("cuda", "jax finds no such device here"), ("xyz", "'xyz' is not in the list")])
def test_a_missing_device_is_one_line(platform, said):
    code = "from test_command_line import *; import jax; sys.exit(call(Command(lambda *_: jax.devices())))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=os.path.dirname(__file__), env=os.environ | {"JAX_PLATFORMS": platform},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: JAX_PLATFORMS={platform}: ") and said in done.stderr
    assert "Traceback" not in done.stderr


def test_our_own_mistakes_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        call(raising(ZeroDivisionError()))


def test_a_closed_pipe_is_silent():
    code = """
import sys
from jdepth import command_line
def main(values, arguments):
    for i in range(100000):
        print("a line of output", i)
command_line.run(main, "usage", lambda values: None, ["x"])
"""
    reader = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    reader.stdout.readline()
    reader.stdout.close()
    assert reader.stderr.read() == "" and reader.wait(60) == 1


def test_flags_are_checked(capsys):
    done = Command(lambda values, arguments: None)
    assert "numbr" in refused(capsys, done, "--numbr=3") and "number" in refused(capsys, done, "--numbr=3")
    assert "many" in refused(capsys, done, "--number=many")
    assert "-1" in refused(capsys, done, "--number=-1")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.__name__)
def test_help(command, capsys):
    for flag in ("--help", "-h"):
        assert call(command, flag) == 0
        out = capsys.readouterr().out
        assert "python -m jdepth." in out and "Flags:" in out
    # Every flag is explained, and none of absl's own is listed.
    lines = out.split("Flags:\n")[1].splitlines()
    assert all(line.startswith("  --") and line.split(": ", 1)[1] for line in lines)
    assert not any("flagfile" in line or "undefok" in line for line in lines)


@pytest.mark.parametrize("command", (main, evaluate), ids=lambda c: c.__name__)
def test_stray_arguments_are_refused(command, capsys):
    line = refused(capsys, command, "configs/quickstart.py")
    assert line == "error: unexpected argument 'configs/quickstart.py': this command takes flags only (see --help)"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.__name__)
def test_unknown_flags_are_refused(command, capsys):
    assert "Unknown command line flag 'nonsense'" in refused(capsys, command, "--nonsense=1")


def test_two_commands_share_a_process_without_clashing(capsys):
    for command in COMMANDS + COMMANDS:
        assert call(command, "--help") == 0


def test_the_process_arguments_are_put_back(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pytest", "one"])
    call(Command(lambda values, arguments: None), "--number=1")
    assert sys.argv == ["pytest", "one"]


def test_run_leaves_with_the_code(monkeypatch):
    done = Command(lambda values, arguments: values.number)
    with pytest.raises(SystemExit) as left:
        command_line.run(done.main, done.USAGE, done.define, ["x", "--number=7"])
    assert left.value.code == 7
