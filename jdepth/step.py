"""The joint global step: one update per task, in turn, on shared parameters.

    state, metrics = joint_step(state, frozen, batch)

A pure function of the training state, the frozen parameters and one joint batch. It is written over a
list of tasks; with a depth and an auxiliary task it computes equations (4) and (5) of "Enhancing
Monocular Depth Estimation with Multi-Source Auxiliary Tasks": the auxiliary gradient is taken at the
decoder that the depth update has already moved.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jdepth import frozen_pass, parallel
from jdepth.models.depth_model import DepthModel
from jdepth.optim import OptimizerSettings, beta1_schedule, learning_rate, task_optimizer
from jdepth.tasks import Task


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
      params: {"decoder", one entry per head[, "backbone"]}, float32.
      optimizers: one optax state per task, keyed by the task's stream.
      step: () int32, the number of finished global steps.
    """

    params: dict[str, Any]
    optimizers: dict[str, Any]
    step: jax.Array


@dataclass(frozen=True)
class Scales:
    """Factors on the decoder's rate. `auxiliary` None means that there is no auxiliary task."""

    depth: float
    auxiliary: float | None

    @staticmethod
    def of(alpha: float, gamma: float | None = None, beta: float | None = None) -> "Scales":
        """α: (α, 1 − α), and (1, none) for α = 1; γ: (γ, none); β: (1, β)."""
        if gamma is not None:
            return Scales(gamma, None)
        if beta is not None:
            return Scales(1.0, beta)
        return Scales(alpha, None if alpha == 1.0 else 1.0 - alpha)

    def __getitem__(self, stream: str) -> float:
        scale = getattr(self, stream)
        if scale is None:
            raise KeyError(stream)
        return scale


def _updated_keys(task: Task, scales: Scales, train_backbone: bool) -> tuple[str, ...]:
    # With scale 0 the shared parameters cannot move: the head alone is trained, on stopped features.
    if scales[task.stream] == 0.0:
        return (task.head,)
    return (("backbone",) if train_backbone else ()) + ("decoder", task.head)


def build_optimizers(
    tasks: Sequence[Task],
    scales: Scales,
    settings: OptimizerSettings,
    backbone_rate_ratio: float | None = None,
) -> dict[str, optax.GradientTransformation]:
    """One optimizer per task. `backbone_rate_ratio` is None for a frozen backbone."""
    ratio = backbone_rate_ratio or 0.0
    return {
        task.stream: task_optimizer(
            settings,
            decoder_scale=scales[task.stream],
            backbone_scale=scales[task.stream] * ratio,
        )
        for task in tasks
    }


def init_state(
    params: Mapping[str, Any],
    tasks: Sequence[Task],
    optimizers: Mapping[str, optax.GradientTransformation],
    scales: Scales,
) -> TrainState:
    """State before the first step. `params` holds exactly what is trained."""
    states = {}
    for task in tasks:
        keys = _updated_keys(task, scales, "backbone" in params)
        states[task.stream] = optimizers[task.stream].init({k: params[k] for k in keys})
    return TrainState(dict(params), states, jnp.zeros((), jnp.int32))


def build(
    model: DepthModel,
    tasks: Sequence[Task],
    optimizers: Mapping[str, optax.GradientTransformation],
    scales: Scales,
    settings: OptimizerSettings,
    look_ahead: int = 1,
    *,
    accumulate: int = 1,
    mapped: bool = False,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Mapping[str, Any], Mapping[str, Any]], tuple[TrainState, dict]]:
    """The joint step as a function (state, frozen, batch) -> (state, metrics).

    `frozen` is {"backbone": parameters} or, when the backbone is trained, {}. `batch` maps each task's
    stream to its arrays. Metrics are scalars named "<task>/<term>", with the gradient's norm before
    clipping, and "rate" and "beta1" of this step.

    With `look_ahead` k > 1 the function does k global steps: arrays of `batch` are (B, k, ...), as
    `stack_ahead` makes them, metrics are (k,). A frozen backbone's features depend on nothing that these
    steps change, so that one pass computes them for all k; the result is that of k single steps.

    Args:
      accumulate: parts of a batch whose gradients are computed one after the other and added, for less memory
        and the same result. Each device's rows are divided.
      mapped: loops over steps and parts as one compiled body, which is quicker to compile on an accelerator. XLA's
        CPU backend is slow at convolutions in loops: there they are written out.
      mesh: the devices that the program is compiled for, where there are several.
    """
    shared = frozen_pass.build(model, tasks, look_ahead, mesh)
    update = _joint_update(model, tasks, scales, settings, accumulate, mapped, mesh)
    several = _several(partial(update, optimizers), look_ahead, mapped)

    def joint_steps(state: TrainState, frozen, batch):
        return several(state, *shared(frozen, batch))

    return joint_steps


