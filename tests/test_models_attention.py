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


def test_softmax_statistics_are_float32_in_bfloat16():
    """Logits near 256 and 257 are one number in bfloat16; kept apart they weigh 0.27 and 0.73."""
    q = jnp.asarray([16.0 * 2**0.5, 2**0.5], jnp.bfloat16).reshape(1, 1, 1, 2)
    k = jnp.asarray([[16.0, 0.0], [16.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    v = jnp.asarray([0.0, 1.0], jnp.bfloat16).reshape(1, 2, 1, 1)
    v = jnp.concatenate([v, v], -1)
    assert 0.7 < float(attention.plain(q, k, v)[0, 0, 0, 0]) < 0.76


@pytest.mark.parametrize("requested", ["auto", "plain"])
def test_quiet_choices_on_cpu(requested, caplog):
    with caplog.at_level(logging.INFO):
        assert attention.choose(requested, jnp.bfloat16, "cpu") == "plain"
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
