"""Backbone, decoder and depth head put together, as three parameter trees and pure functions."""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jdepth.errors import UserError
from jdepth.models import depth_anything, float8 as float8_products
from jdepth.models.depth_anything import DepthAnythingDecoder, DepthAnythingHead
from jdepth.models.dpt import DPTDecoder
from jdepth.models.heads import DepthHead
from jdepth.models.linear_head import LinearDepthHead
from jdepth.models.vit import BACKBONES, ViTConfig, VisionTransformer


@dataclass(frozen=True)
class DepthModel:
    """Depth from images. Parameters: {"backbone", "decoder", "depth_head"}, each a tree of its own, so that
    training can freeze, cast or differentiate them separately. A linear head has no decoder (None)."""

    backbone: VisionTransformer
    decoder: DPTDecoder | DepthAnythingDecoder | None
    depth_head: DepthHead | DepthAnythingHead | LinearDepthHead

    def features(self, backbone_params, images: jax.Array):
        """Normalised images (B, H, W, 3) -> four taps ((B, h, w, D), (B, D))."""
        return self.backbone.apply({"params": backbone_params}, images).taps

    def decode(self, decoder_params, taps) -> jax.Array:
        """Taps -> shared map (B, 16·ceil(h/2), 16·ceil(w/2), channels)."""
        return self.decoder.apply({"params": decoder_params}, taps)

    def depth(self, head_params, features: jax.Array) -> jax.Array:
        """Shared map (B, H', W', channels) -> depth (B, 2H', 2W') in metres, at least float32.

        Depth Anything: (B, 14h, 14w), its relative models disparity without unit. Linear heads take the taps.
        """
        return self.depth_head.apply({"params": head_params}, features)

    def __call__(self, params, images: jax.Array) -> jax.Array:
        """Depth (B, 32·ceil(h/2), 32·ceil(w/2)) in metres of the *padded* images: resize it to the
        image size without cropping, as DINOv2 does. Other families: other sizes, see `depth`."""
        features = self.features(params["backbone"], images)
        if self.decoder is not None:
            features = self.decode(params["decoder"], features)
        return self.depth(params["depth_head"], features)

    def init(self, key: jax.Array, image_size: tuple[int, int], backbone: bool = True):
        """Fresh float32 parameters, without those of the backbone if they come from a file.

        Their shapes do not depend on `image_size` (H, W).
        """
        keys = jax.random.split(key, 3)
        images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)

        # lazy_init draws parameters without a forward pass, so nothing has to be compiled.
        def draw():
            return self.backbone.clone(float8=()).lazy_init(keys[0], images, final_norm=True)["params"]

        drawn = {"backbone": draw()} if backbone else {}
        # As `features` gives them, without tracing the backbone again: decoder and heads need nothing but shapes.
        config, array = self.backbone.config, jax.ShapeDtypeStruct
        h, w = (-(-side // config.patch) for side in image_size)
        tap = array((1, h, w, config.width), jnp.float32), array((1, config.width), jnp.float32)
        taps = (tap,) * len(config.taps)
        features = taps
        if self.decoder is not None:
            drawn["decoder"] = self.decoder.lazy_init(keys[1], taps)["params"]
            features = jax.eval_shape(self.decode, drawn["decoder"], taps)
        drawn["depth_head"] = self.depth_head.lazy_init(keys[2], features)["params"]
        return drawn


def build(
    backbone: str | ViTConfig,
    channels: int = 256,
    dtype=jnp.float32,
    attention: str = "plain",
    min_depth: float = 0.001,
    float8: Sequence[str] = (),
    convolution: str = "plain",
) -> DepthModel:
    """The DINOv2 recipe's depth model on a backbone, given by name (a key of `BACKBONES`) or shape.

    `float8`: matrix products of a frozen backbone that are computed in float8. `convolution`: a kind of
    `models.convolution` for decoder and head. Raises UserError on an unknown name.
    """
    backbone = _config(backbone)
    width, kinds = backbone.width, float8_products.KINDS[backbone.ffn]
    unknown = [name for name in float8 if name not in kinds]
    if unknown:
        raise UserError(
            f"config.backbone.float8: {backbone.name} has no matrices {', '.join(unknown)}; it has {', '.join(kinds)}"
        )
    return DepthModel(
        backbone=VisionTransformer(backbone, dtype, attention, tuple(float8)),
        decoder=DPTDecoder(channels, (width // 8, width // 4, width // 2, width), dtype, convolution),
        depth_head=DepthHead(channels, min_depth, dtype, convolution),
    )


def build_linear(
    backbone: str | ViTConfig,
    taps: int = 4,
    dtype=jnp.float32,
    attention: str = "plain",
    min_depth: float = 0.001,
    max_depth: float = 10.0,
) -> DepthModel:
    """DINOv2's linear depth model on the last block (`taps` 1) or on the four that the DPT head takes (4)."""
    backbone = _config(backbone)
    if taps == 1:
        backbone = dataclasses.replace(backbone, taps=(backbone.depth - 1,))
    return DepthModel(
        VisionTransformer(backbone, dtype, attention), None, LinearDepthHead(min_depth, max_depth, dtype)
    )


def build_depth_anything(
    backbone: str | ViTConfig,
    version: int = 2,
    dtype=jnp.float32,
    attention: str = "plain",
    max_depth: float | None = None,
) -> DepthModel:
    """Depth Anything, relative (`max_depth` None) or metric, on a backbone of a released width.

    V1 takes the last four blocks, V2 those of DINOv2's depth heads. Raises UserError on an unknown name.
    """
    backbone = _config(backbone)
    taps = tuple(range(backbone.depth - 4, backbone.depth)) if version == 1 else backbone.taps
    channels, post_process = depth_anything.DECODERS[backbone.width]
    return DepthModel(
        VisionTransformer(dataclasses.replace(backbone, taps=taps, norm_taps=True), dtype, attention),
        DepthAnythingDecoder(channels, post_process, dtype),
        DepthAnythingHead(channels, max_depth, dtype),
    )


def _config(backbone: str | ViTConfig) -> ViTConfig:
    if isinstance(backbone, str):
        if backbone not in BACKBONES:
            close = difflib.get_close_matches(backbone, BACKBONES, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"choose one of {', '.join(BACKBONES)}"
            raise UserError(f'backbone "{backbone}" is unknown: {hint}')
        return BACKBONES[backbone]
    return backbone


# Computed with in the backbone's precision; norms, LayerScale, tokens and position table stay as they are.
MATRICES = frozenset({"qkv", "proj", "fc1", "fc2", "w12", "w3", "patch_embed"})


def frozen_arrays(path: Sequence[str], array: Any, dtype, float8: Sequence[str] = ()) -> dict[tuple[str, ...], Any]:
    """One parameter as a frozen backbone that computes in `dtype` holds it: {path: array}, of a kernel in float8 two.

    `path` names it from the root to the leaf. NumPy arrays stay on the host.
    """
    *owner, leaf = path
    if leaf == "kernel" and owner[-1] in float8:
        return {(*owner, name): own for name, own in float8_products.quantise_kernel(array).items()}
    if MATRICES.intersection(path):
        array = array.astype(dtype, copy=False)
    return {tuple(path): array}


def cast_frozen(backbone_params, dtype, float8: Sequence[str] = ()):
    """A frozen backbone for computing in `dtype`: matrices and their biases (qkv, proj, fc1, fc2, w12, w3,
    patch_embed) cast to it, kernels that `float8` names to float8 with their scales beside them; norms, LayerScale,
    tokens and position table left as they are.
    """
    held: dict[tuple[str, ...], Any] = {}
    for path, array in traverse_util.flatten_dict(backbone_params).items():
        held |= frozen_arrays(path, array, dtype, float8)
    # Only now: NumPy and XLA divide to different last bits, and a file's arrays are to become the same wherever read.
    return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(held))
