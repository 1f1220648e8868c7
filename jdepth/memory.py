"""How much memory is free for a program, so that one that needs more is told before it starts."""

from pathlib import Path

import jax

MEMINFO = Path("/proc/meminfo")


def free() -> int | None:
    """Bytes free on the device that programs run on; None where nothing tells."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None
    if not MEMINFO.is_file():
        return None
    lines = MEMINFO.read_text().splitlines()
    available = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(available) * 1024 if available else None
