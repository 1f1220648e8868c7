"""DINOv2's linear depth heads: one or four taps, 256 depth bins (recipe, 2.7; released `BNHead`)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jdepth.models import resize
from jdepth.models.layers import at_least_float32, pytorch_uniform, working_dtype

BINS = 256
UPSAMPLE = 4


class LinearDepthHead(nn.Module):
    """Taps of an h×w patch grid -> depth (B, 4h, 4w) in metres, at least float32.

    Per tap: patch features beside the class token, resized ×4 (align_corners False), all taps joined and
    mapped by one 1×1 convolution to 256 scores; ReLU + 0.1, divided by their sum, weigh 256 depths spaced
    evenly from `min_depth` to `max_depth`, ends included. The convolution runs before the resize, with which
    it commutes (interpolation weights sum to 1), and the class token's share once per image.

    params kernel (taps, 2D, 256), bias (256,).
    """

    min_depth: float = 0.001
    max_depth: float = 10.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, taps) -> jax.Array:
        width = taps[0][1].shape[-1]
        init = pytorch_uniform(2 * width * len(taps))
        kernel = self.param("kernel", init, (len(taps), 2 * width, BINS), jnp.float32)
        bias = self.param("bias", init, (BINS,), jnp.float32)
        dtype = working_dtype(self.dtype, taps[0][0], kernel, bias)
        wide = jnp.promote_types(dtype, jnp.float32)
        scores = bias.astype(wide)
        for (patches, cls), weight in zip(taps, kernel.astype(dtype)):
            shared = jnp.dot(cls.astype(dtype), weight[width:], preferred_element_type=wide)
            own = jnp.dot(patches.astype(dtype), weight[:width], preferred_element_type=wide)
            scores = scores + own + shared[:, None, None, :]
        h, w = scores.shape[1:3]
        scores = resize.bilinear(scores, (UPSAMPLE * h, UPSAMPLE * w), align_corners=False)
        share = nn.relu(at_least_float32(scores)) + 0.1
        depths = np.linspace(self.min_depth, self.max_depth, BINS)
        # Sums, not a matrix product: GPUs would round that to TF32.
        return (share * depths.astype(share.dtype)).sum(-1) / share.sum(-1)
