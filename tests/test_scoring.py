"""Scores by hand: what is predicted and compared, in which order, and that it does not depend on batches."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from jdepth import inputs, recipe, scoring, tasks
from jdepth.data import transforms

MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


# Depth


def given_map(params, images):
    """Stands for a network that predicts its parameters, whatever it sees."""
    del images
    return params


@pytest.mark.parametrize(
    ("limits", "align_corners", "expected"),
    [
        ((1.0, 10.0), False, [1, 3.25, 7.75, 10]),  # not 1, 5, 10, 10: the map is clamped before it is resized
        ((1.0, 10.0), True, [1, 4, 7, 10]),
        ((None, None), False, [0, 5, 15, 20]),
        ((None, 10.0), True, [0, 10 / 3, 20 / 3, 10]),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_a_map_is_clamped_then_resized_then_averaged(limits, align_corners, expected, flip):
    forward = scoring.depth_forward(given_map, *limits, flip, align_corners)
    depth = np.asarray(forward(jnp.array([[[0.0, 20.0]]]), jnp.zeros((1, 3, 4, 3)), (3, 4)))
    # A map that does not turn with the picture: its mirror image is averaged in.
    expected = np.mean([expected, expected[::-1]], axis=0) if flip else np.array(expected)
    np.testing.assert_allclose(depth, np.broadcast_to(expected, (1, 3, 4)), rtol=1e-5)


class SlopedPixels:
    """Stands for a network: a tap holds the picture, the map is green times a number that grows to the right."""

    def features(self, params, images):
        return images + params

    def decode(self, params, taps):
        return taps[:, ::2, ::2, 1] * params

    def depth(self, params, features):
        return features * jnp.arange(1, features.shape[2] + 1) + params

    def __call__(self, params, images):
        taps = self.features(params["backbone"], images)
        return self.depth(params["depth_head"], self.decode(params["decoder"], taps))


def test_depth_of_a_picture_and_its_mirror_image():
    """RGB is normalised, the mirror image's map is turned back; the pair of programs gives what the one gives."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2, 6, 8, 3), np.uint8)
    params = {"backbone": jnp.array(3.0), "decoder": jnp.array(0.5), "depth_head": jnp.array(-1.0)}

    def once(image):
        values = ((image - MEAN) / STD + 3)[::2, ::2, 1] * 0.5 * [1, 2, 3, 4] - 1
        return cv2.resize(np.clip(values, 2, 5), (10, 9), interpolation=cv2.INTER_LINEAR)

    straight = np.stack([once(image) for image in images])
    mirrored = np.stack([once(image[:, ::-1])[:, ::-1] for image in images])
    assert straight.min() == 2 and straight.max() == 5
    model, size = SlopedPixels(), (9, 10)
    found = {flip: scoring.depth_forward(model, 2.0, 5.0, flip)(params, images, size) for flip in (False, True)}
    np.testing.assert_allclose(found[False], straight, rtol=1e-5)
    np.testing.assert_allclose(found[True], (straight + mirrored) / 2, rtol=1e-5)
    taps, depth = scoring.depth_forward_in_two(model, 2.0, 5.0)
    np.testing.assert_allclose(depth(params, taps(params, images), size), straight, rtol=1e-5)


def depth_batches(size: int):
    """Three images of 2 x 3 pixels with filling; depths far off where the mask says no."""
    depth = np.array([[[1, 2, 4], [5, 8, 90]], [[2, 2, 2], [2, 2, 2]], [[3, 6, 9], [90, 90, 90]]], np.float32)
    rows = {"image": np.zeros((3, 2, 3, 3), np.uint8), "depth": depth, "mask": depth < 80}
    for start in range(0, 3, size):
        index = np.arange(start, start + size)
        batch = {key: array[index % 3] for key, array in rows.items()}
        yield batch | {"weight": (index < 3).astype(np.float32), "index": np.where(index < 3, index, -1)}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_depth_is_scored_image_by_image(size):
    """Each image counts the same, however many pixels it has; filling does not count."""

    def forward(params, images, size):
        return jnp.full((len(images), *size), params)

    found = scoring.score_depth(forward, 4.0, depth_batches(size))
    seen = [np.array([1, 2, 4, 5, 8]), np.full(6, 2.0), np.array([3, 6, 9])]
    assert found["images"] == 3
    assert found["AbsRel"] == pytest.approx(np.mean([np.mean(np.abs(t - 4) / t) for t in seen]), rel=1e-6)
    assert found["RMSE"] == pytest.approx(np.mean([np.sqrt(np.mean((t - 4) ** 2)) for t in seen]), rel=1e-6)
    # The best constant is the best of many.
    errors = {c: np.mean([np.mean(np.abs(t - c) / t) for t in seen]) for c in np.arange(1, 9.25, 0.25)}
    constant = scoring.score_constant(depth_batches(size))
    assert constant["constant_AbsRel"] == pytest.approx(min(errors.values()), rel=1e-6)
    assert errors[constant["constant"]] == min(errors.values())


