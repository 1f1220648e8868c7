"""Writers of PyTorch checkpoint files for tests, independent of PyTorch and of Python's pickler.

`emit` writes pickles opcode by opcode, so that a test can also write what no honest program would.
"""

import itertools
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

STORAGE_CLASSES = {
    "f8": "DoubleStorage",
    "f4": "FloatStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "i1": "CharStorage",
    "u1": "ByteStorage",
    "u2": "BFloat16Storage",  # the tests' own meaning: uint16 arrays hold the bits of bfloat16
    "b1": "BoolStorage",
}


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """REDUCE, then BUILD if there is a state."""

    function: object
    arguments: tuple
    state: object = None


@dataclass(frozen=True)
class Persistent:
    identifier: object


@dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


@dataclass
class Storages:
    """Arrays whose numbers go beside the pickle; views of one base share one storage."""

    legacy: bool = False
    bases: dict[int, tuple[str, np.ndarray]] = field(default_factory=dict)

    def tensor(self, array: np.ndarray) -> Call:
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        assert base.flags.c_contiguous
        key, _ = self.bases.setdefault(id(base), (str(len(self.bases)), base))
        item = array.itemsize
        offset = (array.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // item
        kind = Global("torch", STORAGE_CLASSES[array.dtype.str[1:]])
        identifier = ("storage", kind, key, "cpu", base.size) + ((None,) if self.legacy else ())
        strides = tuple(stride // item for stride in array.strides)
        hooks = Call(Global("collections", "OrderedDict"), ())
        arguments = (Persistent(identifier), offset, array.shape, strides, False, hooks)
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def pickled(value: object, storages: Storages | None = None) -> bytes:
    """One complete pickle of protocol 2."""
    return b"\x80\x02" + emit(value, storages) + b"."


def emit(value: object, storages: Storages | None = None) -> bytes:
    def sequence(values) -> bytes:
        return b"".join(emit(item, storages) for item in values)

    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            raw = value.to_bytes(max(1, (value.bit_length() + 8) // 8), "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            raw = value.encode()
            return b"X" + struct.pack("<I", len(raw)) + raw
        case bytes():
            return emit(Call(Global("_codecs", "encode"), (value.decode("latin1"), "latin1")))
        case tuple():
            return b"(" + sequence(value) + b"t"
        case list():
            return b"](" + sequence(value) + b"e"
        case OrderedDict():
            return emit(Call(Global("collections", "OrderedDict"), ())) + _items(value, sequence)
        case dict():
            return b"}" + _items(value, sequence)
        case Raw():
            return value.opcodes
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            built = b"" if value.state is None else emit(value.state, storages) + b"b"
            return emit(value.function, storages) + emit(value.arguments, storages) + b"R" + built
        case Persistent():
            return emit(value.identifier, storages) + b"Q"
        case np.ndarray():
            return emit(storages.tensor(value), storages)
        case np.generic():
            kind = Call(Global("numpy", "dtype"), (value.dtype.str[1:], False, True), (3, "<", *[None] * 3, -1, -1, 0))
            return emit(Call(Global("numpy.core.multiarray", "scalar"), (kind, value.tobytes())))
    raise TypeError(type(value))


def _items(value: dict, sequence) -> bytes:
    return b"(" + sequence(itertools.chain.from_iterable(value.items())) + b"u"


def write_zip(path: Path, content: object, folder: str = "archive", byteorder: str | None = "little") -> Path:
    """The format of PyTorch since 1.6."""
    storages = Storages()
    data = content.opcodes if isinstance(content, Raw) else pickled(content, storages)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", data)
        if byteorder:
            archive.writestr(f"{folder}/byteorder", byteorder)
        for key, base in storages.bases.values():
            if byteorder == "big":
                base = base.byteswap()
            archive.writestr(f"{folder}/data/{key}", base.tobytes())
        archive.writestr(f"{folder}/version", "3\n")
    return path


def write_stream(path: Path, content: object) -> Path:
    """The format before PyTorch 1.6."""
    storages = Storages(legacy=True)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    data = content.opcodes if isinstance(content, Raw) else pickled(content, storages)
    with path.open("wb") as file:
        file.write(pickled(0x1950A86A20F9469CFC6C) + pickled(1001) + pickled(system) + data)
        file.write(pickled(sorted(key for key, _ in storages.bases.values())))
        for _, base in sorted(storages.bases.values(), key=lambda entry: entry[0]):
            file.write(struct.pack("<q", base.size) + base.tobytes())
    return path


WRITERS = {"zip": write_zip, "stream": write_stream}


# Names and shapes of the released files, as the DINOv2 recipe's tables have them.


def backbone_shapes(letter: str, registers: bool = False) -> dict[str, tuple[int, ...]]:
    width, depth = {"s": (384, 12), "b": (768, 12), "l": (1024, 24), "g": (1536, 40)}[letter]
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1370, width), "mask_token": (1, width)}
    if registers:
        shapes["register_tokens"] = (1, 4, width)
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    for i in range(depth):
        block = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "ls1.gamma": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "ls2.gamma": (width,),
        }
        if letter == "g":
            block |= {
                "mlp.w12.weight": (8192, 1536),
                "mlp.w12.bias": (8192,),
                "mlp.w3.weight": (1536, 4096),
                "mlp.w3.bias": (1536,),
            }
        else:
            block |= {
                "mlp.fc1.weight": (4 * width, width),
                "mlp.fc1.bias": (4 * width,),
                "mlp.fc2.weight": (width, 4 * width),
                "mlp.fc2.bias": (width,),
            }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def head_shapes(width: int, channels: int = 256) -> dict[str, tuple[int, ...]]:
    c0, c1, _, c3 = levels = (width // 8, width // 4, width // 2, width)
    c = channels
    shapes = {}
    for i, level in enumerate(levels):
        shapes[f"reassemble_blocks.projects.{i}.conv.weight"] = (level, width, 1, 1)
        shapes[f"reassemble_blocks.projects.{i}.conv.bias"] = (level,)
        shapes[f"reassemble_blocks.readout_projects.{i}.0.weight"] = (width, 2 * width)
        shapes[f"reassemble_blocks.readout_projects.{i}.0.bias"] = (width,)
        shapes[f"convs.{i}.conv.weight"] = (c, level, 3, 3)
        shapes[f"fusion_blocks.{i}.project.conv.weight"] = (c, c, 1, 1)
        shapes[f"fusion_blocks.{i}.project.conv.bias"] = (c,)
        for conv in (1, 2):
            shapes[f"fusion_blocks.{i}.res_conv_unit2.conv{conv}.conv.weight"] = (c, c, 3, 3)
            if i > 0:
                shapes[f"fusion_blocks.{i}.res_conv_unit1.conv{conv}.conv.weight"] = (c, c, 3, 3)
    shapes |= {
        "reassemble_blocks.resize_layers.0.weight": (c0, c0, 4, 4),
        "reassemble_blocks.resize_layers.0.bias": (c0,),
        "reassemble_blocks.resize_layers.1.weight": (c1, c1, 2, 2),
        "reassemble_blocks.resize_layers.1.bias": (c1,),
        "reassemble_blocks.resize_layers.3.weight": (c3, c3, 3, 3),
        "reassemble_blocks.resize_layers.3.bias": (c3,),
        "project.conv.weight": (c, c, 3, 3),
        "project.conv.bias": (c,),
        "conv_depth.head.0.weight": (c // 2, c, 3, 3),
        "conv_depth.head.0.bias": (c // 2,),
        "conv_depth.head.2.weight": (32, c // 2, 3, 3),
        "conv_depth.head.2.bias": (32,),
        "conv_depth.head.4.weight": (1, 32, 1, 1),
        "conv_depth.head.4.bias": (1,),
    }
    return {f"decode_head.{name}": shape for name, shape in shapes.items()}


def hugging_face(tensors: dict[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """Official backbone tensors under the names of published Hugging Face files."""
    renamed = {}
    for name, array in tensors.items():
        for ours, theirs in (
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("_token", "_token"),
            ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
            ("mlp.w12", "mlp.weights_in"),
            ("mlp.w3", "mlp.weights_out"),
        ):
            name = name.replace(ours, theirs)
        if name in ("norm.weight", "norm.bias"):
            name = f"layer{name}"
        if name in ("cls_token", "mask_token", "register_tokens"):
            name = f"embeddings.{name}"
        if "attn.qkv" in name:
            for part, third in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                renamed[prefix + name.replace("attn.qkv", f"attention.attention.{part}")] = third
        else:
            renamed[prefix + name] = array
    return renamed


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 arrays that differ from each other."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def empty_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Zeros that take no room, in memory or in a checkpoint: one number, repeated by strides of 0."""
    zero = np.zeros(1, np.float32)
    return {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}


def depth_anything_shapes(letter: str) -> dict[str, tuple[int, ...]]:
    """Official Depth Anything, V1 and V2, relative and metric alike."""
    width = {"s": 384, "b": 768, "l": 1024, "g": 1536}[letter]
    c, levels = {
        "s": (64, (48, 96, 192, 384)),
        "b": (128, (96, 192, 384, 768)),
        "l": (256, (256, 512, 1024, 1024)),
        "g": (384, (1536, 1536, 1536, 1536)),
    }[letter]
    shapes = {f"pretrained.{name}": shape for name, shape in backbone_shapes(letter).items()}
    head = {}
    for i, level in enumerate(levels):
        head |= {f"projects.{i}.weight": (level, width, 1, 1), f"projects.{i}.bias": (level,)}
        head[f"scratch.layer{i + 1}_rn.weight"] = (c, level, 3, 3)
        refine = f"scratch.refinenet{i + 1}"
        head |= {f"{refine}.out_conv.weight": (c, c, 1, 1), f"{refine}.out_conv.bias": (c,)}
        for unit in (1, 2):
            for conv in (1, 2):
                name = f"{refine}.resConfUnit{unit}.conv{conv}"
                head |= {f"{name}.weight": (c, c, 3, 3), f"{name}.bias": (c,)}
    for i, kernel in ((0, 4), (1, 2), (3, 3)):
        head |= {
            f"resize_layers.{i}.weight": (levels[i], levels[i], kernel, kernel),
            f"resize_layers.{i}.bias": (levels[i],),
        }
    head |= {
        "scratch.output_conv1.weight": (c // 2, c, 3, 3),
        "scratch.output_conv1.bias": (c // 2,),
        "scratch.output_conv2.0.weight": (32, c // 2, 3, 3),
        "scratch.output_conv2.0.bias": (32,),
        "scratch.output_conv2.2.weight": (1, 32, 1, 1),
        "scratch.output_conv2.2.bias": (1,),
    }
    return shapes | {f"depth_head.{name}": shape for name, shape in head.items()}


def linear_shapes(width: int, taps: int) -> dict[str, tuple[int, ...]]:
    """Official linear depth heads."""
    name = "decode_head.conv_depth"
    return {f"{name}.weight": (256, 2 * width * taps, 1, 1), f"{name}.bias": (256,)}
