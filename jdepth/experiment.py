"""From a checked config to the objects of a run: model, tasks, optimizers, parameters, data sources.

Training, evaluation, prediction and the dry run all build from here, so that they cannot disagree.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from jdepth import optim, parallel, step, tasks
from jdepth.errors import UserError
from jdepth.models import attention, convolution, depth_model
from jdepth.models.depth_model import DepthModel

Config = Mapping[str, Any]


def fold(seed: int, *names: str) -> int:
    """A 32-bit seed for one named purpose, the same on every machine."""
    text = "/".join((str(seed), *names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")


def build_model(config: Config, platform: str | None = None) -> DepthModel:
    """Backbone, decoder and depth head; resolves and logs the attention kernel.

    `platform`: what it is computed on, by default JAX's own; "any" takes what every platform can compute.
    """
    dtype = jnp.dtype(config["precision"])
    if _double(config):
        # A switch of the whole process, thrown before the run's first array is made.
        jax.config.update("jax_enable_x64", True)
    kernel = attention.choose(config["backbone"]["attention"], dtype, platform)
    return depth_model.build(
        config["backbone"]["name"],
        channels=config["decoder"]["channels"],
        dtype=dtype,
        attention=kernel,
        min_depth=config["depth_range"]["min"],
        float8=config["backbone"]["float8"],
        convolution=convolution.choose(platform),
    )


def scales(config: Config) -> step.Scales:
    """The decoder's rate factors."""
    return step.Scales.of(config["alpha"], config["gamma"], config["beta"])


def optimizer_settings(config: Config) -> optim.OptimizerSettings:
    """The recipe's numbers for every AdamW."""
    return optim.OptimizerSettings(steps=config["steps"], **config["optimizer"])


def build_tasks(config: Config, model: DepthModel, classes: tuple[int, ...]) -> list[tasks.Task]:
    """Depth, and the auxiliary task unless its scale says that there is none.

    Args:
      classes: number of classes of each auxiliary dataset, in the order of their ids.
    """
    loss = config["loss"]
    result = [
        tasks.depth(
            model,
            silog_weight=loss["silog"],
            gradient_weight=loss["gradient"],
            warmup_steps=round(loss["silog_warmup_fraction"] * config["steps"]),
            group=loss["silog_group"],
        )
    ]
    if scales(config).auxiliary is not None:
        result.append(tasks.TASKS[config["task"]](classes, model.decoder.channels, model.decoder.dtype))
    return result


class Parameters(NamedTuple):
    """Start of a run.

    Attributes:
      trained: {"decoder", heads[, "backbone"]} float32 (float64 with that precision).
      frozen: {"backbone"} in compute precision, or {}.
      fingerprint: of the frozen backbone's file contents; "" when it is trained.
      report: lines that say what was loaded and what was not.
    """

    trained: dict[str, Any]
    frozen: dict[str, Any]
    fingerprint: str
    report: tuple[str, ...]


def check_weights(config: Config) -> None:
    """Raise UserError for files that are missing, a backbone's that does not fit, and a start from nowhere; reads names
    and shapes only."""
    path, name = config["backbone"]["weights"], config["backbone"]["name"]
    for key, given in (("backbone.weights", path), ("init_from", config["init_from"])):
        if given and not Path(given).exists():
            raise UserError(f"config.{key}: {given}: no such file or folder")
    if path:
        from jdepth import weights

        with weights.opened(path, parts=("backbone",), backbone=name):
            return
    if config["backbone"]["train"] == "frozen":
        files = f"the official {name}_pretrain.pth or a converted file" if name.startswith("dinov2_") else "a file of them"
        train = "" if any(config["population"].values()) else ", or set config.backbone.train=full"
        raise UserError(f"config.backbone.weights: a frozen {name} needs its weights: give {files}{train}")


def initial_params(
    config: Config,
    model: DepthModel,
    todo: list[tasks.Task],
    place: Callable[[Any], Any] | None = None,
    shared: Parameters | None = None,
    shapes: dict[str, Any] | None = None,
) -> Parameters:
    """Fresh or loaded parameters as the config says, each straight on the devices that hold it.

    Args:
      place: a tree of parameters or shapes -> where each lies; None puts all on the first device.
      shared: the start of another run on the same frozen backbone, which is not read again.
      shapes: what `abstract_params` gives, where that is known.

    A backbone's file is read array by array: neither the host nor a device ever holds more of it than one array
    beside its share. Raises UserError for weights that do not fit.
    """
    check_weights(config)
    frozen = config["backbone"]["train"] == "frozen"
    path, name = config["backbone"]["weights"], config["backbone"]["name"]
    if place is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        place = partial(jax.tree.map, lambda _: device)
    shapes = shapes or abstract_params(config, model, todo)
    report, fingerprint, loaded = [], "", {}
    if shared is not None:
        loaded["backbone"], fingerprint = shared.frozen["backbone"], shared.fingerprint
    elif path:
        kept = partial(depth_model.frozen_arrays, dtype=model.backbone.dtype, float8=model.backbone.float8)
        loaded["backbone"], fingerprint = _load_backbone(path, name, kept if frozen else _as_it_is, place)
        report.append(f"backbone: {name} from {path}")
    drawn = _draw(config, model, todo, place({k: v for k, v in shapes.items() if k not in loaded}))
    everything = drawn | loaded
    if config["init_from"]:
        everything, lines = _warm_start(config["init_from"], everything, frozen)
        everything = jax.tree.map(parallel.put, everything, place(everything))
        report += lines
    if _double(config):
        everything = jax.tree.map(lambda x: x.astype(jnp.float64), everything)
    if frozen:
        return Parameters(everything, {"backbone": everything.pop("backbone")}, fingerprint, tuple(report))
    return Parameters(everything, {}, "", tuple(report))


