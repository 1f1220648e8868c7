"""A frozen backbone's products in float8: rounding, scales, independence of what else is in a batch, mistakes."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny_config import PICO, plain
from tiny_run import save_backbone

import jdepth
from jdepth import compilation, config, dry_run, experiment, kernels, predictor, train, weights
from jdepth.errors import UserError
from jdepth.models import build, cast_frozen, float8
from jdepth.models.vit import VisionTransformer

KINDS = float8.KINDS["mlp"]


@pytest.fixture(scope="module")
def outliers():
    """(activations with one huge channel, kernel), float32."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((2, 50, 96)).astype(np.float32)
    x[..., 7] *= 300
    x[1, 3] = 0
    return x, draw.standard_normal((96, 40)).astype(np.float32) * np.geomspace(1e-3, 1, 40, dtype=np.float32)


def _relative(found, exact) -> float:
    return float(np.sqrt(np.square(np.float64(found) - exact).mean() / np.square(exact).mean()))


def test_product_is_that_of_the_rounded_operands(outliers):
    x, kernel = outliers
    held = float8.quantise_kernel(kernel)
    assert held["kernel"].shape == (40, 96) and held["kernel"].dtype == ml_dtypes.float8_e4m3fn
    assert held["scale"].shape == (40,) and held["scale"].dtype == np.float32
    found = jax.jit(lambda x: float8.product(x, held["kernel"], held["scale"], jnp.float32))(x)
    largest = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-30)
    rounded = (x * (448 / largest)).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    weight = (kernel / np.abs(kernel).max(0) * 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    exact = rounded @ weight * (largest / 448) * (np.abs(kernel).max(0) / 448)
    # Where a quotient lies between two float8 numbers, its last bit decides: a few entries may round otherwise.
    assert _relative(found, exact) < 2e-3
    assert not np.asarray(found)[1, 3].any()


def test_every_channel_and_every_token_keeps_its_own_accuracy(outliers):
    """Three bits of mantissa: each operand is off by at most 2^-4, also of small channels and beside huge ones."""
    x, kernel = outliers
    held = float8.quantise_kernel(kernel)
    found = np.asarray(float8.product(jnp.asarray(x), held["kernel"], held["scale"], jnp.float32))
    exact = np.float64(x) @ kernel
    assert max(_relative(found[..., c], exact[..., c]) for c in range(40)) < 2**-4


def test_numpy_and_jax_round_alike(outliers):
    one, other = float8.quantise_kernel(outliers[1]), float8.quantise_kernel(jnp.asarray(outliers[1]))
    assert isinstance(one["kernel"], np.ndarray) and isinstance(other["kernel"], jax.Array)
    np.testing.assert_array_equal(one["scale"], other["scale"])
    # Their quotients may differ in the last bit, which decides between two float8 numbers once in a million.
    assert np.mean(one["kernel"] != np.asarray(other["kernel"])) < 1e-3


def test_a_cast_backbone_is_what_was_read_from_its_file():
    """Host arrays are rounded on the host, wherever they are read: large enough that XLA's division would show."""
    kernel = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32)
    held = float8.quantise_kernel(kernel)
    cast = cast_frozen({"blocks_0": {"mlp": {"fc1": {"kernel": kernel}}}}, jnp.bfloat16, ("fc1",))
    for name, array in cast["blocks_0"]["mlp"]["fc1"].items():
        assert isinstance(array, jax.Array)
        np.testing.assert_array_equal(np.asarray(array), held[name])


@pytest.fixture(scope="module")
def backbone():
    shape = dataclasses.replace(PICO, width=64, hidden=128)
    model = build(shape)
    params = model.init(jax.random.key(0), (28, 28))["backbone"]
    images = jax.random.normal(jax.random.key(1), (4, 56, 42, 3))
    return shape, params, images


def _taps(shape, params, images, kinds, dtype=jnp.float32):
    model = VisionTransformer(shape, dtype, float8=tuple(kinds))
    features = jax.jit(lambda p, x: model.apply({"params": p}, x))(cast_frozen(params, dtype, kinds), images)
    return jax.tree.map(np.asarray, features)


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_each_kind_is_rounded_and_nothing_else(kinds, dtype, backbone):
    shape, params, images = backbone
    exact = _taps(shape, params, images, ()).taps[-1][0]
    found = _taps(shape, params, images, kinds, dtype).taps[-1][0]
    assert found.dtype == dtype
    assert 1e-4 < _relative(found, exact) < 0.05


def test_features_do_not_depend_on_how_large_the_rest_of_the_batch_is(backbone):
    """Small enough here that every sum is the same to its last bit; where it is not, float8 rounding is what is left."""
    shape, params, images = backbone
    images = images.at[1].multiply(50)
    whole = _taps(shape, params, images, KINDS)
    packed = _taps(shape, params, (images[:1], images[1:]), KINDS)
    for (patches, token), (one, own), (others, theirs) in zip(whole.taps, packed[0].taps, packed[1].taps, strict=True):
        np.testing.assert_allclose(np.concatenate([one, others]), patches, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.concatenate([own, theirs]), token, rtol=1e-5, atol=1e-5)


