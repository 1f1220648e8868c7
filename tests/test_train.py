"""Whole runs: killed and started again, on several devices, with every task, and what must stop them.

Runs of the command line start a process of their own and share a compilation cache.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_config import PICO, PICO_SIZE, ROOT, plain
from tiny_run import save_backbone

from jdepth import checkpoint, command_line, evaluate, experiment, logbook, train, weights
from jdepth.errors import UserError
from jdepth.models import vit
from jdepth.step import TrainState
from jdepth.weights import catalogue


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def pico(monkeypatch):
    """The narrow backbone, known to this process for one test."""
    monkeypatch.setitem(vit.BACKBONES, PICO.name, PICO)
    monkeypatch.setitem(catalogue.SIZES, PICO.name, PICO_SIZE)


def start(cache, workdir, devices=1, *flags, **changes) -> subprocess.Popen:
    """`python -m jdepth.main` on the tiny config; changes are "a.b" keys."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "jdepth.main", "--config", "tests/tiny_config.py", f"--config.workdir={workdir}"]
    command += [*flags] + [f"--config.{key}={value}" for key, value in changes.items()]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    """Standard output (error output for a failure) of a run that ends with `code`."""
    out, error = process.communicate(timeout=900)
    assert process.returncode == code, error[-3000:]
    return error if code else out


def kill_after(process: subprocess.Popen, workdir, step: int, delay: float) -> None:
    """SIGKILL `delay` seconds after the row of `step` was written, given that there is a checkpoint."""
    rows = workdir / "metrics.jsonl"
    while process.poll() is None:
        if checkpoint.steps(workdir, "last") and any(row["step"] >= step for row in logbook.read_rows(rows)):
            break
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, f"the run ended before it was killed: {error[-2000:]}"


def saved(workdir) -> dict[str, np.ndarray]:
    """Every array of the newest `last` checkpoint, by its path."""
    step = checkpoint.steps(workdir, "last")[-1]
    found = {}
    with ocp.StandardCheckpointer() as reader:
        for part in ("params", "optimizers"):
            path = checkpoint.folder(workdir, "last") / str(step) / part
            # Whole arrays on a device of this process, whichever devices they were written from.
            here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            held = reader.metadata(path).item_metadata.tree
            like = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=here), held)
            tree = reader.restore(path, like)
            for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
                found[f"{step}/{part}{jax.tree_util.keystr(name)}"] = np.asarray(leaf)
    return found


def assert_same_run(one, other):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    first, second = saved(one), saved(other)
    assert first.keys() == second.keys() and any("optimizers" in name for name in first)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
    assert (one / "evaluation.json").read_bytes() == (other / "evaluation.json").read_bytes()


