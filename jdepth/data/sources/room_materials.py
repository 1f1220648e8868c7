"""Materials of the rooms: real-world-size patterns (tiles, planks, stripes, ...), filtered to the pixel's footprint.

One formula covers every pattern, so that a whole image is textured at once:

    P = L_u + L_v - cross * L_u * L_v         L: pulse trains along u and v; cross 1 = joints of tiles, 2 = checkers
    albedo = mix(base * (1 + tint * cell noise), second, P) * (1 + grain * 1/f noise), below `band` metres: band colour

Pulse trains are box-filtered in closed form; cell noise fades once a cell is smaller than a pixel; 1/f noise is
read from a mip pyramid. A distant pattern therefore turns into its mean colour rather than into noise.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import NamedTuple

import numpy as np

Colour = tuple[float, float, float]


class Material(NamedTuple):
    """Colours are linear albedos in [0, 1]; lengths are metres along the surface.

    period: size of a cell along u and v; line: share of each period taken by the second colour;
    shift: fraction of a cell by which each row is moved against the one before; tint: spread of the cells' colours;
    grain: strength of the 1/f noise, whose finest detail has the size `grain_size` along u and v;
    band: height in metres (along v) below which `band_colour` shows; glow: light given off.
    """

    base: Colour
    second: Colour = (0.0, 0.0, 0.0)
    period: tuple[float, float] = (1.0, 1.0)
    line: tuple[float, float] = (0.0, 0.0)
    cross: float = 1.0
    shift: float = 0.0
    tint: float = 0.0
    grain: float = 0.0
    grain_size: tuple[float, float] = (0.01, 0.01)
    band: float = 0.0
    band_colour: Colour = (0.0, 0.0, 0.0)
    glow: float = 0.0


def material_table(materials: list[Material]) -> np.ndarray:
    """(21, M) float32: the fields of `Material`, flattened, one column per material."""
    return np.array([np.hstack(m) for m in materials], np.float32).T


_NOISE = 256  # texels across the noise image, a power of two


@lru_cache(maxsize=None)
def _noise_pyramid() -> tuple[np.ndarray, np.ndarray]:
    """1/f noise of unit variance in all its mip levels, flattened, and the offset of each level."""
    rng = np.random.Generator(np.random.PCG64(7))
    frequency = np.fft.fftfreq(_NOISE) * _NOISE
    radius = np.hypot(frequency[:, None], frequency[None])
    radius[0, 0] = np.inf
    level = np.fft.ifft2(np.fft.fft2(rng.standard_normal((_NOISE, _NOISE))) / radius).real
    level /= level.std()
    levels = []
    while True:
        levels.append(level.astype(np.float32).ravel())
        if level.shape[0] == 1:
            break
        level = (level[::2, ::2] + level[1::2, ::2] + level[::2, 1::2] + level[1::2, 1::2]) / 4
    offsets = np.cumsum([0] + [len(x) for x in levels[:-1]]).astype(np.int32)
    return np.concatenate(levels), offsets


@lru_cache(maxsize=None)
def _cell_noise() -> np.ndarray:
    """(3, 1024) random colour offsets of cells, mostly common to the three channels."""
    rng = np.random.Generator(np.random.PCG64(8))
    common = rng.uniform(-1, 1, 1024)
    return (0.75 * common + 0.35 * rng.uniform(-1, 1, (3, 1024))).astype(np.float32)


def _pulse(x: np.ndarray, footprint: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Mean over [x - footprint/2, x + footprint/2] of the train that is 1 on [n, n + line) and 0 elsewhere."""

    def integral(y):
        whole = np.floor(y)
        y -= whole
        np.minimum(y, line, out=y)
        whole *= line
        y += whole
        return y

    half = 0.5 * footprint
    return (integral(x + half) - integral(x - half)) / footprint


