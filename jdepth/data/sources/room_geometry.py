"""Geometry of a furnished room: primitives, camera, and exact ray casting into a buffer of surfaces.

World frame: metres, z up, the room is the box from (0, 0, 0) to `Scene.size`.
Camera frame: x right, y down, z forward. A ray through a pixel has camera direction (a, b, 1), so the ray
parameter of a hit *is* its z-depth and no conversion follows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

FOCAL = 0.85  # focal length in image widths (horizontal field of view 61 degrees, about that of NYU's Kinect)
NEAR = 0.05  # metres; objects closer to the image plane than this are clipped when their screen bounds are found


@dataclass(frozen=True)
class Camera:
    """position: (3,) world metres; rotation: (3, 3) world to camera, its rows are right, down and forward."""

    position: np.ndarray
    rotation: np.ndarray


def look(position, yaw: float, pitch: float, roll: float) -> Camera:
    """Camera at `position` (3,) looking along `yaw` (from +x towards +y) and `pitch` (up positive), in radians."""
    cos, sin = np.cos, np.sin
    forward = np.array([cos(pitch) * cos(yaw), cos(pitch) * sin(yaw), sin(pitch)])
    right = np.array([sin(yaw), -cos(yaw), 0.0])
    down = np.cross(forward, right)
    rolled = [cos(roll) * right + sin(roll) * down, cos(roll) * down - sin(roll) * right, forward]
    return Camera(np.asarray(position, np.float64), np.stack(rolled))


def intrinsics(height: int, width: int) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy) in pixels; the centre of the top left pixel is (0, 0)."""
    return FOCAL * width, FOCAL * width, (width - 1) / 2, (height - 1) / 2


class Box(NamedTuple):
    """Box with a vertical axis: centre and half sizes in metres, yaw in radians, index of its material, class id."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    material: int
    label: int


class Cylinder(NamedTuple):
    """Closed upright cylinder: centre (3,), radius and half height in metres."""

    centre: tuple[float, float, float]
    radius: float
    half_height: float
    material: int
    label: int


class Sphere(NamedTuple):
    """Sphere: centre (3,) and radius in metres."""

    centre: tuple[float, float, float]
    radius: float
    material: int
    label: int


class Light(NamedTuple):
    """Point light: position (3,), colour times strength (3,), reach = distance (m) at which it has lost half."""

    position: tuple[float, float, float]
    colour: tuple[float, float, float]
    reach: float


class Shadow(NamedTuple):
    """Soft dark patch on the floor under an object: centre (2,), half sizes (2,), yaw, strength in [0, 1]."""

    centre: tuple[float, float]
    half: tuple[float, float]
    yaw: float
    strength: float


@dataclass
class Scene:
    """One room. `planes`: material indices of the walls x=0, x=max, y=0, y=max, the floor and the ceiling."""

    size: tuple[float, float, float]
    planes: tuple[int, int, int, int, int, int]
    ambient: tuple[float, float, float]
    camera: Camera | None = None
    materials: list = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    cylinders: list[Cylinder] = field(default_factory=list)
    spheres: list[Sphere] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    shadows: list[Shadow] = field(default_factory=list)


class Surfaces(NamedTuple):
    """Rows describing every surface of a scene as seen from its camera.

    axes: (R, 3, 3) unit vectors u, v, normal (towards the camera); place: (R, 2) camera minus texture origin,
    along u and v; plane: (R,) signed distance of the surface from the camera along its normal (negative);
    material, label: (R,) int. The first six rows are the room, then three per box (faces x, y, z),
    two per cylinder (side, cap) and one per sphere.
    """

    axes: np.ndarray
    place: np.ndarray
    plane: np.ndarray
    material: np.ndarray
    label: np.ndarray


class Hits(NamedTuple):
    """depth: (H, W) float32 metres along the optical axis; row: (H, W) int32 into `Surfaces`."""

    depth: np.ndarray
    row: np.ndarray


_X, _Y, _Z = np.eye(3)
_ROOM_AXES = np.stack([[_Y, _Z, _X], [_Y, _Z, -_X], [_X, _Z, _Y], [_X, _Z, -_Y], [_X, _Y, _Z], [_X, _Y, -_Z]])
_ROOM_LABELS = (0, 0, 0, 0, 1, 2)  # wall ×4, floor, ceiling: the first three of `rooms.CLASSES`
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4)])


def box_frames(boxes: list[Box]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(centre (B, 3), half (B, 3), axes (B, 3, 3) with the box's x, y, z axes as rows) of a list of boxes."""
    centre = np.array([b.centre for b in boxes], float).reshape(-1, 3)
    half = np.array([b.half for b in boxes], float).reshape(-1, 3)
    yaw = np.array([b.yaw for b in boxes], float)
    axes = np.zeros((len(boxes), 3, 3))
    axes[:, 0, 0] = axes[:, 1, 1] = np.cos(yaw)
    axes[:, 0, 1] = np.sin(yaw)
    axes[:, 1, 0] = -axes[:, 0, 1]
    axes[:, 2, 2] = 1.0
    return centre, half, axes


