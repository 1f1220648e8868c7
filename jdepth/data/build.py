"""From a raw data set to records: shard by shard in a process pool, each finished one kept across restarts.

A shard is one task. It appears under its own name when it is complete, and the JSON beside it (its items, counts,
bad files) after that; a shard with both, made of the same items, is not made again. So a build may be killed at any
moment, and the next one ends with the same records.
"""

import dataclasses
import fcntl
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jdepth.data import pool, raw_folder, records
from jdepth.data.sources import decode
from jdepth.data.sources.raw import Item, RawSet
from jdepth.data.sources.subset import belongs
from jdepth.data.statistics import Statistics, total
from jdepth.errors import UserError

# Items that are read, about, to estimate the size of the result.
_SAMPLES = 8


@dataclass(frozen=True)
class Selection:
    """Which items are prepared: about `fraction` of the training split by a hash of the ids, of each split at most
    `limit`."""

    limit: int = 0
    fraction: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Shard:
    """One task: the items of one file, made when they are looked at: there may be millions."""

    path: Path
    raw_set: RawSet
    items: Sequence[Item]

    @property
    def note(self) -> Path:
        """The JSON beside the shard."""
        return self.path.with_name(self.path.name + ".json")

    @cached_property
    def fingerprint(self) -> str:
        """Of the items: their ids, and the sizes and times of their files, which another download changes."""
        return _fingerprint(f"{item.id} {_files(item)}" for item in self.items)


