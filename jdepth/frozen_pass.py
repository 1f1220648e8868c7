"""The part of a step that training does not change: inputs of every task, and the frozen backbone's features.

All streams and all steps ahead go through the backbone together, packed. On several devices each packs its own
images, so that nothing crosses devices but the pieces of a backbone that they share (mesh axis "fsdp").
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jdepth import parallel
from jdepth.models.depth_model import DepthModel
from jdepth.tasks import Task


def build(
    model: DepthModel, tasks: Sequence[Task], look_ahead: int = 1, mesh: Mesh | None = None
) -> Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict, dict]]:
    """(frozen, batch) -> (inputs by task name, taps by stream), every array with leading axes (B, k).

    `frozen` is {"backbone": parameters}, or {} for a backbone that is trained, of which there are then no taps but
    images among the inputs. `batch` maps streams to arrays (B, ...), with `look_ahead` k > 1 (B, k, ...). Tasks of
    one stream see the same images.
    """

    alone = mesh is None or mesh.size == 1
    # Steps whose images one device takes through the backbone.
    steps = look_ahead if alone else look_ahead // mesh.shape[parallel.AHEAD]

    def local(frozen, batch, gather=lambda params: params):
        if look_ahead > 1:
            batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
        inputs = {task.name: dict(task.prepare(batch[task.stream])) for task in tasks}
        taps = {}
        if frozen:
            images = {task.stream: inputs[task.name]["images"] for task in tasks}
            features = model.backbone.apply({"params": gather(frozen["backbone"])}, tuple(images.values()))
            taps = {s: jax.lax.stop_gradient(f.taps) for s, f in zip(images, features, strict=True)}
            for own in inputs.values():
                del own["images"]
        return jax.tree.map(lambda x: x.reshape(-1, steps, *x.shape[1:]), (inputs, taps))

    def shared(frozen, batch):
        held = parallel.specs(mesh, frozen)

        def own(frozen, batch):
            return local(frozen, batch, lambda params: parallel.gather(params, held["backbone"]))

        rows = parallel.batch_spec(mesh, look_ahead)
        results = parallel.batch_spec(mesh, 2)
        return jax.shard_map(own, mesh=mesh, in_specs=(held, rows), out_specs=results, check_vma=False)(frozen, batch)

    return local if alone else shared
