"""The joint step's algebra on a network of three matrices, against updates written out by hand.

Double precision; the step is generic over model and tasks, so the smallest of both tells every variant.
"""

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdepth import optim, step
from jdepth.tasks import Task

pytestmark = pytest.mark.usefixtures("x64")
STEPS = 20
SETTINGS = optim.OptimizerSettings(steps=STEPS, rate=1e-2, clip=5.0)
WIDTH = 4


class Features(NamedTuple):
    taps: jax.Array


@dataclass(frozen=True)
class Backbone:
    """tanh(x · kernel) · scale, for one batch or several."""

    def apply(self, variables, images):
        p = variables["params"]
        one = lambda x: Features(jnp.tanh(x @ p["blocks_0"]["kernel"]) * p["norm"]["scale"])  # noqa: E731
        return tuple(map(one, images)) if isinstance(images, tuple) else one(images)


@dataclass(frozen=True)
class Model:
    """The part of DepthModel that the step uses."""

    backbone: Backbone = Backbone()

    def features(self, params, images):
        return self.backbone.apply({"params": params}, images).taps

    def decode(self, params, taps):
        return jnp.tanh(taps @ params["kernel"] + params["bias"])


def _task(stream):
    def loss(head, features, inputs, number):
        error = features @ head["kernel"] - inputs["target"]
        return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error)), "number": number}

    return Task(stream, stream, f"{stream}_head", None, dict, loss, None)


DEPTH, AUXILIARY = _task("depth"), _task("auxiliary")


def start():
    draw = np.random.default_rng(0)
    matrix = lambda *shape: draw.normal(size=shape)  # noqa: E731
    return {
        "backbone": {"blocks_0": {"kernel": matrix(WIDTH, WIDTH)}, "norm": {"scale": 1 + 0.3 * matrix(WIDTH)}},
        "decoder": {"kernel": matrix(WIDTH, WIDTH), "bias": matrix(WIDTH)},
        "depth_head": {"kernel": matrix(WIDTH, 1)},
        "auxiliary_head": {"kernel": matrix(WIDTH, 3)},
    }


def batches(steps=STEPS):
    draw = np.random.default_rng(1)
    for number in range(steps):
        size = 4.0 if number % 3 else 0.3  # large errors on some steps only, so that clipping comes and goes
        yield {
            "depth": {"images": draw.normal(size=(5, WIDTH)), "target": size * draw.normal(size=(5, 1))},
            "auxiliary": {"images": draw.normal(size=(6, WIDTH)), "target": size * draw.normal(size=(6, 3))},
        }


def run(scales, *, full=False, ratio=0.5, settings=SETTINGS, steps=STEPS, tasks=None, look_ahead=1, given=None, **layout):
    """State and metrics after `steps` steps of the program on the batches of `given`."""
    tasks = tasks or [DEPTH] + ([] if scales.auxiliary is None else [AUXILIARY])
    params = {k: v for k, v in start().items() if k in ("decoder", *(task.head for task in tasks))}
    frozen = {"backbone": start()["backbone"]}
    if full:
        params, frozen = {"backbone": frozen["backbone"], **params}, {}
    optimizers = step.build_optimizers(tasks, scales, settings, ratio if full else None)
    joint_step = jax.jit(step.build(Model(), tasks, optimizers, scales, settings, look_ahead, **layout))
    state = step.init_state(jax.tree.map(jnp.asarray, params), tasks, optimizers, scales)
    metrics = []
    given = list(itertools.islice(given or batches(steps), steps))
    for first in range(0, steps, look_ahead):
        state, values = joint_step(state, frozen, step.stack_ahead(given[first : first + look_ahead]))
        metrics += [values] if look_ahead == 1 else [jax.tree.map(lambda v, i=i: v[i], values) for i in range(look_ahead)]
    return state, metrics


