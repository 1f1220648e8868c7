"""The block comparison notices every mix-up of two equal-shaped tensors."""

import functools
import itertools

import pytest

torch = pytest.importorskip("torch")

import jax
import numpy as np
import port
import torch_params

from jdepth.models import ViTConfig, VisionTransformer
from test_parity_backbone import TOLERANCE, errors, every_block, images_of, reference_states

SMALL = {
    "mlp": ViTConfig("small mlp", width=64, depth=2, heads=2, hidden=256, taps=(0, 1), grid=5),
    "swiglu": ViTConfig("small swiglu", width=64, depth=2, heads=2, hidden=176, taps=(0, 1), ffn="swiglu", grid=5),
}
BLOCK = "encoder.layer.1."


@functools.cache
def setting(ffn):
    """Tensors, images and reference states of a two-block model at 5×5 patches."""
    model = port.backbone(SMALL[ffn])
    torch_params.randomise(model, 7)
    images = images_of((70, 70), 7)
    return torch_params.published_tensors(model), images, reference_states(model, images)


@functools.cache
def compiled(ffn):
    module = VisionTransformer(every_block(SMALL[ffn]))
    return jax.jit(lambda params, images: module.apply({"params": params}, images, final_norm=True))


def largest_error(ffn, tensors):
    _, images, reference = setting(ffn)
    taps, tokens = compiled(ffn)(torch_params.backbone_tree(tensors, 2), images)
    ours = [np.concatenate([cls[:, None], patches.reshape(1, -1, 64)], 1) for patches, cls in taps]
    shares, _ = errors(reference, [*ours, np.asarray(tokens)], registers=0)
    return max(shares)


ATTENTION = [f"attention.{part}" for part in ("attention.query", "attention.key", "attention.value", "output.dense")]
OUTPUT = {"mlp": "mlp.fc2", "swiglu": "mlp.weights_out"}


def pairs():
    """All pairs of equal shape: four square matrices, eleven vectors as wide as the model."""
    for ffn in SMALL:
        matrices = [f"{name}.weight" for name in ATTENTION]
        vectors = [f"{name}.bias" for name in (*ATTENTION, OUTPUT[ffn], "norm1", "norm2")]
        vectors += ["norm1.weight", "norm2.weight", "layer_scale1.lambda1", "layer_scale2.lambda1"]
        for group in (matrices, vectors):
            yield from ((ffn, a, b) for a, b in itertools.combinations(group, 2))


@pytest.mark.parametrize("ffn", SMALL)
def test_pairs_are_complete(ffn):
    tensors = setting(ffn)[0]
    names = [name for name in tensors if name.startswith(BLOCK)]
    equal = [pair for pair in itertools.combinations(names, 2) if len({tensors[name].shape for name in pair}) == 1]
    assert len(equal) == sum(pair[0] == ffn for pair in pairs())


@pytest.mark.parametrize("ffn", SMALL)
def test_unchanged_passes(ffn):
    assert largest_error(ffn, setting(ffn)[0]) <= TOLERANCE


@pytest.mark.parametrize(("ffn", "a", "b"), list(pairs()))
def test_swapped_tensors_fail(ffn, a, b):
    tensors = dict(setting(ffn)[0])
    a, b = BLOCK + a, BLOCK + b
    tensors[a], tensors[b] = tensors[b], tensors[a]
    assert largest_error(ffn, tensors) > 10 * TOLERANCE


def test_swapped_halves_of_swiglu_fail():
    tensors = dict(setting("swiglu")[0])
    for leaf in ("weight", "bias"):
        name = f"{BLOCK}mlp.weights_in.{leaf}"
        tensors[name] = np.concatenate(np.split(tensors[name], 2)[::-1])
    assert largest_error("swiglu", tensors) > 10 * TOLERANCE


def test_lost_final_norm_fails():
    tensors = dict(setting("mlp")[0])
    tensors["layernorm.weight"], tensors["layernorm.bias"] = tensors["layernorm.bias"], tensors["layernorm.weight"]
    assert largest_error("mlp", tensors) > 10 * TOLERANCE
