"""Data parallelism over the local devices: one mesh axis, batches split on it, parameters on every device."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jdepth.errors import UserError

AXIS = "data"


def make_mesh(devices: list | None = None) -> Mesh:
    """One-axis mesh over `devices`, all local ones by default."""
    devices = jax.local_devices() if devices is None else devices
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
    """Host arrays to devices; starts the copy and returns at once."""
    return jax.device_put(tree, sharding)
