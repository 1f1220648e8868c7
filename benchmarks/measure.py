"""What all benchmarks share: interleaved timing, the device's own speed, its memory, result files and tables.

Importing it puts the checkout on the path, so that `python benchmarks/NAME.py` needs no installation.
"""

import datetime
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from jdepth.errors import UserError  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers")
# Runs so many units of its work and waits for the end.
Call = Callable[[int], None]


def device() -> str:
    """Name of the device that programs run on, such as "NVIDIA H100 80GB HBM3" or "cpu"."""
    return jax.local_devices()[0].device_kind


def precision() -> str:
    """Type of matrix products: bfloat16 where the device is made for it."""
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


# ---- Time -------------------------------------------------------------------------------------------


def interleaved(calls: Mapping[str, Call], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Seconds per unit of each call in every round.

    Each is warmed up and then timed in blocks of about `seconds`, all calls in every round, so that a machine that
    speeds up or slows down meets them alike. Ratios are to be taken round by round.
    """
    units = {}
    for name, call in calls.items():
        call(1)
        units[name] = max(1, round(seconds / max(_timed(call, 1), 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_timed(call, units[name]) / units[name])
    return times


def _timed(call: Call, units: int) -> float:
    began = time.perf_counter()
    call(units)
    return time.perf_counter() - began


def ratio(times: Mapping[str, Sequence[float]], name: str, to: str) -> float:
    """Median over the rounds of one call's time divided by another's."""
    return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))


def matrix_product(dtype: str) -> tuple[Call, float]:
    """(call, FLOPs of a unit): one large product in this type, by which utilisation is measured.

    Of random numbers: on zeros a GPU draws less power and is faster than it can be on data.
    """
    side = 1024 if jax.default_backend() == "cpu" else 8192
    first, second = (jax.random.normal(jax.random.key(i), (side, side)).astype(dtype) for i in range(2))
    product = jax.jit(jnp.dot).lower(first, second).compile()

    def call(units: int) -> None:
        result = None
        for _ in range(units):
            result = product(first, second)
        jax.block_until_ready(result)

    return call, 2.0 * side**3


# ---- Memory -----------------------------------------------------------------------------------------


def program_bytes(program: jax.stages.Compiled) -> int:
    """Device memory of a compiled program: arguments, temporaries, and results that reuse no argument."""
    memory = program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return held - memory.alias_size_in_bytes


def peak_bytes() -> int | None:
    """Most bytes in use on the device since this process began; None where the device does not tell (CPU)."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


# ---- Results ----------------------------------------------------------------------------------------


class Rows:
    """A JSON file {case: row}, whole after every row."""

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> dict[str, dict[str, Any]]:
        """All rows by case. Raises UserError for a file that is no such table."""
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        except (ValueError, OSError) as error:
            raise UserError(f"{self.path}: not readable as results ({error}); move it away") from error
        if not isinstance(rows, dict):
            raise UserError(f"{self.path}: expected a JSON object of cases; move it away")
        return rows

    def add(self, case: str, row: Mapping[str, Any]) -> None:
        """Write a row; one of the same case is replaced."""
        rows = self.rows() | {case: dict(row)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)


class Results(Rows):
    """The rows of one benchmark on one device, each with device, versions and date."""

    def __init__(self, benchmark: str, device_name: str, folder: Path = RESULTS):
        self.device = device_name
        name = re.sub("[^a-z0-9]+", "-", device_name.lower()).strip("-")
        super().__init__(Path(folder) / f"{benchmark}-{name}.json")

    def add(self, case: str, row: Mapping[str, Any]) -> None:
        """Write a row; one of the same case is replaced."""
        about = {
            "device": self.device,
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "versions": {"python": platform.python_version()} | versions(),
        }
        super().add(case, {**row, **about})


def versions() -> dict[str, str]:
    """Of the packages that a result depends on, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, all others to the right."""
    lines = [list(titles), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(titles))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def shown(value: float | None, digits: int = 3, factor: float = 1.0) -> str:
    """A number in significant digits times `factor`; "" for none."""
    if value is None:
        return ""
    value *= factor
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:.0f}"
