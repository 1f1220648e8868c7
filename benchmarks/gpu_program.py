"""What the compiler for a GPU makes of the joint step, on a machine without one: python benchmarks/gpu_program.py

  --set core | float8 | devices        named cases
  --cases "g 4+4 k=8 fused" ...        or single ones, as train_step.py names them
  --gpus 8 [--fsdp 2]                  for so many devices of one host

Compiles for a described H200 with jax's CUDA plugin (`pip install jax[cuda12]`), which needs no GPU for that, and prints
per case: calls of cuDNN's attention, matrix products in float8 (each of how many are wanted), convolutions, memory per
device, what crosses devices, and a floor for the time: FLOPs at the rate of a large bfloat16 product (at twice that rate
in float8), plus the bytes that everything else reads and writes at the memory's rate. How far above it a step lies is
for train_step.py to measure: with no GPU at hand the compiler cannot try which kernel is the quickest. A case that lacks
a kernel ends the command with exit code 1.
"""

import argparse
import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import measure
from measure import RESULTS, Results, UserError, shown, table

import hand_count
import jax
import workload
from jax.experimental import topologies
from workload import Case

from jdepth import communication, kernels, parallel

# Of an H200: a large bfloat16 product as others have measured it (989 TFLOP/s are specified); memory as specified.
PRODUCT_FLOPS, MEMORY_BYTES = 790e12, 4.8e12

# What the compiler asks of a device, in its own text format.
DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  core_count: 132  fpus_per_core: 128  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 4814848000000  l2_cache_size: 62914560  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {cudnn[0]}  minor: {cudnn[1]} }}
runtime_version {{ major: {cuda[0]}  minor: {cuda[1]} }}
device_description_str: "NVIDIA H200"
"""
CUDNN, CUDA = (9, 10), (12, 9)
SETS = {
    "core": [
        *(f"g 4+4 k={k} fused" for k in (1, 4, 8)), *(f"g 16+16 k={k} fused" for k in (1, 2)),
        *(f"S 4+4 k={k} fused" for k in (1, 4, 8)), *(f"g 1+1 k={k} fused" for k in (1, 8)),
    ],
    "float8": [*(f"g 4+4 k={k} float8" for k in (1, 8)), "g 16+16 k=1 float8"],
}  # fmt: skip
KINDS = ("fused", "float8", "plain")  # those that are one program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="named cases")
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="single cases")
    parser.add_argument("--gpus", type=_count, default=1)
    parser.add_argument("--fsdp", type=_count, default=1, help="devices among which the backbone is divided")
    parser.add_argument("--again", action="store_true", help="compile finished cases again")
    parser.add_argument("--text", type=Path, metavar="DIR", help="also write the compiled programs' texts")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON file lies")
    given = parser.parse_args()
    names = given.cases or SETS.get(given.set or "") or parser.error("give --set or --cases")
    try:
        complete = run(given, names)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    parser.exit(0 if complete else 1)


def _count(text: str) -> int:
    """A number from 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def described(count: int = 1) -> list:
    """So many H200 of one host, to compile for. Raises UserError where jax lacks its CUDA plugin."""
    jax.config.update("jax_platforms", "cpu")  # arrays of this process
    text = DESCRIPTION.format(cudnn=CUDNN, cuda=CUDA)
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=text, topology=f"1x1x{count}")
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"jax cannot compile for CUDA here ({reason}): install jdepth with the extra cuda12") from error
    return list(topology.devices)


def compiled(case: Case, devices: list, fsdp: int = 1) -> tuple[jax.stages.Compiled, workload.Work, Any]:
    """(program, the work that it does, its training state as shapes)."""
    work = workload.build(case, "bfloat16", "plain")
    # The kernel that such a device chooses once it has tried it.
    backbone = work.model.backbone.clone(attention="cudnn")
    work = work._replace(model=dataclasses.replace(work.model, backbone=backbone))
    state, frozen, batch = workload.abstract(work, case)
    mesh = parallel.training_mesh(case.ahead, fsdp, devices, **work.config["batch"])
    lies = (*parallel.placement(mesh, (state, frozen)), parallel.joint_batch(mesh, case.ahead))
    (stage,) = workload.stages(work, case.kind, mesh)
    step = jax.jit(
        stage, donate_argnums=0, in_shardings=lies, out_shardings=(lies[0], parallel.replicated(mesh))
    ).lower(state, frozen, batch)  # fmt: skip
    return step.compile(), work, state


_INSTRUCTION = re.compile(r"\s*(?:ROOT )?(%[\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(?:, |$)")
_NAME = re.compile(r"%[\w.-]+")
# Neither read nor written by themselves, or counted as FLOPs.
_FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "while"}


