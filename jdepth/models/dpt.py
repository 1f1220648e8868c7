"""The DPT decoder as DINOv2 released it for depth, shared by depth and auxiliary heads.

Reassemble, fusion and the final 3×3 projection. Three exact savings against the released layers,
each tested against the plain form: the readout is split so that the class token's half is computed
once per image, the 1×1 projection of a fusion stage runs before its ×2 upsampling (they commute:
interpolation weights sum to 1), and transposed convolutions with kernel = stride are matrix
products. Precision: float32 parameters, compute in `dtype`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdepth.models import resize
from jdepth.models.layers import Conv3x3, Linear, kaiming_normal, pytorch_uniform, working_dtype


class Readout(nn.Module):
    """GELU(Linear(concat(patch, cls))): patches (B, h, w, D) and class token (B, D) -> (B, h, w, D).

    params kernel (2D, D), bias (D,); computed as patch·W_patch + (cls·W_cls + b).
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array, cls: jax.Array) -> jax.Array:
        width = cls.shape[-1]
        init = pytorch_uniform(2 * width)
        kernel = self.param("kernel", init, (2 * width, width), jnp.float32)
        bias = self.param("bias", init, (width,), jnp.float32)
        dtype = working_dtype(self.dtype, patches, kernel, bias)
        kernel = kernel.astype(dtype)
        shared = jnp.dot(cls.astype(dtype), kernel[width:]) + bias.astype(dtype)
        y = jnp.dot(patches.astype(dtype), kernel[:width]) + shared[:, None, None, :]
        return nn.gelu(y, approximate=False)


class Expand(nn.Module):
    """Transposed convolution with kernel = stride = `factor`: (B, h, w, C) -> (B, fh, fw, C).

    params kernel (in, kh, kw, out), bias (out,): out[f·i + a, f·j + b] = x[i, j] · kernel[:, a, b].
    """

    factor: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        f, (batch, h, w, channels) = self.factor, x.shape
        # PyTorch takes the fan of a transposed convolution's weight (in, out, kh, kw) from axis 1.
        init = pytorch_uniform(channels * f * f)
        kernel = self.param("kernel", init, (channels, f, f, channels), jnp.float32)
        bias = self.param("bias", init, (channels,), jnp.float32)
        dtype = working_dtype(self.dtype, x, kernel, bias)
        y = jnp.dot(x.astype(dtype), kernel.astype(dtype).reshape(channels, -1))
        y = y.reshape(batch, h, w, f, f, channels) + bias.astype(dtype)
        return y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, f * h, f * w, channels)


class ResidualUnit(nn.Module):
    """x + conv2(ReLU(conv1(ReLU x))), 3×3, without bias unless `use_bias`. `kernel_init`: of a fan (= 9C)."""

    dtype: jnp.dtype = jnp.float32
    use_bias: bool = False
    kernel_init: Callable = kaiming_normal
    convolution: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        init = self.kernel_init(9 * channels)
        y = x
        for name in ("conv1", "conv2"):
            conv = Conv3x3(channels, 1, self.use_bias, self.dtype, init, init, self.convolution, name=name)
            y = conv(nn.relu(y))
        return x + y


class Fusion(nn.Module):
    """One fusion stage: running map (B, H, W, C) and lateral map (or None) -> (B, *size, C).

    `size` is (2H, 2W) unless given. `unit_bias`: whether the residual units have biases; `kernel_init`: of a fan.
    """

    dtype: jnp.dtype = jnp.float32
    unit_bias: bool = False
    kernel_init: Callable = kaiming_normal
    bias_init: Callable = nn.initializers.zeros
    convolution: str = "plain"

    @nn.compact
    def __call__(
        self, x: jax.Array, lateral: jax.Array | None = None, size: tuple[int, int] | None = None
    ) -> jax.Array:
        unit = self.dtype, self.unit_bias, self.kernel_init, self.convolution
        if lateral is not None:
            # Sizes differ by rounding wherever the patch grid is odd.
            lateral = resize.bilinear(lateral, x.shape[1:3], align_corners=False)
            x = x + ResidualUnit(*unit, name="unit1")(lateral)
        x = ResidualUnit(*unit, name="unit2")(x)
        channels = x.shape[-1]
        x = Linear(channels, self.dtype, self.kernel_init(channels), self.bias_init, name="project")(x)
        return resize.bilinear(x, size or (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)


class DPTDecoder(nn.Module):
    """Four taps of an h×w patch grid -> (B, 16·ceil(h/2), 16·ceil(w/2), channels) in `dtype`.

    `post_process` are the reassembled channels per level, D/8, D/4, D/2, D in the DINOv2 recipe.
    Initialised as that recipe trains: Kaiming normal (fan_out, ReLU) with zero bias where it uses
    ConvModule, PyTorch's uniform default for readouts and resize layers.
    """

    channels: int = 256
    post_process: tuple[int, int, int, int] = (48, 96, 192, 384)
    dtype: jnp.dtype = jnp.float32
    convolution: str = "plain"

    @nn.compact
    def __call__(self, taps) -> jax.Array:
        if len(taps) != 4:
            raise ValueError(f"the DPT decoder takes 4 taps, not {len(taps)}")
        levels = []
        for i, (patches, cls) in enumerate(taps):
            width = self.post_process[i]
            x = Readout(self.dtype, name=f"readout_{i}")(patches, cls)
            x = Linear(width, self.dtype, kernel_init=kaiming_normal(width), name=f"project_{i}")(x)
            if i < 2:
                x = Expand((4, 2)[i], self.dtype, name=f"resize_{i}")(x)
            elif i == 3:
                init = pytorch_uniform(9 * width)
                x = Conv3x3(width, 2, True, self.dtype, init, init, name="resize_3")(x)
            init = kaiming_normal(9 * self.channels)
            conv = partial(Conv3x3, self.channels, dtype=self.dtype, kernel_init=init, convolution=self.convolution)
            levels.append(conv(use_bias=False, name=f"conv_{i}")(x))
        fusion = partial(Fusion, self.dtype, convolution=self.convolution)
        x = fusion(name="fusion_0")(levels[3])
        for i in (1, 2, 3):
            x = fusion(name=f"fusion_{i}")(x, levels[3 - i])
        return nn.relu(conv(name="project")(x))
