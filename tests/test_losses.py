"""Losses on hand-computed cases, empty and degenerate masks, and half precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth.losses import LOSSES

RNG = np.random.default_rng(0)


def value_and_gradient(name, first, *rest, **options):
    """Compiled value and gradient, both checked to be finite; terms repeat the value."""

    def run(*arguments):
        value, terms = LOSSES[name](*arguments, **options)
        return value, (value, terms)

    gradient, (value, terms) = jax.jit(jax.grad(run, has_aux=True))(jnp.asarray(first), *rest)
    assert terms == {name: value}
    assert value.shape == ()
    assert np.isfinite(value) and np.isfinite(np.asarray(gradient, np.float32)).all()
    return float(value), np.asarray(gradient)


# --- SigLoss -------------------------------------------------------------------------------------


def images(*ratios):
    """One image per list of g values: target 1 m, prediction such that log(p + eps) - log(t + eps)
    is g; NaN stands for an invalid pixel."""
    g = np.array(ratios, np.float32)[:, None, :]
    target = np.where(np.isnan(g), 0, 1).astype(np.float32)
    prediction = np.where(np.isnan(g), -1, 1.001 * np.exp(g) - 0.001).astype(np.float32)
    return prediction, target, np.ones(g.shape, bool)


def test_silog_by_hand():
    # g = 0.1, 0.3, 0.5, 0.7: mean 0.4, unbiased variance 0.2 / 3.
    scene = images([0.1, 0.3], [0.5, 0.7])
    value, _ = value_and_gradient("silog", *scene, warmup=False)
    assert value == pytest.approx(np.sqrt(0.2 / 3 + 0.15 * 0.16), rel=1e-5)
    value, _ = value_and_gradient("silog", *scene, warmup=True)
    assert value == pytest.approx(0.387298 * 0.4, rel=1e-5)
    # One image per group: means 0.2 and 0.6, variance 0.02 each.
    value, _ = value_and_gradient("silog", *scene, warmup=False, group=1)
    expected = (np.sqrt(0.02 + 0.15 * 0.04) + np.sqrt(0.02 + 0.15 * 0.36)) / 2
    assert value == pytest.approx(expected, rel=1e-5)


def test_silog_groups_follow_the_batch_index():
    scene = images([0.1, 0.2], [0.4, 0.4], [0.3, 0.9], [0.0, 0.5], [0.7, 0.2])
    parts = [
        value_and_gradient("silog", *(array[part] for array in scene), warmup=False, group=None)[0]
        for part in (slice(0, 2), slice(2, 4), slice(4, 5))
    ]
    assert value_and_gradient("silog", *scene, warmup=False)[0] == pytest.approx(np.mean(parts))


@pytest.mark.parametrize("warmup", [False, True])
def test_silog_warmup_may_be_traced(warmup):
    scene = images([0.1, 0.3], [0.5, 0.7])
    traced = jax.jit(lambda flag: LOSSES["silog"](*scene, warmup=flag)[0])(warmup)
    assert traced == LOSSES["silog"](*scene, warmup=warmup)[0]


@pytest.mark.parametrize("warmup", [False, True])
def test_silog_groups_without_two_pixels_leave_the_mean(warmup):
    nan = np.nan
    full = images([0.1, 0.3], [0.5, 0.7])
    expected, _ = value_and_gradient("silog", *full, warmup=warmup)
    for poor in ([nan, nan], [nan, 0.9]):
        scene = images([0.1, 0.3], [0.5, 0.7], poor, [nan, nan])
        value, gradient = value_and_gradient("silog", *scene, warmup=warmup)
        assert value == pytest.approx(expected, rel=1e-6)
        assert not gradient[2:].any()
        value, gradient = value_and_gradient("silog", *images(poor), warmup=warmup)
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize("warmup", [False, True])
def test_silog_perfect_prediction_is_flat(warmup):
    value, gradient = value_and_gradient("silog", DEPTH, DEPTH, ~NOWHERE, warmup=warmup)
    assert value == 0 and not gradient.any()


def test_silog_of_a_constant_offset_has_no_variance():
    # Identical g everywhere: rounding must not make the variance negative.
    value, _ = value_and_gradient("silog", *images([0.7] * 999, [0.7] * 999), warmup=False)
    assert value == pytest.approx(0.387298 * 0.7, rel=1e-5)


@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -1, 0])
@pytest.mark.parametrize("name", ["silog", "gradient"])
def test_depth_losses_ignore_what_is_outside_the_mask(name, rubbish):
    options = {"warmup": False} if name == "silog" else {}
    target = RNG.uniform(1, 5, (2, 8, 8)).astype(np.float32)
    prediction = target * 1.1 + RNG.random(target.shape).astype(np.float32)
    mask = RNG.random(target.shape) < 0.6
    expected, _ = value_and_gradient(name, prediction, target, mask, **options)
    prediction[~mask] = rubbish
    value, gradient = value_and_gradient(name, prediction, target, mask, **options)
    assert value == expected and not gradient[~mask].any()


def test_silog_is_accurate_in_single_precision():
    shape = (2, 416, 544)
    target = RNG.uniform(1, 10, shape)
    prediction = target * np.exp(RNG.normal(0.5, 0.01, shape))
    g = np.log(prediction + 0.001) - np.log(target + 0.001)
    single = prediction.astype(np.float32), target.astype(np.float32), np.ones(shape, bool)
    value, _ = value_and_gradient("silog", *single, warmup=False)
    assert value == pytest.approx(np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2), rel=1e-5)


# --- gradient loss -------------------------------------------------------------------------------


def test_gradient_by_hand():
    # g grows by 0.1 per column and by 0 per row: differences over two pixels at stride s are
    # 0.2 s, present in (columns - 2) of every `columns` columns.
    g = np.broadcast_to(0.1 * np.arange(24), (1, 12, 24))
    prediction = (1.001 * np.exp(g) - 0.001).astype(np.float32)
    everywhere = np.ones_like(prediction)
    value, _ = value_and_gradient("gradient", prediction, everywhere, everywhere > 0)
    columns = {1: 24, 2: 12, 4: 6, 6: 4}
    expected = sum(0.2 * s * (n - 2) / n for s, n in columns.items())
    assert value == pytest.approx(expected, rel=1e-5)


def test_gradient_of_images_smaller_than_its_reach():
    small = np.full((2, 1, 2), 2, np.float32)
    assert value_and_gradient("gradient", small, small / 2, small > 0)[0] == 0


# --- empty masks ---------------------------------------------------------------------------------

DEPTH = RNG.uniform(1, 5, (3, 16, 16)).astype(np.float32)
NOWHERE = np.zeros(DEPTH.shape, bool)
OWN = np.arange(6) < np.array([6, 2, 1])[:, None]
LOGITS = RNG.normal(0, 2, (3, 6)).astype(np.float32)
MAP = RNG.normal(0, 2, (3, 5, 4, 6)).astype(np.float32)
EMPTY = {
    "silog": ((DEPTH, DEPTH, NOWHERE), {"warmup": False}),
    "gradient": ((DEPTH, DEPTH, NOWHERE), {}),
    "multi_label": ((LOGITS, np.zeros((3, 6)), np.zeros((3, 6), bool)), {}),
    "single_label": ((LOGITS, np.full(3, -1), OWN), {}),
    "segmentation": ((MAP, np.full((3, 9, 8), 255, np.uint8), OWN), {}),
    "reconstruction": ((MAP[..., :3], np.full((3, 9, 8, 3), np.nan), np.zeros((3, 2), int)), {}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_mask_is_zero_with_zero_gradient(name):
    arguments, options = EMPTY[name]
    value, gradient = value_and_gradient(name, *arguments, **options)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("name", ["silog", "gradient"])
def test_a_target_of_zeros_is_an_empty_mask(name):
    _, options = EMPTY[name]
    value, gradient = value_and_gradient(name, DEPTH, 0 * DEPTH, ~NOWHERE, **options)
    assert value == 0 and not gradient.any()


# --- losses over classes -------------------------------------------------------------------------

PRESENT = (RNG.random((3, 6)) < 0.5).astype(np.float32)
LABEL = RNG.integers(0, OWN.sum(axis=1)[:, None, None], (3, 9, 8))
LABEL[RNG.random(LABEL.shape) < 0.2] = 255
CLASSED = {
    "multi_label": (LOGITS, PRESENT, OWN),
    "single_label": (LOGITS, np.array([4, 1, -1]), OWN),
    "segmentation": (MAP, LABEL.astype(np.uint8), OWN),
}


@pytest.mark.parametrize("rubbish", [-np.inf, np.inf, np.nan, -1e38, 1e38])
@pytest.mark.parametrize("name", CLASSED)
def test_columns_of_other_datasets_do_not_matter(name, rubbish):
    logits, wanted, own = CLASSED[name]
    expected, reference = value_and_gradient(name, logits, wanted, own)
    outside = np.broadcast_to(~own if logits.ndim == 2 else ~own[:, None, None], logits.shape)
    value, gradient = value_and_gradient(name, np.where(outside, rubbish, logits), wanted, own)
    assert value == expected
    np.testing.assert_array_equal(gradient, reference)
    assert not gradient[outside].any()


@pytest.mark.parametrize("name", CLASSED)
def test_confident_logits_stay_finite(name):
    logits, wanted, own = CLASSED[name]
    value, _ = value_and_gradient(name, 1e4 * logits, wanted, own)
    assert value > 0


@pytest.mark.parametrize("name", ["single_label", "segmentation"])
def test_a_single_class_costs_nothing(name):
    logits, wanted, _ = CLASSED[name]
    only = np.arange(6) < np.ones((3, 1))
    wanted = np.where(wanted == (255 if name == "segmentation" else -1), wanted, 0)
    value, gradient = value_and_gradient(name, logits, wanted, only)
    assert value == pytest.approx(0, abs=1e-6) and np.abs(gradient).max() < 1e-6


@pytest.mark.parametrize("wrong", [5, 6, 200])
@pytest.mark.parametrize("name", ["single_label", "segmentation"])
def test_an_impossible_label_shows_as_nan(name, wrong):
    logits, wanted, own = CLASSED[name]
    wanted = wanted.copy()
    wanted[1] = wrong
    run = jax.value_and_grad(lambda x: LOSSES[name](x, wanted, own)[0])
    value, gradient = run(jnp.asarray(logits))
    assert np.isnan(value) and np.isfinite(gradient).all()


def test_multi_label_by_hand():
    logits = np.array([[0, np.log(3), 7], [0, 9, 9]], np.float32)
    present = np.array([[1, 0, 1], [0, 1, 1]])
    own = np.array([[True, True, False], [True, False, False]])
    value, _ = value_and_gradient("multi_label", logits, present, own)
    assert value == pytest.approx(((np.log(2) + np.log(4)) / 2 + np.log(2)) / 2, rel=1e-6)


# --- segmentation in strips ----------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 9, 100])
def test_strips_do_not_change_segmentation(rows, x64):
    logits, label, own = CLASSED["segmentation"]
    logits = logits.astype(np.float64)
    expected, reference = value_and_gradient("segmentation", logits, label, own, rows=9)

    def run(x):
        return LOSSES["segmentation"](x, label, own, rows=rows)[0]

    value, gradient = jax.value_and_grad(run)(jnp.asarray(logits))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, reference, rtol=0, atol=1e-14)


def test_no_array_of_the_label_size_times_the_classes_exists():
    classes, size = 50, 128
    logits = jax.ShapeDtypeStruct((2, 32, 32, classes), jnp.float32)
    label = jax.ShapeDtypeStruct((2, size, size), jnp.uint8)
    own = jax.ShapeDtypeStruct((2, classes), bool)
    step = jax.jit(jax.grad(lambda *arguments: LOSSES["segmentation"](*arguments, rows=8)[0]))
    memory = step.lower(logits, label, own).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * size * size * classes * 4 / 2


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_single(name):
    options = EMPTY[name][1]
    if name in ("silog", "gradient"):
        arguments = (DEPTH, DEPTH[::-1], ~NOWHERE)
    elif name == "reconstruction":
        image = RNG.normal(size=(3, 9, 8, 3)).astype(np.float32)
        arguments = (MAP[..., :3], image, np.array([[9, 8], [4, 8], [9, 1]]))
    else:
        arguments = CLASSED[name]
    half = jnp.asarray(arguments[0], jnp.bfloat16)
    value = LOSSES[name](half, *arguments[1:], **options)[0]
    expected = LOSSES[name](half.astype(jnp.float32), *arguments[1:], **options)[0]
    assert value.dtype == jnp.float32 and value == expected
