"""The backbone: sizes, padding, initialisation, precision, packing."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth.errors import UserError
from jdepth.models import BACKBONES, VisionTransformer, build, cast_frozen
from jdepth.models.layers import LayerNorm
from jdepth.models.vit import Attention, Mlp, SwiGlu, centre_pad

NANO = BACKBONES["vit_nano14"]
TINY_TABLE = dataclasses.replace(NANO, depth=2, taps=(0, 1), grid=3)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def randomised(shapes, seed=1):
    """NumPy parameters of these shapes, none of them zero or one, so that neither hides a mistake."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.1 + 0.1 * rng.standard_normal(x.shape)).astype(x.dtype), shapes)


def prepared(config, size=(42, 42), seed=0):
    """A backbone, random parameters and two random images."""
    model = VisionTransformer(config)
    images = np.random.default_rng(seed).standard_normal((2, *size, 3)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: model.init(key, images, final_norm=True), jax.random.key(0))["params"]
    return model, randomised(shapes), images


def run(model, params, images, **options):
    return jax.jit(lambda p, x: model.apply({"params": p}, x, **options))(params, images)


# Published files hold one tensor more, the mask token (1, D), which is dropped on loading.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("dinov2_vits14", 22_056_576 - 384),
        ("dinov2_vitb14", 86_580_480 - 768),
        ("dinov2_vitl14", 304_368_640 - 1024),
        ("dinov2_vitg14", 1_136_480_768 - 1536),
        ("dinov2_vits14_reg4", 22_058_112 - 384),
        ("dinov2_vitb14_reg4", 86_580_480 - 768 + 4 * 768),
        ("dinov2_vitl14_reg4", 304_368_640 - 1024 + 4 * 1024),
        ("dinov2_vitg14_reg4", 1_136_486_912 - 1536),
        ("vit_nano14", 1_668_736),
        ("vit_tiny14", 5_484_480),
    ],
)
def test_parameter_counts(name, parameters):
    shapes = jax.eval_shape(lambda key: build(name).init(key, (42, 56)), jax.random.key(0))["backbone"]
    assert count(shapes) == parameters
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


# Width, blocks, heads, hidden width of the feed-forward, taps: of the published models, and of their DPT depth heads.
SHAPES = {
    "s": (384, 12, 6, 1536, "mlp", (2, 5, 8, 11)),
    "b": (768, 12, 12, 3072, "mlp", (2, 5, 8, 11)),
    "l": (1024, 24, 16, 4096, "mlp", (4, 11, 17, 23)),
    "g": (1536, 40, 24, 4096, "swiglu", (9, 19, 29, 39)),
}


@pytest.mark.parametrize("size", SHAPES)
def test_shapes_and_taps_of_the_published_models(size):
    for name, registers in ((f"dinov2_vit{size}14", 0), (f"dinov2_vit{size}14_reg4", 4)):
        config = BACKBONES[name]
        shape = config.width, config.depth, config.heads, config.hidden, config.ffn, config.taps
        assert shape == SHAPES[size] and config.width // config.heads == 64
        rest = config.patch, config.grid, config.registers, config.antialias, config.offset, config.norm_taps
        assert rest == (14, 37, registers, registers > 0, 0.0 if registers else 0.1, False)


def test_parameter_names_and_shapes():
    shapes = jax.eval_shape(lambda key: build("dinov2_vitg14_reg4").init(key, (42, 42)), jax.random.key(0))
    tree = jax.tree.map(lambda leaf: leaf.shape, shapes["backbone"], is_leaf=lambda x: hasattr(x, "shape"))
    assert set(tree) == {"cls_token", "pos_embed", "register_tokens", "patch_embed", "norm"} | {
        f"blocks_{i}" for i in range(40)
    }
    assert tree["pos_embed"] == (1, 1370, 1536) and tree["register_tokens"] == (1, 4, 1536)
    assert tree["patch_embed"] == {"kernel": (14, 14, 3, 1536), "bias": (1536,)}
    assert tree["blocks_39"] == {
        "norm1": {"scale": (1536,), "bias": (1536,)},
        "attn": {
            "qkv": {"kernel": (1536, 4608), "bias": (4608,)},
            "proj": {"kernel": (1536, 1536), "bias": (1536,)},
        },
        "ls1": {"gamma": (1536,)},
        "norm2": {"scale": (1536,), "bias": (1536,)},
        "mlp": {"w12": {"kernel": (1536, 8192), "bias": (8192,)}, "w3": {"kernel": (4096, 1536), "bias": (1536,)}},
        "ls2": {"gamma": (1536,)},
    }
    assert type(shapes["backbone"]) is dict


