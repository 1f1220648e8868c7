"""Train, evaluate and predict as one config says.

    python -m jdepth.main --config configs/quickstart.py [--config.key=value ...] [--dry_run]
"""

from pathlib import Path

from absl import flags

from jdepth import command_line

USAGE = """Train a depth model as a config says; the same command again goes on where it stopped.

  python -m jdepth.main --config configs/quickstart.py
  python -m jdepth.main --config configs/nyu_mix6.py --config.alpha=0.8 --config.workdir=runs/alpha08
  python -m jdepth.main --config configs/nyu_mix6.py --dry_run"""


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    from jdepth import config_flags

    config_flags.define(values)
    flags.DEFINE_boolean(
        "dry_run", False,
        "print parameters, FLOPs, memory and data of the run, with neither data nor weights, and stop",
        flag_values=values,
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
    from jdepth import compilation, train

    compilation.keep_programs()
    train.train(config)
    return 0


if __name__ == "__main__":
    command_line.run(main, USAGE, define)
