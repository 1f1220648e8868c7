"""A tensor that still lies in a file: shape and dtype are known, values are read when asked for.

Checking names and shapes costs no reading that way, optimizer state beside the weights is never
read at all, and nothing is allocated for a shape that the architecture does not have.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# Name -> NumPy type of the stored bits. bfloat16 is the upper half of a float32.
STORED = {
    "float64": np.dtype("f8"),
    "float32": np.dtype("f4"),
    "float16": np.dtype("f2"),
    "bfloat16": np.dtype("u2"),
    "int64": np.dtype("i8"),
    "int32": np.dtype("i4"),
    "int16": np.dtype("i2"),
    "int8": np.dtype("i1"),
    "uint64": np.dtype("u8"),
    "uint32": np.dtype("u4"),
    "uint16": np.dtype("u2"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, eq=False)
class FileTensor:
    """`fetch()` returns the stored bits in the NumPy type `STORED[dtype]`, of this shape."""

    shape: tuple[int, ...]
    dtype: str
    fetch: Callable[[], np.ndarray]

    def read(self) -> np.ndarray:
        """The values; bfloat16 as float32, every other type as it is."""
        bits = self.fetch()
        if self.dtype == "bfloat16":
            return (bits.astype(np.uint32) << 16).view(np.float32)
        return bits
