"""What many runs in one save: python benchmarks/population.py [--set core]

  --set tiny | cpu | core       named cases; tiny and cpu are for machines without an accelerator
  --cases "g 4+4 alphas=8" ...  or single ones: SIZE DEPTH+AUXILIARY alphas=N | tasks [at HxW] [k=K]

"alphas=8" is a population of eight values of α against eight runs of one; "tasks" the five columns of the paper's
Table 3 (depth alone and four auxiliary tasks) against the five runs. All are timed in the same rounds. Beside the ratio
stands the one that FLOPs predict, and the hours that 7 data sets × 4 seeds of such rows would take.
"""

import argparse
import re
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import measure
from measure import RESULTS, Results, UserError, shown, table

import jax
import numpy as np
import workload

from jdepth import experiment, flops, parallel, population, recipe, step
from jdepth.models import depth_model

SETS = {
    "tiny": ["tiny 2+2 alphas=3 at 56x84", "tiny 2+2 tasks at 56x84"],
    "cpu": ["S 1+1 alphas=8 at 112x140"],
    "core": ["S 4+4 alphas=8", "g 4+4 alphas=8", "g 4+4 tasks"],
}
TASKS = (population.BASELINE, "mldc", "segmentation", "single_label", "reconstruction")
FORM = '"SIZE DEPTH+AUXILIARY alphas=N|tasks [at HxW] [k=K]", such as "g 4+4 alphas=8"'
# The paper's Table 3: data sets and seeds of every column.
TABLE_ROWS = 7 * 4


class Sweep(NamedTuple):
    """A case: the joint step's sizes, and what the members differ in."""

    case: workload.Case
    lists: dict[str, tuple]

    @property
    def programs(self) -> int:
        """How many are compiled: the members' common one, and a single run of each kind."""
        return 1 + (len(self.lists["task"]) if "task" in self.lists else 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="named cases")
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="single cases")
    parser.add_argument("--minutes", type=float, help="start no case that may not end within so many minutes")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per case")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a timed block")
    parser.add_argument("--again", action="store_true", help="measure finished cases again")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON file lies")
    given = parser.parse_args()
    names = given.cases or SETS.get(given.set or "", [])
    if not names:
        parser.error("give --set or --cases")
    try:
        run(given, {name: parse(name) for name in names})
    except UserError as error:
        parser.exit(2, f"{error}\n")


def parse(name: str) -> Sweep:
    """A case by its name. Raises UserError for a name that is none."""
    found = re.fullmatch(r"(\w+ \d+\+\d+) (?:alphas=(\d+)|tasks)((?: at \d+x\d+)?)(?: k=(\d+))?", name.strip())
    if not found:
        raise UserError(f"case {name!r}: expected {FORM}")
    sizes, alphas, crop, ahead = found.groups()
    case = workload.parse(f"{sizes} k={ahead or 1} fused{crop}")
    if alphas is None:
        return Sweep(case, {"task": TASKS})
    # Within 0 and 1, where both updates move the decoder: members of one structure.
    return Sweep(case, {"alpha": tuple(np.linspace(0.5, 0.95, int(alphas)).round(4).tolist())})


def run(given: argparse.Namespace, sweeps: Mapping[str, Sweep]) -> None:
    """Measure what is not there yet, then print all."""
    results, began = Results("population", measure.device(), given.results), time.monotonic()
    for name, sweep in sweeps.items():
        if name in results.rows() and not given.again:
            continue
        # What a case may take: for each of its programs as long as the longest so far, in this call or an earlier one.
        spent, started = time.monotonic() - began, time.monotonic()
        longest = max((row.get("seconds_per_program", 0.0) for row in results.rows().values()), default=0.0)
        if given.minutes is not None and spent + longest * sweep.programs > 60 * given.minutes:
            print(f"no time left for {name}; the same command goes on with it")
            continue
        row = row_of(sweep, given)
        results.add(name, row | {"seconds_per_program": (time.monotonic() - started) / sweep.programs})
        print(f"{name}: done after {time.monotonic() - began:.0f} s", flush=True)
    lines = [
        [
            name, shown(row["seconds"], 4, 1e3), shown(row["seconds_of_single_runs"], 4, 1e3), shown(row["ratio"]),
            shown(row["predicted_ratio"]), shown(row["hours_of_the_table"]), shown(row["program_bytes"], 3, 2**-30),
            shown(row["compile_seconds"]),
        ]
        for name in sweeps
        if (row := results.rows().get(name))
    ]  # fmt: skip
    titles = ["case", "ms/step", "single runs", "ratio", "by FLOPs", "table 3, h", "GiB", "compile, s"]
    print(f"\n{results.device}\n" + table(titles, lines) + f"\nwritten to {results.path}")


