"""What a data set holds, in numbers that can be added up: counts, depth range, class histogram, checksum."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

IGNORE = 255
# Image sizes told apart; a set with more of them is only said to vary.
SIZES = 20


@dataclass
class Statistics:
    """Sums over the records of a shard or a split.

    Attributes:
      count: records.
      sizes: "HxW" -> records of that size, at most `SIZES` kinds and "other".
      pixels, valid: all pixels; those with depth or a class.
      nearest, farthest: smallest and largest valid stored depth (inf and 0 where there is none).
      classes: pixels per train id; [] for depth.
      checksum: SHA-256 (hex) over the records' content in order.
    """

    count: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    pixels: int = 0
    valid: int = 0
    nearest: float = float("inf")
    farthest: float = 0.0
    classes: list[int] = field(default_factory=list)
    checksum: str = hashlib.sha256().hexdigest()

    def add(self, record: Mapping[str, Any], classes: int) -> None:
        """Count one record: id, image (encoded bytes), and "depth" or "label" (H, W)."""
        kind = "depth" if "depth" in record else "label"
        values = record[kind]
        self._size("x".join(map(str, values.shape)), 1)
        self.count += 1
        self.pixels += values.size
        if kind == "depth":
            valid = values[values > 0]
            self.valid += valid.size
            if valid.size:
                self.nearest = min(self.nearest, float(valid.min()))
                self.farthest = max(self.farthest, float(valid.max()))
        else:
            counted = np.bincount(values.ravel(), minlength=IGNORE + 1)
            self.valid += values.size - int(counted[IGNORE])
            own = self.classes or [0] * classes
            self.classes = [a + int(b) for a, b in zip(own, counted[:classes], strict=True)]
        self.checksum = _chain(self.checksum, _digest(record, values))

    def _size(self, size: str, count: int) -> None:
        if size not in self.sizes and len(self.sizes) >= SIZES:
            size = "other"
        self.sizes[size] = self.sizes.get(size, 0) + count

    def to_json(self) -> dict[str, Any]:
        """Plain values; a set without valid depth has no range."""
        return asdict(self) | {"nearest": self.nearest if self.farthest else None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Statistics":
        """The inverse of `to_json`."""
        nearest = values["nearest"]
        return cls(**(dict(values) | {"nearest": float("inf") if nearest is None else nearest}))


def total(parts: Sequence[Statistics]) -> Statistics:
    """The sum of consecutive parts; its checksum is that of theirs, in order."""
    result = Statistics()
    for part in parts:
        result.count += part.count
        result.pixels += part.pixels
        result.valid += part.valid
        result.nearest = min(result.nearest, part.nearest)
        result.farthest = max(result.farthest, part.farthest)
        for size, count in part.sizes.items():
            result._size(size, count)
        if part.classes:
            before = result.classes or [0] * len(part.classes)
            result.classes = [a + b for a, b in zip(before, part.classes, strict=True)]
        result.checksum = _chain(result.checksum, bytes.fromhex(part.checksum))
    return result


def _digest(record: Mapping[str, Any], values: np.ndarray) -> bytes:
    content = hashlib.sha256(f"{record['id']}\n{values.shape}{values.dtype.str}\n".encode())
    content.update(record["image"])
    content.update(np.ascontiguousarray(values).data)
    return content.digest()


def _chain(checksum: str, more: bytes) -> str:
    return hashlib.sha256(bytes.fromhex(checksum) + more).hexdigest()
