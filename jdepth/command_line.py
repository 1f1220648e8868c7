"""One flags parser for all commands: a mistake is one line and exit code 2, `--help` exits 0.

Each command defines its flags on a FlagValues of its own, so that importing two commands into one
process cannot clash, and gives a `main(values, arguments) -> int | None`.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from absl import flags

from jdepth.errors import UserError

Define = Callable[[flags.FlagValues], None]
Main = Callable[[flags.FlagValues, list[str]], int | None]


def run(main: Main, usage: str, define: Define, argv: Sequence[str] | None = None) -> None:
    """Parse `argv`, call `main` and leave the process with its exit code.

    Args:
      main: called with the parsed flags and the positional arguments.
      usage: text printed above the flags by `--help`.
      define: adds the command's flags.
      argv: program name and arguments; the process's own by default.
    """
    sys.exit(call(main, usage, define, sys.argv if argv is None else argv))


def call(main: Main, usage: str, define: Define, argv: Sequence[str]) -> int:
    """As `run`, but returns the exit code: 0 done, 2 bad input, 130 interrupted, 1 nobody reads."""
    values = flags.FlagValues()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without δ must not lose the result
    try:
        with _process_arguments(argv):
            define(values)
            if any(argument in ("--help", "-h") for argument in argv[1:]):
                print(usage.strip() + "\n\nFlags:\n" + _flag_help(values))
                return 0
            arguments = _parse(values, list(argv))
        return main(values, arguments) or 0
    except UserError as error:
        return _fail(str(error))
    except flags.Error as error:
        return _fail(f"{error} (see --help)")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; nothing can be told to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(of_system(error))
    except (AssertionError, RuntimeError):
        if reason := no_device():
            return _fail(reason)
        raise


def no_device() -> str | None:
    """Why jax has no device to compute on, where JAX_PLATFORMS names one that is not here; else None."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    if not wanted:
        return None
    import jax

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # a GPU that is missing is a bare assertion of jax 0.10
        said = f" ({' '.join(str(error).split())})" if str(error) else ""
        return (
            f"JAX_PLATFORMS={wanted}: jax finds no such device here{said}: unset it, or install the jax of this "
            "device (JDEPTH_EXTRAS=cuda12, cuda13 or tpu bash launch/local.sh)"
        )
    return None


def of_system(error: OSError) -> str:
    """What the operating system refused, and what to look at."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}: check the path, its permissions and the free space"


def no_arguments(arguments: Sequence[str]) -> None:
    """Refuse stray positional arguments, which absl would ignore."""
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}: this command takes flags only (see --help)")


@contextlib.contextmanager
def _process_arguments(argv: Sequence[str]):
    # config_flags looks for overrides in sys.argv, not in what is being parsed.
    before, sys.argv = sys.argv, list(argv)
    try:
        yield
    finally:
        sys.argv = before


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
    if "config" not in values:
        return values(argv)[1:]
    from jdepth import config_flags

    config_flags.refuse_repeated(argv)
    try:
        return values(argv)[1:]
    except Exception as error:
        raise config_flags.explain(argv, error, values) from error


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _flag_help(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(values):
        flag = values[name]
        if name != flag.name or name in ("flagfile", "undefok") or name.startswith("config."):
            continue
        default = "" if flag.default in (None, False, "", []) else f" (default: {flag.default})"
        lines.append(f"  --{name}: {flag.help}{default}")
    return "\n".join(lines)
