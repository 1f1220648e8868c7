"""Which item is read at which place of the stream: pure functions of (seed, position).

Own permutations rather than a loader's: the order of a run then survives another version of the loader, and
a run restarts at any position without replaying what came before.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

_BLOCK = 1 << 14


def generator(seed: int, stream: str, counter: int) -> np.random.Generator:
    """The random numbers of one named purpose at one position, independent of all others.

    Args:
      seed: the run's seed, >= 0.
      stream: what the numbers are for, e.g. "depth augmentation".
      counter: position: sample, epoch or block number.
    """
    fold = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, fold, counter))))


class Shuffled:
    """Endless order over `size` items: each epoch is a permutation of all of them, another one every time."""

    def __init__(self, size: int, seed: int, stream: str):
        self.size, self.seed, self.stream = size, seed, stream
        self._epoch: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.size)
        held = self._epoch  # read once: threads share this object, and any of them may replace the tuple
        if held is None or held[0] != epoch:
            kind = np.int32 if self.size < 2**31 else np.int64
            order = generator(self.seed, self.stream, epoch).permutation(np.arange(self.size, dtype=kind))
            held = self._epoch = (epoch, order)
        return int(held[1][place])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_epoch": None}


class Union:
    """Order over several sets as one: per epoch one permutation of their concatenation, each item once."""

    def __init__(self, sizes: Sequence[int], seed: int, stream: str):
        self._starts = np.cumsum([0, *sizes])
        self._order = Shuffled(int(self._starts[-1]), seed, stream)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(member, index within the member)."""
        place = self._order[position]
        member = int(np.searchsorted(self._starts, place, side="right")) - 1
        return member, place - int(self._starts[member])


class Weighted:
    """Order over several sets by independent draws of a member; each member goes through its own permutations.

    Args:
      weights: one per member, > 0 (normalised here). A member's items are each read once before any is again.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int, stream: str):
        self._probability = np.asarray(weights, np.float64) / np.sum(weights)
        self.seed, self.stream = seed, stream
        self._members = [Shuffled(size, seed, f"{stream} member {member}") for member, size in enumerate(sizes)]
        # How often each member was drawn before block i: what a member's own position is counted from.
        self._before = [np.zeros(len(sizes), np.int64)]
        self._block: tuple[int, np.ndarray] | None = None

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(member, index within the member)."""
        block, place = divmod(position, _BLOCK)
        held = self._block
        if held is None or held[0] != block:
            held = self._block = (block, self._draw(block))
        draws = held[1]
        member = int(draws[place])
        earlier = self._counts_before(block)[member] + np.count_nonzero(draws[:place] == member)
        return member, self._members[member][int(earlier)]

    def _draw(self, block: int) -> np.ndarray:
        draws = generator(self.seed, f"{self.stream} draws", block).choice(
            len(self._members), size=_BLOCK, p=self._probability
        )
        return draws.astype(np.int16)

    def _counts_before(self, block: int) -> np.ndarray:
        before = list(self._before)  # a copy, so that two threads cannot append the same block twice
        while len(before) <= block:
            drawn = np.bincount(self._draw(len(before) - 1), minlength=len(self._members))
            before.append(before[-1] + drawn)
        self._before = before
        return before[block]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_block": None}
