"""Features of evaluation images that are kept between evaluations: the same scores, one backbone pass."""

import functools

import jax
import numpy as np
import pytest
from tiny_config import PICO, plain
from tiny_run import save_backbone

from jdepth import experiment, kept_taps, logbook, memory, scoring, tasks, train, weights
from jdepth.kept_taps import KeptTaps
from jdepth.models import depth_model
from jdepth.parallel import make_mesh, put, replicated, split

MIB = 2**20


def counted(budget, batches):
    """How often each batch of 1 MiB was computed in two evaluations, within `budget` MiB."""
    kept, calls = KeptTaps(budget / 1024), []
    for _ in range(2):
        for key in batches:
            taps = ((np.full((256, 1024), key, np.float32), np.zeros((0,), np.float32)),)
            found = kept.taps(key, lambda key=key, taps=taps: calls.append(key) or taps, jax.device_put)
            np.testing.assert_array_equal(found[0][0], taps[0][0])
    return [calls.count(key) for key in batches]


@pytest.mark.parametrize("budget, calls", [(3, [1, 1, 1]), (2, [1, 1, 2]), (0, [2, 2, 2])])
def test_as_many_as_fit_are_computed_once(budget, calls, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_on_host", lambda: None)
    assert counted(budget, range(3)) == calls
    told = capsys.readouterr().err.splitlines()
    assert len(told) == (1 if budget == 2 else 0) and all("config.evaluate.cache_gib" in line for line in told)


def test_half_of_the_free_memory_is_left(monkeypatch):
    monkeypatch.setattr(memory, "free_on_host", lambda: 4 * MIB)
    assert counted(100, range(3)) == [1, 1, 2]


def test_kept_taps_keep_their_type():
    kept = KeptTaps(1.0)
    taps = ((jax.numpy.ones((1, 2, 2, 4), "bfloat16"), jax.numpy.ones((1, 4), "bfloat16")),)
    for _ in range(2):
        found = kept.taps("one", lambda: taps, jax.device_put)
        assert jax.tree.map(lambda x: x.dtype.name, found) == (("bfloat16", "bfloat16"),)


FROZEN = {"steps": 6, "log.every": 2, "checkpoint.every": 2, "evaluate.every": 2, "backbone.train": "frozen"}


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_run_has_the_same_scores_with_and_without(precision, quick, tmp_path, monkeypatch):
    """Bit for bit, depth and auxiliary task, while the parameters change; and the backbone runs once."""
    changes = FROZEN | {"backbone.weights": str(save_backbone(tmp_path / "b.safetensors")), "precision": precision}
    passes = {}
    computed = kept_taps.KeptTaps.taps
    for gib in (0.0, 1.0):
        calls = passes.setdefault(gib, [])

        def counting(self, key, compute, place, fetch, calls=calls):
            return computed(self, key, lambda: calls.append(key) or compute(), place, fetch)

        monkeypatch.setattr(kept_taps.KeptTaps, "taps", counting)
        train.train(plain(tmp_path / str(gib), **changes, **{"evaluate.cache_gib": gib}))
    rows = [logbook.read_rows(tmp_path / str(gib) / "metrics.jsonl") for gib in (0.0, 1.0)]
    assert rows[0] == rows[1] and any("evaluation/AbsRel" in row and "evaluation/mAP" in row for row in rows[0])
    # Six rooms in batches of four, for each task.
    assert len(passes[1.0]) == 4 and len(passes[0.0]) == 3 * 4


def test_a_scorer_compiles_once_for_ragged_batches():
    model = depth_model.build(PICO, channels=8)
    task = tasks.TASKS["mldc"]((4,), 8)
    params = model.init(jax.random.key(0), (28, 28)) | {task.head: task.init(jax.random.key(1))}
    # As a run places them: by a mesh, and the same whether they were computed or kept.
    where = split(make_mesh())
    place = functools.partial(put, sharding=where)
    scorer = scoring.AuxiliaryScorer(model, task, (4,), place, kept=KeptTaps(1.0), where=where)
    draw = np.random.default_rng(0)

    def batch(real):
        weight = (np.arange(4) < real).astype(np.float32)
        return {
            "image": draw.integers(0, 256, (4, 28, 28, 3), np.uint8), "valid_size": np.full((4, 2), 28, np.int32),
            "dataset_id": np.zeros(4, np.int32), "photometric": np.tile(np.float32([0, 1, 1, 0, 1]), (4, 1)),
            "classes": draw.integers(0, 2, (4, 4)).astype(np.float32), "weight": weight,
            "index": np.where(weight > 0, np.arange(4), -1).astype(np.int32),
        }  # fmt: skip

    given = [batch(4), batch(1)]
    scores = [scorer.score(params, given) for _ in range(2)]  # computed, then kept
    assert np.isfinite(scores[0]["loss"]) and scores[0] == scores[1]
    assert scorer._outputs._cache_size() == scorer._taps._cache_size() == 1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_frozen_backbone_is_read_straight_to_its_devices(precision, quick, tmp_path):
    file = save_backbone(tmp_path / "b.safetensors")
    config = plain(tmp_path, **{"backbone.train": "frozen", "backbone.weights": str(file), "precision": precision})
    model = experiment.build_model(config)
    todo = experiment.build_tasks(config, model, (13,))
    place = replicated(make_mesh())
    start = experiment.initial_params(config, model, todo, lambda tree: jax.tree.map(lambda _: place, tree))
    whole = weights.load(file).params["backbone"]
    assert start.fingerprint == weights.fingerprint(whole)
    expected = depth_model.cast_frozen(whole, model.backbone.dtype)
    assert jax.tree.structure(expected) == jax.tree.structure(start.frozen["backbone"])
    for one, other in zip(jax.tree.leaves(start.frozen["backbone"]), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype and one.sharding == place
        np.testing.assert_array_equal(one, other)
    drawn = experiment.fresh_params(config, model, todo)
    # One program rounds products otherwise than operations one by one.
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # noqa: E731
    for name in start.trained:
        jax.tree.map(near, start.trained[name], drawn[name])
