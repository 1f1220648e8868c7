"""The description file of a folder of images: what it may say, checked field by field.

A `dataset.json` describes where the files are and what their values mean, so that a new set needs no code::

    {
      "name": "nyu",
      "root": "../downloads/nyu",             optional; relative to this file (default: its own folder)
      "about": "...", "licence": "...",       optional free text
      "image": "{image}",                     pattern of the image files below root
      "depth": {
        "file": "{depth}",                    pattern of the depth files (PNG, PGM, TIFF, PFM or .npy)
        "scale": 0.001,                       metres = value * scale, or instead of it
        "formula": "v / 1000",                metres from the stored value v (see `formula`)
        "invalid": [0],                       stored values that mean "not measured" (default [0])
        "max": 10,                            optional: beyond it, metres are invalid
        "clip": 8,                            optional: beyond it, metres are set to it
        "mask": "{id}_mask.npy"               optional: files that are 0 where depth is invalid
      },
      "label": {
        "file": "{id}.png",                   pattern of the label files (palette indices or grey values)
        "classes": ["wall", "floor"],         names; class ids are their positions
        "ignore": [39],                       stored values to leave out; 255 is too, unless mapped
        "map": {"7": 0, "8": 1},              optional: stored value -> class id (null = leave out); the key
                                              "other" stands for all values not listed
        "reduce_zero_label": false            true: stored 0 is left out, 1 becomes class 0, and so on
      },
      "splits": {
        "train": {"list": "nyu_train.txt", "columns": ["image", "depth"]},
        "val": {"glob": "*"}
      }
    }

Patterns may use {split}, {id} and the names in `columns`. A list file has one item per line, its columns
separated by white space (default: one column, `id`); it is looked for below root, then beside the
description. Further columns are ignored, a leading / of a path is dropped, empty lines and # comments are
skipped, and so are lines with the word None in a column that is used (KITTI's frames without depth).
`glob` is what {id} of the image pattern may be, e.g. "*" or "**/*". Without an `id` column the id is the
image's path without its suffix.
"""

import json
import re
import reprlib
import sys
from dataclasses import dataclass
from pathlib import Path

from jdepth.data.sources.formula import Formula
from jdepth.data.sources.suggest import closest
from jdepth.errors import UserError

FILE_NAME = "dataset.json"
IGNORE = 255
STORED_VALUES = 2**16  # stored class numbers are 0 to 65535

# Control characters and halves of UTF-16 pairs, which no path of ours has and some system calls refuse.
_NO_PATH = re.compile("[\x00-\x1f\ud800-\udfff]")


@dataclass(frozen=True)
class DepthFiles:
    """How depth is stored; `formula` maps stored values to metres."""

    file: str
    formula: Formula
    invalid: tuple[float, ...]
    max: float | None
    clip: float | None
    mask: str | None


@dataclass(frozen=True)
class LabelFiles:
    """How classes are stored: class ids by stored value (255 = leave out), `other` for the rest (-1 = an error)."""

    file: str
    classes: tuple[str, ...]
    ids: dict[int, int]
    other: int = -1


@dataclass(frozen=True)
class Split:
    """The items of one split: a list file with named columns, or a glob for {id}."""

    list: str | None
    columns: tuple[str, ...]
    glob: str | None


@dataclass(frozen=True)
class Description:
    """A checked description file."""

    path: Path
    name: str
    root: Path
    image: str
    depth: DepthFiles | None
    label: LabelFiles | None
    splits: dict[str, Split]


def load(path: str | Path) -> Description:
    """Read and check a description file, or the one in a folder. Looks at no data.

    Raises:
      UserError: naming the file and the field.
    """
    path = locate(Path(path))
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg} in line {error.lineno}") from None
    except (OSError, ValueError, RecursionError) as error:  # no text, a number of 5000 digits, lists without end
        raise UserError(f"cannot read {path}: {error}") from None
    top = _Fields(path, "", fields, ("name", "root", "about", "licence", "image", "depth", "label", "splits"))
    root = (path.parent / top.path_text("root", ".")).resolve()
    if not root.is_dir():
        raise UserError(f"{path}: root: folder not found: {root}")
    description = Description(
        path=path,
        name=top.get("name", str),
        root=root,
        image=top.path_text("image"),
        depth=_depth(path, fields["depth"]) if "depth" in fields else None,
        label=_label(path, fields["label"]) if "label" in fields else None,
        splits=_splits(path, top.get("splits", dict)),
    )
    for field in ("about", "licence"):
        top.get(field, str, None)
    return description


def locate(path: Path) -> Path:
    """The description file meant by a path to it or to its folder; helps where the folder is one level off."""
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"not found: {path}; expected a folder with {FILE_NAME}, or that file")
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    near = [found for found in (path.parent / FILE_NAME, *sorted(path.glob(f"*/{FILE_NAME}"))) if found.is_file()]
    hint = f"; there is one at {near[0]}" if near else "; see README, section 'Your own data'"
    raise UserError(f"no {FILE_NAME} in {path}{hint}")


