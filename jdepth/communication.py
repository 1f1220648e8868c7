"""What crosses devices in a compiled program, read from its text."""

import re
from collections import Counter

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "c64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_OPERATION = re.compile(r"= (\(?[^=]*?\)?) (" + "|".join(KINDS) + r")(-start)?\(")
_COMMENT = re.compile(r"/\*.*?\*/")  # long tuples are numbered
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def traffic(text: str) -> dict[str, int]:
    """Bytes of the results of each kind of collective operation in `Compiled.as_text()`, on one device.

    An operation within a loop counts once. Of an asynchronous operation, whose start also lists its operands, the
    results are the second half.
    """
    found: Counter[str] = Counter()
    for shapes, kind, start in _OPERATION.findall(_COMMENT.sub("", text)):
        arrays = _ARRAY.findall(shapes)
        if start and kind != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]
        found[kind] += sum(_size(dtype, dimensions) for dtype, dimensions in arrays)
    return {kind: found[kind] for kind in KINDS}


def array_bytes(shape: str) -> int:
    """Bytes of an array, or of all of a tuple's, written as in a program's text: "(bf16[4,24]{1,0}, u8[0]{0})"."""
    return sum(_size(dtype, dimensions) for dtype, dimensions in _ARRAY.findall(_COMMENT.sub("", shape)))


def _size(dtype: str, dimensions: str) -> int:
    entries = 1
    for dimension in filter(None, dimensions.split(",")):
        entries *= int(dimension)
    return entries * _BYTES.get(dtype, 1)
