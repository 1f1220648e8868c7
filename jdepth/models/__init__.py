"""Backbones, decoder and heads; needs only jax, flax and NumPy."""

from jdepth.models.depth_model import DepthModel, build, build_depth_anything, build_linear, cast_frozen
from jdepth.models.dpt import DPTDecoder
from jdepth.models.heads import DepthHead, StackedHead, class_mask, pool
from jdepth.models.vit import BACKBONES, Features, VisionTransformer, ViTConfig

__all__ = [
    "BACKBONES",
    "DPTDecoder",
    "DepthHead",
    "DepthModel",
    "Features",
    "StackedHead",
    "ViTConfig",
    "VisionTransformer",
    "build",
    "build_depth_anything",
    "build_linear",
    "cast_frozen",
    "class_mask",
    "pool",
]
