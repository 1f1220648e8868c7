"""The run: build, restore, loop, log, evaluate, save."""

import contextlib
import fcntl
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from jdepth import checkpoint, config as config_module, experiment, inputs, logbook, multihost, parallel, pictures
from jdepth import population, scoring, step
from jdepth.checkpoint import Checkpoints
from jdepth.data.evaluation import auxiliary_evaluation_batches, evaluation_batches
from jdepth.data.pipeline import joint_batches
from jdepth.data.streams import JointBatches
from jdepth.errors import Stopped, UserError

Config = Mapping[str, Any]
# Consecutive steps with a constant prediction after which a run is given up (a dead ReLU).
DEAD_STEPS, DEAD_SHARE = 50, 0.99
# Batches among which there must be valid depth.
FIRST_BATCHES = 8
LOCK = ".lock"


def train(config: Config) -> dict[str, Any]:
    """Train as `config` says, going on where an earlier start of the same workdir stopped.

    Returns the final evaluation: {"last": {...}, "best": {...}, "protocol": ...}, of a population {member: the same},
    also written to WORKDIR/evaluation.json. Where the run has several processes, all call this and process 0 writes.

    Raises Stopped after a SIGTERM, once the state is saved, and UserError for anything wrong with config, data,
    weights or workdir, before the first step where it can be known by then.
    """
    # ---- What the run needs is there -------------------------------------------------------------
    inputs.check(config)
    workdir = Path(config["workdir"])
    _check_workdir(workdir, config)
    batch_sizes = {k: v for k, v in config["batch"].items() if k == "depth" or inputs.uses_auxiliary(config)}
    mesh = parallel.training_mesh(config["look_ahead"], config["mesh"]["fsdp"], **batch_sizes)
    _check_parts(config, parallel.batch_shards(mesh), batch_sizes)
    inputs.read_small_sets(config)

    # ---- Data ------------------------------------------------------------------------------------
    depth_stream = inputs.depth_stream(config)
    auxiliary_stream = inputs.auxiliary_stream(config)
    evaluation = Evaluation.open(config)

    # ---- Model, tasks, state ---------------------------------------------------------------------
    model = experiment.build_model(config)
    runs = population.Runs(config, model, auxiliary_stream.class_counts if auxiliary_stream else lambda task: ())
    ratio = config["backbone"]["lr_ratio"] if config["backbone"]["train"] == "full" else None
    going_on = bool(checkpoint.steps(workdir, "last"))
    starts: list[experiment.Parameters] = []
    for member, todo in zip(runs.members, runs.tasks, strict=True):
        given = {**member.config, "init_from": ""} if going_on else member.config
        starts.append(experiment.initial_params(given, model, todo, starts[0] if starts else None))
    start = starts[0]
    for line in start.report:
        print(line)
    frozen = parallel.put(start.frozen, parallel.placement(mesh, start.frozen))
    state = runs.init_state([own.trained for own in starts], ratio)
    lies = parallel.placement(mesh, state)
    state = parallel.put(state, lies)

    sampling = {
        "batch_depth": config["batch"]["depth"],
        "batch_auxiliary": config["batch"]["auxiliary"] or None,
        "seed": config["seed"],
    }
    # Images too small for a crop, and depth in other units, show in a batch: told before anything is written.
    print(_depth_range(JointBatches(depth_stream, auxiliary_stream, **sampling), config["depth_range"]))

    with contextlib.ExitStack() as closing:
        # ---- Workdir, restore --------------------------------------------------------------------
        multihost.check_same("config", config)
        if multihost.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            closing.enter_context(_lock(workdir))
            checkpoint.check_space(workdir, state)
            logbook.write_atomically(workdir / "config.json", json.dumps(config, indent=1) + "\n")
        multihost.check_shared(workdir, workdir / LOCK)
        checkpoints = closing.enter_context(contextlib.closing(Checkpoints(workdir)))
        held = inputs.content(depth_stream, auxiliary_stream, evaluation.depth)
        clock = {"step": 0, "consumed": 0, "backbone": start.fingerprint, "data": held}
        nothing = {"best_step": None, "best_AbsRel": None}
        clock |= nothing if runs.alone else {"members": {member.name: dict(nothing) for member in runs.members}}
        restored = checkpoints.restore(state)
        if restored is not None:
            state, clock = restored
            if clock["backbone"] != start.fingerprint:
                raise UserError(
                    f"{workdir}: was trained on another backbone (fingerprint {clock['backbone'][:12]}, "
                    f"given {start.fingerprint[:12]}): give the same config.backbone.weights"
                )
            _check_data(workdir, clock["data"], held)
            print(f"going on from step {clock['step']} of {config['steps']} in {workdir}")
        multihost.check_same("backbone, data set or checkpoint", clock)
        first = clock["step"]
        records = [closing.enter_context(contextlib.closing(Record(member, clock, checkpoints))) for member in runs.members]
        for record in records:
            # A kill between two saves leaves a newer `best` behind, which this run has not reached yet.
            record.keep_best()
        book = records[0].book
        if not runs.alone:
            book = closing.enter_context(contextlib.closing(_logbook(workdir, first, config)))
            print(f"{len(records)} members: {'  '.join(member.name for member in runs.members)}")
        print(_summary(config, mesh, model, state, frozen))

        # ---- Loop ------------------------------------------------------------------------------------
        ahead = config["look_ahead"]
        shared, apart = parallel.joint_batch(mesh, ahead), mesh.devices.flat[0].platform != "cpu"
        joint_step = jax.jit(
            runs.build(ratio, ahead, accumulate=config["accumulate"], mapped=apart, mesh=mesh),
            donate_argnums=0,
            in_shardings=(lies, parallel.placement(mesh, frozen), shared),
            out_shardings=(lies, parallel.replicated(mesh)),
        )
        batches = joint_batches(
            depth_stream, auxiliary_stream, **sampling, start=clock["consumed"], workers=config["data"]["workers"],
            bad_share=config["data"]["bad_share"], tell=book.bad_item, shard=multihost.shard(),
        )  # fmt: skip
        closing.callback(batches.close)
        termination = closing.enter_context(multihost.Termination())
        watch = logbook.Stopwatch(first, config["steps"], sum(batch_sizes.values()))
        recent = []
        for number in range(first + ahead, config["steps"] + 1, ahead):
            began = time.perf_counter()
            batch = step.stack_ahead([next(batches) for _ in range(ahead)])
            watch.waited(time.perf_counter() - began)
            state, values = joint_step(state, frozen, parallel.put_rows(batch, shared))
            recent.append(values)
            if number % config["log"]["every"] == 0 or number == config["steps"]:
                rows = [record.log(number, own) for record, own in zip(records, zip(*recent, strict=True), strict=True)]
                recent, lap = [], watch.lap(number)
                book.speed(number, lap)
                print(logbook.progress_line(number, config["steps"], rows, lap), flush=True)
            began = time.perf_counter()
            last = number == config["steps"]
            if number % config["evaluate"]["every"] == 0 or last:
                for index, record in enumerate(records):
                    params = runs.params(state, index)
                    scores = evaluation.during(model, runs.tasks[index], {**params, **frozen}, mesh)
                    if not scores["images"]:
                        raise UserError(f"evaluation set '{evaluation.depth.name}': no image has a valid pixel to score")
                    record.score(number, scores, params)
            # Rows are means over log intervals: only between two of them does a later start write the same ones.
            stopping = not last and number % config["log"]["every"] == 0 and termination.agreed()
            if number % config["checkpoint"]["every"] == 0 or last or stopping:
                clock |= {"step": number, "consumed": batches.position}
                checkpoints.save(state, clock)
                for record in records:
                    record.keep_best()
            if stopping:
                raise Stopped(f"stopped by SIGTERM after step {number} of {config['steps']}: the same command goes on")
            watch.paused(time.perf_counter() - began)
        if not runs.alone:
            for index, record in enumerate(records):
                record.finish(runs.member(state, index), clock)

    # ---- Final evaluation ------------------------------------------------------------------------
    results = {}
    for index, member in enumerate(runs.members):
        params = runs.params(state, index)
        print(f"\n{member.name}" if member.name else "")
        results[member.name] = final_evaluation(member.config, model, params, frozen, clock["step"], evaluation, mesh)
        if multihost.is_first():
            logbook.draw_curves(Path(member.config["workdir"]), {member.name: Path(member.config["workdir"])})
    if runs.alone:
        return results[""]
    if multihost.is_first():
        logbook.write_atomically(workdir / "evaluation.json", logbook.to_json(results, indent=1) + "\n")
        logbook.draw_curves(workdir, {member.name: Path(member.config["workdir"]) for member in runs.members})
    print(_table(results))
    return results