# ---- One run of the command, and what must equal it --------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(cache, tmp_path_factory):
    """A run of 40 steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    out = finish(start(cache, workdir))
    assert "step 40/40" in out and "evaluation protocol" in out
    return workdir


def test_a_run_leaves_its_rows_scores_and_checkpoints(whole_run):
    rows = logbook.read_rows(whole_run / "metrics.jsonl")
    training = [row for row in rows if "depth/loss" in row]
    assert [row["step"] for row in training] == list(range(5, 41, 5))
    assert [row["step"] for row in rows if "evaluation/AbsRel" in row] == [20, 40]
    assert {"depth/gradient_norm", "mldc/loss", "mldc/gradient_norm", "rate", "beta1"} <= training[0].keys()
    clock = checkpoint.read_clock(whole_run)
    assert clock["step"] == clock["consumed"] == 40
    assert checkpoint.steps(whole_run, "last") == [40]
    assert checkpoint.steps(whole_run, "best") == [clock["best_step"]]
    result = json.loads((whole_run / "evaluation.json").read_text())
    assert result["best"]["AbsRel"] <= result["last"]["AbsRel"]
    # The whole evaluation set is scored while training too, so the two agree up to the batches' order.
    last = [row for row in rows if row["step"] == 40 and "evaluation/AbsRel" in row][0]
    assert result["last"]["AbsRel"] == pytest.approx(last["evaluation/AbsRel"], rel=1e-6)


def test_a_killed_run_started_again_is_the_same_run(cache, whole_run, tmp_path):
    workdir = tmp_path / "killed"
    draw = random.Random(1)
    kill_after(start(cache, workdir), workdir, draw.choice((15, 20, 25)), draw.uniform(0, 0.2))
    assert "going on from step" in finish(start(cache, workdir))
    assert_same_run(whole_run, workdir)


def test_workers_change_nothing(cache, whole_run, tmp_path):
    finish(start(cache, tmp_path / "run", **{"data.workers": 2}))
    assert_same_run(whole_run, tmp_path / "run")


def test_evaluate_reproduces_the_scores_of_training(whole_run, pico, tmp_path, capsys):
    expected = json.loads((whole_run / "evaluation.json").read_text())
    for kind in ("last", "best"):
        out = tmp_path / f"{kind}.json"
        argv = ["evaluate", f"--workdir={whole_run}", f"--kind={kind}", f"--out={out}"]
        assert command_line.call(evaluate.main, evaluate.USAGE, evaluate.define, argv) == 0
        found = json.loads(out.read_text())
        assert found["protocol"] == expected["protocol"]
        assert found["constant_AbsRel"] == expected["constant_AbsRel"]
        for name, value in found["depth"].items():
            assert value == pytest.approx(expected[kind][name], rel=1e-5), (kind, name)


def test_a_run_can_start_from_another(whole_run, pico, tmp_path):
    # Another α and other auxiliary data are no obstacle: names and shapes decide.
    config = plain(tmp_path, init_from=str(whole_run), alpha=0.5)
    model = experiment.build_model(config)
    todo = experiment.build_tasks(config, model, (len(_rooms_classes()),))
    begun = experiment.initial_params(config, model, todo)
    held = checkpoint.read_any_params(whole_run, "best")
    assert jax.tree.structure(held) == jax.tree.structure(begun.trained)
    jax.tree.map(np.testing.assert_array_equal, begun.trained, held)
    assert any("arrays loaded" in line for line in begun.report)


def _rooms_classes():
    from jdepth.data.sources.rooms import Rooms

    return Rooms.classes


@pytest.mark.slow
def test_three_kills_at_random_moments(cache, tmp_path):
    length = {"steps": 100}
    finish(start(cache, tmp_path / "whole", **length))
    draw = random.Random(7)
    for low, high in ((5, 30), (35, 60), (65, 90)):
        step, delay = draw.randrange(low, high, 5), draw.uniform(0, 0.5)
        kill_after(start(cache, tmp_path / "killed", **length), tmp_path / "killed", step, delay)
    finish(start(cache, tmp_path / "killed", **length))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_checkpoint_holds_its_own_step_although_training_goes_on(tmp_path):
    state = TrainState({"a": jnp.zeros((1000, 1000))}, {"o": jnp.zeros((1000, 1000))}, jnp.zeros((), jnp.int32))
    ahead = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints, clock = checkpoint.Checkpoints(tmp_path), {}
    for number in (1, 2):
        state = jax.block_until_ready(ahead(state))
        clock |= {"step": number, "consumed": number}
        checkpoints.save(state, clock)
        for _ in range(9):
            state = ahead(state)
        jax.block_until_ready(state)
        clock |= {"consumed": -1}
        checkpoints.wait()
        restored = checkpoints.restore(state)
        expected = 1 + 10 * (number - 1)
        assert np.unique(restored.state.params["a"]) == np.unique(restored.state.optimizers["o"]) == expected
        assert restored.clock == {"step": number, "consumed": number} and int(restored.state.step) == number
    checkpoints.close()


def test_only_the_named_best_stays(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for number in (1, 2, 3):
        checkpoints.save_best(number, {"a": jnp.full(3, float(number))})
    checkpoints.keep_best(2)
    checkpoints.close()
    assert checkpoint.steps(tmp_path, "best") == [2]
    like = {"a": jax.ShapeDtypeStruct((3,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))}
    held, number = checkpoint.read_params(tmp_path, "best", like)
    assert number == 2 and float(held["a"][0]) == 2.0
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.read_params(tmp_path, "last", like)


# ---- Devices ----------------------------------------------------------------------------------------


def _worst_rows(cache, tmp_path, **changes) -> list[dict[str, float]]:
    """Relative differences of the metric rows of a 20-step run on one and on eight devices, row by row."""
    changes = {"steps": 20, "batch.depth": 8, "batch.auxiliary": 8} | changes
    rows = {}
    for devices in (1, 8):
        finish(start(cache, tmp_path / str(devices), devices, **changes))
        rows[devices] = logbook.read_rows(tmp_path / str(devices) / "metrics.jsonl")
    found = []
    for one, eight in zip(rows[1], rows[8], strict=True):
        assert one.keys() == eight.keys()
        found.append({key: abs(value - eight[key]) / max(abs(value), 1e-6) for key, value in one.items()})
    return found


@pytest.mark.slow
def test_eight_devices_compute_what_one_computes(cache, tmp_path):
    """Every column of every row, held-out scores too."""
    worst = _worst_rows(cache, tmp_path, precision="float64")
    assert any("evaluation/AbsRel" in row for row in worst)
    largest = max(max(row.values()) for row in worst)
    print(f"largest difference {largest:.1e}")
    assert largest <= 1e-10


@pytest.mark.slow
def test_eight_devices_begin_as_one_in_float32(cache, tmp_path):
    """Before updates have grown what rounding left: AdamW divides each gradient by its own size, so that entries
    whose gradient is mostly rounding move apart by a share of the rate (2e-3 of it after 5 steps, 0.2 after 20,
    measured), and a ReLU whose input then changes sign shows in a gradient's norm."""
    worst = _worst_rows(cache, tmp_path, **{"log.every": 1, "optimizer.rate": 1e-4})
    steps = [row for row in worst if "rate" in row]
    norms = [max(v for k, v in row.items() if k.endswith(("/loss", "/gradient_norm"))) for row in steps]
    print("losses and gradient norms by step:", " ".join(f"{value:.1e}" for value in norms))
    assert len(norms) == 20 and max(norms[:3]) <= 1e-5


