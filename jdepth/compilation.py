"""Compiled programs, kept between starts, and compiled or loaded while something else is done.

One folder, two ways: JAX keeps every program under its text, so that a later start must trace and lower it to find it.
The joint step, for which that takes seconds, is kept under what it follows from (`key`) as well.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import pickle
import platform
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.monitoring
import jaxlib
import numpy as np
import optax
from jax.experimental import serialize_executable

from jdepth import kernels
from jdepth.models.vit import VisionTransformer

# Names another folder for compiled programs, or "off".
VARIABLE = "JDEPTH_COMPILATION_CACHE"
# Smaller programs are compiled as fast as they are found and read.
LEAST_SECONDS = 0.1
SOURCES = Path(__file__).parent
# Where programs are kept under their keys: set by `keep_programs`, once it has looked at the folder.
_folder: Path | None = None


def keep_programs() -> None:
    """Keep what is compiled from now on, for later starts; to be called before the first computation.

    In ~/.cache/jdepth (XDG_CACHE_HOME) or in jdepth/ of the folder that JDEPTH_COMPILATION_CACHE names; "off" keeps
    nothing. Where JAX was given a cache of its own (JAX_COMPILATION_CACHE_DIR), that one is used as it is. What lies
    there is run: a folder that others can write to is left alone, with a line on standard error, and ours is closed to
    others.
    """
    global _folder
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off" or jax.config.jax_compilation_cache_dir:
        return
    folder, obstacle = Path(wanted or "~/.cache/jdepth"), None
    try:
        if wanted:
            folder = Path(wanted).expanduser()
            obstacle = _obstacle(folder)
        folder = folder / "jdepth" if wanted else _default_folder()
    except RuntimeError:  # as in a container
        obstacle = "this user has no home folder"
    obstacle = obstacle or _obstacle(folder, ours=True)
    if obstacle:
        print(f"{folder}: {obstacle}, so compiled programs are not kept; set {VARIABLE} to another", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    _folder = folder


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


def _obstacle(folder: Path, ours: bool = False) -> str | None:
    """Makes the folder; why it cannot be used, or None."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        return f"cannot be made ({error.strerror or error})"
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "belongs to others or can be written by them"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "cannot be written"
    if ours and stat.S_IMODE(found.st_mode) & 0o077:  # files in it may have been made for a group to write
        try:
            folder.chmod(0o700)
        except OSError as error:
            return f"cannot be closed to others ({error.strerror or error})"
    return None


