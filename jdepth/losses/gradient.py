"""Multi-scale log-depth gradient loss (MegaDepth, Li and Snavely 2018, eq. 4, as the DINOv2 recipe
means it: four scales, differences over two pixels).

The published code slices the batch and channel axes instead of the image axes, so that at two
images per device it is exactly 0. This is the intended, spatial form; it is off in the released
recipe for that reason.
"""

import jax
import jax.numpy as jnp

from jdepth.losses.silog import Terms, log_ratio

# Full resolution, then every 2i-th row and column for i = 1, 2, 3.
STRIDES = (1, 2, 4, 6)
# Pixels between the two ends of a difference.
REACH = 2


def gradient_loss(prediction, target, mask, *, eps=0.001) -> tuple[jax.Array, Terms]:
    """Sum over scales of the mean absolute change of the log-depth error.

    At each scale the absolute differences of g = log(prediction + eps) - log(target + eps) over two
    pixels along rows and columns, where both ends are valid, are summed over the batch and divided
    by the number of valid pixels at that scale.

    Args:
        prediction: (B, H, W) depth in metres, positive.
        target: (B, H, W) depth in metres, 0 = invalid.
        mask: (B, H, W) bool, pixels that may be used.
        eps: metres added before the logarithm.

    Returns:
        The loss (a scale without valid pixels adds 0) and {"gradient": the same}.
    """
    g, valid = log_ratio(prediction, target, mask, eps)
    loss = jnp.zeros((), g.dtype)
    for stride in STRIDES:
        scaled, usable = g[:, ::stride, ::stride], valid[:, ::stride, ::stride]
        total = _differences(scaled, usable) + _differences(
            scaled.swapaxes(1, 2), usable.swapaxes(1, 2)
        )
        loss += total / jnp.maximum(jnp.sum(usable, dtype=jnp.int32), 1).astype(g.dtype)
    return loss, {"gradient": loss}


def _differences(g, valid):
    """Sum of |g[y + 2] - g[y]| along axis 1 of (B, H, W) where both ends are valid."""
    change = jnp.abs(g[:, REACH:] - g[:, :-REACH])
    return jnp.sum(jnp.where(valid[:, REACH:] & valid[:, :-REACH], change, 0))
