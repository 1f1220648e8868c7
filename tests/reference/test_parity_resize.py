"""Our resizes against torch.nn.functional.interpolate."""

import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import numpy as np
import port

from jdepth.models import resize

SIZES = [((4, 5), (8, 10)), ((7, 3), (9, 4)), ((13, 20), (6, 9)), ((12, 12), (5, 31)), ((5, 5), (1, 7)), ((1, 6), (3, 2))]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size_in", "size_out"), SIZES)
def test_bilinear_and_its_gradient(x64, size_in, size_out, align_corners):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, *size_in, 3)), rng.standard_normal((2, *size_out, 3))
    theirs = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    y = torch.nn.functional.interpolate(theirs, size=size_out, mode="bilinear", align_corners=align_corners)
    y.backward(torch.from_numpy(weight).permute(0, 3, 1, 2))
    ours, pull = jax.vjp(lambda x: resize.bilinear(x, size_out, align_corners), jnp.asarray(x))
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, y.detach().permute(0, 2, 3, 1).numpy(), atol=1e-12)
    np.testing.assert_allclose(pull(jnp.asarray(weight))[0], theirs.grad.permute(0, 2, 3, 1).numpy(), atol=1e-12)


def test_bilinear_in_float32_at_training_size():
    x = np.random.default_rng(1).standard_normal((1, 60, 80, 4)).astype(np.float32)
    for size, align_corners in (((120, 160), True), ((104, 136), False), ((26, 34), False)):
        ours = resize.bilinear(jnp.asarray(x), size, align_corners)
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(x).permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=align_corners
        )
        # PyTorch places samples in float32, ours in float64.
        np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), atol=5e-5)


GRIDS = [(37, 37), (30, 39), (35, 46), (39, 39), (26, 87), (16, 20), (37, 20)]


@pytest.mark.parametrize("grid", GRIDS)
def test_register_free_position_table(x64, grid):
    table = np.random.default_rng(2).standard_normal((1, 1370, 6))
    theirs = port.original_table(torch.from_numpy(table), 14 * grid[0], 14 * grid[1]).numpy()
    ours = resize.position_table(jnp.asarray(table), grid, antialias=False, offset=0.1)
    print(f"\n{grid}: {np.abs(ours - theirs).max() / np.abs(table).max():.1e} of the table's largest entry")
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(table).max())


@pytest.mark.parametrize("grid", GRIDS)
def test_register_position_table(x64, grid):
    table = np.random.default_rng(3).standard_normal((1, 1370, 6))
    patches = torch.nn.functional.interpolate(
        torch.from_numpy(table[:, 1:]).reshape(1, 37, 37, 6).permute(0, 3, 1, 2),
        size=grid,
        mode="bicubic",
        antialias=True,
    )
    theirs = torch.cat([torch.from_numpy(table[:, :1]), patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1).numpy()
    ours = resize.position_table(jnp.asarray(table), grid, antialias=True, offset=0.0)
    print(f"\n{grid}: {np.abs(ours - theirs).max() / np.abs(table).max():.1e} of the table's largest entry")
    np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(table).max())


@pytest.mark.parametrize("grid", GRIDS[1:])
def test_the_offset_matters(grid):
    """Control: placing samples by the size ratio, as the port does, is not the same table."""
    table = jnp.asarray(np.random.default_rng(4).standard_normal((1, 1370, 6)), jnp.float32)
    original = resize.position_table(table, grid, antialias=False, offset=0.1)
    by_ratio = resize.position_table(table, grid, antialias=False, offset=0.0)
    assert jnp.abs(original - by_ratio).max() > 1e-3 * jnp.abs(table).max()


def test_float32_position_table():
    """Against PyTorch's own float32, which places samples in float32 too."""
    table = np.random.default_rng(5).standard_normal((1, 1370, 6)).astype(np.float32)
    for grid in GRIDS:
        theirs = port.original_table(torch.from_numpy(table), 14 * grid[0], 14 * grid[1]).numpy()
        ours = resize.position_table(jnp.asarray(table), grid, antialias=False, offset=0.1)
        print(f"\n{grid}: {np.abs(ours - theirs).max() / np.abs(table).max():.1e}")
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(table).max())
