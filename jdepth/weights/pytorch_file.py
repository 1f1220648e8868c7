"""Tensors of a PyTorch checkpoint, read without PyTorch and without running what the file says.

Two containers exist. Zip (since PyTorch 1.6): `<any name>/data.pkl`, one stored record
`<any name>/data/<key>` per storage, and an optional `byteorder`. Stream (before): five pickles
(magic number, protocol, system, the object, storage keys), then each storage as a 64-bit count and
its numbers, little-endian. The pickles themselves: `pickle_machine.py` and `torch_objects.py`.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jdepth.weights import pickle_machine
from jdepth.weights.faults import Fault, blame, listed, shown
from jdepth.weights.file_tensor import STORED, FileTensor
from jdepth.weights.torch_objects import KNOWN, Storage, storage_id

MAX_PICKLE = 32 * 2**20  # bytes; released files have well under one megabyte
ZIP_MAGIC = b"PK\x03\x04"
STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001


@contextmanager
def opened(path: Path) -> Iterator[dict[str, FileTensor]]:
    """The checkpoint's state dict, name -> tensor, readable inside the block.

    The tensors are those under `state_dict` if the file has such an entry (`meta` and `optimizer`
    beside it are not read), else the file's own. Raises UserError naming the file.
    """
    with blame(path):
        file = path.open("rb")
    with file:
        with blame(path):
            start = file.read(4)
            content = _read_zip(file) if start == ZIP_MAGIC else _read_stream(file)
            tensors = state_dict(content)
        yield {name: FileTensor(t.shape, t.dtype, _blaming(path, t)) for name, t in tensors.items()}


def _blaming(path: Path, tensor: FileTensor) -> Callable[[], np.ndarray]:
    def fetch() -> np.ndarray:
        with blame(path):
            return tensor.fetch()

    return fetch


def state_dict(content: object) -> dict[str, FileTensor]:
    """The named tensors of what a checkpoint holds, or a Fault that says what it holds instead."""
    if not isinstance(content, dict):
        raise Fault(f"holds a {type(content).__name__}, expected a dictionary of named tensors")
    # "model": as ZoeDepth and Depth Anything V2 save while they train.
    found = content.get("state_dict", content)
    inner = content.get("model")
    if found is content and isinstance(inner, dict) and all(isinstance(value, FileTensor) for value in inner.values()):
        found = inner or content
    if not isinstance(found, dict):
        raise Fault(f"its state_dict is a {type(found).__name__}, expected a dictionary of named tensors")
    others = [str(name) for name, value in found.items() if type(name) is not str or not isinstance(value, FileTensor)]
    if others and found is content:
        raise Fault(f"holds {listed(map(str, content))}; expected named tensors, or an entry state_dict with them")
    if others:
        raise Fault(f"has entries in its state_dict that are not tensors: {listed(others)}")
    return dict(found)


def _size(file: BinaryIO) -> int:
    return file.seek(0, io.SEEK_END)


# Zip


def _read_zip(file: BinaryIO) -> object:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise Fault("starts like a PyTorch checkpoint but its end is missing: truncated; fetch it again") from None
    records = _Records(archive, _size(file))
    byteorder = records.text("byteorder", default="little")
    if byteorder not in ("little", "big"):
        raise Fault(f"has the byte order {shown(byteorder)}, expected little or big")

    def storage(identifier: object) -> Storage:
        dtype, key, count, view = storage_id(identifier)
        size = count * STORED[dtype].itemsize
        name = f"data/{key}"
        if view is not None or records.size(name) != size:
            raise Fault(f"declares {size} bytes for {shown(name)}, which has {records.size(name)}: damaged")
        return Storage(dtype, count, partial(records.part, name), byteorder == "big")

    if records.size("data.pkl") > MAX_PICKLE:
        raise Fault(f"has a pickle of {records.size('data.pkl')} bytes, more than any weights file needs")
    return pickle_machine.run(io.BytesIO(records.read("data.pkl")), KNOWN, storage)


class _Records:
    """Records below the folder of data.pkl. Nothing is ever unpacked to disk, so names are only looked up."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int):
        self.archive, self.file_size = archive, file_size
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise Fault("lists a record twice: damaged or made to harm")
        pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise Fault("is a zip archive but not a PyTorch checkpoint: it has no <name>/data.pkl")
        self.folder = pickles[0].removesuffix("data.pkl")
        if self.folder + "constants.pkl" in names:
            raise Fault("is a TorchScript program, expected a checkpoint of named tensors")
        self.last: tuple[str, bytes] = ("", b"")  # tensors that share a storage follow each other

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            info = self.archive.getinfo(self.folder + name)
        except KeyError:
            raise Fault(f"has no record {shown(name)}: damaged") from None
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise Fault(f"has a compressed record {shown(name)}; PyTorch writes them uncompressed")
        if info.file_size > self.file_size:
            raise Fault(f"declares {info.file_size} bytes for {shown(name)}, more than the whole file: damaged")
        return info

    def size(self, name: str) -> int:
        return self._info(name).file_size

    def read(self, name: str) -> bytes:
        """The whole record; zipfile checks its CRC-32."""
        if self.last[0] != name:
            self.last = (name, self.archive.read(self._info(name)))
        return self.last[1]

    def part(self, name: str, start: int, count: int) -> memoryview:
        return memoryview(self.read(name))[start : start + count]

    def text(self, name: str, default: str) -> str:
        if self.folder + name not in self.archive.namelist():
            return default
        return self.read(name)[:16].decode("ascii").strip()