@functools.partial(jax.jit, static_argnames="stream")
def gradient(params, stream, batch):
    """Of the mean squared error of one stream, towards every parameter."""

    def loss(params):
        p = params["backbone"]
        taps = jnp.tanh(batch["images"] @ p["blocks_0"]["kernel"]) * p["norm"]["scale"]
        features = jnp.tanh(taps @ params["decoder"]["kernel"] + params["decoder"]["bias"])
        return jnp.mean((features @ params[f"{stream}_head"]["kernel"] - batch["target"]) ** 2)

    return jax.grad(loss)(params)


class ByHand:
    """AdamW, clipping and both updates, one array at a time, from the formulas."""

    def __init__(self, full=False, ratio=0.5):
        self.params, self.full, self.ratio = start(), full, ratio
        self.moments = {"depth": {}, "auxiliary": {}}
        self.clipped = []

    def update(self, stream, gradient, scale, t):
        """One AdamW update of the shared parameters, at `scale`, and of the stream's own head."""
        turn = 0.3 * STEPS - 1
        up = t / turn if t <= turn else 1 - (t - turn) / (STEPS - 1 - turn)
        beta1, beta2 = 0.85 + 0.05 * (1 + np.cos(np.pi * up)), 0.999
        warmup = round(STEPS / 3)
        rate = 1e-2 * (1e-8 + (1 - 1e-8) * 0.5 * (1 + np.cos(np.pi * t / STEPS)))
        rate *= 1 - (1 - t / warmup) * 0.999 if t < warmup else 1.0
        groups = {f"{stream}_head": (1.0, 0.01)}
        if scale:
            groups["decoder"] = (scale, 0.01)
            if self.full:
                groups["backbone"] = (scale * self.ratio, 0.01)
        own = {k: gradient[k] for k in groups}
        norm = float(np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(own))))
        self.clipped.append(norm > SETTINGS.clip)
        for path, g in jax.tree_util.tree_leaves_with_path(own):
            keys = tuple(k.key for k in path)
            factor, decay = groups[keys[0]]
            decay = 0.0 if "norm" in keys else decay
            g = np.asarray(g) * min(1.0, SETTINGS.clip / (norm + 1e-6))
            m, v = self.moments[stream].get(keys, (np.zeros_like(g), np.zeros_like(g)))
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            self.moments[stream][keys] = (m, v)
            *outer, last = keys
            place = self.params
            for key in outer:
                place = place[key]
            adam = (m / (1 - beta1 ** (t + 1))) / (np.sqrt(v / (1 - beta2 ** (t + 1))) + 1e-8)
            place[last] = np.asarray(place[last]) * (1 - factor * rate * decay) - factor * rate * adam

    def run(self, depth, auxiliary, *, order=("depth", "auxiliary"), at_moved=True):
        for t, batch in enumerate(batches()):
            unmoved = jax.tree.map(np.array, self.params)
            for stream in order:
                at = self.params if at_moved else unmoved
                scale = {"depth": depth, "auxiliary": auxiliary}[stream]
                if scale is not None:
                    self.update(stream, gradient(at, stream, batch[stream]), scale, t)
        return self


def difference(params, expected) -> float:
    """Largest absolute difference over every parameter that `params` holds."""
    return max(
        jax.tree.leaves(
            jax.tree.map(
                lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
                params,
                {k: expected[k] for k in params},
            )
        )
    )


@pytest.mark.parametrize("full", [False, True], ids=["frozen", "full"])
@pytest.mark.parametrize(
    "scales",
    [step.Scales.of(0.9), step.Scales.of(0.0), step.Scales.of(1.0), step.Scales.of(1.0, gamma=0.3),
     step.Scales.of(1.0, beta=0.2)],
    ids=["alpha 0.9", "alpha 0", "alpha 1", "gamma 0.3", "beta 0.2"],
)  # fmt: skip
def test_twenty_steps_equal_updates_written_by_hand(scales, full):
    state, metrics = run(scales, full=full)
    expected = ByHand(full).run(scales.depth, scales.auxiliary)
    assert any(expected.clipped) and not all(expected.clipped)
    assert difference(state.params, expected.params) <= 1e-12
    assert int(state.step) == STEPS and int(metrics[-1]["depth/number"]) == STEPS - 1
    for task in state.optimizers:
        for keys, (m, v) in expected.moments[task].items():
            assert np.abs(_moment(state.optimizers[task], keys, "mu") - m).max() <= 1e-12
            assert np.abs(_moment(state.optimizers[task], keys, "nu") - v).max() <= 1e-12


