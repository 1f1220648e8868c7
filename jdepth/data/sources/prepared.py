"""A prepared data set (`python -m jdepth.prepare`) as a source: images with metres or train ids."""

from pathlib import Path

import numpy as np

from jdepth.data import records
from jdepth.data.sources import decode
from jdepth.errors import BadItem, UserError


class Prepared:
    """One split of a prepared data set: a source (see `jdepth.data.sources`).

    Args:
      path: the folder of its records.
      split: one of the prepared splits.
      read: what to read besides the image: ("depth",), ("label",) or (); default: what the set has.

    Raises:
      UserError: the folder, the split, a shard or a record is not as it was written.
    """

    def __init__(self, path: str | Path, split: str, read: tuple[str, ...] | None = None):
        self._reader = records.Reader(Path(path), split)
        about = self._reader.about
        self.name, self.split = about["name"], split
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.read = (about["kind"],) if read is None else tuple(read)
        for kind in self.read:
            if kind != about["kind"]:
                raise UserError(f"data set '{self.name}' has no {kind}; it has {about['kind']}")
        self._per_metre = np.float32(about["per_metre"] or 1)

    def __len__(self) -> int:
        return len(self._reader)

    def __repr__(self) -> str:
        return f"Prepared({self.name!r}, split={self.split!r}, items={len(self)}, reads={self.read})"

    @property
    def checksum(self) -> str:
        """Of the split's content, as it was written."""
        return self._reader.about["splits"][self.split]["statistics"]["checksum"]

    def item_id(self, index: int) -> str:
        """The item's name within its set."""
        return self._reader.ids[index]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Item `index`; BadItem where its record is damaged."""
        record = self._reader[index]
        try:
            item = {"image": decode.decode_image(record["image"], f"{self.name} {self.split} {record['id']}")}
        except UserError as error:
            raise BadItem(str(error)) from None
        if "depth" in self.read:
            # The quotient of two whole numbers in float32 is the nearest float32 to the true metres.
            item["depth"] = np.divide(record["depth"], self._per_metre, dtype=np.float32)
        if "label" in self.read:
            item["label"] = record["label"]
        return item
