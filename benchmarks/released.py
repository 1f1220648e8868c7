"""The decoder and the MLDC head as they were released, without jdepth's savings, on the same parameters.

Not for use: they compute what `jdepth.models` computes, by more work. Benchmarks count and time them, to say what the
savings are worth and how much arithmetic the official formula asks for. Each saving can be left in:

  readout      Linear(concat(patch, cls)) split, so that the class token's half is computed once per image
  projection   the 1×1 projection of a fusion stage before its ×2 upsampling
  expansion    transposed convolutions with kernel = stride as matrix products (as many FLOPs, other kernels)
  pooling      MLDC: features averaged before the linear head
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdepth import losses, tasks
from jdepth.models import heads, resize
from jdepth.models.depth_model import DepthModel
from jdepth.models.dpt import Expand, Fusion, Readout, ResidualUnit
from jdepth.models.layers import Conv3x3, Linear, working_dtype

SAVINGS = ("readout", "projection", "expansion", "pooling")


class _Readout(nn.Module):
    """`Readout` with the class token repeated beside every patch."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, patches: jax.Array, cls: jax.Array) -> jax.Array:
        both = jnp.concatenate([patches, jnp.broadcast_to(cls[:, None, None], patches.shape)], axis=-1)
        # Under the parameter names of the original: a Linear of this module's own scope.
        width = cls.shape[-1]
        kernel = self.param("kernel", nn.initializers.zeros, (2 * width, width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        dtype = working_dtype(self.dtype, both, kernel, bias)
        y = jnp.dot(both.astype(dtype), kernel.astype(dtype)) + bias.astype(dtype)
        return nn.gelu(y, approximate=False)


class _Expand(nn.Module):
    """`Expand` as a transposed convolution."""

    factor: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        f, channels = self.factor, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.zeros, (channels, f, f, channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        dtype = working_dtype(self.dtype, x, kernel, bias)
        # JAX's operator slides the kernel as it is over the dilated input: PyTorch's, spatially flipped.
        kernel = kernel.astype(dtype).transpose(1, 2, 0, 3)[::-1, ::-1]
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_transpose(x.astype(dtype), kernel, (f, f), "VALID", dimension_numbers=layout)
        return y + bias.astype(dtype)


class _Fusion(nn.Module):
    """`Fusion` that projects after upsampling."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, lateral: jax.Array | None = None) -> jax.Array:
        if lateral is not None:
            lateral = resize.bilinear(lateral, x.shape[1:3], align_corners=False)
            x = x + ResidualUnit(self.dtype, name="unit1")(lateral)
        x = ResidualUnit(self.dtype, name="unit2")(x)
        x = resize.bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
        return Linear(x.shape[-1], self.dtype, name="project")(x)


class ReleasedDecoder(nn.Module):
    """`DPTDecoder` on the same parameters, with only the savings in `kept`. Apply it; it has no initialisation."""

    channels: int
    post_process: tuple[int, int, int, int]
    dtype: jnp.dtype
    kept: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, taps) -> jax.Array:
        readout = Readout if "readout" in self.kept else _Readout
        expand = Expand if "expansion" in self.kept else _Expand
        fusion = Fusion if "projection" in self.kept else _Fusion
        levels = []
        for i, (patches, cls) in enumerate(taps):
            width = self.post_process[i]
            x = readout(self.dtype, name=f"readout_{i}")(patches, cls)
            x = Linear(width, self.dtype, name=f"project_{i}")(x)
            if i < 2:
                x = expand((4, 2)[i], self.dtype, name=f"resize_{i}")(x)
            elif i == 3:
                x = Conv3x3(width, 2, True, self.dtype, name="resize_3")(x)
            levels.append(Conv3x3(self.channels, use_bias=False, dtype=self.dtype, name=f"conv_{i}")(x))
        x = fusion(self.dtype, name="fusion_0")(levels[3])
        for i in (1, 2, 3):
            x = fusion(self.dtype, name=f"fusion_{i}")(x, levels[3 - i])
        return nn.relu(Conv3x3(self.channels, dtype=self.dtype, name="project")(x))


def released_model(model: DepthModel, kept: tuple[str, ...] = ()) -> DepthModel:
    """The same model with the decoder in its released form but for the savings in `kept`."""
    own = model.decoder
    return dataclasses.replace(model, decoder=ReleasedDecoder(own.channels, own.post_process, own.dtype, kept))


def released_mldc(classes: tuple[int, ...], channels: int, dtype) -> tasks.Task:
    """The MLDC task whose head makes a map of logits, averaged afterwards."""
    head = heads.StackedHead(classes, channels, dtype)

    def predict(params, features, inputs):
        return head.apply({"params": params}, features, inputs["dataset_id"]).mean((1, 2))

    def loss(params, features, inputs, step):
        del step
        mask = heads.class_mask(classes, inputs["dataset_id"])
        return losses.LOSSES["multi_label"](predict(params, features, inputs), inputs["classes"], mask)

    return dataclasses.replace(tasks.TASKS["mldc"](classes, channels), loss=loss, predict=predict)
