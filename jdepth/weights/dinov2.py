"""DINOv2 backbones: the official files and Hugging Face's, onto our tree.

Official: flat names (`blocks.0.attn.qkv.weight`). Hugging Face: `encoder.layer.0...`, query, key and
value apart, with or without the prefix of a larger model. Names and shapes: DINOv2 recipe, 1.6, 1.7.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from jdepth.errors import UserError
from jdepth.weights.catalogue import DINOV2_SIZES, MODELS, Size, WeightsInfo
from jdepth.weights.file_tensor import FileTensor
from jdepth.weights.identify import check_official_name, neighbour_config
from jdepth.weights.mapping import Entry, Readers, layer, readers

PATCH = 14
PREFIXES = ("", "dinov2.", "dinov2_with_registers.", "backbone.")
UNUSED_HEADS = ("classifier.",)  # beside a prefixed encoder: an image classifier's last layer

_OFFICIAL = re.compile(r"cls_token$|pos_embed$|patch_embed\.|blocks\.\d+\.")
_HUGGING_FACE = re.compile(r"embeddings\.|encoder\.layer\.\d+\.")
# Official fragment -> Hugging Face's, in order; the final norm first, before the blocks' norms differ.
_RENAMED = (
    (r"^norm\.", "layernorm."),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^blocks\.", "encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.w12\.", ".mlp.weights_in."),
    (r"\.mlp\.w3\.", ".mlp.weights_out."),
)


def plan(size: Size) -> list[Entry]:
    """Official names and shapes -> ours (below "backbone"); `mask_token` only serves pre-training."""
    width, hidden = size.width, size.hidden
    entries = [
        Entry(("cls_token",), (1, 1, width), "cls_token"),
        Entry(("pos_embed",), (1, 1 + size.grid**2, width), "pos_embed"),
        Entry(("mask_token",), (1, width), None),
    ]
    if size.registers:
        entries.append(Entry(("register_tokens",), (1, size.registers, width), "register_tokens"))
    entries += layer("patch_embed.proj", "patch_embed", (width, 3, PATCH, PATCH), "conv")
    for index in range(size.depth):
        entries += _block(f"blocks.{index}", f"blocks_{index}", width, hidden, size.ffn)
    return entries + _norm("norm", "norm", width)


def _block(source: str, target: str, width: int, hidden: int, ffn: str) -> list[Entry]:
    first, second, doubled = ("w12", "w3", 2) if ffn == "swiglu" else ("fc1", "fc2", 1)
    return [
        *_norm(f"{source}.norm1", f"{target}/norm1", width),
        *layer(f"{source}.attn.qkv", f"{target}/attn/qkv", (3 * width, width), "linear"),
        *layer(f"{source}.attn.proj", f"{target}/attn/proj", (width, width), "linear"),
        Entry((f"{source}.ls1.gamma",), (width,), f"{target}/ls1/gamma"),
        *_norm(f"{source}.norm2", f"{target}/norm2", width),
        *layer(f"{source}.mlp.{first}", f"{target}/mlp/{first}", (doubled * hidden, width), "linear"),
        *layer(f"{source}.mlp.{second}", f"{target}/mlp/{second}", (width, hidden), "linear"),
        Entry((f"{source}.ls2.gamma",), (width,), f"{target}/ls2/gamma"),
    ]


def _norm(source: str, target: str, width: int) -> list[Entry]:
    return [
        Entry((f"{source}.weight",), (width,), f"{target}/scale"),
        Entry((f"{source}.bias",), (width,), f"{target}/bias"),
    ]


def to_hugging_face(entry: Entry) -> Entry:
    """The same entry under Hugging Face's names; qkv becomes three tensors."""
    (name,) = entry.sources
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    if ".attn.qkv." not in name:
        return Entry((name,), entry.shape, entry.target, entry.layout)
    thirds = tuple(name.replace(".attn.qkv.", f".attention.attention.{part}.") for part in ("query", "key", "value"))
    return Entry(thirds, (entry.shape[0] // 3, *entry.shape[1:]), entry.target, entry.layout)


def recognise(names: Mapping[str, object]) -> tuple[str, str] | None:
    """("official" | "hugging_face", prefix) if these names look like a vision transformer's."""
    for naming, pattern in (("official", _OFFICIAL), ("hugging_face", _HUGGING_FACE)):
        for prefix in PREFIXES:
            if any(name.startswith(prefix) and pattern.match(name, len(prefix)) for name in names):
                return naming, prefix
    return None


def load(tensors: Mapping[str, FileTensor], path: Path, model: str | None) -> tuple[Readers, WeightsInfo]:
    """Our flat tree (below "backbone/"), still to be read, and what it is.

    Raises UserError for another architecture or size than `model` or the file's name says, and for
    missing, unexpected or wrongly shaped tensors.
    """
    naming, prefix = recognise(tensors)
    found = {name: tensor for name, tensor in tensors.items() if not (prefix and name.startswith(UNUSED_HEADS))}

    def rename(entry: Entry) -> Entry:
        renamed = to_hugging_face(entry) if naming == "hugging_face" else entry
        return replace(renamed, sources=tuple(prefix + source for source in renamed.sources))

    backbone = _backbone(found, path, rename)
    check_official_name(path, {backbone})
    if model is not None and model != backbone:
        raise UserError(f"{path}: its tensors are those of {backbone}, not of {model}")
    if naming == "hugging_face":
        _check_config(neighbour_config(path), backbone, path)
    entries = [rename(entry) for entry in plan(DINOV2_SIZES[backbone])]
    flat = readers(found, entries, path, f"{backbone} ({naming.replace('_', ' ')} names)")
    info = WeightsInfo("dinov2", backbone, backbone, None, None, None, path.name, MODELS[backbone].licence)
    return {f"backbone/{name}": read for name, read in flat.items()}, info


def _backbone(found: Mapping[str, FileTensor], path: Path, rename: Callable[[Entry], Entry]) -> str:
    """Key of DINOV2_SIZES by width and registers. The width is voted on, so that one tensor of a
    wrong shape is reported as such."""

    def shape(name: str) -> tuple[int, ...]:
        (name,) = rename(Entry((name,), (), None)).sources
        return found[name].shape if name in found else ()

    witnesses = ("cls_token", "pos_embed", "norm.weight", "patch_embed.proj.bias", "blocks.0.norm1.weight")
    votes = Counter(shape(name)[-1] for name in witnesses if shape(name))
    width = votes.most_common(1)[0][0] if votes else None
    registers = bool(shape("register_tokens"))
    for name, size in DINOV2_SIZES.items():
        if size.width == width and bool(size.registers) == registers:
            return name
    widths = ", ".join(f"{size.width} ({name})" for name, size in DINOV2_SIZES.items() if not size.registers)
    raise UserError(f"{path}: is a vision transformer of width {width}, not a DINOv2 backbone; widths are {widths}")


def _check_config(config: Mapping, backbone: str, path: Path) -> None:
    """Hugging Face's settings must be those of the released backbone; what is absent is not checked."""
    size = DINOV2_SIZES[backbone]
    expected = {
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": size.width // 64,
        "patch_size": PATCH,
        "num_channels": 3,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "use_swiglu_ffn": size.ffn == "swiglu",
        "num_register_tokens": size.registers,
        "image_size": PATCH * size.grid,
    }
    for key, value in expected.items():
        if key in config and config[key] != value:
            raise UserError(f"{path.parent / 'config.json'}: {key} is {config[key]!r}, {backbone} has {value!r}")
    epsilon = config.get("layer_norm_eps", 1e-6)
    if epsilon == 1e-12:
        logging.info("%s: layer_norm_eps 1e-12 is an old default of the port; DINOv2 was trained with 1e-6", path)
    elif epsilon != 1e-6:
        raise UserError(f"{path.parent / 'config.json'}: layer_norm_eps is {epsilon!r}, {backbone} has 1e-06")