def _joint_update(model, tasks, scales, settings, accumulate, mapped, mesh):
    """One global step on what `frozen_pass` made of one joint batch: (optimizers, state, inputs, taps) ->
    (state, metrics)."""
    shards = 1 if mesh is None else parallel.batch_shards(mesh)

    def update(optimizers, state: TrainState, inputs, taps):
        train_backbone = "backbone" in state.params
        params, optimizer_states = dict(state.params), dict(state.optimizers)
        metrics = {}
        for task in tasks:
            keys = _updated_keys(task, scales, train_backbone)

            def loss(trained, given, own, task=task, fixed=params):
                everything = {**fixed, **trained}
                if own is None:
                    own = model.features(everything["backbone"], given["images"])
                features = model.decode(everything["decoder"], own)
                return task.loss(everything[task.head], features, given, state.step)

            gradient = jax.value_and_grad(loss, has_aux=True)
            if accumulate > 1:
                gradient = _in_parts(gradient, task, accumulate, shards, mapped)
            trained = {k: params[k] for k in keys}
            (value, terms), gradients = gradient(trained, inputs[task.name], taps.get(task.stream))
            updates, optimizer_states[task.stream] = optimizers[task.stream].update(
                gradients, optimizer_states[task.stream], trained
            )
            params |= optax.apply_updates(trained, updates)
            metrics[f"{task.name}/loss"] = value
            metrics |= {f"{task.name}/{k}": v for k, v in terms.items()}
            metrics[f"{task.name}/gradient_norm"] = optax.tree.norm(gradients)
        metrics["rate"] = learning_rate(settings)(state.step)
        metrics["beta1"] = beta1_schedule(settings)(state.step)
        return TrainState(params, optimizer_states, state.step + 1), metrics

    return update


def _in_parts(gradient, task: Task, parts: int, shards: int, mapped: bool):
    """`gradient` of a batch as the weighted mean over its parts, each of some rows of every device."""

    def part(tree, index):
        def rows(x):
            own = x.reshape(shards, parts, -1, *x.shape[1:])
            return jax.lax.dynamic_index_in_dim(own, index, 1, keepdims=False).reshape(-1, *x.shape[1:])

        return jax.tree.map(rows, tree)

    def accumulated(trained, given, own):
        weights = jnp.stack([jnp.asarray(task.weight(part(given, i)), float) for i in range(parts)])
        weights = weights / jnp.maximum(weights.sum(), 1)

        def add(total, index):
            # The barrier keeps the compiler from computing all parts at once, which would hold them all in memory.
            total, given_, own_ = jax.lax.optimization_barrier((total, given, own))
            (value, terms), found = gradient(trained, part(given_, index), None if own_ is None else part(own_, index))
            shares = {name: 1 / parts if name in task.over_all else weights[index] for name in terms}
            shares = (weights[index], shares), jax.tree.map(lambda _: weights[index], found)
            added = lambda t, x, share: t + jnp.asarray(share, t.dtype) * x  # noqa: E731
            return jax.tree.map(added, total, ((value, terms), found), shares), None

        like = jax.eval_shape(gradient, trained, part(given, 0), None if own is None else part(own, 0))
        total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), like)
        if mapped:
            return jax.lax.scan(add, total, jnp.arange(parts))[0]
        for index in range(parts):
            total, _ = add(total, index)
        return total

    return accumulated