def albedo(table: np.ndarray, index: np.ndarray, u, v, footprint_u, footprint_v) -> tuple[np.ndarray, np.ndarray]:
    """Colour (3, N) and glow (N,) of N surface points.

    table: from `material_table`; index: (N,) material of each point; u, v: (N,) metres along its surface;
    footprint_u, footprint_v: (N,) metres that one pixel covers along u and v.
    """
    column = np.take(table, index, axis=1)
    base, second = column[0:3], column[3:6]
    period_u, period_v, line_u, line_v, cross, shift, tint, grain, size_u, size_v, band = column[6:17]
    band_colour, glow = column[17:20], column[20]

    y = v / period_v
    cell_y = np.floor(y)
    x = u / period_u + shift * cell_y
    cell_x = np.floor(x)
    wide = np.maximum(footprint_u / period_u, np.float32(1e-4))
    tall = np.maximum(footprint_v / period_v, np.float32(1e-4))

    hashed = (cell_x.astype(np.int32) * np.int32(73) + cell_y.astype(np.int32) * np.int32(389)) & np.int32(1023)
    sharp = np.clip(np.float32(1.5) - np.maximum(wide, tall), 0, 1)
    colour = np.take(_cell_noise(), hashed, axis=1)
    colour *= tint * sharp
    colour += 1
    colour *= base

    on_u, on_v = _pulse(x, wide, line_u), _pulse(y, tall, line_v)
    mixed = on_u + on_v - cross * on_u * on_v
    colour += (second - colour) * mixed

    # Edge of the band at the bottom, one footprint wide.
    below = np.clip((band - v) / np.maximum(footprint_v, np.float32(1e-4)) + np.float32(0.5), 0, 1) * (band > 0)
    colour += (band_colour - colour) * below

    colour *= 1 + grain * _grain(u / size_u, v / size_v, np.maximum(footprint_u / size_u, footprint_v / size_v))
    np.clip(colour, 0.01, 1, out=colour)
    return colour, glow


def _grain(x: np.ndarray, y: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """1/f noise at texel coordinates (x, y), from the mip level whose texels are about one footprint wide."""
    noise, offsets = _noise_pyramid()
    level = np.frexp(footprint)[1].astype(np.int32)
    np.clip(level, 0, len(offsets) - 1, out=level)
    side = np.right_shift(np.int32(_NOISE), level)
    column = np.right_shift(x.astype(np.int32), level) & (side - 1)
    line = np.right_shift(y.astype(np.int32), level) & (side - 1)
    return np.take(noise, np.take(offsets, level) + line * side + column)


# Palettes. `rng` is a numpy Generator; sizes are those of the building trade, so that a pattern tells the scale.


def shade(rng, hue=(0.0, 1.0), saturation=(0.05, 0.4), value=(0.4, 0.8)) -> Colour:
    """A random colour within ranges of hue, saturation and value."""
    return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))


def darker(colour: Colour, factor: float) -> Colour:
    """`colour` times `factor`."""
    return tuple(factor * c for c in colour)


def wood(rng, dark=(0.28, 0.6)) -> Material:
    """Smooth wooden surface with a grain along v."""
    return Material(shade(rng, (0.05, 0.1), (0.45, 0.7), dark), grain=0.14, grain_size=(0.006, 0.06))


def plain(colour: Colour, grain=0.03) -> Material:
    """Paint, plastic or metal."""
    return Material(colour, grain=grain, grain_size=(0.02, 0.02))


def fabric(rng) -> Material:
    """Cloth: plain, striped or checked."""
    base = shade(rng, saturation=(0.1, 0.6), value=(0.3, 0.75))
    cloth = Material(base, grain=0.1, grain_size=(0.008, 0.008))
    draw = rng.random()
    if draw < 0.55:
        return cloth
    second = shade(rng, saturation=(0.1, 0.6), value=(0.2, 0.8))
    if draw < 0.8:
        return cloth._replace(second=second, period=(0.12, 1.0), line=(0.4, 0.0))
    return cloth._replace(second=second, period=(0.2, 0.2), line=(0.5, 0.5), cross=2.0)


def glossy_tiles(rng, size: float) -> Material:
    """Square tiles of about `size` metres with light or dark joints."""
    base = shade(rng, saturation=(0.0, 0.35), value=(0.45, 0.8))
    joint = darker(base, rng.uniform(0.35, 0.6)) if rng.random() < 0.6 else (0.75, 0.75, 0.72)
    return Material(base, joint, (size, size), (0.006 / size + 0.02,) * 2, tint=0.12, grain=0.04)


