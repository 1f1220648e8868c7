"""Our backbone against transformers' port, every parameter random, block by block in float32.

Run with `-s` for the tables. An error is the largest difference over all tokens and channels, each
channel as a share of its own scale, the root mean square over the reference's tokens: an outlier
channel then neither hides the others nor fills the table with its own rounding.
"""

import dataclasses
import gc

import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import numpy as np
import port
import torch_params

from jdepth.models import BACKBONES, VisionTransformer, cast_frozen

TOLERANCE = 1e-4
SIZES = ((518, 518), (420, 546), (490, 644))


def every_block(config):
    return dataclasses.replace(config, taps=tuple(range(config.depth)))


def images_of(size, seed):
    return np.random.default_rng(seed).standard_normal((1, *size, 3)).astype(np.float32)


def reference_states(model, images):
    """Hidden states after every block, then the normalised tokens: arrays (1, tokens, D)."""
    with torch.no_grad():
        inputs = torch.from_numpy(images).to(next(model.parameters()).dtype)
        out = model(inputs.permute(0, 3, 1, 2), output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    return [state.numpy() for state in (*out.hidden_states[1:], out.last_hidden_state)]


def our_states(model, params, images):
    """The same from ours: class token and patches of every block, then all normalised tokens."""
    images = images.astype(np.float64 if jax.tree.leaves(params)[0].dtype == np.float64 else np.float32)
    run = jax.jit(lambda p, x: model.apply({"params": p}, x, final_norm=True))
    with jax.default_matmul_precision("highest"):
        taps, tokens = run(params, images)
    states = [np.concatenate([cls[:, None], patches.reshape(1, -1, cls.shape[-1])], 1) for patches, cls in taps]
    return [np.asarray(state, images.dtype) for state in states] + [np.asarray(tokens)]


def errors(reference, ours, registers):
    """Per state, largest difference as a share of the reference's root mean square, in that channel and in
    the whole block."""
    shares, of_block = [], []
    for i, (a, b) in enumerate(zip(reference, ours, strict=True)):
        if registers and i < len(reference) - 1:
            a = np.concatenate([a[:, :1], a[:, 1 + registers :]], axis=1)
        assert a.shape == b.shape and np.isfinite(b).all()
        square = np.square(a, dtype=np.float64).mean((0, 1))
        shares.append(float((np.abs(a - b) / np.sqrt(square)).max()))
        of_block.append(float(np.abs(a - b).max() / np.sqrt(square.mean())))
    return shares, of_block


def report(title, shares):
    blocks = " ".join(f"{share:.1e}" for share in shares[:-1])
    print(f"\n{title}: largest {max(shares):.2e}\n  blocks {blocks}\n  final norm {shares[-1]:.1e}")


def compare(config, sizes, seed, outliers=False, double=(False, False)):
    """Largest error over blocks, by size; `double`: whether the reference and ours compute in float64. The reference
    is freed before ours starts: the largest model would not fit twice."""
    torch.manual_seed(seed)
    model = port.backbone(config)
    torch_params.randomise(model, seed, outliers)
    if not config.registers:
        port.use_original_tables(model.embeddings)
    inputs = [images_of(size, seed + i) for i, size in enumerate(sizes)]
    tensors = torch_params.published_tensors(model)
    if double[0]:
        model = model.double()
    references = [reference_states(model, images) for images in inputs]
    del model
    gc.collect()
    dtype = jnp.float64 if double[1] else jnp.float32
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), torch_params.backbone_tree(tensors, config.depth))
    del tensors
    gc.collect()
    ours = VisionTransformer(every_block(config), dtype)
    worst = {}
    for size, images, reference in zip(sizes, inputs, references):
        shares, of_block = errors(reference, our_states(ours, params, images), config.registers)
        report(f"{config.name}{' with outliers' if outliers else ''} {size[0]}x{size[1]} {jnp.dtype(dtype)}", shares)
        print(f"  as a share of the whole block's scale: largest {max(of_block):.2e}")
        worst[size] = max(shares)
    return worst


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg4"])
def test_small(name):
    assert max(compare(BACKBONES[name], SIZES, seed=1).values()) <= TOLERANCE


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg4"])
def test_small_with_outlier_channels(name):
    assert max(compare(BACKBONES[name], SIZES[1:2], seed=2, outliers=True).values()) <= TOLERANCE


def test_giant_with_four_blocks():
    config = dataclasses.replace(BACKBONES["dinov2_vitg14"], name="dinov2_vitg14, 4 blocks", depth=4)
    assert max(compare(config, SIZES[1:2], seed=3).values()) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("size", "bl")
@pytest.mark.parametrize("registers", ["", "_reg4"])
def test_base_and_large(size, registers):
    config = BACKBONES[f"dinov2_vit{size}14{registers}"]
    assert max(compare(config, SIZES, seed=4, outliers=True).values()) <= TOLERANCE


@pytest.mark.slow
def test_giant():
    assert max(compare(BACKBONES["dinov2_vitg14"], SIZES, seed=5).values()) <= TOLERANCE


@pytest.fixture(scope="module")
def giant_with_outliers():
    """Ours in float32 against PyTorch in float64: largest error by size."""
    return compare(BACKBONES["dinov2_vitg14"], SIZES, seed=5, outliers=True, double=(True, False))


# What float32 itself loses here: PyTorch's own is 4.2e-5, 5.4e-5 and 1.7e-4 away from its float64 at these sizes, and
# XLA's products on a CPU round 1.6 times as much as MKL's. In float64 the two agree to 1e-10, below.
# At 420x546 ours is 1.2e-4 away, which this bound does not allow.
@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_giant_with_outlier_channels(giant_with_outliers, size):
    assert giant_with_outliers[size] <= TOLERANCE


@pytest.mark.slow
def test_giant_in_float64(x64):
    worst = compare(BACKBONES["dinov2_vitg14"], SIZES[2:], seed=5, outliers=True, double=(True, True))
    assert max(worst.values()) <= 1e-10


@pytest.mark.parametrize("outliers", [False, True])
def test_bfloat16_features(outliers):
    """Error per block of matrices in bfloat16 against float32: printed, and bounded loosely."""
    config = BACKBONES["dinov2_vits14"]
    model = port.backbone(config)
    torch_params.randomise(model, 6, outliers)
    params = torch_params.backbone_tree(torch_params.published_tensors(model), config.depth)
    params, images = jax.tree.map(jnp.asarray, params), images_of((224, 280), 6)
    exact = our_states(VisionTransformer(every_block(config)), params, images)
    half = our_states(
        VisionTransformer(every_block(config), jnp.bfloat16), cast_frozen(params, jnp.bfloat16), images
    )
    shares = [float(np.sqrt(np.square(a - b).mean() / np.square(a).mean())) for a, b in zip(exact, half)]
    report(f"bfloat16, {'with' if outliers else 'no'} outliers (root mean square error)", shares)
    assert max(shares) <= 0.05
