"""A fixed part of a source, chosen by what the items are called and not by where they stand."""

import hashlib
from collections.abc import Sequence

import numpy as np


def fixed_subset(source, limit: int | None) -> list[int]:
    """Indices, ascending, of at most `limit` items: those whose id has the smallest SHA-256.

    The choice stays the same when the set is listed in another order or grows. None or 0 = all items.
    """
    if not limit or limit >= len(source):
        return list(range(len(source)))
    digests = [hashlib.sha256(source.item_id(index).encode()).digest() for index in range(len(source))]
    return sorted(sorted(range(len(source)), key=digests.__getitem__)[:limit])


def belongs(identity: str, fraction: float, seed: int) -> bool:
    """Whether an item is in the subset of about `fraction` of a set that `seed` names.

    Depends on nothing but the item's id: the choice stays the same when other items are missing, a smaller subset
    lies within a larger one, and taking the same one twice changes nothing.
    """
    digest = hashlib.sha256(f"{seed}:{identity}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


class _Chosen:
    """Some items of a source; itself a source."""

    def __init__(self, source, indices: Sequence[int]):
        self._source, self._indices = source, indices
        self.name, self.classes = source.name, source.classes
        if hasattr(source, "checksum"):
            self.checksum = source.checksum  # with the number of items it tells subsets of one seed apart

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[self._indices[index]]

    def item_id(self, index: int) -> str:
        return self._source.item_id(self._indices[index])


class Subset(_Chosen):
    """The first `limit` items of a source by the hash of their ids; itself a source.

    Training on a subset and evaluating on one choose alike, so a limit means the same images everywhere.
    """

    def __init__(self, source, limit: int | None):
        super().__init__(source, fixed_subset(source, limit))


class Part(_Chosen):
    """The items of a source that `belongs` chooses; itself a source."""

    def __init__(self, source, fraction: float, seed: int):
        super().__init__(source, [i for i in range(len(source)) if belongs(source.item_id(i), fraction, seed)])
