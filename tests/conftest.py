"""Fixtures shared by the tests: double precision, and real sample data where it is at hand."""

import os
from pathlib import Path

import jax
import pytest

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
