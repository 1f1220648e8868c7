"""Resizing: hand-computed cases, gradients, types and the position table."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth.models import resize


def normal(seed, *shape):
    """float32, or float64 where the test runs in it."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def line(values, size, align_corners):
    x = jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)
    return np.asarray(resize.bilinear(x, (1, size), align_corners)).ravel()


def test_bilinear_by_hand():
    np.testing.assert_allclose(line([0, 3], 4, True), [0, 1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(line([0, 4], 4, False), [0, 1, 3, 4], atol=1e-6)
    np.testing.assert_allclose(line([0, 1, 2, 3], 3, True), [0, 1.5, 3], atol=1e-6)
    np.testing.assert_allclose(line([0, 1, 2, 9], 2, False), [0.5, 5.5], atol=1e-6)
    # No antialiasing: six to two reads two neighbours each, not three.
    np.testing.assert_allclose(line([0, 1, 0, 0, 5, 0], 2, False), [1, 5], atol=1e-6)
    np.testing.assert_allclose(line([7, 8, 9], 1, True), [7], atol=1e-6)
    np.testing.assert_allclose(line([7], 3, True), [7, 7, 7], atol=1e-6)
    np.testing.assert_allclose(line([7], 3, False), [7, 7, 7], atol=1e-6)


def test_bilinear_is_separable():
    x = jnp.asarray([[0.0, 2.0], [4.0, 6.0]]).reshape(1, 2, 2, 1)
    expected = np.add.outer([0, 4 / 3, 8 / 3, 4], [0, 2 / 3, 4 / 3, 2])
    np.testing.assert_allclose(resize.bilinear(x, (4, 4), True)[0, :, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size_in", "size_out"), [((5, 4), (10, 8)), ((6, 7), (3, 11)), ((3, 3), (17, 1))])
def test_bilinear_equals_its_matrices(x64, size_in, size_out, align_corners):
    """Value and gradient, against dense matrix products."""
    rows, columns = (resize.bilinear_matrix(*n, align_corners) for n in zip(size_in, size_out))
    np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-15)
    x = normal(0, 2, *size_in, 3)
    g = normal(1, 2, *size_out, 3)

    @jax.jit
    def value_and_pullback(x, g):
        y, pull = jax.vjp(lambda x: resize.bilinear(x, size_out, align_corners), x)
        return y, pull(g)[0]

    ours, gradient = value_and_pullback(x, g)
    np.testing.assert_allclose(ours, np.einsum("oh,pw,bhwc->bopc", rows, columns, x), atol=1e-13)
    np.testing.assert_allclose(gradient, np.einsum("oh,pw,bopc->bhwc", rows, columns, g), atol=1e-13)


def test_bilinear_of_a_long_strip_needs_no_matrix():
    """The one of 5,000 to 10,000 columns has 400 MB, and that of a strip of 100,000 does not fit into memory."""
    x = jax.ShapeDtypeStruct((1, 2, 5_000, 1), jnp.float32)
    tracemalloc.start()
    try:
        assert jax.eval_shape(lambda x: resize.bilinear(x, (4, 10_000), True), x).shape == (1, 4, 10_000, 1)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_bilinear_types_and_identity():
    x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    assert resize.bilinear(x, (8, 8), True).dtype == jnp.bfloat16
    assert jax.eval_shape(jax.grad(lambda x: resize.bilinear(x, (8, 8), True).astype(jnp.float32).sum()), x).dtype == jnp.bfloat16
    assert resize.bilinear(x, (4, 4), True) is x


def test_bilinear_in_bfloat16_rounds_once():
    x = normal(0, 1, 9, 9, 4).astype(jnp.bfloat16)
    exact = resize.bilinear(x.astype(jnp.float32), (18, 18), True)
    np.testing.assert_array_equal(resize.bilinear(x, (18, 18), True), exact.astype(jnp.bfloat16))


def test_bilinear_under_vmap():
    x = normal(0, 3, 2, 4, 5, 1)
    together = jax.vmap(lambda x: resize.bilinear(x, (7, 9), False))(x)
    np.testing.assert_allclose(together[1], resize.bilinear(x[1], (7, 9), False), atol=1e-6)


@pytest.mark.parametrize(("antialias", "offset"), [(False, 0.1), (True, 0.0)])
def test_position_table_is_verbatim_at_its_own_grid(antialias, offset):
    table = normal(0, 1, 1370, 4)
    same = resize.position_table(table, (37, 37), antialias=antialias, offset=offset)
    np.testing.assert_array_equal(same, table)
    other = resize.position_table(table, (30, 39), antialias=antialias, offset=offset)
    assert other.shape == (1, 1 + 30 * 39, 4)
    np.testing.assert_array_equal(other[:, 0], table[:, 0])


@pytest.mark.parametrize(("antialias", "offset"), [(False, 0.1), (True, 0.0)])
def test_as_many_patches_in_another_shape_are_interpolated(antialias, offset):
    """1369 tokens of a non-square input are not the table."""
    table = normal(0, 1, 37, 4)  # n = 6: 36 positions
    out = resize.position_table(table, (4, 9), antialias=antialias, offset=offset)
    assert out.shape == table.shape and jnp.abs(out - table).max() > 0.1


def test_bicubic_by_hand():
    """a = −0.75, at the middle between two samples: −0.09375, 0.59375, 0.59375, −0.09375."""
    matrix = resize.bicubic_matrix(8, 4, 0.5)
    np.testing.assert_allclose(matrix[1, 1:5], [-0.09375, 0.59375, 0.59375, -0.09375], atol=1e-15)
    # The first sample repeats at the edge: source 0.5 reads samples −1, 0, 1, 2.
    np.testing.assert_allclose(matrix[0, :3], [0.5, 0.59375, -0.09375], atol=1e-15)
    # Positions follow the factor: 16 out of 16 with factor 16.1/16 is not the identity.
    shifted = resize.bicubic_matrix(16, 16, 16.1 / 16)
    assert 0.01 < np.abs(shifted - np.eye(16)).max() < 0.5
    np.testing.assert_allclose(shifted.sum(1), 1.0, atol=1e-14)


def test_antialiased_bicubic_by_hand():
    """a = −0.5; halving widens the kernel to eight samples."""
    matrix = resize.bicubic_antialias_matrix(16, 8)
    assert (np.count_nonzero(matrix[3:5], axis=1) == 8).all()
    inner = np.array([_keys(d) for d in (1.75, 1.25, 0.75, 0.25)])
    expected = np.concatenate([inner, inner[::-1]])
    np.testing.assert_allclose(matrix[3, 3:11], expected / expected.sum(), atol=1e-15)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-14)


def _keys(d, a=-0.5):
    return (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a


def test_position_table_types(x64):
    table = jnp.ones((1, 17, 2))
    for dtype, expected in ((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float32), (jnp.float64, jnp.float64)):
        out = resize.position_table(table.astype(dtype), (5, 6), antialias=False, offset=0.1)
        assert out.dtype == expected
        np.testing.assert_allclose(out, 1.0, atol=1e-6)
