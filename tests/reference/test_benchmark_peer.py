"""The PyTorch side of benchmarks/train_step.py does the same work: its losses and gradients are those of jdepth's step
on the same parameters, and its FLOPs, by PyTorch's own counter, those of the released forms."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import peer  # noqa: E402
import torch_params  # noqa: E402
import workload  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", ["S", pytest.param("g", marks=pytest.mark.slow)])
def test_flops_are_equal_with_our_savings_switched_off(size):
    case = workload.parse(f"{size} 4+4 k=1 fused")
    theirs, released, ours = peer.counted(case), workload.counted(case, ()), workload.counted(case)
    print(f"{size}: PyTorch {theirs / 1e12:.3f} T, released forms {released / 1e12:.3f} T, jdepth {ours / 1e12:.3f} T")
    assert theirs == pytest.approx(released, rel=0.03)
    assert ours < released


def test_losses_and_gradients_are_equal():
    case = workload.parse("tiny 4+2 k=1 eager at 56x56")
    joint = peer.JointStep(case, "cpu")
    torch_params.randomise(joint.model, seed=1)
    with torch.no_grad():
        joint.model.head.head[4].bias.fill_(1.0)
        joint.bias.normal_()
    work = workload.build(case, "float32", "plain")
    tensors = torch_params.published_tensors(joint.model)
    params = {
        "decoder": torch_params.decoder_tree(tensors),
        "depth_head": torch_params.depth_head_tree(tensors),
        "auxiliary_head": {
            "kernel": joint.kernel.detach().numpy().transpose(0, 2, 1), "bias": joint.bias.detach().numpy(),
        },
    }  # fmt: skip
    backbone = torch_params.backbone_tree(tensors, case.shape.depth, "backbone.")
    batch = workload.host_batch(case)
    for task in work.todo:
        given = task.prepare(batch[task.stream])
        images = np.asarray(joint.batch[task.stream]["image"]).transpose(0, 2, 3, 1)
        given["images"] = jnp.asarray(images)  # without the augmentation of colours, which PyTorch's side leaves out

        def loss(trained, task=task, given=given):
            features = work.model.decode(trained["decoder"], work.model.features(backbone, given["images"]))
            return task.loss(trained[task.head], features, given, 1000)[0]

        trained = {key: params[key] for key in ("decoder", task.head)}
        ours, gradients = jax.value_and_grad(loss)(trained)
        joint.optimizers[task.stream].zero_grad()
        theirs = joint.loss(task.stream, joint.batch[task.stream])
        theirs.backward()
        own = [p.grad for group in joint.optimizers[task.stream].param_groups for p in group["params"]]
        assert all(gradient is not None for gradient in own)
        norm = float(sum(gradient.double().square().sum() for gradient in own)) ** 0.5
        leaves = jax.tree.leaves(gradients)
        assert float(ours) == pytest.approx(theirs.item(), rel=1e-4)
        mine = sum(np.square(np.float64(leaf)).sum() for leaf in leaves) ** 0.5
        assert mine == pytest.approx(norm, rel=1e-3)
        assert sum(leaf.size for leaf in leaves) == sum(gradient.numel() for gradient in own)
    assert not any(p.requires_grad for p in joint.model.backbone.parameters())


def test_a_step_moves_everything_but_the_backbone():
    joint = peer.JointStep(workload.parse("tiny 2+2 k=1 eager at 56x56"), "cpu")
    before = {name: p.detach().clone() for name, p in joint.model.named_parameters()}
    joint.steps(1)
    moved = {name for name, p in joint.model.named_parameters() if not torch.equal(p, before[name])}
    still = {name for name in before if name not in moved}
    assert moved and all(name.startswith(("backbone.", "neck.fusion_stage.layers.0.residual_layer1")) for name in still)
