"""How fast a published model predicts: python benchmarks/inference.py [--size s] [--batch 1 8] [--peer]

Depth Anything V2 with random weights at 518×518, network only: seconds per call, the median of interleaved
rounds, images/s, and with --peer the same network in transformers (PyTorch) on the same device in the same run.
Needs neither OpenCV nor grain. Prints a table and appends a line of JSON to --out.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from jdepth.models import attention, build_depth_anything, cast_frozen
from jdepth.models.depth_anything import DECODERS

SIDE = 518


def ours(size: str, batch: int, half: bool) -> Callable[[], None]:
    """A call that predicts one batch and waits for it."""
    dtype = jnp.bfloat16 if half else jnp.float32
    model = build_depth_anything(f"dinov2_vit{size}14", dtype=dtype, attention=attention.choose("auto", dtype))
    params = model.init(jax.random.key(0), (28, 28))
    if half:
        params["backbone"] = cast_frozen(params["backbone"], dtype)
    images = jnp.zeros((batch, SIDE, SIDE, 3), jnp.float32)
    forward = jax.jit(model.__call__).lower(params, images).compile()
    temporaries = forward.memory_analysis().temp_size_in_bytes / 2**20
    print(f"{size} batch {batch}: compiled, {temporaries:.0f} MiB of temporaries")
    return lambda: forward(params, images).block_until_ready()


def theirs(size: str, batch: int, half: bool, compiled: bool) -> Callable[[], None]:
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DepthAnythingForDepthEstimation(
        DepthAnythingConfig(
            backbone_config=inner, patch_size=14, reassemble_hidden_size=shape.width,
            neck_hidden_sizes=list(levels), fusion_hidden_size=channels,
        )
    ).eval().to(device, torch.bfloat16 if half else torch.float32)  # fmt: skip
    if compiled:
        model = torch.compile(model)
    images = torch.zeros((batch, 3, SIDE, SIDE), device=device, dtype=torch.bfloat16 if half else torch.float32)

    def call() -> None:
        with torch.inference_mode():
            model(images)
            if device == "cuda":
                torch.cuda.synchronize()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", default=["s"], choices=list("sblg"))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help="beside transformers")
    parser.add_argument("--compile", action="store_true", help="also beside torch.compile")
    parser.add_argument("--out", type=Path, help="file that a line of JSON is appended to")
    given = parser.parse_args()
    half = jax.default_backend() == "gpu"
    for size in given.size:
        for batch in given.batch:
            calls = {"jdepth": ours(size, batch, half)}
            if given.peer:
                calls["transformers"] = theirs(size, batch, half, False)
            if given.compile:
                calls["transformers, torch.compile"] = theirs(size, batch, half, True)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for number in range(given.rounds + 1):  # interleaved; the first round warms up
                for name, call in calls.items():
                    began = time.perf_counter()
                    call()
                    if number:
                        times[name].append(time.perf_counter() - began)
            result = {name: statistics.median(values) for name, values in times.items()}
            for name, seconds in result.items():
                ratio = f"  {seconds / result['jdepth']:.2f} × jdepth's time" if name != "jdepth" else ""
                print(f"  {name:28} {seconds * 1000:8.1f} ms  {batch / seconds:8.2f} images/s{ratio}")
            if given.out:
                about = {
                    "date": datetime.date.today().isoformat(), "device": jax.devices()[0].device_kind,
                    "machine": platform.machine(), "jax": jax.__version__, "type": "bfloat16" if half else "float32",
                    "model": f"depth_anything_v2_vit{size}", "side": SIDE, "batch": batch, "seconds": result,
                }  # fmt: skip
                given.out.parent.mkdir(parents=True, exist_ok=True)
                with given.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(about) + "\n")


if __name__ == "__main__":
    main()
