"""A trained or released model, ready to use: `load(path)(image) -> Prediction`.

A path is a run's workdir (its best parameters) or a converted file that holds a complete depth model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdepth import config as config_module
from jdepth import families, scoring
from jdepth.errors import UserError
from jdepth.images import read_image
from jdepth.models import attention, depth_model
from jdepth.models.depth_model import DepthModel
from jdepth.preparation import Preparation
from jdepth.weights.catalogue import WeightsInfo

METRIC, RELATIVE = "metric depth", "relative disparity"


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image; `np.asarray(prediction)` gives the values.

    Attributes:
      values: (H, W) float32 at the image's own size: metres, or disparity, which is larger where it is nearer
        and known only up to a scale and a shift of its own for every image.
      kind: "metric depth" or "relative disparity".
    """

    values: np.ndarray
    kind: str

    @property
    def unit(self) -> str | None:
        """"m", or None where values have none."""
        return "m" if self.kind == METRIC else None

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.values, dtype, copy=copy)


@dataclass(frozen=True)
class Predictor:
    """Depth of images.

    Attributes:
      name: model or run that the parameters come from.
      model, params: network and {"backbone", "decoder", "depth_head"[, "auxiliary_head"]}.
      info: what the parameters are; of a run as if they were a released file.
      preparation: how images are brought to the network.
      align_corners: how maps are resized to the image's size.
      clamp: whether predictions are clamped to the range before that.
      config: the run's config; None for released weights.
    """

    name: str
    model: DepthModel
    params: Mapping[str, Any] = field(repr=False)
    info: WeightsInfo
    preparation: Preparation = Preparation()
    align_corners: bool = False
    clamp: bool = True
    config: Mapping[str, Any] | None = None
    _programs: dict = field(default_factory=dict, repr=False)

    @property
    def min_depth(self) -> float | None:
        """Metres that a metric model can predict at least; None for a relative one."""
        return self.info.min_depth

    @property
    def max_depth(self) -> float | None:
        """Metres that a metric model can predict at most; None for a relative one."""
        return self.info.max_depth

    @property
    def kind(self) -> str:
        """"metric depth" or "relative disparity"."""
        return RELATIVE if self.max_depth is None else METRIC

    def __call__(self, image, flip: bool = False) -> Prediction:
        """Depth of one image at the image's own size.

        Args:
          image: path, Pillow image, or (H, W, 3) uint8 RGB array; see `read_image`.
          flip: average with the prediction for the mirror image.

        Compiles once per image size and keeps the last `scoring.MOST_COMPILED` sizes. Raises UserError for what is
        not an image, and where the program needs more memory than is free.
        """
        return self.batch([image], flip)[0]

    def batch(self, images: Sequence, flip: bool = False, rows: int | None = None) -> list[Prediction]:
        """The same for several images of one size at once; `rows`: of the compiled program, which is filled up
        by repetition, so that a last, smaller batch needs no program of its own."""
        pixels = [read_image(image) for image in images]
        sizes = {image.shape[:2] for image in pixels}
        if len(sizes) > 1:
            raise UserError(f"images of different sizes in one batch: {', '.join(map(str, sorted(sizes)))}")
        (size,) = sizes
        inputs = [self.preparation(image) for image in pixels]
        rows = max(rows or 0, len(inputs))
        shape = jax.ShapeDtypeStruct((rows, *inputs[0].shape), inputs[0].dtype)
        program = self._program(flip)(self.params, shape, size)
        inputs += [inputs[-1]] * (rows - len(inputs))
        maps = np.asarray(program(self.params, jnp.asarray(np.stack(inputs))), np.float32)[: len(pixels)]
        if not np.isfinite(maps).all():
            raise UserError(f"{self.name}: predicts values that are not finite; are its weights damaged?")
        return [Prediction(values, self.kind) for values in maps]

    def _program(self, flip: bool) -> Callable:
        """The `scoring.programs` of this model."""
        if flip not in self._programs:
            limits = (self.min_depth, self.max_depth) if self.clamp else (None, None)
            forward = scoring.depth_forward(self.model, *limits, flip, self.align_corners)
            self._programs[flip] = scoring.programs(forward, self.name)
        return self._programs[flip]


