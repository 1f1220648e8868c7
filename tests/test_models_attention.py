"""Attention: the plain kernel, and which kernel a run gets."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth.models import attention


def qkv(dtype, seed=0):
    return tuple(jnp.asarray(x, dtype) for x in np.random.default_rng(seed).standard_normal((3, 2, 7, 3, 8)))


def by_hand(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


def test_plain(x64):
    for dtype, tolerance in ((jnp.float64, 1e-13), (jnp.float32, 1e-5), (jnp.bfloat16, 0.03)):
        q, k, v = qkv(dtype)
        out = jax.jit(attention.plain)(q, k, v)
        assert out.dtype == dtype
        np.testing.assert_allclose(np.asarray(out, np.float64), by_hand(q, k, v), atol=tolerance)


@pytest.mark.parametrize("held", [2**24, 3 * 7])  # all queries of a head at once, or three
def test_looped(held, x64, monkeypatch):
    monkeypatch.setattr(attention, "HELD_LOGITS", held)
    # With so few logits the kernel is the plain one; here it is not to be.
    monkeypatch.setattr(attention, "FEW_LOGITS", 0)
    for dtype, tolerance in ((jnp.float64, 1e-13), (jnp.float32, 1e-5), (jnp.bfloat16, 0.03)):
        q, k, v = qkv(dtype)
        out = jax.jit(attention.looped)(q, k, v)
        assert out.dtype == dtype
        np.testing.assert_allclose(np.asarray(out, np.float64), by_hand(q, k, v), atol=tolerance)

    def loss(kernel):
        return jax.grad(lambda q, k, v: jnp.sum(kernel(q, k, v) ** 3), (0, 1, 2))

    q, k, v = qkv(jnp.float64)
    for ours, plain in zip(loss(attention.looped)(q, k, v), loss(attention.plain)(q, k, v), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-12)


def test_looped_bears_large_logits():
    """exp(1000) is no number; the largest logit is taken off first."""
    q = jnp.full((1, 2, 1, 4), 1000.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "FEW_LOGITS", 0)
        out = attention.looped(q, q, jnp.ones((1, 2, 1, 4)))
    np.testing.assert_allclose(out, 1.0)


def test_few_logits_are_not_looped():
    q = jnp.ones((1, 8, 2, 4))
    assert "scan" not in str(jax.make_jaxpr(attention.looped)(q, q, q))
    long = jax.ShapeDtypeStruct((2, 1370, 6, 64), jnp.float32)
    assert "scan[" in str(jax.make_jaxpr(attention.looped)(long, long, long))


def test_softmax_statistics_are_float32_in_bfloat16():
    """Logits near 256 and 257 are one number in bfloat16; kept apart they weigh 0.27 and 0.73."""
    q = jnp.asarray([16.0 * 2**0.5, 2**0.5], jnp.bfloat16).reshape(1, 1, 1, 2)
    k = jnp.asarray([[16.0, 0.0], [16.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    v = jnp.concatenate([v, v], -1)
    assert 0.7 < float(attention.plain(q, k, v)[0, 0, 0, 0]) < 0.76


@pytest.mark.parametrize(("requested", "kernel"), [("auto", "looped"), ("plain", "plain"), ("looped", "looped")])
def test_quiet_choices_on_cpu(requested, kernel, caplog):
    with caplog.at_level(logging.INFO):
        assert attention.choose(requested, jnp.bfloat16, "cpu") == kernel
    assert [record.levelname for record in caplog.records] == ["INFO"]


@pytest.mark.parametrize(("dtype", "platform", "reason"), [(jnp.bfloat16, "cpu", "GPU"), (jnp.float32, "gpu", "float32")])
def test_cudnn_refused_loudly(dtype, platform, reason, caplog):
    assert attention.choose("cudnn", dtype, platform) == "plain"
    assert any(record.levelname == "WARNING" and reason in record.message for record in caplog.records)


def test_cudnn_on_a_gpu(monkeypatch, caplog):
    monkeypatch.setattr(attention, "cudnn", attention.plain)  # a GPU whose trial run succeeds
    assert attention.choose("auto", jnp.bfloat16, "gpu") == "cudnn"
    assert attention.choose("cudnn", jnp.float16, "gpu") == "cudnn"
    assert attention.choose("auto", jnp.float32, "gpu") == "plain"
    assert attention.choose("plain", jnp.bfloat16, "gpu") == "plain"
    assert attention.choose("auto", jnp.float32, "tpu") == "plain"
    assert not caplog.records or all(record.levelname != "WARNING" for record in caplog.records)


def test_a_gpu_without_the_kernel_falls_back(monkeypatch, caplog):
    def fails(q, k, v):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(attention, "cudnn", fails)
    assert attention.choose("auto", jnp.bfloat16, "gpu") == "plain"
    assert any("no such kernel" in record.message for record in caplog.records)


def test_unknown_name():
    with pytest.raises(ValueError, match='"flash" is unknown'):
        attention.choose("flash", jnp.bfloat16)
