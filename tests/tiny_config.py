"""A run of seconds: the quickstart on a backbone of four narrow blocks, with 16 rooms.

A config file for the command line (`--config tests/tiny_config.py`) and, through `plain`, for one process.
"""

import runpy
from pathlib import Path

from jdepth import config
from jdepth.models import vit
from jdepth.weights import catalogue

ROOT = Path(__file__).resolve().parents[1]
PICO = vit.ViTConfig(name="vit_pico14", width=32, depth=4, heads=2, hidden=64, taps=(0, 1, 2, 3), grid=4)
PICO_SIZE = catalogue.Size(width=32, depth=4, hidden=64, grid=4)
ROOMS, CROP = (48, 64), (28, 42)
CHANGES = {
    "steps": 40,
    "batch": {"depth": 2, "auxiliary": 2},
    "backbone": {"name": PICO.name},
    "decoder": {"channels": 8},
    "data": {
        "depth": {"rooms": 16, "rooms_size": ROOMS, "augmentation": {"crop": CROP}},
        "auxiliary": {
            "rooms": 16,
            "rooms_size": ROOMS,
            "augmentation": {"scale": (64, 48), "crop": CROP, "canvas": CROP},
        },
    },
    "evaluate": {"rooms": 6, "batch": 4, "every": 20, "during_limit": 6, "pictures": 0},
    "checkpoint": {"every": 10},
    "log": {"every": 5, "tensorboard": False},
}


def build():
    """The ConfigDict."""
    result = runpy.run_path(str(ROOT / "configs" / "quickstart.py"))["get_config"]()
    result.update(CHANGES)
    return result


def get_config():
    """For the command line: also makes the narrow backbone known to the process."""
    vit.BACKBONES[PICO.name] = PICO
    catalogue.SIZES[PICO.name] = PICO_SIZE
    return build()


def plain(workdir, **changes):
    """The checked config as a plain dict, with changes given as "a.b" keys."""
    result = build()
    result.update_from_flattened_dict(changes | {"workdir": str(workdir)})
    result = config.as_dict(result)
    config.check(result)
    return result
