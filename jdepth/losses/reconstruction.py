"""Image reconstruction loss: predict the input image from the decoder's features."""

import jax
import jax.numpy as jnp

from jdepth.losses.silog import Terms
from jdepth.models.resize import bilinear


def mse(prediction, image, valid_size) -> tuple[jax.Array, Terms]:
    """Mean squared error at image resolution, padding excluded.

    The prediction is resized bilinearly to the image (align_corners False, no antialiasing).

    Args:
        prediction: (B, h, w, 3) at decoder resolution, in normalised units.
        image: (B, H, W, 3) normalised image before colour augmentation; what lies outside
            valid_size is ignored.
        valid_size: (B, 2) int, rows and columns that are image; the rest, at the bottom and the
            right, is padding.

    Returns:
        The mean over valid pixels of the batch, pooled, and their channels (0 if there are none)
        and {"reconstruction": the same}.
    """
    dtype = jnp.promote_types(prediction.dtype, jnp.float32)
    _, height, width, channels = image.shape
    inside = (jnp.arange(height) < valid_size[:, :1])[:, :, None] & (
        jnp.arange(width) < valid_size[:, 1:]
    )[:, None, :]
    resized = bilinear(prediction.astype(dtype), (height, width), False)
    error = jnp.where(inside[..., None], resized - image.astype(dtype), 0)
    pixels = jnp.sum(inside, dtype=jnp.int32)
    loss = jnp.sum(error**2) / (jnp.maximum(pixels, 1).astype(dtype) * channels)
    return loss, {"reconstruction": loss}
