"""A fixed part of a source, chosen by what the items are called and not by where they stand."""

import hashlib

import numpy as np


def fixed_subset(source, limit: int | None) -> list[int]:
    """Indices, ascending, of at most `limit` items: those whose id has the smallest SHA-256.

    The choice stays the same when the set is listed in another order or grows. None or 0 = all items.
    """
    if not limit or limit >= len(source):
        return list(range(len(source)))
    digests = [hashlib.sha256(source.item_id(index).encode()).digest() for index in range(len(source))]
    return sorted(sorted(range(len(source)), key=digests.__getitem__)[:limit])


class Subset:
    """The first `limit` items of a source by the hash of their ids; itself a source.

    Training on a subset and evaluating on one choose alike, so a limit means the same images everywhere.
    """

    def __init__(self, source, limit: int | None):
        self._source, self._indices = source, fixed_subset(source, limit)
        self.name, self.classes = source.name, source.classes

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._source[self._indices[index]]

    def item_id(self, index: int) -> str:
        return self._source.item_id(self._indices[index])
