"""Depth of images: metres as 16-bit PNG and .npy, and a coloured picture.

    python -m jdepth.predict --checkpoint PATH IMAGE|FOLDER|GLOB ... --out DIR
"""

import glob
import sys
import time
from pathlib import Path

from absl import flags

from jdepth import command_line
from jdepth.errors import UserError

USAGE = """Predict metric depth of images.

  python -m jdepth.predict --checkpoint runs/quickstart photo.jpg --out depth
  python -m jdepth.predict --checkpoint dinov2_vits14_nyu.safetensors 'photos/*.jpg' --out depth

For each image NAME three files are written:
  NAME_depth.png   16-bit, metres = value / scale (the scale is in the file's text and is printed)
  NAME_depth.npy   (H, W) float32, metres
  NAME_colour.png  false colours, near is warm, with a legend"""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "run's workdir or converted weights file", flag_values=values)
    flags.DEFINE_string("out", None, "folder for the results", flag_values=values)
    flags.DEFINE_string("backbone", None, "frozen backbone's file, where the checkpoint lacks it", flag_values=values)
    flags.DEFINE_string("model", None, "which released model the file is, where that is open", flag_values=values)
    flags.DEFINE_enum("kind", "best", ["best", "last"], "which checkpoint of a run", flag_values=values)
    flags.DEFINE_boolean("flip", False, "average with the mirror image", flag_values=values)


def find_images(arguments: list[str]) -> list[Path]:
    """Files that the arguments name: images, folders of images, patterns. UserError where one names none."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            here = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        elif path.exists():
            here = [path]
        else:
            here = [p for p in map(Path, sorted(glob.glob(argument, recursive=True))) if p.is_file()]
        if not here:
            raise UserError(f"{argument}: no image found; expected a file, a folder or a pattern that matches some")
        found += here
    return list(dict.fromkeys(found))


def check_out(folder: Path, images: list[Path]) -> None:
    """Raise UserError where results cannot be written, or could overwrite what lies beside the images."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; name a folder")
    for image in images:
        if image.resolve().parent == folder.resolve():
            raise UserError(f"--out: {folder} holds {image.name} itself; name another folder for the results")


def output_names(images: list[Path]) -> list[str]:
    """Name of each image's results: its stem, or its full name where stems clash."""
    stems = [p.stem for p in images]
    names = [p.stem if stems.count(p.stem) == 1 else p.name for p in images]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise UserError(f"two images named {twice}: their results would overwrite each other; predict them apart")
    return names


def write_depth(folder: Path, name: str, depth, max_depth: float) -> float:
    """Write the three files of one image; returns the PNG's scale (values per metre).

    Args:
      depth: (H, W) float32 metres.
      max_depth: metres that the model can predict at most: the PNG holds millimetres where 16 bits are enough for
        it, else KITTI's 1/256 m, else it uses all 16 bits.
    """
    import numpy as np
    from PIL import Image, PngImagePlugin

    from jdepth import colourmap

    # Any other scale is rounded as the file's text has it, so that reading the file back is exact.
    scale = next((s for s in (1000.0, 256.0) if max_depth * s <= 65535), float(f"{65535 / max_depth:g}"))
    text = PngImagePlugin.PngInfo()
    for key, value in {"unit": "metres = value / scale", "scale": f"{scale:g}", "kind": "metric depth"}.items():
        text.add_text(key, value)
    # 0 would read as "no value", so the smallest depths become 1.
    values = np.clip(np.round(depth * scale), depth > 0, 65535).astype(np.uint16)
    Image.fromarray(values).save(folder / f"{name}_depth.png", pnginfo=text)
    np.save(folder / f"{name}_depth.npy", depth)
    low, high = colourmap.depth_range(depth)
    coloured = colourmap.colour_depth(depth, low, high)
    sheet = colourmap.contact_sheet([[coloured, colourmap.legend(low, high, coloured.shape[0])]])
    Image.fromarray(sheet).save(folder / f"{name}_colour.png")
    return scale


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Predict what the flags ask for; bad images are reported and do not stop the others."""
    if not values.checkpoint:
        raise UserError("--checkpoint: name a run's workdir or a converted weights file")
    if not values.out:
        raise UserError("--out: name the folder for the results")
    if not arguments:
        raise UserError("name at least one image, folder or pattern (see --help)")
    images = find_images(arguments)
    names = output_names(images)
    folder, bad = Path(values.out), 0
    check_out(folder, images)
    from jdepth import predictor

    model = predictor.load(values.checkpoint, backbone=values.backbone, model=values.model, kind=values.kind)
    began = time.perf_counter()
    for number, (image, name) in enumerate(zip(images, names, strict=True), 1):
        try:
            depth = model(image, flip=values.flip)
        except UserError as error:
            bad += 1
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        scale = write_depth(folder, name, depth, model.max_depth)
        rate = number / (time.perf_counter() - began)
        print(
            f"{number}/{len(images)}  {image} -> {folder / name}_depth.png (metres = value / {scale:g})  "
            f"{depth.min():.2f} to {depth.max():.2f} m  {rate:.2f} images/s  ETA {(len(images) - number) / rate:.0f} s"
        )
    return 2 if bad else 0


if __name__ == "__main__":
    command_line.run(main, USAGE, define)
