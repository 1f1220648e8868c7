"""Twenty joint steps against two PyTorch AdamW optimizers in float64: transformers' DPT on a tiny DINOv2.

The reference side is PyTorch throughout: network, losses, clipping, AdamW; its schedules are written
from the released recipe's formulas. Every parameter and every moment agrees to 1e-10; runs with a wrong
α, coupled decay or shared moments must not.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import optax  # noqa: E402
from port import depth_model as port_depth_model  # noqa: E402
from torch_params import backbone_tree, decoder_tree, depth_head_tree, published_tensors, randomise  # noqa: E402

from jdepth import optim, step, tasks  # noqa: E402
from jdepth.models import depth_model  # noqa: E402
from jdepth.models.vit import ViTConfig  # noqa: E402

TINY = ViTConfig(
    name="tiny", width=16, depth=4, heads=2, hidden=64, ffn="mlp", registers=0, grid=2, antialias=False,
    offset=0.1, taps=(0, 1, 2, 3),
)  # fmt: skip
CHANNELS, CLASSES, STEPS, SIZE = 8, 5, 20, 28
SETTINGS = optim.OptimizerSettings(steps=STEPS, rate=1e-2, clip=2.0)
WARMUP = 3  # SigLoss steps that fit the scale only
pytestmark = pytest.mark.usefixtures("one_thread")


def batches():
    draw = np.random.default_rng(5)
    for _ in range(STEPS):
        depth = draw.uniform(0.5, 9.0, (4, SIZE, SIZE)) * (draw.random((4, SIZE, SIZE)) > 0.2)
        yield {
            "depth": {"images": draw.normal(size=(4, SIZE, SIZE, 3)), "depth": depth},
            "auxiliary": {
                "images": draw.normal(size=(3, SIZE, SIZE, 3)),
                "classes": (draw.random((3, CLASSES)) > 0.5).astype(np.float64),
                "dataset_id": np.zeros(3, np.int32),
            },
        }


class Reference:
    """The PyTorch side: network, auxiliary convolution, two AdamW optimizers."""

    def __init__(self, full, alpha, ratio=0.5, *, coupled=False, shared=False):
        self.network = port_depth_model(TINY, CHANNELS).double()
        # The port fixes this one layer at 256 channels.
        self.network.head.projection = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).double()
        randomise(self.network, seed=1)
        torch.manual_seed(2)
        self.auxiliary = torch.nn.Conv2d(CHANNELS, CLASSES, 1).double()
        self.full = full
        decoder, head, backbone, plain = [], [], [], []
        for name, parameter in self.network.named_parameters():
            if name.startswith("backbone."):
                bare = any(part in name for part in ("norm", "cls_token", "position_embeddings"))
                (plain if bare else backbone).append(parameter)
            else:
                (head if name.startswith("head.head.") else decoder).append(parameter)
        kind = torch.optim.Adam if coupled else torch.optim.AdamW

        def optimizer(own, scale):
            groups = [
                {"params": decoder, "weight_decay": 0.01, "scale": scale},
                {"params": own, "weight_decay": 0.01, "scale": 1.0},
            ]
            if full:
                groups += [
                    {"params": backbone, "weight_decay": 0.01, "scale": scale * ratio},
                    {"params": plain, "weight_decay": 0.0, "scale": scale * ratio},
                ]
            return kind(groups, lr=1.0, eps=1e-8)

        own = list(self.auxiliary.parameters())
        self.optimizers = {"depth": optimizer(head, alpha), "auxiliary": optimizer(own, 1 - alpha)}
        if shared:
            for p in decoder:
                self.optimizers["auxiliary"].state[p] = self.optimizers["depth"].state[p]

    def features(self, images):
        pixels = torch.tensor(images).permute(0, 3, 1, 2)
        with torch.set_grad_enabled(self.full):
            maps = self.network.backbone.forward_with_filtered_kwargs(pixels).feature_maps
        fused = self.network.neck(maps, SIZE // 14, SIZE // 14)[-1]
        return torch.relu(self.network.head.projection(fused))

    def depth_loss(self, batch, t):
        prediction = torch.relu(self.network.head.head(self.features(batch["images"]))) + 0.001
        target = torch.tensor(batch["depth"])
        # transformers' head ends in a ReLU of its own, so the outer one changes nothing.
        prediction = torch.nn.functional.interpolate(prediction, size=target.shape[1:], mode="bilinear")[:, 0]
        terms = []
        for start in (0, 2):
            own = slice(start, start + 2)
            valid = target[own] > 0
            g = torch.log(prediction[own][valid] + 0.001) - torch.log(target[own][valid] + 0.001)
            variance = 0.0 if t < WARMUP else torch.var(g)
            terms.append(torch.sqrt(variance + 0.15 * g.mean() ** 2))
        return sum(terms) / len(terms)

    def auxiliary_loss(self, batch, t):
        del t
        logits = self.auxiliary(self.features(batch["images"])).mean(dim=(2, 3))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(batch["classes"]))

    def run(self):
        losses = []
        for t, batch in enumerate(batches()):
            eta, beta1 = reference_rate(t), reference_beta1(t)
            for name, loss_of in (("depth", self.depth_loss), ("auxiliary", self.auxiliary_loss)):
                optimizer = self.optimizers[name]
                everything = [p for group in optimizer.param_groups for p in group["params"]]
                for p in list(self.network.parameters()) + list(self.auxiliary.parameters()):
                    p.grad = None
                loss = loss_of(batch[name], t)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(everything, SETTINGS.clip)
                for group in optimizer.param_groups:
                    group["lr"], group["betas"] = group["scale"] * eta, (beta1, 0.999)
                optimizer.step()
                losses.append(loss.item())
        return losses

    def tree(self):
        return tree_of(self.network, self.auxiliary, self.full)

    def moments(self, name, which):
        """The optimizer's moments, put in place of the parameters and read out under their names."""
        with torch.no_grad():
            for p in list(self.network.parameters()) + list(self.auxiliary.parameters()):
                state = self.optimizers[name].state.get(p)
                p.copy_(state[which] if state else torch.zeros_like(p))
        return self.tree()


