"""DINOv2's vision transformer, any input size, returning the intermediate features depth heads use.

Source: the DINOv2 recipe (model definition and hub settings), checked block by block against
transformers' port. Precision: matrices in `dtype`; LayerNorm, LayerScale, tokens, position table
and the residual stream in at least float32; taps leave in `dtype`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jdepth.models import attention as attention_kernels
from jdepth.models import resize
from jdepth.models.float8 import Float8Linear
from jdepth.models.layers import LayerNorm, LayerScale, Linear, at_least_float32, vit_normal, working_dtype


@dataclass(frozen=True)
class ViTConfig:
    """Shape of a backbone. `taps` are zero-based blocks whose output the decoder takes, `norm_taps` whether the
    final norm is applied to each of them (Depth Anything) or not (DINOv2's depth heads)."""

    name: str
    width: int
    depth: int
    heads: int
    hidden: int
    taps: tuple[int, ...]
    ffn: str = "mlp"  # or "swiglu"
    registers: int = 0
    patch: int = 14
    grid: int = 37  # side of the position table
    antialias: bool = False  # how the position table is resized
    offset: float = 0.1
    norm_taps: bool = False


def _dinov2(size: str, registers: bool) -> ViTConfig:
    width, depth, heads, hidden, taps = {
        "s": (384, 12, 6, 1536, (2, 5, 8, 11)),
        "b": (768, 12, 12, 3072, (2, 5, 8, 11)),
        "l": (1024, 24, 16, 4096, (4, 11, 17, 23)),
        "g": (1536, 40, 24, 4096, (9, 19, 29, 39)),
    }[size]
    return ViTConfig(
        name=f"dinov2_vit{size}14" + ("_reg4" if registers else ""),
        width=width,
        depth=depth,
        heads=heads,
        hidden=hidden,
        taps=taps,
        ffn="swiglu" if size == "g" else "mlp",
        registers=4 if registers else 0,
        antialias=registers,
        offset=0.0 if registers else 0.1,
    )


_CONFIGS = (
    *(_dinov2(size, registers) for registers in (False, True) for size in "sblg"),
    # Ours, trained from scratch: small enough for a CPU. Their position tables are smaller than any grid
    # they are trained on, so that every entry is trained and other image sizes find no untrained ones.
    ViTConfig("vit_nano14", width=128, depth=8, heads=2, hidden=512, taps=(1, 3, 5, 7), grid=6),
    ViTConfig("vit_tiny14", width=192, depth=12, heads=3, hidden=768, taps=(2, 5, 8, 11), grid=12),
)
BACKBONES: dict[str, ViTConfig] = {config.name: config for config in _CONFIGS}


class Features(NamedTuple):
    """What the backbone makes of a batch of images, for a grid of h×w patches."""

    taps: tuple[tuple[jax.Array, jax.Array], ...]  # per tap: patches (B, h, w, D), class token (B, D)
    tokens: jax.Array | None  # (B, 1 + registers + h·w, D) after the final norm, if asked for


def centre_pad(images: jax.Array, multiple: int = 14) -> jax.Array:
    """Zero-pad (B, H, W, C) to multiples of `multiple`; the leading side gets the smaller half.

    DINOv2's CenterPadding. On normalised images zero is the mean colour.
    """
    margins = [(-size) % multiple for size in images.shape[1:3]]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in margins)
    return jnp.pad(images, ((0, 0), (top, bottom), (left, right), (0, 0)))


