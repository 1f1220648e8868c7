"""Tensors of a safetensors file, or of several that an index joins, read when asked for.

Format: a 64-bit little-endian length, a JSON header name -> {dtype, shape, data_offsets}, then the
numbers. Our own reader rather than the library's, whose NumPy side has no bfloat16.
"""

import io
import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jdepth.weights.faults import Fault, blame, listed, shown
from jdepth.weights.file_tensor import STORED, FileTensor

MAX_HEADER = 100_000_000  # bytes, the format's own limit
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


@contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, FileTensor], dict[str, str]]]:
    """(tensors, metadata) of one file, readable inside the block. Raises UserError naming the file."""
    with blame(path):
        file = path.open("rb")
    with file:
        with blame(path):
            tensors, metadata = _parse(path, file)
        yield tensors, metadata


@contextmanager
def opened_index(path: Path) -> Iterator[dict[str, FileTensor]]:
    """Tensors of the files beside `path` that its `weight_map` (name -> file name) lists."""
    with blame(path):
        index = json.loads(path.read_bytes())
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not names:
            raise Fault("has no weight_map: not an index of safetensors files")
        for file_name in names.values():
            if type(file_name) is not str or Path(file_name).name != file_name or "\\" in file_name:
                raise Fault(f"lists {shown(file_name)}, expected the name of a file beside it")
    with ExitStack() as stack:
        tensors: dict[str, FileTensor] = {}
        for file_name in sorted(set(names.values())):
            part, _ = stack.enter_context(opened(path.parent / file_name))
            claimed = {name for name, owner in names.items() if owner == file_name}
            if differ := claimed ^ part.keys():
                with blame(path):
                    raise Fault(f"does not match the tensors of {shown(file_name)}: {listed(sorted(differ))}")
            tensors |= part
        yield tensors


def is_safetensors(start: bytes) -> bool:
    """Whether a file's first 9 bytes look like this format: a header length, then JSON."""
    return len(start) >= 9 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= MAX_HEADER


def _parse(path: Path, file: BinaryIO) -> tuple[dict[str, FileTensor], dict[str, str]]:
    file_size = file.seek(0, io.SEEK_END)
    if file_size == 0:
        raise Fault("is empty (0 bytes); fetch it again")
    file.seek(0)
    start = file.read(9)
    if not is_safetensors(start):
        raise Fault("is not a safetensors file")
    (length,) = struct.unpack("<Q", start[:8])
    if 8 + length > file_size:
        raise Fault(f"ends after {file_size} bytes, inside its header: truncated; fetch it again")
    file.seek(8)
    header = json.loads(file.read(length), object_pairs_hook=_unique)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(value) is str for value in metadata.values()):
        raise Fault("has metadata that is not text: damaged")
    tensors, places = {}, []
    for name, entry in header.items():
        tensors[name], begin, end = _tensor(path, file, 8 + length, name, entry)
        places.append((begin, end))
    position = 0
    for begin, end in sorted(places):
        if begin != position:
            raise Fault("has tensors that overlap or leave gaps: damaged")
        position = end
    if 8 + length + position != file_size:
        raise Fault(
            f"has {file_size} bytes, its header says {8 + length + position}: truncated or damaged; fetch it again"
        )
    return tensors, metadata


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise Fault("names a tensor twice: damaged")
    return dict(pairs)


def _tensor(path: Path, file: BinaryIO, base: int, name: str, entry: object) -> tuple[FileTensor, int, int]:
    match entry:
        case {"dtype": str() as code, "shape": list() as shape, "data_offsets": [int() as begin, int() as end]}:
            pass
        case _:
            raise Fault(f"describes {shown(name)} wrongly: damaged")
    if code not in DTYPES:
        raise Fault(f"has {shown(name)} in the number type {shown(code)}, expected one of {', '.join(DTYPES)}")
    dtype = DTYPES[code]
    sizes_fit = all(type(size) is int and size >= 0 for size in shape)
    if not sizes_fit or not 0 <= begin <= end or end - begin != prod(shape) * STORED[dtype].itemsize:
        raise Fault(f"describes {shown(name)} by a shape and a place that do not fit: damaged")
    fetch = partial(_fetch, path, file, base + begin, end - begin, dtype, tuple(shape))
    return FileTensor(tuple(shape), dtype, fetch), begin, end


def _fetch(path: Path, file: BinaryIO, start: int, size: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    with blame(path):
        file.seek(start)
        raw = file.read(size)
        if len(raw) != size:
            raise Fault("ends inside its tensors: truncated; fetch it again")
        return np.frombuffer(raw, STORED[dtype].newbyteorder("<")).astype(STORED[dtype]).reshape(shape)
