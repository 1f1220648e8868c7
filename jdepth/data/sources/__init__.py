"""Data sets by name.

A source is any object with ``__len__``, ``__getitem__(index)``, ``item_id(index) -> str``, ``classes`` and
``name``. An item is a dict:

- ``image``: (H, W, 3) uint8 RGB, always there;
- ``depth``: (H, W) float32 metres, 0 = invalid, where the set has depth;
- ``label``: (H, W) uint8 class ids, 255 = ignore, where the set has classes.

A published data set is read from its records (`python -m jdepth.prepare`), or, like your own images, as a
description file says (`jdepth.data.sources.folder`). A new one is a new file with a `RawSet` and one line in
`RAW_SETS`.
"""

import importlib
import inspect
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from jdepth.data.sources.suggest import closest
from jdepth.errors import UserError

_HERE = "jdepth.data.sources"

# Published data sets and the reader of their original download.
RAW_SETS = {
    "nyu": "nyu:BTS",
    "nyu_labelled": "nyu:LABELLED",
    "sun": "sun_rgbd:DEPTH",
    "matterport": "matterport:MATTERPORT",
    "taskonomy": "taskonomy:TASKONOMY",
    "diode_indoor": "diode:INDOOR",
    "diode_outdoor": "diode:OUTDOOR",
    "kitti": "kitti:EIGEN",
    "ade20k": "ade20k:ADE20K",
    "sun37": "sun_rgbd:LABELS",
    "cityscapes34": "cityscapes:LABEL_IDS",
    "cityscapes19": "cityscapes:TRAIN_IDS",
    "coco_stuff": "coco_stuff:COCO_STUFF",
    "voc21": "pascal_voc:SBD_TRAIN",
    "voc21_train": "pascal_voc:VOC_TRAIN",
    "voc21_trainaug": "pascal_voc:TRAINAUG",
    "context59": "pascal_context:CONTEXT",
}

# Sources that need no preparation.
READY = {"rooms": "rooms:Rooms", "folder": "folder:Folder", "nyu_tfds": "nyu_tfds:NyuTfds"}

NAMES = (*READY, *RAW_SETS)

MIXTURES = {
    "mix6": ("ade20k", "sun37", "cityscapes34", "coco_stuff", "voc21", "context59"),
}


@lru_cache
def raw_set(name: str):
    """The `RawSet` of a published data set; UserError for an unknown name."""
    if name not in RAW_SETS:
        raise UserError(f"no data set '{name}' to prepare{closest(name, RAW_SETS)}; known: {', '.join(RAW_SETS)}")
    return _attribute(RAW_SETS[name])


def members(name: str) -> tuple[str, ...]:
    """Data sets that a name stands for: a mixture's ("mix6", "ade20k+voc21"), or the one itself."""
    parts = name.split("+")
    found = tuple(member for part in parts for member in MIXTURES.get(part, (part,)))
    for member in found:
        _check_name(member)
        if found.count(member) > 1:
            raise UserError(f"'{name}' names the data set {member} twice")
    return found


def is_mixture(name: str) -> bool:
    """Whether a name stands for several data sets."""
    return name in MIXTURES or "+" in name


def held_out(name: str) -> str:
    """The split of a data set that it is scored on: the published one, or "val"."""
    if name == "nyu_tfds":
        return "validation"
    counts = raw_set(name).counts if name in RAW_SETS else {}
    return "test" if counts and "val" not in counts else "val"


def find(name: str, data_dir: str | Path) -> Path | None:
    """Where a published set is: its description file or the folder of its records; None where it is absent."""
    if name not in RAW_SETS:
        return None
    folder = Path(data_dir) / name
    if (folder / "dataset.json").is_file():
        return folder / "dataset.json"
    return folder if (folder / "records.json").is_file() else None


def missing(names: Iterable[str], data_dir: str | Path) -> list[str]:
    """The named published sets that are not there; mixtures are taken apart. Reads no data."""
    wanted = [member for name in names for member in members(name)]
    absent = [name for name in wanted if name in RAW_SETS and find(name, data_dir) is None]
    return list(dict.fromkeys(absent))


def open_source(
    name: str, *, split: str, path: str | Path | None = None, data_dir: str | Path = "data", **options
):
    """Open one split of a data set.

    Args:
      name: one of `NAMES`.
      split: e.g. "train", "val".
      path: description file (or its folder) of a folder source; by default {data_dir}/{name}.
      data_dir: where the published sets are looked for.
      **options: arguments of the source's class, e.g. `size` for rooms, `read` for folders.

    Raises:
      UserError: unknown name or option, a set that is not there, or anything wrong with the files.
    """
    if is_mixture(name):
        raise UserError(f"'{name}' is a mixture of data sets; name one of them: {', '.join(members(name))}")
    _check_name(name)
    if name in RAW_SETS:
        path = path or find(name, data_dir)
        if path is None:
            raise missing_error([name], data_dir)
        prepared = (Path(path) / "records.json").is_file() and not (Path(path) / "dataset.json").is_file()
        source_class = _attribute("prepared:Prepared" if prepared else READY["folder"])
    else:
        if name == "folder" and path is None:
            raise UserError("data set 'folder' needs a path: the folder that holds dataset.json, or that file")
        source_class = _attribute(READY[name])
    arguments = {**options, "split": split}
    if path is not None:
        arguments["path"] = path
    elif "data_dir" in inspect.signature(source_class).parameters:
        arguments["data_dir"] = data_dir
    _check_arguments(name, source_class, arguments)
    return source_class(**arguments)


def missing_error(names: Sequence[str], data_dir: str | Path, mixture: Sequence[str] = ()) -> UserError:
    """The error for sets that are not there: which, where they are expected, what to do.

    mixture: members of the mixture that they belong to, if they belong to one.
    """
    names = list(names)
    expected = ", ".join(str(Path(data_dir) / name) for name in names)
    rest = [name for name in mixture if name not in names]
    without = f", go without with --config.data.auxiliary.name={'+'.join(rest)}" if rest else ""
    each = " (--dry_run says it of each)" if len(names) > 1 else ""
    return UserError(
        f"data not found: {', '.join(names)}; expected {expected}; prepare the download with "
        f"python -m jdepth.prepare {names[0]} --raw DIR --out {data_dir}{each}{without}, or write a description file "
        "(README, section 'Your own data')"
    )


def _attribute(place: str):
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f"{_HERE}.{module}"), name)


def _check_name(name: str) -> None:
    if name not in NAMES:
        known = ", ".join(sorted(NAMES))
        raise UserError(f"unknown data set '{name}'{closest(name, [*NAMES, *MIXTURES])}; known: {known}")


def _check_arguments(name: str, source_class: type, arguments: dict) -> None:
    parameters = inspect.signature(source_class).parameters
    for key in arguments:
        if key not in parameters:
            known = ", ".join(parameter for parameter in parameters if parameter != "path")
            raise UserError(
                f"data set '{name}' has no option '{key}'{closest(key, parameters)}; options: {known}"
            )
