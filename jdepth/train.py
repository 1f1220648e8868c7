"""The run: build, restore, loop, log, evaluate, save."""

import contextlib
import fcntl
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from jdepth import checkpoint, compilation, config as config_module, dry_run, experiment, inputs, logbook, memory
from jdepth import parallel, pictures, scoring, step
from jdepth.checkpoint import Checkpoints
from jdepth.data.evaluation import auxiliary_evaluation_batches, evaluation_batches
from jdepth.data.pipeline import joint_batches
from jdepth.data.streams import JointBatches
from jdepth.errors import UserError
from jdepth.kept_taps import KeptTaps

Config = Mapping[str, Any]
# Consecutive steps with a constant prediction after which a run is given up (a dead ReLU).
DEAD_STEPS, DEAD_SHARE = 50, 0.99
# Batches among which there must be valid depth.
FIRST_BATCHES = 8
LOCK = ".lock"


def train(config: Config) -> dict[str, Any]:
    """Train as `config` says, going on where an earlier start of the same workdir stopped.

    Returns the final evaluation: {"last": {...}, "best": {...}, "protocol": ...}, also written to
    WORKDIR/evaluation.json.

    Raises UserError for anything wrong with config, data, weights or workdir, before the first step
    where it can be known by then.
    """
    # ---- What the run needs is there -------------------------------------------------------------
    inputs.check(config)
    workdir = Path(config["workdir"])
    _check_workdir(workdir, config)
    mesh = parallel.make_mesh()
    inputs.read_small_sets(config)
    batch_sizes = {k: v for k, v in config["batch"].items() if k == "depth" or inputs.uses_auxiliary(config)}
    parallel.check_divides(mesh, **batch_sizes)

    # ---- Data ------------------------------------------------------------------------------------
    depth_stream = inputs.depth_stream(config)
    auxiliary_stream = inputs.auxiliary_stream(config)
    classes = auxiliary_stream.classes if auxiliary_stream else ()
    evaluation = Evaluation.open(config)
    sampling = {
        "batch_depth": config["batch"]["depth"],
        "batch_auxiliary": config["batch"]["auxiliary"] or None,
        "seed": config["seed"],
    }
    # Images too small for a crop, and depth in other units, show in a batch: told before anything is written.
    print(_depth_range(JointBatches(depth_stream, auxiliary_stream, **sampling), config["depth_range"]))
    experiment.check_weights(config)

    # ---- Model, tasks, state ---------------------------------------------------------------------
    model = experiment.build_model(config)
    todo = experiment.build_tasks(config, model, classes)
    scales, settings = experiment.scales(config), experiment.optimizer_settings(config)
    ratio = config["backbone"]["lr_ratio"] if config["backbone"]["train"] == "full" else None
    optimizers = step.build_optimizers(todo, scales, settings, ratio)
    everywhere, shared = parallel.replicated(mesh), parallel.split(mesh)
    ahead = config["look_ahead"]
    joint_step = jax.jit(
        step.build(model, todo, optimizers, scales, settings, ahead),
        donate_argnums=0,
        in_shardings=(everywhere, everywhere, shared),
        out_shardings=everywhere,
    )
    # What does not fit the device is told before it is compiled, and compiled while weights and first data are read.
    abstract = dry_run.abstract_arguments(config, model, todo, optimizers, classes)
    traced = joint_step.trace(*abstract)
    memory.check_step(config, traced, len(jax.tree.leaves(abstract[0])), mesh.size)
    compiled = compilation.compile_aside(traced)
    going_on = bool(checkpoint.steps(workdir, "last"))
    where = jax.tree.map(lambda _: everywhere, {**abstract[0].params, **abstract[1]})
    start = experiment.initial_params({**config, "init_from": ""} if going_on else config, model, todo, where)
    for line in start.report:
        print(line)
    frozen = start.frozen
    begin = partial(step.init_state, tasks=todo, optimizers=optimizers, scales=scales)
    state = jax.jit(begin, out_shardings=everywhere)(start.trained)

    with contextlib.ExitStack() as closing:
        # ---- Workdir, restore --------------------------------------------------------------------
        workdir.mkdir(parents=True, exist_ok=True)
        closing.enter_context(_lock(workdir))
        checkpoint.check_space(workdir, state)
        logbook.write_atomically(workdir / "config.json", json.dumps(config, indent=1) + "\n")
        checkpoints = closing.enter_context(contextlib.closing(Checkpoints(workdir)))
        held = inputs.content(depth_stream, auxiliary_stream, evaluation.depth)
        clock = {"step": 0, "consumed": 0, "best_step": None, "best_AbsRel": None, "backbone": start.fingerprint,
                 "data": held}  # fmt: skip
        restored = checkpoints.restore(state)
        if restored is not None:
            state, clock = restored
            if clock["backbone"] != start.fingerprint:
                raise UserError(
                    f"{workdir}: was trained on another backbone (fingerprint {clock['backbone'][:12]}, "
                    f"given {start.fingerprint[:12]}): give the same config.backbone.weights"
                )
            _check_data(workdir, clock["data"], held)
            # A kill between the two saves leaves a newer `best` behind, which this run has not reached yet.
            checkpoints.keep_best(clock["best_step"])
            print(f"going on from step {clock['step']} of {config['steps']} in {workdir}")
        first = clock["step"]
        book = logbook.Logbook(workdir, first, config["log"]["tensorboard"])
        closing.callback(book.close)
        print(_summary(config, mesh, model, state, frozen))

        # ---- Loop ------------------------------------------------------------------------------------
        batches = joint_batches(
            depth_stream, auxiliary_stream, **sampling, start=clock["consumed"], workers=config["data"]["workers"],
            bad_share=config["data"]["bad_share"], tell=book.bad_item,
        )  # fmt: skip
        closing.callback(batches.close)
        watch = logbook.Stopwatch(first, config["steps"], sum(batch_sizes.values()))
        joint_step = compiled.result()
        memory.check_compiled_step(config, joint_step, mesh.size)
        recent, dead = [], DeadHead(round(config["loss"]["silog_warmup_fraction"] * config["steps"]))
        for number in range(first + ahead, config["steps"] + 1, ahead):
            began = time.perf_counter()
            batch = step.stack_ahead([next(batches) for _ in range(ahead)])
            watch.waited(time.perf_counter() - began)
            state, values = joint_step(state, frozen, parallel.put(batch, shared))
            recent.append(values)
            if number % config["log"]["every"] == 0 or number == config["steps"]:
                row, recent = _mean_rows(recent), []
                dead.check(row["each"], number)
                book.metrics(number, row["mean"])
                lap = watch.lap(number)
                book.speed(number, lap)
                print(logbook.progress_line(number, config["steps"], row["mean"], lap), flush=True)
            began = time.perf_counter()
            last = number == config["steps"]
            if number % config["evaluate"]["every"] == 0 or last:
                scores = evaluation.during(model, todo, {**state.params, **frozen}, mesh)
                if not scores["images"]:
                    raise UserError(f"evaluation set '{evaluation.depth.name}': no image has a valid pixel to score")
                book.metrics(number, {f"evaluation/{k}": v for k, v in scores.items()})
                print(f"step {number}  evaluation without flip  " + _shown(scores), flush=True)
                if clock["best_AbsRel"] is None or scores["AbsRel"] < clock["best_AbsRel"]:
                    clock |= {"best_step": number, "best_AbsRel": scores["AbsRel"]}
                    checkpoints.save_best(number, state.params)
            if number % config["checkpoint"]["every"] == 0 or last:
                clock |= {"step": number, "consumed": batches.position}
                checkpoints.save(state, clock)
                checkpoints.keep_best(clock["best_step"])
            watch.paused(time.perf_counter() - began)

    # ---- Final evaluation ------------------------------------------------------------------------
    result = final_evaluation(config, model, state, frozen, clock, evaluation, mesh)
    logbook.draw_curves(workdir)
    return result


