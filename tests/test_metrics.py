"""Metrics on hand-computed cases, against scikit-learn, and merged over uneven parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth import metrics
from jdepth.errors import UserError

RNG = np.random.default_rng(0)


# --- depth ---------------------------------------------------------------------------------------


def one_image(prediction, target):
    """`depth_errors` of one image given as a row of pixels."""
    prediction, target = (np.array(row, np.float32)[None, None] for row in (prediction, target))
    errors = jax.jit(metrics.depth_errors)(prediction, target, target < 100)
    return {name: float(value[0]) for name, value in errors.items()}


def test_depth_errors_by_hand():
    # Ratios 1, 1.2, 1/2 and 1.9; the invalid pixels (0 and masked) are far off.
    errors = one_image([2, 6, 2, 3.8, 9, 1], [2, 5, 4, 2, 0, 100])
    logs = np.log([1, 1.2, 0.5, 1.9])
    expected = {
        "AbsRel": (0 + 0.2 + 0.5 + 0.9) / 4,
        "SqRel": (0 + 1 / 5 + 4 / 4 + 1.8**2 / 2) / 4,
        "RMSE": np.sqrt((0 + 1 + 4 + 1.8**2) / 4),
        "RMSElog": np.sqrt(np.mean(logs**2)),
        "SILog": 100 * np.sqrt(np.mean(logs**2) - np.mean(logs) ** 2),
        "log10": np.mean(np.abs(logs)) / np.log(10),
        "d1": 0.5,
        "d2": 0.5,
        "d3": 0.75,
    }
    assert set(errors) == set(metrics.DEPTH_METRICS)
    assert errors == pytest.approx(expected, rel=1e-5)


def test_thresholds_are_strict():
    errors = one_image([1.25, 1, 1.5625], [1, 1.25, 1])
    assert (errors["d1"], errors["d2"]) == (0, pytest.approx(2 / 3))


def test_depth_errors_of_a_perfect_and_of_a_scaled_prediction():
    perfect = one_image([1, 2, 7], [1, 2, 7])
    assert [perfect[name] for name in metrics.DEPTH_METRICS] == [0] * 6 + [1] * 3
    scaled = one_image([1.3, 2.6, 9.1], [1, 2, 7])
    assert scaled["AbsRel"] == pytest.approx(0.3, rel=1e-5)
    assert scaled["SILog"] == pytest.approx(0, abs=1e-4)
    one_pixel = one_image([3, 1], [2, 0])
    assert one_pixel["AbsRel"] == 0.5 and one_pixel["SILog"] == 0


def scenes(count=7, height=6, width=5):
    target = RNG.uniform(0.5, 9, (count, height, width)).astype(np.float32)
    prediction = (target * RNG.uniform(0.6, 1.8, target.shape)).astype(np.float32)
    mask = RNG.random(target.shape) < 0.7
    mask[3] = False
    target[5] = 0
    return prediction, target, mask


def test_depth_errors_in_double_precision(x64):
    prediction, target, mask = (np.asarray(a, float) for a in scenes())
    errors = jax.jit(metrics.depth_errors)(prediction, target, mask > 0)
    for i in (0, 1, 2, 4, 6):
        seen = (mask[i] > 0) & (target[i] > 0)
        p, t = prediction[i][seen], target[i][seen]
        e, worse = np.log(p) - np.log(t), np.where(p > t, p / t, t / p)
        expected = {
            "AbsRel": np.mean(np.abs(t - p) / t),
            "SqRel": np.mean((t - p) ** 2 / t),
            "RMSE": np.sqrt(np.mean((t - p) ** 2)),
            "RMSElog": np.sqrt(np.mean(e**2)),
            "SILog": 100 * np.sqrt(np.mean(e**2) - np.mean(e) ** 2),
            "log10": np.mean(np.abs(np.log10(t) - np.log10(p))),
        } | {f"d{n}": np.mean(worse < 1.25**n) for n in (1, 2, 3)}
        assert {k: float(v[i]) for k, v in errors.items()} == pytest.approx(expected, rel=1e-12)


def test_images_without_valid_pixels_are_nan_and_leave_the_mean():
    prediction, target, mask = scenes()
    errors = metrics.depth_errors(prediction, target, mask)
    for value in errors.values():
        assert np.flatnonzero(np.isnan(value)).tolist() == [3, 5]
    means = metrics.DepthSum.zero().add(errors).compute()
    for name in metrics.DEPTH_METRICS:
        assert means[name] == pytest.approx(np.nanmean(np.asarray(errors[name], float)), rel=1e-6)


def test_a_prediction_of_nan_cannot_hide():
    prediction, target, mask = scenes()
    prediction[2] = np.nan
    means = metrics.DepthSum.zero().add(metrics.depth_errors(prediction, target, mask)).compute()
    assert means["AbsRel"] == means["RMSE"] == means["SILog"] == np.inf
    assert 0 <= means["d1"] < 1


def test_depth_sums_do_not_depend_on_how_images_are_batched(x64):
    prediction, target, mask = (jnp.asarray(a) for a in scenes())
    prediction = prediction.astype(jnp.float64)
    whole = metrics.DepthSum.zero().add(metrics.depth_errors(prediction, target, mask))
    # Batches of 3 on two "hosts"; the last one is filled up with image 0.
    hosts = [metrics.DepthSum.zero(), metrics.DepthSum.zero()]
    for batch, first in enumerate(range(0, 7, 3)):
        index = np.array([i if i < 7 else 0 for i in range(first, first + 3)])
        weights = np.arange(first, first + 3) < 7
        errors = metrics.depth_errors(prediction[index], target[index], mask[index])
        hosts[batch % 2] = hosts[batch % 2].add(errors, weights)
    merged = hosts[0].merge(hosts[1])
    assert merged.count == whole.count == 5
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-13)


def test_depth_sum_works_compiled_and_empty():
    prediction, target, mask = scenes()

    @jax.jit
    def state(*arrays):
        return metrics.DepthSum.of(metrics.depth_errors(*arrays), jnp.ones(7))

    total = metrics.DepthSum.zero().merge(state(prediction, target, mask))
    assert total.count == 5 and total.sums["AbsRel"].dtype == np.float64
    assert tuple(total.compute()) == metrics.DEPTH_METRICS
    assert np.isnan(list(metrics.DepthSum.zero().compute().values())).all()


# --- constant baseline ---------------------------------------------------------------------------


def test_best_constant_is_the_best_of_all():
    images = [RNG.uniform(0.5, 9, n) for n in (1, 40, 7, 0, 25)]
    constant, error = metrics.best_constant(iter(images))

    def absrel(c):
        return np.mean([np.mean(np.abs(t - c) / t) for t in images if t.size])

    assert error == pytest.approx(absrel(constant), rel=1e-12)
    # Convex and piecewise linear with kinks at the depths: the lowest kink is the minimum.
    assert error == pytest.approx(min(absrel(c) for c in np.concatenate(images)), rel=1e-12)
    assert error <= min(absrel(c) for c in np.linspace(0.3, 9.5, 500))


def test_best_constant_by_hand_and_empty():
    # Weights 1/1, 1/2, 1/4 (times 1/3): half of 1.75 is reached at the first depth.
    assert metrics.best_constant([np.array([1, 2, 4])]) == pytest.approx((1, (0 + 0.5 + 0.75) / 3))
    assert np.isnan(metrics.best_constant([np.array([])])).all()


# --- segmentation --------------------------------------------------------------------------------


def confusion(prediction, label, classes=4, **options):
    return metrics.ConfusionSum.of(np.array(prediction), np.array(label), classes, **options)


def test_segmentation_by_hand():
    # Class 3 occurs nowhere, class 2 only in the prediction.
    state = confusion([[[0, 0, 1], [1, 2, 3]]], [[[0, 0, 0], [1, 1, 255]]])
    assert state.compute() == pytest.approx(
        {
            "mIoU": (2 / 3 + 1 / 3 + 0) / 3,
            "pixel_accuracy": 3 / 5,
            "mean_accuracy": (2 / 3 + 1 / 2) / 2,
        }
    )


def test_segmentation_agrees_with_scikit_learn():
    reference = pytest.importorskip("sklearn.metrics")
    label, prediction = RNG.integers(0, 5, (2, 4, 9, 8))
    label = np.where(RNG.random(label.shape) < 0.2, 255, label)
    state = jax.jit(metrics.ConfusionSum.of, static_argnums=2)(prediction, label, 6)
    seen = label != 255
    matrix = reference.confusion_matrix(label[seen], prediction[seen], labels=range(6))
    np.testing.assert_array_equal(state.counts[:-1], matrix)
    result = state.compute()
    iou = reference.jaccard_score(label[seen], prediction[seen], average="macro")
    assert result["mIoU"] == pytest.approx(iou, rel=1e-12)
    balanced = reference.balanced_accuracy_score(label[seen], prediction[seen])
    assert result["mean_accuracy"] == pytest.approx(balanced, rel=1e-12)
    accuracy = reference.accuracy_score(label[seen], prediction[seen])
    assert result["pixel_accuracy"] == pytest.approx(accuracy, rel=1e-12)


def test_confusion_merges_and_skips_entries_of_weight_zero():
    label, prediction = RNG.integers(0, 4, (2, 5, 3, 3))
    merged = metrics.ConfusionSum.zero(4).merge(confusion(prediction[:3], label[:3]))
    tail = [3, 4, 0]
    merged = merged.merge(confusion(prediction[tail], label[tail], weights=[1, 1, 0]))
    np.testing.assert_array_equal(merged.counts, confusion(prediction, label).counts)
    assert merged.counts.dtype == np.int64


def test_segmentation_without_labels_is_nan_and_with_strange_ones_an_error():
    assert np.isnan(list(confusion([[[1]]], [[[255]]]).compute().values())).all()
    with pytest.raises(UserError, match="1 pixels are neither 255 nor below 4"):
        confusion([[[1, 0]]], [[[4, 0]]]).compute()


# --- classification ------------------------------------------------------------------------------


def test_average_precision_by_hand():
    assert metrics.average_precision([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]) == pytest.approx(5 / 6)
    assert metrics.average_precision([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 0]) == pytest.approx(1 / 4)
    assert np.isnan(metrics.average_precision([0.1, 0.2], [0, 0]))


@pytest.mark.parametrize("levels", [3, 1000])
def test_mean_average_precision_agrees_with_scikit_learn(levels):
    reference = pytest.importorskip("sklearn.metrics")
    scores = RNG.integers(0, levels, (60, 8)) / levels
    present = RNG.random((60, 8)) < np.linspace(0.05, 0.9, 8)
    present[:, 2] = False
    result = metrics.ScoreList.of(scores, present).compute()
    occurs = present.any(axis=0)
    expected = reference.average_precision_score(present[:, occurs], scores[:, occurs])
    assert result["mAP"] == pytest.approx(expected, rel=1e-12)
    constant = metrics.ScoreList.of(0 * scores, present).compute()
    assert constant["mAP"] == pytest.approx(result["mAP_constant"], rel=1e-12)


def test_scores_merge_and_skip_entries_of_weight_zero():
    scores, present = RNG.random((5, 3)), RNG.random((5, 3)) < 0.5
    merged = metrics.ScoreList.zero(3).merge(metrics.ScoreList.of(scores[:3], present[:3]))
    tail = [3, 4, 0]
    merged = merged.merge(metrics.ScoreList.of(scores[tail], present[tail], [1, 1, 0]))
    assert merged.compute() == pytest.approx(metrics.ScoreList.of(scores, present).compute())
    assert np.isnan(list(metrics.ScoreList.zero(3).compute().values())).all()


def test_single_label_accuracy():
    logits = np.array([[1, 2, 9], [3, 1, 0], [0, 1, 5], [0, 0, 1]], np.float32)
    own = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], bool)
    state = jax.jit(metrics.AccuracySum.of)(logits, np.array([0, 0, 2, -1]), own)
    assert (state.correct, state.count) == (2, 3)
    last = metrics.AccuracySum.of(logits, np.array([1, 0, 2, 2]), own, [0, 0, 0, 1])
    total = metrics.AccuracySum.zero().merge(state).merge(last)
    assert total.compute() == {"accuracy": 3 / 4}
    assert np.isnan(metrics.AccuracySum.zero().compute()["accuracy"])
