"""jdepth: monocular depth with frozen vision backbones and auxiliary tasks, in JAX and Flax.

    import jdepth
    predict = jdepth.load("runs/quickstart")
    depth = predict("photo.jpg").values  # (H, W) float32, metres

Importing this module imports no jax; `load` does.
"""

__version__ = "0.1.0"
__all__ = ["UserError", "load"]

from jdepth.errors import UserError


def __getattr__(name: str):
    if name == "load":
        from jdepth.predictor import load

        return load
    raise AttributeError(f"module 'jdepth' has no attribute {name!r}")