def test_a_batch_that_does_not_divide_is_refused(cache, tmp_path):
    error = finish(start(cache, tmp_path / "run", 8, **{"batch.depth": 8, "batch.auxiliary": 6}), code=2)
    assert "config.batch.auxiliary=6 does not divide among 8 devices" in error.splitlines()[-1]
    assert not (tmp_path / "run").exists()


# ---- Tasks and weights -----------------------------------------------------------------------------

SHORT = {"steps": 2, "log.every": 1, "checkpoint.every": 2, "evaluate.every": 2}


@pytest.mark.parametrize(
    "task, metric",
    [
        pytest.param("segmentation", "mIoU", marks=pytest.mark.slow),
        pytest.param("reconstruction", "auxiliary_loss", marks=pytest.mark.slow),
        pytest.param("single_label", "accuracy", marks=pytest.mark.slow),
        pytest.param(None, "AbsRel", marks=pytest.mark.slow),
    ],
)
def test_every_task_trains_and_is_evaluated(task, metric, pico, tmp_path):
    changes = {"task": task} if task else {"alpha": 1.0}
    result = train.train(plain(tmp_path / "run", **SHORT, **changes))
    rows = logbook.read_rows(tmp_path / "run" / "metrics.jsonl")
    assert np.isfinite(result["last"]["AbsRel"])
    assert np.isfinite(rows[-1][f"evaluation/{metric}"])
    tasks = {key.split("/")[0] for key in rows[0] if key.endswith("/loss")}
    assert tasks == {"depth"} | ({task} if task else set())


def _save_and_stop(save):
    def stopping(self, state, clock):
        save(self, state, clock)
        self.wait()
        raise KeyboardInterrupt

    return stopping


