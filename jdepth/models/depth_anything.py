"""Decoder and head of Depth Anything, V1 and V2 (source: the released `dpt.py` and `blocks.py`).

Against DINOv2's: taps after the final norm, no readout of the class token, biases in the residual units,
every stage upsampled to the exact size of the next level, no projection after the last. Parameters start at
PyTorch's defaults, as theirs do.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdepth.models.dpt import Expand, Fusion
from jdepth.models.heads import one_value
from jdepth.models.layers import Conv3x3, Linear, pytorch_uniform


# Backbone width -> decoder channels and reassembled channels per level, of the released models.
DECODERS = {
    384: (64, (48, 96, 192, 384)),
    768: (128, (96, 192, 384, 768)),
    1024: (256, (256, 512, 1024, 1024)),
    1536: (384, (1536, 1536, 1536, 1536)),
}


class DepthAnythingDecoder(nn.Module):
    """Four taps of an h×w patch grid -> (B, 8h, 8w, channels) in `dtype`.

    `post_process` are the reassembled channels per level. The class tokens are not used.
    """

    channels: int = 64
    post_process: tuple[int, int, int, int] = (48, 96, 192, 384)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, taps) -> jax.Array:
        if len(taps) != 4:
            raise ValueError(f"the Depth Anything decoder takes 4 taps, not {len(taps)}")
        levels = []
        for i, (patches, _) in enumerate(taps):
            width = self.post_process[i]
            init = pytorch_uniform(patches.shape[-1])
            x = Linear(width, self.dtype, init, init, name=f"project_{i}")(patches)
            if i < 2:
                x = Expand((4, 2)[i], self.dtype, name=f"resize_{i}")(x)
            elif i == 3:
                init = pytorch_uniform(9 * width)
                x = Conv3x3(width, 2, True, self.dtype, init, init, name="resize_3")(x)
            init = pytorch_uniform(9 * width)
            levels.append(Conv3x3(self.channels, 1, False, self.dtype, init, name=f"conv_{i}")(x))
        x = None
        for i, level in enumerate(reversed(levels)):
            fusion = Fusion(self.dtype, True, pytorch_uniform, pytorch_uniform(self.channels), name=f"fusion_{i}")
            size = levels[2 - i].shape[1:3] if i < 3 else None
            x = fusion(level, size=size) if x is None else fusion(x, level, size)
        return x


class DepthAnythingHead(nn.Module):
    """Map (B, 8h, 8w, channels) -> (B, 14h, 14w), at least float32.

    3×3 to half the channels, bilinear (align_corners True) to the padded image's size, 3×3 to 32, ReLU,
    1×1 to one value; then ReLU (relative disparity, ≥ 0, without unit), or with `max_depth` sigmoid ·
    max_depth (metres, V2's metric models).
    """

    channels: int = 64
    max_depth: float | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        size = features.shape[1] * 14 // 8, features.shape[2] * 14 // 8
        x = one_value(features, size, self.channels, self.dtype)
        return nn.relu(x) if self.max_depth is None else nn.sigmoid(x) * self.max_depth