class Program:
    """The compiled step of a config's members; a call of n makes n × `steps` joint steps and waits for them."""

    def __init__(self, config: dict[str, Any], backbone: Any, batch: Any):
        model = experiment.build_model(config)
        counts = {task: workload.MIX6_CLASSES for task in TASKS} | {"reconstruction": (3,) * len(workload.MIX6_CLASSES)}
        runs = population.Runs(config, model, counts.get)
        self.steps = config["look_ahead"]
        mesh = parallel.make_mesh(jax.local_devices()[:1])
        drawn = []
        for member, todo in zip(runs.members, runs.tasks, strict=True):
            shapes = experiment.abstract_params(member.config, model, todo)
            drawn.append(workload.random_params({k: v for k, v in shapes.items() if k != "backbone"}))
        self._state = jax.jit(lambda trained: runs.init_state(trained, None))(drawn)
        self._frozen, self._batch = {"backbone": backbone}, parallel.put(batch, parallel.replicated(mesh))
        function = runs.build(None, self.steps, mapped=workload.mapped(mesh), mesh=mesh)
        given = (self._state, self._frozen, self._batch)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given)
        # Counted as it is written, not as it is looped, and with attention's products in sight.
        seen = {**config, "backbone": {**config["backbone"], "attention": "plain"}}
        written = population.Runs(seen, experiment.build_model(seen, "any"), counts.get).build(None, self.steps, mesh=mesh)
        self.flops = flops.count(written, *abstract) / self.steps
        began = time.perf_counter()
        self.compiled = jax.jit(function, donate_argnums=0).lower(*given).compile()
        self.compile_seconds = time.perf_counter() - began

    def __call__(self, calls: int) -> None:
        metrics = None
        for _ in range(calls):
            self._state, metrics = self.compiled(self._state, self._frozen, self._batch)
        jax.block_until_ready((self._state.step, metrics))


def row_of(sweep: Sweep, given: argparse.Namespace) -> dict[str, Any]:
    """Everything that is told of a case."""
    case, precision = sweep.case, measure.precision()
    base = {**workload.config_of(case, precision), "population": recipe.released()["population"]}
    together = {**base, "population": {**base["population"], **sweep.lists}}
    batch = step.stack_ahead([_batch(case, seed) for seed in range(case.ahead)])
    backbone = _backbone(base)
    # Runs that differ in numbers alone take the same time: one stands for all of them.
    members = population.members(together)
    alone = {m.name: m.config for m in members} if "task" in sweep.lists else {"each": members[0].config}
    programs = {name: Program(config, backbone, batch) for name, config in {"together": together, **alone}.items()}
    times = measure.interleaved(programs, given.rounds, given.seconds)
    repeats = len(members) // len(alone)
    single = [repeats * sum(rows) for rows in zip(*(times[name] for name in alone), strict=True)]
    seconds = statistics.median(times["together"]) / case.ahead
    return {
        "members": len(members),
        "seconds": seconds,
        "seconds_of_single_runs": statistics.median(single) / case.ahead,
        "ratio": statistics.median(a / b for a, b in zip(single, times["together"], strict=True)),
        "predicted_ratio": repeats * sum(programs[name].flops for name in alone) / programs["together"].flops,
        "hours_of_the_table": seconds * recipe.RELEASED["steps"] * TABLE_ROWS / 3600 if "task" in sweep.lists else None,
        "flops": programs["together"].flops,
        "program_bytes": measure.program_bytes(programs["together"].compiled),
        "compile_seconds": programs["together"].compile_seconds,
        "precision": precision,
    }


def _backbone(config: dict[str, Any]) -> Any:
    model = experiment.build_model(config)
    shapes = experiment.abstract_params(config, model, [])["backbone"]
    return jax.jit(lambda params: depth_model.cast_frozen(params, model.backbone.dtype))(workload.random_params(shapes))


def _batch(case: workload.Case, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """A joint batch with the targets of every task."""
    batch, draw = workload.host_batch(case, seed), np.random.default_rng(seed)
    own = batch["auxiliary"]
    counts = np.array(workload.MIX6_CLASSES)[own["dataset_id"]]
    canvas = own["image"].shape[1:3]
    label = draw.integers(0, counts[:, None, None], (case.auxiliary, *canvas))
    targets = {"class_id": draw.integers(0, counts).astype(np.int32), "label": label.astype(np.uint8)}
    return {**batch, "auxiliary": own | targets}


if __name__ == "__main__":
    main()
