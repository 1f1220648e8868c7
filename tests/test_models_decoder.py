"""The DPT decoder: sizes, counts, and each exact saving against the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth.models import DPTDecoder, build
from jdepth.models.dpt import Expand, Fusion, Readout, ResidualUnit
from jdepth.models.layers import Conv3x3
from jdepth.models.resize import bilinear


def randomised(module, *inputs, seed=0):
    """Float64 parameters, none of them zero."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape)), shapes)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


# Numbers of the DINOv2 recipe: head without conv_depth, and conv_depth alone.
@pytest.mark.parametrize(
    ("name", "decoder"),
    [("dinov2_vits14", 13_629_408), ("dinov2_vitb14", 23_861_952), ("dinov2_vitl14", 33_858_048), ("dinov2_vitg14", 61_468_800)],
)
def test_parameter_counts(name, decoder):
    shapes = jax.eval_shape(lambda key: build(name).init(key, (42, 42)), jax.random.key(0))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(shapes["decoder"]) == decoder
    assert count(shapes["depth_head"]) == 331_969


def test_parameter_names_and_shapes():
    shapes = jax.eval_shape(lambda key: build("dinov2_vits14").init(key, (42, 42)), jax.random.key(0))["decoder"]
    tree = jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert set(tree) == {f"{kind}_{i}" for kind in ("readout", "project", "conv", "fusion") for i in range(4)} | {
        "resize_0", "resize_1", "resize_3", "project",
    }  # fmt: skip
    assert tree["resize_0"] == {"kernel": (48, 4, 4, 48), "bias": (48,)}
    assert tree["resize_1"] == {"kernel": (96, 2, 2, 96), "bias": (96,)}
    assert tree["resize_3"] == {"kernel": (3, 3, 384, 384), "bias": (384,)}
    assert tree["readout_2"] == {"kernel": (768, 384), "bias": (384,)}
    assert tree["conv_1"] == {"kernel": (3, 3, 96, 256)}
    assert set(tree["fusion_0"]) == {"unit2", "project"}
    unit = {"conv1": {"kernel": (3, 3, 256, 256)}, "conv2": {"kernel": (3, 3, 256, 256)}}
    assert tree["fusion_3"] == {"unit1": unit, "unit2": unit, "project": {"kernel": (256, 256), "bias": (256,)}}


