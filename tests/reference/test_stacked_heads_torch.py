"""One stacked head for three datasets against three separate PyTorch convolutions, over 20 updates.

A dataset that is absent from a batch has a gradient of zero there (`.grad` filled with zeros), so that its
moments and weights decay on both sides. Double precision; features come from one shared layer, so that
clipping couples all heads.
"""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from jdepth import optim, step, tasks  # noqa: E402

CLASSES, CHANNELS, INPUT, STEPS = (5, 2, 7), 6, 3, 20
SETTINGS = optim.OptimizerSettings(steps=STEPS, rate=1e-2, decay="constant", warmup_fraction=0.0, beta1_cycle=False)
CLIP = {"mldc": 0.2, "segmentation": 0.55}  # each between its task's gradients
# Datasets of each batch's four samples; every dataset is absent from some.
PRESENT = ((0, 0, 1, 2), (0, 1, 1, 0), (2, 2, 2, 2), (1, 0, 2, 2), (0, 0, 0, 0))
pytestmark = pytest.mark.usefixtures("one_thread")


class Model:
    """The part of DepthModel that the step uses: features = images · kernel, on the images' own grid."""

    backbone = SimpleNamespace(apply=lambda variables, images: tuple(SimpleNamespace(taps=x) for x in images))

    def decode(self, params, taps):
        return taps @ params["kernel"]


def batches(task):
    draw = np.random.default_rng(3)
    for number in range(STEPS):
        ids = np.array(PRESENT[number % len(PRESENT)], np.int32)
        batch = {"images": draw.normal(size=(4, 6, 8, INPUT)) * draw.uniform(0.2, 3), "dataset_id": ids}
        if task == "mldc":
            batch["classes"] = (draw.random((4, max(CLASSES))) > 0.5).astype(np.float64)
        else:
            label = np.stack([draw.integers(0, CLASSES[d], (15, 20)) for d in ids])
            batch["label"] = np.where(draw.random(label.shape) > 0.8, 255, label).astype(np.uint8)
        yield batch


def run_ours(task):
    """Final parameters, optimizer state and gradient norms of the stacked head; also its start."""
    record = dataclasses.replace(tasks.TASKS[task](CLASSES, CHANNELS), prepare=dict)
    scales = step.Scales.of(0.7)
    settings = dataclasses.replace(SETTINGS, clip=CLIP[task])
    optimizers = step.build_optimizers([record], scales, settings)
    draw = np.random.default_rng(4)
    head = jax.tree.map(lambda x: np.asarray(x, np.float64), record.init(jax.random.key(0)))
    begun = {"decoder": {"kernel": draw.normal(size=(INPUT, CHANNELS))}, "auxiliary_head": head}
    update = jax.jit(step.build(Model(), [record], optimizers, scales, settings))
    state = step.init_state(jax.tree.map(jnp.asarray, begun), [record], optimizers, scales)
    norms = []
    for batch in batches(task):
        state, metrics = update(state, {"backbone": {}}, {"auxiliary": batch})
        norms.append(float(metrics[f"{task}/gradient_norm"]))
    return begun, state, norms


