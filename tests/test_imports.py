"""What may be imported by what, each in a process of its own."""

import subprocess
import sys

import pytest
from tiny_config import ROOT

HEAVY = ("jax", "flax", "numpy", "cv2", "grain", "tensorflow", "torch", "ml_collections", "orbax", "matplotlib")


def loaded(code: str) -> tuple[str, set[str]]:
    """(standard output of `code`, which heavy packages it has imported)."""
    code += f"\nimport sys\nprint('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    out, _, names = done.stdout.rpartition("LOADED")
    return out, set(names.split())


def test_importing_jdepth_is_light():
    out, names = loaded("import time\nt = time.perf_counter()\nimport jdepth\nprint(time.perf_counter() - t)")
    print(f"import jdepth: {float(out):.4f} s")
    assert names == set()


@pytest.mark.parametrize(
    "command, allowed",
    [("main", {"ml_collections"}), ("evaluate", set()), ("predict", set()), ("convert", {"numpy"})],
)
def test_help_needs_nothing_heavy(command, allowed):
    run = f"""
import runpy, sys
sys.argv = ["jdepth", "--help"]
try:
    runpy.run_module("jdepth.{command}", run_name="__main__")
except SystemExit as error:
    assert error.code == 0, error.code
"""
    out, names = loaded(run)
    assert f"python -m jdepth.{command}" in out and "Flags:" in out and "  --" in out
    assert names <= allowed


def test_models_losses_and_step_need_jax_flax_and_optax_alone():
    _, names = loaded(
        "import jdepth.models, jdepth.losses, jdepth.step, jdepth.optim, jdepth.colour, jdepth.metrics, jdepth.recipe"
    )
    assert names <= {"jax", "flax", "numpy", "orbax"}  # flax itself may import orbax


def test_rooms_need_numpy_alone():
    _, names = loaded("from jdepth.data.sources.rooms import Rooms\nRooms(size=1, height=16, width=16)[0]")
    assert names == {"numpy"}


def test_reading_data_and_weights_needs_no_jax():
    _, names = loaded("import jdepth.data.sources.folder, jdepth.data.evaluation, jdepth.weights")
    assert not names & {"jax", "flax", "tensorflow", "torch"}


def test_unknown_attribute_is_an_attribute_error():
    import jdepth

    assert set(jdepth.__all__) == {"UserError", "load"}
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        jdepth.lod  # noqa: B018