@pytest.mark.parametrize(
    ("size", "padded", "leading"),
    [
        ((416, 544), (420, 546), (2, 1)),
        ((480, 640), (490, 644), (5, 2)),
        ((352, 704), (364, 714), (6, 5)),
        ((352, 1216), (364, 1218), (6, 1)),
        ((27, 28), (28, 28), (0, 0)),
    ],
)
def test_centre_padding(size, padded, leading):
    out = centre_pad(jnp.ones((1, *size, 3)))
    assert out.shape == (1, *padded, 3)
    inside = out[:, leading[0] : leading[0] + size[0], leading[1] : leading[1] + size[1]]
    assert inside.sum() == out.sum() == 3 * size[0] * size[1]


def test_any_size_is_the_padded_image():
    model, params, _ = prepared(TINY_TABLE)
    images = np.random.default_rng(5).standard_normal((1, 51, 40, 3)).astype(np.float32)
    a = run(model, params, images)
    b = run(model, params, centre_pad(images))
    np.testing.assert_array_equal(a.taps[1][0], b.taps[1][0])
    assert a.taps[1][0].shape == (1, 4, 3, 128) and a.taps[1][1].shape == (1, 128)
    assert a.tokens is None


def test_initialisation():
    model = VisionTransformer(dataclasses.replace(TINY_TABLE, registers=4, grid=16))
    params = model.lazy_init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)), final_norm=True)["params"]
    block = params["blocks_1"]
    for leaf in (block["ls1"]["gamma"], block["ls2"]["gamma"], block["norm1"]["scale"], params["norm"]["scale"]):
        assert (leaf == 1.0).all()
    for leaf in (block["attn"]["qkv"]["bias"], block["mlp"]["fc1"]["bias"], params["patch_embed"]["bias"]):
        assert (leaf == 0.0).all()
    for leaf in (block["attn"]["qkv"]["kernel"], block["mlp"]["fc2"]["kernel"], params["pos_embed"]):
        assert abs(float(leaf.std()) - 0.02) < 1e-3
    assert 0.0 < jnp.abs(params["cls_token"]).max() < 1e-5
    assert 0.0 < jnp.abs(params["register_tokens"]).max() < 1e-5


def along(n, size, offset):
    """(size, n): weights of bicubic interpolation, antialiased, or with an offset placed by (size + offset) / n."""
    keys = lambda d, a: np.select(  # noqa: E731
        [d <= 1, d < 2], [(a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)], 0.0
    )
    samples, weights = np.arange(-4, n + 4), np.zeros((size, n))
    for target in range(size):
        if offset:
            centre = (target + 0.5) * n / (size + offset) - 0.5
            near = keys(np.abs(samples - centre), -0.75)
            # Samples beyond the edge repeat it.
            weights[target] = [near[np.clip(samples, 0, n - 1) == sample].sum() for sample in range(n)]
        else:
            wide = max(n / size, 1)
            near = keys(np.abs(np.arange(n) - ((target + 0.5) * n / size - 0.5)) / wide, -0.5)
            weights[target] = near / near.sum()
    return weights


@pytest.mark.parametrize(("name", "offset"), [("dinov2_vits14", 0.1), ("dinov2_vits14_reg4", 0.0)])
def test_position_table_of_the_published_models_by_hand(name, offset):
    """Blocks that add nothing and patches of nothing: a tap is the table, of 16×16 entries, for 24×10 patches."""
    config = dataclasses.replace(BACKBONES[name], width=8, depth=1, heads=1, hidden=8, taps=(0,), grid=16)
    model, params, _ = prepared(config)
    params["blocks_0"] |= {scale: {"gamma": np.zeros(8, np.float32)} for scale in ("ls1", "ls2")}
    params["patch_embed"] = {"kernel": np.zeros((14, 14, 3, 8), np.float32), "bias": np.zeros(8, np.float32)}
    params["pos_embed"] = np.random.default_rng(7).standard_normal((1, 257, 8)).astype(np.float32)
    ((patches, cls),) = run(model, params, np.zeros((1, 24 * 14, 10 * 14, 3), np.float32)).taps
    table = params["pos_embed"][0, 1:].reshape(16, 16, 8).astype(np.float64)
    expected = np.einsum("oh,pw,hwd->opd", along(16, 24, offset), along(16, 10, offset), table)
    np.testing.assert_allclose(patches[0], expected, atol=1e-5)
    np.testing.assert_allclose(cls[0], params["cls_token"][0, 0] + params["pos_embed"][0, 0], atol=1e-6)


