"""What an unknown checkpoint is most like: told to people whose file no family takes."""

from collections.abc import Iterable, Mapping

from jdepth.weights import depth_anything, dinov2, dinov2_dpt, dinov2_linear
from jdepth.weights.catalogue import DINOV2_SIZES
from jdepth.weights.faults import listed

# Names that tell a model we know of and do not cover, and what to say.
NOT_COVERED = (
    (("core.core.", "module.core."), "a ZoeDepth network, as V1's metric models are, which is not covered"),
)


def describe(names: Iterable[str]) -> str:
    """One clause on a file with these tensor names: nearest family, names it lacks and names it has beside."""
    names = set(names)
    if not names:
        return "holds no tensor"
    for prefixes, text in NOT_COVERED:
        if any(name.startswith(prefixes) for name in names):
            return f"holds {text}"
    family, expected = max(_families().items(), key=lambda item: _likeness(names, item[1]))
    if not names & expected:
        return f"holds {len(names)} tensors of an unknown model ({listed(sorted(names))})"
    missing, beside = sorted(expected - names), sorted(names - expected)
    parts = [f"it lacks {listed(missing)}"] if missing else []
    parts += [f"it has {listed(beside)} beside"] if beside else []
    return f"holds {len(names)} tensors most like {family}; {', '.join(parts)}"


def _likeness(names: set[str], expected: set[str]) -> float:
    return len(names & expected) / len(names | expected)


def _families() -> Mapping[str, set[str]]:
    """Names of each family's smallest model; larger ones have more blocks of the same names."""
    size = DINOV2_SIZES["dinov2_vits14"]
    encoder = dinov2.plan(size)
    families = {
        "a DINOv2 backbone": encoder,
        "a DINOv2 backbone (Hugging Face names)": map(dinov2.to_hugging_face, encoder),
        "a DINOv2 DPT depth head": dinov2_dpt.official_plan(size.width, 256),
        "a DINOv2 DPT depth model (Hugging Face names)": dinov2_dpt.hugging_face_plan("dinov2_vits14", 256),
        "a DINOv2 linear depth head": dinov2_linear.plan(2 * size.width),
        "a Depth Anything model": depth_anything.full_plan("dinov2_vits14", "official"),
        "a Depth Anything model (Hugging Face names)": depth_anything.full_plan("dinov2_vits14", "hugging_face"),
    }
    return {family: {name for entry in plan for name in entry.sources} for family, plan in families.items()}
