"""Schedules against hand-computed points of the released recipe; clipping and parameter groups."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdepth import experiment, optim, recipe

RELEASED = experiment.optimizer_settings(recipe.RELEASED)


@pytest.mark.parametrize(
    "step, rate",
    [(0, 1.000e-7), (1600, 1.253e-5), (6400, 4.670e-5), (12_800, 7.5e-5), (19_200, 5e-5), (25_600, 2.5e-5),
     (32_000, 6.699e-6), (38_399, 1.2e-12)],
)  # fmt: skip
def test_rate_of_the_released_recipe(step, rate):
    assert float(optim.learning_rate(RELEASED)(step)) == pytest.approx(rate, rel=3e-2 if rate < 1e-11 else 5e-4)


@pytest.mark.parametrize(
    "step, beta1", [(0, 0.95), (5760, 0.9), (11_519, 0.85), (19_200, 0.869), (28_800, 0.922), (38_399, 0.95)]
)
def test_beta1_of_the_released_recipe(step, beta1):
    assert float(optim.beta1_schedule(RELEASED)(step)) == pytest.approx(beta1, abs=6e-4)


def test_rate_equals_the_published_formula(x64):
    t = np.arange(38_400)
    regular = 1e-4 * 1e-8 + 0.5 * 1e-4 * (1 - 1e-8) * (1 + np.cos(np.pi * t / 38_400))
    expected = np.where(t < 12_800, regular * (1 - (1 - t / 12_800) * (1 - 0.001)), regular)
    np.testing.assert_allclose(optim.learning_rate(RELEASED)(jnp.asarray(t)), expected, rtol=1e-9, atol=1e-20)


def test_beta1_equals_the_published_formula(x64):
    """MMCV's cyclic momentum: two cosine phases, the first of 0.3 × 38,400 steps less one, the second to the last step."""
    t, turn, last = np.arange(38_400), 0.3 * 38_400 - 1, 38_399
    down = 0.85 + 0.1 * (1 + np.cos(np.pi * t / turn)) / 2
    up = 0.95 - 0.1 * (1 + np.cos(np.pi * (t - turn) / (last - turn))) / 2
    expected = np.where(t <= turn, down, up)
    np.testing.assert_allclose(optim.beta1_schedule(RELEASED)(jnp.asarray(t)), expected, rtol=1e-12)


def test_a_shortened_run_keeps_the_shape():
    short = optim.OptimizerSettings(steps=384)
    for step in (0, 64, 128, 250, 383):
        # The last step of a short run is further from the end of the cosine, hence the loose bound there.
        assert float(optim.learning_rate(short)(step)) == pytest.approx(
            float(optim.learning_rate(RELEASED)(step * 100)), rel=1e-5
        )


def test_switches():
    flat = optim.OptimizerSettings(steps=100, decay="constant", warmup_fraction=0.0, beta1_cycle=False)
    assert [float(optim.learning_rate(flat)(t)) for t in (0, 50, 99)] == pytest.approx([1e-4] * 3)
    assert [float(optim.beta1_schedule(flat)(t)) for t in (0, 50, 99)] == pytest.approx([0.9] * 3)


def test_clip_has_the_small_term_of_pytorch(x64):
    gradients = {"a": jnp.array([30.0, 40.0])}
    clipped, _ = optim.clip_by_norm(35.0).update(gradients, None)
    np.testing.assert_allclose(clipped["a"], np.array([30.0, 40.0]) * 35 / (50 + 1e-6), rtol=1e-15)
    untouched, _ = optim.clip_by_norm(51.0).update(gradients, None)
    np.testing.assert_array_equal(untouched["a"], gradients["a"])


def test_groups_of_the_trainable_tree():
    params = {
        "decoder": {"project": {"bias": jnp.zeros(1)}},
        "depth_head": {"conv1": {"kernel": jnp.zeros(1)}},
        "auxiliary_head": {"kernel": jnp.zeros(1)},
        "backbone": {
            "pos_embed": jnp.zeros(1), "cls_token": jnp.zeros(1), "register_tokens": jnp.zeros(1),
            "norm": {"scale": jnp.zeros(1)}, "patch_embed": {"bias": jnp.zeros(1)},
            "blocks_0": {
                "norm1": {"bias": jnp.zeros(1)}, "norm2": {"scale": jnp.zeros(1)}, "ls1": {"gamma": jnp.zeros(1)},
                "mlp": {"fc1": {"bias": jnp.zeros(1)}},
            },
        },
    }  # fmt: skip
    assert optim.labels(params) == {
        "decoder": {"project": {"bias": "decoder"}},
        "depth_head": {"conv1": {"kernel": "head"}},
        "auxiliary_head": {"kernel": "head"},
        "backbone": {
            "pos_embed": "backbone_plain", "cls_token": "backbone_plain", "register_tokens": "backbone_plain",
            "norm": {"scale": "backbone_plain"}, "patch_embed": {"bias": "backbone"},
            "blocks_0": {
                "norm1": {"bias": "backbone_plain"}, "norm2": {"scale": "backbone_plain"}, "ls1": {"gamma": "backbone"},
                "mlp": {"fc1": {"bias": "backbone"}},
            },
        },
    }  # fmt: skip


def test_recipe_copies_and_refuses_unknown_keys():
    changed = recipe.released(batch={"depth": 2})
    assert changed["batch"] == {"depth": 2, "auxiliary": 4} and recipe.RELEASED["batch"]["depth"] == 4
    with pytest.raises(KeyError, match="batch.dept"):
        recipe.released(batch={"dept": 2})