@pytest.mark.slow
def test_looking_ahead_gives_the_run_of_single_steps(pico, tmp_path):
    """Metrics to float32's rounding, the same batches consumed, and going on from a checkpoint."""
    weights_file = save_backbone(tmp_path / "backbone.safetensors")
    frozen = {"backbone.train": "frozen", "backbone.weights": str(weights_file), "steps": 8, "log.every": 4,
              "checkpoint.every": 4, "evaluate.every": 8}  # fmt: skip
    rows = {}
    for ahead in (1, 4):
        workdir = tmp_path / str(ahead)
        train.train(plain(workdir, **frozen, look_ahead=ahead))
        rows[ahead] = logbook.read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[4]]
    for one, other in zip(rows[1], rows[4], strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_allclose(other[key], one[key], rtol=2e-5, atol=1e-6, err_msg=key)
    assert checkpoint.read_clock(tmp_path / "4")["consumed"] == checkpoint.read_clock(tmp_path / "1")["consumed"] == 8
    # Stopped after the first call, and gone on.
    shorter = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "save", _save_and_stop(checkpoint.Checkpoints.save))
        with pytest.raises(KeyboardInterrupt):
            train.train(plain(shorter, **frozen, look_ahead=4))
    train.train(plain(shorter, **frozen, look_ahead=4))
    assert logbook.read_rows(shorter / "metrics.jsonl") == rows[4]
    kept = checkpoint.read_any_params(tmp_path / "1", "last"), checkpoint.read_any_params(tmp_path / "4", "last")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *kept)


def test_a_frozen_backbone_is_told_from_another(pico, tmp_path, capsys):
    info = weights.WeightsInfo("dinov2", PICO.name, PICO.name, None, None, None, "test", "none")
    model = vit.VisionTransformer(PICO)
    for seed in (1, 2):
        params = model.lazy_init(
            jax.random.key(seed), jax.ShapeDtypeStruct((1, 28, 28, 3), np.float32), final_norm=True
        )["params"]
        weights.save(tmp_path / f"{seed}.safetensors", {"backbone": jax.device_get(params)}, info)
    given = {"backbone.train": "frozen", "backbone.weights": str(tmp_path / "1.safetensors")}
    short = SHORT | {"alpha": 1.0}
    config = plain(tmp_path / "run", **short, **given)
    train.train(config)
    held = checkpoint.read_any_params(tmp_path / "run", "last")
    assert set(held) == {"decoder", "depth_head"}, "a frozen backbone is not saved"
    clock = checkpoint.read_clock(tmp_path / "run")
    assert clock["backbone"] == weights.fingerprint(weights.load(tmp_path / "1.safetensors").params["backbone"])
    # The same name, other contents.
    (tmp_path / "2.safetensors").replace(tmp_path / "1.safetensors")
    with pytest.raises(UserError, match="was trained on another backbone"):
        train.train(config)


def test_a_run_can_start_from_a_converted_file(pico, tmp_path):
    config = plain(tmp_path / "unused", alpha=1.0, seed=3)
    model = experiment.build_model(config)
    todo = experiment.build_tasks(config, model, ())
    held = jax.device_get(experiment.fresh_params(config, model, todo))
    info = weights.WeightsInfo("dinov2_dpt", "tiny_dpt", PICO.name, 8, 0.001, 10.0, "test", "none")
    weights.save(tmp_path / "model.safetensors", held, info)
    given = plain(tmp_path / "run", alpha=1.0, init_from=str(tmp_path / "model.safetensors"))
    begun = experiment.initial_params(given, model, todo)
    jax.tree.map(np.testing.assert_array_equal, begun.trained, held)


def test_a_frozen_backbone_needs_weights(pico, tmp_path):
    with pytest.raises(UserError, match="config.backbone.weights"):
        train.train(plain(tmp_path / "run", **{"backbone.train": "frozen"}))


# ---- What must stop a run ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_blows_up_is_stopped(pico, tmp_path):
    changes = SHORT | {"steps": 8, "checkpoint.every": 8, "evaluate.every": 8, "alpha": 1.0, "optimizer.rate": 1e30}
    with pytest.raises(UserError, match="is not finite: lower config.optimizer.rate"):
        train.train(plain(tmp_path / "run", **changes, **{"optimizer.warmup_fraction": 0.0}))
    assert not checkpoint.steps(tmp_path / "run", "last")


def test_workdirs_of_something_else_are_refused(whole_run, pico, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="has files but no config.json"):
        train.train(plain(tmp_path))
    with pytest.raises(UserError, match="seed=0 there, 1 here"):
        train.train(plain(whole_run, seed=1))
