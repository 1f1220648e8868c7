"""Counted FLOPs and memory against XLA's own analysis and against counts written from the architecture."""

import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jdepth import config, dry_run, flops, optim, peak_memory, step, tasks
from jdepth.models import depth_model
from jdepth.models.vit import ViTConfig

ROOT = Path(__file__).resolve().parents[1]
SMALL = ViTConfig(name="small", width=128, depth=4, heads=2, hidden=512, taps=(0, 1, 2, 3), grid=4)
CHANNELS, SIZE, BATCH = 64, (84, 112), 2
MODEL = depth_model.build(SMALL, channels=CHANNELS)
SETTINGS = optim.OptimizerSettings(steps=10)
Array = jax.ShapeDtypeStruct


@functools.cache
def abstract(alpha, full=False):
    """(joint step, state, frozen, batch) of the small network, as shapes."""
    scales = step.Scales.of(alpha)
    todo = [tasks.depth(MODEL)]
    if scales.auxiliary is not None:
        todo.append(tasks.mldc((5, 3), CHANNELS))
    optimizers = step.build_optimizers(todo, scales, SETTINGS, 0.1 if full else None)

    def fresh():
        params = MODEL.init(jax.random.key(0), (28, 28))
        return params | {task.head: task.init(jax.random.key(1)) for task in todo[1:]}

    params = jax.eval_shape(fresh)
    frozen = {} if full else {"backbone": params.pop("backbone")}
    state = jax.eval_shape(lambda p: step.init_state(p, todo, optimizers, scales), params)
    batch = {
        "depth": {
            "image": Array((BATCH, *SIZE, 3), jnp.uint8),
            "depth": Array((BATCH, *SIZE), jnp.float32),
            "colour": Array((BATCH, 5), jnp.float32),
        },
        "auxiliary": {
            "image": Array((BATCH, *SIZE, 3), jnp.uint8),
            "valid_size": Array((BATCH, 2), jnp.int32),
            "dataset_id": Array((BATCH,), jnp.int32),
            "photometric": Array((BATCH, 5), jnp.float32),
            "classes": Array((BATCH, 5), jnp.float32),
        },
    }
    return step.build(MODEL, todo, optimizers, scales, SETTINGS), state, frozen, batch


@functools.cache
def step_flops(alpha, full=False):
    joint, *given = abstract(alpha, full)
    return flops.count(joint, *given)


IMAGES = Array((BATCH, *SIZE, 3), jnp.float32)


@functools.cache
def backbone_forward(number=1):
    params = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), (28, 28)))["backbone"]
    return flops.count(lambda p, *x: MODEL.backbone.apply({"params": p}, x), params, *[IMAGES] * number)


@functools.cache
def decoding(towards_taps):
    """Forward and backward of decoder and depth head on fixed taps."""
    params = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), (28, 28)))
    taps = jax.eval_shape(MODEL.features, params["backbone"], IMAGES)
    loss = lambda p, taps: MODEL.depth(p["depth_head"], MODEL.decode(p["decoder"], taps)).sum()  # noqa: E731
    trained = {k: params[k] for k in ("decoder", "depth_head")}
    return flops.count(jax.grad(loss, (0, 1) if towards_taps else 0), trained, taps)


def depth_only():
    """A step written without any notion of an auxiliary task."""
    _, state, frozen, batch = abstract(1.0)
    task = tasks.depth(MODEL)
    optimizer = optim.task_optimizer(SETTINGS, decoder_scale=1.0)

    def update(params, moments, frozen, batch):
        inputs = task.prepare(batch)
        taps = MODEL.features(frozen["backbone"], inputs["images"])
        loss = lambda p: task.loss(p["depth_head"], MODEL.decode(p["decoder"], taps), inputs, 0)[0]  # noqa: E731
        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return jax.tree.map(jnp.add, params, updates), moments

    return update, (state.params, state.optimizers["depth"], frozen, batch["depth"])


# ---- What the step costs ----------------------------------------------------------------------------


def test_alpha_one_costs_what_depth_alone_costs():
    _, *given = abstract(1.0)
    assert set(given[0].params) == {"decoder", "depth_head"} and set(given[0].optimizers) == {"depth"}
    alone, arguments = depth_only()
    assert step_flops(1.0) == flops.count(alone, *arguments)
    assert step_flops(0.9) > 1.3 * step_flops(1.0)


