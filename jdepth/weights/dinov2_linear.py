"""DINOv2's released linear depth heads (one or four taps; NYU and KITTI), onto our linear head.

Files hold `decode_head.conv_depth.*` under `state_dict`. Names and shapes: DINOv2 recipe, 2.7. A width may
belong to several models: four taps of ViT-S are as wide as one of ViT-g.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jdepth.errors import UserError
from jdepth.weights.catalogue import DINOV2_SIZES, MODELS, Model, WeightsInfo
from jdepth.weights.file_tensor import FileTensor
from jdepth.weights.identify import check_official_name, choose
from jdepth.weights.mapping import Entry, layer, take

NAME = "decode_head.conv_depth"
BINS = 256


def shapes(width: int, taps: int) -> dict[str, tuple[int, ...]]:
    """Our names and shapes."""
    return {"depth_head/kernel": (taps, 2 * width, BINS), "depth_head/bias": (BINS,)}


def plan(inputs: int) -> list[Entry]:
    """Official names and shapes -> ours, all taps in one matrix."""
    return layer(NAME, "depth_head", (BINS, inputs, 1, 1), "conv1x1")


def recognise(names: Mapping[str, object]) -> bool:
    """Whether these names look like a released linear head's."""
    return f"{NAME}.weight" in names


def load(tensors: Mapping[str, FileTensor], path: Path, model: str | None) -> tuple[dict[str, np.ndarray], WeightsInfo]:
    """Our flat tree (below "depth_head/") and what it is.

    Which model it is comes from `model`, the official file name or a config.json beside it. Raises UserError
    where that, the size or any tensor does not fit.
    """
    shape = tensors[f"{NAME}.weight"].shape
    inputs = shape[1] if len(shape) == 4 else 0
    candidates = [name for name, m in MODELS.items() if m.family == "dinov2_linear" and _inputs(m) == inputs]
    if not candidates:
        known = sorted({_inputs(m) for m in MODELS.values() if m.family == "dinov2_linear"})
        raise UserError(f"{path}: is a linear depth head of shape {shape}, expected (256, N, 1, 1) with N of {known}")
    check_official_name(path, candidates)
    released = MODELS[choose(path, candidates, model)]
    flat = take(tensors, plan(inputs), path, f"a linear depth head for {released.backbone}")
    # Inputs are ordered by tap, and within a tap patch features before class token.
    kernel = flat["depth_head/kernel"].reshape(released.taps, -1, BINS)
    info = WeightsInfo(
        family="dinov2_linear",
        model=released.name,
        backbone=released.backbone,
        channels=None,
        min_depth=released.min_depth,
        max_depth=released.max_depth,
        source=path.name,
        licence=released.licence,
    )
    return {"depth_head/kernel": kernel, "depth_head/bias": flat["depth_head/bias"]}, info


def _inputs(model: Model) -> int:
    return 2 * model.taps * DINOV2_SIZES[model.backbone].width
