"""Random reference models, and their published tensor names mapped onto our parameter tree.

Written apart from `jdepth.weights` on purpose: two mappings that must agree. Tensors are taken from
the files `save_pretrained` writes, since names in memory differ from the published ones.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file


def randomise(model: torch.nn.Module, seed: int, outliers: bool = False) -> None:
    """Draw every parameter: biases ±0.1, norms and LayerScale 1 ± 0.3, tokens and table 0.5·normal,
    weights normal of variance 1/fan-in, so that attention is far from uniform. With `outliers`,
    three entries of every third block's LayerScale are 100 times larger."""
    draw = torch.Generator().manual_seed(seed)

    def uniform(parameter, centre, spread):
        return centre + spread * (2.0 * torch.rand(parameter.shape, generator=draw) - 1.0)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                value = uniform(parameter, 0.0, 0.1)
            elif "norm" in name or "layer_scale" in name:
                value = uniform(parameter, 1.0, 0.3)
                if outliers and "layer_scale" in name and int(name.split(".layer.")[1].split(".")[0]) % 3 == 1:
                    value[torch.randperm(len(value), generator=draw)[:3]] *= 100.0
            elif "token" in name or "position" in name:
                value = 0.5 * torch.randn(parameter.shape, generator=draw)
            else:
                value = torch.randn(parameter.shape, generator=draw) / parameter[0].numel() ** 0.5
            parameter.copy_(value)


def published_tensors(model) -> dict[str, np.ndarray]:
    """The model's tensors under the names of published files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="100GB")
        return load_file(Path(folder) / "model.safetensors")


def _linear(tensors, name):
    return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}


def _norm(tensors, name):
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _conv(tensors, name):
    tree = {"kernel": tensors[f"{name}.weight"].transpose(2, 3, 1, 0)}
    if f"{name}.bias" in tensors:
        tree["bias"] = tensors[f"{name}.bias"]
    return tree


def _pointwise(tensors, name):
    return {"kernel": tensors[f"{name}.weight"][:, :, 0, 0].T, "bias": tensors[f"{name}.bias"]}


def block_tree(tensors, p):
    """One block; `p` is the prefix of its names."""
    thirds = [_linear(tensors, f"{p}attention.attention.{part}") for part in ("query", "key", "value")]
    if f"{p}mlp.fc1.weight" in tensors:
        mlp = {"fc1": _linear(tensors, f"{p}mlp.fc1"), "fc2": _linear(tensors, f"{p}mlp.fc2")}
    else:
        mlp = {"w12": _linear(tensors, f"{p}mlp.weights_in"), "w3": _linear(tensors, f"{p}mlp.weights_out")}
    return {
        "norm1": _norm(tensors, f"{p}norm1"),
        "attn": {
            "qkv": {leaf: np.concatenate([third[leaf] for third in thirds], axis=-1) for leaf in ("kernel", "bias")},
            "proj": _linear(tensors, f"{p}attention.output.dense"),
        },
        "ls1": {"gamma": tensors[f"{p}layer_scale1.lambda1"]},
        "norm2": _norm(tensors, f"{p}norm2"),
        "mlp": mlp,
        "ls2": {"gamma": tensors[f"{p}layer_scale2.lambda1"]},
    }


def backbone_tree(tensors, depth, prefix=""):
    """Our backbone parameters."""
    e = f"{prefix}embeddings."
    tree = {
        "cls_token": tensors[f"{e}cls_token"],
        "pos_embed": tensors[f"{e}position_embeddings"],
        "patch_embed": _conv(tensors, f"{e}patch_embeddings.projection"),
        "norm": _norm(tensors, f"{prefix}layernorm"),
    }
    if f"{e}register_tokens" in tensors:
        tree["register_tokens"] = tensors[f"{e}register_tokens"]
    for i in range(depth):
        tree[f"blocks_{i}"] = block_tree(tensors, f"{prefix}encoder.layer.{i}.")
    return tree


def decoder_tree(tensors):
    """Our decoder parameters from a DPTForDepthEstimation's."""
    r, f = "neck.reassemble_stage.", "neck.fusion_stage.layers."
    tree = {"project": _conv(tensors, "head.projection")}
    for i in range(4):
        tree[f"readout_{i}"] = _linear(tensors, f"{r}readout_projects.{i}.0")
        tree[f"project_{i}"] = _pointwise(tensors, f"{r}layers.{i}.projection")
        tree[f"conv_{i}"] = _conv(tensors, f"neck.convs.{i}")
        units = (1, 2) if i else (2,)  # layer 0's first unit is never used
        tree[f"fusion_{i}"] = {"project": _pointwise(tensors, f"{f}{i}.projection")} | {
            f"unit{u}": {f"conv{c}": _conv(tensors, f"{f}{i}.residual_layer{u}.convolution{c}") for c in (1, 2)}
            for u in units
        }
    for i in (0, 1):
        kernel = tensors[f"{r}layers.{i}.resize.weight"].transpose(0, 2, 3, 1)
        tree[f"resize_{i}"] = {"kernel": kernel, "bias": tensors[f"{r}layers.{i}.resize.bias"]}
    tree["resize_3"] = _conv(tensors, f"{r}layers.3.resize")
    return tree


def depth_head_tree(tensors):
    """Our depth head's parameters from a DPTForDepthEstimation's."""
    return {
        "conv1": _conv(tensors, "head.head.0"),
        "conv2": _conv(tensors, "head.head.2"),
        "conv3": _pointwise(tensors, "head.head.4"),
    }
