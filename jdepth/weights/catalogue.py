"""The released models we can read, and what a set of loaded weights says about itself."""

from dataclasses import dataclass
from difflib import get_close_matches

from jdepth.errors import UserError

# Metres, DINOv2 recipe. For linear heads the released code had 10 m for both sets at first and 80 m for both
# later; their 256 bins make sense only over the range that each was trained with, which is this.
RANGES = {"nyu": (0.001, 10.0), "kitti": (0.001, 80.0)}
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


# Backbone letter -> one-based blocks that DINOv2's heads and Depth Anything V2 take, as Hugging Face counts them.
SPREAD = {"s": [3, 6, 9, 12], "b": [3, 6, 9, 12], "l": [5, 12, 18, 24], "g": [10, 20, 30, 40]}
# Backbone letter -> decoder channels and reassembled channels per level of Depth Anything's models.
DEPTH_ANYTHING_DECODERS = {
    "s": (64, (48, 96, 192, 384)),
    "b": (128, (96, 192, 384, 768)),
    "l": (256, (256, 512, 1024, 1024)),
    "g": (384, (1536, 1536, 1536, 1536)),
}
DEPTH_ANYTHING_METRIC = {"hypersim": ("indoor", 20.0), "vkitti": ("outdoor", 80.0)}  # metres


@dataclass(frozen=True)
class Model:
    """A released file. Ranges in metres; a backbone and a relative model have none.

    `task`: "backbone", "metric" (metres) or "relative" (disparity without unit). `version`: of Depth Anything.
    `taps`: how many blocks' features the head takes.
    """

    name: str
    family: str
    backbone: str
    file: str
    min_depth: float | None = None
    max_depth: float | None = None
    licence: str = DINOV2_LICENCE
    version: int | None = None
    taps: int = 4

    @property
    def task(self) -> str:
        if self.family == "dinov2":
            return "backbone"
        return "relative" if self.max_depth is None else "metric"

    @property
    def input_rule(self) -> str:
        """How images are brought to the network: a short text for people."""
        if self.family == "depth_anything":
            return "both sides at least 518, multiples of 14, cubic"
        return "own size, zero-padded to multiples of 14"


def _models() -> dict[str, Model]:
    models = [Model(name, "dinov2", name, f"{name}_pretrain.pth") for name in DINOV2_SIZES]
    for letter in _WIDTHS:
        backbone = f"dinov2_vit{letter}14"
        for scene, (low, high) in RANGES.items():
            name = f"{backbone}_{scene}_dpt"
            models.append(Model(name, "dinov2_dpt", backbone, f"{name}_head.pth", low, high))
            for suffix, taps in (("linear", 1), ("linear4", 4)):
                name = f"{backbone}_{scene}_{suffix}"
                models.append(Model(name, "dinov2_linear", backbone, f"{name}_head.pth", low, high, taps=taps))
    for letter in _WIDTHS:
        backbone = f"dinov2_vit{letter}14"
        if letter != "g":
            name = f"depth_anything_vit{letter}14"
            models.append(Model(name, "depth_anything", backbone, f"{name}.pth", version=1))
        # Small is Apache-2.0, the larger ones are for non-commercial use.
        licence = DINOV2_LICENCE if letter == "s" else "CC-BY-NC-4.0"
        name = f"depth_anything_v2_vit{letter}"
        models.append(Model(name, "depth_anything", backbone, f"{name}.pth", licence=licence, version=2))
        if letter != "g":
            for data, (_, high) in DEPTH_ANYTHING_METRIC.items():
                name = f"depth_anything_v2_metric_{data}_vit{letter}"
                models.append(Model(name, "depth_anything", backbone, f"{name}.pth", 0.0, high, licence, 2))
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

    # "dinov2" (a backbone), "dinov2_dpt" (decoder and depth head, perhaps a backbone too), "dinov2_linear"
    # (depth head, perhaps a backbone too) or "depth_anything" (all three).
    family: str
    model: str
    backbone: str  # key of jdepth.models.vit.BACKBONES
    channels: int | None  # of the decoder
    min_depth: float | None
    max_depth: float | None
    source: str  # file name
    licence: str
    # Pixels that images are brought to before the network, and whether areas are averaged: of runs of ours.
    input_area: int | None = None
    area_averaged: bool = False


@dataclass(frozen=True)
class Weights:
    """`params`: nested dict of float32 NumPy arrays under "backbone" and/or "decoder", "depth_head"."""

    params: dict
    info: WeightsInfo
