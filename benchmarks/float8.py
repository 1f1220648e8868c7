"""What float8 costs in accuracy and gains in time: python benchmarks/float8.py [--size g] [--images 4] [--crop 416x544]

A frozen backbone with random weights and outlier channels like DINOv2's: three entries of every third block's LayerScale
are 100 times larger. Each row computes some of its matrix products in float8 and compares the taps with those in float32:
the root mean square over channels of a channel's error as a share of that channel's own size. Rows: bfloat16; float8 by
kind of matrix; all kinds; all kinds with one scale for a whole activation in place of one per token. On an accelerator
also the time of the pass beside bfloat16's, and that of each product alone, with sums in float32 and in Hopper's faster,
coarser way. The compiled text says whether the products are in float8.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import measure
from measure import RESULTS, Results, UserError, shown, table

import hand_count
import jax
import jax.numpy as jnp
import numpy as np
import workload

from jdepth import kernels
from jdepth.models import attention, build, cast_frozen, float8

PER_TENSOR = "all, one scale per tensor"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="g", choices=workload.SIZES)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--crop", default="416x544", metavar="HxW")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a timed block")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON file lies")
    given = parser.parse_args()
    try:
        run(given)
    except UserError as error:
        parser.exit(2, f"{error}\n")


def run(given: argparse.Namespace) -> None:
    """Compare, write and print; one row per choice of matrices, and on an accelerator one per matrix."""
    case = workload.parse(f"{given.size} {given.images}+1 k=1 backbone at {given.crop}")
    results = Results("float8", measure.device(), given.results)
    params = with_outliers(workload.random_params(jax.eval_shape(partial(_draw, case.shape))))
    images = jax.random.normal(jax.random.key(0), (case.depth, *case.crop, 3))
    with jax.default_matmul_precision("float32"):
        exact = [np.asarray(tap) for tap in Pass(case.shape, params, (), "float32").taps(images)]
    kinds = float8.KINDS[case.shape.ffn]
    chosen = {"bfloat16": (), **{kind: (kind,) for kind in kinds}, "all": kinds, PER_TENSOR: kinds}
    timed, names = measure.precision() == "bfloat16", []
    plain = Pass(case.shape, params, (), "bfloat16")
    for name, own in chosen.items():
        with one_scale_per_tensor() if name == PER_TENSOR else nullcontext():
            rounded = plain if not own else Pass(case.shape, params, own, "bfloat16")
            row: dict[str, Any] = {"errors": errors(rounded.taps(images), exact)}
        row["float8_products"] = kernels.float8_products(rounded.text)
        row["float8_wanted"] = case.shape.depth * len(own)
        if timed and own:
            calls = {"bfloat16": plain.caller(images), "float8": rounded.caller(images)}
            times = measure.interleaved(calls, given.rounds, given.seconds)
            row["seconds"] = statistics.median(times["float8"])
            row["times_as_fast"] = measure.ratio(times, "bfloat16", "float8")
        names.append(f"{given.size} {given.images} at {given.crop}: {name}")
        results.add(names[-1], row)
        del rounded
    print_errors(results, names)
    if timed:
        print_products(results, case, given)
    print(f"written to {results.path}")


def _draw(shape) -> Any:
    return build(shape).init(jax.random.key(0), (28, 28))["backbone"]


def with_outliers(params: Any) -> Any:
    """The same with three entries of every third block's LayerScale 100 times larger."""
    draw = np.random.default_rng(0)
    for name, block in params.items():
        if name.startswith("blocks_") and int(name.removeprefix("blocks_")) % 3 == 1:
            for scale in ("ls1", "ls2"):
                gamma = np.array(block[scale]["gamma"])
                gamma[draw.permutation(gamma.size)[:3]] *= 100
                block[scale]["gamma"] = gamma
    return params


class Pass:
    """A frozen backbone's compiled forward pass with some matrices in float8."""

    def __init__(self, shape, params: Any, kinds: tuple[str, ...], dtype: str):
        own = jnp.dtype(dtype)
        model = build(shape, dtype=own, attention=attention.choose("auto", own), float8=kinds).backbone
        self._params = jax.jit(lambda p: cast_frozen(p, own, kinds))(params)
        self._forward = jax.jit(lambda p, x: model.apply({"params": p}, x).taps)
        self._compiled, self.text = None, ""

    def taps(self, images: jax.Array) -> list[jax.Array]:
        """Patch tokens of the four taps, float32 (B, h, w, D)."""
        if self._compiled is None:
            self._compiled = self._forward.lower(self._params, images).compile()
            self.text = self._compiled.as_text()
        return [patches.astype(jnp.float32) for patches, _ in self._compiled(self._params, images)]

    def caller(self, images: jax.Array) -> measure.Call:
        """Runs so many passes and waits."""

        def call(passes: int) -> None:
            for _ in range(passes):
                found = self._compiled(self._params, images)
            jax.block_until_ready(found)

        return call


