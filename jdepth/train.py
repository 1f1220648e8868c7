"""The run: build, restore, loop, log, evaluate, save."""

import contextlib
import functools
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdepth import checkpoint, compilation, config as config_module, dry_run, experiment, inputs, logbook, memory
from jdepth import losses, multihost, parallel, population, record, step, tasks
from jdepth.checkpoint import Checkpoints
from jdepth.data.pipeline import joint_batches
from jdepth.data.streams import JointBatches
from jdepth.errors import Stopped, UserError
from jdepth.run_evaluation import Evaluation, final_evaluation

Config = Mapping[str, Any]
# Batches among which there must be valid depth.
FIRST_BATCHES = 8
# Keys of a config that the joint step does not follow from, beside its batch's shapes.
OUTSIDE_STEP = ("workdir", "data_dir", "data", "seed", "init_seed", "init_from", "evaluate", "checkpoint", "log")


def train(config: Config) -> dict[str, Any]:
    """Train as `config` says, going on where an earlier start of the same workdir stopped.

    Returns the final evaluation: {"last": {...}, "best": {...}, "protocol": ...}, of a population {member: the same},
    also written to WORKDIR/evaluation.json. Where the run has several processes, all call this and process 0 writes.

    Raises Stopped after a SIGTERM or Ctrl-C, once the state is saved, and UserError for anything wrong with config, data,
    weights or workdir, before the first step where it can be known by then.
    """
    # ---- What the run needs is there -------------------------------------------------------------
    inputs.check(config)
    workdir = Path(config["workdir"])
    _check_workdir(workdir, config)
    batch_sizes = {k: v for k, v in config["batch"].items() if k == "depth" or inputs.uses_auxiliary(config)}
    mesh = parallel.training_mesh(config["look_ahead"], config["mesh"]["fsdp"], **batch_sizes)
    inputs.check_parts(config, parallel.batch_shards(mesh))
    model = experiment.build_model(config)
    going_on = bool(checkpoint.steps(workdir, "last"))
    experiment.check_weights(_without_first_files(config) if going_on else config)
    inputs.read_small_sets(config)

    # ---- Data ------------------------------------------------------------------------------------
    depth_stream = inputs.depth_stream(config)
    auxiliary_stream = inputs.auxiliary_stream(config)
    evaluation = Evaluation.open(config)
    sampling = {
        "batch_depth": config["batch"]["depth"],
        "batch_auxiliary": config["batch"]["auxiliary"] or None,
        "seed": config["seed"],
    }
    # Images too small for a crop, and depth in other units, show in a batch: told before anything is written.
    print(_depth_range(JointBatches(depth_stream, auxiliary_stream, **sampling), config["depth_range"]))

    # ---- Model, tasks, program -------------------------------------------------------------------
    counts = auxiliary_stream.class_counts if auxiliary_stream else lambda task: ()
    runs = population.Runs(config, model, counts)
    ratio = config["backbone"]["lr_ratio"] if config["backbone"]["train"] == "full" else None
    classes = {task: counts(task) for task in population.tasks(config)}
    # Kept by an earlier start, a program is loaded while its arguments' shapes are found, weights and first data read.
    same = {k: v for k, v in config.items() if k not in OUTSIDE_STEP}
    same["backbone"] = {**config["backbone"], "weights": ""}
    name, written = "", (losses.LOSSES, tasks.TASKS)
    if all(compilation.covers(functions.values()) for functions in written):  # a config may bring its own
        name = compilation.key("step", same, model, classes, dry_run.abstract_batch(config, classes), mesh, written)
    kept = compilation.find(name)
    shapes = runs.shapes()
    abstract = dry_run.abstract_arguments(config, model, runs, ratio, classes, shapes)
    ahead, mapped = config["look_ahead"], mesh.devices.flat[0].platform != "cpu"
    lies, shared = parallel.placement(mesh, abstract[:2]), parallel.joint_batch(mesh, ahead)
    joint_step = jax.jit(
        runs.build(ratio, ahead, accumulate=config["accumulate"], mapped=mapped, mesh=mesh),
        donate_argnums=0,
        in_shardings=(*lies, shared),
        out_shardings=(lies[0], parallel.replicated(mesh)),
    )
    # What does not fit the device is told before it is compiled, and compiled while weights and first data are read.
    trace = functools.cache(partial(joint_step.trace, *abstract))
    held = parallel.held_bytes(abstract[:2], lies) + parallel.held_bytes(abstract[2], shared)
    needed = kept.needed if kept else memory.step_bytes(trace(), len(jax.tree.leaves(abstract[0])), mesh.size, held)
    memory.check_step(config, needed, mesh.size)
    compiled = compilation.compile_aside(trace, model.backbone, name, needed, kept)

    # ---- State -----------------------------------------------------------------------------------
    starts: list[experiment.Parameters] = []
    for member, todo, shape in zip(runs.members, runs.tasks, shapes, strict=True):
        given = _without_first_files(member.config) if going_on else member.config
        place, before = partial(parallel.placement, mesh), starts[0] if starts else None
        starts.append(experiment.initial_params(given, model, todo, place, before, shape))
    frozen, fingerprint = starts[0].frozen, starts[0].fingerprint
    for line in starts[0].report:
        print(line)
    state = jax.jit(partial(runs.init_state, ratio=ratio), out_shardings=lies[0])([own.trained for own in starts])
    del starts  # the state has copies of its own

    with contextlib.ExitStack() as closing:
        # ---- Workdir, restore --------------------------------------------------------------------
        multihost.check_same("config", config)
        if multihost.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            closing.enter_context(record.lock(workdir))
            checkpoint.check_space(workdir, state)
            logbook.write_atomically(workdir / "config.json", json.dumps(config, indent=1) + "\n")
        multihost.check_shared(workdir, workdir / record.LOCK)
        checkpoints = closing.enter_context(contextlib.closing(Checkpoints(workdir)))
        data = inputs.content(depth_stream, auxiliary_stream, evaluation.depth)
        clock = {"step": 0, "consumed": 0, "backbone": fingerprint, "data": data}
        nothing = {"best_step": None, "best_AbsRel": None}
        clock |= nothing if runs.alone else {"members": {member.name: dict(nothing) for member in runs.members}}
        restored = checkpoints.restore(state)
        if restored is not None:
            state, clock = restored
            if clock["backbone"] != fingerprint:
                raise UserError(
                    f"{workdir}: was trained on another backbone (fingerprint {clock['backbone'][:12]}, "
                    f"given {fingerprint[:12]}): give the same config.backbone.weights"
                )
            _check_data(workdir, clock["data"], data)
            print(f"going on from step {clock['step']} of {config['steps']} in {workdir}")
        multihost.check_same("backbone, data set or checkpoint", clock)
        first = clock["step"]
        keep = lambda opened: closing.enter_context(contextlib.closing(opened))  # noqa: E731
        records = [keep(record.Record(member, clock, checkpoints)) for member in runs.members]
        for own in records:
            # A kill between two saves leaves a newer `best` behind, which this run has not reached yet.
            own.keep_best()
        book = records[0].book
        if not runs.alone:
            book = keep(record.book_of(workdir, first, config))
            print(f"{len(records)} members: {'  '.join(member.name for member in runs.members)}")
        print(_summary(config, mesh, model, state, frozen))

        # ---- Loop ------------------------------------------------------------------------------------
        batches = joint_batches(
            depth_stream, auxiliary_stream, **sampling, start=clock["consumed"], workers=config["data"]["workers"],
            bad_share=config["data"]["bad_share"], tell=book.bad_item, shard=multihost.shard(),
        )  # fmt: skip
        closing.callback(batches.close)
        termination = closing.enter_context(multihost.Termination())
        if not (kept or compiled.done()):
            spares = ", which a second start spares" if jax.config.jax_compilation_cache_dir else ""
            print(f"compiling the joint step: up to a few minutes{spares}", flush=True)
        joint_step = compiled.result()
        memory.check_compiled_step(config, joint_step, mesh.size)
        watch = logbook.Stopwatch(first, config["steps"], sum(batch_sizes.values()))
        recent = []
        for number in range(first + ahead, config["steps"] + 1, ahead):
            began = time.perf_counter()
            batch = step.stack_ahead([next(batches) for _ in range(ahead)])
            watch.waited(time.perf_counter() - began)
            state, values = joint_step(state, frozen, parallel.put_rows(batch, shared))
            recent.append(values)
            if number % config["log"]["every"] == 0 or number == config["steps"]:
                rows = [own.log(number, of) for own, of in zip(records, zip(*recent, strict=True), strict=True)]
                recent, lap = [], watch.lap(number)
                book.speed(number, lap)
                print(logbook.progress_line(number, config["steps"], rows, lap), flush=True)
            began = time.perf_counter()
            last = number == config["steps"]
            if number % config["evaluate"]["every"] == 0 or last:
                for index, own in enumerate(records):
                    params = runs.params(state, index)
                    scores = evaluation.during(model, runs.tasks[index], {**params, **frozen}, mesh)
                    own.score(number, scores, params)
            # Rows are means over log intervals: only between two of them does a later start write the same ones.
            stopping = (last or number % config["log"]["every"] == 0) and termination.agreed()
            if number % config["checkpoint"]["every"] == 0 or last or stopping:
                clock |= {"step": number, "consumed": batches.position}
                checkpoints.save(state, clock)
                for own in records:
                    own.keep_best()
            if stopping:
                raise Stopped(
                    f"stopped by {termination.by} after step {number} of {config['steps']}: the same command goes on"
                )
            watch.paused(time.perf_counter() - began)
        if not runs.alone:
            # A member's last step may be there only when the population's is, from which a killed run goes on.
            checkpoints.wait()
            for index, own in enumerate(records):
                own.finish(runs.member(state, index), clock)

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
    print(record.table(results))
    return results


def _without_first_files(config: Config) -> Config:
    """The config of a run that goes on: what its first start read to begin with is in the checkpoint."""
    kept = config["backbone"] if config["backbone"]["train"] == "frozen" else {**config["backbone"], "weights": ""}
    return {**config, "init_from": "", "backbone": kept}


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
    if middle < expected["max"] / 50:
        shown += f"; that is near for a range up to {expected['max']:g} m: is scale or formula right in its description?"
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
    elif workdir.is_dir() and any(path.name not in ("config.json.tmp", record.LOCK) for path in workdir.iterdir()):
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


def _summary(config, mesh, model, state, frozen) -> str:
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    device = mesh.devices.flat[0]
    return (
        f"{config['backbone']['name']} ({config['backbone']['train']}), {count(state.params):.1f} M trained and "
        f"{count(frozen):.1f} M frozen parameters, {config['precision']}, attention {model.backbone.attention}, "
        f"{mesh.size} × {device.device_kind}"
    )
