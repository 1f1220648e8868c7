"""Fixtures shared by the tests: double precision, and real sample data where it is at hand."""

import os
from pathlib import Path

# Of several test processes each has its own cores, before libraries count them: their threads would wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    _number, _count = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, _cores[_number::_count] or _cores)

import jax  # noqa: E402
import pytest  # noqa: E402

# Tests and the processes that they start leave the user's compiled programs alone.
os.environ["JDEPTH_COMPILATION_CACHE"] = "off"

pytest_plugins = ("tiny_run", "folder_set")
SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def x64():
    """Run one test in double precision."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of real sample images; the test is skipped where it is absent."""
    if not SAMPLES.is_dir():
        pytest.skip(f"real sample data not found at {SAMPLES.name}/ beside the project")
    return SAMPLES
