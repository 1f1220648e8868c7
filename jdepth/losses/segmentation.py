"""Semantic segmentation loss at label resolution, without ever holding the logits there.

At 512 x 512 with 150 classes, the resized logits of four images are 629 MB in float32, and their
gradient as much again. Only one strip of rows exists at a time: it is resized, reduced to a sum,
and computed again in the backward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jdepth.losses.classification import negative_log_likelihood
from jdepth.losses.silog import Terms
from jdepth.models.resize import bilinear_matrix

IGNORE = 255
EXACT = jax.lax.Precision.HIGHEST


def cross_entropy(logits, label, class_mask, *, rows: int = 16) -> tuple[jax.Array, Terms]:
    """Cross-entropy over all labelled pixels of the batch, pooled.

    The logits are resized bilinearly to the label (align_corners False, no antialiasing).

    Args:
        logits: (B, h, w, K) scores at decoder resolution.
        label: (B, H, W) int or uint8, 255 = ignore.
        class_mask: (B, K) bool, the classes of the sample's dataset.
        rows: label rows per strip; changes memory and speed, not the result.

    Returns:
        The mean over pixels that are not 255 (0 if there are none) and {"segmentation": the same}.
        A label that is neither 255 nor a class of the sample's dataset makes the loss NaN.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    # Before the resize, where an infinite entry times a zero weight would be NaN.
    logits = jnp.where(class_mask[:, None, None], logits.astype(dtype), 0)
    label = label.astype(jnp.int32)
    batch, height, width = label.shape
    rows = min(rows, height)

    # Rows first, from the few rows of logits that a strip needs, then columns. The windows are cut
    # out beforehand: a slice inside the loop would add to a full-size gradient at every strip.
    weights, windows = _strips(bilinear_matrix(logits.shape[1], height, False), rows)
    strips, weights = len(windows), jnp.asarray(weights, dtype)
    columns = jnp.asarray(bilinear_matrix(logits.shape[2], width, False), dtype)
    pieces = jnp.moveaxis(logits[:, windows], 1, 0)
    spill = strips * rows - height
    label = jnp.pad(label, ((0, 0), (0, spill), (0, 0)), constant_values=IGNORE)
    label = label.reshape(batch, strips, rows, width).swapaxes(0, 1)

    def strip(inputs):
        piece, weight, wanted = inputs
        resized = jnp.einsum("rh,bhwk->brwk", weight, piece, precision=EXACT)
        resized = jnp.einsum("xw,brwk->brxk", columns, resized, precision=EXACT)
        mask = class_mask[:, None, None]
        return negative_log_likelihood(resized, wanted, mask, wanted != IGNORE).sum()

    # Inside a loop nothing can merge the second computation with the first, so the barriers that
    # checkpoint would otherwise add are not needed.
    sums = jax.lax.map(jax.checkpoint(strip, prevent_cse=False), (pieces, weights, label))
    pixels = jnp.sum(label != IGNORE, dtype=jnp.int32)
    loss = sums.sum() / jnp.maximum(pixels, 1).astype(dtype)
    return loss, {"segmentation": loss}


def _strips(matrix: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Split an interpolation matrix (H, h) into strips of `rows` output rows.

    Returns:
        weights (strips, rows, window), zero rows past the end, and windows (strips, window) int,
        the source rows those weights apply to: as many as the widest strip needs.
    """
    height, source = matrix.shape
    strips = -(-height // rows)
    matrix = np.pad(matrix, ((0, strips * rows - height), (0, 0))).reshape(strips, rows, source)
    used = matrix.any(axis=1)
    first, last = used.argmax(axis=1), source - 1 - used[:, ::-1].argmax(axis=1)
    window = int((last - first).max()) + 1
    windows = np.minimum(first, source - window)[:, None] + np.arange(window)
    return np.take_along_axis(matrix, windows[:, None, :], axis=2), windows