def test_disparity_is_fitted_within_the_given_range():
    """Straight in disparity: without an end of the range, depth would be found exactly."""

    def forward(params, images, size):
        del params, images, size
        return 5 / next(depth_batches(3))["depth"] + 7

    exact, ended = (scoring.score_depth(forward, None, depth_batches(3), align=(0.001, far)) for far in (80.0, 6.0))
    assert exact["AbsRel"] == pytest.approx(0, abs=1e-4)
    assert ended["AbsRel"] == pytest.approx(np.mean([2 / 8 / 5, 0, 3 / 9 / 3]), rel=1e-3)


# Other tasks

CLASSES, SIZE = (2, 4), 8


class Pixels:
    """Stands for a network: its tap is the normalised picture, its map every second pixel of that."""

    def features(self, params, images):
        del params
        return images

    def decode(self, params, taps):
        del params
        return taps[:, ::2, ::2]


def samples() -> dict[str, np.ndarray]:
    """Six samples of two members, with very different numbers of labelled pixels, and of valid pixels."""
    draw = np.random.default_rng(1)
    members, labelled = np.array([0, 1, 1, 0, 0, 1]), (64, 1, 20, 0, 2, 40)
    label = np.full((6, SIZE * SIZE), 255, np.uint8)
    for row, (member, count) in enumerate(zip(members, labelled, strict=True)):
        label[row, draw.permutation(SIZE * SIZE)[:count]] = draw.integers(0, CLASSES[member], count)
    return {
        "image": draw.integers(0, 256, (6, SIZE, SIZE, 3), np.uint8),
        "valid_size": np.array([[8, 8], [8, 8], [3, 8], [8, 5], [8, 8], [1, 2]], np.int32),
        "dataset_id": members.astype(np.int32),
        "photometric": np.tile(transforms.NEUTRAL_PHOTOMETRIC, (6, 1)),
        "label": label.reshape(6, SIZE, SIZE),
        "class_id": np.array([1, 3, 0, -1, 0, 2], np.int32),
        "classes": np.array([[*row] for row in "1000 0110 1100 0100 1100 0100".split()]).astype(np.float32),
        "index": np.array([0, 0, 1, 1, 2, 2], np.int32),
    }


def head(task: str) -> dict[str, np.ndarray]:
    """Heads whose logits are mostly below 0: columns that are no classes of a member hold 0 there."""
    draw, width = np.random.default_rng(2), 3 if task == "reconstruction" else 4
    bias = draw.normal(-6, 1, (2, width))
    if width == 4:
        bias[0, 2:] = 0
    return {"kernel": draw.normal(0, 1, (2, 3, width)).astype(np.float32), "bias": bias.astype(np.float32)}


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
    """Mean, over the images that hold the class, of the share of those that rank at least as high and hold it."""
    return float(np.mean([present[scores >= scores[image]].mean() for image in np.flatnonzero(present)]))


