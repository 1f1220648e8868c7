"""The joint global step: one update per task, in turn, on shared parameters.

    state, metrics = joint_step(state, frozen, batch)

A pure function of the training state, the frozen parameters and one joint batch. It is written over a
list of tasks; with a depth and an auxiliary task it computes equations (4) and (5) of "Enhancing
Monocular Depth Estimation with Multi-Source Auxiliary Tasks": the auxiliary gradient is taken at the
decoder that the depth update has already moved.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
) -> Callable[[TrainState, Mapping[str, Any], Mapping[str, Any]], tuple[TrainState, dict]]:
    """The joint step as a function (state, frozen, batch) -> (state, metrics).

    `frozen` is {"backbone": parameters} or, when the backbone is trained, {}. `batch` maps each task's
    stream to its arrays. Metrics are scalars named "<task>/<term>", with the gradient's norm before
    clipping, and "rate" and "beta1" of this step.

    With `look_ahead` k > 1 the function does k global steps: arrays of `batch` are (B, k, ...), as
    `stack_ahead` makes them, metrics are (k,). A frozen backbone's features depend on nothing that these
    steps change, so that one pass computes them for all k; the result is that of k single steps.
    """

    def joint_steps(state: TrainState, frozen, batch):
        train_backbone = "backbone" not in frozen
        if look_ahead > 1:
            # The batch axis stays the outer one: devices that share it keep their rows.
            batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        inputs = {task.stream: task.prepare(batch[task.stream]) for task in tasks}
        taps = {}
        if not train_backbone:
            # The features of every task depend on nothing that this step changes: one packed pass.
            images = tuple(x["images"] for x in inputs.values())
            features = model.backbone.apply({"params": frozen["backbone"]}, images)
            taps = {s: jax.lax.stop_gradient(f.taps) for s, f in zip(inputs, features, strict=True)}
        if look_ahead == 1:
            return one_step(state, inputs, taps)
        rows = []
        for ahead in range(look_ahead):
            own = jax.tree.map(lambda x, i=ahead: x.reshape(-1, look_ahead, *x.shape[1:])[:, i], (inputs, taps))
            state, metrics = one_step(state, *own)
            rows.append(metrics)
        return state, jax.tree.map(lambda *values: jnp.stack(values), *rows)

    def one_step(state: TrainState, inputs, taps):
        train_backbone = "backbone" in state.params
        params, optimizer_states = dict(state.params), dict(state.optimizers)
        metrics = {}
        for task in tasks:
            keys = _updated_keys(task, scales, train_backbone)

            def loss(trained, task=task, fixed=params):
                everything = {**fixed, **trained}
                given = inputs[task.stream]
                own = taps.get(task.stream)
                if own is None:
                    own = model.features(everything["backbone"], given["images"])
                features = model.decode(everything["decoder"], own)
                return task.loss(everything[task.head], features, given, state.step)

            trained = {k: params[k] for k in keys}
            (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
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

    return joint_steps


def stack_ahead(batches: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """k joint batches of arrays (B, ...) as one of (B, k, ...), for `build` with look-ahead k; k = 1: the batch."""
    if len(batches) == 1:
        return batches[0]
    return jax.tree.map(lambda *arrays: np.stack(arrays, axis=1), *batches)
