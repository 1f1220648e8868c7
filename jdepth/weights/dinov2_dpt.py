"""DINOv2's released DPT depth heads (NYU and KITTI), onto our decoder and depth head.

Official files hold `decode_head.*` under `state_dict`; Hugging Face's (`DPTForDepthEstimation`) the backbone
too. Names and shapes: DINOv2 recipe, 2.6. The files of the two data sets are alike in every tensor; only
their depth ranges differ. Hugging Face's port adds no min_depth to its result: where a file's own
description says that the last bias holds it (as our export does), it is taken out again.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from jdepth.errors import UserError
from jdepth.weights import dinov2
from jdepth.weights.catalogue import DINOV2_SIZES, MODELS, SIZES, WeightsInfo
from jdepth.weights.faults import shown
from jdepth.weights.file_tensor import FileTensor
from jdepth.weights.identify import check_official_name, choose, neighbour_config
from jdepth.weights.mapping import Entry, layer, take

PREFIX = "decode_head."
# Official fragment (without prefix) -> Hugging Face's, in order.
_RENAMED = (
    (r"^reassemble_blocks\.readout_projects\.", "neck.reassemble_stage.readout_projects."),
    (r"^reassemble_blocks\.projects\.(\d)\.conv\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^reassemble_blocks\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"^convs\.(\d)\.conv\.", r"neck.convs.\1."),
    (r"^fusion_blocks\.(\d)\.project\.conv\.", r"neck.fusion_stage.layers.\1.projection."),
    (
        r"^fusion_blocks\.(\d)\.res_conv_unit(\d)\.conv(\d)\.conv\.",
        r"neck.fusion_stage.layers.\1.residual_layer\2.convolution\3.",
    ),
    (r"^project\.conv\.", "head.projection."),
    (r"^conv_depth\.head\.", "head.head."),
)
MAX_CHANNELS = 2048  # released heads have 256
FURTHEST = float(np.finfo(np.float32).max)  # metres; depth is computed in float32


def plan(width: int, channels: int) -> list[Entry]:
    """Official names (without prefix) and shapes -> ours (below "decoder" and "depth_head")."""
    levels = (width // 8, width // 4, width // 2, width)
    entries = []
    for i, level in enumerate(levels):
        reassemble, decoder = "reassemble_blocks", "decoder"
        entries += [
            *layer(f"{reassemble}.readout_projects.{i}.0", f"{decoder}/readout_{i}", (width, 2 * width), "linear"),
            *layer(f"{reassemble}.projects.{i}.conv", f"{decoder}/project_{i}", (level, width, 1, 1), "conv1x1"),
            *layer(f"convs.{i}.conv", f"{decoder}/conv_{i}", (channels, level, 3, 3), "conv", bias=False),
            *_fusion(i, channels),
        ]
        # Level 2 keeps its resolution; levels 0 and 1 grow by transposed convolutions, level 3 shrinks.
        if i != 2:
            kernel, layout = ((4, "up_conv"), (2, "up_conv"), None, (3, "conv"))[i]
            shape = (level, level, kernel, kernel)
            entries += layer(f"{reassemble}.resize_layers.{i}", f"{decoder}/resize_{i}", shape, layout)
    half = channels // 2
    return entries + [
        *layer("project.conv", "decoder/project", (channels, channels, 3, 3), "conv"),
        *layer("conv_depth.head.0", "depth_head/conv1", (half, channels, 3, 3), "conv"),
        *layer("conv_depth.head.2", "depth_head/conv2", (32, half, 3, 3), "conv"),
        *layer("conv_depth.head.4", "depth_head/conv3", (1, 32, 1, 1), "conv1x1"),
    ]


def _fusion(i: int, channels: int) -> list[Entry]:
    source, target = f"fusion_blocks.{i}", f"decoder/fusion_{i}"
    entries = layer(f"{source}.project.conv", f"{target}/project", (channels, channels, 1, 1), "conv1x1")
    for unit in (1, 2) if i else (2,):  # the deepest stage has no lateral input, hence no unit 1
        for conv in (1, 2):
            name = f"{source}.res_conv_unit{unit}.conv{conv}.conv"
            shape = (channels, channels, 3, 3)
            entries += layer(name, f"{target}/unit{unit}/conv{conv}", shape, "conv", bias=False)
    return entries


def official_plan(width: int, channels: int) -> list[Entry]:
    """Names in official files -> ours."""
    return [replace(entry, sources=(PREFIX + entry.sources[0],)) for entry in plan(width, channels)]


def hugging_face_plan(backbone: str, channels: int) -> list[Entry]:
    """Hugging Face's names of backbone, decoder and head -> ours."""
    size = SIZES[backbone]
    entries = []
    for entry in map(dinov2.to_hugging_face, dinov2.plan(size)):
        sources = tuple(f"backbone.{source}" for source in entry.sources)
        entries.append(replace(entry, sources=sources, target=entry.target and f"backbone/{entry.target}"))
    for entry in plan(size.width, channels):
        (name,) = entry.sources
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        entries.append(replace(entry, sources=(name,)))
    unused = [f"neck.fusion_stage.layers.0.residual_layer1.convolution{conv}.weight" for conv in (1, 2)]
    return entries + [Entry((name,), (channels, channels, 3, 3), None) for name in unused]