def by_hand(task: str) -> dict[str, float]:
    """Loss over what the task counts, all members together; the other scores of each member, then their mean."""
    rows, weights = samples(), head(task)
    member, label = rows["dataset_id"], rows["label"].astype(int)
    normal = (rows["image"] - MEAN) / STD
    inside = np.zeros((6, SIZE, SIZE), bool)
    for row, (height, width) in enumerate(rows["valid_size"]):
        inside[row, :height, :width] = True
    maps = np.where(inside[..., None], normal, 0)[:, ::2, ::2]
    count = [3, 3] if task == "reconstruction" else CLASSES
    kernel, bias = ([array[m][..., : count[m]] for m in (0, 1)] for array in (weights["kernel"], weights["bias"]))
    logits = [maps[i] @ kernel[m] + bias[m] for i, m in enumerate(member)]
    whole = [cv2.resize(one, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for one in logits]
    pooled = [one.mean((0, 1)) for one in logits]
    if task == "reconstruction":
        return {"loss": np.mean(np.concatenate([(whole[i] - normal[i])[inside[i]] for i in range(6)]) ** 2)}
    if task == "mldc":
        truth = [rows["classes"][i, : CLASSES[m]] for i, m in enumerate(member)]
        losses = [np.mean(np.log1p(np.exp(x)) - y * x) for x, y in zip(pooled, truth, strict=True)]
        found = {"loss": np.mean(losses), "mAP": [], "mAP_constant": []}
        for m in (0, 1):
            scores, present = (np.array([one[i] for i in np.flatnonzero(member == m)]) for one in (pooled, truth))
            seen = present.any(axis=0)
            found["mAP"].append(np.mean([average_precision(s, t) for s, t in zip(scores.T[seen], present.T[seen])]))
            found["mAP_constant"].append(present[:, seen].mean())
        return {key: float(np.mean(value)) for key, value in found.items()}
    if task == "single_label":
        given = [i for i in range(6) if rows["class_id"][i] >= 0]
        losses = [np.log(np.exp(pooled[i]).sum()) - pooled[i][rows["class_id"][i]] for i in given]
        right = {m: [pooled[i].argmax() == rows["class_id"][i] for i in given if member[i] == m] for m in (0, 1)}
        return {"loss": np.mean(losses), "accuracy": np.mean([np.mean(right[m]) for m in (0, 1)])}
    losses, found = [], {"mIoU": [], "pixel_accuracy": [], "mean_accuracy": []}
    for i in range(6):
        normaliser = np.log(np.exp(whole[i]).sum(-1))
        losses += [normaliser[p] - whole[i][p][label[i][p]] for p in zip(*np.nonzero(label[i] != 255), strict=True)]
    assert len(losses) == 64 + 1 + 20 + 0 + 2 + 40
    for m in (0, 1):
        own = np.flatnonzero(member == m)
        true, said = label[own], np.stack([whole[i].argmax(-1) for i in own])
        true, said = true[true != 255], said[true != 255]
        hits = [((true == k) & (said == k)).sum() for k in range(CLASSES[m])]
        either = [((true == k) | (said == k)).sum() for k in range(CLASSES[m])]
        among = [(true == k).sum() for k in range(CLASSES[m])]
        found["mIoU"].append(np.mean([h / n for h, n in zip(hits, either, strict=True) if n]))
        found["pixel_accuracy"].append((true == said).mean())
        found["mean_accuracy"].append(np.mean([h / n for h, n in zip(hits, among, strict=True) if n]))
    return {"loss": np.mean(losses)} | {key: float(np.mean(value)) for key, value in found.items()}


@pytest.mark.parametrize("task", list(tasks.TASKS))
def test_auxiliary_scores_by_hand_at_any_batch_size(task):
    built = tasks.TASKS[task](CLASSES, 3)
    params = {"backbone": {}, "decoder": {}, built.head: head(task)}
    scorer = scoring.AuxiliaryScorer(Pixels(), built, CLASSES)
    used = {"segmentation": ["label"], "single_label": ["class_id"], "mldc": ["classes"], "reconstruction": []}[task]
    rows, expected = samples(), by_hand(task)
    rows = {key: rows[key] for key in ("image", "valid_size", "dataset_id", "photometric", "index", *used)}
    for size in (1, 4):
        batches = []
        for start in range(0, 6, size):
            index = np.arange(start, start + size)
            # What fills up the last batch is another sample again, which would count if its weight did.
            batch = {key: array[index % 6] for key, array in rows.items()}
            batches.append(batch | {"weight": (index < 6).astype(np.float32)})
        assert scorer.score(params, batches) == pytest.approx(expected, rel=1e-4), size


def test_auxiliary_scores_without_a_label_are_no_numbers():
    built = tasks.TASKS["segmentation"](CLASSES, 3)
    rows = {key: array[3:4] for key, array in samples().items() if key not in ("classes", "class_id")}
    scorer = scoring.AuxiliaryScorer(Pixels(), built, CLASSES)
    params = {"backbone": {}, "decoder": {}, built.head: head("segmentation")}
    assert all(np.isnan(value) for value in scorer.score(params, [rows | {"weight": np.ones(1)}]).values())


def test_members_of_mix6_differ_only_where_the_published_pipelines_do():
    changed = recipe.released(
        data={"auxiliary": {"augmentation": {"photometric_probability": 0.0, "flip_probability": 0.25}}}
    )
    by_name = dict(zip(inputs.auxiliary_names(changed), inputs.member_augmentations(changed), strict=True))
    assert {a.photometric_probability for a in by_name.values()} == {0.0}
    assert {a.flip_probability for a in by_name.values()} == {0.25}
    assert by_name["cityscapes34"].scale == (2048, 1024) and by_name["ade20k"].scale == (2048, 512)
    assert by_name["context59"].scale == (520, 520) and by_name["context59"].crop == (480, 480)
    small = recipe.released(data={"auxiliary": {"augmentation": {"crop": (256, 256), "canvas": (256, 256)}}})
    assert {a.crop for a in inputs.member_augmentations(small)} == {(256, 256)}
