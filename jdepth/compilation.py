"""Compiled programs, kept between starts, and compiled while something else is done."""

import hashlib
import os
import platform
import stat
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax

from jdepth import kernels
from jdepth.models.vit import VisionTransformer

# Names another folder for compiled programs, or "off".
VARIABLE = "JDEPTH_COMPILATION_CACHE"
# Smaller programs are compiled as fast as they are found and read.
LEAST_SECONDS = 0.1


def keep_programs() -> None:
    """Keep what is compiled from now on, for later starts; to be called before the first computation.

    In ~/.cache/jdepth (XDG_CACHE_HOME) or the folder that JDEPTH_COMPILATION_CACHE names; "off" keeps nothing. Where
    JAX was given a cache of its own (JAX_COMPILATION_CACHE_DIR), that one is used as it is. What lies there is run:
    a folder that others can write to is left alone, with a line on standard error.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off" or jax.config.jax_compilation_cache_dir:
        return
    folder = Path(wanted).expanduser() if wanted else _default_folder()
    obstacle = _obstacle(folder)
    if obstacle:
        print(f"{folder}: {obstacle}, so compiled programs are not kept; set {VARIABLE} to another", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def _default_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(root) if os.path.isabs(root) else Path("~/.cache").expanduser()
    return root / "jdepth" / f"xla-{jax.__version__}-{_instructions()}"


def _instructions() -> str:
    """Short name of what this processor can execute: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        known = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {known}".encode()).hexdigest()[:8]


def _obstacle(folder: Path) -> str | None:
    """Makes the folder; why it cannot be used, or None."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except (OSError, RuntimeError) as error:
        return f"cannot be made ({getattr(error, 'strerror', None) or error})"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "belongs to others or can be written by them"
    return None if os.access(folder, os.W_OK | os.X_OK) else "cannot be written"


def compile_aside(traced: jax.stages.Traced, backbone: VisionTransformer) -> "Future[jax.stages.Compiled]":
    """Start to compile a traced program in a thread; the future gives it, or raises what kept it from compiling.

    Says on standard error where its text lacks kernels that the backbone counts on.
    """

    def compiled():
        program = traced.lower().compile()
        if backbone.attention == "cudnn" or backbone.float8:
            for line in kernels.missing(program.as_text(), backbone):
                print(line, file=sys.stderr)
        return program

    pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
    try:
        return pool.submit(compiled)
    finally:
        pool.shutdown(wait=False)
