"""Prepared data sets on disk: shards of records that any process reads by index.

A folder {data_dir}/{name} holds

    NAME-SPLIT.array_record-00000-of-00095    the records, TFDS's format and file names
    NAME-SPLIT.ids.txt                        one id per record, in order
    dataset_info.json, features.json          TFDS's metadata: tfds.builder_from_directory reads the folder
    records.json                              what jdepth knows: classes, unit, counts, checksums, sizes of shards

A record is the original image file, byte for byte, and depth as stored numbers or train ids as a plain array,
which the record file compresses: reading it costs a third of decoding a 16-bit PNG, for 14 % (clean depth) to 29 %
(noisy depth) more disk than the originals (measured).
Which item lies in which shard depends on the order of the items alone.
"""

import contextlib
import json
import os
import resource
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jdepth.errors import BadItem, UserError

FILE = "records.json"
VERSION = 1
# A shard holds about so many images, unless that made more shards than a process can keep open: a run reads MIX6,
# a depth set and its evaluation split at once, and many systems allow 1,024 files.
PER_SHARD, MOST_SHARDS = 512, 256
# One record per group: any of them is read alone.
_OPTIONS = "group_size:1"


def shard_count(items: int) -> int:
    """Shards of a split."""
    return max(1, min(MOST_SHARDS, -(-items // PER_SHARD)))


def shard_items(items: int, shards: int, number: int) -> range:
    """Which items of a split lie in shard `number`: equal parts, up to one."""
    return range(items * number // shards, items * (number + 1) // shards)


def shard_path(folder: Path, name: str, split: str, number: int, shards: int) -> Path:
    """The shard's file, named as TFDS expects it."""
    return folder / f"{name}-{split}.array_record-{number:05d}-of-{shards:05d}"


def ids_path(folder: Path, name: str, split: str) -> Path:
    """The text file that holds the ids of a split's records."""
    return folder / f"{name}-{split}.ids.txt"


@lru_cache
def features(kind: str, dtype: str):
    """TFDS features of a record.

    Args:
      kind: "depth" or "label".
      dtype: "uint16" or "float32" for depth (stored numbers, 0 = invalid), "uint8" for labels (train ids).
    """
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            kind: tfds.features.Tensor(shape=(None, None), dtype=np.dtype(dtype), encoding="bytes"),
        }
    )


@lru_cache
def _serializer(kind: str, dtype: str):
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(features(kind, dtype).get_serialized_info())


def write_shard(path: Path, kind: str, dtype: str, records: Iterable[dict[str, Any]]) -> None:
    """Write records to `path`, which appears only when it is complete and on the disk.

    Args:
      records: {"id": str, "image": encoded bytes, kind: (H, W) array of `dtype`}.

    Raises:
      UserError: the disk is full or not writable; nothing is left at `path`.
    """
    from array_record.python import array_record_module

    # A name of this process: another one that works on the same shard must not write into it.
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        writer = array_record_module.ArrayRecordWriter(str(part), _OPTIONS)
        try:
            for record in records:
                encoded = features(kind, dtype).encode_example(record)
                # A map's entries have no order of their own: without it, equal records differ from process to process.
                writer.write(_serializer(kind, dtype).get_tf_example(encoded).SerializeToString(deterministic=True))
        finally:
            writer.close()
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except RuntimeError as error:  # what array_record raises when the disk refuses
        reason = str(error).split(";")[0]
        raise UserError(f"{path}: cannot be written ({reason}); check the free space and permissions") from None
    finally:
        part.unlink(missing_ok=True)


def write_metadata(folder: Path, about: dict[str, Any]) -> None:
    """Write TFDS's two files and, last, `records.json`.

    Args:
      about: the content of `records.json`; its splits hold "shards", a list of {"count", "bytes"}.
    """
    import tensorflow_datasets as tfds

    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard["count"] for shard in entry["shards"]],
            num_bytes=sum(shard["bytes"] for shard in entry["shards"]),
            filename_template=tfds.core.ShardedFileTemplate(
                template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", data_dir=folder,
                dataset_name=about["name"], split=split, filetype_suffix="array_record",
            ),
        )
        for split, entry in about["splits"].items()
    ]  # fmt: skip
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features(about["kind"], about["dtype"]), split_infos=splits, check_data=False
    )
    write_text(folder / FILE, json.dumps(about, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file that is either complete or not there."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_about(folder: Path) -> dict[str, Any] | None:
    """`records.json` of a prepared folder, or None where there is none. UserError if it cannot be read."""
    path = folder / FILE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); prepare the data set again") from None
    if not _complete(about):
        raise UserError(f"{path}: damaged, or not of this version of jdepth; prepare the data set again")
    return about


def _complete(about: Any) -> bool:
    """Whether `records.json` has what readers rely on."""
    if not isinstance(about, dict) or about.get("version") != VERSION or not isinstance(about.get("splits"), dict):
        return False
    entries = about["splits"].values()
    wanted = {"count", "items", "selection", "statistics", "bad", "shards"}
    return {"name", "kind", "dtype", "per_metre", "classes"} <= about.keys() and all(
        isinstance(entry, dict) and wanted <= entry.keys() for entry in entries
    )


def damaged_shards(folder: Path, about: dict[str, Any], split: str) -> list[str]:
    """Names of shards that are missing or have not the size that they were written with."""
    shards = about["splits"][split]["shards"]
    paths = [shard_path(folder, about["name"], split, number, len(shards)) for number in range(len(shards))]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in paths]
    return [path.name for path, size, shard in zip(paths, sizes, shards, strict=True) if size != shard["bytes"]]