def _code() -> str:
    """Checksum of jdepth's sources."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.rglob("*.py")):
        digest.update(f"{source.relative_to(SOURCES)} {source.stat().st_size}\n".encode() + source.read_bytes())
    return digest.hexdigest()


# Of what this process runs: the files may change while it does.
CODE = _code()


def key(*causes: Any) -> str:
    """Name of the program that follows from `causes`, from this code, and from what it runs on.

    Causes count by their JSON, functions by their name (see `covers`), other objects by their repr.
    """
    around = {
        "code": CODE,
        "versions": [sys.version, *(module.__version__ for module in (jax, jaxlib, flax, optax, np)), *_device_packages()],
        "settings": sorted(jax.config.values.items()),
        "flags": [_flags(os.environ.get(name, "")) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")],
        "devices": [(device.id, device.device_kind) for device in jax.devices()],
        "platform": (jax.devices()[0].client.platform_version, _instructions()),
        "causes": causes,
    }
    return hashlib.sha256(json.dumps(around, sort_keys=True, default=_text).encode()).hexdigest()


def covers(functions: Iterable[Callable]) -> bool:
    """Whether `CODE` says all that these functions do: they are plain functions of jdepth's sources. Others may take
    anything from anywhere, so what they are part of is not kept under a key."""
    return all(
        hasattr(function, "__code__")
        and not hasattr(function, "__wrapped__")
        and not function.__closure__
        and Path(function.__code__.co_filename).is_relative_to(SOURCES)
        for function in functions
    )


def _device_packages() -> list[str]:
    """Names and versions of the libraries that a compiled program calls on a device."""
    installed = ((found.metadata["Name"] or "", found.version) for found in importlib.metadata.distributions())
    return sorted(f"{name} {version}" for name, version in installed if name.startswith(("jax-", "nvidia-", "libtpu")))


def _flags(value: str) -> str:
    """Flags, also those of a file that is named in their place."""
    value = value.strip()
    try:
        return value if value.startswith("-") else Path(value).read_text(errors="replace")
    except (OSError, ValueError):  # no file
        return value


def _text(cause: Any) -> str:
    return f"{cause.__module__}.{cause.__qualname__}" if hasattr(cause, "__code__") else repr(cause)


class Kept(NamedTuple):
    """A program that an earlier start kept.

    Attributes:
      needed: bytes that it was estimated to need before it was compiled.
      program: what loading it gives; None where it cannot be loaded.
    """

    needed: float
    program: "Future[jax.stages.Compiled | None]"


def find(name: str) -> Kept | None:
    """The program kept under the key `name`, which a thread now loads; None where there is none, or not all of it, or
    `name` is empty."""
    if not name or not _keeps():
        return None
    file = _folder / name
    try:
        with file.open("rb") as opened:
            found = os.fstat(opened.fileno())
            if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                print(f"{file}: belongs to others or can be written by them, and is not used", file=sys.stderr)
                return None
            needed, *parts = pickle.loads(zlib.decompress(opened.read()))
    except FileNotFoundError:
        return None
    except Exception as error:  # of a start that was killed, or of a damaged disk
        return _not_loaded(file, error)

    def loaded():
        try:
            return serialize_executable.deserialize_and_load(*parts)
        except Exception as error:  # whatever a backend says of bytes that it does not take
            return _not_loaded(file, error)

    return Kept(needed, _aside(loaded))


def _not_loaded(file: Path, error: Exception) -> None:
    print(f"{file}: cannot be loaded ({error}); it is deleted, and the program made again", file=sys.stderr)
    with contextlib.suppress(OSError):
        file.unlink()


def compile_aside(
    trace: Callable[[], jax.stages.Traced],
    backbone: VisionTransformer,
    name: str,
    needed: float,
    kept: Kept | None = None,
) -> "Future[jax.stages.Compiled]":
    """The kept program, otherwise what a thread now compiles of `trace()` and keeps under the key `name`, if there is
    one; the future gives it, or raises what kept it from compiling.

    Says on standard error where its text lacks kernels that the backbone counts on.
    """

    def compiled():
        program = kept.program.result() if kept else None
        if program is None:
            with _newly_compiled() as new:
                program = trace().lower().compile()
            if new and name and _keeps():
                _aside(_keep, name, program, needed)
        if backbone.attention == "cudnn" or backbone.float8:
            for line in kernels.missing(program.as_text() or "", backbone):
                print(line, file=sys.stderr)
        return program

    return _aside(compiled)


def _aside(work: Callable, *arguments: Any) -> Future:
    pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
    try:
        return pool.submit(work, *arguments)
    finally:
        pool.shutdown(wait=False)


def _keeps() -> bool:
    """Processes that compile wait for each other, in vain where some have the program and others have not."""
    return _folder is not None and jax.process_count() == 1


@contextlib.contextmanager
def _newly_compiled() -> Iterator[list[str]]:
    """Gets an entry for every program that this thread compiles and JAX keeps. One that JAX had kept gets none: what
    XLA for CPUs has read it writes without some of its functions, which shows when it is run."""
    found, thread = [], threading.get_ident()

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_misses" and threading.get_ident() == thread:
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _keep(name: str, program: jax.stages.Compiled, needed: float) -> None:
    unfinished = None
    try:
        text = zlib.compress(pickle.dumps((needed, *serialize_executable.serialize(program))), level=1)
        with tempfile.NamedTemporaryFile(dir=_folder, prefix=f"{name}.", delete=False) as file:
            unfinished = Path(file.name)
            file.write(text)
        unfinished.replace(_folder / name)
    except Exception as error:  # a full disk, or whatever a backend says of a program that it cannot write
        print(f"{_folder}: the compiled step is not kept ({error})", file=sys.stderr)
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
