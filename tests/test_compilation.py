"""Kept programs: where, when not, and that they compute what freshly compiled ones do."""

import functools
import os
import pickle
import subprocess
import sys
import zlib

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_config import PICO, ROOT

from jdepth import compilation, losses, tasks
from jdepth.models import build

PROGRAM = """
from jdepth import compilation
compilation.LEAST_SECONDS = 0.0
compilation.keep_programs()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: jax.nn.softmax(jnp.tanh(x @ x.T) @ jnp.exp(-x)))
print(jax.device_get(f(jax.random.normal(jax.random.key(0), (64, 32)))).tobytes().hex())
"""


# Prints what the step was estimated to need, where it was kept, and its result; and tells when it is traced.
STEP = """
import sys
from jdepth import compilation
compilation.LEAST_SECONDS = 0.0
compilation.keep_programs()
import jax, jax.numpy as jnp
from jdepth.models import BACKBONES, VisionTransformer
f = jax.jit(lambda tree: {"y": jax.nn.softmax(jnp.tanh(tree["x"] @ tree["x"].T))})
x = {"x": jax.random.normal(jax.random.key(0), (64, 32))}
def trace():
    print("traced", file=sys.stderr)
    return f.trace(x)
name = compilation.key("step", CAUSE)
kept = compilation.find(name)
program = compilation.compile_aside(trace, VisionTransformer(BACKBONES["vit_nano14"]), name, 1.5, kept).result()
print(kept and kept.needed, jax.device_get(program(x)["y"]).tobytes().hex())
"""


