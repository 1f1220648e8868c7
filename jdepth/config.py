"""Configs: from recipe to ConfigDict, read from the command line, checked before anything starts.

The schema is the released recipe itself: the same keys, values of the same kind. What a kind cannot
tell (ranges, choices, keys that exclude each other) stands in `check`.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_dict, config_flags

from jdepth.errors import UserError
from jdepth.recipe import RELEASED

CHOICES = {
    "task": ("mldc", "segmentation", "single_label", "reconstruction"),
    "precision": ("bfloat16", "float32"),
    "backbone.train": ("frozen", "full"),
    "backbone.attention": ("auto", "plain", "cudnn"),
    "optimizer.decay": ("cosine", "constant"),
}
AT_LEAST = {
    "steps": 1, "batch.depth": 1, "batch.auxiliary": 0, "seed": 0, "decoder.channels": 2,
    "log.every": 1, "checkpoint.every": 1, "evaluate.every": 1, "evaluate.batch": 1,
    "evaluate.during_limit": 1, "evaluate.limit": 0, "evaluate.pictures": 0, "evaluate.rooms": 0,
    "data.workers": 0, "data.depth.limit": 0, "data.auxiliary.limit": 0, "data.depth.rooms": 0,
    "data.auxiliary.rooms": 0, "loss.silog": 0, "loss.gradient": 0, "loss.silog_group": 1,
    "optimizer.clip": 0, "optimizer.rate": 0, "optimizer.weight_decay": 0, "backbone.lr_ratio": 0,
    "gamma": 0, "beta": 0, "depth_range.min": 0,
}  # fmt: skip
SHARES = (
    "alpha", "loss.silog_warmup_fraction", "optimizer.warmup_fraction", "optimizer.warmup_ratio",
    "optimizer.final_ratio", "optimizer.beta1", "optimizer.beta1_high", "optimizer.beta1_low",
    "optimizer.beta1_turn", "optimizer.beta2",
    "data.depth.augmentation.rotate_probability", "data.depth.augmentation.flip_probability",
    "data.depth.augmentation.colour_probability", "data.auxiliary.augmentation.flip_probability",
    "data.auxiliary.augmentation.photometric_probability", "data.auxiliary.augmentation.cat_max_ratio",
)  # fmt: skip
# A run may go on with other values of these; everything else is fixed by its first start.
FREE_TO_CHANGE = ("workdir", "log", "data.workers", "data_dir", "evaluate.pictures", "evaluate.batch")


def wrap(recipe: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """ConfigDict of a recipe; None becomes an empty place for a float."""
    result = ml_collections.ConfigDict()
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            result[key] = wrap(value)
        else:
            result[key] = config_dict.placeholder(float) if value is None else value
    return result


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"batch": {"depth": 4}} -> {"batch.depth": 4}; tuples stay values."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _suggest(key: str, known) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    if not close:
        last = key.rsplit(".", 1)[-1]
        close = [k for k in known if k.rsplit(".", 1)[-1] == last][:1]
    return f"; did you mean {close[0]}?" if close else "; the keys are those of jdepth/recipe.py"


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError unless `config` has exactly the recipe's keys, with values that make sense."""
    expected, given = flatten(RELEASED), flatten(config)
    for key in given:
        if key not in expected:
            raise UserError(f"config.{key}: unknown key{_suggest(key, expected)}")
    for key in expected:
        if key not in given:
            raise UserError(f"config.{key}: missing; start the config from jdepth.recipe.released()")
    for key, value in given.items():
        _check_kind(key, value, expected[key])
    for key, choices in CHOICES.items():
        if given[key] not in choices:
            raise UserError(f"config.{key}: {given[key]!r} is not one of {', '.join(choices)}")
    for key, least in AT_LEAST.items():
        if given[key] is not None and given[key] < least:
            raise UserError(f"config.{key}: {given[key]} is less than {least}")
    for key in SHARES:
        if not 0 <= given[key] <= 1:
            raise UserError(f"config.{key}: {given[key]} is not within 0 and 1")
    _check_together(given)


def _check_kind(key: str, value: Any, example: Any) -> None:
    wanted = float if example is None else type(example)
    fine = (
        value is None
        if example is None and value is None
        else isinstance(value, tuple | list)
        if wanted is tuple
        else isinstance(value, bool) == (wanted is bool)
        and isinstance(value, (int, float) if wanted is float else wanted)
    )
    if not fine:
        name = {"str": "text", "tuple": "tuple"}.get(wanted.__name__, wanted.__name__)
        raise UserError(f"config.{key}: {value!r} is not a {name}")
    if wanted is tuple and not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise UserError(f"config.{key}: {value!r} must hold numbers only")
    if isinstance(value, float) and value != value:
        raise UserError(f"config.{key}: not a number")


