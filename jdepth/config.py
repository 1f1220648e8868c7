"""Configs: from recipe to ConfigDict, and checked before anything starts.

The schema is the released recipe itself: the same keys, values of the same kind. What a kind cannot
tell (ranges, choices, keys that exclude each other) stands in `check`.
"""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from jdepth.errors import UserError
from jdepth.recipe import RELEASED

CHOICES = {
    "task": ("mldc", "segmentation", "single_label", "reconstruction"),
    "precision": ("bfloat16", "float32", "float64"),
    "backbone.train": ("frozen", "full"),
    "backbone.attention": ("auto", "plain", "looped", "cudnn"),
    "optimizer.decay": ("cosine", "constant"),
}
AT_LEAST = {
    "steps": 1, "look_ahead": 1, "accumulate": 1, "mesh.fsdp": 1, "init_seed": -1, "batch.depth": 1, "batch.auxiliary": 0, "seed": 0, "decoder.channels": 2, "log.every": 1,
    "checkpoint.every": 1, "evaluate.every": 1, "evaluate.batch": 1, "evaluate.during_limit": 1,
    "evaluate.limit": 0, "evaluate.pictures": 0, "evaluate.rooms": 0, "data.workers": 0,
    "data.depth.fraction_seed": 0, "data.depth.limit": 0, "data.auxiliary.limit": 0, "data.depth.rooms": 0,
    "data.auxiliary.rooms": 0, "loss.silog": 0, "loss.gradient": 0, "loss.silog_group": 1, "optimizer.clip": 0,
    "optimizer.rate": 0, "optimizer.weight_decay": 0, "backbone.lr_ratio": 0, "gamma": 0, "beta": 0,
    "evaluate.cache_gib": 0, "depth_range.min": 0, "data.depth.augmentation.rotate_degrees": 0, "data.depth.augmentation.max_depth": 0,
    "data.auxiliary.augmentation.crop_attempts": 1, "data.auxiliary.augmentation.brightness": 0,
    "data.auxiliary.augmentation.hue": 0,
}  # fmt: skip
# Steps are counted in 32 bits on the device.
AT_MOST = {"steps": 2**31 - 1}
SHARES = (
    "alpha", "data.bad_share", "data.depth.fraction", "loss.silog_warmup_fraction", "optimizer.warmup_fraction",
    "optimizer.warmup_ratio", "optimizer.final_ratio", "optimizer.beta1_turn",
    "data.depth.augmentation.rotate_probability", "data.depth.augmentation.flip_probability",
    "data.depth.augmentation.colour_probability", "data.auxiliary.augmentation.flip_probability",
    "data.auxiliary.augmentation.photometric_probability", "data.auxiliary.augmentation.cat_max_ratio",
)  # fmt: skip
# AdamW divides by 1 − β.
BELOW_ONE = ("optimizer.beta1", "optimizer.beta1_high", "optimizer.beta1_low", "optimizer.beta2")
POSITIVE = ("optimizer.eps",)
# Height and width in pixels (`scale`: width and height), and those that may be ().
SIZES = (
    "data.depth.augmentation.crop", "data.auxiliary.augmentation.scale", "data.auxiliary.augmentation.crop",
    "data.auxiliary.augmentation.canvas",
)  # fmt: skip
OPTIONAL_SIZES = (
    "data.depth.rooms_size", "data.auxiliary.rooms_size", "evaluate.input_size", "data.depth.augmentation.resize",
)  # fmt: skip
# Lowest and highest value of a random draw.
INTERVALS = (
    "data.depth.augmentation.gamma", "data.depth.augmentation.brightness", "data.depth.augmentation.colour",
    "data.auxiliary.augmentation.ratio", "data.auxiliary.augmentation.contrast",
    "data.auxiliary.augmentation.saturation",
)  # fmt: skip
# Lists of names; all other lists hold numbers.
NAMES = ("population.task", "backbone.float8")
FLOAT8 = ("qkv", "proj", "fc1", "fc2", "w12", "w3")
# Draws of each member of a mixture.
WEIGHTS = "data.auxiliary.weights"
KINDS = {float: "a number", int: "a whole number", bool: "True or False", str: "a text", tuple: "a list of numbers"}
# A run may go on with other values of these; everything else is fixed by its first start.
FREE_TO_CHANGE = (
    "workdir", "log", "data.workers", "data.bad_share", "data_dir", "evaluate.pictures", "evaluate.batch",
    "evaluate.cache_gib",
    # As with another number of devices, the same up to rounding.
    "mesh", "accumulate",
    # Files that only the first start reads; a frozen backbone is recognised by its fingerprint.
    "init_from", "backbone.weights",
)  # fmt: skip


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


