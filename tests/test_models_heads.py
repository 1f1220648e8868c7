"""Depth heads and stacked auxiliary heads."""

import jax
import jax.numpy as jnp
import numpy as np

from jdepth.models import DepthHead, StackedHead, class_mask, pool
from jdepth.models.linear_head import LinearDepthHead
from jdepth.models.resize import bilinear

CLASSES = (5, 2, 7)
IDS = jnp.asarray([2, 0, 1, 2], jnp.int32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stacked(channels=16):
    """A head whose own columns are random and whose padding columns are zero, and features."""
    own = (np.arange(7) < np.asarray(CLASSES)[:, None]).astype(np.float32)
    params = {"kernel": 0.1 * normal(3, channels, 7, seed=1) * own[:, None], "bias": normal(3, 7, seed=2) * own}
    return StackedHead(CLASSES, channels), params, normal(4, 6, 5, channels)


def logits_of(head, params, features, ids=IDS):
    return jax.jit(head.apply)({"params": params}, features, ids)


def test_depth_head_by_hand(x64):
    head = DepthHead(channels=6, min_depth=0.25)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 3, 4, 6)))
    shapes = jax.eval_shape(head.init, jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape)), shapes)
    conv = lambda x, p: jax.lax.conv_general_dilated(
        x, p["kernel"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + p["bias"]
    y = bilinear(conv(x, params["conv1"]), (6, 8), align_corners=True)
    y = jax.nn.relu(conv(y, params["conv2"])) @ params["conv3"]["kernel"] + params["conv3"]["bias"]
    out = jax.jit(head.apply)({"params": params}, x)
    assert out.shape == (2, 6, 8) and params["conv3"]["kernel"].shape == (32, 1)
    np.testing.assert_allclose(out, jax.nn.relu(y[..., 0]) + 0.25, atol=1e-13)


def test_depth_heads_start_on_the_live_side_of_their_relu():
    head = DepthHead(channels=32)
    features = jax.random.uniform(jax.random.key(0), (1, 6, 8, 32))
    for seed in range(20):
        depth = head.apply({"params": head.init(jax.random.key(seed), features)["params"]}, features)
        assert 0.3 < depth.min() < depth.max() < 3.0, seed


def test_depth_is_at_least_min_depth_and_float32():
    head = DepthHead(channels=8, min_depth=0.001, dtype=jnp.bfloat16)
    x = jnp.asarray(normal(1, 4, 4, 8), jnp.bfloat16)
    shapes = jax.eval_shape(head.init, jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: 0.1 * normal(*leaf.shape), shapes)
    params["conv3"]["bias"] = np.full(1, -100.0, np.float32)
    out = np.asarray(jax.jit(head.apply)({"params": params}, x))
    assert out.dtype == np.float32 and (out == np.float32(0.001)).all()


def test_depth_head_initialisation():
    params = DepthHead(256).lazy_init(jax.random.key(0), jnp.zeros((1, 2, 2, 256)))["params"]
    for name, fan in {"conv1": 9 * 256, "conv2": 9 * 128, "conv3": 32}.items():
        kernel, bias = (np.asarray(params[name][leaf]) for leaf in ("kernel", "bias"))
        assert 0.8 * fan**-0.5 < np.abs(kernel).max() <= fan**-0.5
        assert bias == 1.0 if name == "conv3" else np.abs(bias).max() <= fan**-0.5


def test_stacked_head_is_each_datasets_own():
    head, params, features = stacked()
    assert params["kernel"].shape == (3, 16, 7) and params["bias"].shape == (3, 7)
    logits = logits_of(head, params, features)
    assert logits.shape == (4, 6, 5, 7) and logits.dtype == jnp.float32
    for i, d in enumerate(np.asarray(IDS)):
        expected = features[i] @ params["kernel"][d] + params["bias"][d]
        np.testing.assert_allclose(logits[i], expected, atol=1e-5)


def test_padding_columns_get_no_gradient():
    """Not even from a loss that forgets the mask."""
    head, params, features = stacked()
    loss = lambda p: jnp.exp(head.apply({"params": p}, features, IDS)).sum()
    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))
    for d, count in enumerate(CLASSES):
        assert (gradient["kernel"][d, :, count:] == 0.0).all() and (gradient["bias"][d, count:] == 0.0).all()
        assert np.abs(gradient["kernel"][d, :, :count]).min() > 0.0


def test_absent_dataset_gets_zero_gradient():
    head, params, features = stacked()
    ids = jnp.asarray([0, 2, 2, 0])
    loss = lambda p: jnp.square(head.apply({"params": p}, features, ids)).sum()
    gradient = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))
    assert (gradient["kernel"][1] == 0.0).all() and (gradient["bias"][1] == 0.0).all()