def _check_together(given: Mapping[str, Any]) -> None:
    variants = [key for key in ("gamma", "beta") if given[key] is not None]
    if len(variants) == 2:
        raise UserError("config.gamma and config.beta: give one of them")
    if variants and given["alpha"] != 1.0:
        raise UserError(f"config.{variants[0]}: needs config.alpha=1, since it replaces the pair (α, 1 − α)")
    if (given["alpha"] < 1 or given["beta"] is not None) and given["batch.auxiliary"] < 1:
        raise UserError("config.batch.auxiliary: must be at least 1, or set config.alpha=1")
    if given["backbone.train"] == "frozen" and not given["backbone.name"]:
        raise UserError("config.backbone.name: a frozen backbone needs a name")
    if not 0 < given["depth_range.min"] < given["depth_range.max"]:
        raise UserError("config.depth_range: needs 0 < min < max")
    for key in ("checkpoint.every", "evaluate.every"):
        if given[key] % given["log.every"]:
            raise UserError(f"config.{key}: {given[key]} is not a multiple of log.every={given['log.every']}")
    if given["evaluate.every"] % given["checkpoint.every"]:
        raise UserError(
            f"config.evaluate.every: {given['evaluate.every']} is not a multiple of "
            f"checkpoint.every={given['checkpoint.every']}, so that the best checkpoint can be kept"
        )
    lengths = {
        "data.depth.rooms_size": (0, 2), "data.auxiliary.rooms_size": (0, 2), "evaluate.input_size": (0, 2),
        "data.depth.augmentation.resize": (0, 2), "data.depth.augmentation.fixed_crop": (0, 4),
        "data.depth.augmentation.crop": (2,), "data.depth.augmentation.gamma": (2,),
        "data.depth.augmentation.brightness": (2,), "data.depth.augmentation.colour": (2,),
        "data.auxiliary.augmentation.scale": (2,), "data.auxiliary.augmentation.ratio": (2,),
        "data.auxiliary.augmentation.crop": (2,), "data.auxiliary.augmentation.canvas": (2,),
        "data.auxiliary.augmentation.contrast": (2,), "data.auxiliary.augmentation.saturation": (2,),
    }  # fmt: skip
    for key, allowed in lengths.items():
        if len(given[key]) not in allowed:
            raise UserError(f"config.{key}: {given[key]!r} needs {' or '.join(map(str, allowed))} numbers")


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
    """Plain nested dict with tuples, as `check` accepts; of a ConfigDict or of parsed JSON."""
    return {
        k: as_dict(v)
        if isinstance(v, Mapping | ml_collections.ConfigDict)
        else tuple(v)
        if isinstance(v, list | tuple)
        else v
        for k, v in config.items()
    }


def read_json(path) -> dict[str, Any]:
    """The config that a run left in its workdir. Raises UserError if it cannot be read."""
    try:
        config = as_dict(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a run's config.json ({error})") from error
    check(config)
    return config


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys that make `other` another experiment than `one`, each with both values."""
    one, other = flatten(as_dict(one)), flatten(as_dict(other))
    return [
        f"{key}={one.get(key)!r} there, {other.get(key)!r} here"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
        and not any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)
    ]


def define(values: flags.FlagValues) -> None:
    """Add `--config FILE` and its overrides `--config.key=value` to a command's flags."""
    config_flags.DEFINE_config_file(
        "config", None, "config file, such as configs/quickstart.py; override with --config.key=value",
        lock_config=True, flag_values=values,
    )  # fmt: skip


def from_flags(values: flags.FlagValues) -> dict[str, Any]:
    """The checked config of the command line, as a plain dict."""
    config = values.config
    if config is None:
        raise UserError("--config: name a config file, such as --config configs/quickstart.py")
    config = as_dict(config)
    check(config)
    return config


def explain(argv: Sequence[str], error: Exception) -> UserError:
    """The user's mistake behind what config_flags raised while reading `argv`.

    config_flags reports a misspelt key or an unreadable file as a bare AttributeError, KeyError or OSError.
    """
    known = flatten(RELEASED)
    for argument in argv:
        found = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if found and found.group(1) not in known:
            key = found.group(1)
            return UserError(f"--config.{key}: unknown key{_suggest(key, known)}")
    detail = str(error).rsplit("Attempted", 1)[-1]
    return UserError(f"--config: cannot read the config file: {type(error).__name__}: {detail}")
