"""What names and neighbours say about a weights file: its official file name, a config.json beside it."""

import json
import logging
import re
from collections.abc import Collection
from pathlib import Path

from jdepth.errors import UserError
from jdepth.weights.catalogue import MODELS
from jdepth.weights.faults import Fault, blame

_OFFICIAL_NAME = re.compile(
    r"(?<![a-z0-9])(dinov2_vit[sblg]14)(?:(_reg4?)?_pretrain|_(nyu|kitti)_(dpt|linear4?)_head)(?![a-z0-9])"
)


def official_name(path: Path) -> str | None:
    """The model that a file name such as dinov2_vits14_nyu_dpt_head.pth stands for, if any."""
    match = _OFFICIAL_NAME.search(path.name)
    if match is None:
        return None
    backbone, registers, scene, head = match.groups()
    if scene:
        return f"{backbone}_{scene}_{head}"
    return backbone + ("_reg4" if registers else "")


def check_official_name(path: Path, possible: Collection[str]) -> None:
    """Raise UserError if `path` is named like a released file of a model its tensors cannot be."""
    name = official_name(path)
    if name is not None and name not in possible:
        raise UserError(f"{path}: is named like {name}, but its tensors are those of {' or '.join(sorted(possible))}")


def neighbour_config(path: Path) -> dict:
    """config.json beside `path` as a dictionary; {} where there is none."""
    config = path.parent / "config.json"
    if not config.is_file():
        return {}
    with blame(config):
        content = json.loads(config.read_bytes())
        if not isinstance(content, dict):
            raise Fault("is not a JSON object")
    return content


def choose(path: Path, candidates: list[str], model: str | None) -> str:
    """Which of `candidates`, alike in their tensors, this is: by `model`, else the file's name, else
    "model" or "max_depth" (metres) of a config.json beside it. UserError listing them if nothing says.
    """
    named = official_name(path)
    if model is not None:
        if model not in candidates:
            raise UserError(f"{path}: its tensors are those of {' or '.join(candidates)}, not of {model}")
        if named not in (None, model):
            logging.warning("%s: is named like %s, taken as %s as asked", path, named, model)
        return model
    if named in candidates:
        return named
    config = neighbour_config(path)
    if config.get("model") in candidates:
        return config["model"]
    by_range = [name for name in candidates if MODELS[name].max_depth == config.get("max_depth")]
    if len(by_range) == 1:
        return by_range[0]
    raise UserError(
        f"{path}: cannot tell which model this is: {' or '.join(candidates)}; "
        "say which with --model NAME, or keep the official file name"
    )
