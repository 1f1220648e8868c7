"""Depth maps against transformers' DPTForDepthEstimation on a DINOv2 backbone, every parameter random.

Errors are the largest difference as a share of the reference map's largest depth; `-s` prints them,
with the largest relative difference of a single pixel beside it.
"""

import gc

import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import numpy as np
import port
import torch_params

from jdepth.models import BACKBONES, ViTConfig, build

TOLERANCE = 1e-4
MIN_DEPTH = 0.001


def reference_maps(model, inputs):
    maps = []
    for images in inputs:
        with torch.no_grad():
            depth = model(torch.from_numpy(images).permute(0, 3, 1, 2)).predicted_depth
        maps.append(depth.numpy() + MIN_DEPTH)  # the port leaves it out
    return maps


def compare(config, sizes, seed, channels=256):
    """Largest error per size; the reference is freed before ours starts."""
    model = port.depth_model(config, channels)
    torch_params.randomise(model, seed)
    port.use_original_tables(model.backbone.embeddings)
    with torch.no_grad():  # into the range where the last ReLU leaves most of the map alive
        model.head.head[4].bias.fill_(1.0)
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((1, *size, 3)).astype(np.float32) for size in sizes]
    references = reference_maps(model, inputs)
    tensors = torch_params.published_tensors(model)
    del model
    gc.collect()
    params = {
        "backbone": torch_params.backbone_tree(tensors, config.depth, "backbone."),
        "decoder": torch_params.decoder_tree(tensors),
        "depth_head": torch_params.depth_head_tree(tensors),
    }
    params = jax.tree.map(jnp.asarray, params)
    del tensors
    gc.collect()
    ours = build(config, channels=channels, min_depth=MIN_DEPTH)
    worst = []
    for size, images, reference in zip(sizes, inputs, references):
        with jax.default_matmul_precision("highest"):
            depth = np.asarray(jax.jit(ours.__call__)(params, images))
        assert depth.shape == reference.shape
        assert (reference > 0.01).mean() > 0.5 and reference.std() > 0.02 * reference.mean()
        difference = np.abs(depth - reference)
        worst.append(float(difference.max() / reference.max()))
        print(
            f"\n{config.name} {size[0]}x{size[1]} -> {depth.shape[1]}x{depth.shape[2]}: "
            f"{worst[-1]:.1e} of the largest depth, {(difference / reference).max():.1e} of a pixel's own; "
            f"depth {reference.min():.3f} to {reference.max():.3f}, mean {reference.mean():.3f}"
        )
    return max(worst)


def test_small():
    assert compare(BACKBONES["dinov2_vits14"], ((518, 518), (420, 546)), seed=1) <= TOLERANCE


def test_odd_grids_and_other_widths():
    """Grids odd both ways, one way and none; the rounding of ×0.5 levels differs in each."""
    config = ViTConfig("narrow", width=64, depth=4, heads=2, hidden=256, taps=(0, 1, 2, 3), grid=5)
    assert compare(config, ((98, 126), (84, 98), (84, 112), (14, 14)), seed=2) <= TOLERANCE


@pytest.mark.slow
def test_giant():
    assert compare(BACKBONES["dinov2_vitg14"], ((518, 518),), seed=3) <= TOLERANCE
