"""What a run would need, from its config alone: no data, no weights, nothing computed on a device."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jdepth import experiment, flops, inputs, peak_memory, population
from jdepth.data import sources
from jdepth.errors import UserError
from jdepth.models import depth_model

Config = Mapping[str, Any]
# Size of the published evaluation images, for the evaluation's share where they are absent.
PUBLISHED_SIZE = (480, 640)


def show(config: Config) -> None:
    """Print the figures of `figures` and the state of the data."""
    inputs.check_members(config)
    inputs.check_parts(config, 1)
    found = figures(config)
    for key, value in found.items():
        print(f"{key:<34} {value}")
    for line in data_report(config):
        print(line)


def abstract_step(config: Config, platform: str = "any"):
    """(model, joint step, abstract state, frozen parameters and batch): everything as shapes.

    The step is that of `platform`, with the plain attention: its FLOPs are the same, and it can be traced anywhere.
    """
    model = experiment.build_model({**config, "backbone": {**config["backbone"], "attention": "plain"}}, platform)
    classes = {task: inputs.class_counts(config, task) for task in population.tasks(config)}
    runs = population.Runs(config, model, classes.get)
    ratio = config["backbone"]["lr_ratio"] if config["backbone"]["train"] == "full" else None
    joint = runs.build(ratio, config["look_ahead"], accumulate=config["accumulate"])
    return model, joint, *abstract_arguments(config, model, runs, ratio, classes, runs.shapes())


def abstract_arguments(
    config: Config, model, runs: population.Runs, ratio: float | None, classes: Mapping, shapes: Sequence[Mapping]
):
    """(training state, frozen parameters, batch) of the joint step, as shapes.

    Args:
      classes: class counts by task.
      shapes: of every member's parameters.
    """
    trained, frozen = [dict(own) for own in shapes], {}
    if config["backbone"]["train"] == "frozen":
        frozen = {"backbone": _frozen(model, [own.pop("backbone") for own in trained][0])}
    state = jax.eval_shape(lambda p: runs.init_state(p, ratio), trained)
    ahead, batch = config["look_ahead"], abstract_batch(config, classes)
    if ahead > 1:
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0], ahead, *x.shape[1:]), x.dtype), batch)
    return state, frozen, batch


def _frozen(model, backbone):
    """Shapes of a frozen backbone's parameters, from those of a trained one."""
    cast = partial(depth_model.cast_frozen, dtype=model.backbone.dtype, float8=model.backbone.float8)
    return jax.eval_shape(cast, backbone)


