"""Read a prepared data set again, shard by shard in a process pool, and compare it with what was written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jdepth.data import pool, records
from jdepth.data.sources import decode
from jdepth.data.statistics import Statistics, total
from jdepth.errors import BadItem, UserError


@dataclass(frozen=True)
class _Part:
    """The records of one shard: their place in the split."""

    number: int
    folder: Path
    split: str
    start: int
    ids: tuple[str, ...]


def verify(folder: Path, split: str, workers: int, progress: Callable[[int], None]) -> list[str]:
    """What is wrong with a split's records, one line each; nothing where they are as they were written.

    Raises:
      UserError: the split is not prepared, or a shard is missing or cut short.
    """
    reader = records.Reader(folder, split)
    about = reader.about["splits"][split]
    parts, start = [], 0
    for number, shard in enumerate(about["shards"]):
        parts.append(_Part(number, folder, split, start, tuple(reader.ids[start : start + shard["count"]])))
        start += shard["count"]
    read = sorted(pool.over(_read, parts, workers, progress))
    faults = [fault for _, _, found in read for fault in found]
    if total([Statistics.from_json(numbers) for _, numbers, _ in read]).to_json() != about["statistics"]:
        faults.append(f"{split}: the records are not those that were written (their checksum differs)")
    return faults


def _read(part: _Part) -> tuple[int, dict, list[str]]:
    """(number, statistics, faults) of one shard."""
    reader, numbers, faults = records.Reader(part.folder, part.split), Statistics(), []
    classes = len(reader.about["classes"])
    for index, identity in enumerate(part.ids, part.start):
        pool.tick()
        try:
            record = reader[index]
            numbers.add(record, classes)
            _decodes(record)
            if record["id"] != identity:
                faults.append(f"{part.split}, record {index}: it is {record['id']}, the list of ids says {identity}")
        except BadItem as error:  # what the system refuses is no damage and ends the reading
            faults.append(f"{part.split}, record {index}: {error}")
    return part.number, numbers.to_json(), faults


def _decodes(record: dict) -> None:
    try:
        decode.decode_image(record["image"], record["id"])
    except UserError as error:
        raise BadItem(str(error)) from None