def final_evaluation(config, model, last, frozen, step: int, evaluation: "Evaluation", mesh) -> dict[str, Any]:
    """Full protocol on the last and the best parameters, pictures of the best; writes evaluation.json."""
    workdir = Path(config["workdir"])
    lies = parallel.placement(mesh, last)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), last, lies)
    best, best_step = checkpoint.read_params(workdir, "best", like)
    result = {"protocol": evaluation.describe(), **evaluation.constant()}
    result["last"] = {"step": step, **evaluation.full(model, {**last, **frozen}, mesh)}
    result["best"] = {"step": best_step, **evaluation.full(model, {**best, **frozen}, mesh)}
    if multihost.is_first():
        logbook.write_atomically(workdir / "evaluation.json", logbook.to_json(result, indent=1) + "\n")
    print(f"evaluation protocol: {result['protocol']}")
    print(f"best constant depth {result['constant']:.2f} m: AbsRel {result['constant_AbsRel']:.4f}")
    for kind in ("last", "best"):
        line = f"{kind} (step {result[kind]['step']}): {_shown(result[kind])}"
        if result["constant_AbsRel"] > 0:
            line += f"  ({result[kind]['AbsRel'] / result['constant_AbsRel']:.2f} × the best constant's AbsRel)"
        print(line)
    if config["evaluate"]["pictures"]:
        path = workdir / "pictures.png"
        shown = evaluation.examples(model, {**best, **frozen}, config["evaluate"]["pictures"], mesh)
        if multihost.is_first():
            pictures.depth_sheet(path, *shown)
        print(f"pictures: {path}")
    return result


