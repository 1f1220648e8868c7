"""Kept programs: where, when not, and that they compute what freshly compiled ones do."""

import os
import subprocess
import sys

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_config import PICO, ROOT

from jdepth import compilation
from jdepth.models import build

PROGRAM = """
from jdepth import compilation
compilation.LEAST_SECONDS = 0.0
compilation.keep_programs()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: jax.nn.softmax(jnp.tanh(x @ x.T) @ jnp.exp(-x)))
print(jax.device_get(f(jax.random.normal(jax.random.key(0), (64, 32)))).tobytes().hex())
"""


@pytest.fixture
def unset(monkeypatch):
    """JAX as it starts: without a folder of compiled programs."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv(compilation.VARIABLE, raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
    compilation_cache.reset_cache()


def test_programs_are_kept_in_a_folder_of_the_user_alone(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.keep_programs()
    (folder,) = (tmp_path / "jdepth").iterdir()
    assert folder.name.startswith(f"xla-{jax.__version__}-") and folder.stat().st_mode & 0o777 == 0o700
    assert jax.config.jax_compilation_cache_dir == str(folder)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_not_used(mode, unset, tmp_path, monkeypatch, capsys):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / "open"))
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "can be written by them" in line and compilation.VARIABLE in line


def test_a_file_in_its_place_is_told(unset, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / "file"))
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None and len(capsys.readouterr().err.splitlines()) == 1


def test_off_and_a_cache_of_jaxs_own_are_respected(unset, tmp_path, monkeypatch):
    monkeypatch.setenv(compilation.VARIABLE, "off")
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs") and not (tmp_path / "ours").exists()


def run(cache) -> tuple[str, str]:
    environment = os.environ | {compilation.VARIABLE: str(cache), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def test_a_kept_program_computes_the_same_and_says_nothing(tmp_path):
    fresh, _ = run("off")
    first, _ = run(tmp_path / "kept")
    kept = sorted((tmp_path / "kept").iterdir())
    assert kept
    again, said = run(tmp_path / "kept")
    assert fresh == first == again and said == ""
    assert sorted((tmp_path / "kept").iterdir()) == kept
    # Of a start that was killed while it wrote: compiled anew.
    for file in kept:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert run(tmp_path / "kept")[0] == fresh


def test_a_program_is_compiled_aside(capsys):
    traced = jax.jit(lambda x: x + 1).trace(jax.ShapeDtypeStruct((), "float32"))
    assert compilation.compile_aside(traced, build(PICO).backbone).result()(jax.numpy.float32(1)) == 2
    assert not capsys.readouterr().err
    compilation.compile_aside(traced, build(PICO, attention="cudnn").backbone).result()
    assert "cuDNN was chosen, but the compiled step does not call it" in capsys.readouterr().err
