"""Shading of a furnished room: scene and size in, colour image, exact depth and class labels out. NumPy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jdepth.data.sources.room_geometry import Hits, Light, Scene, Surfaces, cast, ray_grid, surfaces
from jdepth.data.sources.room_materials import albedo, material_table


class Render(NamedTuple):
    """image: (H, W, 3) float32 in [0, 1], display-encoded; depth: (H, W) float32 metres along the optical axis,
    everywhere positive; label: (H, W) uint8; facing: (H, W) float32 cosine between surface normal and line of sight."""

    image: np.ndarray
    depth: np.ndarray
    label: np.ndarray
    facing: np.ndarray


_LAMP = Light((0, 0, 0), (2.4, 2.4, 2.4), 1.1)  # flash on the camera, of the same strength in every room
_SHADOW = 0.3  # metres over which the dark patch under an object fades out


def render(scene: Scene, height: int, width: int) -> Render:
    """Render `scene` at `height` x `width` pixels."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        hits = cast(scene, height, width)
        described = surfaces(scene)
        image, facing = _shade(scene, described, hits)
    label = np.take(described.label, hits.row)
    return Render(image, hits.depth, label, facing)


def _shade(scene: Scene, described: Surfaces, hits: Hits) -> tuple[np.ndarray, np.ndarray]:
    height, width = hits.depth.shape
    columns, rows = ray_grid(height, width)
    row, depth = hits.row.ravel(), hits.depth.ravel()
    eye, rotation = scene.camera.position.astype(np.float32), scene.camera.rotation
    step = columns[1] - columns[0]  # camera units per pixel, the same along both axes

    # Every quantity of a planar surface is affine in the pixel (times depth): per row of the table, a few numbers.
    seen = (described.axes @ rotation.T).astype(np.float32)  # (R, u v n, camera axis)
    slope = -seen[:, 2, :2] / described.plane[:, None]  # change of inverse depth across and along, over the depth
    table = np.concatenate(
        [
            seen[:, :2].reshape(-1, 6), described.place, slope * step, described.axes[:, 2],
        ],
        1,
    ).T.astype(np.float32)
    table[[0, 1, 3, 4]] *= step
    picked = np.take(table, row, axis=1)
    across = np.broadcast_to(columns / step, (height, width)).ravel()
    along = np.repeat(rows / step, width)

    textured = []
    for u_x, u_y, u_z, place in ((*picked[0:3], picked[6]), (*picked[3:6], picked[7])):
        offset = depth * (u_x * across + u_y * along + u_z)  # from the camera to the point, along u
        change_x = u_x + picked[8] * offset
        change_y = u_y + picked[9] * offset
        footprint = depth * np.sqrt(change_x * change_x + change_y * change_y)
        textured.append((offset + place, footprint))
    (u, footprint_u), (v, footprint_v) = textured
    colour, glow = albedo(
        material_table(scene.materials), np.take(described.material, row), u, v, footprint_u, footprint_v
    )

    normal = picked[10:13]
    point = np.empty((3, row.size), np.float32)
    for axis in range(3):
        a, b, c = rotation[:, axis].astype(np.float32)
        ray = (a * columns + c)[None] + (b * rows)[:, None]
        np.multiply(ray.ravel(), depth, out=point[axis])
        point[axis] += eye[axis]
    _curved_normals(scene, row, point, normal)

    light = np.empty_like(point)
    light[:] = np.array(scene.ambient, np.float32)[:, None]
    light *= _openness(scene, point, normal)
    for lamp in scene.lights:
        strength, _ = _received(lamp, point, normal)
        for channel in range(3):
            light[channel] += np.float32(lamp.colour[channel]) * strength
    _floor_shadows(scene, point, light)
    strength, facing = _received(_LAMP._replace(position=tuple(eye)), point, normal)
    light += np.float32(_LAMP.colour[0]) * strength
    colour *= light + glow
    colour *= (1 + colour * np.float32(1 / 9)) / (1 + colour)  # highlights roll off, white at 3
    np.sqrt(np.minimum(colour, 1, out=colour), out=colour)  # display encoding, gamma 2
    return colour.reshape(3, height, width).transpose(1, 2, 0), facing.reshape(height, width)


def _curved_normals(scene: Scene, row, point, normal) -> None:
    """Write the true normals of cylinders' sides, caps and spheres into `normal` (3, N)."""
    first = 6 + 3 * len(scene.boxes)
    for cylinder in scene.cylinders:
        at = np.flatnonzero(row == first)
        if at.size:
            for axis in range(2):
                normal[axis, at] = (point[axis, at] - np.float32(cylinder.centre[axis])) / np.float32(cylinder.radius)
            normal[2, at] = 0
        cap = np.flatnonzero(row == first + 1)
        if cap.size:
            normal[:2, cap] = 0
            normal[2, cap] = np.sign(scene.camera.position[2] - cylinder.centre[2])
        first += 2
    for sphere in scene.spheres:
        at = np.flatnonzero(row == first)
        if at.size:
            centre = np.array(sphere.centre, np.float32)[:, None]
            normal[:, at] = (point[:, at] - centre) / np.float32(sphere.radius)
        first += 1


def _openness(scene: Scene, point, normal) -> np.ndarray:
    """Soft darkening (N,) towards the room's edges: how far a point just off the surface is from the six planes."""
    result = None
    for axis in range(3):
        off = point[axis] + np.float32(0.25) * normal[axis]
        gap = np.minimum(off, np.float32(scene.size[axis]) - off)
        np.maximum(gap, 0, out=gap)
        factor = (gap + np.float32(0.12)) / (gap + np.float32(0.24))
        result = factor if result is None else result * factor
    return result


def _received(lamp: Light, point, normal) -> tuple[np.ndarray, np.ndarray]:
    """Light arriving from `lamp` per unit of its strength, and its cosine with the normal; both (N,)."""
    squared = towards = None
    for axis in range(3):
        offset = np.float32(lamp.position[axis]) - point[axis]
        if squared is None:
            squared, towards = offset * offset, offset * normal[axis]
        else:
            squared += offset * offset
            towards += offset * normal[axis]
    squared += np.float32(1e-4)
    cosine = np.maximum(towards, 0, out=towards)
    cosine /= np.sqrt(squared)
    squared *= np.float32(1 / lamp.reach**2)
    squared += 1
    return cosine / squared, cosine


def _floor_shadows(scene: Scene, point, light) -> None:
    """Darken `light` (3, N) on the floor under and around objects."""
    at = np.flatnonzero(point[2] < 0.03)
    if not at.size:
        return
    x, y = point[0, at], point[1, at]
    bright = np.ones_like(x)
    for shadow in scene.shadows:
        cos, sin = np.float32(np.cos(shadow.yaw)), np.float32(np.sin(shadow.yaw))
        dx, dy = x - np.float32(shadow.centre[0]), y - np.float32(shadow.centre[1])
        across = np.maximum(np.abs(cos * dx + sin * dy) - np.float32(shadow.half[0]), 0)
        along = np.maximum(np.abs(cos * dy - sin * dx) - np.float32(shadow.half[1]), 0)
        outside = np.sqrt(across * across + along * along)
        bright *= 1 - np.float32(shadow.strength) * np.maximum(1 - outside / np.float32(_SHADOW), 0)
    light[:, at] *= bright
