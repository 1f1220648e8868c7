"""What a PyTorch checkpoint's pickle may name, each made by our own code from checked arguments.

Tensors and their storages, OrderedDict, sets, torch.Size and torch.device (as tuple and text), torch
dtypes, and the NumPy scalars and arrays that training frameworks leave in `meta`. A defaultdict, a
class of the training code or a function is refused: no released weights file has one.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from jdepth.weights.faults import Fault, shown
from jdepth.weights.file_tensor import STORED, FileTensor
from jdepth.weights.pickle_machine import Known, Stateful, checked_key

MAX_DIMENSIONS = 8
MAX_SIZE = 2**48  # of one dimension: keeps every product an ordinary number


@dataclass(frozen=True, eq=False)
class Storage:
    """A flat run of `count` numbers in the file. `fetch(start, count)` reads some of them as raw bytes."""

    dtype: str
    count: int
    fetch: Callable[[int, int], bytes]
    big_endian: bool = False


def refuse(name: str) -> Fault:
    return Fault(f"its pickle calls {name} with arguments it cannot have: damaged or made to harm")


def _sizes(values: object, name: str) -> tuple[int, ...]:
    """A tuple of plain non-negative ints, as shapes and strides are."""
    if type(values) not in (tuple, list) or len(values) > MAX_DIMENSIONS:
        raise refuse(name)
    if not all(type(value) is int and 0 <= value < MAX_SIZE for value in values):
        raise refuse(name)
    return tuple(values)


# Tensors


def _tensor(name: str, arguments: tuple, dtype: str | None = None) -> FileTensor:
    """(storage, offset, size, stride, ...): a view that must lie inside its storage.

    Strides may overlap (a stride of 0 repeats): what is read later is bounded by the shape, and
    shapes are checked against the architecture before anything is read.
    """
    storage, offset, shape, strides = arguments[:4]
    if type(storage) is not Storage or type(offset) is not int or not 0 <= offset < MAX_SIZE:
        raise refuse(name)
    shape, strides = _sizes(shape, name), _sizes(strides, name)
    if len(shape) != len(strides):
        raise refuse(name)
    dtype = dtype or storage.dtype
    item = STORED[dtype].itemsize
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape:
        extent = 0
    if (offset + extent) * item > storage.count * STORED[storage.dtype].itemsize:
        raise Fault(f"a tensor of shape {shape} reaches beyond its storage of {storage.count} numbers: damaged")
    stored = STORED[dtype].newbyteorder(">" if storage.big_endian else "<")

    def fetch() -> np.ndarray:
        raw = storage.fetch(offset * item, extent * item)
        if len(raw) != extent * item:
            raise Fault("ends inside its tensors: truncated; fetch it again")
        if not raw:
            return np.zeros(shape, STORED[dtype])
        flat = np.frombuffer(raw, stored)
        view = np.lib.stride_tricks.as_strided(flat, shape, [stride * item for stride in strides])
        return view.astype(STORED[dtype])

    return FileTensor(shape, dtype, fetch)


def _rebuild_tensor(arguments: tuple) -> FileTensor:
    if len(arguments) != 4:
        raise refuse("torch._utils._rebuild_tensor")
    return _tensor("torch._utils._rebuild_tensor", arguments)


def _rebuild_tensor_v2(arguments: tuple) -> FileTensor:
    if len(arguments) not in (6, 7):  # then: requires_grad, hooks, metadata
        raise refuse("torch._utils._rebuild_tensor_v2")
    return _tensor("torch._utils._rebuild_tensor_v2", arguments)


def _rebuild_tensor_v3(arguments: tuple) -> FileTensor:
    name = "torch._utils._rebuild_tensor_v3"
    if len(arguments) not in (7, 8) or arguments[6] not in DTYPES.values():
        raise refuse(name)
    return _tensor(name, arguments, dtype=arguments[6].name.removeprefix("torch."))


def _rebuild_parameter(arguments: tuple) -> FileTensor:
    match arguments:
        case (FileTensor() as tensor, bool(), OrderedDict()):
            return tensor
    raise refuse("torch._utils._rebuild_parameter")


# Plain containers under other names


def _ordered_dict(arguments: tuple) -> OrderedDict:
    match arguments:
        case ():
            return OrderedDict()
        case (list() as pairs,) if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
            return OrderedDict((checked_key(key), value) for key, value in pairs)
    raise refuse("collections.OrderedDict")


def _set(kind: type, arguments: tuple) -> set | frozenset:
    match arguments:
        case (list() as values,):
            return kind(map(checked_key, values))
    raise refuse(f"builtins.{kind.__name__}")


def _size(arguments: tuple) -> tuple[int, ...]:
    if len(arguments) != 1:
        raise refuse("torch.Size")
    return _sizes(arguments[0], "torch.Size")


def _device(arguments: tuple) -> str:
    match arguments:
        case (str() as kind,):
            return kind
        case (str() as kind, int() as index):
            return f"{kind}:{index:d}" if 0 <= index < 2**16 else kind
    raise refuse("torch.device")


def _encode(arguments: tuple) -> bytes:
    """How pickle's protocol 2 writes bytes: as text in latin-1."""
    match arguments:
        case (str() as text, "latin1" | "latin-1"):
            return text.encode("latin-1")
    raise refuse("_codecs.encode")


