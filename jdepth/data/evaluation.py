"""Batches for evaluation: every item once, in groups of equal size, ragged ends filled up and weighted 0."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jdepth.data import protocols, transforms
from jdepth.data.sources.subset import fixed_subset
from jdepth.data.streams import AuxiliaryStream, with_target
from jdepth.errors import UserError


def evaluation_batches(
    source,
    protocol: protocols.Protocol,
    batch: int,
    limit: int | None = None,
    threads: int | None = None,
    bring: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Depth evaluation.

    Args:
      source: a depth source.
      protocol: what is scored (`jdepth.data.protocols`).
      batch: images per batch.
      limit: at most so many images, a fixed choice by the hash of their ids; None or 0 = all.
      threads: reading threads; default: the cores, at most 4.
      bring: brings an image, after the protocol, to the network's own size.

    Yields:
      image (B, h, w, 3) RGB as the network gets it, uint8 unless `bring` makes it another type,
      depth (B, H, W) float32 metres in its native size, mask (B, H, W) bool: the pixels that count,
      weight (B,) float32: 1, or 0 for filling (whose mask is empty), index (B,) int32: position in the
      source, -1 for filling. Images of one batch have one size; there is one shape per image size of the
      set, always with `batch` rows.

    Raises:
      UserError: an item has no depth, or the protocol does not fit its size.
    """

    def sample(index: int) -> dict[str, np.ndarray]:
        item = source[index]
        if "depth" not in item:
            raise UserError(f"data set '{source.name}' gives no depth to evaluate on")
        image, depth = protocols.prepare(protocol, item["image"], item["depth"])
        mask = protocols.valid_mask(protocol, depth)
        image = image if bring is None else bring(image)
        return {"image": image, "depth": depth, "mask": mask, "index": np.int32(index)}

    yield from _batches(sample, fixed_subset(source, limit), batch, {"index": -1}, threads)


def auxiliary_evaluation_batches(
    stream: AuxiliaryStream, batch: int, limit: int | None = None, threads: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Held-out evaluation of the auxiliary task, on samples without randomness.

    Every image is brought to its member's box at ratio 1, cropped in the centre and put on the canvas: one
    static shape, and the numbers are those of the canvas, not of whole images.

    Args:
      stream: members opened on their held-out split; its weights are not used.
      limit: at most so many images **of each member**, a fixed choice by the hash of their ids.

    Yields:
      The arrays of a training batch's "auxiliary" (photometric is neutral), so that the same loss applies,
      with weight (B,) float32, 0 for filling, and index (B,) int32 within the member, -1 for filling.
      Filling has label 255, class_id -1, classes 0.
    """
    indices = [
        (member, index) for member, source in enumerate(stream.members) for index in fixed_subset(source, limit)
    ]

    def sample(place: tuple[int, int]) -> dict[str, np.ndarray]:
        member, index = place
        centred = transforms.centre_auxiliary(stream.members[member][index], stream.augmentations[member])
        return with_target(centred, stream, member) | {"index": np.int32(index)}

    canvas = np.array(stream.augmentations[0].canvas, np.int32)
    fill = {
        "index": -1,
        "label": 255,
        "class_id": -1,
        "valid_size": canvas,
        "photometric": transforms.NEUTRAL_PHOTOMETRIC,
    }
    yield from _batches(sample, indices, batch, fill, threads)


def _batches(
    sample: Callable, indices: Iterable, batch: int, fill: dict, threads: int | None
) -> Iterator[dict[str, np.ndarray]]:
    if batch < 1:
        raise UserError(f"evaluation batch must be at least 1, got {batch}")
    groups: dict[tuple, list[dict[str, np.ndarray]]] = {}
    for read in _read_ahead(sample, indices, threads or min(4, os.cpu_count() or 1)):
        shapes = tuple(array.shape for array in read.values())
        group = groups.setdefault(shapes, [])
        group.append(read)
        if len(group) == batch:
            yield _stack(groups.pop(shapes), batch, fill)
    for group in groups.values():
        yield _stack(group, batch, fill)


def _stack(samples: list[dict[str, np.ndarray]], batch: int, fill: dict) -> dict[str, np.ndarray]:
    stacked = {}
    for key, first in samples[0].items():
        array = np.zeros((batch, *first.shape), first.dtype)
        array[len(samples) :] = fill.get(key, 0)
        for row, sample in enumerate(samples):
            array[row] = sample[key]
        stacked[key] = array
    stacked["weight"] = (np.arange(batch) < len(samples)).astype(np.float32)
    return stacked


def _read_ahead(sample: Callable, indices: Iterable, threads: int) -> Iterator[dict[str, np.ndarray]]:
    """Samples in order, a few of them ahead of use."""
    places = iter(indices)
    pool = ThreadPoolExecutor(threads)
    try:
        waiting = deque(pool.submit(sample, place) for place in itertools.islice(places, 2 * threads))
        while waiting:
            read = waiting.popleft().result()
            for place in itertools.islice(places, 1):
                waiting.append(pool.submit(sample, place))
            yield read
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
