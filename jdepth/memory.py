"""How much memory is free for a program, so that one that needs more is told before it starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jdepth import peak_memory
from jdepth.errors import UserError

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")
# Per pixel of a result: the map on the device and here, and what is made of it to be written and looked at.
HOST_BYTES = 40
# An estimate may be so many times too high; a run that might fit is not refused. A GPU's compiler saves more than the
# estimate knows: 1.4 to 2.0 times, for the cases of benchmarks/gpu_program.py.
ESTIMATE_ERROR, ESTIMATE_ERROR_ON_DEVICE = 1.15, 2.05


def check(program: jax.stages.Compiled, rows: int, size: tuple[int, int], name: str) -> None:
    """Raise UserError where the compiled program of `name` for `rows` maps of `size` (H, W) needs more than is free."""
    needed = program.memory_analysis().temp_size_in_bytes + HOST_BYTES * rows * size[0] * size[1]
    left = free()
    if left is not None and needed > left:
        raise UserError(
            f"{rows} × {size[0]}x{size[1]} pixels need {needed / 2**30:.1f} GiB in {name}, and {left / 2**30:.1f} GiB "
            "are free; take a smaller --batch, a smaller image or a smaller model"
        )


def step_bytes(traced: jax.stages.Traced, donated: int, devices: int, held: int = 0) -> float:
    """Bytes that the traced joint step is estimated to need on each of `devices` that share its batch.

    Args:
      donated: so many of its arrays, the first ones, are overwritten.
      held: bytes of its arguments on one device, where they are divided; 0: each device holds all of them.
    """
    whole = peak_memory.peak_of(traced.jaxpr.jaxpr, donated)
    arguments = sum(x.size * x.dtype.itemsize for x in traced.jaxpr.in_avals)
    return (held or arguments) + (whole - arguments) / devices


def check_step(config: Mapping[str, Any], needed: float, devices: int) -> None:
    """Raise UserError, naming the keys to change, where `needed` of `step_bytes` is certainly more than is free."""
    on_host = jax.local_devices()[0].platform == "cpu"
    least = needed / (ESTIMATE_ERROR if on_host else ESTIMATE_ERROR_ON_DEVICE)
    _refuse_step(config, needed, least, devices, "is estimated to need")


def check_compiled_step(config: Mapping[str, Any], program: jax.stages.Compiled, devices: int) -> None:
    """Raise the same where the compiled joint step needs more, beside its arguments, than is free by now."""
    found = program.memory_analysis()
    if found is not None:  # not every device's compiler tells
        needed = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        _refuse_step(config, needed, needed, devices, "needs, beside parameters and optimizer states,")


def _refuse_step(config: Mapping[str, Any], needed: float, least: float, devices: int, verb: str) -> None:
    left = free()
    on_host = jax.local_devices()[0].platform == "cpu"
    shares = len(jax.local_devices()) if on_host else 1  # these have the host's memory in common
    if left is None or least * shares <= left:
        return
    smaller = [f"config.batch.depth={config['batch']['depth']}"]
    if config["alpha"] < 1 or config["beta"] is not None:
        smaller.append(f"config.batch.auxiliary={config['batch']['auxiliary']}")
    if config["look_ahead"] > 1:
        smaller.append(f"config.look_ahead={config['look_ahead']}")
    smaller.append(f"config.decoder.channels={config['decoder']['channels']}")
    members = max(map(len, config["population"].values()))
    if members:
        smaller.append(f"the {members} members of config.population")
    parts = f", raise config.accumulate={config['accumulate']} or config.mesh.fsdp={config['mesh']['fsdp']}"
    half = ", set config.precision=bfloat16" if config["precision"] == "float32" else ""
    raise UserError(
        f"too little device memory: the joint step {verb} {needed / 2**30:.1f} GiB on each of {devices} devices, and "
        f"{left / shares / 2**30:.1f} GiB are free there; lower {', '.join(smaller)}{parts}{half}, take a smaller "
        f"config.backbone.name than {config['backbone']['name']}, or more devices"
    )


def free() -> int | None:
    """Bytes free on the device that programs run on; None where nothing tells."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    return free_on_host()


def free_on_host() -> int | None:
    """Bytes free for this process's own arrays; None where nothing tells."""
    known = [value for value in (_available(), _left_in_group()) if value is not None]
    return min(known) if known else None


def _available() -> int | None:
    """What Linux says is available on the machine."""
    if not MEMINFO.is_file():
        return None
    lines = MEMINFO.read_text().splitlines()
    available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(available) * 1024 if available else None


def _left_in_group() -> int | None:
    """What a container or a batch job may still use (control groups, version 2)."""
    try:
        limit, used = (GROUP / name for name in ("memory.max", "memory.current"))
        left = int(limit.read_text()) - int(used.read_text())
        rows = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        # Files that were read count as used until the memory is needed.
        return left + int(rows["inactive_file"]) + int(rows["active_file"])
    except (OSError, ValueError, KeyError):  # no such group, or "max": no limit
        return None