class PatchEmbed(nn.Module):
    """Linear projection of each patch: (B, h·p, w·p, 3) -> (B, h, w, D).

    params kernel (p, p, 3, D), bias (D,). A convolution with kernel = stride is a matrix product.
    """

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        p, width = self.config.patch, self.config.width
        kernel = self.param("kernel", vit_normal, (p, p, 3, width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (width,), jnp.float32)
        dtype = working_dtype(self.dtype, images, kernel, bias)
        batch, height, columns, _ = images.shape
        h, w = height // p, columns // p
        x = images.astype(dtype).reshape(batch, h, p, w, p, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch, h, w, p * p * 3)
        return jnp.dot(x, kernel.astype(dtype).reshape(p * p * 3, width)) + bias.astype(dtype)


def _linear(name: str, features: int, dtype, float8: tuple[str, ...]) -> nn.Module:
    """One of a block's matrix products, in float8 where `float8` names it."""
    return (Float8Linear if name in float8 else Linear)(features, dtype, name=name)


class Attention(nn.Module):
    """Multi-head self-attention; `layout` says which rows of a packed array belong together."""

    config: ViTConfig
    dtype: jnp.dtype
    kernel: str
    float8: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, layout: tuple[tuple[int, int], ...]) -> jax.Array:
        width, heads = self.config.width, self.config.heads
        qkv = _linear("qkv", 3 * width, self.dtype, self.float8)(x)
        mixed = []
        for part in unpack(qkv, layout):
            q, k, v = jnp.moveaxis(part.reshape(*part.shape[:2], 3, heads, width // heads), 2, 0)
            out = attention_kernels.attend(self.kernel, q, k, v)
            mixed.append(out.reshape(*part.shape[:2], width))
        return _linear("proj", width, self.dtype, self.float8)(pack(mixed))


class Mlp(nn.Module):
    """fc2(GELU(fc1 x)), exact GELU."""

    config: ViTConfig
    dtype: jnp.dtype
    float8: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _linear("fc1", self.config.hidden, self.dtype, self.float8)(x)
        return _linear("fc2", self.config.width, self.dtype, self.float8)(nn.gelu(x, approximate=False))


class SwiGlu(nn.Module):
    """w3(SiLU(first half of w12 x) · second half)."""

    config: ViTConfig
    dtype: jnp.dtype
    float8: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(_linear("w12", 2 * self.config.hidden, self.dtype, self.float8)(x), 2, axis=-1)
        return _linear("w3", self.config.width, self.dtype, self.float8)(nn.silu(gate) * value)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale; the residual stream x stays at least float32."""

    config: ViTConfig
    dtype: jnp.dtype
    kernel: str
    float8: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array, layout: tuple[tuple[int, int], ...]) -> jax.Array:
        feed_forward = {"mlp": Mlp, "swiglu": SwiGlu}[self.config.ffn]
        attention = Attention(self.config, self.dtype, self.kernel, self.float8, name="attn")
        x = x + LayerScale(name="ls1")(attention(LayerNorm(name="norm1")(x), layout))
        y = feed_forward(self.config, self.dtype, self.float8, name="mlp")(LayerNorm(name="norm2")(x))
        return x + LayerScale(name="ls2")(y)


class VisionTransformer(nn.Module):
    """DINOv2 backbone. `attention` is a kernel name as `jdepth.models.attention.choose` returns it; `float8` names
    the matrix products (of `float8.KINDS`) for which a frozen backbone has float8 parameters."""

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32
    attention: str = "plain"
    float8: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, images, final_norm: bool = False):
        """Features of normalised images (B, H, W, 3) of any size, zero-padded to the patch size.

        `images` may also be a tuple of batches of different sizes: all run in one pass with their
        tokens packed along one axis, everything but attention on the packed array, and the result
        is a tuple of Features equal to separate calls. `final_norm` also returns all tokens after
        the final norm; initialise with it, so that its parameters exist.
        """
        config = self.config
        batches = images if isinstance(images, (tuple, list)) else (images,)
        # All parameters of the embedding are made here, whatever the number of batches.
        embed = PatchEmbed(config, self.dtype, name="patch_embed")
        width = config.width
        cls_token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, width), jnp.float32)
        table = self.param("pos_embed", vit_normal, (1, 1 + config.grid**2, width), jnp.float32)
        extra = []
        if config.registers:
            shape = (1, config.registers, width)
            extra = [self.param("register_tokens", nn.initializers.normal(1e-6), shape, jnp.float32)]

        grids, tokens = [], []
        for batch in batches:
            patches = embed(centre_pad(batch, config.patch))
            size, h, w, _ = patches.shape
            positions = resize.position_table(table, (h, w), antialias=config.antialias, offset=config.offset)
            patches = at_least_float32(patches).reshape(size, h * w, width) + positions[:, 1:]
            # Registers carry no position and stand between class token and patches.
            prefix = [at_least_float32(cls_token) + positions[:, :1], *map(at_least_float32, extra)]
            prefix = jnp.concatenate(prefix, axis=1).astype(patches.dtype)
            prefix = jnp.broadcast_to(prefix, (size, *prefix.shape[1:]))
            tokens.append(jnp.concatenate([prefix, patches], axis=1))
            grids.append((h, w))

        layout = tuple(part.shape[:2] for part in tokens)
        norm = LayerNorm(name="norm")
        x, taps = pack(tokens), []
        for index in range(config.depth):
            x = Block(config, self.dtype, self.attention, self.float8, name=f"blocks_{index}")(x, layout)
            if index in config.taps:
                taps.append((norm(x) if config.norm_taps else x).astype(working_dtype(self.dtype, x)))
        normed = unpack(norm(x), layout) if final_norm else [None] * len(layout)

        taps = [unpack(tap, layout) for tap in taps]
        results = tuple(
            Features(tuple(_split(tap[i], grid, 1 + config.registers) for tap in taps), normed[i])
            for i, grid in enumerate(grids)
        )
        return results if isinstance(images, (tuple, list)) else results[0]


def pack(parts: list[jax.Array]) -> jax.Array:
    """Arrays (Bᵢ, Nᵢ, D) to one (ΣBᵢNᵢ, D); a single array is left as it is."""
    if len(parts) == 1:
        return parts[0]
    return jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in parts], axis=0)


def unpack(x: jax.Array, layout: tuple[tuple[int, int], ...]) -> list[jax.Array]:
    """Inverse of `pack`, by static slices; `layout` lists (Bᵢ, Nᵢ)."""
    if len(layout) == 1:
        return [x]
    parts, start = [], 0
    for batch, length in layout:
        parts.append(x[start : start + batch * length].reshape(batch, length, x.shape[-1]))
        start += batch * length
    return parts


def _split(tokens: jax.Array, grid: tuple[int, int], prefix: int) -> tuple[jax.Array, jax.Array]:
    """Tokens (B, prefix + h·w, D) to the patch map (B, h, w, D) and the class token (B, D)."""
    batch, _, width = tokens.shape
    return tokens[:, prefix:].reshape(batch, *grid, width), tokens[:, 0]