def moved_bytes(text: str) -> float:
    """Bytes that a compiled program's kernels read and write, without products, convolutions and attention.

    From its text; a loop's body counts as often as it runs. Slices read what they give, all others whole arrays, also
    those that change a part of one in its place: of such, the count is too high.
    """
    computations: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.endswith("{") and (found := re.match(r"(ENTRY )?(%[\w.-]+) \(", line)):
            own = computations.setdefault("ENTRY" if found[1] else found[2], [])
        elif line.startswith("  "):
            own.append(line)

    def moved(name: str) -> float:
        sizes: dict[str, int] = {}
        total = 0.0
        for line in computations[name]:
            if not (found := _INSTRUCTION.match(line)):
                continue
            result, shape, kind, operands = found.groups()
            sizes[result] = communication.array_bytes(shape)
            if kind == "while":
                runs = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                total += int(runs[1] if runs else 1) * moved(re.search(r"body=(%[\w.-]+)", line)[1])
            if kind in _FREE or "custom-call" in kind or "gemm_fusion" in result:
                continue
            read = sum(sizes.get(name, 0) for name in set(_NAME.findall(operands)))
            total += sizes[result] + (min(read, sizes[result]) if "slice" in result else read)
        return total

    return moved("ENTRY")


def float8_flops(case: Case, kinds: tuple[str, ...]) -> float:
    """FLOPs of one joint step's products that are in float8."""
    shape = case.shape
    sizes = {"qkv": 3 * shape.width**2, "proj": shape.width**2, "fc1": shape.width * shape.hidden}
    sizes |= {"fc2": sizes["fc1"], "w12": 2 * sizes["fc1"], "w3": sizes["fc1"]}
    tokens = sum(
        images * (1 + shape.registers + (height // shape.patch) * (width // shape.patch))
        for images, crop in zip((case.depth, case.auxiliary), workload.crops(case), strict=True)
        for height, width in [hand_count.padded(crop, shape.patch)]
    )
    return 2.0 * tokens * shape.depth * sum(sizes[kind] for kind in kinds)


def row_of(case: Case, devices: list, fsdp: int, written: Path | None) -> dict[str, Any]:
    """What the compiled program of a case shows; its text goes to the file `written`."""
    began = time.perf_counter()
    program, work, _ = compiled(case, devices, fsdp)
    seconds, text = time.perf_counter() - began, program.as_text()
    if written is not None:
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(text, encoding="utf-8")
    memory, backbone = program.memory_analysis(), work.model.backbone
    counted, moved = workload.counted(case), moved_bytes(text) / case.ahead
    products = (counted - float8_flops(case, backbone.float8) / 2) / len(devices)  # the text is of one device
    calls, wanted = kernels.attention_calls(text), backbone.config.depth * len(work.todo)  # for each size of image
    lacking = kernels.missing(text, backbone)
    if calls < wanted and not lacking:
        lacking = [f"attention: {calls} of {wanted} calls of cuDNN in the compiled step"]
    return {
        "attention_calls": calls,
        "attention_wanted": wanted,
        "float8_products": kernels.float8_products(text),
        "float8_wanted": backbone.config.depth * len(backbone.float8),
        "convolutions": text.count('custom_call_target="__cudnn$conv'),
        "program_bytes": measure.program_bytes(program),
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": counted,
        "moved_bytes": moved,
        "floor_seconds": products / PRODUCT_FLOPS + moved / MEMORY_BYTES,
        "traffic": communication.traffic(text),
        "missing": lacking,
        "compile_seconds": seconds,
    }


def run(given: argparse.Namespace, names: list[str]) -> bool:
    """Compile the cases, write and print what they show; whether all have their kernels."""
    cases = [workload.parse(name) for name in names]
    for case in cases:
        if case.kind not in KINDS:
            raise UserError(f"case {str(case)!r}: only {', '.join(KINDS)} are one program")
    devices = described(given.gpus)
    results = Results("gpu_program", f"{devices[0].device_kind}, described", given.results)
    suffix = "" if given.gpus == 1 else f" on {given.gpus}" + (f", fsdp {given.fsdp}" if given.fsdp > 1 else "")
    for case in cases:
        name = f"{case}{suffix}"
        if given.again or name not in results.rows():
            written = given.text and given.text / f"{re.sub('[ ,]+', '_', name)}.hlo"
            results.add(name, row_of(case, devices, given.fsdp, written))
            print(f"{name}: compiled", flush=True)
    rows = {f"{case}{suffix}": results.rows()[f"{case}{suffix}"] for case in cases}
    lines = [
        [
            name, *(f"{row[f'{kind}_{found}']} of {row[f'{kind}_wanted']}" if row[f"{kind}_wanted"] else ""
                    for kind, found in (("attention", "calls"), ("float8", "products"))),
            str(row["convolutions"]), shown(row["program_bytes"], 3, 2**-30), shown(row["temporary_bytes"], 3, 2**-30),
            shown(row["traffic"]["all-reduce"], 4, 1e-6), shown(row["traffic"]["all-gather"], 4, 1e-6),
            shown(row["floor_seconds"], 3, 1e3), shown(row["compile_seconds"]),
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    titles = ["case", "cuDNN attention", "float8", "convolutions", "GiB", "of it temporary", "all-reduce MB",
              "all-gather MB", "floor, ms/step", "compile s"]  # fmt: skip
    print(f"\n{results.device}\n" + table(titles, lines) + f"\nwritten to {results.path}")
    for line in dict.fromkeys(line for row in rows.values() for line in row["missing"]):
        print(line)
    return not any(row["missing"] for row in rows.values())


if __name__ == "__main__":
    main()
