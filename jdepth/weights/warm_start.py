"""Start from other weights: copy what fits by name and shape, and say what did not."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jdepth.errors import UserError
from jdepth.weights.faults import listed
from jdepth.weights.tree import flatten, unflatten


@dataclass(frozen=True)
class Report:
    """Flat names: `loaded`; `missing` (not in the source); `reshaped` (other shape there: name,
    ours, theirs); `unused` (in the source only)."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """One line of text per list that is not empty."""
        lines = [f"{len(self.loaded)} arrays loaded"]
        if self.missing:
            lines.append(f"{len(self.missing)} not in the source and left as they were: {listed(self.missing)}")
        if self.reshaped:
            names = (f"{name} (here {ours}, there {theirs})" for name, ours, theirs in self.reshaped)
            lines.append(f"{len(self.reshaped)} of another shape and left as they were: {listed(names)}")
        if self.unused:
            lines.append(f"{len(self.unused)} of the source not used: {listed(self.unused)}")
        return lines


def merge(target: Mapping, source: Mapping) -> tuple[dict, Report]:
    """(`target` with every array of `source` that has its name and shape, what happened).

    Both are nested dictionaries of arrays; copies take the target's number type. Neither input
    changes. Raises UserError if nothing fits, which is never what was meant.
    """
    ours, theirs = flatten(target), flatten(source)
    fits = {name for name in ours if name in theirs and np.shape(theirs[name]) == np.shape(ours[name])}
    report = Report(
        loaded=tuple(name for name in ours if name in fits),
        missing=tuple(name for name in ours if name not in theirs),
        reshaped=tuple(
            (name, np.shape(ours[name]), np.shape(theirs[name])) for name in ours if name in theirs and name not in fits
        ),
        unused=tuple(name for name in theirs if name not in ours),
    )
    if not fits:
        raise UserError(f"nothing in the weights to start from fits this model: {'; '.join(report.lines())}")
    merged = {
        name: np.asarray(theirs[name]).astype(value.dtype) if name in fits else value for name, value in ours.items()
    }
    return unflatten(merged), report
