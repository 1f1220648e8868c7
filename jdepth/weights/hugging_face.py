"""Depth models written as Hugging Face's transformers reads them: a folder of safetensors and JSON.

DINOv2-DPT models become `DPTForDepthEstimation` with a `Dinov2Config` backbone, Depth Anything models
`DepthAnythingForDepthEstimation`. transformers' DPT adds no smallest depth to its result, so ours goes into
the last bias, and config.json says so under "jdepth", by which reading takes it out again.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jdepth.errors import UserError
from jdepth.weights import depth_anything, dinov2_dpt, mapping
from jdepth.weights.catalogue import DEPTH_ANYTHING_DECODERS, MODELS, SIZES, Size, WeightsInfo
from jdepth.weights.faults import shown
from jdepth.weights.tree import flatten

LAST_BIAS = "depth_head/conv3/bias"
FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
DPT_CHANNELS = 256  # transformers' head has its widths in code, not in config.json
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def save(folder: str | Path, params: Mapping, info: WeightsInfo, taps: tuple[int, ...], heads: int) -> None:
    """Write a complete depth model's parameters and description into `folder`, which is made if need be.

    Args:
      params: {"backbone", "decoder", "depth_head"}.
      taps: zero-based blocks whose features the decoder takes.
      heads: attention heads of the backbone.

    Raises UserError for a model that transformers has no class for, and where the folder holds such files
    already or cannot be written.
    """
    folder = Path(folder)
    size = SIZES[info.backbone]
    if info.family not in ("dinov2_dpt", "depth_anything"):
        raise UserError(f"{info.model}: transformers has no class for the family {info.family}")
    if size.registers:
        raise UserError(f"{info.model}: transformers' DPT takes no backbone with registers ({info.backbone})")
    if info.family == "dinov2_dpt" and info.channels != DPT_CHANNELS:
        raise UserError(
            f"{info.model}: has {info.channels} decoder channels, transformers' DPT has {DPT_CHANNELS}; "
            "export it for jax"
        )
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise UserError(f"{folder}: holds {there[0]} already; name another folder")
    flat = {name: np.asarray(value, np.float32) for name, value in flatten(params).items()}
    if info.family == "dinov2_dpt":
        flat[LAST_BIAS] = flat[LAST_BIAS] + np.float32(info.min_depth)
        plan, config = dinov2_dpt.hugging_face_plan(info.backbone, info.channels), _dpt_config(info)
    else:
        plan, config = depth_anything.full_plan(info.backbone, "hugging_face"), _depth_anything_config(info)
    config["backbone_config"] = _backbone_config(size, taps, heads, normalised=info.family == "depth_anything")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".model.{os.getpid()}.{secrets.token_hex(4)}"
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(mapping.give(flat, plan), temporary, {"format": "pt"})
            temporary.chmod(mode)  # the library makes files that only their owner can read
            # The weights, which are large, first: what follows hardly fails.
            os.replace(temporary, folder / "model.safetensors")
            for name, content in (("preprocessor_config.json", _preprocessor(info)), ("config.json", config)):
                (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except BaseException:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            raise
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written ({shown(error)}); check free space and permissions") from None


def _backbone_config(size: Size, taps: tuple[int, ...], heads: int, normalised: bool) -> dict:
    return {
        "model_type": "dinov2",
        "hidden_size": size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": heads,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": 14 * size.grid,
        "patch_size": 14,
        "num_channels": 3,
        "qkv_bias": True,
        "use_swiglu_ffn": size.ffn == "swiglu",
        "out_features": [f"stage{tap + 1}" for tap in taps],
        "out_indices": [tap + 1 for tap in taps],
        "apply_layernorm": normalised,
        "reshape_hidden_states": False,
    }


def _dpt_config(info: WeightsInfo) -> dict:
    width = SIZES[info.backbone].width
    return {
        "architectures": ["DPTForDepthEstimation"],
        "model_type": "dpt",
        "neck_hidden_sizes": [width // 8, width // 4, width // 2, width],
        "fusion_hidden_size": info.channels,
        "reassemble_factors": [4, 2, 1, 0.5],
        "readout_type": "project",
        "add_projection": True,
        "use_bias_in_fusion_residual": False,
        "use_batch_norm_in_fusion_residual": False,
        "is_hybrid": False,
        "hidden_act": "gelu",
        "torch_dtype": "float32",
        "max_depth": info.max_depth,
        "jdepth": {
            "model": info.model,
            "backbone": info.backbone,
            "min_depth": info.min_depth,
            "max_depth": info.max_depth,
            "licence": info.licence,
            "input_area": info.input_area,
            "area_averaged": info.area_averaged,
        },
    }


def _depth_anything_config(info: WeightsInfo) -> dict:
    letter = info.backbone.removeprefix("dinov2_vit")[0]
    metric = MODELS[info.model].task == "metric"
    return {
        "architectures": ["DepthAnythingForDepthEstimation"],
        "model_type": "depth_anything",
        "neck_hidden_sizes": list(DEPTH_ANYTHING_DECODERS[letter][1]),
        "fusion_hidden_size": info.channels,
        "reassemble_hidden_size": SIZES[info.backbone].width,
        "reassemble_factors": [4, 2, 1, 0.5],
        "head_hidden_size": 32,
        "patch_size": 14,
        "torch_dtype": "float32",
        "depth_estimation_type": "metric" if metric else "relative",
        "max_depth": int(info.max_depth) if metric else 1,
    }


def _preprocessor(info: WeightsInfo) -> dict:
    common = {
        "image_processor_type": "DPTImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    if info.family == "depth_anything":
        return common | {
            "do_resize": True,
            "size": {"height": 518, "width": 518},
            "keep_aspect_ratio": True,
            "ensure_multiple_of": 14,
            "resample": 3,
            "do_pad": False,
        }
    return common | {"do_resize": False, "do_pad": True, "size_divisor": 14}