def _draw(config: Config, model: DepthModel, todo: list[tasks.Task], where: dict[str, Any]) -> dict[str, Any]:
    """`fresh_params` of the parts in `where`, as one program: compiled one by one, its hundreds of little operations
    took longer than the whole (measured on a CPU, 37 s against 10 s)."""
    # Nothing is gained by optimising what runs once; other compilers do not know the option.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None

    def parts():
        return fresh_params(config, model, todo, backbone="backbone" in where)

    return jax.jit(parts, out_shardings=where, compiler_options=options)()


def fresh_params(
    config: Config, model: DepthModel, todo: list[tasks.Task], backbone: bool = True
) -> dict[str, Any]:
    """Random parameters of backbone (if wanted), decoder and every head, each from its own named seed."""
    seed = config["seed"] if config["init_seed"] < 0 else config["init_seed"]
    everything = model.init(jax.random.key(fold(seed, "init", "model")), (28, 28), backbone)
    for task in todo:
        if task.head not in everything:
            everything[task.head] = task.init(jax.random.key(fold(seed, "init", task.head)))
    if _double(config):
        everything = jax.tree.map(lambda x: x.astype(jnp.float64), everything)
    return dict(everything)


def _double(config: Config) -> bool:
    return jnp.dtype(config["precision"]) == jnp.float64


def abstract_params(config: Config, model: DepthModel, todo: list[tasks.Task]) -> dict[str, Any]:
    """Shapes of `fresh_params`, without computing them."""
    return jax.eval_shape(lambda: fresh_params(config, model, todo))


def _as_it_is(path: Sequence[str], array: Any) -> dict[tuple[str, ...], Any]:
    return {tuple(path): array}


def _load_backbone(path: str, name: str, kept: Callable, place: Callable) -> tuple[Any, str]:
    """(backbone of what `kept` makes of each array, as `depth_model.frozen_arrays` does; its fingerprint)."""
    from jdepth import weights

    placed, fingerprint = {}, weights.Fingerprint()
    with weights.opened(path, parts=("backbone",), backbone=name) as (flat, _):
        for key in sorted(key for key in flat if key.startswith("backbone/")):
            own = key.removeprefix("backbone/")
            array = flat[key]()
            fingerprint.add(own, array)
            # Placed as a part of the whole: which arrays are divided among devices goes by their place in the tree.
            part = {"backbone": traverse_util.unflatten_dict(kept(own.split("/"), array))}
            placed |= traverse_util.flatten_dict(jax.tree.map(parallel.put, part, place(part))["backbone"])
    return traverse_util.unflatten_dict(placed), fingerprint.text()


def _warm_start(path: str, target: dict[str, Any], frozen: bool) -> tuple[dict[str, Any], list[str]]:
    from jdepth import weights
    from jdepth.weights import warm_start

    if (Path(path) / "members").is_dir():
        raise UserError(f"config.init_from: {path} is a population; name the folder of one of its members")
    if (Path(path) / "config.json").is_file() and (Path(path) / "checkpoints").is_dir():
        source = _run_params(Path(path))
    else:
        family = weights.family(path)
        if family not in ("dinov2", "dinov2_dpt"):
            raise UserError(
                f"config.init_from: {path} is of the family {family}, whose decoder and head are not those that are "
                "trained here; to start from its backbone, give the file as config.backbone.weights"
            )
        source = weights.load(path).params
    if frozen:
        # The frozen backbone is named by config.backbone.weights alone.
        source = {k: v for k, v in source.items() if k != "backbone"}
    kept = {"backbone": target["backbone"]} if frozen else {}
    merged, report = warm_start.merge({k: v for k, v in target.items() if k not in kept}, source)
    return {**merged, **kept}, [f"init_from {path}: {line}" for line in report.lines()]


def _run_params(workdir: Path) -> Any:
    from jdepth import checkpoint

    kind = "best" if checkpoint.steps(workdir, "best") else "last"
    return checkpoint.read_any_params(workdir, kind)
