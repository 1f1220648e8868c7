"""Is a raw folder what a data set's reader expects? One line says what is missing and what to do."""

from collections.abc import Sequence
from pathlib import Path

from jdepth.data.sources.raw import Item, RawSet
from jdepth.errors import UserError

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


def items(raw_set: RawSet, raw: Path, split: str) -> Sequence[Item]:
    """All items of a split. UserError unless everything that the split needs is below `raw`."""
    if not raw.is_dir():
        what = "is a file, not a folder: unpack it and give the folder" if raw.exists() else "no such folder"
        raise UserError(f"--raw {raw}: {what}; {where_from(raw_set)}")
    found, problem = _read(raw_set, raw, split)
    if found:
        return found
    elsewhere = _other_level(raw_set, raw, split)
    if elsewhere is not None:
        raise UserError(f"--raw {raw}: {raw_set.title} lies in {elsewhere}; give that folder")
    packed = sorted(path.name for path in raw.iterdir() if path.suffix.lower() in _ARCHIVES)
    unpack = f"; unpack {', '.join(packed[:4])} there first" if packed else ""
    raise UserError(f"--raw {raw}: not {raw_set.title} as it is distributed: {problem}{unpack}; {where_from(raw_set)}")


def where_from(raw_set: RawSet) -> str:
    """Where to get a data set, and under which terms."""
    return f"get it from {raw_set.source} ({raw_set.download}; terms: {raw_set.terms})"


def _read(raw_set: RawSet, folder: Path, split: str) -> tuple[Sequence[Item], str]:
    """A split's items; where there are none, also why."""
    parts = [pattern.rpartition(":") for pattern in raw_set.expects]
    wanted = [pattern for only, _, pattern in parts if only in ("", split)]
    absent = [pattern for pattern in wanted if next(folder.glob(pattern), None) is None]
    if absent:
        return (), f"{', '.join(absent)} missing"
    try:
        return raw_set.items(folder, split), f"no image of the split '{split}'"
    except UserError as error:
        return (), str(error)


def _other_level(raw_set: RawSet, raw: Path, split: str) -> Path | None:
    """The folder one or two levels above or below `raw` from which the split can be read."""
    below = _folders(raw)
    resolved = raw.resolve()
    for folder in (*below, *(inner for path in below for inner in _folders(path)), *list(resolved.parents)[:2]):
        try:
            if _read(raw_set, folder, split)[0]:
                return folder
        except OSError:  # not ours to look into
            continue
    return None


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_dir()][:100]
    except OSError:  # one that may not be looked into
        return []
