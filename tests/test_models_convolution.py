"""The 3×3 convolution: its kernel's gradient by Winograd's filtering, and where that is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jdepth import experiment, recipe
from jdepth.models import convolution


def by_hand(x, cotangent):
    """The gradient of a kernel (3, 3, in, out): for each of its nine places the product of what it saw and gave."""
    height, width = cotangent.shape[1:3]
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = [[x[:, a : a + height, b : b + width] for b in range(3)] for a in range(3)]
    given = np.asarray(cotangent, np.float64)
    return np.array([[np.einsum("bhwi,bhwo->io", part, given) for part in row] for row in seen])


def drawn(batch, height, width, inside, out, dtype=np.float64):
    rng = np.random.default_rng(height * width)
    sizes = (batch, height, width, inside), (3, 3, inside, out), (batch, height, width, out)
    return tuple(jnp.asarray(rng.standard_normal(size), dtype) for size in sizes)


@pytest.mark.parametrize("size", [(2, 4, 6, 3, 5), (1, 5, 7, 2, 3), (2, 1, 4, 3, 2), (1, 6, 3, 1, 1), (3, 2, 2, 4, 4)])
def test_the_kernels_gradient_is_the_sum_of_nine_products(size, x64):
    x, _, cotangent = drawn(*size)
    np.testing.assert_allclose(convolution.kernel_gradient(x, cotangent), by_hand(x, cotangent), rtol=1e-12, atol=1e-12)


def test_its_rounding_in_float32():
    x, _, cotangent = drawn(2, 32, 40, 16, 24, np.float32)
    exact = by_hand(x, cotangent)
    error = np.abs(convolution.kernel_gradient(x, cotangent) - exact).max() / np.abs(exact).max()
    assert error < 2e-6  # 32 × 40 × 2 summands of size 1: XLA's own is at 5e-7


@pytest.mark.parametrize("order", [1, 2])
def test_both_kinds_have_the_same_values_and_gradients(order, x64, monkeypatch):
    monkeypatch.setattr(convolution, "LEAST_PIXELS", 0)
    monkeypatch.setattr(convolution, "LEAST_PRODUCTS", 0)
    x, kernel, cotangent = drawn(2, 6, 7, 3, 4)
    convolve = {kind: lambda x, k, kind=kind: convolution.convolve(kind, x, k) for kind in convolution.KINDS}

    def first(kind):
        return jax.grad(lambda x, k: jnp.sum(convolve[kind](x, k) ** 3 * cotangent), (0, 1))

    def second(kind):
        return jax.grad(lambda x, k: sum(jnp.sum(g**2) for g in first(kind)(x, k)), (0, 1))

    gradient = {1: first, 2: second}[order]
    plain, winograd = (gradient(kind) for kind in convolution.KINDS)
    products = ["dot_general" in str(jax.make_jaxpr(function)(x, kernel)) for function in (plain, winograd)]
    assert products == [False, True]
    for a, b in zip(plain(x, kernel), winograd(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12 * np.abs(a).max())


@pytest.mark.parametrize(
    ("size", "dtype", "stride", "filtered"),
    [
        ((1, 32, 32, 64, 64), np.float32, 1, True),
        ((1, 32, 32, 64, 64), jnp.bfloat16, 1, False),
        ((1, 32, 32, 64, 64), np.float32, 2, False),
        ((1, 8, 8, 512, 512), np.float32, 1, False),  # few pixels
        ((2, 32, 32, 16, 16), np.float32, 1, False),  # few products
    ],
)
def test_what_is_filtered(size, dtype, stride, filtered):
    x, kernel, _ = drawn(*size, dtype=dtype)
    gradient = jax.grad(lambda k: jnp.sum(convolution.convolve("winograd", x, k, stride).astype(np.float32)))
    assert ("dot_general" in str(jax.make_jaxpr(gradient)(kernel))) == filtered


def test_a_cpu_alone_filters():
    kinds = {platform: convolution.choose(platform) for platform in ("cpu", "gpu", "cuda", "tpu", "any")}
    assert kinds == dict.fromkeys(kinds, "plain") | {"cpu": "winograd"}


@pytest.mark.parametrize(("platform", "left"), [("cpu", ["resize_3"]), ("tpu", None)])
def test_every_convolution_that_trains_is_of_the_chosen_kind(platform, left):
    """JAX's own gradient of a 3×3 kernel is a convolution with that result; a stride of 2 is never filtered."""
    config = recipe.released(precision="float32", backbone={"name": "dinov2_vits14", "attention": "plain"})
    model = experiment.build_model(config, platform)
    params = jax.eval_shape(lambda key: model.init(key, (42, 42), backbone=False), jax.random.key(0))
    tap = jax.ShapeDtypeStruct((1, 48, 40, 384), np.float32), jax.ShapeDtypeStruct((1, 384), np.float32)

    def loss(params, taps):
        return model.depth(params["depth_head"], model.decode(params["decoder"], taps)).sum()

    traced = jax.make_jaxpr(jax.grad(loss))(params, (tap,) * 4)
    found = sorted(v.aval.shape for e in traced.eqns if e.primitive.name == "conv_general_dilated" for v in e.outvars)
    own = [shape for shape in found if shape[:2] == (3, 3)]
    shapes = {"/".join(path): x.shape for path, x in traverse_util.flatten_dict(params).items()}
    kernels = {name: shape for name, shape in shapes.items() if shape[:2] == (3, 3)}
    assert len(kernels) == 22
    expected = [shape for name, shape in kernels.items() if left is None or name.split("/")[1] in left]
    assert own == sorted(expected)