def test_a_frozen_backbone_costs_its_forward_pass_and_nothing_flows_back_into_it():
    assert step_flops(1.0) - backbone_forward() == decoding(towards_taps=False)
    assert decoding(towards_taps=True) > decoding(towards_taps=False)
    # Two batches share one pass over packed tokens, which costs what two passes would.
    assert backbone_forward(2) == 2 * backbone_forward()


def test_a_trained_backbone_costs_three_forward_passes():
    extra = step_flops(1.0, full=True) - step_flops(1.0) - (decoding(True) - decoding(False))
    # Twice the forward again, but for the gradient of the pixels.
    h, w = SIZE[0] // 14, SIZE[1] // 14
    patch_embed = 2 * BATCH * h * w * 14 * 14 * 3 * SMALL.width
    assert extra == pytest.approx(2 * backbone_forward() - patch_embed, rel=0.02)


@pytest.fixture(scope="module")
def compiled():
    """The small network's step with α = 1, written for depth alone and as the joint program."""
    alone, arguments = depth_only()
    joint, *given = abstract(1.0)
    return {
        "alone": (jax.jit(alone).lower(*arguments).compile(), alone, arguments),
        "joint": (jax.jit(joint).lower(*given).compile(), joint, given),
    }


def test_compiled_alpha_one_costs_what_depth_alone_costs(compiled):
    alone, joint = (compiled[k][0].cost_analysis()["flops"] for k in ("alone", "joint"))
    # The joint step also reports the gradient's norm, rate and β1, and counts the step.
    assert joint == pytest.approx(alone, rel=1e-3)


def test_the_count_of_a_whole_step_agrees_with_xla(compiled):
    program, *_ = compiled["joint"]
    counted, xla = step_flops(1.0), program.cost_analysis()["flops"]
    print(f"counted {counted / 1e6:.1f} M, XLA {xla / 1e6:.1f} M, ratio {xla / counted:.4f}")
    # XLA counts element-wise work too, which weighs the less the wider the network is.
    assert counted <= xla <= 1.02 * counted


def _memory_ratio(program, function, given) -> float:
    memory = program.memory_analysis()
    ratio = peak_memory.peak_bytes(function, *given) / (memory.argument_size_in_bytes + memory.temp_size_in_bytes)
    print(f"estimated / compiled memory = {ratio:.2f}")
    return ratio


def test_estimated_memory_against_the_compiled_program(compiled):
    assert 0.6 <= _memory_ratio(*compiled["joint"]) <= 1.6


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True], ids=["frozen", "full"])
def test_estimated_memory_of_both_tasks(full):
    joint, *given = abstract(0.9, full)
    program = jax.jit(joint, donate_argnums=0).lower(*given).compile()
    assert 0.6 <= _memory_ratio(program, joint, given) <= 1.6


def test_matrix_products_and_convolutions_are_counted_as_xla_counts_them():
    convolution = lambda s, pad, **more: lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, s, pad, dimension_numbers=("NHWC", "HWIO", "NHWC"), **more
    )
    x, k, grouped = (Array(s, jnp.float32) for s in ((2, 17, 12, 64), (3, 3, 64, 32), (3, 3, 32, 32)))
    cases = [
        (lambda x, k: jnp.einsum("bhwc,yxcf->bhwyxf", x, k), x, k),
        (convolution((1, 1), ((1, 1), (1, 1))), x, k),
        (convolution((2, 2), ((1, 1), (1, 1))), x, k),
        (convolution((2, 1), ((1, 0), (2, 1)), lhs_dilation=(1, 2), feature_group_count=2), x, grouped),
    ]
    for function, *given in cases:
        gradient = jax.grad(lambda a, b, f=function: (f(a, b) ** 2).sum(), (0, 1))
        for f in (function, gradient):
            xla = jax.jit(f).lower(*given).compile().cost_analysis()["flops"]
            assert flops.count(f, *given) == pytest.approx(xla, rel=0.02)


def test_loops_and_branches():
    a = Array((8, 8), jnp.float32)
    product = 2.0 * 8**3
    assert flops.count(lambda a: jax.lax.fori_loop(0, 5, lambda _, b: b @ a, a), a) == 5 * product
    assert flops.count(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a), a) == 2 * product
    assert flops.count(jax.jit(jax.checkpoint(lambda a: a @ a)), a) == product


