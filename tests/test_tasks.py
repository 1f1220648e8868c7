"""Tasks: what they make of a batch, and their losses against the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth import colour, tasks
from jdepth.models import depth_model
from jdepth.models.vit import ViTConfig

CLASSES, CHANNELS, CANVAS = (4, 2), 6, (10, 12)
TINY = ViTConfig(name="tiny", width=16, depth=4, heads=2, hidden=32, taps=(0, 1, 2, 3), grid=2)
MODEL = depth_model.build(TINY, channels=CHANNELS)
IDS = np.array([0, 1, 0], np.int32)
DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(3, 4, 5, CHANNELS)).astype(np.float32)


def auxiliary_batch(**more):
    return {
        "image": DRAW.integers(0, 256, (3, *CANVAS, 3), dtype=np.uint8),
        "valid_size": np.array([CANVAS, (7, 12), (10, 5)], np.int32),
        "dataset_id": IDS,
        # Brightness, contrast, saturation, hue, contrast: visibly not neutral.
        "photometric": np.array([[20.0, 0.8, 1.2, 5.0, 1.0]] * 3, np.float32),
        **more,
    }


def build(name, **more):
    """(task, head's parameters, inputs of one batch, per-sample logits (h, w, K_d) by their own head)."""
    task = tasks.TASKS[name](CLASSES, CHANNELS)
    head = jax.tree.map(np.asarray, task.init(jax.random.key(1)))
    own = [
        f @ head["kernel"][d, :, :count] + head["bias"][d, :count]
        for f, d in zip(FEATURES, IDS, strict=True)
        for count in [3 if name == "reconstruction" else CLASSES[d]]
    ]
    return task, head, task.prepare(auxiliary_batch(**more)), own


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_every_auxiliary_task_trains_its_head_on_its_stream(name):
    task, head, *_ = build(name)
    assert (task.name, task.stream, task.head) == (name, "auxiliary", "auxiliary_head")
    most = 3 if name == "reconstruction" else max(CLASSES)
    assert head["kernel"].shape == (2, CHANNELS, most) and head["bias"].shape == (2, most)


def test_images_are_augmented_and_padding_is_the_mean_colour():
    _, _, inputs, _ = build("mldc", classes=np.zeros((3, 4), np.float32))
    assert "image" not in inputs and "photometric" not in inputs
    images = np.asarray(inputs["images"])
    assert images.shape == (3, *CANVAS, 3) and images.dtype == np.float32
    assert not images[1, 7:].any() and not images[2, :, 5:].any()
    assert images[1, :7].all(-1).any() and images[2, :, :5].all(-1).any()


def test_multi_label_is_the_mean_over_own_classes_of_averaged_logits():
    target = (DRAW.random((3, 4)) > 0.5).astype(np.float32)
    task, head, inputs, own = build("mldc", classes=target)
    loss, terms = task.loss(head, FEATURES, inputs, 0)
    expected = []
    for logits, wanted, d in zip(own, target, IDS, strict=True):
        mean, wanted = logits.mean((0, 1)), wanted[: CLASSES[d]]
        expected.append(np.mean(np.log1p(np.exp(mean)) - mean * wanted))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5) and terms.keys() == {"multi_label"}
    np.testing.assert_allclose(task.predict(head, FEATURES, inputs)[1, :2], own[1].mean((0, 1)), rtol=1e-4, atol=1e-6)


def test_single_label_masks_samples_without_a_label():
    task, head, inputs, own = build("single_label", class_id=np.array([3, -1, 0], np.int32))
    loss, _ = task.loss(head, FEATURES, inputs, 0)
    expected = [
        np.log(np.exp(own[row].mean((0, 1))).sum()) - own[row].mean((0, 1))[label] for row, label in ((0, 3), (2, 0))
    ]
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)


def test_segmentation_pools_labelled_pixels_of_all_datasets():
    # At the features' own size, where nothing is resized.
    label = np.stack([DRAW.integers(0, CLASSES[d], (4, 5)) for d in IDS]).astype(np.uint8)
    label[:, 0] = 255
    task, head, inputs, own = build("segmentation", label=label)
    loss, _ = task.loss(head, FEATURES, inputs, 0)
    surprises = []
    for logits, wanted in zip(own, label, strict=True):
        for row, column in np.argwhere(wanted != 255):
            here = logits[row, column]
            surprises.append(np.log(np.exp(here).sum()) - here[wanted[row, column]])
    assert len(surprises) == 3 * 15 and float(loss) == pytest.approx(np.mean(surprises), rel=1e-5)


def test_reconstruction_wants_the_image_before_colour_augmentation():
    task, head, inputs, _ = build("reconstruction")
    np.testing.assert_array_equal(inputs["target"].shape, (3, *CANVAS, 3))
    batch = auxiliary_batch()
    inputs = task.prepare(batch)
    np.testing.assert_allclose(inputs["target"], colour.normalise(batch["image"]), rtol=1e-6)
    assert np.abs(np.asarray(inputs["target"] - inputs["images"])[0]).max() > 0.05
    # Only what is image counts: other padding, same loss.
    loss, _ = task.loss(head, FEATURES, inputs, 0)
    batch["image"][1, 7:], batch["image"][2, :, 5:] = 0, 255
    other, _ = task.loss(head, FEATURES, task.prepare(batch), 0)
    assert float(loss) == float(other) > 0


def depth_inputs(target):
    colours = np.ones((2, 5), np.float32)
    return {"image": np.full((2, 8, 10, 3), 90, np.uint8), "depth": target, "colour": colours}