def build(
    raw_set: RawSet,
    raw: Path,
    folder: Path,
    splits: Sequence[str] = (),
    selection: Selection = Selection(),
    workers: int = 1,
    max_bad: int = 100,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """Write the records of `splits` (default: all) to `folder` and return what `records.json` then says.

    Args:
      raw: the original download.
      workers: processes; 0: none but this one.
      max_bad: files that cannot be used before the build gives up.
      progress: called with the images done and their total.

    Raises:
      UserError: the download is not complete, more bad files than `max_bad`, no space, another build at work in
        `folder`, or records of other items there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        about = _about(raw_set, folder)
        plan = {split: _plan(raw_set, raw, folder, split, selection, about) for split in splits or raw_set.counts}
        shards = [shard for split in plan.values() for shard in split]
        todo = [shard for shard in shards if not _finished(shard)]
        _check_space(todo, folder)
        known = [entry for shard in shards if shard not in todo for entry in _note(shard)["bad"]]
        _run(todo, known, sum(len(shard.items) for shard in shards), workers, max_bad, progress)
        for split, parts in plan.items():
            about["splits"][split] = _finish(parts, folder, split, selection)
        records.write_metadata(folder, about)
    return about


class _Part(Sequence):
    """Some of a sequence's items."""

    def __init__(self, items: Sequence[Item], indices: Sequence[int]):
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Item:
        return self._items[self._indices[index]]


def _about(raw_set: RawSet, folder: Path) -> dict[str, Any]:
    """What `records.json` says, or what it shall begin with."""
    fresh = {
        "version": records.VERSION, "name": raw_set.name, "title": raw_set.title, "kind": raw_set.kind,
        "dtype": raw_set.dtype, "per_metre": raw_set.per_metre, "classes": list(raw_set.classes),
        "source": raw_set.source, "terms": raw_set.terms, "note": raw_set.note, "splits": {},
    }  # fmt: skip
    try:
        held = records.read_about(folder)
    except UserError:  # it is made anew from the shards
        held = None
    if held is not None and held["name"] != raw_set.name:
        raise UserError(f"{folder}: holds the data set '{held['name']}'; give another --out")
    return fresh if held is None else fresh | {"splits": held["splits"]}


def _plan(
    raw_set: RawSet, raw: Path, folder: Path, split: str, selection: Selection, about: dict[str, Any]
) -> list[Shard]:
    items = raw_folder.items(raw_set, raw, split)
    wanted: Sequence[int] = range(len(items))
    if selection.fraction < 1 and split == "train":
        wanted = [i for i in wanted if belongs(items[i].id, selection.fraction, selection.seed)]
    wanted = wanted[: selection.limit or None]
    if not wanted:
        raise UserError(f"--fraction {selection.fraction:g} of {len(items)} images of '{split}' leaves none")
    held = about["splits"].get(split)
    if held is not None and held["items"] != _fingerprint(items[i].id for i in wanted):
        raise UserError(
            f"{folder}: holds {held['count']} records of '{split}' made of other items than the {len(wanted)} that "
            f"--raw, --limit and --fraction now name; delete that folder or give another --out"
        )
    count = records.shard_count(len(wanted))
    return [
        Shard(
            records.shard_path(folder, raw_set.name, split, number, count), raw_set,
            _Part(items, [wanted[i] for i in records.shard_items(len(wanted), count, number)]),
        )
        for number in range(count)
    ]  # fmt: skip


def _finished(shard: Shard) -> bool:
    """Whether a shard needs no work: it is there, whole, of these items as they are now, and those that could not be
    used still cannot."""
    note = _note(shard)
    return (
        note is not None
        and note["items"] == shard.fingerprint
        and shard.path.is_file()
        and shard.path.stat().st_size == note["bytes"]
        and not any(_usable(shard.raw_set, item) for item in shard.items if item.id in dict(note["bad"]))
    )


def _usable(raw_set: RawSet, item: Item) -> bool:
    try:
        read(raw_set, item)
    except (UserError, OSError):
        return False
    return True


def _note(shard: Shard) -> dict[str, Any] | None:
    try:
        return json.loads(shard.note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _files(item: Item) -> list[tuple[int, int]]:
    """(bytes, time) of an item's files, or of those in its folder."""
    found = []
    for path in (path for path in item.place.values() if isinstance(path, Path)):
        for file in sorted(path.glob("*/*")) if path.is_dir() else (path,):
            try:
                seen = file.stat()
            except OSError:  # reading the item will tell
                continue
            found.append((seen.st_size, seen.st_mtime_ns))
    return found


def _run(
    todo: Sequence[Shard], known: Sequence[tuple[str, str]], images: int, workers: int, max_bad: int, progress: Callable[[int, int], None]
) -> None:
    before = images - sum(len(shard.items) for shard in todo)
    progress(before, images)
    bad = list(known)
    for found in pool.over(write, _prepared(todo), workers, lambda done: progress(before + done, images)):
        bad += found
        if len(bad) > max_bad:
            shown = "; ".join(reason for _, reason in bad[:5])
            raise UserError(
                f"more than {max_bad} files cannot be used ({shown}; ...); what is finished is kept; mend them and "
                "start again, or raise --max_bad"
            )


def _prepared(todo: Sequence[Shard]) -> Iterator[Shard]:
    """Shards as tasks, with their items made."""
    return (dataclasses.replace(shard, items=list(shard.items)) for shard in todo)


def write(shard: Shard) -> list[tuple[str, str]]:
    """Write one shard and its note; returns (id, reason) of the items that could not be used."""
    raw_set, statistics, ids = shard.raw_set, Statistics(), []
    fingerprint = shard.fingerprint  # of the files before they are read: one that changes meanwhile is read again
    bad: list[tuple[str, str]] = []

    def good() -> Iterator[dict[str, Any]]:
        for item in shard.items:
            pool.tick()
            try:
                record = read(raw_set, item)
            except UserError as error:
                bad.append((item.id, str(error)))
                continue
            except OSError as error:
                bad.append((item.id, f"{error.filename or item.id}: {error.strerror or error}"))
                continue
            statistics.add(record, len(raw_set.classes))
            ids.append(item.id)
            yield record

    records.write_shard(shard.path, raw_set.kind, raw_set.dtype, good())
    note = {
        "items": fingerprint, "bytes": shard.path.stat().st_size, "ids": ids, "bad": bad,
        "statistics": statistics.to_json(),
    }  # fmt: skip
    records.write_text(shard.note, json.dumps(note))
    return bad


def read(raw_set: RawSet, item: Item) -> dict[str, Any]:
    """One item as a record: id, image (encoded bytes), and depth or label. UserError where it cannot be used."""
    found = raw_set.read(item)
    size = decode.decode_image(found["image"], item.place.get("image", item.id)).shape[:2]
    kind = raw_set.kind
    values = np.ascontiguousarray(found[kind], np.dtype(raw_set.dtype))
    if values.shape != size:
        raise UserError(
            f"{item.place.get(kind, item.id)}: {kind} of {values.shape[0]}x{values.shape[1]}, but its image has "
            f"{size[0]}x{size[1]} (height x width)"
        )
    if kind == "depth" and not (np.isfinite(values).all() and values.max() > 0):
        raise UserError(f"{item.place.get(kind, item.id)}: no valid depth in it")
    return {"id": item.id, "image": found["image"], kind: values}


def _finish(parts: Sequence[Shard], folder: Path, split: str, selection: Selection) -> dict[str, Any]:
    """The split's entry in `records.json`; also its list of ids, and no shards of an earlier attempt."""
    notes = [_note(shard) for shard in parts]
    name = parts[0].raw_set.name
    kept = {path for shard in parts for path in (shard.path, shard.note)}
    for path in folder.glob(f"{name}-{split}.array_record-*"):
        if path not in kept:
            path.unlink()
    ids = [identity for note in notes for identity in note["ids"]]
    if not ids:
        reasons = [reason for note in notes for _, reason in note["bad"]]
        raise UserError(f"none of the {len(reasons)} items of '{split}' can be used, the first because: {reasons[0]}")
    records.write_text(records.ids_path(folder, name, split), "".join(f"{identity}\n" for identity in ids))
    statistics = total([Statistics.from_json(note["statistics"]) for note in notes])
    return {
        "count": len(ids),
        "items": _fingerprint(item.id for shard in parts for item in shard.items),
        "selection": dataclasses.asdict(selection),
        "statistics": statistics.to_json(),
        "bad": [entry for note in notes for entry in note["bad"]],
        "shards": [{"count": len(note["ids"]), "bytes": note["bytes"]} for note in notes],
    }


def _fingerprint(ids: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for identity in ids:
        digest.update(identity.encode() + b"\n")
    return digest.hexdigest()


def _check_space(todo: Sequence[Shard], folder: Path) -> None:
    """Raise UserError when the disk cannot take what is still to be written, going by a few items."""
    sizes = []
    for shard in todo[:: max(len(todo) // _SAMPLES, 1)]:
        try:
            record = read(shard.raw_set, shard.items[0])
        except (UserError, OSError):
            continue
        values = next(value for value in record.values() if isinstance(value, np.ndarray))
        sizes.append(len(record["image"]) + len(zlib.compress(values.tobytes(), 1)))
    needed = sum(sizes) / len(sizes) * sum(len(shard.items) for shard in todo) if sizes else 0
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: about {needed / 1e9:.2g} GB are needed, {free / 1e9:.2g} GB are free; make space, give another "
            "--out, or a part with --fraction"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second build out of `folder`, and remove what a killed one left half written."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process prepares it now") from None
        for path in folder.glob("*.part-*"):
            path.unlink(missing_ok=True)
        yield
