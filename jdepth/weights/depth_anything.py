"""Depth Anything V1 and V2, relative and metric: the official files and Hugging Face's, onto our tree.

Official: `pretrained.*` (DINOv2's names) and `depth_head.*`; Hugging Face: `backbone.*`, `neck.*`, `head.*`.
Names and shapes: DINOv2 recipe, 7.1. V1 and V2 are alike in every tensor, as are V2's relative and metric
models: V1 takes the last four blocks, metric ones end in a sigmoid. V1's metric models are ZoeDepth networks
and not covered.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from jdepth.errors import UserError
from jdepth.weights import dinov2
from jdepth.weights.catalogue import DEPTH_ANYTHING_DECODERS, DINOV2_SIZES, MODELS, SPREAD, Model, WeightsInfo
from jdepth.weights.faults import shown
from jdepth.weights.file_tensor import FileTensor
from jdepth.weights.identify import check_official_name, choose, neighbour_config, official_name
from jdepth.weights.mapping import Entry, Readers, layer, readers, take

# Official fragment -> Hugging Face's. Its fusion layers count from the deepest, as ours do.
_RENAMED = (
    (r"^depth_head\.projects\.(\d)\.", r"neck.reassemble_stage.layers.\1.projection."),
    (r"^depth_head\.resize_layers\.(\d)\.", r"neck.reassemble_stage.layers.\1.resize."),
    (r"^depth_head\.scratch\.layer(\d)_rn\.", lambda m: f"neck.convs.{int(m[1]) - 1}."),
    (r"^depth_head\.scratch\.refinenet(\d)\.", lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}."),
    (r"\.out_conv\.", ".projection."),
    (r"\.resConfUnit(\d)\.conv(\d)\.", r".residual_layer\1.convolution\2."),
    (r"^depth_head\.scratch\.output_conv1\.", "head.conv1."),
    (r"^depth_head\.scratch\.output_conv2\.0\.", "head.conv2."),
    (r"^depth_head\.scratch\.output_conv2\.2\.", "head.conv3."),
)


def plan(backbone: str) -> list[Entry]:
    """Official names and shapes of decoder and head -> ours."""
    width = DINOV2_SIZES[backbone].width
    width_out, levels = DEPTH_ANYTHING_DECODERS[_letter(backbone)]
    entries = []
    for i, level in enumerate(levels):
        entries += layer(f"depth_head.projects.{i}", f"decoder/project_{i}", (level, width, 1, 1), "conv1x1")
        if i != 2:  # level 2 keeps its resolution
            kernel, layout = ((4, "up_conv"), (2, "up_conv"), None, (3, "conv"))[i]
            entries += layer(
                f"depth_head.resize_layers.{i}", f"decoder/resize_{i}", (level, level, kernel, kernel), layout
            )
        name = f"depth_head.scratch.layer{i + 1}_rn"
        entries += layer(name, f"decoder/conv_{i}", (width_out, level, 3, 3), "conv", bias=False)
        entries += _fusion(i, width_out)
    half, scratch = width_out // 2, "depth_head.scratch"
    return entries + [
        *layer(f"{scratch}.output_conv1", "depth_head/conv1", (half, width_out, 3, 3), "conv"),
        *layer(f"{scratch}.output_conv2.0", "depth_head/conv2", (32, half, 3, 3), "conv"),
        *layer(f"{scratch}.output_conv2.2", "depth_head/conv3", (1, 32, 1, 1), "conv1x1"),
    ]


def _fusion(i: int, channels: int) -> list[Entry]:
    source, target = f"depth_head.scratch.refinenet{4 - i}", f"decoder/fusion_{i}"
    entries = layer(f"{source}.out_conv", f"{target}/project", (channels, channels, 1, 1), "conv1x1")
    for unit in (1, 2):
        for conv in (1, 2):
            name, shape = f"{source}.resConfUnit{unit}.conv{conv}", (channels, channels, 3, 3)
            unit_entries = layer(name, f"{target}/unit{unit}/conv{conv}", shape, "conv")
            if i == 0 and unit == 1:  # in the file, but the deepest stage has no lateral input to feed it
                unit_entries = [replace(entry, target=None) for entry in unit_entries]
            entries += unit_entries
    return entries


def to_hugging_face(entry: Entry) -> Entry:
    """The same entry of decoder or head under Hugging Face's name."""
    (name,) = entry.sources
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return replace(entry, sources=(name,))


def full_plan(backbone: str, naming: str) -> list[Entry]:
    """Names of the whole file ("official" or "hugging_face") -> ours."""
    official = naming == "official"
    prefix = "pretrained." if official else "backbone."

    def encoder(entry: Entry) -> Entry:
        renamed = entry if official else dinov2.to_hugging_face(entry)
        target = None if entry.target is None else f"backbone/{entry.target}"
        return replace(renamed, sources=tuple(prefix + source for source in renamed.sources), target=target)

    head = plan(backbone) if official else list(map(to_hugging_face, plan(backbone)))
    return list(map(encoder, dinov2.plan(DINOV2_SIZES[backbone]))) + head


def recognise(names: Mapping[str, object]) -> str | None:
    """"official" or "hugging_face" if these names look like a Depth Anything model's."""
    if any(name.startswith("depth_head.scratch.") for name in names):
        return "official"
    if "head.conv1.weight" in names and any(name.startswith("neck.fusion_stage.") for name in names):
        return "hugging_face"
    return None


