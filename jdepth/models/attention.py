"""Attention kernels, and the one place that decides which of them a run uses."""

import logging

import jax
import jax.numpy as jnp

from jdepth.models.products import wide_product

KERNELS = ("plain", "looped", "cudnn")
# Queries whose logits the plain kernel holds at a time.
QUERIES = 256
# Logits up to which the looped kernel is the plain one, and those that it holds at a time.
FEW_LOGITS, HELD_LOGITS = 2**22, 2**24
_log = logging.getLogger(__name__)


def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / sqrt(d)) v; all (B, N, heads, d), result in v's type.

    Two products and a softmax whose logits and statistics are at least float32. Our own rather
    than the library's because that one computes float64 input only to 4e-7.
    """
    statistics = jnp.promote_types(q.dtype, jnp.float32)
    q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
    # Heads before tokens, and some queries at a time: with 1,370 tokens a CPU took twice to four times as long for
    # products over strided heads and logits that no cache holds (measured).
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    pieces = []
    for start in range(0, q.shape[2], QUERIES):
        some = q[:, :, start : start + QUERIES]
        logits = wide_product("bhqd,bhkd->bhqk", some, k, statistics)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        pieces.append(jnp.einsum("bhqk,bhkd->bhqd", weights, v))
    return jnp.concatenate(pieces, axis=2).swapaxes(1, 2)


def looped(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same for a CPU's caches: one head of one image at a time, divided by the softmax's sum after the product.

    A loop's body finds the memory of the round before in the cache, where `plain`, written out, takes new memory for
    every piece. On 2 CPU cores, float32, 6 heads of 1,370 tokens: 34 ms for an image and 293 for eight, against 71 and
    840. Few tokens gain nothing: they go the plain way.
    """
    batch, tokens, heads, width = q.shape
    if batch * heads * tokens**2 <= FEW_LOGITS:
        return plain(q, k, v)
    statistics = jnp.promote_types(q.dtype, jnp.float32)
    rows = max(HELD_LOGITS // tokens, 1)
    q = q * jnp.asarray(width**-0.5, q.dtype)

    def one(given):
        q, k, v = given  # each (N, d)
        pieces = []
        for start in range(0, tokens, rows):
            logits = wide_product("qd,kd->qk", q[start : start + rows], k, statistics)
            # Any number may be taken off all logits of a row, so that it needs no gradient.
            weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
            mixed = wide_product("qk,kd->qd", weights.astype(v.dtype), v, statistics)
            pieces.append((mixed / weights.sum(-1, keepdims=True)).astype(v.dtype))
        return jnp.concatenate(pieces, axis=0)

    each = tuple(x.swapaxes(1, 2).reshape(batch * heads, tokens, width) for x in (q, k, v))
    return jax.lax.map(one, each).reshape(batch, heads, tokens, width).swapaxes(1, 2)


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The same through cuDNN's fused kernel: never stores the N×N weights. Half types on GPU only."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def attend(kernel: str, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention by the kernel of this name: one of `KERNELS`."""
    return {"plain": plain, "looped": looped, "cudnn": cudnn}[kernel](q, k, v)


def choose(requested: str, dtype, platform: str | None = None) -> str:
    """Resolve "auto" or one of `KERNELS` to a kernel name, once at start.

    "cudnn" is taken only on a GPU, in a half type, and if a small forward and backward pass really
    runs there; otherwise "plain", with a warning if cuDNN was asked for. On a CPU "auto" is "looped".
    `platform` defaults to JAX's default backend. The choice is logged. Raises ValueError on any other name.
    """
    if requested not in ("auto", *KERNELS):
        raise ValueError(f'attention "{requested}" is unknown: choose "auto", "plain", "looped" or "cudnn"')
    platform = platform or jax.default_backend()
    chosen, obstacle = requested, None
    if requested == "auto" and platform == "cpu":
        chosen = "looped"
    elif requested in ("auto", "cudnn"):
        obstacle = _cudnn_obstacle(dtype, platform)
        chosen = "plain" if obstacle else "cudnn"
    # Asked for and refused is worth a warning; "auto" on a GPU that refuses costs speed, so too.
    if obstacle and (requested == "cudnn" or (platform == "gpu" and jnp.finfo(dtype).bits == 16)):
        _log.warning('attention: falling back to "plain": %s', obstacle)
    _log.info('attention: "%s" (requested "%s", %s on %s)', chosen, requested, jnp.dtype(dtype).name, platform)
    return chosen


def _cudnn_obstacle(dtype, platform: str) -> str | None:
    """Why cuDNN attention cannot run here, or None."""
    if platform not in ("gpu", "cuda"):
        return f"cuDNN attention needs an NVIDIA GPU, this run is on {platform}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN attention needs bfloat16 or float16, not {jnp.dtype(dtype).name}"
    try:
        # Odd length, as class token and registers make it.
        probe = jnp.ones((1, 37, 2, 64), dtype)
        jax.block_until_ready(jax.grad(lambda x: cudnn(x, x, x).astype(jnp.float32).sum())(probe))
    except Exception as error:  # whatever this GPU, driver or library raises
        return f"cuDNN attention failed a trial run ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    return None
