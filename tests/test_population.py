"""Populations: many members in one run, each of which leaves what its own run would have left."""

import json

import jax
import numpy as np
import pytest
from tiny_config import plain
from tiny_run import call, refused, save_backbone

from jdepth import checkpoint, evaluate, experiment, inputs, logbook, population, predictor, step, train
from jdepth.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")
SHORT = {"steps": 4, "log.every": 2, "checkpoint.every": 2, "evaluate.every": 2, "evaluate.rooms": 3}


@pytest.fixture(scope="module")
def frozen(quick, tmp_path_factory):
    """Changes for a frozen backbone with random parameters."""
    path = save_backbone(tmp_path_factory.mktemp("weights") / "backbone.safetensors")
    return SHORT | {"backbone.train": "frozen", "backbone.weights": str(path)}


def test_a_run_without_lists_is_its_own_member(tmp_path):
    config = plain(tmp_path)
    (member,) = population.members(config)
    assert member.name == "" and member.config == config


def test_every_list_changes_its_own_key(tmp_path, frozen):
    config = plain(tmp_path, **frozen, **{"population.alpha": (0.5, 1.0), "population.seed": (3, 4)})
    members = population.members(config)
    assert [m.name for m in members] == ["alpha=0.5,seed=3", "alpha=1,seed=4"]
    assert [(m.config["alpha"], m.config["init_seed"], m.config["seed"]) for m in members] == [(0.5, 3, 0), (1.0, 4, 0)]
    assert [m.config["workdir"] for m in members] == [str(tmp_path / "members" / m.name) for m in members]
    rows = population.members(plain(tmp_path, **frozen, **{"population.task": ("baseline", "segmentation")}))
    assert [(m.config["task"], m.config["alpha"]) for m in rows] == [("mldc", 1.0), ("segmentation", 0.9)]
    for key in ("gamma", "beta"):
        (one, _) = population.members(plain(tmp_path, **frozen, **{f"population.{key}": (0.1, 0.2)}))
        assert one.config[key] == 0.1 and one.config["alpha"] == 1.0
    assert population.tasks(config) == ("mldc",)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"population.alpha": (0.5, 0.9), "population.seed": (1,)}, "alpha has 2, seed has 1"),
        ({"population.alpha": (0.5, 0.5)}, "members alpha=0.5 and alpha=0.5 are the same run"),
        ({"population.alpha": (0.0, -0.0)}, "are the same run"),
        ({"population.alpha": (0.5, 1.5)}, "member alpha=1.5: config.alpha: 1.5 is not within 0 and 1"),
        ({"population.seed": (1, -2)}, "population.seed: -2 is not a whole number from 0"),
        ({"population.seed": (1, 1.5)}, "population.seed: 1.5 is not a whole number from 0"),
        ({"population.alpha": (0.5, 0.9), "population.gamma": (0.1, 0.2)}, "would have alpha=1.0, because of gamma"),
        ({"population.alpha": (0.5, 0.9), "population.task": ("baseline", "mldc")}, "would have alpha=1.0, because of task"),
        ({"population.gamma": (0.5, 0.9), "population.task": ("segmentation", "mldc")}, "would train depth only"),
        ({"alpha": 1.0, "population.task": ("segmentation", "mldc")}, "would train depth only"),
    ],
)
def test_lists_that_do_not_fit_are_refused(changes, message, tmp_path, frozen):
    with pytest.raises(UserError, match=message):
        inputs.check(plain(tmp_path, **frozen, **changes))


def test_a_trained_backbone_cannot_be_shared(tmp_path):
    with pytest.raises(UserError, match="needs config.backbone.train=frozen"):
        inputs.check(plain(tmp_path, **{"population.alpha": (0.5, 0.9)}))


def test_unknown_tasks_are_refused(tmp_path):
    with pytest.raises(UserError, match="population.task: 'depth' is not one of baseline, mldc"):
        plain(tmp_path, **{"population.task": ("depth",)})


def test_members_keep_their_places_among_others_of_another_kind(tmp_path, frozen, monkeypatch):
    """The second trains depth only and the last moves the decoder by its own task only, so that the first and the third
    lie together: each gets its own back."""
    alphas = (0.5, 1.0, 0.7, 0.0)
    config = plain(tmp_path, **frozen, **{"population.alpha": alphas})
    model = experiment.build_model(config)
    runs = population.Runs(config, model, lambda task: (8,))
    assert [[task.name for task in todo] for todo in runs.tasks] == [["depth"] + ["mldc"] * (a < 1) for a in alphas]
    trained = [
        {part: {"kernel": np.full((1, 2), number, np.float32)} for part in ("decoder", *(task.head for task in todo))}
        for number, todo in enumerate(runs.tasks)
    ]
    state = jax.jit(lambda own: runs.init_state(own, None))(trained)
    for number, own in enumerate(trained):
        jax.tree.map(np.testing.assert_array_equal, runs.params(state, number), own)
        alone = population.Runs(runs.members[number].config, model, lambda task: (8,))
        expected = jax.eval_shape(lambda own, alone=alone: alone.init_state([own], None), own)
        member = runs.member(state, number)
        jax.tree.map(np.testing.assert_array_equal, member.params, own)
        assert jax.tree.structure(member.optimizers) == jax.tree.structure(expected.optimizers)

    def depth_scales(model, groups, *rest, **layout):
        rows = {name: {"scale": np.array([scales.depth for scales in group.scales])} for name, group in groups.items()}
        return lambda state, frozen, batch: (state, rows)

    monkeypatch.setattr(step, "build_population", depth_scales)
    _, rows = runs.build(None, 1)(state, {}, {})
    assert [float(row["scale"]) for row in rows] == list(alphas)


