"""Depth Anything, V1 and V2, relative and metric, against transformers' port, every parameter random.

The port writes its file and config.json, our loader reads them, and the maps are compared: names, layouts,
and arithmetic are checked against code that is not ours, taps against numbers that `port` writes for itself. Errors are the largest difference as a
share of the reference map's largest value.
"""

import gc
import itertools

import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import numpy as np
import port
import torch_params

from jdepth import families, weights
from jdepth.models import BACKBONES
from jdepth.weights.catalogue import DEPTH_ANYTHING_DECODERS, MODELS

TOLERANCE = 1e-4
MODELS_OF = {
    size: [f"depth_anything_vit{size}14", f"depth_anything_v2_vit{size}"]
    + [f"depth_anything_v2_metric_{data}_vit{size}" for data in ("hypersim", "vkitti")]
    for size in "sbl"
}


def make_port(name, seed):
    """(the port of a released model with random parameters, its size's letter)."""
    released = MODELS[name]
    config = BACKBONES[released.backbone]
    taps = range(config.depth - 4, config.depth) if released.version == 1 else port.taps_of(config)
    channels, levels = DEPTH_ANYTHING_DECODERS[released.backbone.removeprefix("dinov2_vit")[0]]
    model = port.depth_anything(config, taps, channels, levels, released.max_depth)
    torch_params.randomise(model, seed)
    with torch.no_grad():  # into the range where the last ReLU leaves most of the map alive
        model.head.conv3.bias.fill_(4.0 if released.max_depth is None else 0.0)
    return model


def compare(name, sizes, tmp_path, seed):
    """Largest error over the sizes; the reference is freed before ours starts."""
    model = make_port(name, seed)
    model.save_pretrained(tmp_path)
    port.use_original_tables(model.backbone.embeddings)
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((1, *size, 3)).astype(np.float32) for size in sizes]
    references = []
    for images in inputs:
        with torch.no_grad():
            references.append(model(torch.from_numpy(images).permute(0, 3, 1, 2)).predicted_depth.numpy())
    del model
    gc.collect()
    loaded = weights.load(tmp_path)
    assert loaded.info.model == name  # told by config.json alone
    ours = families.build(loaded.info, jnp.float32, "plain").model
    params = jax.tree.map(jnp.asarray, loaded.params)
    worst = 0.0
    for size, images, reference in zip(sizes, inputs, references):
        with jax.default_matmul_precision("highest"):
            values = np.asarray(jax.jit(ours.__call__)(params, images))
        assert values.shape == reference.shape == (1, *size)
        assert (reference > 0.01).mean() > 0.5 and reference.std() > 0.02 * reference.mean()
        error = float(np.abs(values - reference).max() / reference.max())
        print(f"\n{name} {size[0]}x{size[1]}: {error:.1e} of the largest value; mean {reference.mean():.3f}")
        worst = max(worst, error)
    return worst


@pytest.mark.parametrize("name", MODELS_OF["s"])
def test_small(name, tmp_path):
    assert compare(name, ((518, 518), (238, 322)), tmp_path, seed=4) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS_OF["b"], *MODELS_OF["l"], "depth_anything_v2_vitg"])
def test_larger(name, tmp_path):
    assert compare(name, ((518, 518),), tmp_path, seed=5) <= TOLERANCE


def test_swapped_tensors_are_noticed(tmp_path):
    """Every pair of equal-shaped tensors of decoder and head (the encoder's: test_parity_mutation.py)."""
    name, size = "depth_anything_v2_vits", (70, 98)
    model = make_port(name, 6)
    model.save_pretrained(tmp_path)
    port.use_original_tables(model.backbone.embeddings)
    images = np.random.default_rng(6).standard_normal((1, *size, 3)).astype(np.float32)
    with torch.no_grad():
        reference = model(torch.from_numpy(images).permute(0, 3, 1, 2)).predicted_depth.numpy()
    loaded = weights.load(tmp_path)
    ours = families.build(loaded.info, jnp.float32, "plain").model
    taps = jax.jit(ours.features)(loaded.params["backbone"], images)

    @jax.jit
    def rest(flat):
        params = weights.unflatten(flat)
        return ours.depth(params["depth_head"], ours.decode(params["decoder"], taps))

    def error(flat):
        return float(np.abs(np.asarray(rest(flat)) - reference).max() / reference.max())

    parts = {part: loaded.params[part] for part in ("decoder", "depth_head")}
    flat = weights.flatten(parts)
    assert error(flat) <= TOLERANCE
    pairs = [(a, b) for a, b in itertools.combinations(flat, 2) if flat[a].shape == flat[b].shape]
    assert len(pairs) > 200
    unnoticed = [pair for pair in pairs if error(flat | dict(zip(pair, (flat[p] for p in pair[::-1])))) <= 10 * TOLERANCE]
    # Both are added to the running map between two stages, so that only their sum matters.
    sums = {(f"decoder/fusion_{i}/project/bias", f"decoder/fusion_{i + 1}/unit1/conv2/bias") for i in range(3)}
    assert set(unnoticed) == sums