def _moment(optimizer_state, keys, which):
    found = [
        leaf
        for adam in jax.tree.leaves(optimizer_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(adam, optax.ScaleByAdamState)
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(adam, which))
        if tuple(k.key for k in path) == keys
    ]
    assert len(found) == 1, (keys, len(found))
    return np.asarray(found[0])


def test_the_auxiliary_gradient_is_taken_at_the_moved_decoder_and_order_matters():
    state, _ = run(step.Scales.of(0.9))
    assert difference(state.params, ByHand().run(0.9, 0.1, at_moved=False).params) > 1e-6
    assert difference(state.params, ByHand().run(0.9, 0.1, order=("auxiliary", "depth")).params) > 1e-6
    # The step takes its order from its list of tasks.
    swapped, _ = run(step.Scales.of(0.9), tasks=[AUXILIARY, DEPTH])
    assert difference(swapped.params, ByHand().run(0.9, 0.1, order=("auxiliary", "depth")).params) <= 1e-12


def test_scales_of_the_variants():
    assert step.Scales.of(0.75) == step.Scales(0.75, 0.25)
    assert step.Scales.of(1.0) == step.Scales.of(1.0, gamma=1.0) == step.Scales(1.0, None)
    assert step.Scales.of(1.0, gamma=0.3) == step.Scales(0.3, None)
    assert step.Scales.of(1.0, beta=0.2) == step.Scales(1.0, 0.2)
    assert step.Scales.of(0.0) == step.Scales(0.0, 1.0)
    with pytest.raises(KeyError):
        step.Scales.of(1.0)["auxiliary"]


def test_gamma_scales_step_and_decay_of_the_decoder_but_neither_gradient_nor_moments():
    one, gamma = (run(step.Scales.of(1.0, gamma=g), steps=1)[0] for g in (1.0, 0.25))
    before = start()
    for name in ("kernel", "bias"):
        moved, scaled = (np.asarray(s.params["decoder"][name]) - before["decoder"][name] for s in (one, gamma))
        np.testing.assert_allclose(scaled, 0.25 * moved, rtol=1e-9)
        for which in ("mu", "nu"):
            np.testing.assert_array_equal(
                *(_moment(s.optimizers["depth"], ("decoder", name), which) for s in (one, gamma))
            )
    np.testing.assert_array_equal(one.params["depth_head"]["kernel"], gamma.params["depth_head"]["kernel"])
    assert set(gamma.params) == {"decoder", "depth_head"} and set(gamma.optimizers) == {"depth"}


def test_alpha_zero_trains_the_depth_head_on_a_decoder_it_does_not_move():
    state, _ = run(step.Scales.of(0.0))
    alone = ByHand().run(None, 1.0)
    assert difference({k: state.params[k] for k in ("decoder", "auxiliary_head")}, alone.params) <= 1e-12
    assert np.abs(state.params["depth_head"]["kernel"] - start()["depth_head"]["kernel"]).min() > 1e-3
    with pytest.raises(AssertionError):  # no moments are kept for what cannot move
        _moment(state.optimizers["depth"], ("decoder", "kernel"), "mu")


