"""Scores that must not depend on how the images were batched."""

import jax
import numpy as np
import pytest

from tiny_config import PICO

from jdepth import inputs, recipe, scoring, tasks
from jdepth.data import transforms
from jdepth.models import depth_model

CLASSES, SIZE = (4,), 28


@pytest.fixture(scope="module")
def network():
    model = depth_model.build(PICO, channels=8)
    return model, model.init(jax.random.key(0), (SIZE, SIZE))


def samples(task: str) -> list[dict[str, np.ndarray]]:
    """Four samples with very different numbers of labelled pixels, and of valid pixels."""
    draw = np.random.default_rng(1)
    result = []
    for labelled in (SIZE * SIZE, 1, 2, 0):
        label = np.full(SIZE * SIZE, 255, np.uint8)
        label[:labelled] = draw.integers(0, 4, labelled)
        sample = {
            "image": draw.integers(0, 256, (SIZE, SIZE, 3), np.uint8),
            "valid_size": np.array([SIZE, 3 if labelled < 3 else SIZE], np.int32),
            "dataset_id": np.int32(0),
            "photometric": transforms.NEUTRAL_PHOTOMETRIC,
            "weight": np.float32(1),
            "index": np.int32(0),
        }
        sample |= {
            "segmentation": {"label": label.reshape(SIZE, SIZE)},
            "single_label": {"class_id": np.int32(label[0] if labelled else -1)},
            "mldc": {"classes": np.isin(np.arange(4), label).astype(np.float32)},
            "reconstruction": {},
        }[task]
        result.append(sample)
    return result


@pytest.mark.parametrize("task", list(tasks.TASKS))
def test_auxiliary_scores_are_the_same_at_any_batch_size(network, task):
    model, params = network
    built = tasks.TASKS[task](CLASSES, 8)
    params = params | {built.head: built.init(jax.random.key(1))}
    scorer = scoring.AuxiliaryScorer(model, built, CLASSES)
    scores = []
    for size in (1, 2, 4):
        rows = samples(task)
        batches = [
            {k: np.stack([row[k] for row in rows[i : i + size]]) for k in rows[0]} for i in range(0, 4, size)
        ]
        scores.append(scorer.score(params, batches))
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], rel=1e-5, nan_ok=True)


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
