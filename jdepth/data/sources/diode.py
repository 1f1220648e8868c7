"""DIODE: laser-scanned depth indoors and outdoors, 768x1024.

Raw layout: {train,val}/{indoors,outdoor}/scene_*/scan_*/STEM.png with STEM_depth.npy (float metres, one trailing
axis) and STEM_depth_mask.npy (1 = valid). The files are listed from the disk: the devkit's diode_meta.json misses
159 of the 771 validation images.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jdepth.data.sources import decode
from jdepth.data.sources.raw import Item, RawSet
from jdepth.errors import UserError


def items(place: str, raw: Path, split: str) -> list[Item]:
    """Images of one split, of "indoors" or "outdoor"."""
    images = sorted((raw / split / place).glob("scene_*/scan_*/*.png"))
    return [
        Item(
            path.relative_to(raw / split / place).with_suffix("").as_posix(),
            {
                "image": path,
                "depth": path.with_name(f"{path.stem}_depth.npy"),
                "mask": path.with_name(f"{path.stem}_depth_mask.npy"),
            },
        )
        for path in images
    ]


def read(item: Item) -> dict[str, Any]:
    """Image and float32 metres, 0 where the mask says invalid."""
    depth, mask = decode.read_values(item.place["depth"]), decode.read_values(item.place["mask"])
    if mask.shape != depth.shape:
        raise UserError(f"mask {item.place['mask']} is of another size than {item.place['depth'].name}")
    depth = np.where((mask != 0) & (depth > 0) & np.isfinite(depth), depth, 0).astype(np.float32)
    return {"image": decode.read_bytes(item.place["image"]), "depth": depth}


def _variant(name: str, title: str, place: str, counts: dict[str, int], farthest: float) -> RawSet:
    return RawSet(
        name=name,
        title=title,
        counts=counts,
        items=partial(items, place),
        read=read,
        expects=tuple(f"{split}:{split}/{place}/scene_*/scan_*" for split in ("train", "val")),
        source="https://diode-dataset.org: train.tar.gz and val.tar.gz",
        terms="see the data set's page; the devkit is MIT",
        download="81 GB (train) and 2.6 GB (val), indoors and outdoor together",
        per_metre=1.0,
        size=(768, 1024),
        farthest=farthest,
        note="the masks are liberal at object edges, which dominates AbsRel; 0 under the mask",
    )


INDOOR = _variant("diode_indoor", "DIODE indoor", "indoors", {"train": 8574, "val": 325}, 60.0)
OUTDOOR = _variant("diode_outdoor", "DIODE outdoor", "outdoor", {"train": 16884, "val": 446}, 350.0)