def surfaces(scene: Scene) -> Surfaces:
    """Rows for all surfaces of `scene`."""
    eye = scene.camera.position
    size = np.asarray(scene.size)
    room_plane = -np.stack([eye, size - eye], 1).ravel()
    room_place = np.stack([_ROOM_AXES[:, 0] @ eye, _ROOM_AXES[:, 1] @ eye], 1)

    centre, half, axes = box_frames(scene.boxes)
    local = np.einsum("bij,bj->bi", axes, eye - centre)
    side = np.where(local < 0, -1.0, 1.0)
    x, y, z = axes[:, 0], axes[:, 1], axes[:, 2]
    face_axes = np.stack([np.stack([y, z, x], 1), np.stack([x, z, y], 1), np.stack([x, y, z], 1)], 1)
    face_axes[:, :, 2] *= side[:, :, None]
    corner = local + half  # camera minus the box's lowest corner, in the box's frame
    face_place = np.stack([corner[:, [1, 2]], corner[:, [0, 2]], corner[:, [0, 1]]], 1)
    face_plane = -(local * side - half)  # positive where the camera is within the slab: such a face is never hit
    face_plane = np.where(np.abs(face_plane) < 1e-6, -1e-6, face_plane)

    # A curved surface gets its true normal per pixel; its texture is projected along the line of sight.
    curved = [(c.centre, c.half_height) for c in scene.cylinders for _ in range(2)]
    curved += [(s.centre, s.radius) for s in scene.spheres]
    curved_axes = np.zeros((len(curved), 3, 3))
    curved_place = np.zeros((len(curved), 2))
    curved_plane = np.zeros(len(curved))
    for i, (middle, below) in enumerate(curved):
        offset = eye - np.asarray(middle)
        distance = float(np.hypot(offset[0], offset[1])) + 1e-6
        normal = np.array([offset[0] / distance, offset[1] / distance, 0.0])
        curved_axes[i] = [[-normal[1], normal[0], 0.0], _Z, normal]
        curved_place[i] = curved_axes[i, 0] @ offset, offset[2] + below
        curved_plane[i] = -distance

    material = list(scene.planes) + [b.material for b in scene.boxes for _ in range(3)]
    material += [c.material for c in scene.cylinders for _ in range(2)] + [s.material for s in scene.spheres]
    label = list(_ROOM_LABELS) + [b.label for b in scene.boxes for _ in range(3)]
    label += [c.label for c in scene.cylinders for _ in range(2)] + [s.label for s in scene.spheres]
    return Surfaces(
        np.concatenate([_ROOM_AXES, face_axes.reshape(-1, 3, 3), curved_axes]),
        np.concatenate([room_place, face_place.reshape(-1, 2), curved_place]),
        np.concatenate([room_plane, face_plane.reshape(-1), curved_plane]),
        np.array(material),
        np.array(label, np.uint8),
    )