def recognise(names: Mapping[str, object]) -> str | None:
    """"official" or "hugging_face" if these names look like a released DPT head's on DINOv2."""
    parts = ("reassemble_blocks.", "fusion_blocks.", "convs.")
    if any(name.startswith(tuple(PREFIX + part for part in parts)) for name in names):
        return "official"
    of_dpt = any(name.startswith("neck.reassemble_stage.readout_projects.") for name in names)
    return "hugging_face" if of_dpt and any(name.startswith("backbone.embeddings.") for name in names) else None


def load(tensors: Mapping[str, FileTensor], path: Path, model: str | None) -> tuple[dict[str, np.ndarray], WeightsInfo]:
    """Our flat tree (below "decoder/" and "depth_head/", from Hugging Face also "backbone/") and what it is.

    Any even number of channels is read; the range comes from `model`, the official file name or a
    config.json beside it. Raises UserError where that, the size or any tensor does not fit.
    """
    naming = recognise(tensors)
    width, channels = _sizes(tensors, path, naming)
    own = neighbour_config(path).get("jdepth") if naming == "hugging_face" else None
    if own is not None:
        return _load_own(tensors, path, model, own, channels)
    backbone = next((name for name, size in DINOV2_SIZES.items() if size.width == width), None)
    if backbone is None:
        raise UserError(f"{path}: is of no released width ({width}), and config.json beside it has no entry jdepth")
    candidates = [name for name, m in MODELS.items() if (m.family, m.backbone) == ("dinov2_dpt", backbone)]
    check_official_name(path, candidates)
    released = MODELS[choose(path, candidates, model)]
    entries = official_plan(width, channels) if naming == "official" else hugging_face_plan(backbone, channels)
    flat = take(tensors, entries, path, f"a DPT head for {backbone} with {channels} channels")
    info = WeightsInfo(
        family="dinov2_dpt",
        model=released.name,
        backbone=backbone,
        channels=channels,
        min_depth=released.min_depth,
        max_depth=released.max_depth,
        source=path.name,
        licence=released.licence,
    )
    return flat, info


def _load_own(
    tensors: Mapping[str, FileTensor], path: Path, model: str | None, own: object, channels: int
) -> tuple[dict[str, np.ndarray], WeightsInfo]:
    """A model that we wrote for transformers (`hugging_face.py`): its smallest depth is in the last bias."""
    config = path.parent / "config.json"
    match own:
        case {
            "model": str() as name,
            "backbone": str() as backbone,
            "licence": str() as licence,
            "min_depth": float() | int() as low,
            "max_depth": float() | int() as high,
            "input_area": None | int() as area,
            "area_averaged": bool() as averaged,
        } if backbone in SIZES and type(area) is not bool and (area is None or area > 0):
            pass
        case _:
            raise UserError(f"{config}: its entry jdepth is not what jdepth writes; export the model again")
    if isinstance(low, bool) or isinstance(high, bool) or not 0 < low < high <= FURTHEST:
        raise UserError(
            f"{config}: has min_depth {shown(low)} and max_depth {shown(high)}, expected finite metres "
            "0 < min_depth < max_depth"
        )
    if not (name.isprintable() and licence.isprintable()):
        raise UserError(f"{config}: has control characters in its entry jdepth; export the model again")
    if model not in (None, name):
        raise UserError(f"{path}: holds {shown(name)}, not {model}")
    flat = take(tensors, hugging_face_plan(backbone, channels), path, f"a DPT model on {backbone}")
    flat["depth_head/conv3/bias"] = flat["depth_head/conv3/bias"] - np.float32(low)
    info = WeightsInfo(
        "dinov2_dpt", name, backbone, channels, float(low), float(high), path.name, licence, area, averaged
    )
    return flat, info


def _sizes(found: Mapping[str, FileTensor], path: Path, naming: str) -> tuple[int, int]:
    """Backbone width and decoder channels, each voted on by several tensors."""
    if naming == "official":
        readouts = [f"{PREFIX}reassemble_blocks.readout_projects.{i}.0.bias" for i in range(4)]
        projects = [f"{PREFIX}fusion_blocks.{i}.project.conv.bias" for i in range(4)] + [f"{PREFIX}project.conv.bias"]
    else:
        readouts = [f"neck.reassemble_stage.readout_projects.{i}.0.bias" for i in range(4)]
        projects = [f"neck.fusion_stage.layers.{i}.projection.bias" for i in range(4)] + ["head.projection.bias"]
    width, channels = _vote(found, readouts), _vote(found, projects)
    known = sorted({size.width for size in (DINOV2_SIZES if naming == "official" else SIZES).values()})
    if width not in known:
        raise UserError(f"{path}: is a DPT head for features of width {width}, expected one of {known}")
    if channels is None or channels % 2 or not 2 <= channels <= MAX_CHANNELS:
        raise UserError(f"{path}: is a DPT head of {channels} channels, expected an even number up to {MAX_CHANNELS}")
    return width, channels


def _vote(found: Mapping[str, FileTensor], names: list[str]) -> int | None:
    shapes = [found[name].shape for name in names if name in found]
    votes = Counter(shape[-1] for shape in shapes if shape)
    return votes.most_common(1)[0][0] if votes else None
