"""The few layers that backbone, decoder and heads are made of, with one precision rule for all.

Parameters are stored in float32 (or, for a frozen backbone, already in bfloat16) and used in the
module's `dtype`. A module built with `dtype=jnp.float32` means *at least* float32: given float64
parameters or inputs it computes in float64 throughout, which is what exact tests rely on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdepth.models.convolution import convolve

LAYER_NORM_EPS = 1e-6  # everywhere in DINOv2


def working_dtype(dtype, *arrays: jax.Array):
    """The type a module of `dtype` computes in: `dtype` itself if it is a half type, else the
    widest of `dtype` and the arrays."""
    if jnp.finfo(dtype).bits < 32:
        return jnp.dtype(dtype)
    return jnp.result_type(dtype, *arrays)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Widen half types to float32; leave float32 and float64 alone."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# DINOv2 truncates at ±2 *absolute*, a hundred standard deviations: a plain normal.
vit_normal = nn.initializers.normal(0.02)


def pytorch_uniform(fan_in: int) -> Callable:
    """PyTorch's default for weights *and* biases of linear and convolution layers:
    uniform in ±1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def kaiming_normal(fan_out: int) -> Callable:
    """Kaiming normal, mode fan_out, ReLU gain (MMCV's ConvModule): std sqrt(2 / fan_out)."""
    return nn.initializers.normal((2.0 / fan_out) ** 0.5)


class Linear(nn.Module):
    """`x @ kernel + bias` over the last axis, in `dtype`; params kernel (in, out), bias (out,)."""

    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = vit_normal
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        dtype = working_dtype(self.dtype, x, kernel, bias)
        return jnp.dot(x.astype(dtype), kernel.astype(dtype)) + bias.astype(dtype)


class Conv3x3(nn.Module):
    """3×3 convolution, zero padding 1 on every side, in `dtype`; params kernel (3, 3, in, out) and,
    unless `use_bias` is False, bias (out,). (B, H, W, in) -> (B, ceil(H/stride), ceil(W/stride), out).
    `convolution`: a kind of `models.convolution`."""

    features: int
    stride: int = 1
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable = nn.initializers.zeros
    bias_init: Callable = nn.initializers.zeros
    convolution: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (3, 3, x.shape[-1], self.features)
        arrays = [self.param("kernel", self.kernel_init, shape, jnp.float32)]
        if self.use_bias:
            arrays.append(self.param("bias", self.bias_init, (self.features,), jnp.float32))
        dtype = working_dtype(self.dtype, x, *arrays)
        y = convolve(self.convolution, x.astype(dtype), arrays[0].astype(dtype), self.stride)
        return y + arrays[1].astype(dtype) if self.use_bias else y


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, entirely in at least float32; params scale, bias (D,).

    The variance takes two passes: E[x²] − E[x]² cancels on DINOv2's outlier channels.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        x = at_least_float32(x)
        x = x - x.mean(-1, keepdims=True)
        variance = jnp.square(x).mean(-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + LAYER_NORM_EPS) * scale + bias


class LayerScale(nn.Module):
    """Per-channel factor of a residual branch, applied in at least float32; param gamma (D,).

    Starts at 1, as DINOv2's published models are built.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return at_least_float32(x) * gamma
