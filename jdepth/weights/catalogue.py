"""The released models we can read, and what a set of loaded weights says about itself."""

from dataclasses import dataclass
from difflib import get_close_matches

from jdepth.errors import UserError

RANGES = {"nyu": (0.001, 10.0), "kitti": (0.001, 80.0)}  # metres, DINOv2 recipe
DINOV2_LICENCE = "Apache-2.0"  # code and weights


@dataclass(frozen=True)
class Size:
    """Shapes of one backbone, as `jdepth.models.vit.BACKBONES` has them (a test compares)."""

    width: int
    depth: int
    hidden: int
    ffn: str = "mlp"
    registers: int = 0
    grid: int = 37


_WIDTHS = {"s": (384, 12, 1536), "b": (768, 12, 3072), "l": (1024, 24, 4096), "g": (1536, 40, 4096)}


def _dinov2(letter: str, registers: int) -> Size:
    width, depth, hidden = _WIDTHS[letter]
    return Size(width, depth, hidden, "swiglu" if letter == "g" else "mlp", registers)


DINOV2_SIZES = {
    f"dinov2_vit{letter}14{suffix}": _dinov2(letter, registers)
    for suffix, registers in (("", 0), ("_reg4", 4))
    for letter in _WIDTHS
}
# Also what our own converted files may hold.
SIZES = DINOV2_SIZES | {"vit_nano14": Size(128, 8, 512, grid=6), "vit_tiny14": Size(192, 12, 768, grid=12)}


@dataclass(frozen=True)
class Model:
    """A released file. Ranges in metres; a backbone has none."""

    name: str
    family: str
    backbone: str
    file: str
    min_depth: float | None = None
    max_depth: float | None = None
    licence: str = DINOV2_LICENCE


def _models() -> dict[str, Model]:
    models = [Model(name, "dinov2", name, f"{name}_pretrain.pth") for name in DINOV2_SIZES]
    for letter in _WIDTHS:
        for scene, (low, high) in RANGES.items():
            name = f"dinov2_vit{letter}14_{scene}_dpt"
            models.append(Model(name, "dinov2_dpt", f"dinov2_vit{letter}14", f"{name}_head.pth", low, high))
    return {model.name: model for model in models}


MODELS: dict[str, Model] = _models()


def find_model(name: str) -> Model:
    """MODELS[name], or a UserError that suggests the nearest name."""
    if name not in MODELS:
        near = get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(MODELS)}"
        raise UserError(f"model {name!r} is unknown; {hint}")
    return MODELS[name]


@dataclass(frozen=True)
class WeightsInfo:
    """Where weights come from and what they fit. Ranges in metres."""

    family: str  # "dinov2" (a backbone) or "dinov2_dpt" (decoder and depth head, perhaps a backbone too)
    model: str
    backbone: str  # key of jdepth.models.vit.BACKBONES
    channels: int | None  # of the decoder
    min_depth: float | None
    max_depth: float | None
    source: str  # file name
    licence: str


@dataclass(frozen=True)
class Weights:
    """`params`: nested dict of float32 NumPy arrays under "backbone" and/or "decoder", "depth_head"."""

    params: dict
    info: WeightsInfo
