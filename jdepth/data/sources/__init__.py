"""Data sets by name.

A source is any object with ``__len__``, ``__getitem__(index)``, ``item_id(index) -> str``, ``classes`` and
``name``. An item is a dict:

- ``image``: (H, W, 3) uint8 RGB, always there;
- ``depth``: (H, W) float32 metres, 0 = invalid, where the set has depth;
- ``label``: (H, W) uint8 class ids, 255 = ignore, where the set has classes.

A new data set is a new file with such a class and one line in `DATASETS`, or, without any code, a folder
with a description file (`jdepth.data.sources.folder`).
"""

import importlib
import inspect
from collections.abc import Iterable
from pathlib import Path

from jdepth.data.sources.suggest import closest
from jdepth.errors import UserError

FOLDER = "jdepth.data.sources.folder:Folder"

# Sets that are read through a description file at {data_dir}/{name}/dataset.json.
DESCRIBED = (
    "nyu",
    "sun",
    "matterport",
    "taskonomy",
    "diode_indoor",
    "diode_outdoor",
    "kitti",
    "ade20k",
    "sun37",
    "cityscapes34",
    "coco_stuff",
    "voc21",
    "context59",
)

DATASETS = {
    "rooms": "jdepth.data.sources.rooms:Rooms",
    "folder": FOLDER,
    **{name: FOLDER for name in DESCRIBED},
}

MIXTURES = {
    "mix6": ("ade20k", "sun37", "cityscapes34", "coco_stuff", "voc21", "context59"),
}


def find(name: str, data_dir: str | Path) -> Path | None:
    """Path of the description file of a named set, or None where it is absent or none is needed."""
    if name not in DESCRIBED:
        return None
    description = Path(data_dir) / name / "dataset.json"
    return description if description.is_file() else None


def missing(names: Iterable[str], data_dir: str | Path) -> list[str]:
    """The named sets whose description file is absent; mixtures are taken apart. Reads no data."""
    members = [member for name in names for member in MIXTURES.get(name, (name,))]
    for member in members:
        _check_name(member)
    absent = [name for name in members if name in DESCRIBED and find(name, data_dir) is None]
    return list(dict.fromkeys(absent))


def open_source(
    name: str, *, split: str, path: str | Path | None = None, data_dir: str | Path = "data", **options
):
    """Open one split of a data set.

    Args:
      name: a key of `DATASETS`.
      split: e.g. "train", "val".
      path: description file (or its folder) of a folder source; by default {data_dir}/{name}/dataset.json.
      data_dir: where the named sets are looked for.
      **options: arguments of the source's class, e.g. `size` for rooms, `read` for folders.

    Raises:
      UserError: unknown name or option, missing description, or anything wrong with the files.
    """
    _check_name(name)
    if name in DESCRIBED and path is None:
        path = find(name, data_dir)
        if path is None:
            raise missing_error([name], data_dir)
    elif name == "folder" and path is None:
        raise UserError("data set 'folder' needs a path: the folder that holds dataset.json, or that file")
    module, _, attribute = DATASETS[name].partition(":")
    source_class = getattr(importlib.import_module(module), attribute)
    arguments = {**options, "split": split}
    if path is not None:
        arguments["path"] = path
    _check_arguments(name, source_class, arguments)
    return source_class(**arguments)


def missing_error(names: Iterable[str], data_dir: str | Path) -> UserError:
    """The error for sets that are not there: which, where they are expected, what to do."""
    names = list(names)
    expected = ", ".join(str(Path(data_dir) / name / "dataset.json") for name in names)
    return UserError(
        f"data not found: {', '.join(names)}; expected {expected}; write that description file for your copy "
        "of the data (README, section 'Your own data') or choose another data set"
    )


def _check_name(name: str) -> None:
    if name in MIXTURES:
        raise UserError(f"'{name}' is a mixture of data sets; name one of them: {', '.join(MIXTURES[name])}")
    if name not in DATASETS:
        known = ", ".join(sorted(DATASETS))
        raise UserError(f"unknown data set '{name}'{closest(name, [*DATASETS, *MIXTURES])}; known: {known}")


def _check_arguments(name: str, source_class: type, arguments: dict) -> None:
    parameters = inspect.signature(source_class).parameters
    for key in arguments:
        if key not in parameters:
            known = ", ".join(parameter for parameter in parameters if parameter != "path")
            raise UserError(
                f"data set '{name}' has no option '{key}'{closest(key, parameters)}; options: {known}"
            )
