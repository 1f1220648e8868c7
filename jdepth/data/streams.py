"""What a training run reads: a depth stream and an auxiliary stream, and the joint batch at any index.

`JointBatches` is a pure function of (seed, batch index). It holds no position, so that any number of
workers, in any order, and any restart give the same batches.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jdepth.data import order, targets, transforms
from jdepth.errors import BadItem, UserError


@dataclass(frozen=True)
class DepthStream:
    """A depth source and its augmentation."""

    source: object
    augmentation: transforms.DepthAugmentation


@dataclass(frozen=True)
class AuxiliaryStream:
    """A mixture of sources for one auxiliary task.

    Attributes:
      members: the sources; a sample's `dataset_id` is the position of its source here.
      augmentations: one per member, or a single one for all; all with the same canvas.
      task: "mldc", "segmentation", "single_label" or "reconstruction", or several of them, whose targets every
        sample then carries.
      weights: None: one permutation of the union of all members per epoch, each image once. Otherwise one
        number > 0 per member: independent draws of a member, each going through its own permutations.
    """

    members: tuple
    augmentations: tuple[transforms.AuxiliaryAugmentation, ...]
    task: str | tuple[str, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        for task in self.tasks:
            targets.check_task(task)
        if not self.members:
            raise UserError("the auxiliary mixture has no members")
        given = self.augmentations
        given = (given,) if isinstance(given, transforms.AuxiliaryAugmentation) else tuple(given)
        if len(given) == 1:
            given = given * len(self.members)
        object.__setattr__(self, "members", tuple(self.members))
        object.__setattr__(self, "augmentations", given)
        if len(given) != len(self.members):
            raise UserError(f"{len(self.members)} auxiliary members but {len(given)} augmentations")
        if len({augmentation.canvas for augmentation in given}) > 1:
            raise UserError("all members of an auxiliary mixture need the same canvas (height, width)")
        if self.weights is not None:
            if len(self.weights) != len(self.members) or not all(weight > 0 for weight in self.weights):
                raise UserError(
                    f"auxiliary weights {self.weights}: expected {len(self.members)} numbers > 0, one per member"
                )
        for task in filter(targets.needs_label, self.tasks):
            for member in self.members:
                if not member.classes:
                    raise UserError(f"data set '{member.name}' has no classes; task '{task}' needs labels")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, whether one or several."""
        return (self.task,) if isinstance(self.task, str) else self.task

    def class_counts(self, task: str) -> tuple[int, ...]:
        """Class count per member, as the stacked head of one task needs it; 3 (channels) each for reconstruction."""
        if task == "reconstruction":
            return (3,) * len(self.members)
        return tuple(len(member.classes) for member in self.members)

    @property
    def classes(self) -> tuple[int, ...]:
        """`class_counts` of the stream's only task."""
        (task,) = self.tasks
        return self.class_counts(task)


class Replaced(NamedTuple):
    """An item that could not be used, and why; another one stands in its place in the batch."""

    name: str
    id: str
    reason: str
    size: int  # items of its set


# A set of which so many items in a row cannot be used is not worth looking further.
_ATTEMPTS = 100