class Evaluation(NamedTuple):
    """Evaluation sets of a run and how they are scored."""

    config: Config
    depth: Any
    auxiliary: Any
    forwards: dict

    @classmethod
    def open(cls, config: Config) -> "Evaluation":
        """Open the sets that the config names."""
        split = config["data"]["auxiliary"]["eval_split"]
        auxiliary = inputs.auxiliary_stream(config, split) if split else None
        return cls(config, inputs.depth_source(config, config["evaluate"]["split"]), auxiliary, {})

    def describe(self) -> str:
        """The protocol in words."""
        from jdepth.data import protocols

        return protocols.describe(inputs.protocol(self.config))

    def _batches(self, limit: int | None, batch: int):
        return evaluation_batches(self.depth, inputs.protocol(self.config), batch, limit)

    def _forward(self, model, flip: bool):
        if flip not in self.forwards:
            low, high = inputs.protocol(self.config).prediction_range
            high = min(high, self.config["depth_range"]["max"])
            self.forwards[flip] = scoring.depth_forward(model, low, high, flip)
        return self.forwards[flip]

    def _size(self, mesh) -> int:
        # Rounded up so that the devices share every batch evenly.
        return -(-self.config["evaluate"]["batch"] // mesh.size) * mesh.size

    def during(self, model, todo, params, mesh) -> dict[str, float]:
        """Scores while training: no mirror image, a fixed subset where the set is large."""
        place = lambda x: parallel.put(x, parallel.split(mesh))  # noqa: E731
        limit = self.config["evaluate"]["during_limit"]
        scores = scoring.score_depth(
            self._forward(model, False), params, self._batches(limit, self._size(mesh)), place,
            partial(parallel.fetch, mesh=mesh),
        )  # fmt: skip
        if self.auxiliary is not None and len(todo) > 1:
            task = todo[1]
            if task.name not in self.forwards:
                classes = self.auxiliary.class_counts(task.name)
                # Not divided: the last batch may have any size.
                whole = partial(parallel.put, sharding=parallel.replicated(mesh))
                self.forwards[task.name] = scoring.AuxiliaryScorer(model, task, classes, whole)
            batches = auxiliary_evaluation_batches(self.auxiliary, self._size(mesh), limit)
            auxiliary = self.forwards[task.name].score(params, batches)
            scores |= {"auxiliary_loss" if k == "loss" else k: v for k, v in auxiliary.items()}
        return scores

    def full(self, model, params, mesh) -> dict[str, float]:
        """Scores of the full protocol on all images."""
        place = lambda x: parallel.put(x, parallel.split(mesh))  # noqa: E731
        forward = self._forward(model, inputs.protocol(self.config).flip)
        batches = self._batches(None, self._size(mesh))
        fetch = partial(parallel.fetch, mesh=mesh)
        return scoring.score_depth(forward, params, batches, place, fetch, total_images=len(self.depth))

    def constant(self) -> dict[str, float]:
        """The best constant depth's score on all images."""
        return scoring.score_constant(self._batches(None, 1))

    def examples(self, model, params, count: int, mesh):
        """Images, true and predicted depth of `count` items."""
        forward = self._forward(model, False)
        images, truths, predictions = [], [], []
        for batch in self._batches(count, 1):
            image = parallel.put(batch["image"], parallel.replicated(mesh))
            depth = parallel.fetch(forward(params, image, batch["depth"].shape[1:]), mesh)
            images.append(batch["image"][0])
            truths.append(batch["depth"][0])
            predictions.append(depth[0])
        return images, truths, predictions


class Record:
    """What one member of a run leaves behind: rows, its best parameters, and at the end a run's folder of its own."""

    def __init__(self, member: population.Member, clock: dict[str, Any], checkpoints: Checkpoints):
        """`clock` and `checkpoints` are those of the whole run; the clock's best score is kept up to date here."""
        config = member.config
        self._name, self._workdir, self._last = member.name, Path(config["workdir"]), checkpoints
        self._best = clock["members"][member.name] if member.name else clock
        self._checkpoints = checkpoints
        if member.name:
            if multihost.is_first():
                self._workdir.mkdir(parents=True, exist_ok=True)
                logbook.write_atomically(self._workdir / "config.json", json.dumps(config, indent=1) + "\n")
            self._checkpoints = Checkpoints(self._workdir)
        self.book = _logbook(self._workdir, clock["step"], config)
        self._dead = DeadHead(round(config["loss"]["silog_warmup_fraction"] * config["steps"]))

    def log(self, number: int, recent: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Write the mean over the calls since the last row, which ended with step `number`."""
        row = _mean_rows(recent)
        self._dead.check(row["each"], number)
        self.book.metrics(number, row["mean"])
        return row["mean"]

    def score(self, number: int, scores: Mapping[str, float], params: Any) -> None:
        """Write an evaluation's scores, and keep the parameters if they are the best so far."""
        self.book.metrics(number, {f"evaluation/{k}": v for k, v in scores.items()})
        name = f"{self._name}  " if self._name else ""
        print(f"step {number}  {name}evaluation without flip  {_shown(scores)}", flush=True)
        if self._best["best_AbsRel"] is None or scores["AbsRel"] < self._best["best_AbsRel"]:
            self._best |= {"best_step": number, "best_AbsRel": scores["AbsRel"]}
            self._checkpoints.save_best(number, params)

    def keep_best(self) -> None:
        """Drop older `best` checkpoints once the `last` that names the newest is complete."""
        self._checkpoints.keep_best(self._best["best_step"], self._last)

    def finish(self, state: step.TrainState, clock: Mapping[str, Any]) -> None:
        """Leave the member as its own finished run."""
        own = {k: v for k, v in clock.items() if k != "members"} | dict(self._best)
        if not checkpoint.steps(self._workdir, "last"):
            self._checkpoints.save(state, own)

    def close(self) -> None:
        """Flush rows and finish writing."""
        self.book.close()
        if self._name:
            self._checkpoints.close()


class Unwritten:
    """In place of the logbook in processes that write no files."""

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Process 0 has the same row."""

    def speed(self, step: int, values: Mapping[str, Any]) -> None:
        """Process 0 measures as well."""

    def bad_item(self, line: str) -> None:
        """Rows of a batch are read by one process each, so that process 0 does not know of this item."""
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """There is no file."""


def _logbook(workdir: Path, step: int, config: Config) -> "logbook.Logbook | Unwritten":
    return logbook.Logbook(workdir, step, config["log"]["tensorboard"]) if multihost.is_first() else Unwritten()


class DeadHead:
    """Stops a run whose depth head has collapsed to a constant, as a ReLU regressor sometimes does."""

    def __init__(self, warmup_steps: int):
        self._after = warmup_steps
        self._in_a_row = 0

    def check(self, shares: list[float], last_step: int) -> None:
        """Count the steps of a log interval; raise UserError after too many in a row."""
        for offset, share in enumerate(shares):
            after_warmup = last_step - len(shares) + 1 + offset > self._after
            self._in_a_row = self._in_a_row + 1 if after_warmup and share > DEAD_SHARE else 0
            if self._in_a_row >= DEAD_STEPS:
                raise UserError(
                    f"the depth head predicts the minimum depth everywhere for {DEAD_STEPS} steps in a row (a dead "
                    "ReLU): start again with another config.seed or a smaller config.optimizer.rate"
                )


def _mean_rows(rows: list) -> dict[str, Any]:
    """Means of the metrics of some calls, each of one step or of several."""
    host = []
    for row in jax.device_get(rows):
        steps = zip(*(np.atleast_1d(value) for value in row.values()), strict=True)
        host += [dict(zip(row, values, strict=True)) for values in steps]
    mean = {k: float(np.mean([row[k] for row in host], dtype=np.float64)) for k in sorted(host[0])}
    # The gradient too: a loss masked pixel by pixel can be finite where the prediction is not.
    bad = [k for k, v in mean.items() if k.endswith(("/loss", "/gradient_norm")) and not np.isfinite(v)]
    if bad:
        raise UserError(f"{bad[0]} is not finite: lower config.optimizer.rate, or look for depth values that are no depth")
    return {"mean": mean, "each": [float(row["depth/at_min_depth"]) for row in host]}


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Last and best scores of every member, one line each."""
    width = max(map(len, results))
    lines = [f"\n{'member':<{width}}  {'AbsRel last':>11} {'best':>8}   {'RMSE last':>9} {'best':>8}"]
    for name, own in results.items():
        last, best = own["last"], own["best"]
        lines.append(
            f"{name:<{width}}  {last['AbsRel']:>11.4f} {best['AbsRel']:>8.4f}   {last['RMSE']:>9.4f} {best['RMSE']:>8.4f}"
        )
    return "\n".join(lines)


def _check_parts(config: Config, shards: int, batches: Mapping[str, int]) -> None:
    """Raise UserError where a batch cannot be computed in `accumulate` parts with the same result."""
    parts = config["accumulate"]
    if parts == 1:
        return
    for name, size in batches.items():
        group = config["loss"]["silog_group"] if name == "depth" else 1
        if size % (parts * shards * group):
            groups = f" in groups of {group} images (config.loss.silog_group)" * (group > 1)
            raise UserError(
                f"config.accumulate={parts}: config.batch.{name}={size} does not divide into {parts} parts on {shards} "
                f"devices{groups}: use a multiple of {parts * shards * group}"
            )


def _shown(scores: Mapping[str, float]) -> str:
    shown = ("AbsRel", "RMSE", "d1", "auxiliary_loss", "mAP", "mAP_constant", "mIoU", "accuracy")
    return "  ".join(f"{k} {scores[k]:.4f}" for k in shown if k in scores)


def _depth_range(batches: JointBatches, expected: Mapping[str, float]) -> str:
    """The first batch's depth in words. Raises UserError where it cannot be metres in the model's range."""
    # A single image may have no valid pixel; several batches without one are a mistake.
    for number in range(FIRST_BATCHES):
        depth = batches(number)["depth"]["depth"]
        valid = depth[depth > 0]
        if valid.size:
            break
    else:
        raise UserError(
            f"depth of the first {FIRST_BATCHES} batches: no valid pixel; are scale, formula, invalid and max right in "
            "the data set's description?"
        )
    low, middle, high = np.percentile(valid, (1, 50, 99))
    shown = f"depth of the first batch: median {middle:.4g} m, 1 % below {low:.4g} m, 1 % beyond {high:.4g} m"
    if not expected["min"] < middle < expected["max"]:
        raise UserError(
            f"{shown}; expected config.depth_range, {expected['min']:g} to {expected['max']:g} m: is scale or formula "
            "right in the data set's description?"
        )
    return shown


def _check_workdir(workdir: Path, config: Config) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"config.workdir: {workdir} is a file; name a folder")
    before = workdir / "config.json"
    if before.exists():
        changed = config_module.differences(config_module.read_json(before), config)
        # A start that failed before its first checkpoint leaves nothing that another config could harm.
        if changed and checkpoint.steps(workdir, "last"):
            raise UserError(
                f"{workdir}: holds a run of another config ({'; '.join(changed[:5])}): "
                "set config.workdir to a new folder, or undo the change to go on"
            )
    elif workdir.is_dir() and any(path.name not in ("config.json.tmp", LOCK) for path in workdir.iterdir()):
        raise UserError(f"config.workdir: {workdir} has files but no config.json of a run; name a new folder")


def _check_data(workdir: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise UserError where a set is not what the run was started with: its next batch or score would be another."""
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        first = changed[0]
        raise UserError(
            f"{workdir}: the data set {first} is not what this run was started with (then {before.get(first)}, now "
            f"{now[first]}: images and checksum): put it back (config.data_dir), or set config.workdir to a new folder"
        )


def _lock(workdir: Path) -> TextIO:
    """Keep a second run out of the workdir until the file is closed, or this process ends however it may."""
    file = open(workdir / LOCK, "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{workdir}: another run is writing there; wait for it or set config.workdir") from error
    return file


def _summary(config, mesh, model, state, frozen) -> str:
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    device = mesh.devices.flat[0]
    return (
        f"{config['backbone']['name']} ({config['backbone']['train']}), {count(state.params):.1f} M trained and "
        f"{count(frozen):.1f} M frozen parameters, {config['precision']}, attention {model.backbone.attention}, "
        f"{mesh.size} × {device.device_kind}"
    )
