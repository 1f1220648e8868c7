"""Every loss, value and gradient, against the same mathematics in PyTorch, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth.losses import LOSSES

torch = pytest.importorskip("torch")
functional = torch.nn.functional

pytestmark = pytest.mark.usefixtures("x64")
TOLERANCE = 1e-10


def agree(ours, theirs, first, *rest):
    """Value and gradient by the first argument agree; both sides take NumPy arrays."""
    value, gradient = jax.jit(jax.value_and_grad(lambda x: ours(x, *rest)[0]))(jnp.asarray(first))
    leaf = torch.tensor(first, requires_grad=True)
    expected = theirs(leaf, *(torch.tensor(array) for array in rest))
    expected.backward()
    assert value.dtype == gradient.dtype == jnp.float64
    np.testing.assert_allclose(value, expected.item(), rtol=TOLERANCE)
    scale = float(leaf.grad.abs().max())
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=0, atol=TOLERANCE * scale)


def scene(rng, batch=5, height=23, width=19):
    """Depths in metres with holes in the target, and a mask with further holes."""
    target = rng.uniform(0.3, 9, (batch, height, width))
    prediction = target * np.exp(rng.normal(0.1, 0.4, target.shape))
    target[rng.random(target.shape) < 0.3] = 0
    return prediction, target, rng.random(target.shape) < 0.8


# --- depth ---------------------------------------------------------------------------------------


def torch_silog(prediction, target, mask, warmup, group):
    losses = []
    for first in range(0, len(prediction), group):
        part = slice(first, first + group)
        valid = mask[part] & (target[part] > 0)
        if valid.sum() < 2:
            continue
        g = torch.log(prediction[part][valid] + 0.001) - torch.log(target[part][valid] + 0.001)
        spread = 0 if warmup else torch.var(g)
        losses.append(torch.sqrt(spread + 0.15 * g.mean() ** 2))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("group", [1, 2, 3, None])
def test_silog(group, warmup):
    prediction, target, mask = scene(np.random.default_rng(0))
    if group == 2:
        mask[2:4] = False  # the second group leaves the mean
    agree(
        lambda *arrays: LOSSES["silog"](*arrays, warmup=warmup, group=group),
        lambda *tensors: torch_silog(*tensors, warmup, group or 5),
        prediction, target, mask,
    )  # fmt: skip


def torch_gradient(prediction, target, mask):
    """Pair by pair: every two valid pixels that lie two apart in the subsampled image."""
    valid = mask & (target > 0)
    total = torch.zeros((), dtype=torch.float64)
    for step in (1, 2, 4, 6):
        rows = range(0, prediction.shape[1], step)
        columns = range(0, prediction.shape[2], step)
        pixels = {
            (b, i, j): torch.log(prediction[b, y, x] + 0.001) - torch.log(target[b, y, x] + 0.001)
            for b in range(len(prediction))
            for i, y in enumerate(rows)
            for j, x in enumerate(columns)
            if valid[b, y, x]
        }
        if not pixels:
            continue
        pairs = [
            (pixels[b, i, j] - pixels[other]).abs()
            for b, i, j in pixels
            for other in ((b, i + 2, j), (b, i, j + 2))
            if other in pixels
        ]
        total = total + torch.stack(pairs).sum() / len(pixels)
    return total


def test_gradient():
    agree(LOSSES["gradient"], torch_gradient, *scene(np.random.default_rng(1), 3, 21, 17))


# --- classification ------------------------------------------------------------------------------


def padded(rng, classes=(4, 9, 1, 6), width=9):
    """Logits and class mask of samples whose datasets have different numbers of classes."""
    mask = np.arange(width) < np.array(classes)[:, None]
    return rng.normal(0, 3, mask.shape), mask


def test_multi_label():
    rng = np.random.default_rng(2)
    logits, mask = padded(rng)
    target = (rng.random(logits.shape) < 0.4).astype(float)

    def reference(logits, target, mask):
        rows = [
            functional.binary_cross_entropy_with_logits(row[own], wanted[own])
            for row, wanted, own in zip(logits, target, mask, strict=True)
        ]
        return torch.stack(rows).mean()

    agree(LOSSES["multi_label"], reference, logits, target, mask)


def test_single_label():
    logits, mask = padded(np.random.default_rng(3))
    label = np.array([3, 7, 0, -1])

    def reference(logits, label, mask):
        logits = logits.masked_fill(~mask, -torch.inf)
        return functional.cross_entropy(logits, label, ignore_index=-1)

    agree(LOSSES["single_label"], reference, logits, label, mask)


# --- dense auxiliary tasks -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "size", "rows"),
    [((9, 7), (33, 41), 8), ((19, 19), (32, 32), 16), ((30, 28), (13, 11), 4), ((1, 1), (5, 6), 16),
     ((8, 8), (8, 8), 3), ((6, 6), (24, 24), 1), ((304, 8), (512, 8), 16)],
)  # fmt: skip
def test_segmentation(source, size, rows):
    rng = np.random.default_rng(4)
    classes = np.array([5, 3, 5])
    mask = np.arange(5) < classes[:, None]
    logits = rng.normal(0, 3, (3, *source, 5))
    label = rng.integers(0, classes[:, None, None], (3, *size))
    label[rng.random(label.shape) < 0.3] = 255

    def reference(logits, label, mask):
        resized = functional.interpolate(
            logits.permute(0, 3, 1, 2), label.shape[1:], mode="bilinear", align_corners=False
        )
        resized = resized.masked_fill(~mask[:, :, None, None], -torch.inf)
        return functional.cross_entropy(resized, label, ignore_index=255)

    agree(
        lambda *arrays: LOSSES["segmentation"](*arrays, rows=rows), reference, logits, label, mask
    )


@pytest.mark.parametrize(("source", "size"), [((9, 7), (33, 41)), ((30, 28), (13, 11))])
def test_reconstruction(source, size):
    rng = np.random.default_rng(5)
    prediction = rng.normal(size=(3, *source, 3))
    image = rng.normal(size=(3, *size, 3))
    valid_size = np.array([size, (size[0] - 4, size[1]), (5, 3)])

    def reference(prediction, image, valid_size):
        resized = functional.interpolate(
            prediction.permute(0, 3, 1, 2), image.shape[1:3], mode="bilinear", align_corners=False
        ).permute(0, 2, 3, 1)
        pixels = [(a[:y, :x], b[:y, :x]) for a, b, (y, x) in zip(resized, image, valid_size, strict=True)]
        return functional.mse_loss(
            torch.cat([a.reshape(-1) for a, _ in pixels]),
            torch.cat([b.reshape(-1) for _, b in pixels]),
        )

    agree(LOSSES["reconstruction"], reference, prediction, image, valid_size)
