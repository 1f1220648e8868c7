"""What tests of the commands share: a short run, a depth model's file, a folder of images, one call.

The fixtures are registered in conftest.py and made once per session. Compiling costs most of such a test:
it is done without optimisation and kept.
"""

import contextlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from tiny_config import PICO, PICO_SIZE, plain

from jdepth import command_line, weights
from jdepth.models import vit
from jdepth.weights import catalogue

# Two steps, saved and evaluated after each.
SHORT = {"steps": 2, "log.every": 1, "checkpoint.every": 1, "evaluate.every": 1, "evaluate.rooms": 3}
HEIGHT, WIDTH = 30, 42


@contextlib.contextmanager
def quickly(cache: Path):
    """The narrow backbone is known, nothing is optimised, and what is compiled is kept in `cache`."""
    wanted = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {key: jax.config.values[key] for key in wanted}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vit.BACKBONES, PICO.name, PICO)
        patch.setitem(catalogue.SIZES, PICO.name, PICO_SIZE)
        try:
            _configure(wanted)
            yield
        finally:
            _configure(before)


def _configure(settings: dict) -> None:
    for key, value in settings.items():
        jax.config.update(key, value)
    # Whether there is a cache was settled by the process's first compilation.
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> Path:
    """Folder of everything compiled in this session."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def quick(compiled):
    """`quickly`, for all tests of a module."""
    with quickly(compiled):
        yield


@pytest.fixture(scope="session")
def run(compiled, tmp_path_factory) -> Path:
    """Workdir of a finished run; not to be changed."""
    from jdepth import train

    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    with quickly(compiled):
        train.train(plain(workdir, **SHORT))
    return workdir


@pytest.fixture(scope="session")
def model_file(compiled, tmp_path_factory) -> Path:
    """A complete depth model in one file, with random parameters; not to be changed."""
    from jdepth import experiment

    path = tmp_path_factory.mktemp("files") / "tiny.safetensors"
    info = weights.WeightsInfo("dinov2_dpt", "tiny_dpt", PICO.name, 8, 0.001, 10.0, "test", "none")
    with quickly(compiled):
        config = plain(path.parent, alpha=1.0)
        params = jax.device_get(experiment.fresh_params(config, experiment.build_model(config), []))
        # The final layer starts near zero: make the picture matter.
        params["depth_head"]["conv3"]["kernel"] = np.full_like(params["depth_head"]["conv3"]["kernel"], 3.0)
        weights.save(path, params, info)
    return path


def save_backbone(path: Path, name: str = PICO.name, seed: int = 1) -> Path:
    """A backbone file with random parameters."""
    model = vit.VisionTransformer(vit.BACKBONES[name])
    images = jax.ShapeDtypeStruct((1, 28, 28, 3), np.float32)
    params = model.lazy_init(jax.random.key(seed), images, final_norm=True)["params"]
    info = weights.WeightsInfo("dinov2", name, name, None, None, None, "test", "none")
    weights.save(path, {"backbone": jax.device_get(params)}, info)
    return path


def call(command, *arguments) -> int:
    """Exit code of a command, run in this process."""
    # ml_collections loads every config file as the same module and would find the last one's function.
    sys.modules.pop("config_config", None)
    return command_line.call(command.main, command.USAGE, command.define, ["jdepth", *map(str, arguments)])


def refused(capsys, command, *arguments, code: int = 2) -> str:
    """The one line on standard error with which a command refuses its arguments."""
    capsys.readouterr()
    assert call(command, *arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """(height, width, 3) uint8: coloured noise in blocks."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return coarse.repeat(6, 0).repeat(6, 1)[:height, :width]


def folder_set(path: Path, train_images: int = 4, depth: bool = True, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """A described folder with images, depth in millimetres and labels of three classes; returns the description."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train_images), ("val", 2)):
        for number in range(count):
            for kind in ("rgb", "depth", "label"):
                (path / split / kind).mkdir(parents=True, exist_ok=True)
            name = f"a{number}.png"
            Image.fromarray(picture(number, height, width)).save(path / split / "rgb" / name)
            metres = rng.uniform(1, 5) * np.ones((height, width))
            Image.fromarray((metres * 1000).astype(np.uint16)).save(path / split / "depth" / name)
            Image.fromarray(rng.integers(0, 3, (height, width), dtype=np.uint8)).save(path / split / "label" / name)
    fields = {
        "name": "made",
        "image": "{split}/rgb/{id}.png",
        "label": {"file": "{split}/label/{id}.png", "classes": ["wall", "floor", "bed"]},
        "splits": {"train": {"glob": "*"}, "val": {"glob": "*"}},
    }
    if depth:
        fields["depth"] = {"file": "{split}/depth/{id}.png", "scale": 0.001, "max": 10}
    (path / "dataset.json").write_text(json.dumps(fields))
    return path / "dataset.json"
