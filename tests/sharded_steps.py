"""Twenty joint steps on one and on all of this process's devices, in float64; prints the largest differences.

Run by `test_parallel.py` in a process of its own, since the number of devices is fixed when jax starts.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jdepth import communication, optim, parallel, step, tasks
from jdepth.models import depth_model
from jdepth.models.vit import ViTConfig

TINY = ViTConfig(name="tiny", width=16, depth=4, heads=2, hidden=64, grid=2, taps=(0, 1, 2, 3))
CHANNELS, CLASSES, STEPS, SIZE, BATCH = 8, (5, 3), 20, (28, 42), 16
SETTINGS = optim.OptimizerSettings(steps=STEPS, rate=1e-2, clip=0.5)  # some of the steps are clipped, some are not


def batches():
    """Joint batches as the pipeline gives them; depth with holes, one image without any."""
    draw = np.random.default_rng(3)
    for _ in range(STEPS):
        depth = draw.uniform(0.5, 9.0, (BATCH, *SIZE)) * (draw.random((BATCH, *SIZE)) > 0.2)
        depth[5] = 0.0
        ids = draw.integers(0, 2, BATCH).astype(np.int32)
        yield {
            "depth": {"images": draw.normal(size=(BATCH, *SIZE, 3)), "depth": depth},
            "auxiliary": {
                "images": draw.normal(size=(BATCH, *SIZE, 3)),
                "classes": (draw.random((BATCH, max(CLASSES))) < 0.5) & (np.arange(5) < np.array(CLASSES)[ids, None]),
                "dataset_id": ids,
            },
        }


def run(devices: list, full: bool, look_ahead: int = 1, fsdp: int = 1, accumulate: int = 1, rows: int = BATCH):
    """(state, gradient norms of the depth update, traffic) of the steps on these devices, on `rows` rows of each batch."""
    mesh = parallel.training_mesh(look_ahead, fsdp, devices, depth=rows, auxiliary=rows)
    shared = parallel.joint_batch(mesh, look_ahead)
    model = depth_model.build(TINY, channels=CHANNELS)
    todo = [
        dataclasses.replace(task, prepare=dict)  # images are normalised already
        for task in (tasks.depth(model, warmup_steps=3), tasks.mldc(CLASSES, CHANNELS))
    ]
    params = dict(model.init(jax.random.key(0), (28, 28)))
    params["auxiliary_head"] = todo[1].init(jax.random.key(1))
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    frozen = {} if full else {"backbone": params.pop("backbone")}
    scales = step.Scales.of(0.9)
    optimizers = step.build_optimizers(todo, scales, SETTINGS, 0.5 if full else None)
    state = step.init_state(params, todo, optimizers, scales)
    lies, held = parallel.placement(mesh, state), parallel.placement(mesh, frozen)
    state, frozen = parallel.put((state, frozen), (lies, held))
    joint_step = jax.jit(
        step.build(model, todo, optimizers, scales, SETTINGS, look_ahead, accumulate=accumulate, mesh=mesh),
        in_shardings=(lies, held, shared),
        out_shardings=(lies, parallel.replicated(mesh)),
    )
    program = None
    norms, given = [], [jax.tree.map(lambda x: x[:rows], batch) for batch in batches()]
    for first in range(0, STEPS, look_ahead):
        batch = step.stack_ahead(given[first : first + look_ahead])
        batch = parallel.put(batch, shared)
        program = program or joint_step.lower(state, frozen, batch).compile()
        state, metrics = program(state, frozen, batch)
        norms += np.atleast_1d(metrics["depth/gradient_norm"]).tolist()
    pieces = {x.sharding.shard_shape(x.shape) != x.shape for x in jax.tree.leaves((state, frozen)) if x.ndim}
    assert (True in pieces) == (fsdp > 1), "parameters are divided where asked, and only there"
    return jax.device_get(state), norms, communication.traffic(program.as_text())


def _reduced(params) -> int:
    """Bytes of the gradients of a global step: the decoder's of both updates, and each head's (a backbone's twice)."""
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    shared = size(params["decoder"]) + size(params.get("backbone", {}))
    return 2 * shared + size(params["depth_head"]) + size(params["auxiliary_head"])


def main():
    """One JSON line: devices, clipped steps and, for each kind of backbone, the largest differences."""
    jax.config.update("jax_enable_x64", True)
    parallel.SMALLEST_SHARED = 0  # every array of this network is small
    result = {"devices": len(jax.devices())}
    kinds = {
        "frozen": dict(full=False),
        "full": dict(full=True),
        "frozen, shared parameters": dict(full=False, fsdp=4),
        "full, shared parameters": dict(full=True, fsdp=2),
        "a batch of 4, two steps ahead": dict(full=False, look_ahead=4, rows=4),
        "in parts, on four": dict(full=False, accumulate=2, fsdp=2),
    }
    for name, kind in kinds.items():
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        one, norms, _ = run(jax.devices()[:1], kind["full"], rows=kind.get("rows", BATCH))
        # SigLoss takes groups of two images, which parts must not break.
        many, more, traffic = run(jax.devices()[: 4 if "accumulate" in kind else 8], **kind)
        np.testing.assert_allclose(more, norms, rtol=1e-10)
        worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, many)
        result[name] = {
            "params": max(jax.tree.leaves(worst.params)),
            "optimizers": max(jax.tree.leaves(worst.optimizers)),
            "arrays": len(jax.tree.leaves(worst)),
            "bits": min(x.dtype.itemsize * 8 for x in jax.tree.leaves(one.params)),
            "traffic": traffic,
            "reduced": _reduced(many.params),
            "clipped": sum(norm > SETTINGS.clip for norm in norms),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