def _bytes(arguments: tuple) -> bytes:
    if arguments:
        raise refuse("builtins.bytes")
    return b""


# NumPy

_CODE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU][0-9]{1,6})")


class NumpyType(Stateful):
    """numpy.dtype of numbers or text; never of objects."""

    def __init__(self, arguments: tuple):
        match arguments:
            case (str() as code, *flags) if len(flags) <= 2 and _CODE.fullmatch(code):
                self.dtype = np.dtype(code)
            case _:
                raise refuse("numpy.dtype")

    def set_state(self, state: object) -> None:
        match state:  # version, byte order, no sub-array, no names, no fields, and sizes known already
            case (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_) if len(state) in (8, 9):
                self.dtype = self.dtype.newbyteorder(order)
            case _:
                raise refuse("numpy.dtype.__setstate__")


def _raw(value: object, name: str) -> bytes:
    if type(value) is str:  # written by Python 2
        return value.encode("latin-1")
    if type(value) not in (bytes, bytearray):
        raise refuse(name)
    return bytes(value)


def _numpy_scalar(arguments: tuple) -> object:
    name = "numpy scalar"
    match arguments:
        case (NumpyType() as kind, raw) if len(raw := _raw(raw, name)) == kind.dtype.itemsize > 0:
            return np.frombuffer(raw, kind.dtype)[0].item()
    raise refuse(name)


class NumpyArray(Stateful):
    """numpy.ndarray of numbers; `array` is None until its state has come."""

    def __init__(self, array: np.ndarray | None = None):
        self.array = array

    def set_state(self, state: object) -> None:
        match state:
            case (int(), shape, NumpyType() as kind, bool() as fortran, raw):
                self.array = _array(shape, kind, "F" if fortran else "C", raw)
            case _:
                raise refuse("numpy.ndarray.__setstate__")


def _array(shape: object, kind: NumpyType, order: str, raw: object) -> np.ndarray:
    shape, raw = _sizes(shape, "numpy.ndarray"), _raw(raw, "numpy.ndarray")
    if prod(shape) * kind.dtype.itemsize != len(raw) or (not raw and prod(shape)):
        raise refuse("numpy.ndarray")
    return np.frombuffer(raw, kind.dtype).reshape(shape, order=order) if raw else np.zeros(shape, kind.dtype)


def _reconstruct(arguments: tuple) -> NumpyArray:
    match arguments:
        case (known, (0,), b"b" | "b") if known is NDARRAY:
            return NumpyArray()
    raise refuse("numpy._reconstruct")


def _from_buffer(arguments: tuple) -> NumpyArray:
    match arguments:
        case (raw, NumpyType() as kind, shape, "C" | "F" as order):
            return NumpyArray(_array(shape, kind, order, raw))
    raise refuse("numpy._frombuffer")


NDARRAY = Known("numpy.ndarray")

# Storage class in the file -> dtype.
STORAGES = {
    Known(f"torch.{name}"): dtype
    for name, dtype in {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
        "UntypedStorage": "uint8",
        "storage.UntypedStorage": "uint8",
    }.items()
}
DTYPES = {f"torch.{dtype}": Known(f"torch.{dtype}") for dtype in STORED}

_FUNCTIONS: Mapping[str, Callable[[tuple], object]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,
    **{
        f"{builtins}.{name}": build
        for builtins in ("builtins", "__builtin__")  # Python 3 and Python 2
        for name, build in {
            "bytes": _bytes,
            "set": partial(_set, set),
            "frozenset": partial(_set, frozenset),
        }.items()
    },
    "numpy.dtype": NumpyType,
    **{
        f"{core}.{name}": build
        for core in ("numpy.core", "numpy._core")  # NumPy 1 and NumPy 2
        for name, build in {
            "multiarray.scalar": _numpy_scalar,
            "multiarray._reconstruct": _reconstruct,
            "numeric._frombuffer": _from_buffer,
        }.items()
    },
}

KNOWN: dict[str, Known] = {
    **{name: Known(name, build) for name, build in _FUNCTIONS.items()},
    **{known.name: known for known in STORAGES},
    **DTYPES,
    NDARRAY.name: NDARRAY,
}


def storage_id(identifier: object) -> tuple[str, str, int, object]:
    """(dtype, key, count, view) of a persistent id ("storage", class, key, location, count[, view]).

    `view`: (key, offset, count) of a part of that storage in old files, else None.
    """
    match identifier:
        case ("storage", Known() as kind, str() as key, str(), int() as count, *view) if (
            kind in STORAGES and type(count) is int and 0 <= count < MAX_SIZE and len(view) <= 1
        ):
            return STORAGES[kind], key, count, view[0] if view else None
    detail = f" ({shown(identifier[0])})" if type(identifier) is tuple and identifier[:1] == ("module",) else ""
    raise Fault(f"its pickle refers to something other than a storage{detail}: damaged or not a weights file")
