"""A depth model as one file that runs without jdepth, or as transformers reads it.

    python -m jdepth.export --checkpoint PATH --size 518x518 --out DIR
    python -m jdepth.export --checkpoint PATH --format huggingface --out DIR
"""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from jdepth import command_line
from jdepth.errors import UserError

if TYPE_CHECKING:
    from jdepth.predictor import Predictor

USAGE = """Export a depth model.

  python -m jdepth.export --checkpoint depth_anything_v2_vits.pth --size 518x518 --out exported
      writes model.jax (a jax.export artefact for CPU, CUDA and TPU, any batch), params.npz and description.json,
      which says how to run it with jax alone
  python -m jdepth.export --checkpoint vits14_nyu.safetensors --format huggingface --out exported
      writes a folder for transformers: DPTForDepthEstimation (256 decoder channels, the released number) or
      DepthAnythingForDepthEstimation"""

PLATFORMS = ("cpu", "cuda", "tpu")
FILES = ("model.jax", "params.npz", "description.json")
RUN = """import jax, numpy as np
with open("model.jax", "rb") as file: model = jax.export.deserialize(file.read())
params = dict(np.load("params.npz"))
images = np.zeros((1, {height}, {width}, 3), np.uint8)  # RGB
values = model.call(params, images)  # (1, {height}, {width}) float32"""


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "run's workdir or weights file", flag_values=values)
    flags.DEFINE_string("out", None, "folder for the results", flag_values=values)
    flags.DEFINE_enum("format", "jax", ["jax", "huggingface"], "what to write", flag_values=values)
    flags.DEFINE_string(
        "size", None, "HEIGHTxWIDTH of the artefact's images; by default what the model was trained at, else 518x518",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("backbone", None, "frozen backbone's file, where the checkpoint lacks it", flag_values=values)
    flags.DEFINE_string("model", None, "which released model the file is, where that is open", flag_values=values)
    flags.DEFINE_enum("kind", "best", ["best", "last"], "which checkpoint of a run", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Export what the flags name."""
    command_line.no_arguments(arguments)
    for flag in ("checkpoint", "out"):
        if not values[flag].value:
            raise UserError(f"--{flag}: is needed (see --help)")
    if values.format == "huggingface" and values.size:
        raise UserError("--size: transformers' models take any size; leave it out")
    size = _size(values.size) if values.size else None
    folder = Path(values.out)
    there = [name for name in FILES if (folder / name).exists()]
    if folder.exists() and (not folder.is_dir() or there):
        why = f"holds {there[0]} already" if there else "is a file"
        raise UserError(f"--out: {folder} {why}; name another")
    from jdepth import predictor

    model = predictor.load(
        values.checkpoint, backbone=values.backbone, model=values.model, kind=values.kind, portable=True
    )
    if values.format == "huggingface":
        _write_hugging_face(model, folder)
    else:
        size = size or _default_size(model)
        if model.preparation.least and any(side % 14 for side in size):
            raise UserError(f"--size: {size[0]}x{size[1]}, but {model.name} takes multiples of 14 only, such as 518x518")
        write(model, size, folder)
    print(f"{model.name} written to {folder}")


def write(model: "Predictor", size: tuple[int, int], folder: Path) -> None:
    """Write the jax.export artefact, its parameters and its description.

    Args:
      model: loaded with `portable`, so that it computes in float32 with plain attention, which every platform has.
      size: (height, width) of images and results.
    """
    import jax
    import numpy as np

    from jdepth import scoring, weights

    limits = (model.min_depth, model.max_depth) if model.clamp else (None, None)
    forward = scoring.depth_forward(model.model, *limits, False, model.align_corners)
    names = ("backbone", "decoder", "depth_head")
    flat = weights.flatten({name: model.params[name] for name in names if name in model.params})
    params = {name: np.asarray(array, np.float32) for name, array in flat.items()}

    def call(params, images):
        return forward(weights.unflatten(params), images, size)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in params.items()}
    images = jax.ShapeDtypeStruct((batch, *size, 3), np.uint8)
    exported = jax.export.export(jax.jit(call), platforms=PLATFORMS)(shapes, images)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "params.npz", **params)
        (folder / "description.json").write_text(json.dumps(describe(model, size), indent=2) + "\n", encoding="utf-8")
        # The artefact last and at once: a folder that has one is complete.
        temporary = folder / f".model.{os.getpid()}"
        temporary.write_bytes(exported.serialize())
        os.replace(temporary, folder / "model.jax")
    except OSError as error:
        raise UserError(f"--out: {folder} cannot be written ({error.strerror}); check space and permissions") from error


def describe(model: "Predictor", size: tuple[int, int]) -> dict:
    """What an artefact takes and gives, for people and programs without jdepth."""
    import jax

    from jdepth import __version__

    height, width = size
    return {
        "model": model.name,
        "kind": model.kind,
        "unit": "metres" if model.max_depth is not None else "none: larger is nearer, up to a scale and a shift",
        "range": None if model.max_depth is None else [model.min_depth, model.max_depth],
        "images": {"shape": ["batch", height, width, 3], "type": "uint8", "channels": "RGB", "scale": "0 to 255"},
        "licence": model.info.licence,
        "values": {"shape": ["batch", height, width], "type": "float32"},
        "preprocessing": f"resize to {height}x{width}, which this artefact is for; the model's own rule: "
        f"{model.preparation.describe()}. Normalisation is inside.",
        "parameters": "params.npz, first argument, a dictionary by name",
        "platforms": list(PLATFORMS),
        "written_by": f"jdepth {__version__}, jax {jax.__version__}",
        "run": RUN.format(height=height, width=width).splitlines(),
    }


def _write_hugging_face(model: "Predictor", folder: Path) -> None:
    from jdepth.weights import hugging_face

    config = model.model.backbone.config
    hugging_face.save(folder, model.params, model.info, config.taps, config.heads)
    print(
        "note: at sizes other than the position table's own (518x518 for DINOv2), transformers resizes that table "
        "by another rule than DINOv2, so that results differ there"
    )
    if model.info.input_area:
        print(
            f"note: {model.name} was trained on images of about {model.info.input_area} pixels; transformers does not "
            "resize them: bring them to that size first"
        )


def _default_size(model: "Predictor") -> tuple[int, int]:
    from jdepth import predictor

    return (predictor.trained_size(model.config) if model.config else None) or (518, 518)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not match or not all(14 <= int(side) <= 4096 for side in match.groups()):
        raise UserError(f"--size: {text!r}, expected HEIGHTxWIDTH from 14 to 4096, such as 518x518")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    command_line.run(main, USAGE, define)
