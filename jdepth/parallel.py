"""Data parallelism over all devices of a run: one mesh axis, batches split on it, parameters on every device."""

import functools
from collections import Counter
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jdepth.errors import UserError

AXIS = "data"


def make_mesh(devices: list | None = None) -> Mesh:
    """One-axis mesh over `devices`, by default those of all processes.

    The devices of one process lie side by side, so that its rows of a batch are consecutive.

    Raises UserError where processes have different numbers of devices: their shares of a batch are equal.
    """
    if devices is None:
        # Ids follow a TPU's wiring, not its hosts.
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"process {number} has {count}" for number, count in sorted(counts.items()))
        raise UserError(f"devices are shared unevenly ({shown}): give every process the same number of devices")
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def check_divides(mesh: Mesh, **batches: int) -> None:
    """Raise UserError for a batch that the devices cannot share evenly."""
    for name, size in batches.items():
        if size % mesh.size:
            raise UserError(
                f"config.batch.{name}={size} does not divide among {mesh.size} devices: "
                f"use a multiple of {mesh.size}, or fewer devices (CUDA_VISIBLE_DEVICES)"
            )


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Whole arrays, the same in every process, to devices; starts the copy and returns at once."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: _put_everywhere(x, sharding), tree)


def _put_everywhere(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def put_rows(tree: Any, sharding: NamedSharding) -> Any:
    """This process's rows of a batch to its devices; side by side with the other processes' they are the batch."""
    if sharding.is_fully_addressable:
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
