"""What the code computes, written down for later versions: python benchmarks/baseline.py write | compare

  write              write the record into benchmarks/results/baseline
  compare            compute it again and say what differs; exit code 1 where something does
  --only texts       one part of it: runs, sizes or texts
  --text DIR         also write the texts there, whole: those of two versions can be compared with diff

The record has three parts. `runs`: every metric of 20 steps of the quickstart and of configs/nyu_mix6.py in miniature
(the tests' miniature data sets and narrow backbone, frozen), in float32. Rounding grows from step to step where all is
trained from nothing, so that the quickstart is there in float64 too: what differs there is no rounding. `sizes`:
parameters, FLOPs and bytes of the joint step. `texts`: the joint step as JAX hands it to the compiler of a CPU, of CUDA
and of a TPU, without the places in the code that it came from: its checksum and how often each operation occurs. Texts
and the last digits of a metric change with the version of JAX: `write` anew then.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import math
import re
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import measure
from measure import RESULTS, ROOT, UserError, table

import jax

from jdepth import config as config_module, dry_run, flops, peak_memory, tasks, train

STEPS = 20
PLATFORMS = ("cpu", "cuda", "tpu")
# A row's figures of speed, which are never the same twice.
SPEED = ("seconds", "per_second", "share", "time", "eta")
# Largest relative difference of a metric that is rounding.
RUNS = {"quickstart": 0.1, "nyu_mix6 in miniature": 1e-4, "quickstart in float64": 1e-9}
PARTS = ("runs", "sizes", "texts")
_OPERATION = re.compile(r"(?:= |^\s+)\"?((?:stablehlo|chlo|func|sdy)\.\w+)", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("--only", choices=PARTS, help="one part of the record")
    parser.add_argument("--text", type=Path, metavar="DIR", help="also write the texts of the joint steps")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the folder baseline lies")
    given = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    parts: dict[str, Callable[[], Any]] = {"runs": runs, "sizes": sizes, "texts": partial(texts, given.text)}
    same = True
    try:
        for name in [given.only] if given.only else PARTS:
            found = parts[name]()
            if given.action == "write":
                write(given.results / "baseline", name, found)
            else:
                same &= compare(name, read(given.results / "baseline", name), found)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    parser.exit(0 if same else 1)


# ---- What is recorded -------------------------------------------------------------------------------


def runs() -> dict[str, list[dict[str, float]]]:
    """{run: one row of metrics per step, and the scores of its last evaluation}."""
    sys.path.insert(0, str(ROOT / "tests"))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        # Double precision last: it is a switch of the whole process.
        exact = partial(_quickstart, precision="float64")
        for name, config in zip(RUNS, (_quickstart, _miniature, exact), strict=True):
            workdir = Path(folder) / re.sub("[ ,]+", "_", name)
            given = config(Path(folder)) | {"workdir": str(workdir)}
            config_module.check(given)
            with contextlib.redirect_stdout(sys.stderr):
                scores = train.train(given)
            lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [{k: v for k, v in json.loads(line).items() if not any(s in k for s in SPEED)} for line in lines]
            found[name] = [*rows, {k: v for k, v in scores["last"].items() if isinstance(v, (int, float))}]
    return found


def _quickstart(folder: Path, precision: str = "float32") -> dict[str, Any]:
    del folder
    changes = {"steps": STEPS, "evaluate.every": STEPS, "checkpoint.every": STEPS, "evaluate.rooms": 16}
    changes["precision"] = precision
    return _config("quickstart", changes | {"evaluate.during_limit": 16, "evaluate.pictures": 0, "log.every": 1})


def _miniature(folder: Path) -> dict[str, Any]:
    import prepared_set
    import raw_depth_trees
    import raw_label_trees
    import test_mix6_run
    from tiny_config import PICO, PICO_SIZE
    from tiny_run import save_backbone

    from jdepth.models import vit
    from jdepth.weights import catalogue

    vit.BACKBONES[PICO.name], catalogue.SIZES[PICO.name] = PICO, PICO_SIZE
    for name in ("nyu", *test_mix6_run.MEMBERS):
        trees = raw_depth_trees.TREES if name in raw_depth_trees.TREES else raw_label_trees.TREES
        trees[name](folder / "raw" / name)
        if name == "nyu":
            prepared_set.frames(folder / "raw/nyu", 8)
        with contextlib.redirect_stdout(sys.stderr):
            prepared_set.run(name, "--raw", folder / "raw" / name, "--out", folder / "data")
    weights = save_backbone(folder / "backbone.safetensors")
    own = {"backbone.train": "frozen", "backbone.weights": str(weights), "data_dir": str(folder / "data")}
    return _config("nyu_mix6", test_mix6_run.SMALL | {"steps": STEPS} | own)


def _config(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    given = runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()
    given.update_from_flattened_dict(dict(changes))
    return config_module.as_dict(given)


def _steps() -> dict[str, dict[str, Any]]:
    """Configs of the joint steps whose sizes and texts are recorded: every task, both precisions, with gradients in
    parts, looking ahead, with a population."""
    small = {"backbone.name": "dinov2_vits14"}
    found = {"quickstart": _config("quickstart", {}), "nyu_mix6": _config("nyu_mix6", {})}
    found |= {f"nyu_mix6 {task} S": _config("nyu_mix6", small | {"task": task}) for task in tasks.TASKS}
    more = {
        "float32": {"precision": "float32"}, "in parts": {"accumulate": 2}, "4 ahead": {"look_ahead": 4},
        "depth only": {"alpha": 1.0}, "population": {"population.alpha": (0.5, 0.9, 1.0)},
    }  # fmt: skip
    return found | {f"nyu_mix6 mldc S, {name}": _config("nyu_mix6", small | change) for name, change in more.items()}


def sizes() -> dict[str, dict[str, float]]:
    """{joint step: parameters, FLOPs of a step, bytes at its peak as estimated}."""
    found = {}
    for name, config in _steps().items():
        _, joint, state, frozen, batch = dry_run.abstract_step(config)
        count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
        found[name] = {
            "trained parameters": count(state.params),
            "frozen parameters": count(frozen),
            "numbers in optimizer states": count(state.optimizers),
            "FLOPs": flops.count(joint, state, frozen, batch) / config["look_ahead"],
            "peak bytes": peak_memory.peak_bytes(joint, state, frozen, batch),
        }
    return found


def texts(written: Path | None = None) -> dict[str, dict[str, Any]]:
    """{joint step and platform: checksum and operations of its StableHLO}. Nothing is compiled: no such device is
    needed. The texts go into the folder `written`."""
    found = {}
    for name, config in _steps().items():
        for platform in PLATFORMS:
            # Built for that platform, which decides how convolutions' gradients are computed.
            _, joint, *abstract = dry_run.abstract_step(config, platform)
            traced = jax.jit(joint, donate_argnums=0).trace(*abstract)
            text = traced.lower(lowering_platforms=(platform,)).as_text(debug_info=False)
            operations = collections.Counter(_OPERATION.findall(text))
            found[f"{name}, {platform}"] = {
                "sha256": hashlib.sha256(text.encode()).hexdigest(),
                "operations": dict(sorted(operations.items())),
            }
            if written is not None:
                written.mkdir(parents=True, exist_ok=True)
                (written / f"{re.sub('[ ,]+', '_', name)}.{platform}.mlir").write_text(text, encoding="utf-8")
    return found


# ---- Writing and comparing --------------------------------------------------------------------------


def write(folder: Path, part: str, found: Mapping[str, Any]) -> None:
    """Write a part of the record whole, with the versions that it was made with."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.json"
    temporary = path.with_suffix(".tmp")
    text = json.dumps({"versions": measure.versions(), "record": found}, indent=1)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    print(f"{part}: {len(found)} entries written to {path}")