@pytest.fixture
def unset(monkeypatch):
    """JAX as it starts: without a folder of compiled programs."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv(compilation.VARIABLE, raising=False)
    monkeypatch.setattr(compilation, "_folder", None)
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


def run(cache, program=PROGRAM) -> tuple[str, str]:
    environment = os.environ | {compilation.VARIABLE: str(cache), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def test_a_kept_program_computes_the_same_and_says_nothing(tmp_path):
    fresh, _ = run("off")
    first, _ = run(tmp_path / "kept")
    kept = sorted((tmp_path / "kept" / "jdepth").iterdir())
    assert kept
    again, said = run(tmp_path / "kept")
    assert fresh == first == again and said == ""
    assert sorted((tmp_path / "kept" / "jdepth").iterdir()) == kept
    # Of a start that was killed while it wrote: compiled anew.
    for file in kept:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert run(tmp_path / "kept")[0] == fresh


def test_a_kept_step_is_found_by_what_it_follows_from(tmp_path):
    cache = tmp_path / "kept"
    one, other = STEP.replace("CAUSE", "1"), STEP.replace("CAUSE", "2")
    fresh, said = run("off", one)
    assert said == "traced\n" and run(cache, one) == (fresh, said)
    (file,) = (path for path in (cache / "jdepth").iterdir() if len(path.name) == 64)
    before = file.read_bytes()
    assert run(cache, one) == (fresh.replace("None", "1.5"), "")  # not even traced
    # Of other causes, but the same to JAX: XLA could not write what it has read, so only JAX keeps it.
    assert run(cache, other) == run(cache, other) == (fresh, "traced\n")
    assert len([path for path in (cache / "jdepth").iterdir() if len(path.name) == 64]) == 1
    # Of a start that was killed while it wrote, or by other means.
    file.write_bytes(before[: len(before) // 2])
    found, said = run(cache, one)
    assert found == fresh and "cannot be loaded" in said and said.endswith("traced\n") and not file.exists()


def test_a_kept_step_that_cannot_be_loaded_is_compiled(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compilation, "_folder", tmp_path)
    (tmp_path / "name").write_bytes(zlib.compress(pickle.dumps((2.0, b"", None, None))))
    kept = compilation.find("name")
    traced = jax.jit(lambda x: x + 1).trace(jax.ShapeDtypeStruct((), "float32"))
    program = compilation.compile_aside(lambda: traced, build(PICO).backbone, "name", kept.needed, kept).result()
    assert kept.needed == 2 and program(jax.numpy.float32(1)) == 2
    assert "cannot be loaded" in capsys.readouterr().err and not (tmp_path / "name").exists()


def test_a_key_follows_causes_settings_and_flags(monkeypatch):
    before = compilation.key("step", {"a": 1, "b": 2})
    assert compilation.key("step", {"b": 2, "a": 1}) == before
    assert compilation.key("step", {"a": 1, "b": 3}) != before
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
        assert compilation.key("step", {"a": 1, "b": 2}) != before
    highest = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        assert compilation.key("step", {"a": 1, "b": 2}) != before
    finally:
        jax.config.update("jax_default_matmul_precision", highest)


def train(cache, workdir, seed) -> bytes:
    """The rows of two steps."""
    environment = os.environ | {compilation.VARIABLE: str(cache), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    changes = ["steps=2", "log.every=1", "evaluate.every=2", "checkpoint.every=2"]
    flags = [f"--config.{change}" for change in (*changes, f"seed={seed}", f"workdir={workdir}")]
    command = [sys.executable, "-m", "jdepth.main", "--config", "tests/tiny_config.py", *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return (workdir / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_the_kept_step_of_one_run_is_that_of_another_seed(tmp_path):
    train(tmp_path / "kept", tmp_path / "first", seed=0)
    (file,) = (path for path in (tmp_path / "kept" / "jdepth").iterdir() if len(path.name) == 64)
    written = file.stat().st_mtime_ns
    for known_to_jax in (tmp_path / "kept" / "jdepth").glob("jit_*"):
        known_to_jax.unlink()
    assert train(tmp_path / "kept", tmp_path / "second", seed=1) == train("off", tmp_path / "alone", seed=1)
    assert file.stat().st_mtime_ns == written  # it was not compiled again


def test_a_program_is_compiled_aside(capsys):
    traced = jax.jit(lambda x: x + 1).trace(jax.ShapeDtypeStruct((), "float32"))
    aside = lambda kernel: compilation.compile_aside(  # noqa: E731
        lambda: traced, build(PICO, attention=kernel).backbone, "name", 0.0
    ).result()
    assert aside("plain")(jax.numpy.float32(1)) == 2
    assert not capsys.readouterr().err
    aside("cudnn")
    assert "cuDNN was chosen, but the compiled step does not call it" in capsys.readouterr().err


def test_a_key_follows_the_code_that_runs_and_flags_of_a_file(tmp_path, monkeypatch):
    flags, keys = tmp_path / "flags", []
    monkeypatch.setenv("XLA_FLAGS", str(flags))
    for value in ("true", "false"):
        flags.write_text(f"--xla_cpu_enable_fast_math={value}")
        keys.append(compilation.key(losses.LOSSES))
    keys.append(compilation.key(losses.LOSSES | {"silog": losses.mse}))
    # As text that grew from an empty variable, too long for a file's name.
    monkeypatch.setenv("XLA_FLAGS", " --xla_cpu_enable_fast_math=true" * 20)
    keys.append(compilation.key(losses.LOSSES))
    assert len(set(keys)) == 4
    # Sources that change while a process runs are not what it runs.
    monkeypatch.setattr(compilation, "_code", lambda: "another")
    assert compilation.key(losses.LOSSES) == keys[-1]


def test_only_functions_of_our_own_have_a_key():
    """What others do may follow from anything: other modules, values they hold, functions they wrap."""
    assert compilation.covers(losses.LOSSES.values()) and compilation.covers(tasks.TASKS.values())
    weight = 2.0
    wrapped = functools.wraps(losses.mse)(lambda *given: losses.mse(*given))
    wrapped.__code__ = losses.mse.__code__  # as if of our own file
    for foreign in (lambda x: x, lambda x: weight * x, functools.partial(losses.mse), wrapped, jax.jit(losses.mse)):
        assert not compilation.covers([losses.mse, foreign])


def test_a_kept_step_that_others_can_write_to_is_not_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compilation, "_folder", tmp_path)
    (tmp_path / "name").write_bytes(zlib.compress(pickle.dumps((2.0, b"", None, None))))
    (tmp_path / "name").chmod(0o664)
    assert compilation.find("name") is None and "can be written by them" in capsys.readouterr().err
    (tmp_path / "name").chmod(0o600)
    (tmp_path / "name").write_bytes(zlib.compress(b"no pickle"))
    assert compilation.find("name") is None and "made again" in capsys.readouterr().err
    assert compilation.find("name") is None and not capsys.readouterr().err


def test_a_folder_is_closed_to_others(unset, tmp_path, monkeypatch):
    """Ours, in the one that was named: that one stays as it is."""
    (tmp_path / "named").mkdir(mode=0o755)
    (tmp_path / "named" / "jdepth").mkdir(mode=0o750)
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path / "named"))
    compilation.keep_programs()
    assert (tmp_path / "named").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "named" / "jdepth").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_closed_is_not_used(unset, tmp_path, monkeypatch, capsys):
    def refuse(self, mode):
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "jdepth").mkdir(mode=0o755)
    monkeypatch.setenv(compilation.VARIABLE, str(tmp_path))
    monkeypatch.setattr(compilation.Path, "chmod", refuse)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    assert "cannot be closed to others (Operation not permitted)" in capsys.readouterr().err


def test_a_user_without_a_home_keeps_nothing(unset, monkeypatch, capsys):
    def nowhere(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compilation.Path, "expanduser", nowhere)
    compilation.keep_programs()
    assert jax.config.jax_compilation_cache_dir is None
    assert "no home folder" in capsys.readouterr().err
