"""A trained or released model, ready to use: `load(path)(image) -> depth`.

A path is a run's workdir (its best parameters) or a converted file that holds a complete depth model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from jdepth import config as config_module
from jdepth import scoring
from jdepth.data import geometry
from jdepth.errors import UserError
from jdepth.models import attention, depth_model
from jdepth.models.depth_model import DepthModel


@dataclass(frozen=True)
class Predictor:
    """Metric depth of single images.

    Attributes:
      name: model or run that the parameters come from.
      model, params: network and {"backbone", "decoder", "depth_head"[, "auxiliary_head"]}.
      min_depth, max_depth: metres that predictions are clamped to.
      input_area: pixels that images are brought to before the network, aspect ratio kept; None: own size.
      shrink_by_area: average areas where that shrinks an image.
      config: the run's config; None for released weights.
    """

    name: str
    model: DepthModel
    params: Mapping[str, Any]
    min_depth: float
    max_depth: float
    input_area: int | None = None
    shrink_by_area: bool = False
    config: Mapping[str, Any] | None = None
    _forwards: dict = field(default_factory=dict, repr=False)

    def __call__(self, image, flip: bool = False) -> np.ndarray:
        """Depth (H, W) float32 in metres at the image's own size.

        Args:
          image: path, Pillow image, or (H, W, 3) uint8 RGB array.
          flip: average with the prediction for the mirror image.

        Raises UserError for what is not an image.
        """
        pixels = read_image(image)
        height, width = pixels.shape[:2]
        network_input = geometry.resize(pixels, self._input_size(height, width), area=self.shrink_by_area)
        forward = self._forwards.setdefault(
            flip, scoring.depth_forward(self.model, self.min_depth, self.max_depth, flip)
        )
        return np.asarray(forward(self.params, jnp.asarray(network_input[None]), (height, width))[0], np.float32)

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        if self.input_area is None:
            return height, width
        factor = math.sqrt(self.input_area / (height * width))
        return max(1, round(height * factor)), max(1, round(width * factor))


def read_image(image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, Pillow image or array; upright as its EXIF tag says."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"image array of shape {image.shape} and type {image.dtype}: expected (H, W, 3) uint8 RGB")
        return image
    name = "image" if isinstance(image, Image.Image) else str(image)
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        opened = ImageOps.exif_transpose(opened)
        if opened.mode.startswith(("I", "F")):
            values = np.asarray(opened, np.float64)
            scale = 257.0 if values.max(initial=0) > 255 else 1.0
            opened = Image.fromarray(np.clip(values / scale, 0, 255).astype(np.uint8))
        return np.asarray(opened.convert("RGB"))
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name}: not a readable image ({error})") from error


def load(path: str | Path, *, backbone: str | Path | None = None, model: str | None = None, kind: str = "best") -> Predictor:
    """A predictor from a run's workdir or a weights file.

    Args:
      path: workdir of a run, a converted file, or a released depth head together with `backbone`.
      backbone: file of the frozen backbone, where `path` does not hold it or its file has moved.
      model: which released model a file is, where its tensors leave it open.
      kind: "best" or "last" checkpoint of a run.

    Raises UserError for anything that is not a complete depth model.
    """
    path = Path(path)
    if (path / "config.json").is_file() and (path / "checkpoints").is_dir():
        return _from_run(path, backbone, kind)
    if path.is_dir() and (path.parent / "config.json").is_file() and path.name == "checkpoints":
        return _from_run(path.parent, backbone, kind)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected a run's workdir or a converted weights file")
    return _from_file(path, backbone, model)


def _from_run(workdir: Path, backbone: str | Path | None, kind: str) -> Predictor:
    from jdepth import checkpoint, experiment, weights

    config = config_module.read_json(workdir / "config.json")
    model = experiment.build_model(config)
    params = checkpoint.read_any_params(workdir, kind)
    if config["backbone"]["train"] == "frozen":
        file = str(backbone or config["backbone"]["weights"])
        loaded = weights.load(file, parts=("backbone",), backbone=config["backbone"]["name"]).params["backbone"]
        found, expected = weights.fingerprint(loaded), checkpoint.read_clock(workdir)["backbone"]
        if found != expected:
            raise UserError(
                f"{file}: is not the backbone that {workdir} was trained on (fingerprint {found[:12]}, "
                f"expected {expected[:12]}); name the right file with --backbone"
            )
        params["backbone"] = depth_model.cast_frozen(loaded, model.backbone.dtype)
    size = trained_size(config)
    return Predictor(
        name=f"{workdir.name} ({kind})",
        model=model,
        params=params,
        min_depth=config["depth_range"]["min"],
        max_depth=config["depth_range"]["max"],
        input_area=size[0] * size[1] if size else None,
        shrink_by_area=config["data"]["depth"]["augmentation"]["resize_area"],
        config=config,
    )


def trained_size(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Size (height, width) that whole images had before cropping; None where it was their own."""
    given = config["data"]["depth"]
    return tuple(config["evaluate"]["input_size"] or given["augmentation"]["resize"] or given["rooms_size"]) or None


def _from_file(path: Path, backbone: str | Path | None, model: str | None) -> Predictor:
    from jdepth import weights

    loaded = weights.load(path, model)
    params, info = dict(loaded.params), loaded.info
    if "depth_head" not in params:
        raise UserError(f"{path}: holds the backbone {info.model} only; a depth model needs decoder and head too")
    if backbone is not None:
        params["backbone"] = weights.load(backbone, parts=("backbone",), backbone=info.backbone).params["backbone"]
    if "backbone" not in params:
        raise UserError(
            f"{path}: holds decoder and head of {info.model} without their backbone: name its file with "
            f"--backbone ({info.backbone}_pretrain.pth), or join both once with jdepth.convert --backbone"
        )
    on_gpu = jax.default_backend() == "gpu"
    dtype = jnp.bfloat16 if on_gpu else jnp.float32
    built = depth_model.build(
        info.backbone, channels=info.channels, dtype=dtype, attention=attention.choose("auto", dtype),
        min_depth=info.min_depth,
    )  # fmt: skip
    if on_gpu:
        params["backbone"] = depth_model.cast_frozen(params["backbone"], dtype)
    return Predictor(info.model, built, jax.device_put(params), info.min_depth, info.max_depth)