def final_evaluation(config, model, state, frozen, clock, evaluation: "Evaluation", mesh) -> dict[str, Any]:
    """Full protocol on the last and the best parameters, pictures of the best; writes evaluation.json."""
    workdir = Path(config["workdir"])
    everywhere = parallel.replicated(mesh)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state.params)
    best, best_step = checkpoint.read_params(workdir, "best", like)
    result = {"protocol": evaluation.describe(), **evaluation.constant()}
    result["last"] = {"step": clock["step"], **evaluation.full(model, {**state.params, **frozen}, mesh)}
    result["best"] = {"step": best_step, **evaluation.full(model, {**best, **frozen}, mesh)}
    logbook.write_atomically(workdir / "evaluation.json", logbook.to_json(result, indent=1) + "\n")
    print(f"\nevaluation protocol: {result['protocol']}")
    print(f"best constant depth {result['constant']:.2f} m: AbsRel {result['constant_AbsRel']:.4f}")
    for kind in ("last", "best"):
        line = f"{kind} (step {result[kind]['step']}): {_shown(result[kind])}"
        if result["constant_AbsRel"] > 0:
            line += f"  ({result[kind]['AbsRel'] / result['constant_AbsRel']:.2f} × the best constant's AbsRel)"
        print(line)
    if config["evaluate"]["pictures"]:
        path = workdir / "pictures.png"
        pictures.depth_sheet(path, *evaluation.examples(model, {**best, **frozen}, config["evaluate"]["pictures"]))
        print(f"pictures: {path}")
    return result