def abstract_batch(
    config: Config, classes: Mapping[str, tuple[int, ...]]
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes of one joint batch with the targets of every task in `classes` (class counts of the data sets)."""
    array = jax.ShapeDtypeStruct
    crop = config["data"]["depth"]["augmentation"]["crop"]
    size, number = tuple(int(c) for c in crop), config["batch"]["depth"]
    batch = {
        "depth": {
            "image": array((number, *size, 3), jnp.uint8),
            "depth": array((number, *size), jnp.float32),
            "colour": array((number, 5), jnp.float32),
        }
    }
    if classes:
        number = config["batch"]["auxiliary"]
        canvas = tuple(int(c) for c in config["data"]["auxiliary"]["augmentation"]["canvas"])
        batch["auxiliary"] = {
            "image": array((number, *canvas, 3), jnp.uint8),
            "valid_size": array((number, 2), jnp.int32),
            "dataset_id": array((number,), jnp.int32),
            "photometric": array((number, 5), jnp.float32),
        }
        targets = {
            "mldc": lambda: {"classes": array((number, max(classes["mldc"])), jnp.float32)},
            "single_label": lambda: {"class_id": array((number,), jnp.int32)},
            "segmentation": lambda: {"label": array((number, *canvas), jnp.uint8)},
            "reconstruction": dict,
        }
        for task in classes:
            batch["auxiliary"] |= targets[task]()
    return batch


def figures(config: Config) -> dict[str, str]:
    """Parameters, FLOPs and memory, by name."""
    model, joint, state, frozen, batch = abstract_step(config)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    per_step = flops.count(joint, state, frozen, batch) / config["look_ahead"]
    images = min(_evaluation_images(config), config["evaluate"]["during_limit"])
    times = -(-config["steps"] // config["evaluate"]["every"])  # the last step is scored, whatever its number
    share = _evaluation_flops(config, model, images, times) / (per_step * config["steps"])
    peak = peak_memory.peak_bytes(joint, state, frozen, batch)
    return {
        "backbone": f"{config['backbone']['name']}, {config['backbone']['train']}",
        "frozen parameters": f"{count(frozen):,} ({count(frozen) / 1e9:.2f} billion)",
        "trained parameters": f"{count(state.params):,} ({count(state.params) / 1e6:.1f} million)",
        "FLOPs per joint step": f"{_readable(per_step)}FLOP  (multiply-add = 2)",
        "FLOPs of the whole run": f"{_readable(per_step * config['steps'])}FLOP",
        "evaluation while training": f"{share:.2f} × the training's FLOPs ({images} images, {times} times)",
        "parameters on the device": f"{(size(frozen) + size(state.params)) / 2**30:.2f} GiB",
        "optimizer states": f"{size(state.optimizers) / 2**30:.2f} GiB",
        "device memory, estimated": f"{peak / 2**30:.1f} GiB on one device",
        "checkpoint on disk": f"{(size(state.params) + size(state.optimizers)) / 1e9:.2f} GB",
    }


def _readable(number: float) -> str:
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")):
        if number >= factor:
            return f"{number / factor:.2f} {prefix}"
    return f"{number / 1e6:.2f} M"


def _evaluation_flops(config: Config, model, images: int, times: int) -> float:
    """FLOPs of all evaluations while training; a frozen backbone's features are kept for as many images as fit."""
    given = config["data"]["depth"]
    rendered = given["rooms_size"] if given["name"] == "rooms" else ()
    size = config["evaluate"]["input_size"] or rendered or PUBLISHED_SIZE
    image = jax.ShapeDtypeStruct((1, *(int(s) for s in size), 3), jnp.float32)
    params = experiment.abstract_params(config, model, [])
    if config["backbone"]["train"] == "frozen":
        params["backbone"] = _frozen(model, params["backbone"])
    backbone = flops.count(model.features, params["backbone"], image)
    rest = (flops.count(model, params, image) - backbone) * len(population.members(config))
    kept = 0
    if config["backbone"]["train"] == "frozen":
        taps = jax.eval_shape(model.features, params["backbone"], image)
        each = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(taps))
        kept = min(images, int(config["evaluate"]["cache_gib"] * 2**30 / each))
    return rest * images * times + backbone * (kept + (images - kept) * times)


def _evaluation_images(config: Config) -> int:
    name = config["data"]["depth"]["name"]
    try:
        return len(inputs.depth_source(config, config["evaluate"]["split"]))
    except UserError:
        published = sources.raw_set(name).counts if name in sources.RAW_SETS else {}
        return published.get(config["evaluate"]["split"], config["evaluate"]["during_limit"])


def data_report(config: Config) -> list[str]:
    """One line per data set and weights file: there, or what is wrong with it."""
    lines, absent = [], inputs.missing(config)
    inputs.protocol(config)  # an unknown protocol is a mistake here too
    for number, (name, source) in enumerate(inputs.opened(config)):
        if name in absent:
            state = f"missing: python -m jdepth.prepare {name} --raw DIR --out {config['data_dir']}"
        elif isinstance(source, UserError):
            state = f"not usable: {source}"
        else:
            state = f"found: {len(source)} images for training"
        lines.append(f"data     {'auxiliary' if number else 'depth':<10} {name:<16} {state}")
    path = config["backbone"]["weights"]
    if config["backbone"]["train"] == "frozen" or path:
        state = "missing: set config.backbone.weights" if not path else "found" if Path(path).exists() else "missing"
        lines.append(f"weights  {'backbone':<10} {config['backbone']['name']:<16} {state} {path}".rstrip())
    if config["init_from"]:
        state = "found" if Path(config["init_from"]).exists() else "missing"
        lines.append(f"weights  {'init_from':<10} {'':<16} {state} {config['init_from']}")
    return lines