def test_depth_fits_the_scale_first_and_counts_pixels_at_the_minimum():
    target = DRAW.uniform(1, 5, (2, 8, 10)).astype(np.float32)
    target[0, :3] = 0
    task = tasks.depth(MODEL, warmup_steps=5, silog_weight=2.0)
    head = task.init(jax.random.key(2))
    features = FEATURES[:2]
    inputs = task.prepare(depth_inputs(target))
    np.testing.assert_allclose(inputs["images"], colour.normalise(np.full((2, 8, 10, 3), 90, np.uint8)), rtol=1e-6)
    prediction = np.asarray(MODEL.depth(head, features))  # (2, 8, 10): the target's size, nothing to resize
    valid = target > 0
    g = np.log(prediction[valid] + 0.001) - np.log(target[valid] + 0.001)
    warm, terms = task.loss(head, features, inputs, jnp.asarray(4))
    assert float(warm) == pytest.approx(2 * np.sqrt(0.15) * abs(g.mean()), rel=1e-4)
    after, _ = task.loss(head, features, inputs, jnp.asarray(5))
    assert float(after) == pytest.approx(2 * np.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2), rel=1e-4)
    assert float(terms["at_min_depth"]) == pytest.approx(np.mean(prediction <= 0.001))
    dead = jax.tree.map(jnp.zeros_like, head)
    assert float(task.loss(dead, features, inputs, 9)[1]["at_min_depth"]) == 1.0


def test_the_gradient_loss_is_off_unless_weighted():
    target = DRAW.uniform(1, 5, (2, 8, 10)).astype(np.float32)
    plain, weighted = tasks.depth(MODEL), tasks.depth(MODEL, gradient_weight=0.5)
    head, inputs = plain.init(jax.random.key(3)), plain.prepare(depth_inputs(target))
    base, terms = plain.loss(head, FEATURES[:2], inputs, 9)
    more, both = weighted.loss(head, FEATURES[:2], inputs, 9)
    assert "gradient" not in terms
    assert float(more) == pytest.approx(float(base) + 0.5 * float(both["gradient"]), rel=1e-6)


# ---- A batch in parts ------------------------------------------------------------------------------------


def _depth_in_parts():
    """Six groups of two images, two groups a part; of the groups four, one and none hold two pixels or more."""
    target = np.zeros((12, 8, 10), np.float32)
    target[:3] = DRAW.uniform(1, 5, (3, 8, 10))  # the second group's other image is empty
    target[4:6, :5] = DRAW.uniform(1, 5, (2, 5, 10))
    target[6, 0, 0] = 2.0  # a single pixel has no variance: its group is none
    task = tasks.depth(MODEL)
    batch = {"image": np.full((12, 8, 10, 3), 90, np.uint8), "depth": target, "colour": np.ones((12, 5), np.float32)}
    return task, batch, [2, 1, 0]


def _auxiliary_in_parts(name):
    label = np.stack([DRAW.integers(0, CLASSES[d], (4, 5)) for d in PART_IDS]).astype(np.uint8)
    label[1, 1:], label[2], label[3, :, :4], label[4:] = 255, 255, 255, 255
    sizes = np.array([CANVAS, (7, 12), (1, 12), (10, 5), (2, 3), (4, 1)], np.int32)
    batch = {
        "image": DRAW.integers(0, 256, (6, *CANVAS, 3), dtype=np.uint8),
        "valid_size": sizes,
        "dataset_id": PART_IDS,
        "photometric": np.array([[20.0, 0.8, 1.2, 5.0, 1.0]] * 6, np.float32),
        "classes": (DRAW.random((6, 4)) > 0.5).astype(np.float32),
        "class_id": np.array([3, 1, -1, 0, -1, -1], np.int32),
        "label": label,
    }
    units = {
        "mldc": [2, 2, 2],
        "single_label": [2, 1, 0],
        "segmentation": [20 + 5, 4, 0],
        "reconstruction": [120 + 84, 12 + 50, 6 + 4],
    }
    return tasks.TASKS[name](CLASSES, CHANNELS), batch, units[name]


PART_IDS = np.array([0, 1, 0, 0, 1, 0], np.int32)


@pytest.mark.parametrize("name", ["depth", *sorted(tasks.TASKS)])
def test_the_loss_of_a_batch_is_the_weighted_mean_of_its_parts(name):
    """Three parts that hold different numbers of what the loss is a mean over."""
    task, batch, units = _depth_in_parts() if name == "depth" else _auxiliary_in_parts(name)
    head = task.init(jax.random.key(4))
    features = np.random.default_rng(5).normal(size=(len(batch["image"]), 4, 5, CHANNELS)).astype(np.float32)
    inputs = task.prepare(batch)
    whole, terms = task.loss(head, features, inputs, 9)
    rows = len(features) // 3
    parts = [slice(start, start + rows) for start in range(0, 3 * rows, rows)]
    weights = [float(task.weight({key: value[part] for key, value in inputs.items()})) for part in parts]
    assert weights == units
    found = [task.loss(head, features[part], {k: v[part] for k, v in inputs.items()}, 9) for part in parts]
    losses, named = zip(*found, strict=True)
    assert float(whole) == pytest.approx(np.average([float(x) for x in losses], weights=weights), rel=1e-6)
    for term, value in terms.items():
        own = None if term in task.over_all else weights
        assert float(value) == pytest.approx(np.average([float(x[term]) for x in named], weights=own), rel=1e-6), term


def test_pixels_of_the_gradient_loss_are_pooled_so_that_its_parts_have_no_weight():
    assert tasks.depth(MODEL, gradient_weight=0.5).weight is None
