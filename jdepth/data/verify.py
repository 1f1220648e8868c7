"""Read a prepared data set again, shard by shard in a process pool, and compare it with what was written."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jdepth.data import pool, records
from jdepth.data.sources import decode
from jdepth.data.statistics import Statistics, total
from jdepth.errors import UserError


@dataclass(frozen=True)
class _Part:
    """The records of one shard: their place in the split."""

    number: int
    folder: Path
    split: str
    start: int
    count: int


def verify(folder: Path, split: str, workers: int, progress: Callable[[int], None]) -> list[str]:
    """What is wrong with a split's records, one line each; nothing where they are as they were written.

    Raises:
      UserError: the split is not prepared, or a shard is missing or cut short.
    """
    about = records.Reader(folder, split).about["splits"][split]
    parts, start = [], 0
    for number, shard in enumerate(about["shards"]):
        parts.append(_Part(number, folder, split, start, shard["count"]))
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
    for index in range(part.start, part.start + part.count):
        pool.tick()
        try:
            record = reader[index]
            decode.decode_image(record["image"], record["id"])
            if record["id"] != reader.ids[index]:
                raise UserError(f"it is {record['id']}, the list of ids says {reader.ids[index]}")
            numbers.add(record, classes)
        except UserError as error:
            faults.append(f"{part.split}, record {index}: {error}")
    return part.number, numbers.to_json(), faults