def test_one_patch_by_hand():
    """Embedding of one patch, written out."""
    config = dataclasses.replace(TINY_TABLE, depth=1, taps=(0,), grid=1)
    model, params, _ = prepared(config, (14, 14))
    params["blocks_0"]["ls1"]["gamma"] = params["blocks_0"]["ls2"]["gamma"] = np.zeros(128, np.float32)
    image = np.random.default_rng(3).standard_normal((1, 14, 14, 3)).astype(np.float32)
    (patches, cls), = run(model, params, image).taps
    expected = jnp.einsum("hwc,hwcd->d", image[0], params["patch_embed"]["kernel"])
    expected = expected + params["patch_embed"]["bias"] + params["pos_embed"][0, 1]
    np.testing.assert_allclose(patches[0, 0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(cls[0], params["cls_token"][0, 0] + params["pos_embed"][0, 0], atol=1e-6)


def test_registers_reach_the_image_but_not_the_taps():
    config = dataclasses.replace(TINY_TABLE, registers=4, antialias=True, offset=0.0)
    model, params, images = prepared(config)
    out = run(model, params, images, final_norm=True)
    assert out.taps[0][0].shape == (2, 3, 3, 128) and out.tokens.shape == (2, 1 + 4 + 9, 128)
    changed = params | {"register_tokens": -params["register_tokens"]}
    assert jnp.abs(run(model, changed, images).taps[1][0] - out.taps[1][0]).max() > 1e-3
    # The last tap, after the final norm: class token first, four registers, then the patches, row by row.
    patches, cls = (np.asarray(x, np.float64) for x in out.taps[1])
    for ours, token in ((cls, out.tokens[:, 0]), (patches.reshape(2, 9, 128), out.tokens[:, 5:])):
        centred = ours - ours.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(token, normed * params["norm"]["scale"] + params["norm"]["bias"], atol=1e-4)
    # With blocks that add nothing a tap is what was put in: registers are none of it.
    for block in ("blocks_0", "blocks_1"):
        params[block] |= {name: {"gamma": np.zeros(128, np.float32)} for name in ("ls1", "ls2")}
    empty = run(model, params, images).taps[1]
    other = run(model, params | {"register_tokens": params["register_tokens"] + 5}, images).taps[1]
    for ours, theirs in zip(empty, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_mlp_by_hand():
    """The exact GELU: gelu(1) is 0.841345, where the one by tanh has 0.841192."""
    config = dataclasses.replace(TINY_TABLE, width=3, hidden=4)
    x = np.array([[1.0, -0.5, 2.0]], np.float32)
    inside = np.eye(3, 4, dtype=np.float32)
    params = {
        "fc1": {"kernel": inside, "bias": np.array([0, 0, 0, 1], np.float32)},
        "fc2": {"kernel": inside.T.copy(), "bias": np.array([0, 0, 10], np.float32)},
    }
    params["fc2"]["kernel"][3] = [5, 0, 0]
    gelu = lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2)))  # noqa: E731
    expected = [gelu(1.0) + 5 * gelu(1.0), gelu(-0.5), gelu(2.0) + 10]
    np.testing.assert_allclose(Mlp(config, jnp.float32).apply({"params": params}, x)[0], expected, rtol=1e-6)


def test_layer_norm_of_small_values():
    """A variance of 1e-6 is as large as the 1e-6 that is added to it."""
    x = 1e-3 * np.random.default_rng(0).standard_normal((3, 64))
    params = {"scale": np.full(64, 2.0, np.float32), "bias": np.full(64, 0.5, np.float32)}
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * 2 + 0.5
    normed = LayerNorm().apply({"params": params}, x.astype(np.float32))
    np.testing.assert_allclose(normed, expected, rtol=1e-4, atol=1e-5)


