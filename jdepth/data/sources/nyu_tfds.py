"""TFDS's own NYU Depth v2 (`nyu_depth_v2` 0.0.1), where a prepared copy is at hand: 47,584 / 654 images.

It is not BTS's split: FastDepth's frames, with depth in float16 metres (steps of 7.8 mm beyond 8 m). Numbers from it
do not compare with those of `nyu`. Unverified: that its depth is in-filled.
"""

from pathlib import Path

import numpy as np

from jdepth.data import records
from jdepth.data.sources import decode
from jdepth.data.sources.suggest import closest
from jdepth.errors import BadItem, UserError

NAME, VERSION = "nyu_depth_v2", "0.0.1"


class NyuTfds:
    """One split of a prepared copy: a source (see `jdepth.data.sources`). Nothing is downloaded.

    Args:
      split: "train" or "validation".
      path: the folder that holds dataset_info.json, or one above it; default: {data_dir}/nyu_depth_v2/0.0.1.
      data_dir: where TFDS keeps its data sets.
      read: what to read besides the image: ("depth",), the default, or ().

    Raises:
      UserError: no copy there, another data set, or one in a format that cannot be read by index.
    """

    def __init__(
        self,
        split: str,
        path: str | Path | None = None,
        data_dir: str | Path = "data",
        read: tuple[str, ...] | None = None,
    ):
        self.name, self.split, self.classes = "nyu_tfds", split, ()
        self.read = ("depth",) if read is None else (read,) if isinstance(read, str) else tuple(read)
        for kind in self.read:
            if kind != "depth":
                raise UserError(f"data set '{self.name}' has no {kind}; it has depth")
        self._folder = _folder(Path(path) if path is not None else Path(data_dir) / NAME / VERSION)
        self._records = _open(self._folder, split, self.read)

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"NyuTfds(split={self.split!r}, items={len(self)}, reads={self.read})"

    def item_id(self, index: int) -> str:
        """Split and number within it: the records have no names."""
        return f"{self.split}/{index:05d}"

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """image (H, W, 3) uint8 RGB; depth (H, W) float32 metres, 0 = invalid. BadItem where the record is damaged."""
        index = range(len(self))[index]  # IndexError, which iteration ends with
        name = f"{self._folder}, {self.item_id(index)}"
        record = records.fetch(self._records, index, name)
        try:
            item = {"image": decode.decode_image(record["image"], name)}
        except UserError as error:
            raise BadItem(str(error)) from None
        if "depth" in self.read:
            metres = record["depth"].astype(np.float32)
            item["depth"] = np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(0))
        return item


def _folder(path: Path) -> Path:
    """The folder of the copy at or below `path`."""
    for folder in (path, path / VERSION, path / NAME / VERSION):
        if (folder / "dataset_info.json").is_file():
            return folder
    raise UserError(
        f"{path}: no prepared copy of TFDS's {NAME} {VERSION} (no dataset_info.json); give the folder that "
        f"`tfds build {NAME} --file_format=array_record` wrote"
    )


def _open(folder: Path, split: str, read: tuple[str, ...]):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        name, splits, features = builder.info.name, list(builder.info.splits), list(builder.info.features or ())
    except Exception as error:  # a damaged JSON file, in whatever way
        raise UserError(f"{folder}: not readable as a TFDS copy ({type(error).__name__}); prepare it again") from None
    if name != NAME or not {"image", "depth"} <= set(features):
        raise UserError(f"{folder}: holds '{name}' with {', '.join(features)}; expected '{NAME}' with image, depth")
    if split not in splits:
        raise UserError(f"{folder}: no split '{split}'{closest(split, splits)}; splits: {', '.join(splits)}")
    # OpenCV decodes images here as everywhere; what is not read is left as it is stored.
    skipped = {name: tfds.decode.SkipDecoding() for name in ("image", "depth") if name not in read}
    try:
        return builder.as_data_source(split, decoders=skipped)
    except NotImplementedError:
        raise UserError(
            f"{folder}: stored as {builder.info.file_format.value}, which cannot be read by index; convert it where "
            "tensorflow and apache-beam are installed: "
            f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record"
        ) from None
    except Exception as error:  # shards that are missing or not of this format
        raise UserError(f"{folder}: shards cannot be opened ({type(error).__name__}); prepare it again") from None
