"""Metrics as states that add up: over batches, ragged last batches and hosts.

A state is built from one batch with `of`, inside or outside compiled code, and merged by adding
counts and sums. `zero()` states live on the host in 64 bits, and so does what is merged into one,
so that accuracy holds over any number of images. `compute()` runs on the host and gives plain
floats. Entries that only fill up a batch carry weight 0.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdepth.errors import UserError

IGNORE = 255
DEPTH_METRICS = ("AbsRel", "SqRel", "RMSE", "RMSElog", "SILog", "log10", "d1", "d2", "d3")


def depth_errors(prediction, target, mask) -> dict[str, jax.Array]:
    """The usual depth errors of each image over its valid pixels (Eigen et al. 2014).

    AbsRel mean |t - p| / t; SqRel mean (t - p)^2 / t; RMSE in metres; RMSElog on natural
    logarithms; SILog 100 times the standard deviation of ln p - ln t; log10 mean
    |log10 p - log10 t|; d1, d2, d3 the share with max(t / p, p / t) below 1.25, 1.25^2, 1.25^3.

    Args:
        prediction: (B, H, W) metres, already clamped to the protocol's positive range.
        target: (B, H, W) metres, 0 = invalid.
        mask: (B, H, W) bool, the protocol's pixels.

    Returns:
        Name -> (B,), at least float32; NaN for images without a valid pixel. Where an image with
        valid pixels has NaN in its prediction, its errors are infinite instead, so that it cannot
        drop out of a mean unnoticed.
    """
    dtype = jnp.promote_types(prediction.dtype, jnp.float32)
    valid = mask & (target > 0)
    p = jnp.where(valid, prediction.astype(dtype), 1)
    t = jnp.where(valid, target.astype(dtype), 1)
    pixels = jnp.sum(valid, axis=(1, 2))

    def mean(x):
        total = jnp.sum(jnp.where(valid, x, 0), axis=(1, 2)) / jnp.maximum(pixels, 1)
        return jnp.where(jnp.isnan(total), jnp.inf, total)

    e = jnp.log(p) - jnp.log(t)
    ratio = jnp.maximum(t / p, p / t)
    errors = {
        "AbsRel": mean(jnp.abs(t - p) / t),
        "SqRel": mean((t - p) ** 2 / t),
        "RMSE": jnp.sqrt(mean((t - p) ** 2)),
        "RMSElog": jnp.sqrt(mean(e**2)),
        # Two passes: mean(e^2) - mean(e)^2 cancels in float32 and can turn out negative.
        "SILog": 100 * jnp.sqrt(mean((e - mean(e)[:, None, None]) ** 2)),
        "log10": mean(jnp.abs(e)) / np.log(10),
        "d1": mean((ratio < 1.25).astype(dtype)),
        "d2": mean((ratio < 1.25**2).astype(dtype)),
        "d3": mean((ratio < 1.25**3).astype(dtype)),
    }
    return {name: jnp.where(pixels > 0, value, jnp.nan) for name, value in errors.items()}


def align_disparity(disparity, target, mask, min_depth: float, max_depth: float) -> jax.Array:
    """Depth from relative disparity: scale and shift of each image by least squares against 1 / target.

    The usual way to score models that know disparity only up to a scale and a shift (MiDaS, Ranftl et al. 2020;
    Depth Anything).

    Args:
        disparity: (B, H, W), larger is nearer.
        target: (B, H, W) metres, 0 = invalid.
        mask: (B, H, W) bool: the pixels that are fitted and scored.
        min_depth, max_depth: metres that the result is clamped to.

    Returns:
        (B, H, W) metres, at least float32. An image of constant disparity gets its best constant in disparity.
    """
    dtype = jnp.promote_types(disparity.dtype, jnp.float32)
    valid = mask & (target > 0)
    x = jnp.where(valid, disparity.astype(dtype), 0)
    y = jnp.where(valid, 1 / jnp.where(valid, target.astype(dtype), 1), 0)
    pixels = jnp.maximum(jnp.sum(valid, axis=(1, 2)), 1)

    def mean(values):
        return (jnp.sum(jnp.where(valid, values, 0), axis=(1, 2)) / pixels)[:, None, None]

    # Sums of squares around 0 cancel in float32, and so does a mean far from 0: what is left of it goes too.
    centre_x = mean(x)
    x = x - centre_x
    rest, centre_y = mean(x), mean(y)
    x = x - rest
    spread = mean(x**2)
    scale = jnp.where(spread > 0, mean(x * (y - centre_y)) / jnp.where(spread > 0, spread, 1), 0)
    aligned = scale * (disparity.astype(dtype) - centre_x - rest) + centre_y
    return 1 / jnp.clip(aligned, 1 / max_depth, 1 / min_depth)


class DepthSum(NamedTuple):
    """Sums of per-image depth errors; every image with a valid pixel counts the same."""

    sums: dict[str, np.ndarray | jax.Array]
    count: np.ndarray | jax.Array

    @classmethod
    def zero(cls) -> "DepthSum":
        return cls({name: np.zeros(()) for name in DEPTH_METRICS}, np.zeros(()))

    @classmethod
    def of(cls, errors, weights=None) -> "DepthSum":
        """State of one batch of `depth_errors`; weights: (B,), 0 for entries that only fill up."""
        counted = ~jnp.isnan(errors["AbsRel"])
        if weights is not None:
            counted &= jnp.asarray(weights) > 0
        sums = {name: jnp.sum(jnp.where(counted, errors[name], 0)) for name in DEPTH_METRICS}
        return cls(sums, jnp.sum(counted))

    def merge(self, other: "DepthSum") -> "DepthSum":
        return jax.tree.map(_add, self, other)

    def add(self, errors, weights=None) -> "DepthSum":
        return self.merge(DepthSum.of(errors, weights))

    def compute(self) -> dict[str, float]:
        """Mean over images; NaN if there was none."""
        return {name: _ratio(self.sums[name], self.count) for name in DEPTH_METRICS}


def best_constant(targets: Iterable[np.ndarray]) -> tuple[float, float]:
    """The one depth that, predicted everywhere, has the lowest AbsRel; the floor for any model.

    The mean over M images of mean_j |t_ij - c| / t_ij is a sum of w_ij |t_ij - c| with weights
    w_ij = 1 / (M n_i t_ij): convex and piecewise linear in c, lowest at the weighted median.

    Args:
        targets: for each image its valid depths in metres, any shape. Images without any are left
            out. Read one at a time; only their distinct values are kept.

    Returns:
        The constant in metres and its AbsRel; NaN for both if no image has a valid depth.
    """
    depths, weights, images = [], [], 0
    for target in targets:
        values, counts = np.unique(np.asarray(target, np.float64), return_counts=True)
        if values.size:
            depths.append(values)
            weights.append(counts / (counts.sum() * values))
            images += 1
    if not images:
        return float("nan"), float("nan")
    depth, weight = np.concatenate(depths), np.concatenate(weights)
    order = np.argsort(depth)
    reached = np.cumsum(weight[order])
    constant = depth[order][np.searchsorted(reached, reached[-1] / 2)]
    return float(constant), float(weight @ np.abs(depth - constant) / images)


class ConfusionSum(NamedTuple):
    """Pixel counts, (K + 1, K): true class by predicted class. The last row counts pixels whose
    label is neither 255 nor a class."""

    counts: np.ndarray | jax.Array

    @classmethod
    def zero(cls, classes: int) -> "ConfusionSum":
        return cls(np.zeros((classes + 1, classes), np.int64))

    @classmethod
    def of(cls, prediction, label, classes: int, weights=None) -> "ConfusionSum":
        """State of one batch.

        Args:
            prediction: (B, H, W) int, class ids in [0, classes).
            label: (B, H, W) int, 255 = ignore.
            classes: K.
            weights: (B,), 0 for entries that only fill up.
        """
        label = jnp.asarray(label, jnp.int32)
        counted = label != IGNORE
        if weights is not None:
            counted &= (jnp.asarray(weights) > 0)[:, None, None]
        row = jnp.where((label >= 0) & (label < classes), label, classes)
        size = (classes + 1) * classes
        cell = jnp.where(counted, row * classes + jnp.asarray(prediction, jnp.int32), size)
        counts = jnp.bincount(cell.ravel(), length=size + 1)[:size]
        return cls(counts.reshape(classes + 1, classes))

    def merge(self, other: "ConfusionSum") -> "ConfusionSum":
        return ConfusionSum(_add(self.counts, other.counts))

    def compute(self) -> dict[str, float]:
        """mIoU over the classes that occur in the truth or the prediction, the share of pixels that
        are right, and its mean over the classes that occur in the truth; NaN without any pixel.

        Raises:
            UserError: some label was neither 255 nor a class.
        """
        counts = np.asarray(self.counts, np.float64)
        counts, strange = counts[:-1], int(counts[-1].sum())
        if strange:
            raise UserError(
                f"labels: {strange} pixels are neither 255 nor below {len(counts)}, the number of "
                "classes; check the dataset's class map"
            )
        right, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
        return {
            "mIoU": _mean_ratio(right, true + predicted - right),
            "pixel_accuracy": _ratio(right.sum(), true.sum()),
            "mean_accuracy": _mean_ratio(right, true),
        }


class AccuracySum(NamedTuple):
    """Share of labelled images whose highest score is at the right class."""

    correct: np.ndarray | jax.Array
    count: np.ndarray | jax.Array

    @classmethod
    def zero(cls) -> "AccuracySum":
        return cls(np.zeros((), np.int64), np.zeros((), np.int64))

    @classmethod
    def of(cls, logits, class_id, class_mask, weights=None) -> "AccuracySum":
        """State of one batch: logits (B, K), class_id (B,) int with -1 = none, class_mask (B, K)
        bool, weights (B,), 0 for entries that only fill up."""
        counted = class_id >= 0
        if weights is not None:
            counted &= jnp.asarray(weights) > 0
        best = jnp.argmax(jnp.where(class_mask, logits, -jnp.inf), axis=1)
        return cls(jnp.sum(counted & (best == class_id)), jnp.sum(counted))

    def merge(self, other: "AccuracySum") -> "AccuracySum":
        return AccuracySum(_add(self.correct, other.correct), _add(self.count, other.count))

    def compute(self) -> dict[str, float]:
        return {"accuracy": _ratio(self.correct, self.count)}


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Area under the precision-recall steps of one class, without interpolation.

    Sum over the distinct thresholds of (recall gained) * precision; equal scores are one threshold,
    so their order does not matter. NaN without a positive.

    Args:
        scores: (N,) higher = more likely present.
        present: (N,) bool.
    """
    present = np.asarray(present, bool)
    if not present.any():
        return float("nan")
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked = np.asarray(scores)[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    hits = np.cumsum(present[order])[last_of_tie]
    retrieved = np.flatnonzero(last_of_tie) + 1
    gained = np.diff(hits, prepend=0)
    return float(np.sum(gained * (hits / retrieved)) / hits[-1])


class ScoreList(NamedTuple):
    """Scores and truth of every image so far, (N, K) each, merged by concatenation: the average
    precision depends on the order of all scores and is no sum."""

    scores: np.ndarray
    present: np.ndarray

    @classmethod
    def zero(cls, classes: int) -> "ScoreList":
        return cls(np.zeros((0, classes), np.float32), np.zeros((0, classes), bool))

    @classmethod
    def of(cls, scores, present, weights=None) -> "ScoreList":
        """State of one batch of one dataset: scores (B, K) of its own classes, present (B, K)
        multi-hot, weights (B,), 0 for entries that only fill up."""
        scores, present = np.asarray(scores), np.asarray(present) > 0
        kept = slice(None) if weights is None else np.asarray(weights) > 0
        return cls(scores[kept], present[kept])

    def merge(self, other: "ScoreList") -> "ScoreList":
        return ScoreList(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def compute(self) -> dict[str, float]:
        """Mean average precision over the classes that occur, and `mAP_constant`, what scores
        without information get: each class's share of the images."""
        columns = [k for k in range(self.present.shape[1]) if self.present[:, k].any()]
        if not columns:
            return {"mAP": float("nan"), "mAP_constant": float("nan")}
        precisions = [average_precision(self.scores[:, k], self.present[:, k]) for k in columns]
        return {
            "mAP": float(np.mean(precisions)),
            "mAP_constant": float(self.present[:, columns].mean()),
        }


def _add(a, b):
    """Sum of two states' entries; on the host as soon as one of them is there, because jax would
    turn NumPy's 64 bits into 32."""
    if isinstance(a, jax.Array) and isinstance(b, jax.Array):
        return a + b
    return np.add(np.asarray(a), np.asarray(b))


def _ratio(part, whole) -> float:
    return float(part) / float(whole) if whole else float("nan")


def _mean_ratio(part, whole) -> float:
    occurs = whole > 0
    return float(np.mean(part[occurs] / whole[occurs])) if occurs.any() else float("nan")
