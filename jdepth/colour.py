"""Colour on the device: augmentation with parameters drawn on the host, and normalisation.

All images are (B, H, W, 3), R, G, B, on the 0..255 scale, uint8 or floating point; results are float32.
Each function is a handful of elementwise operations that XLA fuses into one pass over the image.
"""

import jax
import jax.numpy as jnp
import numpy as np

# ImageNet statistics on the 0..255 scale (DINOv2 recipe).
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def normalise(images: jax.Array) -> jax.Array:
    """(images - MEAN) / STD, float32."""
    return (images.astype(jnp.float32) - MEAN) / STD


def depth_colour(images: jax.Array, colour: jax.Array) -> jax.Array:
    """Colour augmentation of depth training (DINOv2 recipe).

    Args:
      images: (B, H, W, 3).
      colour: (B, 5) float32: gamma, brightness, factors of R, G, B; all 1 leaves the image as it is.

    Returns:
      clip(images^gamma * brightness * factor, 0, 255), float32, not rounded. The power is taken of the
      0..255 values, as the recipe does: gamma 0.9 turns 255 into 146.5, so it is a strong change of brightness.
    """
    images = images.astype(jnp.float32)
    gamma = colour[:, 0, None, None, None]
    # Some devices take a power as exp(log) and would return 254.99998 for 255 ** 1.
    powered = jnp.where(gamma == 1, images, images**gamma)
    return jnp.clip(powered * colour[:, 1, None, None, None] * colour[:, None, None, 2:], 0, 255)


def photometric(images: jax.Array, parameters: jax.Array) -> jax.Array:
    """PhotoMetricDistortion of mmsegmentation 1.2.2, with whole grey levels after every step.

    Args:
      images: (B, H, W, 3) with whole numbers.
      parameters: (B, 5) float32: brightness added, contrast factor before the HSV steps, saturation factor,
        hue steps of 2 degrees added, contrast factor after them. Neutral values (0, 1, 1, 0, 1) skip a step;
        hue 180 goes through HSV and back without turning.

    Returns:
      (B, H, W, 3) float32 holding whole numbers in 0..255. HSV follows OpenCV's 8-bit conversion (H in
      0..179), to within 2 grey levels.
    """
    brightness, before, saturation, hue, after = (p[:, None, None] for p in jnp.moveaxis(parameters, -1, 0))
    images = images.astype(jnp.float32)
    images = _whole(images + brightness[..., None])
    images = _whole(images * before[..., None])

    h, s, v = _to_hsv(images)
    images = jnp.where(saturation[..., None] == 1, images, _from_hsv(h, _whole(s * saturation), v))
    h, s, v = _to_hsv(images)
    images = jnp.where(hue[..., None] == 0, images, _from_hsv(jnp.mod(h + hue, 180.0), s, v))
    return _whole(images * after[..., None])


def pad_to_mean(normalised: jax.Array, valid_size: jax.Array) -> jax.Array:
    """Set what is not image to 0, the mean colour of a normalised image.

    Args:
      normalised: (B, H, W, 3).
      valid_size: (B, 2) int32: the first so many rows and columns are image.
    """
    rows = jnp.arange(normalised.shape[1])[None, :, None] < valid_size[:, 0, None, None]
    columns = jnp.arange(normalised.shape[2])[None, None, :] < valid_size[:, 1, None, None]
    return jnp.where((rows & columns)[..., None], normalised, 0)


def _whole(values: jax.Array) -> jax.Array:
    """To whole grey levels, downwards, as a cast to uint8 does."""
    return jnp.floor(jnp.clip(values, 0, 255))


def _to_hsv(images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hue 0..179, saturation 0..255, value 0..255, each (B, H, W), whole numbers."""
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    value = images.max(axis=-1)
    spread = value - images.min(axis=-1)
    # OpenCV's fixed-point divisions, exact here since every product stays below 2^24.
    per_value = jnp.floor(255 * 4096 / jnp.maximum(value, 1) + 0.5)
    saturation = jnp.floor((spread * per_value + 2048) / 4096)
    sixths = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    per_spread = jnp.floor(30 * 4096 / jnp.maximum(spread, 1) + 0.5)
    hue = jnp.floor((sixths * per_spread + 2048) / 4096)
    return jnp.where(hue < 0, hue + 180, hue), saturation, value


def _from_hsv(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """(B, H, W, 3) whole grey levels, downwards as OpenCV's vectorised conversion."""
    # Channel n is v - v s max(0, min(k, 4 - k, 1)) with k = (n + h / 60 degrees) mod 6: no branches, no gathers.
    steps = jnp.array([5.0, 3.0, 1.0], hue.dtype)
    k = jnp.mod(steps + hue[..., None] / 30, 6.0)
    wedge = jnp.clip(jnp.minimum(k, 4 - k), 0, 1)
    return jnp.floor(value[..., None] * (1 - saturation[..., None] / 255 * wedge))
