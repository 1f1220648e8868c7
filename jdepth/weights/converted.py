"""Our own weights file: safetensors, our tree's names joined with "/", and what it is as metadata."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jdepth.errors import UserError
from jdepth.weights import depth_anything, dinov2, dinov2_dpt, dinov2_linear, mapping
from jdepth.weights.catalogue import MODELS, SIZES, Model, WeightsInfo
from jdepth.weights.faults import Fault, blame, shown
from jdepth.weights.file_tensor import FLOATS, FileTensor
from jdepth.weights.tree import flatten

METADATA = "jdepth"  # key in the file's metadata
FORMAT = 1
SUFFIX = ".safetensors"
Shapes = dict[str, tuple[int, ...]]


def save(path: str | Path, params: Mapping, info: WeightsInfo) -> None:
    """Write `params` (nested arrays, stored as float32) and `info` to `path`, replacing what is there.

    The file appears complete or not at all: it is written under another name beside `path`, flushed
    to disk and renamed; on failure nothing is left behind. Raises UserError if it cannot be written
    or the tree is not the one `info` describes.
    """
    path = Path(path)
    check_destination(path)
    flat = {name: np.ascontiguousarray(value, np.float32) for name, value in flatten(params).items()}
    _check({name: array.shape for name, array in flat.items()}, info, path)
    metadata = {METADATA: json.dumps({"format": FORMAT} | asdict(info), sort_keys=True)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(flat, temporary, metadata)
        temporary.chmod(mode)  # the library makes files that only their owner can read
        _flush(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({shown(error)}); check free space and permissions") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_destination(path: Path) -> None:
    """Raise UserError if a converted file could not be written under this name."""
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: expected a file name that ends in {SUFFIX}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, expected the name of a file to write")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")


def _flush(path: Path) -> None:
    """Wait until the file's bytes are on disk: a rename may otherwise survive a crash without them."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def load(
    tensors: Mapping[str, FileTensor], metadata: Mapping[str, str], path: Path
) -> tuple[mapping.Readers, WeightsInfo]:
    """Flat tree of an opened converted file, still to be read; `metadata` has the key METADATA."""
    info = read_info(metadata[METADATA], path)
    _check({name: tensor.shape for name, tensor in tensors.items()}, info, path)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise UserError(f"{path}: {name} holds {tensor.dtype}, expected floating-point numbers")
    return {name: partial(_read, tensor) for name, tensor in tensors.items()}, info


def _read(tensor: FileTensor) -> np.ndarray:
    return tensor.read().astype(np.float32, copy=False)


def _check(found: dict[str, tuple[int, ...]], info: WeightsInfo, path: Path) -> None:
    """The tree must be exactly what `info` says, in one of its family's combinations of parts."""
    if info.family not in FAMILIES:
        raise UserError(f"{path}: is of the unknown family {shown(info.family)}, expected one of {', '.join(FAMILIES)}")
    head, combinations = FAMILIES[info.family]
    parts = {name.split("/")[0] for name in found}
    if parts not in combinations:
        known = "; ".join(" + ".join(sorted(part)) for part in combinations)
        raise UserError(f"{path}: holds {shown(', '.join(sorted(parts)) or 'nothing')}, expected one of: {known}")
    expected = {}
    if "backbone" in parts:
        backbone = mapping.shapes(dinov2.plan(SIZES[info.backbone]))
        expected |= {f"backbone/{name}": shape for name, shape in backbone.items()}
    if "depth_head" in parts:
        _check_range(info, path)
        expected |= head(info, path)
    mapping.check(found, expected, path, f"{info.backbone}, {info.channels} channels")


def _check_range(info: WeightsInfo, path: Path) -> None:
    low, high = info.min_depth, info.max_depth
    if info.family == "depth_anything" and low is None and high is None:  # a relative model
        return
    # A sigmoid (Depth Anything) may come near 0; the other heads add their smallest depth.
    lowest = low is not None and (low > 0 or (info.family == "depth_anything" and low == 0))
    if not lowest or high is None or not low < high <= dinov2_dpt.FURTHEST:
        raise UserError(
            f"{path}: holds a depth head with min_depth {shown(low)} and max_depth {shown(high)}, expected "
            "finite metres 0 < min_depth < max_depth; convert it again"
        )


