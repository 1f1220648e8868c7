"""Tasks: what a step trains on one stream of batches.

A task is a head on the shared decoder's map together with its loss. The step knows tasks only through
this record, so a new task is one more function here and, for its loss, one file in `losses`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jdepth import colour, losses
from jdepth.losses import segmentation as segmentation_loss, silog
from jdepth.models import heads, resize
from jdepth.models.depth_model import DepthModel

Inputs = Mapping[str, jax.Array]
Terms = dict[str, jax.Array]


@dataclass(frozen=True)
class Task:
    """One task of the joint step.

    Attributes:
      name: the loss's name in logs, such as "depth" or "mldc".
      stream: key of its batches and of its optimizer: "depth" or "auxiliary".
      head: key of its head in the trainable tree.
      init: key -> the head's parameters.
      prepare: batch of its stream -> inputs; `inputs["images"]` is (B, H, W, 3) float32, normalised.
      loss: (head parameters, decoder map (B, H', W', C), inputs, global step) -> (scalar, named terms).
      predict: (head parameters, decoder map, inputs) -> what its metrics need.
      weight: inputs -> (), how many units (groups, pixels, samples) the loss is a mean over; None where the loss of
        a batch is no mean of the losses of its parts.
      over_all: named terms that are means over the whole batch, whatever it weighs.
    """

    name: str
    stream: str
    head: str
    init: Callable[[jax.Array], Any]
    prepare: Callable[[Inputs], dict[str, jax.Array]]
    loss: Callable[[Any, jax.Array, Inputs, jax.Array], tuple[jax.Array, Terms]]
    predict: Callable[[Any, jax.Array, Inputs], jax.Array]
    weight: Callable[[Inputs], jax.Array] | None = None
    over_all: tuple[str, ...] = ()


def depth(
    model: DepthModel,
    *,
    silog_weight: float = 1.0,
    gradient_weight: float = 0.0,
    warmup_steps: int = 0,
    group: int = 2,
) -> Task:
    """Metric depth: SigLoss, and the gradient loss where its weight is not 0.

    The prediction is resized to the target before the loss (bilinear, align_corners False) and is not
    clamped. Valid pixels are those with depth > 0. During the first `warmup_steps` global steps SigLoss
    fits the overall scale only.
    """

    def init(key):
        features = jnp.zeros((1, 4, 4, model.decoder.channels), jnp.float32)
        return model.depth_head.init(key, features)["params"]

    def prepare(batch):
        images = colour.normalise(colour.depth_colour(batch["image"], batch["colour"]))
        return {"images": images, "depth": batch["depth"]}

    def predict(params, features, inputs):
        del inputs
        return model.depth(params, features)

    def loss(params, features, inputs, step):
        prediction = model.depth(params, features)
        target = inputs["depth"]
        resized = resize.bilinear(prediction[..., None], target.shape[1:3], align_corners=False)[..., 0]
        mask = target > 0
        total, terms = losses.LOSSES["silog"](
            resized, target, mask, warmup=step < warmup_steps, group=group
        )
        total = silog_weight * total
        if gradient_weight:
            gradient, gradient_terms = losses.LOSSES["gradient"](resized, target, mask)
            total, terms = total + gradient_weight * gradient, terms | gradient_terms
        terms["at_min_depth"] = jnp.mean(prediction <= model.depth_head.min_depth)
        return total, terms

    def weight(inputs):
        return silog.contributing(inputs["depth"] > 0, group)

    # The gradient loss pools the pixels of each of its scales: no single weight adds up its parts.
    weight = None if gradient_weight else weight
    return Task("depth", "depth", "depth_head", init, prepare, loss, predict, weight, ("at_min_depth",))


def _auxiliary(name, head, prepare_more, loss, predict, weight) -> Task:
    def init(key):
        pooled = jnp.zeros((1, head.channels), jnp.float32)
        return head.init(key, pooled, jnp.zeros((1,), jnp.int32))["params"]

    def prepare(batch):
        images = colour.normalise(colour.photometric(batch["image"], batch["photometric"]))
        inputs = {k: v for k, v in batch.items() if k not in ("image", "photometric")}
        inputs["images"] = colour.pad_to_mean(images, batch["valid_size"])
        return inputs | prepare_more(batch)

    return Task(name, "auxiliary", "auxiliary_head", init, prepare, loss, predict, weight)


def _nothing_more(batch):
    del batch
    return {}


def _apply(head, params, features, inputs):
    return head.apply({"params": params}, features, inputs["dataset_id"])


def _pooled_logits(head, params, features, inputs):
    # The head is linear, so averaging the features first equals averaging its logit map.
    return _apply(head, params, heads.pool(features), inputs)


def mldc(classes: tuple[int, ...], channels: int, dtype=jnp.float32) -> Task:
    """Multi-label dense classification: which classes occur in the crop (the paper's main task).

    `inputs["classes"]`: (B, K_max) float32 multi-hot.
    """
    head = heads.StackedHead(classes, channels, dtype)

    def predict(params, features, inputs):
        return _pooled_logits(head, params, features, inputs)

    def loss(params, features, inputs, step):
        del step
        mask = heads.class_mask(classes, inputs["dataset_id"])
        return losses.LOSSES["multi_label"](predict(params, features, inputs), inputs["classes"], mask)

    return _auxiliary("mldc", head, _nothing_more, loss, predict, lambda inputs: len(inputs["classes"]))


def single_label(classes: tuple[int, ...], channels: int, dtype=jnp.float32) -> Task:
    """The crop's most frequent class, from averaged logits. `inputs["class_id"]`: (B,) int32, −1 = none."""
    head = heads.StackedHead(classes, channels, dtype)

    def predict(params, features, inputs):
        return _pooled_logits(head, params, features, inputs)

    def loss(params, features, inputs, step):
        del step
        mask = heads.class_mask(classes, inputs["dataset_id"])
        return losses.LOSSES["single_label"](predict(params, features, inputs), inputs["class_id"], mask)

    def weight(inputs):
        return jnp.sum(inputs["class_id"] >= 0)

    return _auxiliary("single_label", head, _nothing_more, loss, predict, weight)


def segmentation(classes: tuple[int, ...], channels: int, dtype=jnp.float32) -> Task:
    """Class of every pixel. `inputs["label"]`: (B, H, W) uint8, 255 = ignore."""
    head = heads.StackedHead(classes, channels, dtype)

    def predict(params, features, inputs):
        return _apply(head, params, features, inputs)

    def loss(params, features, inputs, step):
        del step
        mask = heads.class_mask(classes, inputs["dataset_id"])
        return losses.LOSSES["segmentation"](predict(params, features, inputs), inputs["label"], mask)

    def weight(inputs):
        return jnp.sum(inputs["label"] != segmentation_loss.IGNORE)

    return _auxiliary("segmentation", head, _nothing_more, loss, predict, weight)


def reconstruction(classes: tuple[int, ...], channels: int, dtype=jnp.float32) -> Task:
    """The normalised image itself, before colour augmentation; one 3-channel head per dataset."""
    head = heads.StackedHead((3,) * len(classes), channels, dtype)

    def predict(params, features, inputs):
        return _apply(head, params, features, inputs)

    def loss(params, features, inputs, step):
        del step
        prediction = predict(params, features, inputs)
        return losses.LOSSES["reconstruction"](prediction, inputs["target"], inputs["valid_size"])

    def target(batch):
        return {"target": colour.normalise(batch["image"])}

    def weight(inputs):
        return jnp.sum(jnp.prod(inputs["valid_size"], axis=1))

    return _auxiliary("reconstruction", head, target, loss, predict, weight)


# By name: (classes of each data set, channels of the decoder's map, the type that map heads multiply in) -> task.
TASKS: dict[str, Callable[..., Task]] = {
    "mldc": mldc,
    "segmentation": segmentation,
    "single_label": single_label,
    "reconstruction": reconstruction,
}