# ---- The paper's run --------------------------------------------------------------------------------


def nyu_mix6(**changes):
    result = runpy.run_path(str(ROOT / "configs" / "nyu_mix6.py"))["get_config"]()
    result.update_from_flattened_dict(changes)
    return config.as_dict(result)


def block_flops(n, d=1536, hidden=4096):
    """One block of ViT-g on n tokens of one image."""
    qkv, proj = 2 * n * d * 3 * d, 2 * n * d * d
    attention = 2 * n * n * d + 2 * n * n * d
    swiglu = 2 * n * d * 2 * hidden + 2 * n * hidden * d
    return qkv + proj + attention + swiglu


def backbone_by_hand(height, width, d=1536):
    """ViT-g/14 on one image of whole patches."""
    patches = (height // 14) * (width // 14)
    return 2 * patches * 14 * 14 * 3 * d + 40 * block_flops(1 + patches)


def decoder_by_hand(height, width, d=1536, c=256):
    """(first layers, the rest) of the DPT decoder's forward pass on one image: the first layers take the
    taps, towards which no gradient is needed."""
    h, w = height // 14, width // 14
    widths, n = (d // 8, d // 4, d // 2, d), h * w
    conv = lambda pixels, i, o: 2 * pixels * 9 * i * o  # noqa: E731
    first = 4 * 2 * (n + 1) * d * d  # readouts: patches, and the class token's half once
    rest = sum(2 * n * d * out for out in widths)
    rest += 2 * n * widths[0] * 16 * widths[0] + 2 * n * widths[1] * 4 * widths[1]
    half = -(-h // 2) * -(-w // 2)
    rest += conv(half, widths[3], widths[3])
    pixels = (16 * n, 4 * n, n, half)
    rest += sum(conv(p, i, c) for p, i in zip(pixels, widths, strict=True))
    # Fusion from coarse to fine, at half, 2, 4, 8 times `half`: unit2 and projection always, unit1 but once.
    for stage in range(4):
        at = half * 4**stage
        rest += 2 * conv(at, c, c) * (2 if stage else 1) + 2 * at * c * c
    return first, rest + conv(half * 256, c, c)


def depth_head_by_hand(height, width, c=256):
    pixels = 256 * -(-height // 28) * -(-width // 28)
    return 2 * pixels * 9 * c * (c // 2) + 2 * 4 * pixels * 9 * (c // 2) * 32


def test_the_papers_step_agrees_with_a_count_by_hand():
    given = nyu_mix6()
    model, joint, state, frozen, batch = dry_run.abstract_step(given)
    assert sum(x.size for x in jax.tree.leaves(frozen)) == pytest.approx(1.14e9, rel=5e-3)
    assert batch["depth"]["image"].shape == (4, 416, 544, 3)
    assert batch["auxiliary"]["image"].shape == (4, 512, 512, 3)
    # Padded to whole patches: 416×544 to 420×546, 512×512 to 518×518.
    sizes = ((420, 546), (518, 518))
    expected = 0.0
    for size in sizes:
        first, rest = decoder_by_hand(*size)
        expected += 4 * (backbone_by_hand(*size) + 2 * first + 3 * rest)
    expected += 3 * 4 * depth_head_by_hand(*sizes[0])
    counted = flops.count(joint, state, frozen, batch)
    print(f"counted {counted / 1e12:.3f} T, by hand {expected / 1e12:.3f} T, ratio {counted / expected:.4f}")
    assert counted == pytest.approx(expected, rel=0.05)
    # Without the auxiliary task its images cost nothing at all.
    _, *alone = dry_run.abstract_step(nyu_mix6(alpha=1.0))
    first, rest = decoder_by_hand(*sizes[0])
    expected = 4 * (backbone_by_hand(*sizes[0]) + 2 * first + 3 * rest + 3 * depth_head_by_hand(*sizes[0]))
    assert flops.count(*alone) == pytest.approx(expected, rel=0.05)
    assert "auxiliary" not in alone[-1]


def test_dry_run_tells_the_figures(capsys):
    dry_run.show(nyu_mix6())
    shown = capsys.readouterr().out
    assert "1.14 billion" in shown and "missing" in shown
