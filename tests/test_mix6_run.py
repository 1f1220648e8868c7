"""The paper's recipe with miniature data sets, prepared from their original layouts, and a narrow backbone."""

import json
import runpy

import jax
import numpy as np
import prepared_set
import pytest
from raw_label_trees import TREES
from test_data_pipeline import digest
from tiny_config import PICO, ROOT
from tiny_run import call, quickly

from jdepth import checkpoint, config, experiment, inputs, main, step
from jdepth.data import sources, streams
from jdepth.data.pipeline import joint_batches

STEPS, AUXILIARY = 20, 4
MEMBERS = sources.MIXTURES["mix6"]
# What makes the released recipe small: sizes, and a backbone that trains.
SMALL = {
    "steps": STEPS, "precision": "float32", "batch.depth": 2, "batch.auxiliary": AUXILIARY,
    "backbone.name": PICO.name, "backbone.train": "full", "decoder.channels": 8,
    "data.depth.augmentation.resize": (30, 45), "data.depth.augmentation.fixed_crop": (),
    "data.depth.augmentation.crop": (28, 42), "data.auxiliary.augmentation.scale": (45, 30),
    "data.auxiliary.augmentation.crop": (28, 42), "data.auxiliary.augmentation.canvas": (28, 42),
    "evaluate.protocol": "whole", "evaluate.input_size": (28, 42), "evaluate.every": STEPS, "evaluate.pictures": 0,
    "checkpoint.every": STEPS, "log.every": 1, "log.tensorboard": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """data/ with nyu and the six members; images of about 15 x 17, three or four of each."""
    from raw_depth_trees import TREES as DEPTH_TREES

    folder = tmp_path_factory.mktemp("mix6")
    for name in MEMBERS:
        trees = DEPTH_TREES if name in DEPTH_TREES else TREES
        trees[name](folder / "raw" / name)
    prepared_set.frames(folder / "raw/nyu", 8)
    for name in ("nyu", *MEMBERS):
        assert prepared_set.run(name, "--raw", folder / "raw" / name, "--out", folder / "data") == 0
    return folder / "data"


def small_config(data_dir, workdir, **changes):
    given = runpy.run_path(str(ROOT / "configs/nyu_mix6.py"))["get_config"]()
    given.update_from_flattened_dict(SMALL | changes | {"data_dir": str(data_dir), "workdir": str(workdir)})
    given = config.as_dict(given)
    config.check(given)
    return given


def states(given, auxiliary=None):
    """(auxiliary batch, parameters and first moments of the heads before, after, β1) of each step."""
    model = experiment.build_model(given)
    stream = auxiliary or inputs.auxiliary_stream(given)
    todo = experiment.build_tasks(given, model, stream.classes)
    scales, settings = experiment.scales(given), experiment.optimizer_settings(given)
    optimizers = step.build_optimizers(todo, scales, settings, given["backbone"]["lr_ratio"])
    start = experiment.initial_params(given, model, todo)
    state = step.init_state(start.trained, todo, optimizers, scales)
    batches = streams.JointBatches(inputs.depth_stream(given), stream, 2, AUXILIARY, given["seed"])
    joint_step = jax.jit(step.build(model, todo, optimizers, scales, settings))
    for number in range(given["steps"]):
        batch = batches(number)
        assert not batch.pop("replaced")
        after, metrics = joint_step(state, start.frozen, batch)
        yield batch["auxiliary"], state, after, float(metrics["beta1"]), todo[1].head
        state = after


def first_moment(state, head):
    """{"kernel": (datasets, C, K), "bias": (datasets, K)} of the auxiliary optimizer."""
    flat = jax.tree_util.tree_flatten_with_path(state.optimizers["auxiliary"])[0]
    found = {}
    for path, value in flat:
        names = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
        if "mu" in names and head in names:
            found[names[-1]] = np.asarray(value)
    assert set(found) == {"kernel", "bias"}
    return found


def test_twenty_steps_of_the_command_and_each_heads_gradient(data_dir, tmp_path, compiled, capsys):
    with quickly(compiled):
        given = [f"--config.{key}={value}" for key, value in SMALL.items()]
        workdir = tmp_path / "run"
        code = call(main, f"--config={ROOT}/configs/nyu_mix6.py", *given, f"--config.data_dir={data_dir}",
                    f"--config.workdir={workdir}")  # fmt: skip
        printed = capsys.readouterr()
        assert code == 0, printed.err
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        losses = [row["mldc/loss"] for row in rows if "mldc/loss" in row]
        assert len(losses) == STEPS and np.isfinite(losses).all()

        seen, final = set(), None
        for batch, before, after, beta1, head in states(small_config(data_dir, tmp_path)):
            held = set(batch["dataset_id"].tolist())
            seen |= held
            old, new = first_moment(before, head), first_moment(after, head)
            for member in range(len(MEMBERS)):
                gradient = [np.abs(new[k][member] - beta1 * old[k][member]).max() for k in ("kernel", "bias")]
                # Without an image of it the moment only decays: what is left is the product's rounding.
                rounding = 1e-6 * max(np.abs(old[k][member]).max() for k in old)
                assert (max(gradient) > rounding) == (member in held), (member, held, gradient)
            final = after
        assert seen == set(range(len(MEMBERS)))
        params, number = checkpoint.read_params(workdir, "last", final.params)
        assert number == STEPS
        for mine, theirs in zip(jax.tree.leaves(final.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_member_that_is_never_drawn_does_not_move_without_decay(data_dir, tmp_path, compiled):
    with quickly(compiled):
        given = small_config(data_dir, tmp_path, **{"optimizer.weight_decay": 0.0})
        whole = inputs.auxiliary_stream(given)
        left_out = 3
        weights = tuple(1e-12 if member == left_out else 1.0 for member in range(len(MEMBERS)))
        stream = streams.AuxiliaryStream(whole.members, whole.augmentations, "mldc", weights)
        first, last, head = None, None, None
        for batch, before, after, _, head in states(given, stream):
            assert left_out not in batch["dataset_id"]
            first, last = first or before, after
        for key, start in first.params[head].items():
            end = np.asarray(last.params[head][key])
            np.testing.assert_array_equal(end[left_out], np.asarray(start)[left_out])
            assert all((end[m] != np.asarray(start)[m]).any() for m in range(len(MEMBERS)) if m != left_out)


def test_missing_members_are_named_with_the_way_to_go_without(data_dir, tmp_path, compiled, capsys):
    smaller = tmp_path / "data"
    smaller.mkdir()
    for name in ("nyu", *MEMBERS):
        if name not in ("cityscapes34", "voc21"):
            (smaller / name).symlink_to(data_dir / name)
    with quickly(compiled):
        given = [f"--config.{key}={value}" for key, value in SMALL.items()]
        command = (main, f"--config={ROOT}/configs/nyu_mix6.py", *given, f"--config.data_dir={smaller}",
                   f"--config.workdir={tmp_path / 'run'}", "--config.steps=2", "--config.evaluate.every=2",
                   "--config.checkpoint.every=2")  # fmt: skip
        assert call(*command) == 2
        error = capsys.readouterr().err
        rest = "--config.data.auxiliary.name=ade20k+sun37+coco_stuff+context59"
        assert "data not found: cityscapes34, voc21" in error and rest in error
        assert call(*command, rest) == 0


def batches_of(given, start=0, workers=0, shard=(0, 1)):
    return joint_batches(inputs.depth_stream(given), inputs.auxiliary_stream(given), batch_depth=2,
                         batch_auxiliary=AUXILIARY, seed=3, start=start, workers=workers, shard=shard)  # fmt: skip


def test_stopped_with_two_workers_and_gone_on_with_none_and_with_four(data_dir, tmp_path, compiled):
    with quickly(compiled):
        given = small_config(data_dir, tmp_path)
    with batches_of(given, workers=2) as batches:
        first = [digest(next(batches)) for _ in range(60)]
        assert batches.position == 60
    for workers in (0, 4):
        with batches_of(given, 10, workers) as batches:
            assert [digest(next(batches)) for _ in range(50)] == first[10:]
    assert len(set(first)) == 60


def test_two_processes_share_an_epoch(data_dir, tmp_path, compiled):
    """Side by side their rows are the batches of one; over an epoch of MIX6 each image comes once."""
    with quickly(compiled):
        given = small_config(data_dir, tmp_path)
    total = sum(map(len, inputs.auxiliary_sources(given)))
    epoch = total // AUXILIARY
    with batches_of(given) as whole, batches_of(given, shard=(0, 2)) as one, batches_of(given, shard=(1, 2)) as two:
        for _ in range(epoch):
            batch, first, second = next(whole), next(one), next(two)
            for stream, arrays in batch.items():
                for key, array in arrays.items():
                    np.testing.assert_array_equal(np.concatenate([first[stream][key], second[stream][key]]), array)
    places = streams.JointBatches(inputs.depth_stream(given), inputs.auxiliary_stream(given), 2, AUXILIARY, 3)
    drawn = [places._auxiliary_order[position] for position in range(total)]
    assert len(set(drawn)) == total
