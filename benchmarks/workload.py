"""The recipe's joint step at the sizes of a named case: model, tasks and state as a run builds them, random weights
and random data on the device, and the ways of running it that are compared.

  fused             one program: one packed backbone pass for both batches of k steps, then the k pairs of updates
  separate          what a general training loop does: two programs, each with its own backbone pass and update
  backbone          the packed pass of k steps alone
  depth-update, auxiliary-update    one update alone, on features that are there
  float8            fused, with all matrix products of the backbone in float8
  plain             fused, with decoder and MLDC head as released (`released.py`)
  eager, compile    the same work in PyTorch (`peer.py`)
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from measure import UserError  # first: puts the checkout on the path

import jax
import jax.numpy as jnp
import numpy as np
import released
from jax.sharding import Mesh

from jdepth import experiment, flops, frozen_pass, optim, parallel, recipe, step, tasks
from jdepth.models import depth_model, float8, vit
from jdepth.models.depth_model import DepthModel

# Classes of MIX6's members: ADE20K, SUN RGB-D, Cityscapes (34 ids), COCO-Stuff, Pascal VOC, Pascal Context. A copy of
# the data modules' own lists, which need packages that a bare GPU image lacks; a test compares them.
MIX6_CLASSES = (150, 37, 34, 171, 21, 59)
SIZES = {size: vit.BACKBONES[f"dinov2_vit{size.lower()}14"] for size in "SBLg"} | {
    # For checks on a CPU: compiled in seconds.
    "tiny": vit.ViTConfig("tiny", width=32, depth=4, heads=2, hidden=128, taps=(0, 1, 2, 3), grid=4),
}
OURS = ("fused", "float8", "separate", "plain", "backbone", "depth-update", "auxiliary-update")
PEERS = ("eager", "compile")
AHEAD = ("fused", "float8", "plain", "backbone")  # the kinds that look ahead
FORM = '"SIZE DEPTH+AUXILIARY k=K KIND [at HxW]", such as "g 4+4 k=8 fused"'


@dataclass(frozen=True)
class Case:
    """What is measured. `size` is a key of SIZES; `crop` (H, W) of both batches, None: the recipe's two."""

    size: str
    depth: int
    auxiliary: int
    ahead: int
    kind: str
    crop: tuple[int, int] | None = None

    def __str__(self) -> str:
        name = f"{self.size} {self.depth}+{self.auxiliary} k={self.ahead} {self.kind}"
        return f"{name} at {self.crop[0]}x{self.crop[1]}" if self.crop else name

    @property
    def shape(self) -> vit.ViTConfig:
        """Its backbone."""
        return SIZES[self.size]

    @property
    def channels(self) -> int:
        """The decoder's channels: the recipe's, but few on the tiny backbone."""
        return 32 if self.size == "tiny" else recipe.RELEASED["decoder"]["channels"]

    @property
    def images(self) -> int:
        """Images of one joint step."""
        return self.depth + self.auxiliary

    @property
    def torch(self) -> bool:
        """Whether it runs in PyTorch."""
        return self.kind in PEERS


def parse(name: str) -> Case:
    """A case by its name. Raises UserError for a name that is none."""
    found = re.fullmatch(r"(\w+) (\d+)\+(\d+) k=(\d+) ([\w-]+)(?: at (\d+)x(\d+))?", name.strip())
    if not found:
        raise UserError(f"case {name!r}: expected {FORM}")
    size, depth, auxiliary, ahead, kind, height, width = found.groups()
    if size not in SIZES:
        raise UserError(f"case {name!r}: size {size} is none of {', '.join(SIZES)}")
    if kind not in OURS + PEERS:
        raise UserError(f"case {name!r}: {kind} is none of {', '.join(OURS + PEERS)}")
    numbers = int(depth), int(auxiliary), int(ahead)
    if 0 in numbers:
        raise UserError(f"case {name!r}: batches and k must be at least 1")
    if numbers[2] > 1 and kind not in AHEAD:
        raise UserError(f"case {name!r}: only {', '.join(AHEAD)} look ahead; use k=1")
    return Case(size, *numbers, kind, (int(height), int(width)) if height else None)


