"""What names and neighbours say about a weights file: its official file name, a config.json beside it."""

import json
import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from jdepth.errors import UserError
from jdepth.weights.catalogue import MODELS, Model
from jdepth.weights.faults import Fault, blame

_OFFICIAL_NAME = re.compile(
    r"(?<![a-z0-9])(?:(?P<backbone>dinov2_vit[sblg]14)"
    r"(?:(?P<registers>_reg4?)?_pretrain|_(?P<head>(?:nyu|kitti)_(?:dpt|linear4?))_head)"
    r"|(?P<depth_anything>depth_anything_(?:vit[sbl]14|v2_vit[sblg]|v2_metric_(?:hypersim|vkitti)_vit[sbl])))"
    r"(?![a-z0-9]|_metric)"  # a fine-tuned model may be named after the one it started from
)


def official_name(path: Path) -> str | None:
    """The model that a file name such as dinov2_vits14_nyu_dpt_head.pth stands for, if any, and only one."""
    names = {_name(match) for match in _OFFICIAL_NAME.finditer(path.name)}
    return names.pop() if len(names) == 1 else None


def _name(match: re.Match) -> str:
    if match["depth_anything"]:
        return match["depth_anything"]
    if match["head"]:
        return f"{match['backbone']}_{match['head']}"
    return match["backbone"] + ("_reg4" if match["registers"] else "")


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


def choose(
    path: Path,
    candidates: list[str],
    model: str | None,
    config_fits: Callable[[Mapping, Model], bool] | None = None,
) -> str:
    """Which of `candidates`, alike in their tensors, this is: by `model`, else the file's name, else a
    config.json beside it: its "model", or the only candidate that `config_fits` (by default: "max_depth" in
    metres). UserError listing them if nothing says.
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
    if len(candidates) == 1:
        return candidates[0]
    config = neighbour_config(path)
    if config.get("model") in candidates:
        return config["model"]
    fits = config_fits or (lambda config, released: config.get("max_depth") == released.max_depth)
    fitting = [name for name in candidates if fits(config, MODELS[name])]
    if len(fitting) == 1:
        return fitting[0]
    raise UserError(
        f"{path}: cannot tell which model this is: {' or '.join(candidates)}; "
        "say which with --model NAME (for training: of jdepth.convert, and give what that writes), or keep the official "
        "file name, or its config.json beside it"
    )
