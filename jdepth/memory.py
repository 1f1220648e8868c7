"""How much memory is free for a program, so that one that needs more is told before it starts."""

from pathlib import Path

import jax

from jdepth.errors import UserError

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")
# Per pixel of a result: the map on the device and here, and what is made of it to be written and looked at.
HOST_BYTES = 40


def check(program: jax.stages.Compiled, rows: int, size: tuple[int, int], name: str) -> None:
    """Raise UserError where the compiled program of `name` for `rows` maps of `size` (H, W) needs more than is free."""
    needed = program.memory_analysis().temp_size_in_bytes + HOST_BYTES * rows * size[0] * size[1]
    left = free()
    if left is not None and needed > left:
        raise UserError(
            f"{rows} × {size[0]}x{size[1]} pixels need {needed / 2**30:.1f} GiB in {name}, and {left / 2**30:.1f} GiB "
            "are free; take a smaller --batch, a smaller image or a smaller model"
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
        return int(limit.read_text()) - int(used.read_text())
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None
