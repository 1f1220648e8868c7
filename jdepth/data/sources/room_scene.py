"""Composition of a furnished room: kind and size, coverings, openings in the walls, furniture, lights, camera.

Everything is drawn from one numpy Generator, in one order, in metres and in real-world sizes, independent of
the resolution of the picture.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jdepth.data.sources import room_furniture as furniture
from jdepth.data.sources import room_materials as materials
from jdepth.data.sources.room_geometry import Box, Camera, Cylinder, Light, Scene, Sphere, box_frames, look

CLASSES = (
    "wall", "floor", "ceiling", "door", "window", "picture", "rug",
    "table", "chair", "cabinet", "bed", "sofa", "lamp", "ball",
)
LABELS = {name: i for i, name in enumerate(CLASSES)}


class Kind(NamedTuple):
    """A kind of room.

    share: how many rooms are of this kind; short, long: ranges of its two sides (m); wet: tiled, no wallpaper;
    pieces: furniture as (builder, probability, whether it stands against a wall).
    """

    share: float
    short: tuple[float, float]
    long: tuple[float, float]
    wet: bool
    pieces: tuple


_f = furniture
KINDS = {
    "bathroom": Kind(0.14, (1.5, 2.3), (1.8, 2.9), True, (
        (_f.tub, 0.6, True), (_f.cabinet, 0.7, True), (_f.crate, 0.3, False), (_f.chair, 0.2, False),
        (_f.ball, 0.3, False))),
    "corridor": Kind(0.1, (1.2, 1.9), (3.5, 9.0), False, (
        (_f.cabinet, 0.4, True), (_f.floor_lamp, 0.3, True), (_f.chair, 0.3, True), (_f.ball, 0.3, False),
        (_f.crate, 0.3, False))),
    "bedroom": Kind(0.22, (2.5, 3.6), (3.0, 4.6), False, (
        (_f.bed, 1.0, True), (_f.cabinet, 0.7, True), (_f.cabinet, 0.4, True), (_f.floor_lamp, 0.5, True),
        (_f.table, 0.3, True), (_f.sofa, 0.3, True), (_f.chair, 0.4, False), (_f.ball, 0.7, False),
        (_f.crate, 0.2, False))),
    "living": Kind(0.22, (3.0, 4.8), (3.6, 6.5), False, (
        (_f.sofa, 1.0, True), (_f.sofa, 0.5, True), (_f.shelf, 0.7, True), (_f.cabinet, 0.4, True),
        (_f.table, 0.7, False), (_f.floor_lamp, 0.7, True), (_f.chair, 0.4, False), (_f.ball, 0.75, False),
        (_f.bed, 0.35, True))),
    "dining": Kind(0.12, (2.4, 3.8), (3.0, 5.2), False, (
        (_f.table, 1.0, False), (_f.chair, 1.0, False), (_f.chair, 0.9, False), (_f.chair, 0.8, False),
        (_f.cabinet, 0.9, True), (_f.cabinet, 0.6, True), (_f.cabinet, 0.4, True), (_f.ball, 0.6, False),
        (_f.floor_lamp, 0.2, True))),
    "hall": Kind(0.2, (5.0, 8.5), (7.0, 10.0), False, (
        (_f.pillar, 0.5, False), (_f.pillar, 0.3, False), (_f.sofa, 0.5, True), (_f.table, 0.7, False),
        (_f.table, 0.6, False), (_f.chair, 0.8, False), (_f.chair, 0.7, False), (_f.chair, 0.5, False),
        (_f.cabinet, 0.5, True), (_f.shelf, 0.5, True), (_f.bed, 0.8, True), (_f.bed, 0.3, True), (_f.ball, 0.8, False),
        (_f.floor_lamp, 0.5, True), (_f.crate, 0.4, False), (_f.chair, 0.5, False), (_f.sofa, 0.4, True),
        (_f.cabinet, 0.5, True), (_f.ball, 0.5, False), (_f.table, 0.4, True))),
}


def compose(rng: np.random.Generator) -> Scene:
    """A random furnished room with its camera."""
    draw, kind = rng.random(), None
    for kind in KINDS.values():
        draw -= kind.share
        if draw < 0:
            break
    short, long = rng.uniform(*kind.short), rng.uniform(*kind.long)
    sides = (short, long) if rng.random() < 0.5 else (long, short)
    tall = rng.uniform(2.3, 2.7) if max(sides) < 5 else rng.uniform(2.5, 3.2)
    size = (float(sides[0]), float(sides[1]), float(tall))

    level = rng.uniform(0.14, 0.2)
    scene = Scene(size, (0, 0, 0, 0, 1, 2), (level * rng.uniform(0.92, 1.08), level, level * rng.uniform(0.88, 1.08)))
    add = _filing(scene)
    add(materials.wall(rng, kind.wet))
    add(materials.floor(rng, kind.wet))
    add(materials.ceiling(rng))
    if not kind.wet and rng.random() < 0.25:  # one wall of its own
        accent, at = add(materials.wall(rng, False)), int(rng.integers(4))
        scene.planes = tuple(accent if i == at else m for i, m in enumerate(scene.planes))

    taken: list[tuple[float, float, float, float]] = []  # floor rectangles that are occupied
    walls: list[list[tuple[float, float]]] = [[], [], [], []]  # stretches of the walls that are occupied
    if min(size[:2]) > 2.8 and rng.random() < 0.35:
        _corner(rng, scene, taken)
    _openings(rng, scene, walls, taken, add)
    _furnish(rng, scene, kind, walls, taken, add)
    if rng.random() < (0.4 if kind.wet else 0.75):
        _rug(rng, scene, add)
    _lights(rng, scene, add)
    scene.camera = _camera(rng, scene)
    return scene


def _filing(scene: Scene):
    def add(material: materials.Material) -> int:
        scene.materials.append(material)
        return len(scene.materials) - 1

    return add


def _corner(rng, scene: Scene, taken) -> None:
    """A full-height block of wall in one corner, which makes the room L-shaped."""
    width, depth = (rng.uniform(0.4, 0.35 * side) for side in scene.size[:2])
    x = width / 2 if rng.random() < 0.5 else scene.size[0] - width / 2
    y = depth / 2 if rng.random() < 0.5 else scene.size[1] - depth / 2
    tall = scene.size[2]
    half = (width / 2, depth / 2, tall / 2 + 0.01)
    scene.boxes.append(Box((x, y, tall / 2), half, 0.0, scene.planes[0], LABELS["wall"]))
    taken.append((x - width / 2, x + width / 2, y - depth / 2, y + depth / 2))


def _wall_spot(scene: Scene, wall: int, along: float, out: float) -> tuple[float, float, float]:
    """(x, y, yaw) of an object `along` metres along a wall and `out` metres off it, its back to the wall."""
    width, depth = scene.size[:2]
    quarter = np.pi / 2
    return (
        (out, along, quarter), (width - out, along, -quarter), (along, out, 2 * quarter), (along, depth - out, 0.0),
    )[wall]


def _free(rectangle, taken) -> bool:
    x0, x1, y0, y1 = rectangle
    return all(x1 <= a or b <= x0 or y1 <= c or d <= y0 for a, b, c, d in taken)


def _find_wall(rng, scene: Scene, walls, half: float):
    """A free stretch of 2 * half metres: (wall, position along it), or None."""
    for _ in range(6):
        wall = int(rng.integers(4))
        length = scene.size[1] if wall < 2 else scene.size[0]
        if length < 2 * half + 0.1:
            continue
        along = rng.uniform(half + 0.05, length - half - 0.05)
        if all(along + half <= a or b <= along - half for a, b in walls[wall]):
            return wall, along
    return None


def _openings(rng, scene: Scene, walls, taken, add) -> None:
    """Doors, windows and pictures: thin boxes on the walls. Doors keep the floor before them free."""
    flat = furniture.Piece
    for _ in range(1 + (rng.random() < 0.6)):
        half, tall = rng.uniform(0.38, 0.48), rng.uniform(2.0, 2.1)
        spot = _find_wall(rng, scene, walls, half + 0.08)
        if spot is None:
            continue
        wall, along = spot
        leaf = materials.wood(rng, (0.25, 0.65)) if rng.random() < 0.5 else materials.plain(
            materials.shade(rng, saturation=(0.0, 0.4), value=(0.35, 0.88)))
        if rng.random() < 0.7:
            leaf = leaf._replace(second=materials.darker(leaf.base, 0.6), period=(half, tall / 2), line=(0.12, 0.08))
        frame = add(materials.plain(materials.darker(leaf.base, rng.uniform(0.6, 1.1))))
        leaf, knob = add(leaf), add(materials.plain((0.5, 0.5, 0.45)))
        piece, label = flat((half, 0.02), shadow=0), LABELS["door"]
        piece.box(-half - 0.07, half + 0.07, -0.02, 0.02, 0, tall + 0.07, frame, label)
        piece.box(-half, half, -0.03, 0.02, 0, tall, leaf, label)
        piece.box(half - 0.17, half - 0.05, -0.09, -0.05, 1.03, 1.06, knob, label)
        x, y, yaw = _wall_spot(scene, wall, along, 0.02)
        if not _free((x - half, x + half, y - half, y + half), taken):
            continue
        furniture.place(scene, piece, x, y, yaw)
        walls[wall].append((along - half - 0.1, along + half + 0.1))
        taken.append((x - 0.8, x + 0.8, y - 0.8, y + 0.8))
    day = rng.random() < 0.75
    for _ in range(int(rng.integers(0, 3))):
        half, low, high = rng.uniform(0.4, 0.9), rng.uniform(0.8, 1.05), rng.uniform(1.9, 2.15)
        spot = _find_wall(rng, scene, walls, half + 0.08)
        if spot is not None:
            _window(rng, scene, spot, half, low, high, day, add)
            walls[spot[0]].append((spot[1] - half - 0.1, spot[1] + half + 0.1))
    for _ in range(int(rng.integers(0, 4))):
        half, tall = rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.45)
        spot = _find_wall(rng, scene, walls, half + 0.05)
        if spot is not None:
            _picture(rng, scene, spot, half, tall, add)
            walls[spot[0]].append((spot[1] - half - 0.05, spot[1] + half + 0.05))


def _window(rng, scene: Scene, spot, half, low, high, day, add) -> None:
    sky = materials.shade(rng, (0.5, 0.62), (0.05, 0.35), (0.8, 1.0)) if day else (0.03, 0.04, 0.07)
    white = (0.8, 0.8, 0.78)
    panes = 2 * half / max(1, round(2 * half / 0.5))
    bars = (0.3, 0.3, 0.29) if day else (0.5, 0.5, 0.48)  # seen against the light by day
    glass = materials.Material(sky, bars, (panes, (high - low) / 2), (0.1, 0.08), grain=0.08, grain_size=(0.03, 0.03),
                               glow=rng.uniform(0.45, 0.75) if day else 0.05)
    frame, glass, label = add(materials.plain(white)), add(glass), LABELS["window"]
    piece = furniture.Piece((half, 0.02), shadow=0)
    piece.box(-half - 0.06, half + 0.06, -0.02, 0.02, low - 0.06, high + 0.06, frame, label)
    piece.box(-half, half, -0.025, 0.02, low, high, glass, label)
    piece.box(-half - 0.1, half + 0.1, -0.12, 0.02, low - 0.09, low - 0.06, frame, label)
    if day:
        # The light stands just outside, so that it reaches the room but not the wall around the window.
        piece.lights.append(Light((0, 0.3, (low + high) / 2), materials.darker(sky, 0.5 * half + 0.2), 2.0))
    furniture.place(scene, piece, *_wall_spot(scene, *spot, 0.02))


def _picture(rng, scene: Scene, spot, half, tall, add) -> None:
    frame = add(materials.plain(materials.shade(rng, saturation=(0.0, 0.5), value=(0.05, 0.7))))
    art = add(materials.Material(
        materials.shade(rng, saturation=(0.2, 0.8), value=(0.2, 0.8)),
        materials.shade(rng, saturation=(0.2, 0.8), value=(0.1, 0.9)),
        (rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.5)), (rng.uniform(0, 0.6), rng.uniform(0, 0.6)),
        rng.uniform(1, 2), rng.uniform(-0.4, 0.4), 0.5, 0.3, (0.01, 0.01)))
    piece, label, middle = furniture.Piece((half, 0.015), shadow=0), LABELS["picture"], rng.uniform(1.45, 1.65)
    piece.box(-half, half, -0.015, 0.015, middle - tall, middle + tall, frame, label)
    piece.box(-half + 0.03, half - 0.03, -0.018, 0.0, middle - tall + 0.03, middle + tall - 0.03, art, label)
    furniture.place(scene, piece, *_wall_spot(scene, *spot, 0.015))


def _furnish(rng, scene: Scene, kind: Kind, walls, taken, add) -> None:
    for builder, probability, against_wall in kind.pieces:
        if rng.random() >= probability:
            continue
        piece = builder(rng, LABELS, add)
        half_x, half_y = piece.half
        for _ in range(8):
            if against_wall:
                wall = int(rng.integers(4))
                length = scene.size[1] if wall < 2 else scene.size[0]
                if length < 2 * half_x + 0.04:
                    continue
                along = rng.uniform(half_x + 0.02, length - half_x - 0.02)
                x, y, yaw = _wall_spot(scene, wall, along, half_y + 0.03)
                reach_x, reach_y = (half_y, half_x) if wall < 2 else (half_x, half_y)
            else:
                yaw = rng.uniform(0, 2 * np.pi)
                cos, sin = abs(np.cos(yaw)), abs(np.sin(yaw))
                reach_x, reach_y = cos * half_x + sin * half_y, sin * half_x + cos * half_y
                if 2 * max(reach_x, reach_y) + 0.1 > min(scene.size[:2]):
                    continue
                x = rng.uniform(reach_x + 0.04, scene.size[0] - reach_x - 0.04)
                y = rng.uniform(reach_y + 0.04, scene.size[1] - reach_y - 0.04)
            rectangle = (x - reach_x, x + reach_x, y - reach_y, y + reach_y)
            if not _free(rectangle, taken):
                continue
            furniture.place(scene, piece, x, y, yaw)
            taken.append(rectangle)
            if builder in (furniture.cabinet, furniture.crate, furniture.table) and rng.random() < 0.4:
                _ornament(rng, scene, piece, x, y, yaw, add)
            break


def _ornament(rng, scene: Scene, piece, x, y, yaw, add) -> None:
    """A table lamp on top of a low piece."""
    top = max(b.centre[2] + b.half[2] for b in piece.boxes)
    if top > 1.3:
        return
    lit, label = rng.random() < 0.6, LABELS["lamp"]
    tint = materials.shade(rng, (0.05, 0.15), (0.05, 0.3), (0.85, 0.95))
    foot = add(materials.plain(materials.shade(rng, value=(0.15, 0.7))))
    globe = add(materials.Material(tint, glow=0.7 if lit else 0.0))
    lamp = furniture.Piece((0.1, 0.1), shadow=0)
    lamp.cylinders.append(Cylinder((0, 0, 0.09), 0.05, 0.09, foot, label))
    lamp.spheres.append(Sphere((0, 0, 0.27), 0.11, globe, label))
    if lit:
        lamp.lights.append(Light((0, 0, 0.3), materials.darker(tint, 0.25), 0.8))
    furniture.place(scene, lamp, x, y, yaw, lift=top)


def _rug(rng, scene: Scene, add) -> None:
    half_x, half_y = rng.uniform(0.5, 1.5), rng.uniform(0.4, 1.1)
    yaw = rng.uniform(-0.4, 0.4)
    reach = 1.1 * max(half_x, half_y) + 0.1
    if 2 * reach > min(scene.size[:2]):
        half_x, half_y, yaw, reach = 0.35, 0.25, 0.0, 0.4
    x, y = (rng.uniform(reach, s - reach) for s in scene.size[:2])
    cloth = materials.fabric(rng)
    cloth = cloth._replace(grain=0.25, band=0.08, band_colour=materials.shade(rng))
    rug = furniture.Piece((half_x, half_y), shadow=0)
    rug.box(-half_x, half_x, -half_y, half_y, 0, 0.015, add(cloth), LABELS["rug"])
    furniture.place(scene, rug, x, y, yaw)


def _lights(rng, scene: Scene, add) -> None:
    """Ceiling lights, hanging or flush; of all lights in the room the four strongest are kept."""
    width, depth, tall = scene.size
    lamps = 1 + (max(width, depth) > 5)
    for i in range(lamps):
        share = (i + 0.5) / lamps
        x, y = (share * width, depth / 2) if width > depth else (width / 2, share * depth)
        x, y = x + rng.uniform(-0.15, 0.15) * width / lamps, y + rng.uniform(-0.15, 0.15) * depth / lamps
        tint = materials.shade(rng, (0.07, 0.17), (0.02, 0.25), (0.9, 1.0))
        globe, label = add(materials.Material(tint, glow=0.9)), LABELS["lamp"]
        lamp = furniture.Piece((0.2, 0.2), shadow=0)
        drop = 0.06
        if rng.random() < 0.4 and tall > 2.45:
            drop = rng.uniform(0.35, 0.55)
            cord = add(materials.plain((0.1, 0.1, 0.1)))
            lamp.cylinders.append(Cylinder((0, 0, -drop / 2), 0.008, drop / 2, cord, label))
            lamp.spheres.append(Sphere((0, 0, -drop), 0.16, globe, label))
        else:
            lamp.cylinders.append(Cylinder((0, 0, -0.04), 0.17, 0.04, globe, label))
        lamp.lights.append(Light((0, 0, -drop - 0.2), materials.darker(tint, rng.uniform(0.25, 0.5)), 2.2))
        furniture.place(scene, lamp, x, y, 0.0, lift=tall)
    scene.lights.sort(key=lambda light: -sum(light.colour) * light.reach)
    del scene.lights[4:]


_FAN = np.array([(x, y, 1.0) for y in (-0.5, 0.0, 0.5) for x in (-0.5, -0.25, 0.0, 0.25, 0.5)])


def _camera(rng, scene: Scene) -> Camera:
    """A hand-held camera in free space whose view is not blocked at arm's length."""
    centre, half, axes = box_frames(
        scene.boxes
        + [Box(c.centre, (c.radius, c.radius, c.half_height), 0.0, 0, 0) for c in scene.cylinders]
        + [Box(s.centre, (s.radius,) * 3, 0.0, 0, 0) for s in scene.spheres]
    )
    best, best_view = None, -np.inf
    for _ in range(24):
        x, y = (rng.uniform(0.3, s - 0.3) for s in scene.size[:2])
        position = np.array([x, y, rng.uniform(0.9, 1.8)])
        yaw, pitch = rng.uniform(-np.pi, np.pi), rng.normal(-0.1, 0.3)
        if scene.shadows and rng.random() < 0.75:  # towards a piece of furniture, near the picture's middle
            targets = [scene.shadows[int(rng.integers(len(scene.shadows)))].centre for _ in range(2)]
            dx, dy = max(((tx - x, ty - y) for tx, ty in targets), key=lambda d: d[0] * d[0] + d[1] * d[1])
            yaw = np.arctan2(dy, dx) + rng.normal(0, 0.25)
            pitch = np.arctan2(rng.uniform(0.2, 1.5) - position[2], np.hypot(dx, dy) + 0.3) + rng.normal(0, 0.16)
        camera = look(position, yaw, np.clip(pitch, -0.9, 0.65), np.clip(rng.normal(0, 0.08), -0.22, 0.22))
        local = np.einsum("bij,bj->bi", axes, position - centre)
        clearance = np.maximum(np.abs(local) - half, 0)
        if (np.square(clearance).sum(1) < 0.3**2).any():
            continue
        views = _probe(scene, camera, local, half, axes)
        closest, typical = views.min(), np.median(views)
        if closest > 0.35 and typical > 0.7:
            # Views into the room are to outnumber blank walls close by.
            if typical > 1.3 or rng.random() < 0.75:
                return camera
        if closest > best_view:
            best, best_view = camera, closest
    if best is None:  # a crowded room: stand in its middle, above the furniture
        best = look(np.array([scene.size[0] / 2, scene.size[1] / 2, scene.size[2] - 0.5]), yaw, -0.4, 0.0)
    return best


def _probe(scene: Scene, camera: Camera, local, half, axes) -> np.ndarray:
    """z-depth along a fan of a few rays, with every object taken as its box."""
    rays = _FAN @ camera.rotation
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(rays > 0, np.asarray(scene.size) - camera.position, -camera.position) / rays
        inverse = 1 / np.einsum("bij,rj->rbi", axes, rays)
        start, end = (-half - local) * inverse, (half - local) * inverse
    near, far = np.minimum(start, end).max(-1), np.maximum(start, end).min(-1)
    hits = np.where((near < far) & (near > 0), near, np.inf)
    return np.minimum(np.abs(room).min(1), hits.min(1))
