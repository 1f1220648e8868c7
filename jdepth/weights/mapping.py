"""A plan from a file's names to ours: every tensor accounted for, or a readable list of what is not."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jdepth.errors import UserError
from jdepth.weights.faults import listed, shown
from jdepth.weights.file_tensor import FLOATS, FileTensor

# Names of our tree -> what reads each array.
Readers = dict[str, Callable[[], np.ndarray]]
# PyTorch's layout -> ours (channels last, inputs before outputs). All are views.
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "linear": lambda x: x.T,  # (out, in) -> (in, out)
    "conv": lambda x: x.transpose(2, 3, 1, 0),  # (out, in, kh, kw) -> (kh, kw, in, out)
    "conv1x1": lambda x: x[:, :, 0, 0].T,  # (out, in, 1, 1) -> (in, out)
    "up_conv": lambda x: x.transpose(0, 2, 3, 1),  # transposed: (in, out, kh, kw) -> (in, kh, kw, out)
}

# And back.
INVERSE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda x: x,
    "linear": lambda x: x.T,
    "conv": lambda x: x.transpose(3, 2, 0, 1),
    "conv1x1": lambda x: x.T[:, :, None, None],
    "up_conv": lambda x: x.transpose(0, 3, 1, 2),
}


@dataclass(frozen=True)
class Entry:
    """Tensors `sources`, each of `shape`, joined along axis 0 and laid out anew, become `target`.

    `target` None: known, and not needed; such a tensor may also be absent.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    target: str | None
    layout: str = "same"

    def target_shape(self) -> tuple[int, ...]:
        joined = (len(self.sources) * self.shape[0], *self.shape[1:])
        return LAYOUTS[self.layout](np.broadcast_to(np.float32(0), joined)).shape


def layer(source: str, target: str, shape: tuple[int, ...], layout: str, bias: bool = True) -> list[Entry]:
    """`source.weight` (and `.bias`) -> `target/kernel` (and `/bias`). `shape` is the file's."""
    entries = [Entry((f"{source}.weight",), shape, f"{target}/kernel", layout)]
    outputs = shape[1] if layout == "up_conv" else shape[0]
    return entries + ([Entry((f"{source}.bias",), (outputs,), f"{target}/bias")] if bias else [])


def shapes(plan: Iterable[Entry]) -> dict[str, tuple[int, ...]]:
    """Our names and shapes that a plan produces."""
    return {entry.target: entry.target_shape() for entry in plan if entry.target is not None}


def check(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    path: str | Path,
    what: str,
    optional: frozenset[str] = frozenset(),
) -> None:
    """Raise one UserError listing all names missing, unexpected or of another shape (file against `what`)."""
    missing = [name for name in expected if name not in found and name not in optional]
    unexpected = [name for name in found if name not in expected]
    wrong = [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = [
        f"{len(names)} {kind}: {listed(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if problems:
        raise UserError(f"{path}: its tensors do not match {what}; {'; '.join(problems)}")


def readers(tensors: Mapping[str, FileTensor], plan: list[Entry], path: str | Path, what: str) -> Readers:
    """Our flat tree of a file's tensors, name -> a function that reads the float32 array. All names, shapes and
    number types are checked against the plan here; nothing is read."""
    expected = {source: entry.shape for entry in plan for source in entry.sources}
    unused = frozenset(source for entry in plan if entry.target is None for source in entry.sources)
    check({name: tensor.shape for name, tensor in tensors.items()}, expected, path, what, unused)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise UserError(f"{path}: {shown(name)} holds {tensor.dtype}, expected floating-point numbers")

    def read(entry: Entry) -> np.ndarray:
        parts = [tensors[source].read() for source in entry.sources]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(LAYOUTS[entry.layout](joined), np.float32)

    return {entry.target: partial(read, entry) for entry in plan if entry.target is not None}


def take(tensors: Mapping[str, FileTensor], plan: list[Entry], path: str | Path, what: str) -> dict[str, np.ndarray]:
    """Our flat tree (name -> float32 array) of a file's tensors; see `readers`."""
    return {name: read() for name, read in readers(tensors, plan, path, what).items()}


def give(flat: Mapping[str, np.ndarray], plan: list[Entry]) -> dict[str, np.ndarray]:
    """The inverse of `take`: the plan's tensors, contiguous float32, from our flat tree.

    Tensors that nothing uses (target None) are zeros: readers that know their names expect them.
    """
    tensors = {}
    for entry in plan:
        if entry.target is None:
            joined = np.zeros((len(entry.sources) * entry.shape[0], *entry.shape[1:]), np.float32)
        else:
            joined = INVERSE[entry.layout](np.asarray(flat[entry.target], np.float32))
        for source, part in zip(entry.sources, np.split(joined, len(entry.sources)), strict=True):
            tensors[source] = np.ascontiguousarray(part)
    return tensors