class Work(NamedTuple):
    """The objects of a run of one case."""

    config: dict[str, Any]
    model: DepthModel
    todo: list[tasks.Task]
    scales: step.Scales
    settings: optim.OptimizerSettings
    optimizers: Mapping[str, Any]


def config_of(case: Case, precision: str, attention: str = "auto") -> dict[str, Any]:
    """The released recipe, with the case's backbone, batches, look-ahead and crops."""
    changes: dict[str, Any] = {
        "batch": {"depth": case.depth, "auxiliary": case.auxiliary},
        "look_ahead": case.ahead,
        "precision": precision,
        "backbone": {
            "name": case.shape,
            "attention": attention,
            "float8": float8.KINDS[case.shape.ffn] if case.kind == "float8" else (),
        },
        "decoder": {"channels": case.channels},
    }
    if case.crop:
        changes["data"] = {
            "depth": {"augmentation": {"crop": case.crop}},
            "auxiliary": {"augmentation": {"crop": case.crop, "canvas": case.crop}},
        }
    return recipe.released(**changes)


def build(case: Case, precision: str, attention: str = "auto", kept: Sequence[str] | None = None) -> Work:
    """Model, tasks and optimizers. `kept`: the savings (`released.SAVINGS`) that stay; None: all, jdepth's own."""
    config = config_of(case, precision, attention)
    model = experiment.build_model(config)
    todo = experiment.build_tasks(config, model, MIX6_CLASSES)
    if case.kind == "plain" and kept is None:
        kept = ()
    if kept is not None:
        model = released.released_model(model, tuple(kept))
        depth = experiment.build_tasks(config, model, MIX6_CLASSES)[0]
        channels, dtype = model.decoder.channels, model.decoder.dtype
        todo = [depth, todo[1] if "pooling" in kept else released.released_mldc(MIX6_CLASSES, channels, dtype)]
    scales, settings = experiment.scales(config), experiment.optimizer_settings(config)
    return Work(config, model, todo, scales, settings, step.build_optimizers(todo, scales, settings))


# ---- State and data ---------------------------------------------------------------------------------


def abstract_params(work: Work) -> dict[str, Any]:
    """Shapes of all parameters: those of jdepth's own decoder, which the released form shares."""
    own = depth_model.build(work.model.backbone.config, work.model.decoder.channels)
    return experiment.abstract_params(work.config, own, work.todo)


def initial(work: Work, params: Mapping[str, Any] | None = None) -> tuple[step.TrainState, dict[str, Any]]:
    """(state, frozen parameters); the parameters are random unless given."""
    params = random_params(abstract_params(work)) if params is None else params

    def start(trained, backbone):
        state = step.init_state(trained, work.todo, work.optimizers, work.scales)
        own = work.model.backbone
        return state, {"backbone": depth_model.cast_frozen(backbone, own.dtype, own.float8)}

    # As one program: leaf by leaf, hundreds of small ones would be compiled.
    return jax.jit(start)({k: v for k, v in params.items() if k != "backbone"}, params["backbone"])