def floor(rng, wet: bool) -> Material:
    """Floor covering: planks, tiles, checkers, carpet or concrete."""
    draw = rng.random()
    if wet:
        draw = 0.45 + 0.4 * draw
    if draw < 0.45:
        base = shade(rng, (0.05, 0.1), (0.4, 0.7), (0.3, 0.6))
        return Material(base, darker(base, 0.4), (1.2, 0.14), (0.006, 0.05), shift=0.37, tint=0.3, grain=0.12,
                        grain_size=(0.06, 0.006))
    if draw < 0.7:
        return glossy_tiles(rng, 0.33 * rng.uniform(0.92, 1.08))
    if draw < 0.85:
        size = 0.6 * rng.uniform(0.92, 1.08)
        light = shade(rng, saturation=(0.0, 0.2), value=(0.55, 0.8))
        dark = shade(rng, saturation=(0.0, 0.4), value=(0.08, 0.3))
        return Material(light, dark, (size, size), (0.5, 0.5), 2.0, grain=0.08)
    if draw < 0.95:
        base = shade(rng, saturation=(0.05, 0.5), value=(0.3, 0.65))
        return Material(base, darker(base, 0.75), (0.5, 0.5), (0.5, 0.5), 2.0, grain=0.2, grain_size=(0.012, 0.012))
    return Material(shade(rng, saturation=(0.0, 0.1), value=(0.3, 0.55)), (0.15,) * 3, (1.0, 1.0), (0.01, 0.01),
                    grain=0.15, grain_size=(0.015, 0.015))


def wall(rng, wet: bool) -> Material:
    """Wall covering: paint, striped or dotted wallpaper, bricks, tiles or panels, mostly with a skirting board."""
    paint = shade(rng, saturation=(0.03, 0.35), value=(0.55, 0.8))
    skirting = (0.75, 0.74, 0.7) if rng.random() < 0.5 else shade(rng, (0.05, 0.1), (0.4, 0.7), (0.12, 0.4))
    finish = Material(paint, grain=0.07, grain_size=(0.012, 0.012), band=0.1, band_colour=skirting)
    draw = rng.random()
    if wet:
        tiles = glossy_tiles(rng, 0.2 * rng.uniform(0.92, 1.08))
        if draw < 0.4:
            low = darker(tiles.base, 0.5)
            return tiles._replace(band=0.2, band_colour=low)
        return tiles if draw < 0.85 else finish
    if draw < 0.3:
        return finish
    if draw < 0.55:
        return finish._replace(second=darker(paint, rng.uniform(0.6, 0.85)), period=(0.2, 1.0), line=(0.5, 0.0))
    if draw < 0.7:
        return finish._replace(second=shade(rng, value=(0.3, 0.8)), period=(0.25, 0.25), line=(0.35, 0.35), cross=2.0)
    if draw < 0.83:
        brick = shade(rng, (0.0, 0.07), (0.3, 0.65), (0.3, 0.65))
        return Material(brick, (0.62, 0.6, 0.56), (0.25, 0.083), (0.06, 0.16), shift=0.5, tint=0.3, grain=0.1)
    if draw < 0.92:
        return finish._replace(band=0.95, band_colour=darker(skirting, 0.9))
    return Material(paint, darker(paint, 0.55), (0.1, 3.0), (0.12, 0.0), grain=0.06, tint=0.06)


def ceiling(rng) -> Material:
    """Ceiling: white paint, suspended square panels or boards."""
    white = shade(rng, saturation=(0.0, 0.08), value=(0.7, 0.9))
    draw = rng.random()
    if draw < 0.5:
        return Material(white, grain=0.05, grain_size=(0.012, 0.012))
    if draw < 0.8:
        return Material(white, darker(white, 0.55), (0.6, 0.6), (0.05, 0.05), tint=0.05, grain=0.06)
    board = shade(rng, (0.05, 0.1), (0.3, 0.6), (0.35, 0.7))
    return Material(board, darker(board, 0.4), (2.4, 0.12), (0.004, 0.08), shift=0.37, tint=0.15, grain=0.1,
                    grain_size=(0.06, 0.006))
