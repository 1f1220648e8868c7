"""Train, evaluate and predict as one config says.

    python -m jdepth.main --config configs/quickstart.py [--config.key=value ...] [--dry_run]
"""

import gc
from pathlib import Path

from absl import flags

from jdepth import command_line
from jdepth.errors import Stopped

USAGE = """Train a depth model as a config says; the same command again goes on where it stopped.

  python -m jdepth.main --config configs/quickstart.py
  python -m jdepth.main --config configs/nyu_mix6.py --config.alpha=0.8 --config.workdir=runs/alpha08
  python -m jdepth.main --config configs/nyu_mix6.py --dry_run

SIGTERM and a first Ctrl-C save the run and end it with exit code 75."""


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    from jdepth import config_flags

    config_flags.define(values)
    flags.DEFINE_boolean(
        "dry_run", False,
        "print parameters, FLOPs, memory and data of the run, with neither data nor weights, and stop",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "multihost", False, "one of the processes of a TPU pod, Slurm or Open MPI job, which jax finds by itself",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "start_timeout", 300, "of several processes: seconds within which all must have started",
        lower_bound=1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "lost_timeout", 100, "of several processes: seconds without a sign of life after which one counts as dead",
        lower_bound=5, flag_values=values,
    )  # fmt: skip


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Run what the flags ask for."""
    from jdepth import config_flags

    command_line.no_arguments(arguments)
    config = config_flags.read(values)
    if not config["workdir"]:
        config["workdir"] = str(Path("runs") / Path(values["config"].config_filename).stem)
    if values.dry_run:
        from jdepth import dry_run

        dry_run.show(config)
        return 0
    # What imports make stays: it is not looked through for garbage, now or while the step is traced.
    gc.disable()
    from jdepth import compilation, multihost, train

    gc.freeze()
    gc.enable()
    compilation.keep_programs()
    with multihost.joined(values.multihost, values.start_timeout, values.lost_timeout):
        try:
            train.train(config)
        except Stopped as stopped:
            print(stopped, flush=True)
            return stopped.CODE
    return 0


if __name__ == "__main__":
    command_line.run(main, USAGE, define)
