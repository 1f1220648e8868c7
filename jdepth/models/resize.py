"""Resizing with PyTorch's conventions, which `jax.image.resize` does not cover.

Every resize here is separable and linear: static weights per axis, built in NumPy float64 from the sizes alone.
They are built anew for each trace, in milliseconds, rather than kept: every image of a folder may have a size of
its own. Bilinear values need two weights a sample; its gradient needs the matrix, which for a large photo has 50 MB.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def _taps(n_in: int, n_out: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation along one axis, no antialiasing: (n_out, 2) samples to read, and their float64 weights.

    align_corners True maps first and last sample onto each other (step (n_in−1)/(n_out−1)); False
    uses half-pixel centres, clamped at the edges: `torch.nn.functional.interpolate`.
    """
    target = np.arange(n_out)
    if align_corners:
        source = target * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    else:
        source = np.maximum((target + 0.5) * (n_in / n_out) - 0.5, 0.0)
    low = np.minimum(np.floor(source).astype(int), n_in - 1)
    high = np.minimum(low + 1, n_in - 1)
    share = np.where(high > low, source - low, 0.0)
    return np.stack([low, high], axis=1), np.stack([1.0 - share, share], axis=1)


def bilinear_matrix(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """(n_out, n_in) float64: what `bilinear` does along one axis, as a dense matrix."""
    index, weight = _taps(n_in, n_out, align_corners)
    matrix = np.zeros((n_out, n_in))
    np.add.at(matrix, (np.arange(n_out)[:, None], index), weight)
    return matrix


def bilinear(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """Resize (B, H, W, C) to (B, *size, C) as `torch.nn.functional.interpolate(mode="bilinear")`,
    without antialiasing when shrinking. Computed in at least float32, returned in x's type.
    Reverse-mode differentiable, any number of times."""
    if x.shape[1:3] == tuple(size):
        return x
    return _bilinear(x, x.shape[1:3], tuple(size), bool(align_corners))


# Static gathers with weights, and as gradient the same thing with the transposed matrices. Measured
# on 2 shared CPU cores (medians of 5), float32, align_corners True, forward + backward,
# (4, 64, 80, 64) -> (128, 160) and (4, 128, 160, 32) -> (256, 320): 4 and 28 ms; dense matrix
# products in their better order 24 and 97, shifted slices 20 and 63, gathers with JAX's own
# gradient (a scatter-add) 59 and 148.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _bilinear(x, size_in, size_out, align_corners):
    rows, columns = (_taps(*n, align_corners) for n in zip(size_in, size_out))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # Columns first, on the array that still has few rows.
    return _gather(_gather(wide, *columns, 2), *rows, 1).astype(x.dtype)


def _bilinear_forward(x, size_in, size_out, align_corners):
    return _bilinear(x, size_in, size_out, align_corners), None


def _bilinear_backward(size_in, size_out, align_corners, _, cotangent):
    rows, columns = (_sparse(bilinear_matrix(*n, align_corners).T) for n in zip(size_in, size_out))
    wide = cotangent.astype(jnp.promote_types(cotangent.dtype, jnp.float32))
    return (_gather(_gather(wide, *rows, 1), *columns, 2).astype(cotangent.dtype),)


_bilinear.defvjp(_bilinear_forward, _bilinear_backward)


def _sparse(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n_out, entries) indices and weights of a matrix (n_out, n_in) with few non-zero entries a row."""
    entries = max(int((matrix != 0).sum(1).max()), 1)
    index = np.argsort(matrix == 0, axis=1, kind="stable")[:, :entries]
    return index, np.take_along_axis(matrix, index, axis=1)


def _gather(x: jax.Array, index: np.ndarray, weight: np.ndarray, axis: int) -> jax.Array:
    """Sum over k of weight[:, k] × x[index[:, k]] along `axis`, one gather per k that any sample needs."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    terms = (
        jnp.take(x, index[:, k], axis=axis, mode="clip") * weight[:, k].reshape(shape).astype(x.dtype)
        for k in range(index.shape[1])
        if k == 0 or weight[:, k].any()
    )
    return functools.reduce(jnp.add, terms)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel with parameter a."""
    d = np.abs(distance)
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = a * (((d - 5.0) * d + 8.0) * d - 4.0)
    return np.where(d <= 1.0, near, np.where(d < 2.0, far, 0.0))


def bicubic_matrix(n_in: int, n_out: int, scale: float) -> np.ndarray:
    """(n_out, n_in) float64: PyTorch's plain bicubic along one axis (a = −0.75, half-pixel centres,
    edge samples repeated), with samples placed by `scale` = output/input whatever the size ratio."""
    source = (np.arange(n_out) + 0.5) / scale - 0.5
    first = np.floor(source).astype(int)
    matrix = np.zeros((n_out, n_in))
    for tap in range(-1, 3):
        index = np.clip(first + tap, 0, n_in - 1)
        np.add.at(matrix, (np.arange(n_out), index), _cubic(source - (first + tap), -0.75))
    return matrix


def bicubic_antialias_matrix(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in) float64: PyTorch's antialiased bicubic along one axis (a = −0.5; the kernel is
    widened when shrinking; weights outside the input are dropped and the rest renormalised)."""
    step = n_in / n_out
    widen = max(step, 1.0)
    matrix = np.zeros((n_out, n_in))
    for target in range(n_out):
        centre = step * (target + 0.5)
        start = max(int(centre - 2.0 * widen + 0.5), 0)
        stop = min(int(centre + 2.0 * widen + 0.5), n_in)
        weights = _cubic((np.arange(start, stop) - centre + 0.5) / widen, -0.5)
        matrix[target, start:stop] = weights / weights.sum()
    return matrix


def position_table(
    table: jax.Array, grid: tuple[int, int], *, antialias: bool, offset: float
) -> jax.Array:
    """Position embeddings (1, 1 + n², D) of a square n×n grid, resized to `grid` = (h, w) patches:
    (1, 1 + h·w, D), at least float32, differentiable.

    The rules of DINOv2's `interpolate_pos_encoding`: the class entry is untouched; an n×n grid is
    taken verbatim. Register-free models (offset 0.1) place bicubic samples by the *factors*
    (h + 0.1)/n and (w + 0.1)/n, not by the size ratio, which shifts every sample slightly; the
    published features depend on it. Register models use antialiased bicubic by size.
    """
    n = math.isqrt(table.shape[1] - 1)
    table = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    if tuple(grid) == (n, n):
        return table
    if antialias:
        matrices = [bicubic_antialias_matrix(n, size) for size in grid]
    else:
        matrices = [bicubic_matrix(n, size, (size + offset) / n) for size in grid]
    rows, columns = (jnp.asarray(matrix, table.dtype) for matrix in matrices)
    patches = table[0, 1:].reshape(n, n, -1)
    patches = jnp.einsum(
        "oh,pw,hwd->opd", rows, columns, patches, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.concatenate([table[:, :1], patches.reshape(1, -1, table.shape[-1])], axis=1)