def _dpt_shapes(info: WeightsInfo, path: Path) -> Shapes:
    if info.channels is None:
        raise UserError(f"{path}: holds a decoder but does not say its channels")
    return mapping.shapes(dinov2_dpt.plan(SIZES[info.backbone].width, info.channels))


def _linear_shapes(info: WeightsInfo, path: Path) -> Shapes:
    released = _released(info, path)
    return dinov2_linear.shapes(SIZES[info.backbone].width, released.taps)


def _depth_anything_shapes(info: WeightsInfo, path: Path) -> Shapes:
    released = _released(info, path)
    if info.channels != depth_anything.channels(info.backbone):
        raise UserError(f"{path}: says {info.channels} channels on {info.backbone}, which {info.model} has not")
    if (info.min_depth, info.max_depth) != (released.min_depth, released.max_depth):
        raise UserError(
            f"{path}: says depths from {info.min_depth} to {info.max_depth}, {info.model} has {released.min_depth} to "
            f"{released.max_depth}; convert it again"
        )
    return mapping.shapes(depth_anything.plan(info.backbone))


def _released(info: WeightsInfo, path: Path) -> Model:
    """The released model that tells what the metadata does not: how many taps, which version."""
    if info.model not in MODELS or MODELS[info.model].family != info.family:
        raise UserError(f"{path}: holds the unknown {info.family} model {shown(info.model)}; convert it again")
    released = MODELS[info.model]
    if released.backbone != info.backbone:
        raise UserError(f"{path}: says backbone {info.backbone}, {info.model} has {released.backbone}; convert it again")
    return released


_WITH_DECODER = ({"backbone"}, {"decoder", "depth_head"}, {"backbone", "decoder", "depth_head"})
# Family -> shapes of decoder and head, and the combinations of parts that a file may hold.
FAMILIES = {
    "dinov2": (None, ({"backbone"},)),
    "dinov2_dpt": (_dpt_shapes, _WITH_DECODER),
    "dinov2_linear": (_linear_shapes, ({"depth_head"}, {"backbone", "depth_head"})),
    "depth_anything": (_depth_anything_shapes, _WITH_DECODER[2:]),
}


def read_info(text: str, path: Path) -> WeightsInfo:
    """What a converted file's metadata say that it is; UserError where they cannot be right."""
    with blame(path):
        values = json.loads(text)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise Fault(f"is a converted file of another format, expected {FORMAT}; convert it again")
        if values.keys() != {field.name for field in fields(WeightsInfo)}:
            raise Fault("is a converted file with incomplete metadata; convert it again")
        numbers = {"channels": int, "min_depth": (int, float), "max_depth": (int, float), "input_area": int}
        for name, value in values.items():
            if name == "area_averaged" and type(value) is bool:
                continue
            optional = name in numbers and value is None
            if not optional and (not isinstance(value, numbers.get(name, str)) or isinstance(value, bool)):
                raise Fault(f"is a converted file whose metadata has {name} = {shown(value)}; convert it again")
            if isinstance(value, str) and not value.isprintable():
                raise Fault(f"is a converted file with control characters in its {name}")
        if values["input_area"] is not None and values["input_area"] < 1:
            raise Fault(f"is a converted file with input_area = {values['input_area']}; convert it again")
        if values["backbone"] not in SIZES:
            raise Fault(f"is for the unknown backbone {shown(values['backbone'])}")
        channels = values["channels"]
        if channels is not None and (channels % 2 or not 2 <= channels <= dinov2_dpt.MAX_CHANNELS):
            raise Fault(f"is a converted file of {channels} channels, expected an even number")
    return WeightsInfo(**values)
