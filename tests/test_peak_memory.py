"""Estimated device memory against compiled programs, and the recipe's against a count by hand."""

import runpy

import jax
import pytest
from tiny_config import ROOT

from jdepth import config, dry_run, flops, peak_memory

GIB = 2**30


def read_config(name, **changes):
    result = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    result.update_from_flattened_dict({"backbone.attention": "plain", "precision": "float32", **changes})
    return config.as_dict(result)


def compiled_bytes(joint, arguments) -> int:
    found = jax.jit(joint, donate_argnums=0).lower(*arguments).compile().memory_analysis()
    kept = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes + found.temp_size_in_bytes + kept


def assert_near(estimate: int, found: int, what: str):
    print(f"{what}: {estimate / GIB:.3f} GiB, compiled {found / GIB:.3f} GiB, ratio {estimate / found:.3f}")
    assert estimate == pytest.approx(found, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("train", ["frozen", "full"])
def test_the_quickstarts_step_is_estimated(train):
    _, joint, *arguments = dry_run.abstract_step(read_config("quickstart", **{"backbone.train": train}))
    assert_near(peak_memory.peak_bytes(joint, *arguments), compiled_bytes(joint, arguments), f"ViT-nano {train}")


def activations_by_hand(batch: int = 4, channels: int = 256, width: int = 1536) -> int:
    """Bytes of the recipe's float32 activations when the depth head's gradient is taken, its fullest moment."""
    # 420×546 is 30×39 patches: the finest map of the decoder is 240×320, that of a batch is one `whole`.
    whole = batch * 240 * 320 * channels * 4
    decoder_end = 3 * whole  # input and output of the last convolution, and the ReLU of it
    head = 2 * whole  # half the channels, at twice the height and width
    head_gradient = 2 * whole
    resized_back = 4 * whole  # one gather of the gradient per weight of its resize: half the height
    head_end = 2 * whole // 2  # 32 channels: output of the second convolution, and its gradient
    # Fusion stages, at a quarter of that and less: in a pair of residual units four convolutions and their ReLUs, and
    # their sum.
    stages = sum(9 * whole // 4**level for level in (1, 2, 3, 4))
    taps = 4 * batch * (1 + 30 * 39 + 1 + 37 * 37) * width * 4
    return decoder_end + head + head_gradient + resized_back + head_end + stages + taps


@pytest.fixture(scope="module")
def recipe():
    """The paper's main recipe, ViT-g, in float32 with plain attention: (step, its arguments)."""
    _, joint, *arguments = dry_run.abstract_step(read_config("nyu_mix6"))
    return joint, arguments


def by_hand(arguments) -> int:
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arguments))
    return held + activations_by_hand()


def test_the_recipes_estimate_agrees_with_a_count_by_hand(recipe):
    joint, arguments = recipe
    estimate, counted = peak_memory.peak_bytes(joint, *arguments), by_hand(arguments)
    print(f"estimated {estimate / GIB:.2f} GiB, by hand {counted / GIB:.2f} GiB, ratio {estimate / counted:.3f}")
    assert estimate == pytest.approx(counted, rel=0.15)


@pytest.mark.slow
def test_the_recipes_program_needs_what_was_counted(recipe):
    joint, arguments = recipe
    found = compiled_bytes(joint, arguments)
    assert_near(by_hand(arguments), found, "ViT-g by hand")
    assert_near(peak_memory.peak_bytes(joint, *arguments), found, "ViT-g estimated")


def test_what_is_used_at_once_is_counted_at_once():
    x = jax.ShapeDtypeStruct((1000, 1000), "float32")
    size = 4_000_000
    # Sums and products are part of the matrix product's operand, which exists; it and the result.
    assert peak_memory.peak_bytes(lambda x: (2 * x + 1) @ x, x, donated=0) == 3 * size
    # Two products are alive at once where both are used later.
    assert peak_memory.peak_bytes(lambda x: (x @ x) @ (x @ x + 1), x, donated=0) == pytest.approx(4 * size, rel=0.3)
    # Overwritten arguments make room.
    assert peak_memory.peak_bytes(lambda x: ((x @ x) @ x).sum(), x) <= 3 * size
    assert flops.count(lambda x: (2 * x + 1) @ x, x) == 2e9
