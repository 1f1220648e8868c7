"""Furniture in real-world sizes, each piece a list of boxes, cylinders and spheres in its own frame.

A piece stands on the floor at its origin, its width along x, its back towards +y. Builders take (rng, labels,
add), where `labels` maps class names to ids and `add(material)` files a material and returns its index.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from jdepth.data.sources import room_materials as materials
from jdepth.data.sources.room_geometry import Box, Cylinder, Light, Scene, Shadow, Sphere


@dataclass
class Piece:
    """half: half width and half depth of its footprint in metres; shadow: strength of its shadow on the floor."""

    half: tuple[float, float]
    boxes: list[Box] = field(default_factory=list)
    cylinders: list[Cylinder] = field(default_factory=list)
    spheres: list[Sphere] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    shadow: float = 0.6

    def box(self, x0, x1, y0, y1, z0, z1, material, label) -> None:
        """Add the box between the given bounds."""
        centre = ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2)
        self.boxes.append(Box(centre, ((x1 - x0) / 2, (y1 - y0) / 2, (z1 - z0) / 2), 0.0, material, label))

    def legs(self, thick, height, material, label) -> None:
        """Four square legs at the corners of the footprint, slightly inset."""
        for sx in (-1, 1):
            for sy in (-1, 1):
                x, y = sx * (self.half[0] - thick), sy * (self.half[1] - thick)
                self.box(x - thick / 2, x + thick / 2, y - thick / 2, y + thick / 2, 0, height, material, label)


def place(scene: Scene, piece: Piece, x: float, y: float, yaw: float, lift: float = 0.0) -> None:
    """Put `piece` into `scene` at (x, y), turned by `yaw`, `lift` metres above the floor."""
    cos, sin = float(np.cos(yaw)), float(np.sin(yaw))

    def move(p):
        return x + cos * p[0] - sin * p[1], y + sin * p[0] + cos * p[1], p[2] + lift

    scene.boxes += [b._replace(centre=move(b.centre), yaw=b.yaw + yaw) for b in piece.boxes]
    scene.cylinders += [c._replace(centre=move(c.centre)) for c in piece.cylinders]
    scene.spheres += [s._replace(centre=move(s.centre)) for s in piece.spheres]
    scene.lights += [light._replace(position=move(light.position)) for light in piece.lights]
    if lift == 0.0 and piece.shadow > 0:
        scene.shadows.append(Shadow((x, y), piece.half, yaw, piece.shadow))


def table(rng, labels, add) -> Piece:
    """Dining table, desk or coffee table: a top on four legs or on one column."""
    low = rng.random() < 0.25
    wide = rng.uniform(0.35, 0.6) if low else rng.uniform(0.5, 0.95)
    deep = rng.uniform(0.25, 0.35) if low else rng.uniform(0.32, 0.48)
    top = rng.uniform(0.4, 0.46) if low else rng.uniform(0.73, 0.77)
    piece, label = Piece((wide, deep), shadow=0.5), labels["table"]
    slab = add(materials.wood(rng) if rng.random() < 0.7 else materials.plain(materials.shade(rng, value=(0.3, 0.85))))
    piece.box(-wide, wide, -deep, deep, top - 0.04, top, slab, label)
    if rng.random() < 0.75:
        piece.legs(0.06, top - 0.04, slab, label)
    else:
        metal = add(materials.plain((0.2, 0.2, 0.22)))
        piece.cylinders.append(Cylinder((0, 0, top / 2 - 0.02), 0.05, top / 2 - 0.02, metal, label))
        piece.cylinders.append(Cylinder((0, 0, 0.02), 0.27, 0.02, metal, label))
    return piece


def chair(rng, labels, add) -> Piece:
    """Chair with a back, or a round stool."""
    label = labels["chair"]
    seat = add(materials.wood(rng) if rng.random() < 0.5 else materials.fabric(rng))
    if rng.random() < 0.2:
        piece = Piece((0.19, 0.19), shadow=0.5)
        height = rng.uniform(0.44, 0.62)
        piece.cylinders.append(Cylinder((0, 0, height - 0.03), 0.19, 0.03, seat, label))
        piece.cylinders.append(Cylinder((0, 0, height / 2 - 0.03), 0.04, height / 2 - 0.03, seat, label))
        return piece
    piece = Piece((0.22, 0.22), shadow=0.5)
    back = rng.uniform(0.84, 0.95)
    piece.box(-0.22, 0.22, -0.22, 0.22, 0.42, 0.46, seat, label)
    piece.box(-0.2, 0.2, 0.19, 0.22, 0.58, back, seat, label)
    for x in (-0.19, 0.19):
        piece.box(x - 0.02, x + 0.02, -0.21, -0.17, 0, 0.42, seat, label)
        piece.box(x - 0.02, x + 0.02, 0.18, 0.22, 0, back, seat, label)
    return piece


def cabinet(rng, labels, add) -> Piece:
    """Chest of drawers, wardrobe or kitchen unit, its front divided into drawers or doors."""
    label, draw = labels["cabinet"], rng.random()
    if draw < 0.45:
        wide, deep, tall, cell = rng.uniform(0.35, 0.75), rng.uniform(0.2, 0.28), rng.uniform(0.75, 1.1), (0.4, 0.25)
    elif draw < 0.8:
        wide, deep, tall, cell = rng.uniform(0.45, 1.0), rng.uniform(0.27, 0.32), rng.uniform(1.9, 2.15), (0.5, 2.2)
    else:
        wide, deep, tall, cell = rng.uniform(0.6, 1.2), 0.3, 0.9, (0.6, 0.9)
    finish = materials.wood(rng, (0.2, 0.65)) if rng.random() < 0.6 else materials.plain(
        materials.shade(rng, saturation=(0.0, 0.4), value=(0.35, 0.88)))
    joint = materials.darker(finish.base, 0.35)
    front = add(finish._replace(second=joint, period=cell, line=(0.012 / cell[0] + 0.02, 0.012 / cell[1] + 0.02)))
    piece = Piece((wide, deep))
    piece.box(-wide, wide, -deep + 0.02, deep, 0.06, tall, front, label)
    plinth = add(materials.plain(materials.darker(finish.base, 0.4)))
    piece.box(-wide + 0.02, wide - 0.02, -deep + 0.05, deep, 0, 0.06, plinth, label)
    if draw >= 0.8 or rng.random() < 0.3:
        top = add(materials.plain(materials.shade(rng, saturation=(0.0, 0.2), value=(0.2, 0.8)), 0.1))
        piece.box(-wide, wide, -deep, deep, tall, tall + 0.03, top, label)
    return piece


def shelf(rng, labels, add) -> Piece:
    """Open bookcase: two sides, boards, and rows of books."""
    label = labels["cabinet"]
    wide, deep, tall = rng.uniform(0.35, 0.6), 0.15, rng.uniform(1.4, 2.05)
    board = add(materials.wood(rng))
    books = add(materials.Material(materials.shade(rng, saturation=(0.2, 0.5), value=(0.3, 0.5)), (0.05,) * 3,
                                   (0.035, 0.35), (0.1, 0.0), tint=0.85, grain=0.05))
    piece = Piece((wide, deep))
    piece.box(-wide, wide, deep - 0.02, deep, 0, tall, board, label)
    for x in (-wide, wide - 0.03):
        piece.box(x, x + 0.03, -deep, deep, 0, tall, board, label)
    count = int(tall / 0.36)
    for i in range(count + 1):
        z = i * (tall - 0.03) / count
        piece.box(-wide, wide, -deep, deep, z, z + 0.03, board, label)
        if i < count and rng.random() < 0.75:
            end = wide - 0.03 - rng.uniform(0, wide)
            piece.box(-wide + 0.03, end, -deep + 0.04, deep, z + 0.03, z + rng.uniform(0.22, 0.28), books, label)
    return piece


def bed(rng, labels, add) -> Piece:
    """Bed with headboard, mattress, blanket and pillows; the head at its back."""
    label = labels["bed"]
    wide, deep = rng.choice((0.45, 0.7, 0.9)), 1.02
    frame, cloth = add(materials.wood(rng)), add(materials.fabric(rng))
    sheet = add(materials.plain(materials.shade(rng, saturation=(0.0, 0.1), value=(0.7, 0.9)), 0.05))
    piece = Piece((wide, deep))
    piece.box(-wide, wide, -deep, deep, 0.08, 0.3, frame, label)
    piece.box(-wide, wide, deep - 0.05, deep, 0.0, rng.uniform(0.8, 1.15), frame, label)
    piece.box(-wide + 0.02, wide - 0.02, -deep + 0.02, deep - 0.05, 0.3, 0.48, sheet, label)
    piece.box(-wide, wide, -deep, deep - 0.65, 0.3, 0.52, cloth, label)
    for x in (0.0,) if wide < 0.5 else (-wide / 2, wide / 2):
        piece.box(x - 0.3, x + 0.3, deep - 0.5, deep - 0.1, 0.48, 0.6, sheet, label)
    return piece


def sofa(rng, labels, add) -> Piece:
    """Sofa or armchair: seat, cushions, back and arms."""
    label = labels["sofa"]
    seats = int(rng.integers(1, 4))
    wide, deep = 0.31 * seats + 0.16, rng.uniform(0.4, 0.47)
    cloth = materials.fabric(rng)
    body, cushion = add(cloth), add(cloth._replace(base=materials.darker(cloth.base, rng.uniform(0.8, 1.2))))
    piece = Piece((wide, deep))
    piece.box(-wide, wide, -deep, deep, 0.06, 0.3, body, label)
    piece.box(-wide, wide, deep - 0.2, deep, 0.3, rng.uniform(0.75, 0.9), body, label)
    for x in (-wide, wide - 0.16):
        piece.box(x, x + 0.16, -deep, deep - 0.2, 0.3, rng.uniform(0.55, 0.64), body, label)
    for i in range(seats):
        left = -wide + 0.17 + 0.62 * i
        piece.box(left, left + 0.6, -deep - 0.02, deep - 0.2, 0.3, 0.44, cushion, label)
    return piece


def floor_lamp(rng, labels, add) -> Piece:
    """Standing lamp: foot, pole and a glowing shade."""
    label, tall = labels["lamp"], rng.uniform(1.4, 1.75)
    metal = add(materials.plain(materials.shade(rng, saturation=(0.0, 0.3), value=(0.1, 0.5))))
    tint = materials.shade(rng, (0.05, 0.15), (0.05, 0.35), (0.85, 0.95))
    lit = rng.random() < 0.7
    cloth = add(materials.Material(tint, glow=0.75 if lit else 0.0))
    piece = Piece((0.2, 0.2), shadow=0.4)
    piece.cylinders.append(Cylinder((0, 0, 0.015), 0.15, 0.015, metal, label))
    piece.cylinders.append(Cylinder((0, 0, tall / 2 - 0.1), 0.018, tall / 2 - 0.1, metal, label))
    if rng.random() < 0.6:
        piece.cylinders.append(Cylinder((0, 0, tall - 0.12), 0.19, 0.13, cloth, label))
    else:
        piece.spheres.append(Sphere((0, 0, tall - 0.1), 0.14, cloth, label))
    if lit:
        piece.lights.append(Light((0, 0, tall - 0.12), materials.darker(tint, 0.3), 1.0))
    return piece


def ball(rng, labels, add) -> Piece:
    """Ball on the floor: football to gymnastics ball, plain or striped."""
    radius = rng.uniform(0.11, 0.14) if rng.random() < 0.4 else rng.uniform(0.2, 0.36)
    skin = materials.plain(materials.shade(rng, saturation=(0.4, 0.9), value=(0.35, 0.85)))
    if rng.random() < 0.5:
        skin = skin._replace(second=materials.shade(rng, value=(0.2, 0.9)), period=(1.0, radius), line=(0.0, 0.4))
    piece = Piece((0.7 * radius, 0.7 * radius), shadow=0.7)
    piece.spheres.append(Sphere((0, 0, radius), radius, add(skin), labels["ball"]))
    return piece


def crate(rng, labels, add) -> Piece:
    """Cardboard or wooden box on the floor."""
    wide, deep, tall = rng.uniform(0.15, 0.35), rng.uniform(0.15, 0.3), rng.uniform(0.25, 0.6)
    skin = add(materials.wood(rng, (0.3, 0.65)) if rng.random() < 0.6 else materials.plain(materials.shade(rng)))
    piece = Piece((wide, deep))
    piece.box(-wide, wide, -deep, deep, 0, tall, skin, labels["cabinet"])
    return piece


def pillar(rng, labels, add) -> Piece:
    """Round column from the floor to above any ceiling, part of the walls."""
    radius = rng.uniform(0.12, 0.25)
    piece = Piece((radius, radius))
    skin = add(materials.plain(materials.shade(rng, saturation=(0.0, 0.15), value=(0.45, 0.8)), 0.1))
    piece.cylinders.append(Cylinder((0, 0, 2.0), radius, 2.0, skin, labels["wall"]))
    return piece


def tub(rng, labels, add) -> Piece:
    """Bathtub, counted among the cabinets: four rims around a lower floor."""
    label, wide, deep = labels["cabinet"], 0.8, 0.36
    white = add(materials.plain(materials.shade(rng, saturation=(0.0, 0.06), value=(0.75, 0.9)), 0.02))
    piece = Piece((wide, deep))
    piece.box(-wide, wide, -deep, deep, 0, 0.2, white, label)
    piece.box(-wide, wide, -deep, -deep + 0.07, 0.2, 0.58, white, label)
    piece.box(-wide, wide, deep - 0.07, deep, 0.2, 0.58, white, label)
    piece.box(-wide, -wide + 0.1, -deep, deep, 0.2, 0.58, white, label)
    piece.box(wide - 0.1, wide, -deep, deep, 0.2, 0.58, white, label)
    return piece
