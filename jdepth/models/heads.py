"""Task heads on the decoder's map: the depth regressor and the stacked linear auxiliary heads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jdepth.models import resize
from jdepth.models.layers import Conv3x3, at_least_float32, pytorch_uniform, working_dtype
from jdepth.models.products import wide_product


# Metres that an untrained head predicts, about.
FIRST_DEPTH = 1.0


class DepthHead(nn.Module):
    """DINOv2's HeadDepth: features (B, H, W, channels) -> depth (B, 2H, 2W), metres, ≥ min_depth.

    3×3 to half the channels, bilinear ×2 (align_corners True), 3×3 to 32, ReLU, 1×1 to one value,
    ReLU + min_depth. Parameters start at PyTorch's default, but the last bias at FIRST_DEPTH: around 0,
    as released, some seeds start below the ReLU everywhere and never train. The last product and everything after
    it are at least float32: in bfloat16 the result itself would be rounded to 0.4 %.
    """

    channels: int = 256
    min_depth: float = 0.001
    dtype: jnp.dtype = jnp.float32
    convolution: str = "plain"

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        size = 2 * features.shape[1], 2 * features.shape[2]
        return nn.relu(one_value(features, size, self.channels, self.dtype, self.convolution)) + self.min_depth


def one_value(
    features: jax.Array, size: tuple[int, int], channels: int, dtype, convolution: str = "plain"
) -> jax.Array:
    """(B, H, W, channels) -> (B, *size) before the last activation; makes conv1, conv2, conv3 in the calling module."""
    half = channels // 2
    conv = partial(Conv3x3, dtype=dtype, convolution=convolution)
    init = pytorch_uniform(9 * channels)
    x = conv(half, kernel_init=init, bias_init=init, name="conv1")(features)
    x = resize.bilinear(x, size, align_corners=True)
    init = pytorch_uniform(9 * half)
    x = nn.relu(conv(32, kernel_init=init, bias_init=init, name="conv2")(x))
    return Regress(name="conv3")(x)


class Regress(nn.Module):
    """1×1 convolution to one value in at least float32; params kernel (C, 1), bias (1,)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", pytorch_uniform(x.shape[-1]), (x.shape[-1], 1), jnp.float32)
        bias = self.param("bias", nn.initializers.constant(FIRST_DEPTH), (1,), jnp.float32)
        # A product and a sum, not a matrix product: GPUs would round that to TF32.
        return (at_least_float32(x) * kernel[:, 0]).sum(-1) + bias[0]


class StackedHead(nn.Module):
    """One linear head (1×1 convolution with bias) per dataset, in one array for all of them.

    `classes` gives K_d per dataset, Kmax their maximum. Features (B, H, W, C) or pooled (B, C) and
    dataset_id (B,) int32 -> logits (B, [H, W,] Kmax), at least float32, each sample by its own
    dataset's head; columns past its K_d are 0 and to be masked (`class_mask`).

    params kernel (S, C, Kmax), bias (S, Kmax). Padding columns start at 0 and never receive a
    gradient. Each head starts as a PyTorch convolution of its own: uniform ±1/sqrt(C).
    """

    classes: tuple[int, ...]
    channels: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, dataset_id: jax.Array) -> jax.Array:
        own = np.arange(max(self.classes)) < np.asarray(self.classes)[:, None]  # (S, Kmax)

        def init(key, shape, dtype):
            return jnp.where(own if len(shape) == 2 else own[:, None], draw(key, shape, dtype), 0.0)

        draw = pytorch_uniform(self.channels)
        kernel = self.param("kernel", init, (len(self.classes), self.channels, own.shape[1]), jnp.float32)
        bias = self.param("bias", init, own.shape, jnp.float32)
        kernel = jnp.where(own[:, None], kernel, 0.0)
        bias = jnp.where(own, bias, 0.0)
        # One-hot products rather than a gather: the gradient is a dense, ordered sum, not a scatter.
        high = jax.lax.Precision.HIGHEST
        chosen = jax.nn.one_hot(dataset_id, len(self.classes), dtype=kernel.dtype)
        kernel = jnp.einsum("bs,sck->bck", chosen, kernel, precision=high)
        bias = jnp.einsum("bs,sk->bk", chosen, bias, precision=high)
        wide = jnp.result_type(jnp.float32, features, kernel)
        if features.ndim == 2:  # pooled: tiny, so at full precision
            return jnp.einsum("bc,bck->bk", features.astype(wide), kernel, precision=high) + bias
        dtype = working_dtype(self.dtype, features, kernel)
        logits = wide_product("bhwc,bck->bhwk", features.astype(dtype), kernel.astype(dtype), wide)
        return logits + bias[:, None, None]


def class_mask(classes: tuple[int, ...], dataset_id: jax.Array) -> jax.Array:
    """(B, Kmax) bool: True on the columns that are classes of each sample's dataset."""
    return jnp.arange(max(classes)) < jnp.asarray(classes)[dataset_id][:, None]


def pool(features: jax.Array) -> jax.Array:
    """Spatial mean of (B, H, W, C) in at least float32: (B, C).

    A linear head on it equals the spatial mean of that head's map, so image-level tasks need none.
    """
    return at_least_float32(features).mean((1, 2))
