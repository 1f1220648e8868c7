"""Image-level losses over the classes of each sample's own dataset.

Datasets of a mixture have different numbers of classes. Their logits share one array of K columns,
and `class_mask` says which of them are classes of the sample's dataset; what the other columns hold
never matters, not even if it is infinite.
"""

import jax
import jax.numpy as jnp

from jdepth.losses.silog import Terms

# Stands for minus infinity in a softmax. Finite, because the gradient of a difference of two
# infinities is NaN.
EXCLUDED = -1e30


def multi_label(logits, target, class_mask) -> tuple[jax.Array, Terms]:
    """Binary cross-entropy of the classes present in an image (the MLDC task).

    Args:
        logits: (B, K) one score per class.
        target: (B, K) multi-hot, 1 where the class is present, any real or bool type.
        class_mask: (B, K) bool, the classes of the sample's dataset.

    Returns:
        The mean over each sample's own classes, then over samples (a sample without classes leaves
        the mean; 0 if none remains), and {"multi_label": the same}.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    logits = jnp.where(class_mask, logits.astype(dtype), 0)
    target = jnp.where(class_mask, target, 0).astype(dtype)
    entropy = jnp.where(class_mask, jnp.logaddexp(logits, 0) - logits * target, 0)
    classes = class_mask.sum(axis=1)
    per_sample = entropy.sum(axis=1) / jnp.maximum(classes, 1)
    loss = per_sample.sum() / jnp.maximum((classes > 0).sum(), 1)
    return loss, {"multi_label": loss}


def single_label(logits, class_id, class_mask) -> tuple[jax.Array, Terms]:
    """Cross-entropy with one class per image, its most frequent one.

    Args:
        logits: (B, K) one score per class.
        class_id: (B,) int, -1 = the sample has no label.
        class_mask: (B, K) bool, the classes of the sample's dataset.

    Returns:
        The mean over labelled samples (0 if there are none) and {"single_label": the same}. A label
        that is no class of the sample's dataset makes the loss NaN (see `negative_log_likelihood`).
    """
    labelled = class_id >= 0
    surprise = negative_log_likelihood(logits, class_id, class_mask, labelled)
    loss = surprise.sum() / jnp.maximum(labelled.sum(), 1)
    return loss, {"single_label": loss}


def negative_log_likelihood(logits, label, class_mask, labelled):
    """-log softmax(logits)[label] over the classes of the mask; 0 where not labelled.

    Args:
        logits: (..., K), any float type.
        label: (...) int.
        class_mask: (..., K) bool, broadcast against the logits.
        labelled: (...) bool.

    Returns:
        (...) at least float32. NaN where a labelled entry names a class outside its mask: the class
        map or the data is wrong, and compiled code has no other way to say so. Gradients stay
        finite.
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    logits = jnp.where(class_mask, logits.astype(dtype), EXCLUDED)
    # A comparison fuses into the sums around it; a gather would turn into a scatter going back.
    chosen = class_mask & (jnp.arange(logits.shape[-1]) == label[..., None])
    picked = jnp.where(chosen, logits, 0).sum(axis=-1)
    surprise = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.where(labelled, jnp.where(chosen.any(axis=-1), surprise, jnp.nan), 0)
