"""The type of every matrix product and convolution of the joint step, as JAX hands it to a compiler."""

import re

import jax
import pytest
from tiny_config import plain

from jdepth import dry_run, tasks

pytestmark = pytest.mark.usefixtures("quick")
_PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution).*: \((tensor<[^>]*>), (tensor<[^>]*>)\) -> tensor<([^>]*)>")


def products(platform, task, precision, workdir):
    """(types of both operands, type of the result, at the highest precision) of each product of the joint step."""
    config = plain(workdir, task=task, precision=precision, **{"backbone.attention": "plain"})
    _, joint, *abstract = dry_run.abstract_step(config, platform)
    text = jax.jit(joint).trace(*abstract).lower(lowering_platforms=(platform,)).as_text()
    kind = lambda array: array.rstrip(">").split("x")[-1]  # noqa: E731
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]
    found = [_PRODUCT.search(line).groups() for line in lines]
    highest = ["HIGHEST" in line for line in lines]
    return [({kind(a), kind(b)}, kind(c), high) for (a, b, c), high in zip(found, highest, strict=True)]


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("task", sorted(tasks.TASKS))
def test_large_products_are_of_the_runs_type(platform, task, tmp_path):
    """In bfloat16 only what asks for the highest precision is wider: a head's choice among data sets, a pooled head,
    the gradient of a resize."""
    found = products(platform, task, "bfloat16", tmp_path)
    half = [(operands, result) for operands, result, highest in found if not highest]
    assert len(half) > 100 and all(operands == {"bf16"} for operands, _ in half)
    assert all(operands == {"f32"} for operands, _, highest in found if highest)
    # Logits are float32: those of two times four attentions, and of a map head.
    assert sum(result == "f32" for _, result in half) == 2 * 4 + (task in ("segmentation", "reconstruction"))


@pytest.mark.parametrize("task", ["mldc", "segmentation"])
def test_a_float32_run_has_no_half_product(task, tmp_path):
    found = products("cpu", task, "float32", tmp_path)
    assert len(found) > 100 and all(operands == {"f32"} and result == "f32" for operands, result, _ in found)
