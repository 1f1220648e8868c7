"""Weights from files: released checkpoints, Hugging Face's, and our own converted ones.

Needs only NumPy and safetensors; nothing in a file is ever executed. One file per family maps its
names onto our tree: `dinov2.py` (backbones), `dinov2_dpt.py` and `dinov2_linear.py` (depth heads) and
`depth_anything.py`.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from jdepth.errors import UserError
from jdepth.weights import (
    converted,
    depth_anything,
    dinov2,
    dinov2_dpt,
    dinov2_linear,
    pytorch_file,
    resemblance,
    safetensors_file,
)
from jdepth.weights.catalogue import MODELS, Model, Weights, WeightsInfo, find_model
from jdepth.weights.faults import blame
from jdepth.weights.file_tensor import FileTensor
from jdepth.weights.mapping import Readers
from jdepth.weights.tree import Fingerprint, fingerprint, flatten, unflatten
from jdepth.weights.warm_start import merge

__all__ = [
    "Fingerprint",
    "MODELS",
    "Model",
    "Weights",
    "WeightsInfo",
    "check_belongs",
    "check_destination",
    "family",
    "fingerprint",
    "flatten",
    "load",
    "merge",
    "opened",
    "save",
    "unflatten",
]

save = converted.save
check_destination = converted.check_destination
INDEX = "model.safetensors.index.json"
# A backbone last: larger models hold one, under the same names.
FAMILIES = {
    "depth_anything": depth_anything, "dinov2_dpt": dinov2_dpt, "dinov2_linear": dinov2_linear, "dinov2": dinov2,
}  # fmt: skip
FOLDER_FILES = ("model.safetensors", INDEX, "pytorch_model.bin")  # of a Hugging Face folder, first wins


def load(
    path: str | Path,
    model: str | None = None,
    parts: Collection[str] = (),
    backbone: str | None = None,
) -> Weights:
    """Read any weights file we know, as float32 in our tree.

    `path`: a converted file, an official `.pth`, a Hugging Face safetensors file, index or folder.
    `model`: a key of MODELS where tensors and file name leave it open. `parts` ("backbone",
    "decoder", "depth_head") and `backbone` (its name): what the caller needs the file to be.
    Raises UserError with the file's name for everything that does not fit.
    """
    with opened(path, model, parts, backbone) as (flat, info):
        return Weights(unflatten({name: read() for name, read in flat.items()}), info)


@contextmanager
def opened(
    path: str | Path,
    model: str | None = None,
    parts: Collection[str] = (),
    backbone: str | None = None,
) -> Iterator[tuple[Readers, WeightsInfo]]:
    """(flat tree, what it is) as `load` gives them, but name -> a function that reads one array, inside the block.

    Everything that `load` checks is checked by then, and of most files nothing but the names has been read.
    """
    file = _locate(Path(path))
    if model is not None:
        find_model(model)
    with _opened(file) as (tensors, metadata):
        if converted.METADATA in metadata:
            flat, info = converted.load(tensors, metadata, file)
            if model not in (None, info.model):
                raise UserError(f"{file}: holds {info.model}, not {model}")
        else:
            flat, info = _load_foreign(tensors, file, model, parts)
        held = list(dict.fromkeys(name.split("/")[0] for name in flat))
        absent = [part for part in parts if part not in held]
        if absent:
            contents = " and ".join(part.replace("_", " ") for part in held)
            raise UserError(f"{file}: holds {info.model} ({contents}), expected {' and '.join(absent)}")
        if backbone not in (None, info.backbone):
            raise UserError(f"{file}: belongs to the backbone {info.backbone}, expected {backbone}")
        yield flat, info


def family(path: str | Path) -> str:
    """The family (see `WeightsInfo`) of a weights file, told by its tensors' names alone."""
    file = _locate(Path(path))
    with _opened(file) as (tensors, metadata):
        if converted.METADATA in metadata:
            return converted.read_info(metadata[converted.METADATA], file).family
        return _recognised(tensors, file)


def check_belongs(head: WeightsInfo, backbone: WeightsInfo, source: str | Path, path: str | Path) -> None:
    """Raise UserError unless the backbone in `path` is the one that the head in `source` was trained on.

    An encoder of Depth Anything has the shapes of DINOv2's, and gives other features."""
    found = backbone.model if backbone.model.startswith("depth_anything") else backbone.backbone
    if found != head.backbone:
        raise UserError(f"{path}: holds {found}, but {source} was trained on {head.backbone}; give that")


def _locate(path: Path) -> Path:
    """The file to read: `path`, or the weights inside a folder."""
    if not path.is_dir():
        return path
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path}: is a run, expected a weights file; a training starts from a run with config.init_from")
    raise UserError(f"{path}: is a folder without weights, expected one of {', '.join(FOLDER_FILES)} in it")


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Mapping[str, FileTensor], Mapping[str, str]]]:
    """(tensors, metadata) of a file in whatever container; told apart by content, not by suffix."""
    with blame(file), file.open("rb") as opened:
        start = opened.read(9)
    if file.name.endswith(".index.json"):
        with safetensors_file.opened_index(file) as tensors:
            yield tensors, {}
    elif file.suffix == converted.SUFFIX or safetensors_file.is_safetensors(start):
        with safetensors_file.opened(file) as (tensors, metadata):
            yield tensors, metadata
    else:
        with pytorch_file.opened(file) as tensors:
            yield tensors, {}


def _load_foreign(
    tensors: Mapping[str, FileTensor], file: Path, model: str | None, parts: Collection[str]
) -> tuple[Readers, WeightsInfo]:
    if depth_anything.recognise(tensors) and list(parts) == ["backbone"] and model is None:
        return depth_anything.load_encoder(tensors, file)
    flat, info = FAMILIES[_recognised(tensors, file)].load(tensors, file, model)
    # Small heads, and models that are seldom loaded for their backbone alone, come as arrays.
    return {name: value if callable(value) else partial(np.asarray, value) for name, value in flat.items()}, info


def _recognised(tensors: Mapping[str, FileTensor], file: Path) -> str:
    for name, layout in FAMILIES.items():
        if layout.recognise(tensors) and not (name == "dinov2" and any(n.startswith("neck.") for n in tensors)):
            return name
    raise UserError(f"{file}: {resemblance.describe(tensors)}; python -m jdepth.convert --list shows what is known")
