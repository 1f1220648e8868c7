"""What each family of released models needs around its parameters: network, pre-processing, output."""

from dataclasses import dataclass

from jdepth.models import depth_model
from jdepth.models.depth_model import DepthModel
from jdepth.preparation import Preparation
from jdepth.weights.catalogue import MODELS, WeightsInfo

DEPTH_ANYTHING_SIDE = 518


@dataclass(frozen=True)
class Family:
    """A network and how it is used.

    Attributes:
      model: images (B, h, w, 3), normalised, to maps.
      preparation: how images are brought to it.
      align_corners: how maps are resized to the image's size: as each family's released script does.
      clamp: whether metres are clamped to the model's range before that.
    """

    model: DepthModel
    preparation: Preparation = Preparation()
    align_corners: bool = False
    clamp: bool = True


def build(info: WeightsInfo, dtype, attention: str) -> Family:
    """The family of `info`, which has a depth head; `attention` as `models.attention.choose` returns it."""
    if info.family == "depth_anything":
        version = MODELS[info.model].version
        model = depth_model.build_depth_anything(info.backbone, version, dtype, attention, info.max_depth)
        return Family(model, Preparation(least=DEPTH_ANYTHING_SIDE), align_corners=version == 2, clamp=False)
    if info.family == "dinov2_linear":
        taps = MODELS[info.model].taps
        return Family(
            depth_model.build_linear(info.backbone, taps, dtype, attention, info.min_depth, info.max_depth)
        )
    model = depth_model.build(info.backbone, info.channels, dtype, attention, info.min_depth)
    return Family(model, Preparation(area=info.input_area, shrink_by_area=info.area_averaged))
