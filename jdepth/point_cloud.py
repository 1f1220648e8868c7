"""Point clouds from depth and a focal length, written as PLY.

Camera axes as in OpenCV: x to the right, y down, z forward; depth is z, not the distance to the camera.
"""

from pathlib import Path

import numpy as np

from jdepth.errors import UserError


def points(
    depth: np.ndarray, focal: tuple[float, float], centre: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Points of all pixels with a depth.

    Args:
      depth: (H, W) metres; not finite or <= 0 is left out.
      focal: (fx, fy) in pixels.
      centre: (cx, cy), principal point in pixels, pixel centres at whole numbers; the image's middle by default.

    Returns:
      (N, 3) float32 metres, and (H, W) bool: the pixels that they come from, row by row.
    """
    height, width = depth.shape
    cx, cy = centre or ((width - 1) / 2, (height - 1) / 2)
    valid = np.isfinite(depth) & (depth > 0)
    rows, columns = np.nonzero(valid)
    z = depth[valid].astype(np.float64)
    cloud = np.stack([(columns - cx) / focal[0] * z, (rows - cy) / focal[1] * z, z], axis=1)
    return cloud.astype(np.float32), valid


def write_ply(path: Path, cloud: np.ndarray, colours: np.ndarray) -> None:
    """Write (N, 3) metres and their (N, 3) uint8 RGB as binary PLY."""
    kinds = [(name, "<f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    vertices = np.empty(len(cloud), kinds)
    for axis, name in enumerate("xyz"):
        vertices[name] = cloud[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        vertices[name] = colours[:, channel]
    header = [
        "ply", "format binary_little_endian 1.0", "comment metres; x right, y down, z forward",
        f"element vertex {len(cloud)}", *(f"property float {name}" for name in "xyz"),
        *(f"property uchar {name}" for name in ("red", "green", "blue")), "end_header",
    ]  # fmt: skip
    with path.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        vertices.tofile(file)


def parse_numbers(flag: str, text: str, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Finite numbers of a flag such as --focal=518.9,519.5; UserError for anything else."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts or not np.all(np.isfinite(numbers)):
        wanted = " or ".join(map(str, counts))
        raise UserError(f"--{flag}: {text!r}, expected {wanted} numbers in pixels, separated by a comma")
    return numbers