def random_params(shapes: Any, seed: int = 0) -> Any:
    """Numbers of a sensible size for each parameter, from one pool: the model's own initialisation of ViT-g would take
    longer than its measurement."""
    pool = np.random.default_rng(seed).standard_normal(1_000_003, np.float32)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "gamma"):
            return np.ones(leaf.shape, np.float32)
        # The last bias of the depth head: in front of a ReLU, which is to be alive.
        if name == "bias" and path[-2].key == "conv3":
            return np.ones(leaf.shape, np.float32)
        spread = 0.02 if name != "kernel" else (leaf.size / leaf.shape[-1]) ** -0.5
        return np.float32(spread) * np.resize(pool, leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def copy_state(state: step.TrainState) -> step.TrainState:
    """A state of its own for a program that reuses its argument's memory."""
    return jax.tree.map(jnp.copy, state)


def crops(case: Case) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) of the depth and of the auxiliary images."""
    data = config_of(case, "float32")["data"]
    return data["depth"]["augmentation"]["crop"], data["auxiliary"]["augmentation"]["canvas"]


def host_batch(case: Case, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """One joint batch as the data pipeline gives it, of noise: uint8 images, depth with holes, multi-hot classes."""
    draw = np.random.default_rng(seed)
    size, canvas = crops(case)
    number, ids = case.auxiliary, draw.integers(0, len(MIX6_CLASSES), case.auxiliary)
    depth = draw.uniform(0.5, 9.5, (case.depth, *size)) * (draw.random((case.depth, *size)) > 0.2)
    own = np.arange(max(MIX6_CLASSES)) < np.array(MIX6_CLASSES)[ids, None]
    return {
        "depth": {
            "image": draw.integers(0, 256, (case.depth, *size, 3), np.uint8),
            "depth": depth.astype(np.float32),
            "colour": draw.uniform(0.9, 1.1, (case.depth, 5)).astype(np.float32),
        },
        "auxiliary": {
            "image": draw.integers(0, 256, (number, *canvas, 3), np.uint8),
            "valid_size": np.tile(np.array(canvas, np.int32), (number, 1)),
            "dataset_id": ids.astype(np.int32),
            "photometric": np.tile(np.array([8, 1.1, 0.9, 4, 1], np.float32), (number, 1)),
            "classes": ((draw.random(own.shape) < 0.1) & own).astype(np.float32),
        },
    }


def batch_of(case: Case) -> Mapping[str, Any]:
    """k joint batches on the host, as the step takes them."""
    return step.stack_ahead([host_batch(case, seed) for seed in range(case.ahead)])


# ---- Ways to run it ---------------------------------------------------------------------------------

# (state, frozen, batch) -> (state, anything)
Stage = Callable[[step.TrainState, Mapping[str, Any], Mapping[str, Any]], tuple[step.TrainState, Any]]


class _GivenTaps:
    """Stands for a backbone whose features have been computed before: images are the taps themselves."""

    @staticmethod
    def apply(variables, images):
        del variables
        return tuple(vit.Features(taps, None) for taps in images)


def stages(work: Work, kind: str, mesh: Mesh | None = None) -> list[Stage]:
    """The programs, in order, that make `look_ahead` joint steps (or their part, for the phases)."""
    if kind == "separate":
        return [_alone(work, task, mesh) for task in work.todo]
    if kind == "backbone":
        shared = frozen_pass.build(work.model, work.todo, work.config["look_ahead"], mesh)
        return [lambda state, frozen, batch: (state, shared(frozen, batch)[1])]
    if kind in ("depth-update", "auxiliary-update"):
        on_taps = dataclasses.replace(work.model, backbone=_GivenTaps())
        todo = [dataclasses.replace(task, prepare=dict) for task in work.todo]
        own = [task for task in todo if kind.startswith(task.stream)]
        return [_alone(work._replace(model=on_taps, todo=todo), *own, mesh)]
    ahead = work.config["look_ahead"]
    return [
        step.build(
            work.model, work.todo, work.optimizers, work.scales, work.settings, ahead, mapped=mapped(mesh), mesh=mesh
        )
    ]


def mapped(mesh: Mesh | None = None) -> bool:
    """Whether loops stay loops on these devices, as in training: not on a CPU."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return platform != "cpu"


def _alone(work: Work, task: tasks.Task, mesh: Mesh | None) -> Stage:
    """The training step of one task; the last task's counts the global step."""
    update = step.build(work.model, [task], work.optimizers, work.scales, work.settings, mesh=mesh)

    def stage(state, frozen, batch):
        moved, metrics = update(state, frozen, batch)
        if task.stream != work.todo[-1].stream:
            moved = moved._replace(step=state.step)
        return moved, metrics

    return stage


def features(work: Work, frozen, batch) -> dict[str, Any]:
    """Taps of every stream, by one packed pass."""
    images = tuple(task.prepare(batch[task.stream])["images"] for task in work.todo)
    found = work.model.backbone.apply({"params": frozen["backbone"]}, images)
    return {task.stream: f.taps for task, f in zip(work.todo, found, strict=True)}


