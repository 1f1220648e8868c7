"""The network that a weights file's description asks for."""

from jdepth.models import depth_model
from jdepth.models.depth_model import DepthModel
from jdepth.weights.catalogue import MODELS, WeightsInfo


def build(info: WeightsInfo, dtype, attention: str) -> DepthModel:
    """The depth model of `info`, which has a depth head; `attention` as `models.attention.choose` returns it."""
    if info.family == "depth_anything":
        version = MODELS[info.model].version
        return depth_model.build_depth_anything(info.backbone, version, dtype, attention, info.max_depth)
    if info.family == "dinov2_linear":
        taps = MODELS[info.model].taps
        return depth_model.build_linear(info.backbone, taps, dtype, attention, info.min_depth, info.max_depth)
    return depth_model.build(info.backbone, info.channels, dtype, attention, info.min_depth)