def load(
    path: str | Path,
    *,
    backbone: str | Path | None = None,
    model: str | None = None,
    kind: str = "best",
    portable: bool = False,
) -> Predictor:
    """A predictor from a run's workdir or a weights file.

    Args:
      path: workdir of a run, a converted file, or a released depth head together with `backbone`.
      backbone: file of the frozen backbone, where `path` does not hold it or its file has moved.
      model: which released model a file is, where its tensors leave it open.
      kind: "best" or "last" checkpoint of a run.
      portable: float32 and plain attention whatever the device and the run's config, for export.

    Raises UserError for anything that is not a complete depth model, for `model` beside a run and for "last"
    beside a file.
    """
    if kind not in ("best", "last"):
        raise UserError(f"kind {kind!r}: choose best or last")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected a run's workdir or a weights file")
    if _is_run(path):
        if model is not None:
            raise UserError(f"{path}: is a run, whose config says what its model is; leave --model out")
        return _from_run(path, backbone, kind, portable)
    around = next((folder for folder in list(path.absolute().parents)[:4] if _is_run(folder)), None)
    if around is not None and path.is_dir():
        raise UserError(f"{path}: lies within a run; name the run's folder {around}, and --kind best or last")
    if kind != "best":
        raise UserError(f"{path}: is not a run, so it has no {kind} checkpoint; leave --kind out")
    return _from_file(path, backbone, model, portable)


def _is_run(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "checkpoints").is_dir()


def _from_run(workdir: Path, backbone: str | Path | None, kind: str, portable: bool) -> Predictor:
    from jdepth import checkpoint, experiment, weights

    config = config_module.read_json(workdir / "config.json")
    if any(config["population"].values()):
        inside = " or ".join(sorted(str(path) for path in (workdir / "members").glob("*/")))
        raise UserError(f"{workdir}: is a population; name one of its members: {inside}")
    if portable:
        own = {**config["backbone"], "attention": "plain", "float8": ()}
        config = {**config, "precision": "float32", "backbone": own}
    model = experiment.build_model(config, "any" if portable else None)
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
        params["backbone"] = depth_model.cast_frozen(loaded, model.backbone.dtype, model.backbone.float8)
    size = trained_size(config)
    area, averaged = size and size[0] * size[1], config["data"]["depth"]["augmentation"]["resize_area"]
    name = workdir.resolve().name
    return Predictor(
        name=f"{name} ({kind})",
        model=model,
        params=params,
        info=weights.WeightsInfo(
            family="dinov2_dpt",
            model=name,
            backbone=config["backbone"]["name"],
            channels=config["decoder"]["channels"],
            min_depth=config["depth_range"]["min"],
            max_depth=config["depth_range"]["max"],
            source=name,
            licence="that of the data and the backbone it was trained on",
            input_area=area,
            area_averaged=averaged,
        ),
        preparation=Preparation(area=area, shrink_by_area=averaged),
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
    rendered = given["rooms_size"] if given["name"] == "rooms" else ()
    return tuple(config["evaluate"]["input_size"] or given["augmentation"]["resize"] or rendered) or None


def _from_file(path: Path, backbone: str | Path | None, model: str | None, portable: bool) -> Predictor:
    from jdepth import weights

    loaded = weights.load(path, model)
    params, info = dict(loaded.params), loaded.info
    if "depth_head" not in params:
        raise UserError(f"{path}: holds the backbone {info.model} only; a depth model needs decoder and head too")
    if backbone is not None and "backbone" in params:
        raise UserError(f"{path}: holds its backbone already; leave --backbone out")
    if backbone is not None:
        given = weights.load(backbone, parts=("backbone",))
        weights.check_belongs(info, given.info, path, backbone)
        params["backbone"] = given.params["backbone"]
    if "backbone" not in params:
        raise UserError(
            f"{path}: holds {info.model} without its backbone: name its file with "
            f"--backbone ({info.backbone}_pretrain.pth), or join both once with jdepth.convert --backbone"
        )
    half = jax.default_backend() == "gpu" and not portable
    dtype = jnp.bfloat16 if half else jnp.float32
    family = families.build(info, dtype, "plain" if portable else attention.choose("auto", dtype))
    if half:
        params["backbone"] = depth_model.cast_frozen(params["backbone"], dtype)
    return Predictor(
        info.model, family.model, jax.device_put(params), info, family.preparation, family.align_corners, family.clamp
    )