def ray_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Camera directions of columns (W,) and rows (H,): the ray of pixel (y, x) is (columns[x], rows[y], 1)."""
    fx, fy, cx, cy = intrinsics(height, width)
    return ((np.arange(width) - cx) / fx).astype(np.float32), ((np.arange(height) - cy) / fy).astype(np.float32)


def cast(scene: Scene, height: int, width: int) -> Hits:
    """Nearest surface along the ray of every pixel; exact up to float32 rounding."""
    columns, rows = ray_grid(height, width)
    eye, rotation = scene.camera.position, scene.camera.rotation
    depth, row = _cast_room(np.asarray(scene.size), eye, rotation, columns, rows)

    centre, half, axes = box_frames(scene.boxes)
    round_boxes = [Box(c.centre, (c.radius, c.radius, c.half_height), 0.0, 0, 0) for c in scene.cylinders]
    round_boxes += [Box(s.centre, (s.radius,) * 3, 0.0, 0, 0) for s in scene.spheres]
    more = box_frames(round_boxes)
    bounds, nearest = _screen_bounds(
        np.concatenate([centre, more[0]]), np.concatenate([half, more[1]]), np.concatenate([axes, more[2]]),
        eye, rotation, columns, rows,
    )

    directions = (axes @ rotation.T).astype(np.float32)  # (B, box axis, camera axis): affine in the pixel
    local = np.einsum("bij,bj->bi", axes, eye - centre)
    low, high = (-half - local).astype(np.float32), (half - local).astype(np.float32)
    boxes, cylinders = len(scene.boxes), len(scene.cylinders)
    for i in np.argsort(nearest):  # front to back, so that hidden objects are skipped
        top, bottom, left, right = bounds[i]
        if top >= bottom or left >= right:
            continue
        tile = slice(top, bottom), slice(left, right)
        tile_depth, tile_row = depth[tile], row[tile]
        if nearest[i] > tile_depth.max():
            continue
        across, along = columns[left:right], rows[top:bottom, None]
        if i < boxes:
            _cast_box(directions[i], low[i], high[i], across, along, tile_depth, tile_row, 6 + 3 * i)
            continue
        rays = [a * across + b * along + c for a, b, c in rotation.T]  # float64: silhouettes cancel badly
        if i < boxes + cylinders:
            shape = scene.cylinders[i - boxes]
            found = _hit_cylinder(shape, eye, rays)
            first = 6 + 3 * boxes + 2 * (i - boxes)
        else:
            shape = scene.spheres[i - boxes - cylinders]
            found = _hit_sphere(shape, eye, rays)
            first = 6 + 3 * boxes + 2 * cylinders + (i - boxes - cylinders)
        distance, part = found
        closer = distance < tile_depth
        np.copyto(tile_depth, distance, where=closer, casting="same_kind")
        np.copyto(tile_row, first + part, where=closer, casting="same_kind")
    return Hits(depth, row)


def _cast_room(size, eye, rotation, columns, rows):
    """The room's own six planes, seen from within."""
    depth = row = None
    for axis in range(3):
        a, b, c = rotation[:, axis].astype(np.float32)
        direction = (a * columns + c)[None] + (b * rows)[:, None]
        positive = direction > 0
        gap = np.where(positive, np.float32(size[axis] - eye[axis]), np.float32(-eye[axis]))
        distance = gap / np.where(np.abs(direction) < 1e-9, np.float32(1e-9), direction)
        np.abs(distance, out=distance)
        if depth is None:
            depth, row = distance, positive.astype(np.int32)
        else:
            closer = distance < depth
            np.copyto(depth, distance, where=closer)
            np.copyto(row, positive + np.int32(2 * axis), where=closer)
    return depth, row