def suggest(key: str) -> str:
    """What an unknown key may have meant, as the end of an error message."""
    known = flatten(RELEASED)
    section, _, last = key.rpartition(".")
    inside = {k.removeprefix(f"{section}."): k for k in known if section and k.startswith(f"{section}.")}
    # A section's name in common makes any two of its keys look alike: compared is what follows.
    close = [inside[k] for k in difflib.get_close_matches(last, inside, n=1, cutoff=0.5)]
    close = close or ([] if inside else difflib.get_close_matches(key, known, n=1, cutoff=0.5))
    close = close or [k for k in known if k.rsplit(".", 1)[-1] == last][:1]
    if close:
        return f"; did you mean {close[0]}?"
    return f"; {section} has {', '.join(inside)}" if inside else "; the keys are those of jdepth/recipe.py"


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError unless `config` has exactly the recipe's keys, with values that make sense."""
    expected, given = flatten(RELEASED), flatten(config)
    for key in given:
        if key not in expected:
            raise UserError(f"config.{key}: unknown key{suggest(key)}")
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
    for key, most in AT_MOST.items():
        if given[key] > most:
            raise UserError(f"config.{key}: {given[key]} is more than {most}")
    for key in SHARES:
        if not 0 <= given[key] <= 1:
            raise UserError(f"config.{key}: {given[key]} is not within 0 and 1")
    for key in BELOW_ONE:
        if not 0 <= given[key] < 1:
            raise UserError(f"config.{key}: {given[key]} must be at least 0 and less than 1")
    for key in POSITIVE:
        if not given[key] > 0:
            raise UserError(f"config.{key}: {given[key]} must be greater than 0")
    _check_tuples(given)
    _check_together(given)


def kind_of(example: Any) -> type:
    """Type that a key's value must have, by the recipe's value; None stands for an optional number."""
    return float if example is None else type(example)


def _check_kind(key: str, value: Any, example: Any) -> None:
    if value is None and example is None:
        return
    wanted = kind_of(example)
    accepted = {float: int | float, tuple: tuple | list}.get(wanted, wanted)
    if isinstance(value, bool) != (wanted is bool) or not isinstance(value, accepted):
        raise UserError(f"config.{key}: {value!r} is not {KINDS[wanted]}")
    if key in NAMES:
        if not all(isinstance(name, str) for name in value):
            raise UserError(f"config.{key}: {value!r} is not a list of names")
        return
    numbers = value if wanted is tuple else (value,) if wanted is float else ()
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in numbers):
        raise UserError(f"config.{key}: {value!r} is not finite, or holds something else than numbers")


