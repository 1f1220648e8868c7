"""`--config FILE` and its overrides `--config.key=value` on the command line, with every mistake explained.

ml_collections reads the file and applies the overrides. A misspelt key, an unreadable file or an error
inside the file comes out of it as whatever exception was at hand; `explain` finds the user's mistake in it.
"""

import re
import traceback
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from jdepth import config
from jdepth.errors import UserError
from jdepth.recipe import RELEASED

NO_FILE = "--config: name a config file, such as --config configs/quickstart.py"


def define(values: flags.FlagValues) -> None:
    """Add `--config FILE` and its overrides `--config.key=value` to a command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "config file, such as configs/quickstart.py; override with --config.key=value",
        lock_config=True, flag_values=values,
    )  # fmt: skip


def read(values: flags.FlagValues) -> dict[str, Any]:
    """The checked config of the command line, as a plain dict. Raises UserError."""
    if not values["config"].present:
        raise UserError(NO_FILE)
    given, file = values.config, values["config"].config_filename
    try:
        # ml_collections reports a file that it could not read at the first access to what it gave.
        readable = hasattr(given, "items")
    except OSError as error:
        raise explain([f"--config={file}"], error) from error
    if not readable:
        raise UserError(f"--config: {file}: get_config() gives {given!r}, expected jdepth.config.wrap(recipe)")
    result = config.as_dict(given)
    config.check(result)
    return result


def refuse_repeated(argv: Sequence[str]) -> None:
    """Raise UserError for a list given twice, which ml_collections would join, and for two config files."""
    if sum(argument.lstrip("-").partition("=")[0] == "config" for argument in argv if argument.startswith("-")) > 1:
        raise UserError("--config: given twice; give one config file, and override its keys with --config.key=value")
    lists = {key for key, value in config.flatten(RELEASED).items() if isinstance(value, tuple)}
    seen = set()
    for _, key in _overrides(argv):
        if key in seen & lists:
            raise UserError(f"--config.{key}: given twice; give the whole list once")
        seen.add(key)


def explain(argv: Sequence[str], error: Exception, values: Container[str] = ()) -> UserError:
    """The user's mistake behind what was raised while parsing `argv`, as one line; `values`: the command's flags."""
    known = config.flatten(RELEASED)
    overrides = list(_overrides(argv))
    for _, key in overrides:
        if key not in known and key in values:
            return UserError(f"--config.{key}: unknown key; did you mean --{key}?")
        if key not in known:
            return UserError(f"--config.{key}: unknown key{config.suggest(key)}")
    place, file = _file(argv)
    if overrides and (file is None or overrides[0][0] < place):
        return UserError(f"--config.{overrides[0][1]}: put --config FILE before it")
    wrong = re.match(r"flag --config\.([^=]+)=(.*?): ", str(error), re.DOTALL)
    if wrong and wrong.group(1) in known:
        kind = config.KINDS[config.kind_of(known[wrong.group(1)])]
        return UserError(f"--config.{wrong.group(1)}: {wrong.group(2)!r} is not {kind}")
    if isinstance(error, flags.UnrecognizedFlagError) and error.flagname in known:
        return UserError(f"--{error.flagname}: unknown flag; did you mean --config.{error.flagname}?")
    switch = "does not take an argument" in str(error)  # of --nodry_run=3 absl raises a bare ValueError
    if file is None or switch or (isinstance(error, flags.Error) and "parsing config file" not in str(error)):
        return UserError(f"{error} (see --help)")
    return _unreadable(file, error)


def _overrides(argv: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(position, key) of every `--config.key`."""
    for position, argument in enumerate(argv):
        found = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if found:
            yield position, found.group(1)


def _file(argv: Sequence[str]) -> tuple[int, str | None]:
    """(position, FILE) of the last `--config=FILE` or `--config FILE`; (-1, None) without one."""
    found = -1, None
    for position, argument in enumerate(argv):
        flag, given, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and flag == "config":
            found = position, value if given else "".join(argv[position + 1 : position + 2])
    return found


def _unreadable(file: str, error: Exception) -> UserError:
    path = Path(file.partition(":")[0])  # what follows the colon is handed to get_config
    if not file:
        return UserError(NO_FILE)
    if not path.is_file():
        return UserError(f"--config: {path}: no such file")
    reasons = [error]
    while reasons[-1].__cause__ or reasons[-1].__context__:
        reasons.append(reasons[-1].__cause__ or reasons[-1].__context__)
    for reason in reasons:
        if isinstance(reason, SyntaxError):
            return UserError(f"--config: {path}, line {reason.lineno}: {type(reason).__name__}: {reason.msg}")
        lines = [f.lineno for f in traceback.extract_tb(reason.__traceback__) if Path(f.filename).name == path.name]
        if lines:
            return UserError(f"--config: {path}, line {lines[-1]}: {type(reason).__name__}: {reason}")
    if isinstance(reasons[-1], AttributeError) and "get_config" in str(reasons[-1]):
        return UserError(f"--config: {path}: has no function get_config; see configs/quickstart.py")
    return UserError(f"--config: {path}: {type(reasons[-1]).__name__}: {reasons[-1]}")