def test_swiglu_gates_with_the_first_half():
    config = dataclasses.replace(TINY_TABLE, ffn="swiglu", hidden=6)
    x = np.random.default_rng(0).standard_normal((3, 128)).astype(np.float32)
    module = SwiGlu(config, jnp.float32)
    params = randomised(jax.eval_shape(module.init, jax.random.key(1), x))["params"]
    both = x @ params["w12"]["kernel"] + params["w12"]["bias"]
    gate, value = both[:, :6], both[:, 6:]
    expected = (gate / (1 + jnp.exp(-gate)) * value) @ params["w3"]["kernel"] + params["w3"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)


def test_qkv_order():
    """Columns are q, k, v; each holds its heads one after another."""
    module = Attention(TINY_TABLE, jnp.float32, "plain")
    x = np.random.default_rng(0).standard_normal((1, 5, 128)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: module.init(key, x, ((1, 5),)), jax.random.key(1))
    params = randomised(shapes)["params"]
    qkv = np.asarray(x[0] @ params["qkv"]["kernel"] + params["qkv"]["bias"], np.float64)
    out = np.zeros((5, 128))
    for head in range(2):
        q, k, v = (qkv[:, part * 128 + head * 64 :][:, :64] for part in range(3))
        weights = np.exp(q @ k.T / 8.0)
        out[:, head * 64 : head * 64 + 64] = weights / weights.sum(1, keepdims=True) @ v
    expected = out @ params["proj"]["kernel"] + params["proj"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, x, ((1, 5),))[0], expected, atol=1e-4)


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_one_block_by_hand(ffn):
    """Of one patch and the class token, in NumPy; a tap is what leaves the block."""
    config = dataclasses.replace(TINY_TABLE, width=8, depth=1, heads=2, hidden=6, ffn=ffn, taps=(0,), grid=1)
    model, params, images = prepared(config, (14, 14))
    rng = np.random.default_rng(8)
    p = jax.tree.map(lambda x: rng.normal(0.1, 0.5, x.shape), params)
    p["patch_embed"]["kernel"] /= 10
    ((patches, cls),) = run(model, jax.tree.map(np.float32, p), images[:1]).taps
    patch = np.einsum("hwc,hwcd->d", images[0], p["patch_embed"]["kernel"]) + p["patch_embed"]["bias"]
    x = np.stack([p["cls_token"][0, 0], patch]) + p["pos_embed"][0]
    p = p["blocks_0"]

    def norm(x, own):
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * own["scale"] + own["bias"]

    linear = lambda x, own: x @ own["kernel"] + own["bias"]  # noqa: E731
    q, k, v = np.split(linear(norm(x, p["norm1"]), p["attn"]["qkv"]), 3, axis=1)
    mixed = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = np.exp(q[:, head] @ k[:, head].T / 2)
        mixed.append(weights / weights.sum(1, keepdims=True) @ v[:, head])
    x = x + p["ls1"]["gamma"] * linear(np.concatenate(mixed, 1), p["attn"]["proj"])
    y = norm(x, p["norm2"])
    if ffn == "mlp":
        y = linear(y, p["mlp"]["fc1"])
        y = linear(y * 0.5 * (1 + np.vectorize(math.erf)(y / 2**0.5)), p["mlp"]["fc2"])
    else:
        gate, value = np.split(linear(y, p["mlp"]["w12"]), 2, axis=1)
        y = linear(gate / (1 + np.exp(-gate)) * value, p["mlp"]["w3"])
    x = x + p["ls2"]["gamma"] * y
    np.testing.assert_allclose(np.concatenate([cls, patches[0, 0]]), x, rtol=1e-4, atol=1e-4)


def test_packed_batches_equal_separate_calls(x64):
    config = dataclasses.replace(TINY_TABLE, registers=4, antialias=True, offset=0.0)
    model, params, _ = prepared(config)
    params = jax.tree.map(lambda x: x.astype(np.float64), params)
    batches = tuple(
        np.random.default_rng(i).standard_normal((n, *size, 3))
        for i, (n, size) in enumerate([(2, (42, 42)), (1, (56, 30)), (3, (28, 28))])
    )
    packed = run(model, params, batches, final_norm=True)
    for batch, features in zip(batches, packed, strict=True):
        alone = run(model, params, batch, final_norm=True)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), features, alone)


def types_in(jaxpr):
    """All floating types of all intermediate values, inner programs included."""
    found = set()
    for equation in jaxpr.eqns:
        found |= {v.aval.dtype for v in (*equation.invars, *equation.outvars) if getattr(v.aval, "shape", ()) != ()}
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    found |= types_in(inner)
    return {dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)}


