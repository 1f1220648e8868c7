"""Scale and shift in disparity against NumPy's least squares."""

import numpy as np
import pytest

from jdepth import metrics


def by_hand(disparity, target, mask, low, high):
    valid = mask & (target > 0)
    system = np.stack([disparity[valid], np.ones(valid.sum())], axis=1).astype(np.float64)
    scale, shift = np.linalg.lstsq(system, 1 / target[valid].astype(np.float64), rcond=None)[0]
    return 1 / np.clip(scale * disparity + shift, 1 / high, 1 / low)


@pytest.mark.parametrize("magnitude, offset", [(1.0, 0.0), (300.0, 0.0), (1e-3, 5.0), (1e-2, 3000.0)])
def test_against_least_squares(magnitude, offset):
    draw = np.random.default_rng(0)
    target = draw.uniform(0.5, 9, (3, 20, 30)).astype(np.float32)
    target[:, :4] = 0
    mask = draw.random(target.shape) < 0.8
    disparity = (magnitude * (1 / np.maximum(target, 0.3) + 0.1 * draw.normal(size=target.shape)) + offset).astype(np.float32)
    found = np.asarray(metrics.align_disparity(disparity, target, mask, 0.001, 10.0))
    for one in range(3):
        expected = by_hand(disparity[one], target[one], mask[one], 0.001, 10.0)
        np.testing.assert_allclose(found[one], expected, rtol=2e-4)


def test_a_linear_function_of_disparity_is_exact():
    target = np.random.default_rng(1).uniform(0.5, 9, (2, 8, 9)).astype(np.float32)
    found = metrics.align_disparity(7 / target - 3, target, np.ones(target.shape, bool), 0.001, 10.0)
    np.testing.assert_allclose(found, target, rtol=1e-5)


def test_both_ends_of_the_range():
    target = np.array([[[1.0, 1.5, 3.0, 5.0, 9.0]]], np.float32)
    found = metrics.align_disparity(7 / target - 3, target, target > 0, 2.0, 6.0)
    np.testing.assert_allclose(found, [[[2, 2, 3, 5, 6]]], rtol=1e-5)


def test_constant_disparity_one_pixel_and_none():
    target = np.array([[[1.0, 4.0]], [[2.0, 0.0]], [[0.0, 0.0]]], np.float32)
    found = np.asarray(metrics.align_disparity(np.ones((3, 1, 2), np.float32), target, target > -1, 0.001, 10.0))
    np.testing.assert_allclose(found[0], 1 / np.mean([1, 0.25]), rtol=1e-6)
    np.testing.assert_allclose(found[1], 2.0, rtol=1e-6)
    assert np.isfinite(found).all()


def test_nearer_may_not_become_negative():
    """Beyond the range, the result is the range's end, not a negative depth."""
    target = np.array([[[1.0, 5.0, 9.0]]], np.float32)
    found = np.asarray(metrics.align_disparity(np.array([[[1.0, 0.2, -3.0]]], np.float32), target, target > 0, 0.1, 10.0))
    assert (found >= 0.1).all() and (found <= 10.0).all()