def test_stacked_initialisation():
    """Each head by its own fan, padding columns exactly zero."""
    head, classes = StackedHead((150, 37), 256), (150, 37)
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 256)), jnp.zeros(1, int))["params"]
    params = jax.tree.map(np.asarray, params)
    assert params["kernel"].shape == (2, 256, 150) and params["bias"].shape == (2, 150)
    for d, count in enumerate(classes):
        for leaf in (params["kernel"][d, :, :count], params["bias"][d, :count]):
            assert 0.9 / 16 < np.abs(leaf).max() <= 1 / 16 and (leaf != 0.0).all()
            np.testing.assert_allclose(leaf.std(), 1 / 16 / 3**0.5, rtol=0.2)
        assert (params["kernel"][d, :, count:] == 0.0).all() and (params["bias"][d, count:] == 0.0).all()


def test_pooled_features_equal_averaged_logits():
    head, params, features = stacked(channels=64)
    averaged = np.asarray(logits_of(head, params, features)).mean((1, 2))
    pooled = logits_of(head, params, pool(features))
    assert pooled.shape == (4, 7)
    np.testing.assert_allclose(pooled, averaged, atol=1e-6)


def test_pool_is_a_float32_mean():
    ones = jnp.ones((1, 64, 64, 2), jnp.bfloat16)
    assert pool(ones).dtype == jnp.float32
    np.testing.assert_array_equal(pool(ones), 1.0)  # a bfloat16 sum would stop at 256


def test_reconstruction_is_a_stacked_head_of_three():
    head = StackedHead((3, 3), 8, jnp.bfloat16)
    features = jnp.ones((2, 4, 4, 8), jnp.bfloat16)
    run = lambda key, ids: head.init_with_output(key, features, ids)[0]
    out = jax.eval_shape(run, jax.random.key(0), jnp.asarray([0, 1]))
    assert out.shape == (2, 4, 4, 3) and out.dtype == jnp.float32


def test_gradients_of_a_map_head_in_bfloat16():
    """Products of halves, summed up in float32: as exact as the halves themselves."""
    head, params, features = stacked(channels=32)
    head = StackedHead(CLASSES, 32, jnp.bfloat16)
    features = jnp.asarray(features, jnp.bfloat16)
    towards = normal(*logits_of(head, params, features).shape)

    def loss(params, features):
        return jnp.sum(head.apply({"params": params}, features, IDS) * towards)

    ours, to_features = jax.jit(jax.grad(loss, (0, 1)))(params, features)
    assert ours["kernel"].dtype == jnp.float32 and to_features.dtype == jnp.bfloat16
    wide = np.asarray(features, np.float64)
    for sample, dataset in enumerate(np.asarray(IDS)):
        count = CLASSES[dataset]
        given = np.asarray(towards[sample, :, :, :count], np.float64)
        expected = given @ np.asarray(params["kernel"][dataset, :, :count], np.float64).T
        np.testing.assert_allclose(np.asarray(to_features[sample], np.float64), expected, rtol=0.02, atol=0.05)
    for dataset, count in enumerate(CLASSES):
        own = [sample for sample, d in enumerate(np.asarray(IDS)) if d == dataset]
        expected = sum(
            np.einsum("hwc,hwk->ck", wide[i], np.asarray(towards[i, :, :, :count], np.float64)) for i in own
        )
        np.testing.assert_allclose(ours["kernel"][dataset, :, :count], expected, rtol=0.02, atol=0.05)


def test_class_mask():
    expected = [[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5, [1] * 7]
    mask = class_mask(CLASSES, IDS)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, np.asarray(expected, bool))


def test_linear_head_by_hand():
    """Two patches side by side and two taps; each class token, each patch and a bias speak for a depth of their own."""
    scores = np.zeros((2, 2 * 3, 256), np.float32)  # of each tap: its patches' three channels, then its class token's
    scores[0, 0, 255], scores[0, 3, 0], scores[1, 1, 128], scores[1, 4, 17] = 1, 1, 1, 1
    params = {"kernel": scores, "bias": np.full(256, -1.0, np.float32)}
    params["bias"][200] = 5
    patches, cls = np.zeros((2, 1, 1, 2, 3), np.float32), np.zeros((2, 1, 3), np.float32)
    patches[0, 0, 0, :, 0], patches[1, 0, 0, :, 1], cls[0, 0, 0], cls[1, 0, 1] = (1, 9), (41, 1), 4, 3
    out = LinearDepthHead(0.001, 80.0).apply({"params": params}, list(zip(patches, cls, strict=True)))
    assert out.shape == (1, 4, 8) and out.dtype == jnp.float32
    # Pixel centres of eight columns between those of two: the share of the second.
    second = np.array([0, 0, 1, 3, 5, 7, 8, 8]) / 8
    weights = np.full((8, 256), 0.1)  # a score below 0 still counts 0.1
    weights[:, 255] += 8 * second
    weights[:, 128] += 40 * (1 - second)
    weights[:, 0], weights[:, 17], weights[:, 200] = 3.1, 2.1, 5.1
    depths = 0.001 + (80.0 - 0.001) * np.arange(256) / 255
    np.testing.assert_allclose(out[0], np.tile((weights * depths).sum(1) / weights.sum(1), (4, 1)), rtol=1e-6)
