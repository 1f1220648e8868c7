"""Twenty joint steps on one and on all of this process's devices, in float64; prints the largest differences.

Run by `test_parallel.py` in a process of its own, since the number of devices is fixed when jax starts.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from jdepth import optim, parallel, step, tasks
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


def run(devices: list, full: bool):
    """(state, gradient norms of the depth update) after the steps on these devices."""
    mesh = parallel.make_mesh(devices)
    everywhere, shared = parallel.replicated(mesh), parallel.split(mesh)
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
    state = parallel.put(step.init_state(params, todo, optimizers, scales), everywhere)
    joint_step = jax.jit(
        step.build(model, todo, optimizers, scales, SETTINGS),
        in_shardings=(everywhere, everywhere, shared),
        out_shardings=everywhere,
    )
    norms = []
    for batch in batches():
        state, metrics = joint_step(state, parallel.put(frozen, everywhere), parallel.put(batch, shared))
        norms.append(float(metrics["depth/gradient_norm"]))
    return jax.device_get(state), norms


def main():
    """One JSON line: devices, clipped steps and, for each kind of backbone, the largest differences."""
    jax.config.update("jax_enable_x64", True)
    result = {"devices": len(jax.devices())}
    for full in (False, True):
        one, norms = run(jax.devices()[:1], full)
        many, _ = run(jax.devices(), full)
        worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, many)
        result["full" if full else "frozen"] = {
            "params": max(jax.tree.leaves(worst.params)),
            "optimizers": max(jax.tree.leaves(worst.optimizers)),
            "arrays": len(jax.tree.leaves(worst)),
            "bits": min(x.dtype.itemsize * 8 for x in jax.tree.leaves(one.params)),
            "clipped": sum(norm > SETTINGS.clip for norm in norms),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
