"""Models written for transformers, loaded and run by it, and read back by us."""

import pytest

torch = pytest.importorskip("torch")

import jax
import jax.numpy as jnp
import numpy as np
import port
import torch_params
from test_parity_depth_anything import make_port
from transformers import AutoModelForDepthEstimation

from jdepth import families, weights
from jdepth.models import BACKBONES
from jdepth.weights import hugging_face

TOLERANCE = 1e-4


def port_of(name):
    """A reference model with random parameters, as a source of ours."""
    if name.startswith("depth_anything"):
        return make_port(name, seed=8)
    model = port.depth_model(BACKBONES["dinov2_vits14"], 256)
    torch_params.randomise(model, 8)
    with torch.no_grad():
        model.head.head[4].bias.fill_(1.0)
    return model


def maps(ours, params, theirs, size):
    images = np.random.default_rng(9).standard_normal((1, *size, 3)).astype(np.float32)
    with torch.no_grad():
        reference = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).predicted_depth.numpy()
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(ours.__call__)(params, images)), reference


@pytest.mark.parametrize("name", ["dinov2_vits14_kitti_dpt", "depth_anything_vits14", "depth_anything_v2_metric_vkitti_vits"])
def test_round_trip(name, tmp_path):
    port_of(name).save_pretrained(tmp_path / "source")
    if name.startswith("depth_anything"):
        loaded = weights.load(tmp_path / "source")
    else:  # the port's config.json does not say the range
        loaded = weights.load(tmp_path / "source", model=name)
    assert loaded.info.model == name
    family = families.build(loaded.info, jnp.float32, "plain")
    config = family.model.backbone.config
    hugging_face.save(tmp_path / "written", loaded.params, loaded.info, config.taps, config.heads)
    theirs, report = AutoModelForDepthEstimation.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not any(report.values()), report
    params = jax.tree.map(jnp.asarray, loaded.params)
    values, reference = maps(family.model, params, theirs.eval(), (518, 518))
    error = float(np.abs(values - reference).max() / reference.max())
    # What an image of 480×640 becomes, padded (DINOv2) or resized (Depth Anything).
    size = (518, 686) if name.startswith("depth_anything") else (490, 644)
    elsewhere = maps(family.model, params, theirs, size)
    other = float(np.abs(elsewhere[0] - elsewhere[1]).max() / elsewhere[1].max())
    print(f"\n{name}: {error:.1e} of the largest value at 518x518, {other:.1e} for 480x640 (the port's position table)")
    assert error <= TOLERANCE < other
    again = weights.load(tmp_path / "written")
    assert (again.info.model, again.info.max_depth) == (name, loaded.info.max_depth)
    for one, two in zip(jax.tree.leaves(again.params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-7)