class Evaluation(NamedTuple):
    """Evaluation sets of a run and how they are scored."""

    config: Config
    depth: Any
    auxiliary: Any
    kept: KeptTaps
    forwards: dict

    @classmethod
    def open(cls, config: Config) -> "Evaluation":
        """Open the sets that the config names."""
        split = config["data"]["auxiliary"]["eval_split"]
        auxiliary = inputs.auxiliary_stream(config, split) if split else None
        frozen = config["backbone"]["train"] == "frozen"
        kept = KeptTaps(config["evaluate"]["cache_gib"] if frozen else 0.0)
        return cls(config, inputs.depth_source(config, config["evaluate"]["split"]), auxiliary, kept, {})

    def describe(self) -> str:
        """The protocol in words."""
        from jdepth.data import protocols

        return protocols.describe(inputs.protocol(self.config))

    def _batches(self, limit: int | None, batch: int):
        return evaluation_batches(self.depth, inputs.protocol(self.config), batch, limit)

    def _forward(self, model, flip: bool):
        if flip not in self.forwards:
            self.forwards[flip] = scoring.depth_forward(model, *self._range(), flip)
        return self.forwards[flip]

    def _range(self) -> tuple[float, float]:
        low, high = inputs.protocol(self.config).prediction_range
        return low, min(high, self.config["depth_range"]["max"])

    def _size(self, mesh) -> int:
        # Rounded up so that the devices share every batch evenly.
        return -(-self.config["evaluate"]["batch"] // mesh.size) * mesh.size

    def during(self, model, todo, params, mesh) -> dict[str, float]:
        """Scores while training: no mirror image, a fixed subset where the set is large."""
        place = lambda x: parallel.put(x, parallel.split(mesh))  # noqa: E731
        limit = self.config["evaluate"]["during_limit"]
        forward, kept = self._forward(model, False), None
        if self.config["backbone"]["train"] == "frozen":
            if "in two" not in self.forwards:
                self.forwards["in two"] = scoring.depth_forward_in_two(model, *self._range())
            forward, kept = self.forwards["in two"], self.kept
        scores = scoring.score_depth(forward, params, self._batches(limit, self._size(mesh)), place, kept=kept)
        if self.auxiliary is not None and len(todo) > 1:
            if "auxiliary" not in self.forwards:
                scorer = scoring.AuxiliaryScorer(model, todo[1], self.auxiliary.classes, place, self.kept)
                self.forwards["auxiliary"] = scorer
            batches = auxiliary_evaluation_batches(self.auxiliary, self._size(mesh), limit)
            auxiliary = self.forwards["auxiliary"].score(params, batches)
            scores |= {"auxiliary_loss" if k == "loss" else k: v for k, v in auxiliary.items()}
        return scores

    def full(self, model, params, mesh) -> dict[str, float]:
        """Scores of the full protocol on all images."""
        place = lambda x: parallel.put(x, parallel.split(mesh))  # noqa: E731
        forward = self._forward(model, inputs.protocol(self.config).flip)
        batches = self._batches(None, self._size(mesh))
        return scoring.score_depth(forward, params, batches, place, total_images=len(self.depth))

    def constant(self) -> dict[str, float]:
        """The best constant depth's score on all images."""
        return scoring.score_constant(self._batches(None, 1))

    def examples(self, model, params, count: int):
        """Images, true and predicted depth of `count` items."""
        forward = self._forward(model, False)
        images, truths, predictions = [], [], []
        for batch in self._batches(count, 1):
            depth = forward(params, jnp.asarray(batch["image"]), batch["depth"].shape[1:])
            images.append(batch["image"][0])
            truths.append(batch["depth"][0])
            predictions.append(np.asarray(depth[0]))
        return images, truths, predictions


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