# Stream


def _read_stream(file: BinaryIO) -> object:
    size = _size(file)
    if size == 0:
        raise Fault("is empty (0 bytes); fetch it again")
    file.seek(0)
    window = io.BytesIO(file.read(MAX_PICKLE))
    _check_stream_start(window)
    storages = _StreamStorages(file, size)
    content = pickle_machine.run(window, KNOWN, storages.make)
    storages.locate(pickle_machine.run(window, KNOWN), window.tell())
    return content


def _check_stream_start(window: io.BytesIO) -> None:
    """Consume magic number, protocol and system, or say what the file is instead."""
    start = window.read(64)
    window.seek(0)
    if start.startswith(b"version https://git-lfs"):
        raise Fault("is a Git LFS pointer of a few lines, not the file it points to; fetch that")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Fault("is a web page, not a checkpoint: the download went wrong")
    try:
        magic = pickle_machine.run(window, KNOWN)
    except (ValueError, TypeError, LookupError, ArithmeticError, EOFError, struct.error):
        raise Fault("is not a PyTorch checkpoint (neither a zip archive nor a pickle), or it is truncated") from None
    if type(magic) is not int or magic != STREAM_MAGIC:
        raise Fault("is a pickle but not a PyTorch checkpoint: its magic number is missing")
    if pickle_machine.run(window, KNOWN) != STREAM_PROTOCOL:
        raise Fault(f"is a PyTorch checkpoint of an unknown version, expected {STREAM_PROTOCOL}")
    pickle_machine.run(window, KNOWN)  # of the system that wrote it; storages are little-endian on all


class _StreamStorages:
    """Storages that the object names first and whose places in the file are known only after it."""

    def __init__(self, file: BinaryIO, file_size: int):
        self.file, self.file_size = file, file_size
        self.declared: dict[str, tuple[str, int]] = {}  # key -> dtype, count
        self.places: dict[str, int] = {}  # key -> offset in bytes

    def make(self, identifier: object) -> Storage:
        dtype, key, count, view = storage_id(identifier)
        if self.declared.setdefault(key, (dtype, count)) != (dtype, count):
            raise Fault(f"declares storage {shown(key)} twice, differently: damaged")
        start = 0
        match view:
            case None:
                pass
            case (str(), int() as offset, int() as length) if 0 <= offset <= offset + length <= count:
                start, count = offset, length
            case _:
                raise Fault(f"takes a part of storage {shown(key)} that does not exist: damaged")
        return Storage(dtype, count, partial(self.read, key, start * STORED[dtype].itemsize))

    def locate(self, keys: object, position: int) -> None:
        plain = type(keys) is list and all(type(key) is str for key in keys)
        if not plain or sorted(keys) != sorted(self.declared):
            raise Fault("lists other storages than its tensors use: damaged")
        for key in keys:
            dtype, count = self.declared[key]
            self.file.seek(position)
            (stored,) = struct.unpack("<q", self.file.read(8))
            if stored != count:
                raise Fault(f"declares {count} numbers in a storage that has {stored}: damaged")
            self.places[key] = position + 8
            position += 8 + count * STORED[dtype].itemsize
            if position > self.file_size:
                raise Fault(f"ends after {self.file_size} bytes, inside its tensors: truncated; fetch it again")

    def read(self, key: str, base: int, start: int, count: int) -> bytes:
        self.file.seek(self.places[key] + base + start)
        return self.file.read(count)
