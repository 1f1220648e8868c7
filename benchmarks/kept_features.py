"""What kept features save an evaluation: python benchmarks/kept_features.py [--size s] [--rounds 3]

A frozen backbone with random weights and the DPT head on rendered rooms, scored with the features computed each time
and with kept ones, in turn. Prints seconds of both, the median of the rounds' ratios, and whether the scores are the
same to the last bit.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from jdepth import scoring
from jdepth.data import protocols
from jdepth.data.evaluation import evaluation_batches
from jdepth.data.sources.rooms import Rooms
from jdepth.kept_taps import KeptTaps
from jdepth.models import attention, build, cast_frozen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices="sblg", default="s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--side", type=int, nargs=2, default=(240, 320), help="height and width")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    given = parser.parse_args()
    dtype = jnp.dtype(given.precision)
    model = build(f"dinov2_vit{given.size}14", dtype=dtype, attention=attention.choose("auto", dtype))
    params = jax.jit(lambda: model.init(jax.random.key(0), (28, 28)))()
    params["backbone"] = cast_frozen(params["backbone"], dtype)
    source = Rooms(size=given.images, height=given.side[0], width=given.side[1])
    forward = scoring.depth_forward_in_two(model, 0.001, 10.0)
    holders = {"computed": KeptTaps(0), "kept": KeptTaps(16)}

    def score(name: str) -> tuple[float, dict]:
        began = time.perf_counter()
        batches = evaluation_batches(source, protocols.protocol("rooms"), 2)
        scores = scoring.score_depth(forward, params, batches, kept=holders[name])
        return time.perf_counter() - began, scores

    score("kept")  # compiles, and fills
    rounds = [{name: score(name) for name in holders} for _ in range(given.rounds)]
    for each in rounds:
        print(", ".join(f"{name} {seconds:.2f} s" for name, (seconds, _) in each.items()))
    ratio = statistics.median(each["kept"][0] / each["computed"][0] for each in rounds)
    same = all(each["kept"][1] == each["computed"][1] for each in rounds)
    print(f"with kept features {ratio:.2f} × the time; scores {'the same' if same else 'DIFFER'}")


if __name__ == "__main__":
    main()
