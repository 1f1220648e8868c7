"""How a model wants its images: the size that the network sees, and how pixels get there."""

import logging
import math
from dataclasses import dataclass

import numpy as np

from jdepth.data import geometry

# Larger images are shrunk to it for released models, which otherwise see images at their own size: attention
# grows with the square of the area, and 12 megapixels would take 86 GB per block of ViT-S.
MOST_PIXELS = 1_500_000
MULTIPLE = 14


@dataclass(frozen=True)
class Preparation:
    """One of three rules; with none, images keep their own size (DINOv2's heads, which pad in the network).

    Attributes:
      area: pixels that images are brought to, aspect ratio kept (runs of jdepth: their training size).
      shrink_by_area: with `area`: average areas where that shrinks an image.
      least: smallest side in pixels, both sides multiples of 14, aspect ratio nearly kept, cubic (Depth
        Anything's released pre-processing).
    """

    area: int | None = None
    shrink_by_area: bool = False
    least: int | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Size (h, w) that the network sees of an image of height × width; at most about MOST_PIXELS."""
        if self.least is not None:
            scale = max(self.least / height, self.least / width)
            size = _multiple(scale * height, self.least), _multiple(scale * width, self.least)
            if size[0] * size[1] <= max(MOST_PIXELS, self.least**2 * 2):
                return size
            factor = math.sqrt(MOST_PIXELS / (size[0] * size[1]))
            size = _multiple(factor * size[0]), _multiple(factor * size[1])
            # A side that cannot be shorter leaves the other one its share.
            size = min(size[0], MOST_PIXELS // size[1]), min(size[1], MOST_PIXELS // size[0])
            return self._told(height, width, (_multiple(size[0]), _multiple(size[1])))
        area = self.area
        if area is None:
            if height * width <= MOST_PIXELS:
                return height, width
            area = MOST_PIXELS
        factor = math.sqrt(area / (height * width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        return size if self.area else self._told(height, width, size)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB -> (h, w, 3) at the network's size: uint8, or float32 (0 to 255, cubic may
        overshoot a little) under `least`."""
        size = self.size(*pixels.shape[:2])
        if self.least is not None:
            return geometry.resize_cubic(pixels, size)
        return geometry.resize(pixels, size, area=self.shrink_by_area)

    def describe(self) -> str:
        """In words."""
        if self.least is not None:
            return f"images brought to at least {self.least} pixels a side, multiples of {MULTIPLE}, cubic"
        return f"images brought to about {self.area} pixels" if self.area else "images at their own size"

    def _told(self, height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
        logging.warning("image of %d×%d brought to %d×%d for the network", height, width, *size)
        return size


def _multiple(length: float, least: int = MULTIPLE) -> int:
    """Nearest multiple of 14 (ties to even, as NumPy rounds), rounded up where that falls below `least`."""
    nearest = int(np.round(length / MULTIPLE)) * MULTIPLE
    return nearest if nearest >= least else math.ceil(length / MULTIPLE) * MULTIPLE or MULTIPLE
