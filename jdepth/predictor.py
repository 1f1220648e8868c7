"""A trained or released model, ready to use: `load(path)(image) -> depth`.

A path is a run's workdir (its best parameters) or a converted file that holds a complete depth model.
"""

import logging
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jdepth import config as config_module
from jdepth import scoring
from jdepth.data import geometry
from jdepth.errors import UserError
from jdepth.models import attention, depth_model
from jdepth.models.depth_model import DepthModel

# Larger images are shrunk to it for released models, which otherwise see images at their own size.
MOST_PIXELS = 1_500_000
# Each image size has compiled code of its own, 20 MB and more: a folder of photos, each cropped by hand, adds up.
MOST_COMPILED = 32

# What Pillow's readers raise on damaged and hostile files, on opening as well as on decoding.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Predictor:
    """Metric depth of single images.

    Attributes:
      name: model or run that the parameters come from.
      model, params: network and {"backbone", "decoder", "depth_head"[, "auxiliary_head"]}.
      min_depth, max_depth: metres that predictions are clamped to.
      input_area: pixels that images are brought to before the network, aspect ratio kept; None: own size, at
        most `MOST_PIXELS`.
      shrink_by_area: average areas where that shrinks an image.
      config: the run's config; None for released weights.
    """

    name: str
    model: DepthModel
    params: Mapping[str, Any] = field(repr=False)
    min_depth: float
    max_depth: float
    input_area: int | None = None
    shrink_by_area: bool = False
    config: Mapping[str, Any] | None = None
    _forwards: dict = field(default_factory=dict, repr=False)

    def __call__(self, image, flip: bool = False) -> np.ndarray:
        """Depth (H, W) float32 in metres at the image's own size.

        Args:
          image: path, Pillow image, or (H, W, 3) uint8 RGB array; see `read_image`.
          flip: average with the prediction for the mirror image.

        Compiles once per image size and keeps the last `MOST_COMPILED` sizes. Raises UserError for what is not an
        image.
        """
        pixels = read_image(image)
        height, width = pixels.shape[:2]
        network_input = geometry.resize(pixels, self._input_size(height, width), area=self.shrink_by_area)
        forward = self._forward(height, width, flip)
        depth = forward(self.params, jnp.asarray(network_input[None]), (height, width))
        return np.asarray(depth[0], np.float32)

    def _forward(self, height: int, width: int, flip: bool) -> Callable:
        key = height, width, flip
        if key not in self._forwards:
            if len(self._forwards) >= MOST_COMPILED:
                del self._forwards[next(iter(self._forwards))]
            self._forwards[key] = scoring.depth_forward(self.model, self.min_depth, self.max_depth, flip)
        return self._forwards[key]

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        area = self.input_area
        if area is None:
            if height * width <= MOST_PIXELS:
                return height, width
            # Attention grows with the square of the area: 12 megapixels would take 86 GB per block of ViT-S.
            area = MOST_PIXELS
            logging.warning("image of %d×%d shrunk to %.1f megapixels for the network", height, width, area / 1e6)
        factor = math.sqrt(area / (height * width))
        return max(1, round(height * factor)), max(1, round(width * factor))