def load(tensors: Mapping[str, FileTensor], path: Path, model: str | None) -> tuple[dict[str, np.ndarray], WeightsInfo]:
    """Our flat tree (below "backbone/", "decoder/" and "depth_head/") and what it is.

    Version and task come from `model`, the official file name or a config.json beside it, as Hugging Face
    writes it. Raises UserError where that, the size or any tensor does not fit.
    """
    naming = recognise(tensors)
    backbone = _backbone(tensors, naming, path)
    candidates = _candidates(backbone)
    check_official_name(path, candidates)
    if naming == "hugging_face":
        config = neighbour_config(path)
        if "backbone_config" in config and not any(_config_fits(config, MODELS[name]) for name in candidates):
            raise UserError(
                f"{path.parent / 'config.json'}: describes {_described(config)}, which is none of "
                f"{', '.join(candidates)}; models fine-tuned to other ranges are not covered"
            )
    released = MODELS[choose(path, candidates, model, _config_fits)]
    if naming == "hugging_face" and "backbone_config" in config and not _config_fits(config, released):
        raise UserError(
            f"{path.parent / 'config.json'}: describes {_described(config)}, {released.name} is another model; "
            "name the right one with --model, or move the file away from this config.json"
        )
    flat = take(tensors, full_plan(backbone, naming), path, f"Depth Anything on {backbone} ({naming} names)")
    info = WeightsInfo(
        family="depth_anything",
        model=released.name,
        backbone=backbone,
        channels=channels(backbone),
        min_depth=released.min_depth,
        max_depth=released.max_depth,
        source=path.name,
        licence=released.licence,
    )
    return flat, info


def load_encoder(tensors: Mapping[str, FileTensor], path: Path) -> tuple[Readers, WeightsInfo]:
    """The encoder alone, still to be read, as a backbone for training: version and task, which only decoder and
    head differ in, need not be known. Decoder and head may be incomplete, since they are not read."""
    naming = recognise(tensors)
    backbone = _backbone(tensors, naming, path)
    check_official_name(path, _candidates(backbone))
    entries = full_plan(backbone, naming)
    kept = [e if e.target and e.target.startswith("backbone/") else replace(e, target=None) for e in entries]
    flat = readers(tensors, kept, path, f"Depth Anything on {backbone} ({naming} names)")
    name = official_name(path)
    licence = MODELS[name].licence if name in MODELS else "that of its Depth Anything model"
    return flat, WeightsInfo("dinov2", name or "depth_anything", backbone, None, None, None, path.name, licence)


def channels(backbone: str) -> int:
    """Decoder channels of the released models on this backbone."""
    return DEPTH_ANYTHING_DECODERS[_letter(backbone)][0]


def _candidates(backbone: str) -> list[str]:
    return [name for name, m in MODELS.items() if (m.family, m.backbone) == ("depth_anything", backbone)]


def _letter(backbone: str) -> str:
    return backbone.removeprefix("dinov2_vit")[0]


def _backbone(tensors: Mapping[str, FileTensor], naming: str, path: Path) -> str:
    """By width, which several tensors vote on, so that one of a wrong shape is reported as such."""
    names = {
        "official": ("pretrained.cls_token", "pretrained.norm.weight", "pretrained.patch_embed.proj.bias"),
        "hugging_face": (
            "backbone.embeddings.cls_token",
            "backbone.layernorm.weight",
            "backbone.embeddings.patch_embeddings.projection.bias",
        ),
    }[naming]
    votes = Counter(tensors[name].shape[-1] for name in names if name in tensors and tensors[name].shape)
    width = votes.most_common(1)[0][0] if votes else None
    for name, size in DINOV2_SIZES.items():
        if size.width == width and not size.registers:
            return name
    what = f"an encoder of width {width}" if votes else "no encoder"
    raise UserError(f"{path}: is a Depth Anything model with {what}, expected a width of {_widths()}")


def _widths() -> str:
    return ", ".join(str(size.width) for size in DINOV2_SIZES.values() if not size.registers)


def _config_fits(config: Mapping, released: Model) -> bool:
    """Whether Hugging Face's config.json describes this released model."""
    inner = config.get("backbone_config")
    if not isinstance(inner, dict):
        return False
    depth = DINOV2_SIZES[released.backbone].depth
    last_four = list(range(depth - 3, depth + 1))
    if _taps(inner) != (last_four if released.version == 1 else SPREAD[_letter(released.backbone)]):
        return False
    kind = config.get("depth_estimation_type", "relative")
    if kind != released.task:
        return False
    return kind == "relative" or config.get("max_depth") == released.max_depth


def _taps(inner: Mapping) -> list[int] | None:
    """One-based blocks that the decoder takes: "out_indices", or the numbers in "out_features" ("stage9")."""
    stages = inner.get("out_features")
    if inner.get("out_indices") is None and isinstance(stages, list):
        numbers = [re.fullmatch(r"stage([0-9]{1,3})", str(stage)) for stage in stages]
        return [int(number[1]) for number in numbers] if all(numbers) else None
    return inner.get("out_indices")


def _described(config: Mapping) -> str:
    inner = config["backbone_config"] if isinstance(config["backbone_config"], dict) else {}
    kind = shown(config.get("depth_estimation_type", "relative"))
    furthest = shown(config.get("max_depth"))
    return f"a model of type {kind} with out_indices {shown(_taps(inner))} and max_depth {furthest}"