def test_float64_stays_float64(x64):
    """No array of another floating type anywhere in the whole model, forward and backward."""
    model = build(dataclasses.replace(TINY_TABLE, depth=4, taps=(0, 1, 2, 3)), channels=16)
    shapes = jax.eval_shape(lambda key: model.init(key, (50, 70)), jax.random.key(0))
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), shapes)
    images = jax.ShapeDtypeStruct((1, 50, 70, 3), jnp.float64)
    program = jax.make_jaxpr(jax.value_and_grad(lambda p, x: model(p, x).sum()))(params, images)
    assert types_in(program.jaxpr) == {jnp.dtype(jnp.float64)}


def test_bfloat16_precision_policy():
    """Taps leave in bfloat16; the residual stream between two products with it is float32."""
    _, params, images = prepared(TINY_TABLE)
    exact = run(VisionTransformer(TINY_TABLE), params, images, final_norm=True)
    model = VisionTransformer(TINY_TABLE, jnp.bfloat16)
    frozen = cast_frozen(params, jnp.bfloat16)
    out = run(model, frozen, images, final_norm=True)
    assert out.taps[0][0].dtype == out.taps[0][1].dtype == jnp.bfloat16 and out.tokens.dtype == jnp.float32
    np.testing.assert_allclose(out.tokens, exact.tokens, atol=0.06)
    # Branches that add less than half a last digit of the stream: in bfloat16 they would be lost at once.
    small = {name: dict(value) if isinstance(value, dict) else value for name, value in params.items()}
    for block in ("blocks_0", "blocks_1"):
        small[block] |= {name: {"gamma": np.full(128, 1e-4, np.float32)} for name in ("ls1", "ls2")}
    small |= {"cls_token": params["cls_token"] + 8, "pos_embed": params["pos_embed"] + 8}
    still = {**small, **{b: small[b] | {n: {"gamma": np.zeros(128, np.float32)} for n in ("ls1", "ls2")}
                         for b in ("blocks_0", "blocks_1")}}  # fmt: skip
    moved, rest = (run(model, cast_frozen(p, jnp.bfloat16), images, final_norm=True).tokens for p in (small, still))
    # Against the same in float32: the share of the branches that arrives.
    exactly = [run(VisionTransformer(TINY_TABLE), p, images, final_norm=True).tokens for p in (small, still)]
    arrived, expected = np.asarray(moved - rest, np.float64), np.asarray(exactly[0] - exactly[1], np.float64)
    assert np.abs(expected).max() > 1e-4
    assert np.linalg.norm(arrived - expected) < 0.1 * np.linalg.norm(expected)


def test_bfloat16_weights_and_float32_weights_agree():
    """A cast backbone computes exactly what an uncast one does in the same `dtype`."""
    _, params, images = prepared(TINY_TABLE)
    model = VisionTransformer(TINY_TABLE, jnp.bfloat16)
    a = run(model, params, images).taps[1][0]
    b = run(model, cast_frozen(params, jnp.bfloat16), images).taps[1][0]
    np.testing.assert_array_equal(a, b)


def test_cast_frozen():
    _, params, _ = prepared(dataclasses.replace(TINY_TABLE, registers=4))
    frozen = cast_frozen(params, jnp.bfloat16)
    half = {"/".join(k.key for k in path) for path, x in jax.tree_util.tree_leaves_with_path(frozen) if x.dtype == jnp.bfloat16}
    expected = {"patch_embed"} | {f"blocks_{i}/{name}" for i in (0, 1) for name in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")}
    assert half == {f"{name}/{leaf}" for name in expected for leaf in ("kernel", "bias")}
    assert {x.dtype for x in jax.tree.leaves(frozen)} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}


def test_gradient_reaches_every_parameter():
    config = dataclasses.replace(TINY_TABLE, registers=4, antialias=True, offset=0.0)
    model, params, images = prepared(config, (56, 42))

    def loss(p):
        out = model.apply({"params": p}, images, final_norm=True)
        return (jnp.sin(out.tokens) * out.tokens).sum() + sum(jnp.sin(x).sum() for tap in out.taps for x in tap)

    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert jnp.abs(gradient).max() > 0.0, path


def test_unknown_backbone():
    with pytest.raises(UserError, match='did you mean "dinov2_vits14"'):
        build("dinov2_vits")
    with pytest.raises(UserError, match="choose one of"):
        build("resnet")
