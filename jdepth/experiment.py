"""From a checked config to the objects of a run: model, tasks, optimizers, parameters, data sources.

Training, evaluation, prediction and the dry run all build from here, so that they cannot disagree.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdepth import optim, step, tasks
from jdepth.errors import UserError
from jdepth.models import attention, depth_model
from jdepth.models.depth_model import DepthModel

Config = Mapping[str, Any]


def fold(seed: int, *names: str) -> int:
    """A 32-bit seed for one named purpose, the same on every machine."""
    text = "/".join((str(seed), *names)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "little")


def build_model(config: Config, platform: str | None = None) -> DepthModel:
    """Backbone, decoder and depth head; resolves and logs the attention kernel."""
    dtype = jnp.dtype(config["precision"])
    if dtype == jnp.float64:
        # A switch of the whole process, thrown before the run's first array is made.
        jax.config.update("jax_enable_x64", True)
    kernel = attention.choose(config["backbone"]["attention"], dtype, platform)
    return depth_model.build(
        config["backbone"]["name"],
        channels=config["decoder"]["channels"],
        dtype=dtype,
        attention=kernel,
        min_depth=config["depth_range"]["min"],
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
        result.append(tasks.TASKS[config["task"]](classes, model.decoder.channels))
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


def initial_params(
    config: Config, model: DepthModel, todo: list[tasks.Task], shared: Parameters | None = None
) -> Parameters:
    """Fresh or loaded parameters as the config says. Raises UserError for weights that do not fit.

    `shared`: the start of another run on the same frozen backbone, which is not read again.
    """
    frozen = config["backbone"]["train"] == "frozen"
    path, name = config["backbone"]["weights"], config["backbone"]["name"]
    if frozen and not path:
        raise UserError(
            f"config.backbone.weights: a frozen {name} needs its weights: give the official "
            f"{name}_pretrain.pth or a converted file, or set config.backbone.train=full"
        )
    report, fingerprint, loaded = [], "", {}
    if shared is not None:
        loaded["backbone"], fingerprint = shared.frozen["backbone"], shared.fingerprint
    elif path:
        # Before anything is drawn: a file that does not fit is told at once.
        loaded["backbone"], fingerprint = _load_backbone(path, name)
        report.append(f"backbone: {name} from {path}")
    everything = fresh_params(config, model, todo, backbone=not path) | loaded
    if config["init_from"]:
        everything, lines = _warm_start(config["init_from"], everything, frozen)
        report += lines
    if jnp.dtype(config["precision"]) == jnp.float64:
        everything = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), everything)
    backbone = everything["backbone"]
    if frozen:
        del everything["backbone"]
        return Parameters(
            everything, {"backbone": depth_model.cast_frozen(backbone, model.backbone.dtype)}, fingerprint, tuple(report)
        )
    return Parameters(everything, {}, "", tuple(report))


def fresh_params(
    config: Config, model: DepthModel, todo: list[tasks.Task], backbone: bool = True
) -> dict[str, Any]:
    """Random parameters of backbone (if wanted), decoder and every head, each from its own named seed."""
    seed = config["seed"] if config["init_seed"] < 0 else config["init_seed"]
    everything = model.init(jax.random.key(fold(seed, "init", "model")), (28, 28), backbone)
    for task in todo:
        if task.head not in everything:
            everything[task.head] = task.init(jax.random.key(fold(seed, "init", task.head)))
    return dict(everything)


def abstract_params(config: Config, model: DepthModel, todo: list[tasks.Task]) -> dict[str, Any]:
    """Shapes of `fresh_params`, without computing them."""
    return jax.eval_shape(lambda: fresh_params(config, model, todo))


def _load_backbone(path: str, name: str) -> tuple[Any, str]:
    from jdepth import weights

    loaded = weights.load(path, parts=("backbone",), backbone=name)
    return loaded.params["backbone"], weights.fingerprint(loaded.params["backbone"])


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
