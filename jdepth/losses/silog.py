"""Scale-weighted logarithmic depth loss (SigLoss of the DINOv2 recipe; Eigen et al. 2014, eq. 4).

With g = log(prediction + eps) - log(target + eps) over the valid pixels of a group of images,

    loss = sqrt(Var(g) + ratio * mean(g)^2)          Var: unbiased, N - 1

The recipe was trained on two images per device, each device with a loss of its own, so the loss is
taken over groups of two consecutive images of the global batch and averaged over groups; pooling
the whole batch would give another variance term.
"""

import jax
import jax.numpy as jnp

Terms = dict[str, jax.Array]


def log_ratio(prediction, target, mask, eps):
    """Log-depth error and the pixels where it is defined.

    Args:
        prediction: (..., H, W) depth in metres, any float type; only its valid pixels are read.
        target: (..., H, W) depth in metres, 0 = invalid.
        mask: (..., H, W) bool, further pixels to leave out are False.
        eps: metres added to both depths before the logarithm.

    Returns:
        g (..., H, W), at least float32, 0 at invalid pixels, and valid (..., H, W) bool.
    """
    dtype = jnp.promote_types(prediction.dtype, jnp.float32)
    valid = mask & (target > 0)
    # Invalid pixels are replaced before the logarithm: a mask applied after it would still let a
    # NaN or an infinity from outside the mask into the gradient.
    prediction = jnp.where(valid, prediction.astype(dtype), 1)
    target = jnp.where(valid, target.astype(dtype), 1)
    return jnp.where(valid, jnp.log(prediction + eps) - jnp.log(target + eps), 0), valid


def sig_loss(
    prediction, target, mask, *, warmup, group: int | None = 2, eps=0.001, ratio=0.15
) -> tuple[jax.Array, Terms]:
    """SigLoss, averaged over groups of consecutive images.

    Args:
        prediction: (B, H, W) depth in metres, positive.
        target: (B, H, W) depth in metres, 0 = invalid.
        mask: (B, H, W) bool, pixels that may be used.
        warmup: bool scalar, may be traced. During warm-up only the global log-scale is fitted:
            the variance is left out and the loss is sqrt(ratio) * |mean(g)|.
        group: images per group, counted over the global batch; a batch that is no multiple of it
            ends with a smaller group. None pools the whole batch.
        eps: metres added before the logarithm.
        ratio: weight of the squared mean.

    Returns:
        The mean over the groups that hold at least two valid pixels (0 if there are none), and
        {"silog": the same}.
    """
    g, valid = log_ratio(prediction, target, mask, eps)
    batch = g.shape[0]
    group = min(group or batch, batch)
    groups = -(-batch // group)

    # Sums are taken per image first and grouped as (B,) vectors, so that on a sharded batch only
    # these few numbers cross devices, wherever a group's images happen to lie.
    def grouped(per_image):
        return jnp.pad(per_image, (0, groups * group - batch)).reshape(groups, group).sum(axis=1)

    # Counted in integers: float32 stops counting at 2^24 pixels.
    pixels = grouped(jnp.sum(valid, axis=(1, 2), dtype=jnp.int32))
    counts = pixels.astype(g.dtype)
    mean = grouped(jnp.sum(g, axis=(1, 2))) / jnp.maximum(counts, 1)
    # Two passes: E[g^2] - E[g]^2 cancels in float32 once the spread is small beside the mean.
    centre = jnp.repeat(mean, group)[:batch, None, None]
    squares = grouped(jnp.sum(jnp.where(valid, g - centre, 0) ** 2, axis=(1, 2)))
    variance = squares / jnp.maximum(counts - 1, 1)

    inside = jnp.where(warmup, 0, variance) + ratio * mean**2
    contributes = pixels >= 2
    # The root of 0 (a perfect prediction, an empty group) has an infinite derivative, so those
    # groups take the root of 1 and are set to 0 afterwards.
    # Written so that a prediction which is not a number makes the loss so too.
    positive = contributes & ~(inside <= 0)
    losses = jnp.where(positive, jnp.sqrt(jnp.where(positive, inside, 1)), 0)
    loss = losses.sum() / jnp.maximum(contributes.sum(), 1)
    return loss, {"silog": loss}


def contributing(valid, group: int) -> jax.Array:
    """() int32: the groups that SigLoss is a mean over, of valid (B, H, W) bool."""
    pixels = jnp.sum(valid, axis=(1, 2), dtype=jnp.int32)
    pixels = jnp.pad(pixels, (0, -len(pixels) % group)).reshape(-1, group).sum(axis=1)
    return jnp.sum(pixels >= 2, dtype=jnp.int32)
