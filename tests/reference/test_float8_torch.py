"""Float8 against PyTorch's own type: the same bits, and its product in double precision."""

import jax.numpy as jnp
import numpy as np
import torch

from jdepth.models import float8


def test_rounding_and_product_are_those_of_pytorch():
    draw = np.random.default_rng(3)
    x = (draw.standard_normal((64, 200)) * np.exp(draw.normal(0, 3, (64, 1)))).astype(np.float32)
    kernel = draw.standard_normal((200, 48)).astype(np.float32)
    small, own = float8.quantise(x, axis=-1)
    held = float8.quantise_kernel(kernel)

    def theirs(values, scale):
        return (torch.from_numpy(values) / torch.from_numpy(scale)).to(torch.float8_e4m3fn)

    one, other = theirs(x, own), theirs(np.ascontiguousarray(kernel.T), held["scale"][:, None])
    np.testing.assert_array_equal(small.view(np.uint8), one.view(torch.uint8).numpy())
    np.testing.assert_array_equal(held["kernel"].view(np.uint8), other.view(torch.uint8).numpy())
    exact = (one.double() * torch.from_numpy(own)) @ (other.double() * torch.from_numpy(held["scale"])[:, None]).T
    found = float8.product(jnp.asarray(x), held["kernel"], held["scale"], jnp.float32)
    rows = exact.abs().amax(1, keepdim=True).numpy()
    np.testing.assert_allclose(found / rows, exact.numpy() / rows, atol=2e-6)
