"""Devices as one mesh, and where arrays lie on it.

Three axes: "data" splits the batch; "fsdp" splits the batch too and shares out the backbone's parameters, which are
gathered where they are used; "ahead" splits the steps of a look-ahead among devices that the batch is too small for.
"""

import functools
import math
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jdepth.errors import UserError

DATA, FSDP, AHEAD = "data", "fsdp", "ahead"
# Arrays below so many entries lie on every device whole: gathering them would cost more than it saves.
SMALLEST_SHARED = 2**16


def all_devices() -> list:
    """The devices of all processes, those of one process side by side, so that its rows of a batch are consecutive.

    Raises UserError where processes have different numbers of devices: their shares of a batch are equal.
    """
    # Ids follow a TPU's wiring, not its hosts.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"process {number} has {count}" for number, count in sorted(counts.items()))
        raise UserError(f"devices are shared unevenly ({shown}): give every process the same number of devices")
    return devices


def make_mesh(devices: list | None = None, fsdp: int = 1, ahead: int = 1) -> Mesh:
    """Mesh over `devices`, by default those of all processes, whose number `fsdp` · `ahead` divides."""
    devices = all_devices() if devices is None else devices
    shape = (len(devices) // (fsdp * ahead), fsdp, ahead)
    return Mesh(np.array(devices).reshape(shape), (DATA, FSDP, AHEAD), axis_types=(AxisType.Auto,) * 3)


def training_mesh(look_ahead: int = 1, fsdp: int = 1, devices: list | None = None, **batches: int) -> Mesh:
    """`make_mesh` for training batches: "ahead" is 1 where every batch divides among the devices, otherwise the
    smallest part of the look-ahead that employs them all.

    Raises UserError where there is none, or where `fsdp` does not divide the number of devices.
    """
    devices = all_devices() if devices is None else devices
    count = len(devices)
    if count % fsdp:
        raise UserError(f"config.mesh.fsdp={fsdp} does not divide {count} devices: use a divisor of their number")
    for ahead in range(1, look_ahead + 1):
        fits = look_ahead % ahead == 0 and count % (ahead * fsdp) == 0
        if fits and all(size % (count // ahead) == 0 for size in batches.values()):
            return make_mesh(devices, fsdp, ahead)
    worst = next((name for name, size in batches.items() if size % count), next(iter(batches)))
    apart = count // math.gcd(count, *batches.values())
    shared = f" (config.mesh.fsdp={fsdp} of them need rows of their own: or lower it)" if fsdp > 1 else ""
    fewer = " (CUDA_VISIBLE_DEVICES)" if jax.default_backend() == "gpu" else ""
    raise UserError(
        f"config.batch.{worst}={batches[worst]} does not divide among {count} devices{shared}: use a multiple of "
        f"{count}, config.look_ahead a multiple of {apart} (with a frozen backbone), or fewer devices{fewer}"
    )


def batch_shards(mesh: Mesh) -> int:
    """Into how many pieces a training batch is divided."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def batch_spec(mesh: Mesh, look_ahead: int = 1) -> PartitionSpec:
    """Of training batches: rows (B, ...), with a look-ahead rows and steps (B, k, ...)."""
    return PartitionSpec((DATA, FSDP)) if look_ahead == 1 else PartitionSpec((DATA, FSDP), AHEAD)


def joint_batch(mesh: Mesh, look_ahead: int = 1) -> NamedSharding:
    """Where training batches lie."""
    return NamedSharding(mesh, batch_spec(mesh, look_ahead))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis divided among all devices, as evaluation needs it."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP, AHEAD)))


def specs(mesh: Mesh, tree: Any) -> Any:
    """A PartitionSpec per array of a tree of parameters or of what optimizers hold of them: whole on every device,
    but for what belongs to a backbone, whose longest divisible axis is divided along "fsdp"."""

    def spec(path, leaf) -> PartitionSpec:
        inside = any(getattr(key, "key", None) == "backbone" for key in path)
        axis = _shared_axis(leaf.shape, mesh.shape[FSDP]) if inside else None
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, FSDP)

    return jax.tree_util.tree_map_with_path(spec, tree)


def placement(mesh: Mesh, tree: Any) -> Any:
    """`specs` as shardings, to put a tree or to compile for it."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(mesh, tree))


def held_bytes(tree: Any, sharding: Any) -> int:
    """Bytes of (abstract) arrays on one device, placed by one sharding or a tree of them."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, tree, sharding)
    return sum(jax.tree.leaves(sizes))


def _shared_axis(shape: tuple[int, ...], count: int) -> int | None:
    if count == 1 or math.prod(shape) < SMALLEST_SHARED:
        return None
    return max((a for a, size in enumerate(shape) if size % count == 0), key=lambda a: shape[a], default=None)


def gather(pieces: Any, held: Any) -> Any:
    """Inside `jax.shard_map`: parameters whole again, from pieces that lie as `held` (of `specs`) says."""

    def whole(piece, spec):
        axis = next((axis for axis, name in enumerate(spec) if name == FSDP), None)
        return piece if axis is None else jax.lax.all_gather(piece, FSDP, axis=axis, tiled=True)

    return jax.tree.map(whole, pieces, held)


def put(tree: Any, sharding: Any) -> Any:
    """Whole arrays, the same in every process, to devices, by one sharding or a tree of them; starts the copy and
    returns at once."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(_put_everywhere, tree, sharding)


def _put_everywhere(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def put_rows(tree: Any, sharding: NamedSharding) -> Any:
    """This process's rows of a batch to its devices; side by side with the other processes' they are the batch."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def fetch(tree: Any, mesh: Mesh) -> Any:
    """Whole NumPy arrays of arrays on the mesh, however they are divided, in every process."""
    if not replicated(mesh).is_fully_addressable:
        tree = _gathered(mesh)(tree)
    return jax.device_get(tree)


@functools.cache
def _gathered(mesh: Mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))