class Separate:
    """One 1×1 convolution per dataset on a shared one."""

    def __init__(self, begun, fill=True):
        self.fill = fill
        self.shared = torch.nn.Parameter(torch.tensor(begun["decoder"]["kernel"]))
        self.heads = []
        for number, count in enumerate(CLASSES):
            head = torch.nn.Conv2d(CHANNELS, count, 1).double()
            with torch.no_grad():
                head.weight.copy_(torch.tensor(begun["auxiliary_head"]["kernel"][number, :, :count].T[..., None, None]))
                head.bias.copy_(torch.tensor(begun["auxiliary_head"]["bias"][number, :count]))
            self.heads.append(head)
        self.own = [p for head in self.heads for p in head.parameters()]
        groups = [{"params": [self.shared], "lr": 0.3e-2}, {"params": self.own, "lr": 1e-2}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)

    def loss(self, task, batch):
        features = (torch.tensor(batch["images"]) @ self.shared).permute(0, 3, 1, 2)
        terms, pixels = [], 0
        for row, dataset in enumerate(batch["dataset_id"]):
            logits, count = self.heads[dataset](features[row : row + 1]), CLASSES[dataset]
            if task == "mldc":
                target = torch.tensor(batch["classes"][row, :count])
                logits = logits.mean((2, 3))[0]
                terms.append(torch.nn.functional.binary_cross_entropy_with_logits(logits, target))
                pixels += 1
            else:
                label = torch.tensor(batch["label"][row].astype(np.int64))[None]
                resized = torch.nn.functional.interpolate(logits, size=label.shape[1:], mode="bilinear")
                terms.append(torch.nn.functional.cross_entropy(resized, label, ignore_index=255, reduction="sum"))
                pixels += int((label != 255).sum())
        return sum(terms) / pixels

    def run(self, task):
        norms = []
        for batch in batches(task):
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(task, batch).backward()
            if self.fill:
                for p in self.own:
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            norms.append(float(torch.nn.utils.clip_grad_norm_([self.shared, *self.own], CLIP[task])))
            self.optimizer.step()
        return norms

    def stacked(self, which=None):
        """Parameters, or moments by their name in the optimizer, in our layout with zeros as padding."""
        value = lambda p: (self.optimizer.state[p][which] if which else p).detach().numpy()  # noqa: E731
        kernel, bias = np.zeros((3, CHANNELS, max(CLASSES))), np.zeros((3, max(CLASSES)))
        for number, (head, count) in enumerate(zip(self.heads, CLASSES, strict=True)):
            kernel[number, :, :count] = value(head.weight)[:, :, 0, 0].T
            bias[number, :count] = value(head.bias)
        return {"kernel": kernel, "bias": bias}


def head_moments(state, which):
    """The auxiliary head's moments out of the optimizer's parameter groups."""
    for adam in jax.tree.leaves(state.optimizers, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)):
        if isinstance(adam, optax.ScaleByAdamState):
            found = getattr(adam, which)["auxiliary_head"]
            if jax.tree.leaves(found):
                return found
    raise AssertionError("no moments")


@pytest.mark.parametrize("task", ["mldc", "segmentation"])
def test_twenty_updates_equal_separate_heads(x64, task):
    begun, state, norms = run_ours(task)
    separate = Separate(begun)
    expected = separate.run(task)
    clipped = [norm > CLIP[task] for norm in expected]
    assert any(clipped) and not all(clipped), expected
    # Equal norms: padding columns take no part in them.
    np.testing.assert_allclose(norms, expected, rtol=1e-10)
    worst = {"shared": np.abs(state.params["decoder"]["kernel"] - separate.shared.detach().numpy()).max()}
    pairs = {
        "parameters": (state.params["auxiliary_head"], separate.stacked()),
        "exp_avg": (head_moments(state, "mu"), separate.stacked("exp_avg")),
        "exp_avg_sq": (head_moments(state, "nu"), separate.stacked("exp_avg_sq")),
    }
    for name, (ours, theirs) in pairs.items():
        for leaf in ("kernel", "bias"):
            ours_leaf = np.asarray(ours[leaf])
            worst[f"{name} {leaf}"] = np.abs(ours_leaf - theirs[leaf]).max()
            for number, count in enumerate(CLASSES):
                assert not ours_leaf[number, ..., count:].any(), f"padding of {name} {leaf} is not exactly 0"
    print({k: f"{v:.1e}" for k, v in worst.items()})
    assert max(worst.values()) <= 1e-10


def test_heads_that_skip_absent_datasets_are_told_apart(x64):
    begun, state, _ = run_ours("mldc")
    separate = Separate(begun, fill=False)
    separate.run("mldc")
    assert np.abs(state.params["auxiliary_head"]["kernel"] - separate.stacked()["kernel"]).max() > 1e-5