def read_image(image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, Pillow image or array; upright as its EXIF tag says.

    Grey is repeated, alpha dropped, and of 16 bits the upper eight are taken, as in training. Raises
    UserError for anything else, such as floating-point pixels, whose range nothing tells.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise UserError(f"image array of shape {image.shape} and type {image.dtype}: expected (H, W, 3) uint8 RGB")
        return image
    if isinstance(image, Image.Image):
        return _pixels(image, "image")
    if not isinstance(image, str | Path):
        raise UserError(f"image of type {type(image).__name__}: expected a path, a Pillow image or a NumPy array")
    try:
        with Image.open(image) as opened:
            return _pixels(opened, str(image))
    except FileNotFoundError as error:
        raise UserError(f"{image}: no such file") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{image}: not an image file") from error
    except _DAMAGE as error:
        raise UserError(f"{image}: not a readable image ({error})") from error


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            values = np.asarray(upright)
            if values.min() < 0 or values.max() > 65535:
                raise UserError(f"{name}: pixels from {values.min()} to {values.max()}, expected 8 or 16 bits")
            upright = Image.fromarray((values >> 8).astype(np.uint8))
        elif upright.mode == "F":
            raise UserError(f"{name}: floating-point pixels, expected 8 or 16 bits")
        return np.asarray(upright.convert("RGB"))
    except _DAMAGE as error:
        raise UserError(f"{name}: not a readable image ({error})") from error


def load(
    path: str | Path, *, backbone: str | Path | None = None, model: str | None = None, kind: str = "best"
) -> Predictor:
    """A predictor from a run's workdir or a weights file.

    Args:
      path: workdir of a run, a converted file, or a released depth head together with `backbone`.
      backbone: file of the frozen backbone, where `path` does not hold it or its file has moved.
      model: which released model a file is, where its tensors leave it open.
      kind: "best" or "last" checkpoint of a run.

    Raises UserError for anything that is not a complete depth model, for `model` beside a run and for "last"
    beside a file.
    """
    if kind not in ("best", "last"):
        raise UserError(f"kind {kind!r}: choose best or last")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected a run's workdir or a converted weights file")
    if _is_run(path):
        if model is not None:
            raise UserError(f"{path}: is a run, whose config says what its model is; leave --model out")
        return _from_run(path, backbone, kind)
    around = next((folder for folder in list(path.absolute().parents)[:4] if _is_run(folder)), None)
    if around is not None and path.is_dir():
        raise UserError(f"{path}: lies within a run; name the run's folder {around}, and --kind best or last")
    if kind != "best":
        raise UserError(f"{path}: is not a run, so it has no {kind} checkpoint; leave --kind out")
    return _from_file(path, backbone, model)


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def _from_run(workdir: Path, backbone: str | Path | None, kind: str) -> Predictor:
    from jdepth import checkpoint, experiment, weights

    config = config_module.read_json(workdir / "config.json")
    model = experiment.build_model(config)
    if kind == "best" and not checkpoint.steps(workdir, "best") and checkpoint.steps(workdir, "last"):
        raise UserError(f"{workdir}: nothing was evaluated yet, so there is no best checkpoint; use --kind last")
    params = checkpoint.read_any_params(workdir, kind)
    trained = config["backbone"]["train"] == "full"
    _check_shapes(params, jax.eval_shape(lambda: model.init(jax.random.key(0), (28, 28), trained)), workdir)
    if trained:
        if backbone is not None:
            raise UserError(f"{workdir}: has trained its own backbone; leave --backbone out")
    else:
        file = str(backbone or config["backbone"]["weights"])
        if not Path(file).exists():
            raise UserError(f"{workdir}: needs its frozen backbone, which is not at {file}; name it with --backbone")
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
        name=f"{workdir.resolve().name} ({kind})",
        model=model,
        params=params,
        min_depth=config["depth_range"]["min"],
        max_depth=config["depth_range"]["max"],
        input_area=size[0] * size[1] if size else None,
        shrink_by_area=config["data"]["depth"]["augmentation"]["resize_area"],
        config=config,
    )


def _check_shapes(params: Any, expected: Any, workdir: Path) -> None:
    """Raise UserError unless the parts that prediction needs are those of the model that the config describes."""
    held = dict(jax.tree_util.tree_leaves_with_path({part: params.get(part) for part in expected}))
    for path, array in jax.tree_util.tree_leaves_with_path(expected):
        found = held.pop(path, None)
        if found is None or found.shape != array.shape:
            raise UserError(
                f"{workdir}: its checkpoint is not of the model in its config.json: {jax.tree_util.keystr(path)} is "
                f"{'missing' if found is None else found.shape}, expected {array.shape}; put its own config.json back"
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
    if backbone is not None and "backbone" in params:
        raise UserError(f"{path}: holds its backbone already; leave --backbone out")
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