def read(folder: Path, part: str) -> dict[str, Any]:
    """A part of the record. Raises UserError where there is none."""
    path = folder / f"{part}.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        before, now = held["versions"], measure.versions()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no readable record ({error}); make one with: benchmarks/baseline.py write") from error
    if before != now:
        print(f"{path}: was made with {before}, this is {now}: texts and last digits may differ for that")
    return held["record"]


def compare(part: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Print what differs in a part of the record; whether nothing does, beside a metric's rounding."""
    lines, same = [], before.keys() == now.keys()
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now:
            lines.append([name, "only now" if name in now else "only before", ""])
            continue
        if part == "runs":
            worst, where = _farthest(before[name], now[name])
            own, found = worst <= RUNS[name], f"{worst:.1e} at most, {where}" if worst else "equal"
        else:
            own = before[name] == now[name]
            found = "equal" if own else _difference(part, before[name], now[name])
        lines.append([name, "same" if own else "DIFFERS", found])
        same &= own
    print("\n" + table([part, "", "difference"], lines))
    return same


def _farthest(before: list[dict[str, float]], now: list[dict[str, float]]) -> tuple[float, str]:
    """(largest relative difference of a metric, where); infinite where the rows are not the same ones."""
    if len(before) != len(now):
        return math.inf, f"{len(before)} rows before, {len(now)} now"
    worst, where = 0.0, ""
    for number, (old, new) in enumerate(zip(before, now, strict=True), 1):
        if old.keys() != new.keys():
            return math.inf, f"row {number}: other names, {sorted(old.keys() ^ new.keys())}"
        for key in old:
            if old[key] == new[key]:
                continue
            numbers = all(isinstance(row[key], (int, float)) for row in (old, new))
            size = max(abs(old[key]), abs(new[key])) if numbers else 0.0
            found = abs(old[key] - new[key]) / size if numbers and math.isfinite(old[key] + new[key]) else math.inf
            if found > worst:
                worst, where = found, f"{key} in row {number}"
    return worst, where


def _difference(part: str, before: Any, now: Any) -> str:
    if part == "texts":
        before, now = before["operations"], now["operations"]
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    told = ", ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed)
    return told or "the same operations, in other places"


if __name__ == "__main__":
    main()
