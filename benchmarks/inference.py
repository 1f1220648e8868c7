"""How fast a published model predicts: python benchmarks/inference.py [--size s] [--batch 1 8] [--peer] [--compile]

Depth Anything V2 with random weights at 518×518, network only: seconds per call, the median of interleaved rounds,
images/s, and with --peer (and --compile) the same network in transformers (PyTorch) in the same rounds.
"""

import argparse
import os
import statistics
from pathlib import Path

import measure
from measure import RESULTS, Call, Results, shown, table

import jax
import jax.numpy as jnp

from jdepth.models import attention, build_depth_anything, cast_frozen
from jdepth.models.depth_anything import DECODERS

SIDE = 518


def ours(size: str, batch: int, precision: str, side: int = SIDE) -> tuple[Call, int]:
    """(calls that predict so many batches and wait, bytes of the program)."""
    dtype = jnp.dtype(precision)
    model = build_depth_anything(f"dinov2_vit{size}14", dtype=dtype, attention=attention.choose("auto", dtype))
    params = model.init(jax.random.key(0), (28, 28))
    params["backbone"] = cast_frozen(params["backbone"], dtype)
    images = jax.random.normal(jax.random.key(1), (batch, side, side, 3))
    forward = jax.jit(model.__call__).lower(params, images).compile()

    def call(calls: int) -> None:
        for _ in range(calls):
            result = forward(params, images)
        result.block_until_ready()

    return call, measure.program_bytes(forward)


def theirs(size: str, batch: int, precision: str, compiled: bool, side: int = SIDE) -> Call:
    """The same in transformers."""
    import torch
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    from jdepth.models import BACKBONES

    shape = BACKBONES[f"dinov2_vit{size}14"]
    channels, levels = DECODERS[shape.width]
    inner = Dinov2Config(
        hidden_size=shape.width, num_hidden_layers=shape.depth, num_attention_heads=shape.heads, image_size=SIDE,
        patch_size=14, use_swiglu_ffn=shape.ffn == "swiglu", out_indices=[tap + 1 for tap in shape.taps],
        apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, precision)
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=inner, patch_size=14, reassemble_hidden_size=shape.width,
            neck_hidden_sizes=list(levels), fusion_hidden_size=channels,
        )
    ).eval().to(device, dtype)  # fmt: skip
    if compiled:
        model = torch.compile(model)
    images = torch.randn((batch, 3, side, side), device=device, dtype=dtype)

    def call(calls: int) -> None:
        with torch.inference_mode():
            for _ in range(calls):
                model(images)
            if device == "cuda":
                torch.cuda.synchronize()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["s"], choices=list("sblg"))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--side", type=int, default=SIDE, help="image side, a multiple of 14")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a timed block")
    parser.add_argument("--peer", action="store_true", help="beside transformers")
    parser.add_argument("--compile", action="store_true", help="also beside torch.compile")
    parser.add_argument("--again", action="store_true", help="measure finished cases again")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON file lies")
    given = parser.parse_args()
    if given.peer or given.compile:  # both sides share the device
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    precision, lines = measure.precision(), []
    results = Results("inference", measure.device(), given.results)
    for size in given.size:
        for batch in given.batch:
            wanted = {"jdepth": "jdepth"} | ({"transformers": "eager"} if given.peer else {})
            wanted |= {"torch.compile": "compile"} if given.compile else {}
            names = {kind: f"vit{size} {batch}x{given.side}x{given.side} {kind}" for kind in wanted}
            if given.again or not set(names.values()) <= set(results.rows()):
                call, held = ours(size, batch, precision, given.side)
                calls = {"jdepth": call} | {
                    kind: theirs(size, batch, precision, kind == "torch.compile", given.side)
                    for kind in wanted
                    if kind != "jdepth"
                }
                times = measure.interleaved(calls, given.rounds, given.seconds)
                for kind, values in times.items():
                    middle = statistics.median(values)
                    row = {"seconds": middle, "images_per_second": batch / middle, "precision": precision}
                    own = {"program_bytes": held} if kind == "jdepth" else {}
                    results.add(names[kind], row | own | {"times_jdepths_time": measure.ratio(times, kind, "jdepth")})
            for name in names.values():
                row = results.rows()[name]
                cells = row["seconds"] * 1e3, row["images_per_second"], row["times_jdepths_time"]
                lines.append([name, *map(shown, cells), shown(row.get("program_bytes"), 3, 2**-30)])
    print(table([results.device, "ms", "images/s", "× jdepth's time", "GiB"], lines))
    print(f"written to {results.path}")


if __name__ == "__main__":
    main()
