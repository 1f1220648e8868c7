"""Depth of images and videos: 16-bit PNG, .npy, coloured pictures, point clouds.

    python -m jdepth.predict --checkpoint PATH IMAGE|VIDEO|FOLDER|GLOB ... --out DIR
"""

import glob
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from jdepth import command_line
from jdepth.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from jdepth.predictor import Predictor

USAGE = """Predict depth of images and videos.

  python -m jdepth.predict --checkpoint runs/quickstart photo.jpg --out depth
  python -m jdepth.predict --checkpoint dinov2_vits14_nyu.safetensors 'photos/*.jpg' --out depth
  python -m jdepth.predict --checkpoint depth_anything_v2_vits.pth clip.mp4 --out depth

For each image NAME three files are written, and for several sheet.png with all of them:
  NAME_depth.png   16-bit, metres = value / scale (the scale is in the file's text and is printed)
  NAME_depth.npy   (H, W) float32, metres
  NAME_colour.png  false colours, near is warm, with a legend
A relative model writes NAME_disparity.png and .npy instead: larger is nearer, known up to a scale and a shift.
For each video NAME_colour.mp4, and with --frames NAME/000000_depth.png and so on."""

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "run's workdir or weights file", flag_values=values)
    flags.DEFINE_string("out", None, "folder for the results", flag_values=values)
    flags.DEFINE_string("backbone", None, "frozen backbone's file, where the checkpoint lacks it", flag_values=values)
    flags.DEFINE_string("model", None, "which released model the file is, where that is open", flag_values=values)
    flags.DEFINE_enum("kind", "best", ["best", "last"], "which checkpoint of a run", flag_values=values)
    flags.DEFINE_boolean("flip", False, "average with the mirror image", flag_values=values)
    flags.DEFINE_integer("batch", 1, "images of one size, or frames, at once", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("frames", False, "write the 16-bit PNG of every frame of a video", flag_values=values)
    flags.DEFINE_boolean("points", False, "write NAME_points.ply, a coloured point cloud", flag_values=values)
    flags.DEFINE_string(
        "focal", None, "focal length in pixels, FX or FX,FY, for --points; by default from EXIF", flag_values=values
    )
    flags.DEFINE_string("centre", None, "principal point in pixels, CX,CY; by default the middle", flag_values=values)


def find_images(arguments: list[str]) -> list[Path]:
    """Files that the arguments name: images, videos, folders of them, patterns. UserError where one names none."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            here = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES + VIDEOS and p.is_file())
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


def main(values: flags.FlagValues, arguments: list[str]) -> int:
    """Predict what the flags ask for; bad images are reported and do not stop the others."""
    if not values.checkpoint:
        raise UserError("--checkpoint: name a run's workdir or a weights file")
    if not values.out:
        raise UserError("--out: name the folder for the results")
    if not arguments:
        raise UserError("name at least one image, folder or pattern (see --help)")
    for flag in ("focal", "centre"):
        if values[flag].present and not (values.points and values[flag].value):
            raise UserError(f"--{flag}: serves point clouds only, and needs numbers; see --points")
    found = find_images(arguments)
    names = dict(zip(found, output_names(found), strict=True))
    check_out(Path(values.out), found)

    from jdepth import compilation, images, point_cloud, predictor

    focal = point_cloud.parse_numbers("focal", values.focal, (1, 2)) if values.focal else None
    centre = point_cloud.parse_numbers("centre", values.centre, (2,)) if values.centre else None
    if focal is not None and min(focal) <= 0:
        raise UserError(f"--focal: {values.focal}, expected positive pixels")
    videos = [path for path in found if path.suffix.lower() in VIDEOS]
    if videos and values.points:
        raise UserError(f"--points: is for images; leave {videos[0]} out")
    if values.frames and not videos:
        raise UserError("--frames: is for videos, of which none was named")

    compilation.keep_programs()
    model = predictor.load(values.checkpoint, backbone=values.backbone, model=values.model, kind=values.kind)
    if values.points and model.max_depth is None:
        raise UserError(f"--points: {model.name} predicts relative disparity, from which no points in space follow")
    if values.points and focal is None and not any(images.focal_length(path) for path in found):
        more = f" nor do the {len(found) - 1} other images" if len(found) > 1 else ""
        raise UserError(f"--points: {found[0]} says no focal length in EXIF{more}; give --focal in pixels")
    command = _Command(model, values, focal, centre)
    command.images([path for path in found if path not in videos], names)
    for path in videos:
        command.video(path, names[path])
    return 2 if command.bad else 0


class _Command:
    """One run of the command: its model, its flags, what it has done so far."""

    def __init__(self, model: "Predictor", values: flags.FlagValues, focal: tuple | None, centre: tuple | None):
        self.model, self.values, self.folder = model, values, Path(values.out)
        self.bad, self.unread = 0, 0  # errors told; images without a result
        self.focal, self.centre = focal, centre

    def images(self, paths: list[Path], names: dict[Path, str]) -> None:
        """Predict images, in batches of one size."""
        from PIL import Image
        from tqdm import tqdm

        from jdepth import results

        # Below Pillow's limit they are predicted, above it read_image says so.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        sheet, began, done, full = results.Sheet(), time.perf_counter(), 0, set()
        with tqdm(total=len(paths), unit="image", disable=None, leave=False) as bar:
            for group in self._groups(paths, bar):
                try:
                    shape = group[0][1].shape
                    full |= {shape} if len(group) == self.values.batch else set()
                    # A program for whole batches of this size serves the last, smaller one too.
                    rows = self.values.batch if shape in full else None
                    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
                    predictions = self._predict(f"{group[0][0]}{more}", [pixels for _, pixels in group], rows)
                except UserError as error:  # more pixels than memory takes
                    self._report(error)
                    self.unread += len(group)
                    bar.update(len(group))
                    continue
                try:
                    for (path, pixels), prediction in zip(group, predictions, strict=True):
                        done += 1
                        line = self._write(path, names[path], pixels, prediction)
                        sheet.add(path.name, pixels, prediction)
                        rate = done / (time.perf_counter() - began)
                        seen = done + self.unread
                        left = (len(paths) - seen) / rate
                        bar.write(f"{seen}/{len(paths)}  {line}  {rate:.2f} images/s  ETA {left:.0f} s")
                except OSError as error:
                    raise UserError(f"--out: cannot write to {self.folder} ({error.strerror or error})") from error
                bar.update(len(group))
        if done > 1:
            sheet.write(self.folder / "sheet.png")

    def _groups(self, paths: list[Path], bar) -> Iterator[list[tuple[Path, "np.ndarray"]]]:
        """Images of one size, as many as --batch, or as memory takes; those left over at the end in smaller groups."""
        from jdepth.images import read_image

        waiting: dict[tuple, list] = {}
        for path in paths:
            try:
                pixels = read_image(path)
            except UserError as error:
                self._report(error)
                self.unread += 1
                bar.update(1)
                continue
            group = waiting.setdefault(pixels.shape, [])
            group.append((path, pixels))
            if len(group) == self.values.batch or _crowded(p for group in waiting.values() for _, p in group):
                yield waiting.pop(pixels.shape)
            elif sum(map(len, waiting.values())) > 4 * self.values.batch:  # many sizes: not all images in memory
                yield waiting.pop(next(iter(waiting)))
        yield from waiting.values()

    def _predict(self, what: Path | str, images: list, rows: int | None) -> list:
        """Predictions of one batch; what is wrong is said of `what`."""
        try:
            return self.model.batch(images, self.values.flip, rows)
        except UserError as error:
            raise UserError(f"{what}: {error}") from error

    def _report(self, error: UserError) -> None:
        self.bad += 1
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)

    def _write(self, path: Path, name: str, pixels, prediction) -> str:
        """Write one image's files; returns the line that says so."""
        from jdepth import results

        self.folder.mkdir(parents=True, exist_ok=True)
        scale = results.write(self.folder, name, prediction, self.model.max_depth)
        if self.values.points:
            self._write_points(path, name, pixels, prediction)
        low, high = prediction.values.min(), prediction.values.max()
        file = self.folder / f"{name}_{results.stem(prediction)}.png"
        what, unit = ("metres", " m") if prediction.unit else ("disparity", "")
        return f"{path} -> {file} ({what} = value / {scale:g})  {low:.2f} to {high:.2f}{unit}"

    def _write_points(self, path: Path, name: str, pixels, prediction) -> None:
        from jdepth import images, point_cloud

        focal = self.focal or images.focal_length(path)
        if focal is None:
            self._report(UserError(f"{path}: says no focal length in EXIF; give --focal in pixels for its points"))
            return
        cloud, valid = point_cloud.points(prediction.values, (focal[0], focal[-1]), self.centre)
        point_cloud.write_ply(self.folder / f"{name}_points.ply", cloud, pixels[valid])

    def video(self, path: Path, name: str) -> None:
        """Predict a video's frames in batches of one shape, colours in the range of the first batch."""
        from tqdm import tqdm

        from jdepth import colourmap, results, video

        try:
            about = video.info(path)
            self.folder.mkdir(parents=True, exist_ok=True)
            writer, limits, done, began = None, None, 0, time.perf_counter()
            with tqdm(total=about.frames or None, desc=path.name, unit="frame", disable=None, leave=False) as bar:
                rows = min(self.values.batch, about.frames or self.values.batch)
                for batch in _chunks(video.frames(path), rows):
                    predictions = self._predict(path, batch, rows)
                    limits = limits or colourmap.depth_range(*(p.values for p in predictions))
                    for prediction in predictions:
                        if self.values.frames:
                            (self.folder / name).mkdir(exist_ok=True)
                            file = self.folder / name / f"{done:06d}_{results.stem(prediction)}.png"
                            results.write_png(file, prediction, self.model.max_depth)
                        picture, _ = results.colours(prediction, limits)
                        writer = writer or video.Writer(
                            self.folder / f"{name}_colour.mp4", about.rate, picture.shape[:2]
                        )
                        writer.add(picture)
                        done += 1
                    bar.update(len(batch))
            writer.close()
        except UserError as error:
            self._report(error)
            return
        rate = done / (time.perf_counter() - began)
        far, near, unit = (*limits[::-1], "m") if self.model.max_depth else (*limits, "disparity")
        print(
            f"{path} -> {self.folder / name}_colour.mp4 (blue to red: {far:.2f} to {near:.2f} {unit})  "
            f"{done} frames  {rate:.2f} frames/s"
        )
        if done < about.frames:
            print(f"warning: {path}: {done} of {about.frames} frames could be decoded", file=sys.stderr)


def _crowded(arrays: "Iterable[np.ndarray]") -> bool:
    """Whether as many bytes are held as are left: results and the network need the rest."""
    from jdepth import memory

    left = memory.free_on_host()
    return left is not None and sum(array.nbytes for array in arrays) > left


def _chunks(frames: Iterator, size: int) -> Iterator[list]:
    chunk = []
    for frame in frames:
        chunk.append(frame)
        if len(chunk) == size or _crowded(chunk):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


if __name__ == "__main__":
    command_line.run(main, USAGE, define)