def errors(found: list[jax.Array], exact: list[np.ndarray]) -> list[float]:
    """Per tap: root mean square over channels of a channel's error divided by that channel's own root mean square."""
    shares = []
    for one, other in zip(found, exact, strict=True):
        axes = tuple(range(other.ndim - 1))
        off = np.square(np.asarray(one, np.float64) - other).mean(axes) / np.square(np.float64(other)).mean(axes)
        shares.append(float(np.sqrt(off.mean())))
    return shares


@contextmanager
def one_scale_per_tensor() -> Iterator[None]:
    """Activations with a single scale, while programs are traced inside; kernels keep one per channel."""
    quantise = float8.quantise

    def coarse(x, axis):
        return quantise(x, None if isinstance(x, jax.core.Tracer) and axis == -1 else axis)

    with mock.patch.object(float8, "quantise", coarse):
        yield


def print_errors(results: Results, names: list[str]) -> None:
    """The table of backbones."""
    rows = results.rows()
    lines = [
        [
            name, f"{row['float8_products']} of {row['float8_wanted']}",
            *(shown(error, 3, 100) for error in row["errors"]), shown(row.get("seconds"), 4, 1e3),
            shown(row.get("times_as_fast")),
        ]
        for name in names
        for row in [rows[name]]
    ]  # fmt: skip
    titles = ["matrices in float8", "in the text", *(f"tap {i} off by %" for i in range(1, 5)), "ms", "× bfloat16"]
    print(f"\n{results.device}\n" + table(titles, lines))


def print_products(results: Results, case: workload.Case, given: argparse.Namespace) -> None:
    """Time each product of a block alone: bfloat16, float8 with its rounding, and with coarser sums."""
    shape, lines = case.shape, []
    side = 2 if shape.ffn == "swiglu" else 1
    sizes = {"qkv": (shape.width, 3 * shape.width), "proj": (shape.width, shape.width)}
    sizes |= dict(zip(float8.KINDS[shape.ffn][2:], [(shape.width, side * shape.hidden), (shape.hidden, shape.width)]))
    height, width = hand_count.padded(case.crop, shape.patch)
    tokens = case.depth * (1 + shape.registers + (height // shape.patch) * (width // shape.patch))
    for name, (inside, out) in sizes.items():
        x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(tokens, inside), (inside, out)]))
        x, whole, held = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), float8.quantise_kernel(kernel)
        calls = {
            "bfloat16": _repeated(lambda x, k=whole: x @ k, x),
            "float8": _repeated(partial(_product, held=held, precision=jax.lax.Precision.HIGHEST), x),
            "coarse sums": _repeated(partial(_product, held=held, precision=jax.lax.Precision.DEFAULT), x),
        }
        times = measure.interleaved(calls, given.rounds, given.seconds)
        row = {"seconds": {n: statistics.median(values) for n, values in times.items()}, "shape": [tokens, inside, out]}
        row["times_as_fast"] = {n: measure.ratio(times, "bfloat16", n) for n in ("float8", "coarse sums")}
        results.add(f"{given.size} {given.images} at {given.crop}: product {name}", row)
        lines.append([f"{name} {tokens}x{inside}x{out}", *(shown(s, 4, 1e6) for s in row["seconds"].values()),
                      *(shown(ratio) for ratio in row["times_as_fast"].values())])  # fmt: skip
    print("\n" + table(["product", *(f"{n}, µs" for n in calls), "× bfloat16", "× with coarse sums"], lines))


def _product(x: jax.Array, held: dict, precision: jax.lax.Precision) -> jax.Array:
    """`float8.product` with a choice of how it is summed."""
    small, own = float8.quantise(x.astype(jnp.float32), axis=-1)
    raw = jax.lax.dot_general(
        small, held["kernel"], (((1,), (1,)), ((), ())), precision=precision, preferred_element_type=x.dtype
    )
    return (raw.astype(jnp.float32) * own * held["scale"]).astype(x.dtype)


def _repeated(function, x: jax.Array) -> measure.Call:
    program = jax.jit(function).lower(x).compile()

    def call(times: int) -> None:
        for _ in range(times):
            found = program(x)
        jax.block_until_ready(found)

    return call


if __name__ == "__main__":
    main()