def test_a_trained_backbone_moves_at_its_own_rate_and_its_norms_do_not_decay():
    settings = optim.OptimizerSettings(steps=STEPS, rate=1e-2, warmup_fraction=0.0, weight_decay=0.5)
    whole, tenth = (run(step.Scales.of(1.0), full=True, ratio=r, settings=settings, steps=1)[0] for r in (1.0, 0.1))
    before = start()["backbone"]
    for group, name in (("blocks_0", "kernel"), ("norm", "scale")):
        moved, slow = (np.asarray(s.params["backbone"][group][name]) - before[group][name] for s in (whole, tenth))
        np.testing.assert_allclose(slow, 0.1 * moved, rtol=1e-6)
        # Adam's first step is the sign of the gradient, so decay is what is left.
        decay = -moved / 1e-2 - np.sign(_moment(whole.optimizers["depth"], ("backbone", group, name), "mu"))
        expected = 0.5 * before[group][name] if group == "blocks_0" else np.zeros(WIDTH)
        np.testing.assert_allclose(decay, expected, atol=1e-4)
    assert np.array_equal(whole.params["decoder"]["kernel"], tenth.params["decoder"]["kernel"])


def test_metrics_name_their_task():
    _, metrics = run(step.Scales.of(0.9), steps=1)
    shared = {f"{t}/{k}" for t in ("depth", "auxiliary") for k in ("loss", "error", "number", "gradient_norm")}
    assert set(metrics[0]) == shared | {"rate", "beta1"}
    assert float(metrics[0]["rate"]) == pytest.approx(1e-5) and float(metrics[0]["beta1"]) == pytest.approx(0.95)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("look_ahead, mapped", [(2, False), (4, True), (8, False)])
