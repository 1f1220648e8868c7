"""A folder of images with depth or label files, read as a description file says (see `description`).

Opening a split looks at file names and headers only: every file must exist, and image, depth and label
must agree in size. Everything is decoded by `Folder.check` alone.
"""

import errno
import os
import re
from pathlib import Path

import numpy as np

from jdepth.data.sources import decode, description
from jdepth.data.sources.suggest import closest
from jdepth.errors import BadItem, UserError

# Headers read when a split is opened; larger sets are sampled at even distances.
HEADERS_AT_OPEN = 1000

# Reading failed for reasons that are not the file's.
_OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)

_FIELD = re.compile(r"\{(\w+)\}")


class Folder:
    """One split of a described folder: a source (see `jdepth.data.sources`).

    Args:
      path: a description file, or the folder that holds `dataset.json`.
      split: a key of the description's `splits`.
      read: what to read besides the image, of "depth" and "label"; default: all that is described. Reading
        only what a task uses saves the decoding of the rest.

    Raises:
      UserError: one line that names the file and what is wrong with it.
    """

    def __init__(self, path: str | Path, split: str, read: tuple[str, ...] | None = None):
        self._description = description.load(path)
        self.name = self._description.name
        self.split = split
        described = [kind for kind in ("depth", "label") if getattr(self._description, kind) is not None]
        self.read = tuple(described if read is None else (read,) if isinstance(read, str) else read)
        for kind in self.read:
            if kind not in described:
                has = " and ".join(described) or "images only"
                raise UserError(f"{self._description.path}: '{self.name}' has no {kind}; it has {has}")
        label, depth = self._description.label, self._description.depth
        self.classes = label.classes if label is not None else ()
        self._class_ids = _class_table(label) if "label" in self.read else None
        self._metres = _metre_table(depth) if "depth" in self.read else None
        self._patterns = self._file_patterns()
        self._columns, self._rows = self._items()
        self._check_files()

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Folder({self.name!r}, split={self.split!r}, items={len(self)}, reads={self.read})"

    def item_id(self, index: int) -> str:
        """The item's name within its set: stable, independent of where the files lie."""
        if "id" in self._columns:
            return self._rows[index][self._columns.index("id")]
        return str(Path(self._name("image", index)).with_suffix(""))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Item `index`; BadItem where its files cannot be used."""
        try:
            return self._item(index)
        except UserError as error:
            cause = error.__context__
            if isinstance(cause, OSError) and cause.errno in _OF_THE_SYSTEM:
                raise
            raise BadItem(str(error)) from None

    def _item(self, index: int) -> dict[str, np.ndarray]:
        image = decode.read_image(self._path("image", index))
        item = {"image": image}
        if "depth" in self.read:
            item["depth"] = self._depth(index, image.shape[:2])
        if "label" in self.read:
            item["label"] = self._label(index, image.shape[:2])
        return item

    def check(self) -> int:
        """Decode every file; returns the number of items or raises the first UserError."""
        for index in range(len(self)):
            self[index]
        return len(self)

    def _depth(self, index: int, size: tuple[int, int]) -> np.ndarray:
        stored = self._description.depth
        path = self._path("depth", index)
        values = decode.read_values(path)
        self._same_size(index, "depth", size, values.shape)
        if values.dtype in (np.uint8, np.uint16):
            metres = self._metres.take(values, mode="clip")  # twice as fast as indexing
        else:
            try:
                metres = _to_metres(values, stored)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        if stored.mask is not None:
            mask = decode.read_values(self._path("mask", index))
            self._same_size(index, "mask", size, mask.shape)
            metres = np.where(mask != 0, metres, np.float32(0))
        return metres

    def _label(self, index: int, size: tuple[int, int]) -> np.ndarray:
        path = self._path("label", index)
        stored = decode.read_ids(path)
        self._same_size(index, "label", size, stored.shape)
        ids = self._class_ids.take(stored, mode="clip")
        if stored.dtype not in (np.uint8, np.uint16):
            outside = (stored < 0) | (stored >= description.STORED_VALUES)
            ids = np.where(outside, np.int16(self._description.label.other), ids)
        if ids.min() < 0:
            value = stored[ids < 0].min()
            raise UserError(
                f"label file {path} holds the value {value}, which is no class: "
                f"'{self.name}' has {len(self.classes)} classes; see label in {self._description.path}"
            )
        return ids.astype(np.uint8)

    def _file_patterns(self) -> dict[str, str]:
        patterns = {"image": self._description.image}
        for kind in self.read:
            patterns[kind] = getattr(self._description, kind).file
        if "depth" in self.read and self._description.depth.mask is not None:
            patterns["mask"] = self._description.depth.mask
        return patterns

    def _name(self, kind: str, index: int) -> str:
        values = dict(zip(self._columns, self._rows[index], strict=False), split=self.split)
        return _FIELD.sub(lambda field: values[field.group(1)].lstrip("/"), self._patterns[kind])

    def _path(self, kind: str, index: int) -> Path:
        return self._description.root / self._name(kind, index)

    def _items(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        path, splits = self._description.path, self._description.splits
        if self.split not in splits:
            raise UserError(
                f"{path}: no split '{self.split}'{closest(self.split, splits)}; splits: {', '.join(splits)}"
            )
        split = splits[self.split]
        used = {field for pattern in self._patterns.values() for field in _FIELD.findall(pattern)}
        for field in used - {"split", *split.columns}:
            raise UserError(
                f"{path}: a file pattern uses {{{field}}}, which split '{self.split}' does not define; "
                f"defined: split, {', '.join(split.columns)}"
            )
        rows = self._globbed(split) if split.glob is not None else self._listed(split, used)
        if not rows:
            where = f"{split.list} lists no item" if split.list else f"no file matches {self._pattern_glob(split)}"
            raise UserError(f"{path}: split '{self.split}' is empty: {where}{self._level_hint()}")
        return split.columns, rows

    def _listed(self, split: description.Split, used: set[str]) -> list[tuple[str, ...]]:
        folders = (self._description.root, self._description.path.parent)
        path = next((folder / split.list for folder in folders if (folder / split.list).is_file()), None)
        if path is None:
            raise UserError(
                f"{self._description.path}: splits.{self.split}: list file not found: {folders[0] / split.list}"
                f"{self._level_hint(split.list)}"
            )
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read list file {path}: {error}") from None
        rows = []
        for number, line in enumerate(lines, 1):
            row = tuple(line.split())
            if not row or row[0].startswith("#"):
                continue
            if len(row) < len(split.columns):
                raise UserError(
                    f"{path}, line {number}: {len(row)} columns, expected {len(split.columns)}: "
                    f"{' '.join(split.columns)}"
                )
            row = row[: len(split.columns)]
            if not any(value == "None" and name in used for name, value in zip(split.columns, row, strict=True)):
                rows.append(row)
        return rows

    def _globbed(self, split: description.Split) -> list[tuple[str, ...]]:
        pattern = self._pattern_glob(split)
        before, _, after = self._description.image.replace("{split}", self.split).partition("{id}")
        root = self._description.root
        try:
            names = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
        except (NotImplementedError, ValueError) as error:  # an absolute pattern, or ** within a name
            raise UserError(
                f"{self._description.path}: splits.{self.split}.glob: cannot look for '{pattern}' below {root}: "
                f"{error}; expected an image pattern relative to root, with ** only between slashes"
            ) from None
        return [(name[len(before) : len(name) - len(after)],) for name in names]

    def _pattern_glob(self, split: description.Split) -> str:
        image = self._description.image
        if image.count("{id}") != 1:
            raise UserError(f"{self._description.path}: with glob, the image pattern needs one {{id}}: '{image}'")
        return image.replace("{split}", self.split).replace("{id}", split.glob)

    def _check_files(self) -> None:
        root, kinds, count = self._description.root, list(self._patterns), len(self)
        for kind in kinds:
            names = [self._name(kind, index) for index in range(count)]
            absent = _absent(root, names)
            if absent:
                shown = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
                raise UserError(
                    f"{self._description.path}: {len(absent)} of {count} {kind} files of split '{self.split}' "
                    f"not found below {root}: {shown}{self._level_hint(absent[0])}"
                )
        for index in np.unique(np.linspace(0, count - 1, min(count, HEADERS_AT_OPEN)).astype(int)):
            size = decode.header_size(self._path("image", index))
            for kind in kinds[1:]:
                self._same_size(index, kind, size, decode.header_size(self._path(kind, index)))

    def _same_size(self, index: int, kind: str, image: tuple[int, int], other: tuple[int, int]) -> None:
        if tuple(image) != tuple(other):
            raise UserError(
                f"sizes differ (height x width): image {self._path('image', index)} is {image[0]}x{image[1]}, "
                f"{kind} {self._path(kind, index)} is {other[0]}x{other[1]}"
            )

    def _level_hint(self, name: str | None = None) -> str:
        """Says so where root is one folder too high or too low: a file, or the image folder, lies there."""
        name = name or self._description.image.replace("{split}", self.split).partition("{")[0]
        root = self._description.root
        if not name:
            return ""
        for folder in (root.parent, *(entry for entry in sorted(root.iterdir()) if entry.is_dir())):
            if (folder / name).exists():
                return f"; there is {folder / name}: is root one level off? Set root to {folder}"
        return ""


def _absent(root: Path, names: list[str]) -> list[str]:
    """Names that do not exist; one listing per folder, which on network drives is far cheaper than asking each."""
    listings: dict[str, set[str]] = {}
    absent = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(root / folder))
            except (OSError, ValueError):  # ValueError: a list file with a zero byte
                listings[folder] = set()
        if file not in listings[folder]:
            absent.append(name)
    return absent


def _to_metres(values: np.ndarray, stored: description.DepthFiles) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and so is not measured
        metres = stored.formula(values).astype(np.float32)
        # 9.99 stored as float32 is another number than 9.99: both are compared as stored.
        invalid = np.asarray(stored.invalid, values.dtype if values.dtype.kind == "f" else None)
        most, clip = np.float32(stored.max or np.inf), np.float32(stored.clip or np.inf)
    valid = np.isfinite(metres) & (metres > 0) & (metres <= most) & ~np.isin(values, invalid)
    metres = np.minimum(metres, clip)
    return np.where(valid, metres, np.float32(0))


def _metre_table(stored: description.DepthFiles) -> np.ndarray:
    """Metres of every 8- and 16-bit value, so that a formula costs one look-up per pixel."""
    return _to_metres(np.arange(description.STORED_VALUES, dtype=np.uint16), stored)


def _class_table(stored: description.LabelFiles) -> np.ndarray:
    """Class id of every 8- and 16-bit value, -1 where there is none."""
    table = np.full(description.STORED_VALUES, stored.other, np.int16)
    for value, class_id in stored.ids.items():
        table[value] = class_id
    return table