def _several(update, look_ahead: int, mapped: bool):
    """`update` for the k steps of a look-ahead, whose inputs and taps are (B, k, ...): metrics are (k,), of a single
    step scalars."""

    def steps(state: TrainState, inputs, taps):
        if mapped and look_ahead > 1:
            ahead = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (inputs, taps))
            return jax.lax.scan(lambda state, given: update(state, *given), state, ahead)
        rows = []
        for number in range(look_ahead):
            state, metrics = update(state, *jax.tree.map(lambda x, i=number: x[:, i], (inputs, taps)))
            rows.append(metrics)
        return state, rows[0] if look_ahead == 1 else jax.tree.map(lambda *values: jnp.stack(values), *rows)

    return steps


class Group(NamedTuple):
    """Members of a population that have one structure: the same tasks, and scales that differ in value alone.

    Which scales are 0 or None, and so which parameters an update moves, is the same for all.
    """

    tasks: tuple[Task, ...]
    scales: tuple[Scales, ...]


def init_population(
    params: Mapping[str, Sequence[Any]], groups: Mapping[str, Group], settings: OptimizerSettings
) -> TrainState:
    """State before the first step of members over one frozen backbone.

    Args:
      params: by group, what each of its members trains.

    Returns:
      A TrainState whose `params` and `optimizers` are, by group, those of a single run with a leading axis of members.
    """
    stacked = {name: jax.tree.map(lambda *own: jnp.stack(own), *params[name]) for name in groups}
    optimizers = {}
    for name, group in groups.items():
        own = build_optimizers(group.tasks, group.scales[0], settings)
        start = partial(init_state, tasks=group.tasks, optimizers=own, scales=group.scales[0])
        optimizers[name] = jax.vmap(lambda p, start=start: start(p).optimizers)(stacked[name])
    return TrainState(stacked, optimizers, jnp.zeros((), jnp.int32))


def build_population(
    model: DepthModel,
    groups: Mapping[str, Group],
    settings: OptimizerSettings,
    look_ahead: int = 1,
    *,
    accumulate: int = 1,
    mapped: bool = False,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, Mapping[str, Any], Mapping[str, Any]], tuple[TrainState, dict]]:
    """`build` for many members on the same batches: one pass of the frozen backbone, then every member's updates.

    The state is that of `init_population`; metrics are {group: {name: (members,) or (members, k)}}. Each member's
    result is that of its own run. Members are never one convolution with more groups: XLA's CPU backend takes three
    times as long for that. With `mapped` they are a loop, on a CPU they are written out.
    """
    tasks = {task.name: task for group in groups.values() for task in group.tasks}
    shared = frozen_pass.build(model, tuple(tasks.values()), look_ahead, mesh)

    def joint_steps(state: TrainState, frozen, batch):
        inputs, taps = shared(frozen, batch)
        params, optimizers, metrics = {}, {}, {}
        for name, group in groups.items():
            update = _joint_update(model, group.tasks, group.scales[0], settings, accumulate, mapped, mesh)

            def member(given, group=group, update=update):
                factors, own_params, own_optimizers = given
                own = build_optimizers(group.tasks, Scales(*factors), settings)
                steps = _several(partial(update, own), look_ahead, mapped)
                after, row = steps(TrainState(own_params, own_optimizers, state.step), inputs, taps)
                return after.params, after.optimizers, row

            # A scale of None, for a task that is not there, is never read.
            rows = zip(*((scales.depth, scales.auxiliary or 0.0) for scales in group.scales), strict=True)
            factors = tuple(jnp.asarray(row, float) for row in rows)
            given = (factors, state.params[name], state.optimizers[name])
            params[name], optimizers[name], metrics[name] = _over_members(member, given, len(group.scales), mapped)
        return TrainState(params, optimizers, state.step + look_ahead), metrics

    return joint_steps


def _over_members(function, stacked, count: int, mapped: bool):
    if mapped and count > 1:
        return jax.lax.map(function, stacked)
    results = [function(jax.tree.map(lambda x, i=index: x[i], stacked)) for index in range(count)]
    return jax.tree.map(lambda *own: jnp.stack(own), *results)


def stack_ahead(batches: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """k joint batches of arrays (B, ...) as one of (B, k, ...), for `build` with look-ahead k; k = 1: the batch."""
    if len(batches) == 1:
        return batches[0]
    return jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *batches)