def _screen_bounds(centre, half, axes, eye, rotation, columns, rows):
    """Pixel bounds (N, 4: top, bottom, left, right; empty if unseen) and the smallest z-depth (N,) of N boxes.

    Edges that cross the near plane are cut there, so that a box beside the camera keeps tight bounds.
    """
    if not len(centre):
        return np.zeros((0, 4), int), np.zeros(0)
    corners = (centre - eye)[:, None] + (_CORNERS * half[:, None]) @ axes  # (N, 8, 3) world
    corners = corners @ rotation.T
    z = corners[..., 2]
    first, second = corners[:, _EDGES[:, 0]], corners[:, _EDGES[:, 1]]
    crossing = (first[..., 2] < NEAR) != (second[..., 2] < NEAR)
    step = np.where(crossing, second[..., 2] - first[..., 2], 1.0)
    cut = first + ((NEAR - first[..., 2]) / step)[..., None] * (second - first)
    points = np.concatenate([corners, cut], 1)
    valid = np.concatenate([z >= NEAR, crossing], 1)
    depth = np.maximum(points[..., 2], NEAR)
    bounds = []
    for axis, grid in ((1, rows), (0, columns)):
        pixel = (points[..., axis] / depth - grid[0]) / (grid[1] - grid[0])
        low = np.where(valid, pixel, np.inf).min(1)
        high = np.where(valid, pixel, -np.inf).max(1)
        # One pixel of slack absorbs float32 rounding of the rays.
        bounds.append(np.clip(np.nan_to_num(np.floor(low) - 1, posinf=len(grid)), 0, len(grid)))
        bounds.append(np.clip(np.nan_to_num(np.ceil(high) + 2, neginf=0), 0, len(grid)))
    return np.stack(bounds, 1).astype(int), np.where(valid, depth, np.inf).min(1)


def _cast_box(directions, low, high, across, along, depth, row, first):
    """Slab test of one box on one tile; `depth` and `row` (views of the image) are updated in place."""
    near = far = None
    entries = []
    for (a, b, c), lowest, highest in zip(directions, low, high):
        inverse = (a * across + c) + b * along
        np.divide(np.float32(1), inverse, out=inverse)
        start, end = lowest * inverse, highest * inverse
        entry, leave = np.minimum(start, end), np.maximum(start, end)
        entries.append(entry)
        near = entry if near is None else np.maximum(near, entry)
        far = leave if far is None else np.minimum(far, leave, out=far)
    hit = (near < far) & (near > 0) & (near < depth)
    if hit.any():
        face = (entries[0] < near) * (np.int32(1) + (entries[1] < near))
        np.copyto(depth, near, where=hit)
        np.copyto(row, face + np.int32(first), where=hit)


def _hit_sphere(sphere: Sphere, eye, rays):
    """(z-depth or inf, part 0) of a sphere on a tile."""
    dx, dy, dz = rays
    ox, oy, oz = eye - np.asarray(sphere.centre)
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - sphere.radius**2
    inside = b * b - a * c
    distance = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (distance > 0), distance, np.inf), np.int32(0)


def _hit_cylinder(cylinder: Cylinder, eye, rays):
    """(z-depth or inf, part) of a closed upright cylinder on a tile; part 0 is the side, 1 a cap."""
    dx, dy, dz = rays
    ox, oy, oz = eye - np.asarray(cylinder.centre)
    a = dx * dx + dy * dy
    a = np.where(a < 1e-12, 1e-12, a)
    b = ox * dx + oy * dy
    inside = b * b - a * (ox * ox + oy * oy - cylinder.radius**2)
    side = (-b - np.sqrt(np.maximum(inside, 0))) / a
    on_side = (inside > 0) & (side > 0) & (np.abs(oz + side * dz) <= cylinder.half_height)
    distance = np.where(on_side, side, np.inf)
    if abs(oz) <= cylinder.half_height:  # level with the cylinder: no cap faces the camera
        return distance, np.int32(0)
    cap_z = np.copysign(cylinder.half_height, oz)
    cap = (cap_z - oz) / np.where(dz == 0, 1e-12, dz)
    on_cap = (cap > 0) & ((ox + cap * dx) ** 2 + (oy + cap * dy) ** 2 <= cylinder.radius**2)
    closer = on_cap & (cap < distance)
    return np.where(closer, cap, distance), closer.astype(np.int32)
