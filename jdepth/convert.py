"""Released weights into our own file: python -m jdepth.convert SOURCE DEST [--backbone PATH].

The result is safetensors in jdepth's own names, with model, depth range, source and licence as
metadata; it loads faster than the original and needs neither its file name nor `--model`.
"""

from dataclasses import replace
from pathlib import Path

from absl import flags

from jdepth import command_line, weights
from jdepth.errors import UserError

USAGE = """
Convert released weights: python -m jdepth.convert SOURCE DEST [flags]

  SOURCE  an official DINOv2 or Depth Anything file (dinov2_vits14_pretrain.pth, dinov2_vits14_nyu_dpt_head.pth,
          depth_anything_v2_vits.pth), a Hugging Face safetensors file or folder, or a converted file
  DEST    the file to write, ending in .safetensors

  python -m jdepth.convert dinov2_vits14_pretrain.pth vits14.safetensors
  python -m jdepth.convert dinov2_vits14_nyu_dpt_head.pth depth.safetensors --backbone vits14.safetensors
  python -m jdepth.convert --list      all models that can be read
"""


def convert(
    source: str | Path,
    dest: str | Path,
    model: str | None = None,
    backbone: str | Path | None = None,
    overwrite: bool = False,
) -> weights.Weights:
    """Write `source` to `dest` (.safetensors) in our names and return what was written.

    `backbone`: join a depth head with this backbone's weights into one complete depth model.
    `model`: a key of `weights.MODELS` where the file leaves it open. An existing `dest` is an error
    unless `overwrite`. Raises UserError; `dest` is then as it was before.
    """
    dest = Path(dest)
    weights.check_destination(dest)
    if dest.exists() and not overwrite:
        raise UserError(f"{dest}: exists already; give another name or --overwrite")
    loaded = weights.load(source, model)
    if backbone is not None:
        loaded = _join(loaded, weights.load(backbone, parts=("backbone",)), source, backbone)
    weights.save(dest, loaded.params, loaded.info)
    return loaded


def _join(head: weights.Weights, backbone: weights.Weights, source: str | Path, path: str | Path) -> weights.Weights:
    """A head and the very backbone whose features it was trained on, as one model."""
    if "depth_head" not in head.params:
        raise UserError(f"{source}: holds {head.info.model} without a depth head; --backbone joins one to a depth head")
    if "backbone" in head.params:
        raise UserError(f"{source}: holds its backbone already; leave --backbone out")
    weights.check_belongs(head.info, backbone.info, source, path)
    info = replace(head.info, source=f"{head.info.source} + {backbone.info.source}")
    return weights.Weights({"backbone": backbone.params["backbone"], **head.params}, info)


def table() -> str:
    """Every released model that can be read: what it gives, its official file, how images reach it, its licence."""
    rows = [("family", "size", "model", "gives", "official file", "licence", "images")]
    for model in weights.MODELS.values():
        gives = {"backbone": "features", "relative": "relative disparity", "metric": f"depth to {model.max_depth} m"}
        size = model.backbone.removeprefix("dinov2_vit")[0].upper().replace("G", "g")
        rows.append((model.family, size, model.name, gives[model.task], model.file, model.licence, model.input_rule))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = (
        "Hugging Face's safetensors of these models are read too. Depth Anything V1's metric models are ZoeDepth",
        "networks and are not covered.",
    )
    return "\n".join([*lines, "", *notes])


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string(
        "model", None, "which released model SOURCE is, where its tensors and name leave it open, "
        "e.g. dinov2_vits14_nyu_dpt", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("backbone", None, "weights of the backbone to join with the depth head", flag_values=values)
    flags.DEFINE_bool("list", False, "print all models that can be read, and stop", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace DEST if it exists", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    """Convert one file and say what it is."""
    if values.list:
        command_line.no_arguments(arguments)
        print(table())
        return
    if len(arguments) != 2:
        raise UserError(f"expected SOURCE and DEST, got {len(arguments)} arguments (see --help)")
    source, dest = arguments
    written = convert(source, dest, values.model, values.backbone, values.overwrite)
    info = written.info
    size = Path(dest).stat().st_size / 1e6
    depth = "" if info.max_depth is None else f", depth {info.min_depth:g} to {info.max_depth:g} m"
    depth += ", relative disparity" if info.family == "depth_anything" and info.max_depth is None else ""
    lacks = "" if "backbone" in written.params else ", without its backbone (--backbone joins it)"
    print(f"{dest}: {info.model} on {info.backbone}{depth}{lacks}, {size:.1f} MB, licence {info.licence}")


if __name__ == "__main__":
    command_line.run(main, USAGE, define)
