"""Features of evaluation images that a frozen backbone computes once per run."""

import sys
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

from jdepth import memory, multihost

Taps = Any  # four of (patches (B, h, w, D), class token (B, D)), in the type in which they left the backbone
# Of the memory that is free for it, this share is taken at most.
HOST_SHARE = 0.5


class KeptTaps:
    """Taps of batches, in host memory, as long as they fit; those that do not are computed each time.

    What they depend on beside the batch (backbone, data set, protocol) must not change during the object's life: a
    run has one of its own, with one frozen backbone and one protocol.
    """

    def __init__(self, budget_gib: float):
        """`budget_gib`: at most so much is kept, in GiB; 0 keeps nothing."""
        self._left = int(budget_gib * 2**30)
        self._kept: dict[Hashable, Taps] = {}
        self._measured = self._told = False

    def taps(
        self, key: Hashable, compute: Callable[[], Taps], place: Callable, fetch: Callable = jax.device_get
    ) -> Taps:
        """Taps of the batch named `key`: those kept, or what `compute` gives.

        Args:
          key: set and items of the batch.
          compute: runs the backbone.
          place, fetch: put arrays on the devices, and bring them back.
        """
        if key in self._kept:
            return place(self._kept[key])
        computed = compute()
        size = sum(x.nbytes for x in jax.tree.leaves(computed))
        if not self._measured and self._left:
            free = memory.free_on_host()
            own = self._left if free is None else min(self._left, int(HOST_SHARE * free))
            # All processes keep the same batches: those that are not kept are computed by all together.
            self._left = int(multihost.gather(own >> 20).min()) << 20
            self._measured = True
        if size <= self._left:
            self._left -= size
            # Copies: on a CPU the device's own memory would be kept from being used again.
            self._kept[key] = jax.tree.map(np.array, fetch(computed))
        elif self._measured and not self._told:
            self._told = True
            print(
                f"evaluation: features of {len(self._kept)} batches are kept (config.evaluate.cache_gib, at most half "
                "of the free memory), those of the others are computed each time",
                file=sys.stderr,
            )
        return computed