def fetch(source, index: int, where: str) -> dict[str, Any]:
    """A record of a TFDS data source; `where` stands in the error.

    Raises:
      BadItem: it is damaged.
      UserError: the system refuses to read it (too many open files, a disk that fails).
    """
    try:
        return source[index]
    except MemoryError:
        raise
    except Exception as error:  # array_record and protobuf report damage in more ways than they document
        if isinstance(error, OSError) or "open() failed" in str(error) or "read() failed" in str(error):
            raise UserError(f"{where} cannot be read ({error}); see ulimit -n, permissions and the disk") from None
        raise BadItem(f"{where} is damaged ({error})") from None


@lru_cache
def _allow_many_files() -> None:
    """Every shard that is read stays open: as many as the system grants this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # where the system does not let it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Reader:
    """Records of one split by index, as stored.

    Raises:
      UserError: from the constructor, when the split or a shard is missing or a shard is cut short; from reading,
        when the system refuses (too many open files).
      BadItem: from reading, when a record is damaged.
    """

    def __init__(self, folder: Path, split: str):
        import tensorflow_datasets as tfds

        _allow_many_files()
        self.folder, self.split, self.about = folder, split, read_about(folder)
        if self.about is None:
            raise UserError(f"{folder}: no {FILE}: not a prepared data set; see python -m jdepth.prepare --list")
        splits = self.about["splits"]
        if split not in splits:
            raise UserError(f"{folder}: no split '{split}'; prepared: {', '.join(splits) or 'none'}")
        damaged = damaged_shards(folder, self.about, split)
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise UserError(
                f"{folder / damaged[0]}{more}: missing or not as it was written; delete what is there of it and run "
                f"python -m jdepth.prepare {self.about['name']} again, which writes only what is missing"
            )
        self._records = tfds.builder_from_directory(str(folder)).as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        self._ids: list[str] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"id": str, "image": encoded bytes, "depth" or "label": (H, W) as stored}."""
        record = fetch(self._records, index, f"{self.folder}: record {index} of '{self.split}'")
        return record | {"id": record["id"].decode()}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_ids": None}  # millions of them need not travel to every worker

    def __setstate__(self, state: dict) -> None:
        _allow_many_files()
        self.__dict__.update(state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    @property
    def ids(self) -> list[str]:
        """Ids of all records, in order."""
        if self._ids is None:
            path = ids_path(self.folder, self.about["name"], self.split)
            try:
                self._ids = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path}: cannot be read ({error}); prepare the data set again") from None
            if len(self._ids) != len(self):
                raise UserError(f"{path}: {len(self._ids)} ids for {len(self)} records; prepare the data set again")
        return self._ids