@pytest.mark.parametrize(
    ("size", "map_size"),
    [((416, 544), (240, 320)), ((480, 640), (288, 368)), ((352, 704), (208, 416)), ((352, 1216), (208, 704)), ((518, 518), (304, 304)), ((14, 14), (16, 16))],
)  # fmt: skip
def test_output_sizes(size, map_size):
    model = build("vit_nano14", channels=32)
    params = jax.eval_shape(lambda key: model.init(key, size), jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    taps = jax.eval_shape(model.features, params["backbone"], images)
    assert jax.eval_shape(model.decode, params["decoder"], taps).shape == (2, *map_size, 32)
    depth = jax.eval_shape(model.__call__, params, images)
    assert depth.shape == (2, 2 * map_size[0], 2 * map_size[1]) and depth.dtype == jnp.float32


def test_readout_equals_concatenation(x64):
    patches, cls = normal(0, 2, 3, 4, 6), normal(1, 2, 6)
    params = randomised(Readout(), patches, cls)
    both = jnp.concatenate([patches, jnp.broadcast_to(cls[:, None, None], patches.shape)], axis=-1)
    expected = jax.nn.gelu(both @ params["kernel"] + params["bias"], approximate=False)
    np.testing.assert_allclose(Readout().apply({"params": params}, patches, cls), expected, atol=1e-13)


@pytest.mark.parametrize("factor", [2, 4])
def test_expansion_equals_transposed_convolution(x64, factor):
    x = normal(0, 2, 3, 5, 4)
    params = randomised(Expand(factor), x)
    kernel = params["kernel"].transpose(1, 2, 0, 3)
    # JAX's operator slides the kernel as it is over the dilated input: PyTorch's, spatially flipped.
    layout = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_transpose(x, kernel[::-1, ::-1], (factor, factor), "VALID", dimension_numbers=layout)
    out = Expand(factor).apply({"params": params}, x)
    np.testing.assert_allclose(out, expected + params["bias"], atol=1e-13)
    direct = x[1, 2, 3] @ params["kernel"][:, 1, 0] + params["bias"]
    np.testing.assert_allclose(out[1, 2 * factor + 1, 3 * factor], direct, atol=1e-13)


@pytest.mark.parametrize("with_lateral", [False, True])
def test_projection_commutes_with_upsampling(x64, with_lateral):
    """The released order, upsample first, gives the same map."""
    x = normal(0, 2, 4, 5, 6)
    lateral = normal(1, 2, 3, 5, 6) if with_lateral else None
    params = randomised(Fusion(), x, lateral)
    unit = lambda name, x: ResidualUnit().apply({"params": params[name]}, x)
    y = x if lateral is None else x + unit("unit1", bilinear(lateral, (4, 5), align_corners=False))
    y = bilinear(unit("unit2", y), (8, 10), align_corners=True)
    expected = y @ params["project"]["kernel"] + params["project"]["bias"]
    out = jax.jit(lambda *inputs: Fusion().apply({"params": params}, *inputs))(x, lateral)
    np.testing.assert_allclose(out, expected, atol=1e-12)


def test_residual_unit_adds_the_input_before_its_relu(x64):
    x = normal(0, 1, 3, 3, 2)
    params = jax.tree.map(jnp.zeros_like, randomised(ResidualUnit(), x))
    np.testing.assert_array_equal(ResidualUnit().apply({"params": params}, x), x)


def test_stride_two_convolution_pads_both_sides(x64):
    """At even sizes too: out[0] reads the padding row, out = ceil(n/2)."""
    for size in (4, 5):
        x = normal(0, 1, size, size, 1)
        module = Conv3x3(1, stride=2)
        params = randomised(module, x)
        out = module.apply({"params": params}, x)
        assert out.shape[1:3] == ((size + 1) // 2,) * 2
        corner = (x[0, :2, :2, 0] * params["kernel"][1:, 1:, 0, 0]).sum() + params["bias"][0]
        np.testing.assert_allclose(out[0, 0, 0, 0], corner, atol=1e-13)


def test_initialisation():
    taps = [(jax.ShapeDtypeStruct((1, 2, 2, 128), jnp.float32), jax.ShapeDtypeStruct((1, 128), jnp.float32))] * 4
    params = DPTDecoder(256, (16, 32, 64, 128)).lazy_init(jax.random.key(0), taps)["params"]
    kernels = {"project_1": 2 / 32, "conv_2": 2 / (9 * 256), "project": 2 / (9 * 256)}
    for name, variance in kernels.items():
        np.testing.assert_allclose(params[name]["kernel"].std(), variance**0.5, rtol=0.03)
    np.testing.assert_allclose(params["fusion_1"]["unit1"]["conv2"]["kernel"].std(), (2 / (9 * 256)) ** 0.5, rtol=0.01)
    np.testing.assert_allclose(params["fusion_0"]["project"]["kernel"].std(), (2 / 256) ** 0.5, rtol=0.02)
    for zero in (params["project_1"]["bias"], params["project"]["bias"], params["fusion_2"]["project"]["bias"]):
        assert (zero == 0.0).all()
    for name, fan in {"readout_0": 256, "resize_0": 16 * 16, "resize_1": 32 * 4, "resize_3": 128 * 9}.items():
        for leaf in params[name].values():
            assert 0.7 * fan**-0.5 < jnp.abs(leaf).max() <= fan**-0.5
            np.testing.assert_allclose(leaf.std(), (3 * fan) ** -0.5, rtol=0.3)


def test_bfloat16_map_and_float32_parameters():
    model = build("vit_nano14", channels=16, dtype=jnp.bfloat16)
    params = jax.eval_shape(lambda key: model.init(key, (28, 42)), jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    taps = jax.eval_shape(model.features, params["backbone"], jax.ShapeDtypeStruct((1, 28, 42, 3), jnp.float32))
    features = jax.eval_shape(model.decode, params["decoder"], taps)
    assert features.dtype == jnp.bfloat16
    assert jax.eval_shape(model.depth, params["depth_head"], features).dtype == jnp.float32


def test_wrong_number_of_taps():
    with pytest.raises(ValueError, match="4 taps"):
        DPTDecoder().init(jax.random.key(0), [(jnp.ones((1, 2, 2, 8)), jnp.ones((1, 8)))])
