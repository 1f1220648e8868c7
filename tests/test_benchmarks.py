"""The benchmarks: tiny cases through the command line, without the packages that a bare GPU image lacks; that every way
of running the joint step computes the same; and FLOPs against a count by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_config import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import hand_count
import measure
import train_step
import workload

from jdepth.data import sources
from jdepth.errors import UserError

BARE = Path(__file__).parent / "bare_image"
FAST = ("--rounds", "1", "--seconds", "0.001")
BACKBONE = "tiny 1+1 k=1 backbone at 28x42"
FUSED = "tiny 1+1 k=1 fused at 28x42"


def start(script, *arguments, code=0, **variables):
    """Output of a benchmark, run as a user does, on an image without the hidden packages."""
    command = [sys.executable, f"benchmarks/{script}.py", *map(str, arguments)]
    variables = os.environ | {"PYTHONPATH": str(BARE), "OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout if code == 0 else done.stderr


# ---- The command line -------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train_step", "scaling", "population", "inference"])
def test_help_on_a_bare_image(script):
    assert f"python benchmarks/{script}.py" in start(script, "--help")


def test_the_hidden_packages_are_hidden():
    done = subprocess.run([sys.executable, "-c", "import grain"], env=os.environ | {"PYTHONPATH": str(BARE)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode and "hidden by a test" in done.stderr


@pytest.mark.slow
def test_rows_are_written_and_finished_ones_skipped(tmp_path):
    one, two = BACKBONE, BACKBONE.replace("1+1", "2+2")  # two groups: two processes
    out = start("train_step", "--cases", one, two, *FAST, "--results", tmp_path)
    assert out.count("done after") == 2 and one in out
    file = tmp_path / "train_step-cpu.json"
    rows = json.loads(file.read_text())
    assert set(rows) == {one, two}
    for row in rows.values():
        assert row["device"] == "cpu" and row["versions"]["jax"] == jax.__version__ and row["date"].startswith("20")
        assert row["seconds"] > 0 and 0 < row["flops"] == row["official_flops"] and row["program_bytes"] > 0
        assert 0 < row["utilisation"] < 2 and row["precision"] == "float32" and row["compile_seconds"] > 0
    assert rows[two]["flops"] == pytest.approx(2 * rows[one]["flops"], rel=0.01)  # the position table is resized once
    # What is there stays; a new case of the same group is compared with the group's first one.
    again = start("train_step", "--cases", one, FUSED, *FAST, "--results", tmp_path)
    after = json.loads(file.read_text())
    assert after[one] == rows[one] and after[two] == rows[two] and again.count("done after") == 1
    assert after[FUSED]["compared_with"] == one and after[FUSED]["times_as_fast"] > 0
    assert after[FUSED]["official_flops"] > after[FUSED]["flops"] > after[one]["flops"]
    # Measured anew where asked, and nothing at all without time.
    start("train_step", "--cases", one, *FAST, "--results", tmp_path, "--again")
    assert json.loads(file.read_text())[one]["rounds"] != rows[one]["rounds"]
    out = start("train_step", "--cases", one, two, FUSED.replace("1+1", "3+3"), "--results", tmp_path, "--minutes", 0)
    assert "no time left for tiny 3+3" in out and "not measured" in out


@pytest.mark.slow
def test_a_population_is_compared_with_its_single_runs(tmp_path):
    case = "tiny 1+1 alphas=2 at 28x42 k=2"
    out = start("population", "--cases", case, *FAST, "--results", tmp_path)
    row = json.loads((tmp_path / "population-cpu.json").read_text())[case]
    assert case in out and row["members"] == 2 and row["ratio"] > 0
    # The backbone is little of a tiny step, and saved once.
    assert 1 < row["predicted_ratio"] < 2
    assert "expected" in start("population", "--cases", "tiny 1+1 alphas at 28x42", code=2)


def test_a_trace_is_written(tmp_path):
    start("train_step", "--cases", BACKBONE, *FAST, "--results", tmp_path, "--profile", tmp_path / "traces")
    assert list((tmp_path / "traces").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_scaling_over_two_devices(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    asked = ("--size", "tiny", "--crop", "28x28", "--batch", 1, "--ahead", 2, *FAST, "--results", tmp_path)
    out = start("scaling", *asked, **flags)
    rows = json.loads((tmp_path / "scaling-cpu.json").read_text())
    assert [row["devices"] for row in rows.values()] == [1, 2, 1, 2]
    assert all(row["efficiency"] == 1 for row in rows.values() if row["devices"] == 1)
    assert "strong tiny 1+1 k=2 fused at 28x28 on 2 of 2" in rows and "weak tiny 1+1 k=1" in out
    # The strong rows share the images of one batch, step by step: each device holds less of them.
    strong = [row["program_bytes"] for name, row in rows.items() if name.startswith("strong")]
    assert strong[1] < strong[0]


@pytest.mark.parametrize(
    "name, told",
    [
        ("g 4+4", "expected"), ("G 4+4 k=1 fused", "size G is none of S, B, L, g"), ("g 4+4 k=1 fast", "fast is none"),
        ("g 0+4 k=1 fused", "at least 1"), ("g 4+4 k=2 separate", "use k=1"),
    ],
)  # fmt: skip
def test_a_wrong_case_is_one_line(name, told):
    with pytest.raises(UserError, match=told) as error:
        workload.parse(name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_mistakes_end_with_code_two(tmp_path):
    assert start("train_step", "--cases", "g 4+4 k=1 fast", code=2).count("\n") == 1
    (tmp_path / "train_step-cpu.json").write_text("{")
    assert "move it away" in start("train_step", "--cases", BACKBONE, "--results", tmp_path, code=2)


# ---- What is measured -------------------------------------------------------------------------------


def test_named_cases_are_cases():
    for cases in train_step.SETS.values():
        assert [str(workload.parse(case)) for case in cases] == cases
    core = train_step.chosen("core", [], True)
    assert len(train_step.SETS["core"]) == 14 and {str(case) for case in core} >= {
        f"g {n}+{n} k=1 {kind}" for n in (4, 16) for kind in ("fused", "separate", "plain", "eager", "compile")
    }
    assert [str(case) for case in train_step.chosen(None, [FUSED], True)] == [
        FUSED.replace("fused", kind) for kind in ("fused", "plain", "eager", "compile")
    ]
    assert len(train_step.SETS["all"]) == 4 * 5 * 9


def test_classes_are_those_of_mix6():
    assert workload.MIX6_CLASSES == tuple(len(sources.raw_set(name).classes) for name in sources.MIXTURES["mix6"])


@pytest.mark.slow
def test_every_way_computes_the_same_step(x64):
    """To rounding in float64, in the middle of a run: two programs one after the other, the released forms, and the two
    updates on features that are there."""
    case = workload.parse("tiny 2+2 k=1 fused at 42x56")
    work, released = (workload.build(case, "float32", "plain", kept) for kept in (None, ()))
    params = workload.random_params(workload.abstract_params(work))
    start_state, frozen = workload.initial(work, jax.tree.map(lambda x: x.astype(np.float64), params))
    start_state = start_state._replace(step=start_state.step + 10_000)
    batch = workload.host_batch(case)

    def after(work, *kinds, state=start_state):
        for kind in kinds:
            program = workload.Program(work, kind, state, frozen, batch)
            program(1)
            state = program.state
        return jax.device_get((state, program.metrics))

    fused, metrics = after(work, "fused")
    assert fused.step == 10_001 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(metrics))
    pairs = zip(jax.tree.leaves(fused.params), jax.tree.leaves(start_state.params), strict=True)
    assert min(np.abs(a - b).max() for a, b in pairs) > 0
    ways = {
        "separate": after(work, "separate")[0],
        "released": after(released, "fused")[0],
        "phases": after(work, "depth-update", "auxiliary-update")[0],
    }
    for name, other in ways.items():
        for a, b in zip(jax.tree.leaves(fused), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(a).max(), err_msg=name)
    # What this resolves: the auxiliary gradient taken before the depth update.
    before = after(work, "auxiliary-update")[0].optimizers["auxiliary"]
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(fused.optimizers["auxiliary"]), strict=True)
    assert max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30) for a, b in pairs) > 1e-7


def test_interleaved_times_are_per_unit():
    calls = {"one": lambda n: sum(range(20_000 * n)), "three": lambda n: sum(range(60_000 * n))}
    times = measure.interleaved(calls, rounds=5, seconds=0.01)
    assert all(len(values) == 5 for values in times.values())
    assert 1.5 < measure.ratio(times, "three", "one") < 6


# ---- FLOPs ------------------------------------------------------------------------------------------


def by_hand(case):
    sizes = zip((case.depth, case.auxiliary), workload.crops(case), strict=True)
    return hand_count.joint_step(case.shape, *sizes, case.channels)


@pytest.mark.parametrize("size", ["S", pytest.param("g", marks=pytest.mark.slow)])
def test_flops_of_the_recipe_against_a_count_by_hand(size):
    case = workload.parse(f"{size} 4+4 k=1 fused")
    counted, hand = workload.counted(case), by_hand(case)
    print(f"{size}: counted {counted / 1e12:.4f} T, by hand {hand / 1e12:.4f} T, ratio {counted / hand:.4f}")
    assert 0.97 * hand <= counted <= 1.03 * hand


def test_flops_of_the_kinds_add_up():
    kinds = ("fused", "separate", "backbone", "depth-update", "auxiliary-update")
    flops = {kind: workload.counted(workload.parse(f"tiny 2+2 k=1 {kind} at 56x84")) for kind in kinds}
    assert flops["separate"] == flops["fused"]
    assert flops["backbone"] + flops["depth-update"] + flops["auxiliary-update"] == flops["fused"]


def test_looking_ahead_changes_no_flops():
    case = workload.parse("tiny 2+2 k=3 fused at 56x84")
    work = workload.build(case, "bfloat16", "plain")
    (stage,) = workload.stages(work, "fused")
    per_step = workload.flops.count(stage, *workload.abstract(work, case)) / 3
    assert per_step == pytest.approx(workload.counted(case), rel=1e-3)  # the position table is resized once


def test_each_saving_saves():
    case = workload.parse("tiny 2+2 k=1 fused at 56x84")
    released, ours = workload.counted(case, ()), workload.counted(case)
    saved = {saving: released - workload.counted(case, (saving,)) for saving in workload.released.SAVINGS}
    assert saved.pop("expansion") == 0  # other kernels, not less work
    assert all(value > 0 for value in saved.values()) and sum(saved.values()) == pytest.approx(released - ours)
    assert workload.counted(case, workload.released.SAVINGS) == ours
    assert workload.towards_taps(case) > 0
