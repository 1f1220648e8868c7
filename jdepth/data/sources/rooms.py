"""Rooms: an endless supply of furnished rooms with exact metric depth and class labels, rendered with NumPy alone.

An item depends on (seed, split, index) only, so a data set needs no download, no disk and no preparation.
Scale can be told from the picture: one focal length, tiles, planks, doors and furniture in real-world sizes,
and a flash on the camera that lights what is near more than what is far. It cannot be told from the position
of a pixel: rooms from bathroom to hall, the camera anywhere in them, pitched and rolled.
"""

from __future__ import annotations

import operator

import numpy as np

from jdepth.data.sources.room_geometry import Scene, intrinsics
from jdepth.data.sources.room_render import Render, render
from jdepth.data.sources.room_scene import CLASSES, compose
from jdepth.errors import UserError

SPLITS = ("train", "val", "test", "auxiliary")
MAX_DEPTH = 10.0  # metres: range of the simulated depth sensor
BASELINE = 0.075  # metres between the simulated sensor's camera and its projector, as in a first-generation Kinect


class Rooms:
    """Source of procedurally rendered rooms.

    split: one of "train", "val", "test", "auxiliary"; no two splits share a room.
    size: number of images; a longer source begins with the same images as a shorter one.
    height, width: of every image, in pixels; the scene of an index does not depend on them.
    noise: sensor noise on the colours and missing depth (0) where an object hides a surface from the depth
        sensor's projector, in clumps at edges, at grazing angles and on windows, and beyond 10 m; without it the
        picture is clean and depth is known everywhere.
    cache: keep every rendered item, `height * width * 8` bytes each (0.30 MB at 168 x 224, 0.08 MB at 84 x 112,
        and 308 MB for 1024 images at 168 x 224), so that later passes cost a copy. Processes do not share it;
        threads do, and a copy sent to another process starts empty.

    Items: {"image": (H, W, 3) uint8 RGB, "depth": (H, W) float32 metres along the optical axis, 0 = missing,
    "label": (H, W) uint8 index into `classes`}. Rendering rounds in float32: the same NumPy on the same kind of
    processor gives the same bytes, another may differ in a last digit.
    """

    name = "rooms"
    classes = CLASSES
    max_depth = MAX_DEPTH

    def __init__(self, split="train", size=1024, height=168, width=224, seed=0, noise=True, cache=True) -> None:
        if split not in SPLITS:
            raise UserError(f"rooms: no split {split!r}; choose one of {', '.join(SPLITS)}")
        for name, value, least in (("size", size, 0), ("height", height, 8), ("width", width, 8), ("seed", seed, 0)):
            if not isinstance(value, (int, np.integer)) or value < least:
                raise UserError(f"rooms: {name} must be a whole number of at least {least}, not {value!r}")
        self.split, self.size, self.seed = split, int(size), int(seed)
        self.height, self.width = int(height), int(width)
        self.noise = noise
        self._cache: dict[int, dict[str, np.ndarray]] | None = {} if cache else None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Item `index` as fresh arrays that the caller may change. IndexError outside 0 .. len - 1."""
        index = self._check(index)
        if self._cache is None:
            return self._item(index)
        item = self._cache.get(index)
        if item is None:  # two threads may both render it: the results are the same
            item = self._cache[index] = self._item(index)
        return {key: value.copy() for key, value in item.items()}

    def __getstate__(self) -> dict:
        state = self.__dict__.copy()
        state["_cache"] = None if self._cache is None else {}
        return state

    def item_id(self, index: int) -> str:
        """Name of an item, the same whatever the resolution."""
        return f"rooms-{self.seed}-{self.split}-{self._check(index):06d}"

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """(fx, fy, cx, cy) in pixels, of every image; the centre of the top left pixel is (0, 0)."""
        return intrinsics(self.height, self.width)

    def scene(self, index: int) -> Scene:
        """The room behind an item: its size, objects and `camera` (position and world-to-camera rotation)."""
        return compose(self._generator(self._check(index), 0))

    def _check(self, index: int) -> int:
        if not 0 <= index < self.size:
            raise IndexError(f"rooms: item {index} of {self.size}")
        return operator.index(index)

    def _generator(self, index: int, purpose: int) -> np.random.Generator:
        key = (int.from_bytes(self.split.encode(), "little"), index, purpose)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))

    def _item(self, index: int) -> dict[str, np.ndarray]:
        picture = render(self.scene(index), self.height, self.width)
        image, depth = picture.image, picture.depth
        if self.noise:
            rng = self._generator(index, 1)
            image = _expose(rng, image)
            depth = np.where(_missing(rng, picture), np.float32(0), depth)
        image = np.clip(image * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8, order="C")
        return {"image": image, "depth": depth, "label": picture.label}


def _expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """The picture as a small camera sees it: slight blur, white balance, exposure and noise."""
    planes = np.pad(image.transpose(2, 0, 1), ((0, 0), (1, 1), (1, 1)), "edge")
    planes = np.float32(0.76) * planes[:, 1:-1] + np.float32(0.12) * (planes[:, :-2] + planes[:, 2:])
    planes = np.float32(0.76) * planes[:, :, 1:-1] + np.float32(0.12) * (planes[:, :, :-2] + planes[:, :, 2:])
    gain = rng.uniform(0.94, 1.06) * rng.uniform(0.97, 1.03, (3, 1, 1))
    planes *= gain.astype(np.float32)
    noise = rng.standard_normal(planes.shape, np.float32)
    noise *= np.float32(rng.uniform(0.004, 0.016))
    planes += noise
    return planes.transpose(1, 2, 0)


def _missing(rng: np.random.Generator, picture: Render) -> np.ndarray:
    """Mask (H, W) of depth that a structured-light sensor misses."""
    depth = picture.depth
    height, width = depth.shape
    missing = depth > MAX_DEPTH
    # The projector sits BASELINE to the right of the camera and sees a point at column x - disparity. A point
    # further left in the picture that it would see at the same column or beyond lies in the shadow of a nearer one.
    disparity = np.float32(BASELINE * intrinsics(height, width)[0]) / depth
    column = np.arange(width, dtype=np.float32) - disparity
    ahead = np.minimum.accumulate(column[:, ::-1], 1)[:, ::-1]
    missing[:, :-1] |= ahead[:, 1:] <= column[:, :-1]
    # Dropouts at edges, at grazing angles and on glass come in clumps: one draw per block of 3 x 3 pixels.
    draw = rng.random((height // 3 + 1, width // 3 + 1), np.float32).repeat(3, 0)[:height].repeat(3, 1)[:, :width]
    missing[:, 1:] |= (disparity[:, :-1] - disparity[:, 1:] > 1) & (draw[:, 1:] < 0.5)
    missing[1:] |= (np.abs(disparity[1:] - disparity[:-1]) > 1) & (draw[1:] < 0.5)
    missing |= (picture.facing < np.float32(0.12)) & (draw < 0.5)
    missing |= (picture.label == CLASSES.index("window")) & (draw < 0.2)
    return missing