@pytest.mark.parametrize("alpha", [0.9, 1.0, 0.0])
def test_looking_ahead_changes_nothing(alpha, look_ahead, mapped):
    """Frozen backbone: one pass for k steps, then k pairs of updates, equal to k single steps."""
    scales, steps = step.Scales.of(alpha), -(-STEPS // look_ahead) * look_ahead
    state, metrics = run(scales, steps=steps)
    ahead, more = run(scales, steps=steps, look_ahead=look_ahead, mapped=mapped)
    same((state, metrics), (ahead, more))
    assert int(ahead.step) == steps == len(more)


def test_wrong_batches_ahead_are_noticed():
    """The negative control: two batches of a call exchanged."""
    scales, tasks = step.Scales.of(0.9), [DEPTH, AUXILIARY]
    optimizers = step.build_optimizers(tasks, scales, SETTINGS)
    joint_step = jax.jit(step.build(Model(), tasks, optimizers, scales, SETTINGS, 2))
    params = {k: v for k, v in start().items() if k != "backbone"}
    state = step.init_state(jax.tree.map(jnp.asarray, params), tasks, optimizers, scales)
    frozen, (one, two) = {"backbone": start()["backbone"]}, itertools.islice(batches(), 2)
    right, _ = joint_step(state, frozen, step.stack_ahead([one, two]))
    wrong, _ = joint_step(state, frozen, step.stack_ahead([two, one]))
    assert np.abs(right.params["decoder"]["kernel"] - wrong.params["decoder"]["kernel"]).max() > 1e-6


# ---- Gradients in parts ---------------------------------------------------------------------------------


def _masked(stream, weighted=True):
    """A task whose loss is a mean over the units that count."""

    def loss(head, features, inputs, number):
        error = (features @ head["kernel"] - inputs["target"]) ** 2
        return jnp.sum(error.mean(1) * inputs["counts"]) / jnp.maximum(inputs["counts"].sum(), 1), {"seen": jnp.mean(error)}

    weight = (lambda inputs: inputs["counts"].sum()) if weighted else (lambda inputs: 1.0)
    return Task(stream, stream, f"{stream}_head", None, dict, loss, None, weight, ("seen",))


def counting_batches():
    """Twelve rows a batch, some of which do not count; in every fourth batch none does."""
    draw = np.random.default_rng(4)
    for number in range(STEPS):
        yield {
            stream: {
                "images": draw.normal(size=(12, WIDTH)),
                "target": draw.normal(size=(12, width)) * (4.0 if number % 3 else 0.3),
                "counts": (draw.random(12) < 0.6) * (number % 4 > 0) * 1.0,
            }
            for stream, width in (("depth", 1), ("auxiliary", 3))
        }


@pytest.mark.parametrize("full", [False, True], ids=["frozen", "full"])
@pytest.mark.parametrize("parts, mapped", [(2, False), (3, True)])
def test_gradients_in_parts_add_up_to_the_batch(full, parts, mapped):
    tasks = [_masked("depth"), _masked("auxiliary")]
    whole = run(step.Scales.of(0.9), full=full, tasks=tasks, given=counting_batches())
    in_parts = run(
        step.Scales.of(0.9), full=full, tasks=tasks, given=counting_batches(), accumulate=parts, mapped=mapped
    )
    same(whole, in_parts)


def test_parts_of_equal_weight_are_noticed():
    """The negative control: parts hold different numbers of units."""
    whole, _ = run(step.Scales.of(0.9), tasks=[_masked("depth"), _masked("auxiliary")], given=counting_batches())
    equal = [_masked("depth", False), _masked("auxiliary", False)]
    wrong, _ = run(step.Scales.of(0.9), tasks=equal, given=counting_batches(), accumulate=2)
    assert np.abs(whole.params["decoder"]["kernel"] - wrong.params["decoder"]["kernel"]).max() > 1e-6


# ---- Populations ------------------------------------------------------------------------------------------


def _population(groups, look_ahead, mapped, starts):
    """(state, rows of metrics by group) of a population after all steps."""
    params = {name: [starts[i] for i in range(len(group.scales))] for name, group in groups.items()}
    heads = {name: {"decoder", *(task.head for task in group.tasks)} for name, group in groups.items()}
    params = {name: [{k: p[k] for k in heads[name]} for p in own] for name, own in params.items()}
    state = step.init_population(jax.tree.map(jnp.asarray, params), groups, SETTINGS)
    program = jax.jit(step.build_population(Model(), groups, SETTINGS, look_ahead, mapped=mapped))
    frozen, given, rows = {"backbone": start()["backbone"]}, list(batches()), []
    for first in range(0, STEPS, look_ahead):
        state, metrics = program(state, frozen, step.stack_ahead(given[first : first + look_ahead]))
        for ahead in range(look_ahead):
            rows.append(jax.tree.map(lambda v, i=ahead: v if look_ahead == 1 else v[:, i], metrics))
    return state, rows


@pytest.mark.parametrize("look_ahead, mapped", [(1, False), (1, True), (4, True)])
def test_members_of_a_population_are_their_own_runs(look_ahead, mapped):
    """Members with and without an auxiliary task, with scales of 0, and from different starts."""
    both, alone = (DEPTH, AUXILIARY), (DEPTH,)
    groups = {
        "0": step.Group(both, (step.Scales.of(0.9), step.Scales.of(0.5), step.Scales.of(1.0, beta=0.2))),
        "1": step.Group(alone, (step.Scales.of(1.0), step.Scales.of(1.0, gamma=0.3))),
        "2": step.Group(both, (step.Scales.of(0.0),)),
    }
    moved = jax.tree.map(lambda x: x * 1.1, start())
    state, rows = _population(groups, look_ahead, mapped, [start(), moved, start()])
    assert int(state.step) == STEPS
    for name, group in groups.items():
        for index, scales in enumerate(group.scales):
            with pytest.MonkeyPatch.context() as patch:
                if index == 1:
                    patch.setitem(globals(), "start", lambda own={**moved, "backbone": start()["backbone"]}: own)
                single, metrics = run(scales)
            own = jax.tree.map(lambda x, i=index: x[i], (state.params[name], state.optimizers[name]))
            same((single.params, single.optimizers), own)
            for one, row in zip(metrics, rows, strict=True):
                same(one, jax.tree.map(lambda x, i=index: x[i], row[name]))


def test_members_given_another_scale_are_noticed():
    """The negative control."""
    groups = {"0": step.Group((DEPTH, AUXILIARY), (step.Scales.of(0.9), step.Scales.of(0.8)))}
    state, _ = _population(groups, 1, False, [start(), start()])
    single, _ = run(step.Scales.of(0.9))
    assert np.abs(state.params["0"]["decoder"]["kernel"][1] - single.params["decoder"]["kernel"]).max() > 1e-6