# ---- Whole runs -------------------------------------------------------------------------------------


def assert_own_run(member, alone):
    """Rows and parameters to float32's rounding, and the same files."""
    rows, expected = logbook.read_rows(member / "metrics.jsonl"), logbook.read_rows(alone / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, own in zip(rows, expected, strict=True):
        assert row.keys() == own.keys()
        for key in own:
            np.testing.assert_allclose(row[key], own[key], rtol=1e-4, atol=1e-5, err_msg=key)
    for kind in ("last", "best"):
        held = checkpoint.read_any_params(member, kind), checkpoint.read_any_params(alone, kind)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *held)
    found, wanted = (json.loads((folder / "evaluation.json").read_text()) for folder in (member, alone))
    assert found["last"]["AbsRel"] == pytest.approx(wanted["last"]["AbsRel"], rel=1e-4)


@pytest.mark.slow
def test_the_columns_of_a_table_are_one_run(tmp_path, frozen, capsys):
    """Depth alone and every auxiliary task on the same batches; each member is its own run, and can be used as one."""
    names = ("baseline", "mldc", "segmentation", "single_label", "reconstruction")
    together = tmp_path / "together"
    results = train.train(plain(together, **frozen, **{"population.task": names}))
    assert list(results) == [f"task={name}" for name in names]
    assert "AbsRel last" in capsys.readouterr().out
    for name in ("baseline", "segmentation", "reconstruction"):
        own = {"alpha": 1.0} if name == "baseline" else {"task": name}
        alone = plain(tmp_path / name, **frozen, **own)
        train.train(alone)
        member = together / "members" / f"task={name}"
        assert_own_run(member, tmp_path / name)
        config = json.loads((member / "config.json").read_text())
        assert config | {"workdir": ""} == json.loads(json.dumps(alone)) | {"workdir": ""}
    model = predictor.load(together / "members" / "task=mldc")
    assert model(np.zeros((30, 40, 3), np.uint8)).values.shape == (30, 40)
    assert "is a population; name one of its members" in refused(capsys, evaluate, f"--workdir={together}")
    assert call(evaluate, f"--workdir={together / 'members' / 'task=segmentation'}") == 0


@pytest.mark.slow
def test_a_population_goes_on_where_it_stopped(tmp_path, frozen):
    lists = {"population.alpha": (0.5, 1.0)}
    train.train(plain(tmp_path / "whole", **frozen, **lists))

    def stopping(self, state, clock, save=checkpoint.Checkpoints.save):
        save(self, state, clock)
        self.wait()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            train.train(plain(tmp_path / "stopped", **frozen, **lists))
    # An unfinished member can be used, and must not be trained by others.
    assert predictor.load(tmp_path / "stopped" / "members" / "alpha=0.5").name == "alpha=0.5 (best)"
    foreign = tmp_path / "stopped" / "members" / "alpha=1" / "checkpoints" / "last" / "3"
    foreign.mkdir(parents=True)
    with pytest.raises(UserError, match="alpha=1: holds a run of its own, at step 3, while the population is at step 2"):
        train.train(plain(tmp_path / "stopped", **frozen, **lists))
    foreign.rmdir()
    train.train(plain(tmp_path / "stopped", **frozen, **lists))
    for name in ("alpha=0.5", "alpha=1"):
        whole, stopped = (tmp_path / kind / "members" / name for kind in ("whole", "stopped"))
        assert (whole / "metrics.jsonl").read_bytes() == (stopped / "metrics.jsonl").read_bytes()
        for kind in ("last", "best"):
            held = checkpoint.read_any_params(whole, kind), checkpoint.read_any_params(stopped, kind)
            jax.tree.map(np.testing.assert_array_equal, *held)
    # Finished: the same command scores once more and changes nothing.
    before = (tmp_path / "stopped" / "evaluation.json").read_bytes()
    train.train(plain(tmp_path / "stopped", **frozen, **lists))
    assert (tmp_path / "stopped" / "evaluation.json").read_bytes() == before
