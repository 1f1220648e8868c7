"""DINOv2's linear depth heads against transformers' backbone and a head put together from PyTorch's operations.

The official file format is written by PyTorch itself and read by our loader. Errors are the largest
difference as a share of the reference map's largest depth.
"""

import gc

import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import numpy as np
import port
import torch_params
from torch.nn.functional import conv2d, interpolate

from jdepth import families, weights
from jdepth.models import BACKBONES

TOLERANCE = 1e-4
BINS = 256


def head_of(width, taps, seed):
    draw = torch.Generator().manual_seed(seed)
    inputs = 2 * width * taps
    return {
        "decode_head.conv_depth.weight": torch.randn(BINS, inputs, 1, 1, generator=draw) / inputs**0.5,
        "decode_head.conv_depth.bias": 0.1 * torch.randn(BINS, generator=draw),
    }


def reference_depth(model, head, images, blocks, furthest):
    """As the released head works: features beside the class token, ×4, joined, 1×1 convolution, weighted bins."""
    padded = torch.from_numpy(np.asarray(images)).permute(0, 3, 1, 2)
    grid = tuple(side // 14 for side in padded.shape[2:])
    with torch.no_grad():
        states = model(padded, output_hidden_states=True).hidden_states
        levels = []
        for block in blocks:
            tokens = states[block + 1]
            patches = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
            both = torch.cat([patches, tokens[:, :1].transpose(1, 2)[..., None].expand_as(patches)], dim=1)
            levels.append(interpolate(both, scale_factor=4, mode="bilinear", align_corners=False))
        scores = conv2d(
            torch.cat(levels, dim=1), head["decode_head.conv_depth.weight"], head["decode_head.conv_depth.bias"]
        )
        share = torch.relu(scores) + 0.1
        share = share / share.sum(1, keepdim=True)
        return torch.einsum("bkhw,k->bhw", share, torch.linspace(0.001, furthest, BINS)).numpy()


def compare(backbone, taps, scene, tmp_path, seed, size=(518, 518)):
    config = BACKBONES[backbone]
    model = port.backbone(config)
    torch_params.randomise(model, seed)
    port.use_original_tables(model.embeddings)
    blocks = port.taps_of(config) if taps == 4 else (config.depth - 1,)
    furthest = {"nyu": 10.0, "kitti": 80.0}[scene]
    head = head_of(config.width, taps, seed)
    images = np.random.default_rng(seed).standard_normal((1, *size, 3)).astype(np.float32)
    reference = reference_depth(model, head, images, blocks, furthest)
    file = tmp_path / f"{backbone}_{scene}_linear{taps if taps == 4 else ''}_head.pth"
    torch.save({"meta": {"epoch": 3}, "state_dict": head}, file)
    tree = torch_params.backbone_tree(torch_params.published_tensors(model), config.depth)
    del model
    gc.collect()
    loaded = weights.load(file)
    assert (loaded.info.backbone, loaded.info.max_depth) == (backbone, furthest)
    ours = families.build(loaded.info, jnp.float32, "plain").model
    params = jax.tree.map(jnp.asarray, {"backbone": tree, **loaded.params})
    with jax.default_matmul_precision("highest"):
        depth = np.asarray(jax.jit(ours.__call__)(params, images))
    assert depth.shape == reference.shape
    assert reference.std() > 0.005 * reference.mean()
    error = float(np.abs(depth - reference).max() / reference.max())
    print(f"\n{file.stem}: {error:.1e} of the largest depth; {reference.min():.3f} to {reference.max():.3f} m")
    return error


@pytest.mark.parametrize(("taps", "scene", "size"), [(1, "nyu", (518, 518)), (4, "kitti", (210, 434))])
def test_small(taps, scene, size, tmp_path):
    assert compare("dinov2_vits14", taps, scene, tmp_path, 6, size) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("backbone", ["dinov2_vitb14", "dinov2_vitl14", "dinov2_vitg14"])
def test_larger(backbone, taps, tmp_path):
    assert compare(backbone, taps, "nyu", tmp_path, 7) <= TOLERANCE
