"""Is a raw folder what a data set's reader expects? One line says what is missing and what to do."""

from collections.abc import Sequence
from pathlib import Path

from jdepth.data.sources.raw import RawSet
from jdepth.errors import UserError

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


def check(raw_set: RawSet, raw: Path) -> None:
    """Raise UserError unless everything that `raw_set` expects is below `raw`."""
    if not raw.is_dir():
        what = "is a file, not a folder: unpack it and give the folder" if raw.exists() else "no such folder"
        raise UserError(f"--raw {raw}: {what}; {where_from(raw_set)}")
    absent = _absent(raw, raw_set.expects)
    if not absent:
        return
    elsewhere = _other_level(raw, raw_set.expects)
    if elsewhere is not None:
        raise UserError(f"--raw {raw}: {raw_set.title} lies in {elsewhere}; give that folder")
    packed = sorted(path.name for path in raw.iterdir() if path.suffix.lower() in _ARCHIVES)
    unpack = f"; unpack {', '.join(packed[:4])} there first" if packed else ""
    raise UserError(f"--raw {raw}: {raw_set.title} needs {', '.join(absent)} in it{unpack}; {where_from(raw_set)}")


def where_from(raw_set: RawSet) -> str:
    """Where to get a data set, and under which terms."""
    return f"get it from {raw_set.source} ({raw_set.download}; terms: {raw_set.terms})"


def _absent(folder: Path, expects: Sequence[str]) -> list[str]:
    return [pattern for pattern in expects if next(folder.glob(pattern), None) is None]


def _other_level(raw: Path, expects: Sequence[str]) -> Path | None:
    """The folder one or two levels above or below `raw` that holds everything expected."""
    below = [path for path in sorted(raw.iterdir()) if path.is_dir()][:100]
    resolved = raw.resolve()
    for folder in (*below, *(inner for path in below for inner in _folders(path)), *list(resolved.parents)[:2]):
        if not _absent(folder, expects):
            return folder
    return None


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_dir()][:100]
    except OSError:  # one that may not be looked into
        return []
