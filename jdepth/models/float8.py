"""Matrix products of a frozen backbone in float8: operands in E4M3, sums in float32.

Each output channel of a weight and each token of an activation has a scale of its own, both outside of the product:
y[t, c] = (Σ q_x[t, i] · q_w[c, i]) · s_x[t] · s_w[c]. One scale for a whole activation is as accurate
(`benchmarks/float8.py` compares both: a float8 number has an exponent of its own), but an image's features would then
depend on the largest value of all else in the batch, so on the number of devices and on the look-ahead. Now they do up
to float8 rounding only: where the last bit of a sum changes, an operand may round to its other neighbour, and later
blocks carry that on (4e-3 of the features after 8 blocks, measured; float8 itself is off by 1e-1). A token's scale is
found while its row is normalised, in the same kernel.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdepth.models.layers import at_least_float32, working_dtype

TYPE = jnp.float8_e4m3fn
LARGEST = float(jnp.finfo(TYPE).max)  # 448
# What can be in float8, by a backbone's kind of feed-forward.
KINDS = {"mlp": ("qkv", "proj", "fc1", "fc2"), "swiglu": ("qkv", "proj", "w12", "w3")}


def quantise(x, axis: int):
    """(x as float8, its scale along every axis but `axis`, float32): x ≈ quantised · scale. NumPy or JAX arrays."""
    scale = abs(x).max(axis=axis, keepdims=True) * (1 / LARGEST)
    scale = scale + (scale < jnp.finfo(jnp.float32).tiny)  # what is all zero, or as good as that, becomes zero
    return (x / scale).astype(TYPE), scale.astype(jnp.float32)


def quantise_kernel(kernel) -> dict:
    """Parameters of `Float8Linear` for a kernel (in, out).

    The float8 kernel is (out, in): a GPU's float8 product reads both operands along the summed axis, and would
    transpose the weights at every call otherwise (seen in the compiled text).
    """
    small, scale = quantise(kernel.T.astype(jnp.float32), axis=1)
    return {"kernel": small, "scale": scale[:, 0]}


def product(x: jax.Array, kernel: jax.Array, scale: jax.Array, dtype) -> jax.Array:
    """x (..., in) · kernel: (..., out), at least float32 after the scales; the raw product leaves in `dtype`."""
    small, own = quantise(at_least_float32(x), axis=-1)
    # HIGHEST: sums in float32, where Hopper's faster mode keeps 14 bits.
    raw = jax.lax.dot_general(
        small, kernel, (((x.ndim - 1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=dtype,
    )  # fmt: skip
    return at_least_float32(raw) * own * scale


class Float8Linear(nn.Module):
    """`layers.Linear` with its product in float8; params kernel (out, in) float8, scale (out,), bias (out,).

    They are made of a Linear's by `depth_model.cast_frozen`, never drawn.
    """

    features: int
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.zeros, (self.features, x.shape[-1]), TYPE)
        scale = self.param("scale", nn.initializers.ones, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        dtype = working_dtype(self.dtype, x)
        return (product(x, kernel, scale, dtype) + bias).astype(dtype)