def test_swiglu_has_its_own_kinds(backbone):
    shape, _, images = backbone
    shape = dataclasses.replace(shape, ffn="swiglu")
    params = build(shape).init(jax.random.key(0), (28, 28))["backbone"]
    kinds = float8.KINDS["swiglu"]
    held = cast_frozen(params, jnp.bfloat16, kinds)["blocks_0"]
    assert {held[part][name]["kernel"].dtype for part, name in (("attn", "qkv"), ("mlp", "w12"), ("mlp", "w3"))} == {
        jnp.dtype(float8.TYPE)
    }
    assert _relative(_taps(shape, params, images, kinds).taps[-1][0], _taps(shape, params, images, ()).taps[-1][0]) < 0.05
    with pytest.raises(UserError, match="has no matrices fc1; it has qkv, proj, w12, w3"):
        build(shape, float8=("fc1",))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"backbone.float8": ("qkv", "fc3")}, "'fc3' is not one of qkv, proj, fc1, fc2, w12, w3"),
        ({"backbone.float8": ("qkv",)}, "needs config.backbone.train=frozen"),
        ({"backbone.float8": (1,)}, "not a list of names"),
        ({"backbone.float8": ("qkv", "qkv")}, "more than once"),
        ({"backbone.float8": ("qkv",), "backbone.train": "frozen", "precision": "float64"}, "precision=bfloat16 or float32"),
    ],
)
def test_mistakes(changes, expected, tmp_path):
    with pytest.raises(UserError, match=expected) as caught:
        plain(tmp_path, **changes)
    assert "config.backbone.float8" in str(caught.value)
    assert tuple(dict.fromkeys(name for names in float8.KINDS.values() for name in names)) == config.FLOAT8


@pytest.mark.slow
def test_a_run_holds_its_frozen_backbone_in_float8(quick, tmp_path, capsys):
    file = save_backbone(tmp_path / "b.safetensors")
    given = {"backbone.train": "frozen", "backbone.weights": str(file), "steps": 2, "log.every": 2, "look_ahead": 2}
    given |= {"checkpoint.every": 2, "evaluate.every": 2, "evaluate.rooms": 3}
    rounded = plain(tmp_path / "run", **given, **{"backbone.float8": KINDS})
    held = {}
    for name, own in (("whole", plain(tmp_path, **given)), ("rounded", rounded)):
        model = experiment.build_model(own)
        start = experiment.initial_params(own, model, experiment.build_tasks(own, model, (13,)))
        held[name] = start.frozen["backbone"]["blocks_1"]["attn"]["qkv"]
        assert start.fingerprint == weights.fingerprint(weights.load(file).params["backbone"])
    assert held["whole"]["kernel"].dtype == jnp.float32 and held["rounded"]["kernel"].dtype == float8.TYPE
    np.testing.assert_allclose(
        held["rounded"]["kernel"].astype(jnp.float32).T * held["rounded"]["scale"], held["whole"]["kernel"],
        rtol=0.07, atol=1e-4,
    )  # fmt: skip
    before, after = (dry_run.abstract_step(own)[3] for own in (plain(tmp_path, **given), rounded))
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(after)) < 0.6 * sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(before)
    )
    assert dry_run.figures(rounded)["FLOPs per joint step"] == dry_run.figures(plain(tmp_path, **given))["FLOPs per joint step"]
    capsys.readouterr()
    scores = train.train(rounded)
    # A CPU rounds to float8 and multiplies in another type, which is said.
    assert "float8: 0 of 16 matrix products of the compiled step are in float8" in capsys.readouterr().err
    assert np.isfinite(scores["last"]["AbsRel"])
    # Read back as it was trained; portable, for other programs, in float32.
    held = jdepth.load(rounded["workdir"]).params["backbone"]["blocks_0"]["mlp"]["fc1"]
    assert held["kernel"].dtype == float8.TYPE
    whole = predictor.load(rounded["workdir"], portable=True).params["backbone"]["blocks_0"]["mlp"]["fc1"]
    assert whole["kernel"].dtype == jnp.float32 and "scale" not in whole


TEXT = """
%fused (parameter_0: f8e4m3fn[8,16], parameter_1: f8e4m3fn[4,16]) -> bf16[8,4] {
  %parameter_0 = f8e4m3fn[8,16]{1,0} parameter(0)
  %parameter_1 = f8e4m3fn[4,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,4]{1,0} dot(%parameter_0, %parameter_1), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

%widened (parameter_0: f8e4m3fn[8,16], parameter_1: bf16[4,16]) -> bf16[8,4] {
  %parameter_0 = f8e4m3fn[8,16]{1,0} parameter(0)
  %convert.1 = bf16[8,16]{1,0} convert(%parameter_0)
  %parameter_1 = bf16[4,16]{1,0} parameter(1)
  ROOT %dot.2 = bf16[8,4]{1,0} dot(%convert.1, %parameter_1), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

ENTRY %main (a: f8e4m3fn[8,16]) -> bf16[8,4] {
  %a = f8e4m3fn[8,16]{1,0} parameter(0)
  %gemm.1 = bf16[8,4]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused
  %cublas = (bf16[8,4]{1,0}, s8[64]{0}) custom-call(%a, %b, %one, %one), custom_call_target="__cublas$lt$matmul$f8"
  %fmha = (bf16[1,2]{1,0}, u8[0]{0}) custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmax"
}
"""


def test_kernels_are_read_from_the_compiled_text():
    assert kernels.float8_products(TEXT) == 2 and kernels.attention_calls(TEXT) == 1
    model = build(dataclasses.replace(PICO, depth=1, taps=(0, 0, 0, 0)), attention="cudnn", float8=("qkv", "proj"))
    assert kernels.missing(TEXT, model.backbone) == []
    found = kernels.missing(TEXT, build(PICO, attention="cudnn", float8=KINDS).backbone)
    assert len(found) == 2 and "cuDNN was chosen" in found[0] and "2 of 16 matrix products" in found[1]
    assert kernels.missing(TEXT, build(PICO).backbone) == []


def test_a_program_without_its_kernels_is_told(capsys):
    traced = jax.jit(lambda x: x + 1).trace(jax.ShapeDtypeStruct((), "float32"))
    compilation.compile_aside(lambda: traced, build(PICO, float8=KINDS).backbone, "name", 0.0).result()
    assert "config.backbone.float8" in capsys.readouterr().err
