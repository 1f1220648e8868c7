"""Semantic segmentation loss at label resolution, without ever holding the logits there.

At 512 x 512 with 150 classes, the resized logits of four images are 629 MB in float32, and their
gradient as much again. Only one strip of rows exists at a time: it is resized, reduced to a sum, and
computed again in the backward pass.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jdepth.losses.classification import negative_log_likelihood
from jdepth.losses.silog import Terms
from jdepth.models.resize import bilinear

IGNORE = 255


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
    # Before the resize: an infinite padding column times a zero weight would be NaN.
    logits = jnp.where(class_mask[:, None, None], logits.astype(dtype), 0)
    label = label.astype(jnp.int32)
    batch, height, width = label.shape
    source = logits.shape[1]

    rows = min(rows, height)
    strips = -(-height // rows)
    spill = strips * rows - height
    windows = _windows(source, height, rows, strips)

    # The rows' interpolation weights are the resized identity, so they cannot differ from those of
    # `bilinear`; each strip needs the few columns of them, and the few rows of logits, in its window.
    identity = jnp.eye(source, dtype=dtype)[None, :, None, :]
    weights = bilinear(identity, (height, 1), False)[0, :, 0, :]
    weights = jnp.pad(weights, ((0, spill), (0, 0))).reshape(strips, rows, source)
    weights = jnp.take_along_axis(weights, windows[:, None, :], axis=2)
    label = jnp.pad(label, ((0, 0), (0, spill), (0, 0)), constant_values=IGNORE)
    label = label.reshape(batch, strips, rows, width).swapaxes(0, 1)
    # Cut out beforehand: a slice inside the loop would add to a full-size gradient at every strip.
    pieces = jnp.moveaxis(logits[:, windows], 1, 0)

    def strip(inputs):
        piece, weight, wanted = inputs
        resized = jnp.einsum("rh,bhwk->brwk", weight, piece, precision=jax.lax.Precision.HIGHEST)
        resized = bilinear(resized, (rows, width), False)
        mask = class_mask[:, None, None]
        return negative_log_likelihood(resized, wanted, mask, wanted != IGNORE).sum()

    # Inside a loop nothing can merge the second computation with the first, so the barriers that
    # checkpoint would otherwise add are not needed.
    sums = jax.lax.map(jax.checkpoint(strip, prevent_cse=False), (pieces, weights, label))
    pixels = jnp.sum(label != IGNORE, dtype=jnp.int32)
    loss = sums.sum() / jnp.maximum(pixels, 1).astype(dtype)
    return loss, {"segmentation": loss}


def _windows(source: int, height: int, rows: int, strips: int) -> np.ndarray:
    """Source rows that each strip of `rows` output rows reads: (strips, window) int."""
    # Output row y samples source row (y + 1/2) * source / height - 1/2 and its two neighbours.
    window = min(source, int(np.ceil((rows - 1) * source / height)) + 2)
    first = np.floor((np.arange(strips) * rows + 0.5) * source / height - 0.5).astype(int)
    return np.clip(first, 0, source - window)[:, None] + np.arange(window)
