"""How much memory is free for a program, so that one that needs more is told before it starts."""

from pathlib import Path

import jax

MEMINFO = Path("/proc/meminfo")
GROUP = Path("/sys/fs/cgroup")


def free() -> int | None:
    """Bytes free on the device that programs run on; None where nothing tells."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
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