def tree_of(network, auxiliary, full):
    tensors = published_tensors(network)
    weight, bias = (p.detach().numpy() for p in (auxiliary.weight, auxiliary.bias))
    tree = {
        "decoder": decoder_tree(tensors),
        "depth_head": depth_head_tree(tensors),
        "auxiliary_head": {"kernel": weight[None, :, :, 0, 0].transpose(0, 2, 1), "bias": bias[None]},
    }
    if full:
        tree["backbone"] = backbone_tree(tensors, TINY.depth, "backbone.")
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


def reference_rate(t):
    regular = 1e-2 * (1e-8 + 0.5 * (1 - 1e-8) * (1 + math.cos(math.pi * t / STEPS)))
    warmup = round(STEPS / 3)
    return regular * (1 - (1 - t / warmup) * (1 - 0.001)) if t < warmup else regular


def reference_beta1(t):
    turn = 0.3 * STEPS - 1
    pct, start, end = (t / turn, 0.95, 0.85) if t <= turn else ((t - turn) / (STEPS - 1 - turn), 0.85, 0.95)
    return end + (start - end) / 2 * (math.cos(math.pi * pct) + 1)


@functools.cache  # compiling the step takes longer than everything else
def run_ours(full, alpha, ratio=0.5):
    """Parameters, moments per task, losses and gradient norms after the same 20 steps."""
    start = Reference(full=True, alpha=alpha)
    params = start.tree()
    frozen = {} if full else {"backbone": params.pop("backbone")}
    model = depth_model.build(TINY, channels=CHANNELS)
    as_given = lambda batch: batch  # noqa: E731 (images are normalised already)
    todo = [
        dataclasses.replace(tasks.depth(model, warmup_steps=WARMUP), prepare=as_given),
        dataclasses.replace(tasks.mldc((CLASSES,), CHANNELS), prepare=as_given),
    ]
    scales = step.Scales.of(alpha)
    optimizers = step.build_optimizers(todo, scales, SETTINGS, ratio if full else None)
    joint_step = jax.jit(step.build(model, todo, optimizers, scales, SETTINGS))
    state = step.init_state(jax.tree.map(jnp.asarray, params), todo, optimizers, scales)
    losses, norms = [], []
    for batch in batches():
        state, metrics = joint_step(state, frozen, batch)
        losses += [float(metrics["depth/loss"]), float(metrics["mldc/loss"])]
        norms += [float(metrics["depth/gradient_norm"]), float(metrics["mldc/gradient_norm"])]
    moments = {name: adam_moments(state.optimizers[name]) for name in ("depth", "auxiliary")}
    return state.params, moments, losses, norms


def adam_moments(state):
    """{"exp_avg", "exp_avg_sq"} -> tree, put together from the optimizer's parameter groups."""
    found = [
        s
        for s in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(s, optax.ScaleByAdamState)
    ]
    result = {}
    for name, field in (("exp_avg", "mu"), ("exp_avg_sq", "nu")):
        merged = {}
        for s in found:
            for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(s, field)):
                merged[tuple(key.key for key in path)] = leaf
        result[name] = merged
    return result


def largest_difference(tree, other):
    mine = {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    if other and isinstance(next(iter(other)), str):
        other = {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(other)}
    assert set(other) <= set(mine)
    return max(float(np.abs(np.asarray(mine[path]) - np.asarray(leaf)).max()) for path, leaf in other.items())


@pytest.mark.parametrize("full", [False, True], ids=["frozen", "full"])
def test_twenty_joint_steps_equal_pytorch(x64, full):
    params, moments, losses, norms = run_ours(full, alpha=0.9)
    reference = Reference(full, alpha=0.9)
    expected = reference.run()
    for offset in (0, 1):
        clipped = [norm > SETTINGS.clip for norm in norms[offset::2]]
        assert offset or (any(clipped) and not all(clipped)), "the run must clip on some steps only"
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    worst = {"parameters": largest_difference(reference.tree(), params)}
    for name in ("depth", "auxiliary"):
        for which in ("exp_avg", "exp_avg_sq"):
            worst[f"{name} {which}"] = largest_difference(reference.moments(name, which), moments[name][which])
    print({k: f"{v:.1e}" for k, v in worst.items()})
    assert max(worst.values()) <= 1e-10


@pytest.mark.parametrize(
    "wrong", [{"alpha": 0.89}, {"alpha": 0.9, "coupled": True}, {"alpha": 0.9, "shared": True}], ids=str
)
def test_negative_controls_are_told_apart(x64, wrong):
    params, *_ = run_ours(True, alpha=0.9)
    reference = Reference(True, **wrong)
    reference.run()
    assert largest_difference(reference.tree(), params) > 1e-6