class JointBatches:
    """Joint batch number `index`, for any index >= 0.

    Args:
      depth: the depth stream.
      auxiliary: the auxiliary stream, or None for depth only.
      batch_depth, batch_auxiliary: samples per **global** batch.
      seed: the run's seed.
      shard: (number, count): only this process's rows of each batch. Rows are consecutive, so that all shards
        side by side are the global batch.
    """

    def __init__(
        self,
        depth: DepthStream,
        auxiliary: AuxiliaryStream | None,
        batch_depth: int,
        batch_auxiliary: int | None,
        seed: int,
        shard: tuple[int, int] = (0, 1),
    ):
        self.depth, self.auxiliary, self.seed = depth, auxiliary, seed
        if not len(depth.source):
            raise UserError(f"depth data set '{depth.source.name}' is empty")
        self._depth_order = order.Shuffled(len(depth.source), seed, "depth order")
        self._depth_rows = _rows(batch_depth, shard, "depth")
        if auxiliary is None:
            return
        self._auxiliary_rows = _rows(batch_auxiliary or batch_depth, shard, "auxiliary")
        sizes = [len(member) for member in auxiliary.members]
        for member, size in zip(auxiliary.members, sizes, strict=True):
            if not size:
                raise UserError(f"auxiliary data set '{member.name}' is empty")
        if auxiliary.weights is None:
            self._auxiliary_order = order.Union(sizes, seed, "auxiliary order")
        else:
            self._auxiliary_order = order.Weighted(sizes, auxiliary.weights, seed, "auxiliary order")

    def __call__(self, index: int) -> dict[str, Any]:
        """The batch; see `jdepth.data.pipeline.joint_batches` for its arrays. Beside them, "replaced": a list of
        `Replaced`, empty where all is well."""
        replaced: list[Replaced] = []
        start, stop, size = self._depth_rows
        rows = [self._depth_sample(index * size + row, replaced) for row in range(start, stop)]
        batch: dict[str, Any] = {"depth": stack(rows, self.depth.source.name)}
        if self.auxiliary is not None:
            start, stop, size = self._auxiliary_rows
            rows = [self._auxiliary_sample(index * size + row, replaced) for row in range(start, stop)]
            batch["auxiliary"] = stack(rows, "auxiliary mixture")
        return batch | {"replaced": replaced}

    def _depth_sample(self, position: int, replaced: list[Replaced]) -> dict[str, np.ndarray]:
        places = (self._depth_order[later] for later in itertools.count(position))

        def sample(item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            if "depth" not in item:
                raise UserError(f"data set '{self.depth.source.name}' gives no depth")
            rng = order.generator(self.seed, "depth augmentation", position)
            return transforms.augment_depth(item, self.depth.augmentation, rng)

        return _usable(self.depth.source, places, sample, replaced)

    def _auxiliary_sample(self, position: int, replaced: list[Replaced]) -> dict[str, np.ndarray]:
        member, _ = self._auxiliary_order[position]
        later = (self._auxiliary_order[place] for place in itertools.count(position))

        def sample(item: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            rng = order.generator(self.seed, "auxiliary augmentation", position)
            made = transforms.augment_auxiliary(item, self.auxiliary.augmentations[member], rng)
            return with_target(made, self.auxiliary, member)

        own = (index for other, index in later if other == member)
        return _usable(self.auxiliary.members[member], own, sample, replaced)


def _usable(
    source,
    indices: Iterable[int],
    sample: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    replaced: list[Replaced],
) -> dict[str, np.ndarray]:
    """The sample of the first item of `indices`, its place in the set's own order first, that can be used."""
    for attempt, index in enumerate(indices):
        try:
            return sample(source[index])
        except BadItem as error:
            replaced.append(Replaced(source.name, source.item_id(index), str(error), len(source)))
            if attempt + 1 == _ATTEMPTS:
                raise UserError(
                    f"{_ATTEMPTS} items of '{source.name}' in a row cannot be used; the last: {error}"
                ) from None


def with_target(sample: dict[str, np.ndarray], stream: AuxiliaryStream, member: int) -> dict[str, np.ndarray]:
    """Replace a sample's label map by what its task needs, and say which member it comes from."""
    label, counts = sample.pop("label", None), sample.pop("class_counts", None)
    sample = sample | {"dataset_id": np.int32(member)}
    for task in stream.tasks:
        if label is None and targets.needs_label(task):
            raise UserError(f"data set '{stream.members[member].name}' gives no labels; task '{task}' needs them")
        sample |= targets.target(task, label, stream.class_counts(task), counts)
    return sample


def stack(samples: Sequence[dict[str, np.ndarray]], name: str) -> dict[str, np.ndarray]:
    """Samples to a batch with a leading axis; UserError where image sizes differ."""
    sizes = sorted({sample["image"].shape[:2] for sample in samples})
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise UserError(f"'{name}': images of different sizes in one batch ({shown}); set crop or resize")
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def _rows(batch: int, shard: tuple[int, int], name: str) -> tuple[int, int, int]:
    number, count = shard
    if batch < 1 or batch % count:
        raise UserError(f"{name} batch of {batch} cannot be divided among {count} processes")
    return batch // count * number, batch // count * (number + 1), batch