def prepared(work: Work, frozen, batch) -> dict[str, Any]:
    """The batch that the update phases take: inputs with taps in place of images."""
    taps = features(work, frozen, batch)
    return {t.stream: t.prepare(batch[t.stream]) | {"images": taps[t.stream]} for t in work.todo}


class Program:
    """The compiled stages of a kind; a call of n makes n × `steps` joint steps and waits for them."""

    def __init__(self, work: Work, kind: str, state, frozen, batch, devices: list | None = None):
        self.steps, devices = work.config["look_ahead"], devices or jax.local_devices()[:1]
        mesh = parallel.training_mesh(self.steps, 1, devices, **work.config["batch"])
        everywhere, shared = parallel.replicated(mesh), parallel.joint_batch(mesh, self.steps)
        self._frozen = parallel.put(frozen, everywhere)
        self._batch = parallel.put(batch, shared)
        if kind.endswith("-update"):
            self._batch = jax.jit(lambda f, b: prepared(work, f, b))(self._frozen, self._batch)
        self._state = copy_state(parallel.put(state, everywhere))
        given = (self._state, self._frozen, self._batch)
        results = (everywhere, parallel.joint_batch(mesh, 2) if kind == "backbone" else everywhere)
        self.compiled = [
            jax.jit(
                stage, donate_argnums=0, in_shardings=(everywhere, everywhere, shared), out_shardings=results
            ).lower(*given).compile()
            for stage in stages(work, kind, mesh)
        ]  # fmt: skip
        self.metrics: list[Any] = []

    @property
    def state(self) -> step.TrainState:
        """What training has changed so far."""
        return self._state

    def __call__(self, calls: int) -> None:
        for _ in range(calls):
            self.metrics = []
            for stage in self.compiled:
                self._state, metrics = stage(self._state, self._frozen, self._batch)
                self.metrics.append(metrics)
        jax.block_until_ready((self._state.step, self.metrics))


# ---- FLOPs ------------------------------------------------------------------------------------------


def abstract(work: Work, case: Case):
    """(state, frozen parameters, batch) as shapes; nothing is computed."""
    state, frozen = jax.eval_shape(functools.partial(initial, work), abstract_params(work))
    ahead = (case.ahead,) if case.ahead > 1 else ()
    batch = {
        stream: {
            name: jax.ShapeDtypeStruct((getattr(case, stream), *ahead, *array.shape[1:]), array.dtype)
            for name, array in arrays.items()
        }
        for stream, arrays in host_batch(dataclasses.replace(case, depth=1, auxiliary=1)).items()
    }
    return state, frozen, batch


def counted(case: Case, kept: tuple[str, ...] | None = None) -> float:
    """FLOPs of one joint step (or of the phase), from the traced programs.

    `kept`: savings that stay, () for the official formula; None: jdepth's own program (with k = 1: looking ahead
    changes no FLOPs).
    """
    return _counted(dataclasses.replace(case, ahead=1), kept)


@functools.cache
def _counted(case: Case, kept: tuple[str, ...] | None) -> float:
    # The plain kernel's FLOPs are those of the fused one, and it can be traced on any machine.
    work = build(case, "bfloat16", "plain", kept)
    state, frozen, batch = abstract(work, case)
    if case.kind.endswith("-update"):
        batch = jax.eval_shape(lambda f, b: prepared(work, f, b), frozen, batch)
    return sum(flops.count(stage, state, frozen, batch) for stage in stages(work, case.kind))


def towards_taps(case: Case) -> float:
    """FLOPs of one joint step that a gradient towards the features would add."""
    work = build(case, "bfloat16", "plain", ())
    state, frozen, batch = abstract(work, dataclasses.replace(case, ahead=1))
    total = 0.0
    for task in work.todo:

        def loss(trained, taps, given, task=task):
            return task.loss(trained[task.head], work.model.decode(trained["decoder"], taps), given, 0)[0]

        own = jax.eval_shape(lambda f, b: prepared(work, f, b), frozen, batch)[task.stream]
        given = {key: state.params[key] for key in ("decoder", task.head)}, own.pop("images"), own
        total += flops.count(jax.grad(loss, (0, 1)), *given) - flops.count(jax.grad(loss), *given)
    return total