def _depth(path: Path, fields) -> DepthFiles:
    depth = _Fields(path, "depth", fields, ("file", "scale", "formula", "invalid", "max", "clip", "mask"))
    if ("scale" in fields) == ("formula" in fields):
        raise UserError(f"{path}: depth: give either scale (metres = value * scale) or formula")
    text = f"v * {depth.positive('scale')!r}" if "scale" in fields else depth.get("formula", str)
    try:
        formula = Formula(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return DepthFiles(
        file=depth.path_text("file"),
        formula=formula,
        invalid=tuple(depth.numbers("invalid", [0])),
        max=depth.positive("max", None),
        clip=depth.positive("clip", None),
        mask=depth.path_text("mask", None),
    )


def _label(path: Path, fields) -> LabelFiles:
    label = _Fields(path, "label", fields, ("file", "classes", "ignore", "map", "reduce_zero_label"))
    classes = label.get("classes", list)
    if not 1 <= len(classes) <= IGNORE or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{path}: label.classes: expected 1 to {IGNORE} names")
    reduce_zero = label.get("reduce_zero_label", bool, False)
    count, other = len(classes), -1
    if "map" in fields:
        if reduce_zero:
            raise UserError(f"{path}: label: map and reduce_zero_label exclude each other; map stored values")
        ids = {}
        for stored, target in label.get("map", dict).items():
            # The length first: int() refuses thousands of digits.
            known = stored == "other" or (stored.isdecimal() and len(stored) <= 5 and int(stored) < STORED_VALUES)
            if not known or not (target is None or (type(target) is int and 0 <= target < count)):
                raise UserError(
                    f"{path}: label.map: {reprlib.repr(stored)}: {reprlib.repr(target)}; expected stored value "
                    f"(0 to {STORED_VALUES - 1} or other): class id below {count} or null"
                )
            target = IGNORE if target is None else target
            if stored == "other":
                other = target
            elif int(stored) in ids:
                raise UserError(f"{path}: label.map: stored value {int(stored)} stands there twice")
            else:
                ids[int(stored)] = target
    else:
        ids = {class_id + reduce_zero: class_id for class_id in range(count)}
        ids |= {0: IGNORE, IGNORE: IGNORE} if reduce_zero else {}
    ids.setdefault(IGNORE, IGNORE)
    ignored = label.numbers("ignore", [])
    if not all(stored in range(STORED_VALUES) for stored in ignored):
        raise UserError(
            f"{path}: label.ignore: expected whole numbers from 0 to {STORED_VALUES - 1}, got {reprlib.repr(ignored)}"
        )
    for stored in ignored:
        if "map" in fields and ids.get(stored, IGNORE) != IGNORE:
            raise UserError(f"{path}: label: map gives {stored} a class, ignore leaves it out; keep one of the two")
    ids |= {int(stored): IGNORE for stored in ignored}
    return LabelFiles(label.path_text("file"), tuple(classes), ids, other)


def _splits(path: Path, fields) -> dict[str, Split]:
    splits = {}
    for name, entry in fields.items():
        split = _Fields(path, f"splits.{name}", entry, ("list", "columns", "glob"))
        columns = tuple(split.get("columns", list, ["id"]))
        if ("list" in entry) == ("glob" in entry):
            raise UserError(f"{path}: splits.{name}: give either list (a text file) or glob")
        if "glob" in entry and "columns" in entry:
            raise UserError(f"{path}: splits.{name}: columns belong to list, not to glob")
        if not all(isinstance(column, str) for column in columns):
            raise UserError(f"{path}: splits.{name}.columns: expected names, got {reprlib.repr(entry['columns'])}")
        splits[name] = Split(split.path_text("list", None), columns, split.path_text("glob", None))
    if not splits:
        raise UserError(f"{path}: splits: expected at least one, e.g. train")
    return splits


_REQUIRED = object()


class _Fields:
    """One JSON object with known keys; errors name the file and the field."""

    def __init__(self, path: Path, where: str, fields, known: tuple[str, ...]):
        self.path, self.where = path, where
        if not isinstance(fields, dict):
            raise UserError(f"{path}: {where or 'file'}: expected an object {{...}}")
        self.fields = fields
        for key in fields:
            if key not in known:
                raise UserError(f"{self._at(key)}: unknown key{closest(key, known)}; known: {', '.join(known)}")

    def get(self, key: str, kind: type, default=_REQUIRED):
        if key not in self.fields:
            if default is _REQUIRED:
                raise UserError(f"{self._at(key)}: missing")
            return default
        value = self.fields[key]
        if not isinstance(value, kind):
            raise UserError(f"{self._at(key)}: expected {kind.__name__}, got {reprlib.repr(value)}")
        return value

    def path_text(self, key: str, default=_REQUIRED) -> str | None:
        value = self.get(key, str, default)
        if value and _NO_PATH.search(value):
            raise UserError(f"{self._at(key)}: expected a path without control characters, got {reprlib.repr(value)}")
        return value

    def positive(self, key: str, default=_REQUIRED) -> float | None:
        if key not in self.fields and default is not _REQUIRED:
            return default
        value = self.fields.get(key)
        if type(value) not in (int, float) or not 0 < value <= sys.float_info.max:
            raise UserError(f"{self._at(key)}: expected a positive number, got {reprlib.repr(value)}")
        return float(value)

    def numbers(self, key: str, default: list) -> list:
        values = self.get(key, list, default)
        if not all(type(value) is float or (type(value) is int and abs(value) < 2**63) for value in values):
            raise UserError(f"{self._at(key)}: expected numbers, got {reprlib.repr(values)}")
        return values

    def _at(self, key: str) -> str:
        return f"{self.path}: {self.where + '.' if self.where else ''}{key}"