def _check_tuples(given: Mapping[str, Any]) -> None:
    for key in SIZES + OPTIONAL_SIZES:
        value = given[key]
        if not value and key in OPTIONAL_SIZES:
            continue
        if len(value) != 2 or not all(isinstance(v, int) and v > 0 for v in value):
            empty = " or ()" if key in OPTIONAL_SIZES else ""
            raise UserError(f"config.{key}: {value!r} must be two whole numbers of pixels{empty}, such as (112, 140)")
    for task in given["population.task"]:
        if task not in ("baseline", *CHOICES["task"]):
            raise UserError(f"config.population.task: {task!r} is not one of baseline, {', '.join(CHOICES['task'])}")
    for name in given["backbone.float8"]:
        if name not in FLOAT8:
            raise UserError(f"config.backbone.float8: {name!r} is not one of {', '.join(FLOAT8)}")
        if given["backbone.float8"].count(name) > 1:
            raise UserError(f"config.backbone.float8: {name!r} stands there more than once")
    for key in INTERVALS:
        value = given[key]
        if len(value) != 2 or not 0 <= value[0] <= value[1]:
            raise UserError(f"config.{key}: {value!r} must be a lowest and a highest number, both at least 0")
    if not all(value > 0 for value in given[WEIGHTS]):
        raise UserError(f"config.{WEIGHTS}: {given[WEIGHTS]!r} must be numbers above 0, one per member, or ()")
    key = "data.depth.augmentation.fixed_crop"
    value = given[key]
    if value and not (
        len(value) == 4
        and all(isinstance(v, int) for v in value)
        and 0 <= value[0] < value[1]
        and 0 <= value[2] < value[3]
    ):
        raise UserError(f"config.{key}: {value!r} must be top, bottom, left, right in pixels, or ()")


def _check_together(given: Mapping[str, Any]) -> None:
    if given["gamma"] is not None and given["beta"] is not None:
        raise UserError("config.gamma and config.beta: give one of them")
    for key in ("gamma", "beta"):
        if given[key] is not None and given["alpha"] != 1.0:
            raise UserError(f"config.{key}: needs config.alpha=1, since it replaces the pair (α, 1 − α)")
    if (given["alpha"] < 1 or given["beta"] is not None) and given["batch.auxiliary"] < 1:
        raise UserError("config.batch.auxiliary: must be at least 1, or set config.alpha=1")
    ahead = given["look_ahead"]
    if ahead > 1 and given["backbone.train"] != "frozen":
        raise UserError("config.look_ahead: needs config.backbone.train=frozen; a trained backbone changes every step")
    for key in ("steps", "log.every"):
        if given[key] % ahead:
            raise UserError(f"config.{key}: {given[key]} is not a multiple of look_ahead={ahead}")
    if given["accumulate"] > 1 and given["loss.gradient"]:
        raise UserError("config.accumulate: needs config.loss.gradient=0, whose means over pixels do not add up in parts")
    if given["backbone.float8"] and (given["backbone.train"] != "frozen" or given["precision"] == "float64"):
        raise UserError(
            "config.backbone.float8: needs config.backbone.train=frozen and config.precision=bfloat16 or float32; what "
            "is trained, or checked in double precision, is not rounded to 8 bits"
        )
    if not given["backbone.name"]:
        raise UserError("config.backbone.name: name a backbone, such as dinov2_vits14 or vit_nano14")
    if not 0 < given["depth_range.min"] < given["depth_range.max"]:
        raise UserError(
            f"config.depth_range: min {given['depth_range.min']} and max {given['depth_range.max']} "
            "must be metres with 0 < min < max"
        )
    for key in ("checkpoint.every", "evaluate.every"):
        if given[key] % given["log.every"]:
            raise UserError(f"config.{key}: {given[key]} is not a multiple of log.every={given['log.every']}")
    if given["evaluate.every"] % given["checkpoint.every"]:
        raise UserError(
            f"config.evaluate.every: {given['evaluate.every']} is not a multiple of "
            f"checkpoint.every={given['checkpoint.every']}, so that the best checkpoint can be kept"
        )


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


def read_json(path: Path) -> dict[str, Any]:
    """The config that a run left in its workdir. Raises UserError if it cannot be read or is no longer valid."""
    try:
        config = as_dict(json.loads(path.read_text()))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: not a run's config.json ({error}): put its own file back, or use a new folder"
        ) from error
    older = [key for key in flatten(RELEASED) if key not in flatten(config)]
    try:
        check(config)
    except UserError as error:
        hint = f" (a run of an older jdepth, or not its whole config: it lacks {', '.join(older[:3])})" if older else ""
        raise UserError(f"{path}: {error}{hint}") from error
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
