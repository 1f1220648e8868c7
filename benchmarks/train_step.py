"""How fast a joint step trains: python benchmarks/train_step.py --set core [--peer] [--minutes 9]

  --set tiny | cpu | core | float8 | phases | all    named cases; tiny and cpu are for machines without an accelerator
  --cases "g 4+4 k=8 fused" ...              or single ones: SIZE DEPTH+AUXILIARY k=K KIND [at HxW]
  --flops                                    no measurement: FLOPs by hand, counted, as released, and in PyTorch

Sizes S, B, L, g with random weights, the recipe's crops and MIX6's classes, data on the device. Kinds are explained in
workload.py. Every row holds seconds per joint step, utilisation (the official formula's FLOPs per second against a
matrix product measured in the same rounds), memory, compile time, and its time against the first case of its group,
interleaved. A row is written as soon as it is measured; what is there is not measured again without --again.
"""

import argparse
import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import measure
from measure import RESULTS, Call, Results, UserError, shown, table

import hand_count
import jax
import workload
from workload import Case

from jdepth.recipe import RELEASED

STEPS = RELEASED["steps"]
SETS = {
    "tiny": [f"tiny 2+2 {rest} at 56x84" for rest in ("k=1 fused", "k=1 separate", "k=2 fused", "k=1 plain")],
    "cpu": [f"S 1+1 {rest} at 224x280" for rest in ("k=1 fused", "k=1 separate", "k=2 fused")],
    "core": [
        *(f"g 4+4 {rest}" for rest in ("k=1 fused", "k=1 separate", "k=4 fused", "k=8 fused")),
        *(f"g 16+16 {rest}" for rest in ("k=1 fused", "k=1 separate", "k=2 fused")),
        *(f"S 4+4 {rest}" for rest in ("k=1 fused", "k=1 separate", "k=4 fused", "k=8 fused")),
        *(f"g 1+1 {rest}" for rest in ("k=1 fused", "k=1 separate", "k=8 fused")),
    ],
    "float8": [f"g {rest} {kind}" for rest in ("4+4 k=8", "16+16 k=1") for kind in ("fused", "float8")],
    "phases": [
        f"{size} 4+4 k=1 {kind}" for size in "Sg" for kind in ("fused", "backbone", "depth-update", "auxiliary-update")
    ],
    "all": [
        f"{size} {n}+{n} {rest}"
        for size in "SBLg"
        for n in (1, 2, 4, 16, 64)
        for rest in (
            *(f"k={k} fused" for k in (1, 2, 4, 8)), "k=1 separate",
            *(f"k={k} backbone" for k in (1, 8)), "k=1 depth-update", "k=1 auxiliary-update",
        )
    ],
}  # fmt: skip
# Where the comparison with PyTorch is wanted, per set.
PEERS = {"tiny": ["tiny 2+2"], "cpu": ["S 1+1"], "core": ["g 4+4", "g 16+16"]}
Group = tuple[Any, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="named cases")
    parser.add_argument("--cases", nargs="+", default=[], metavar="CASE", help="single cases, in their order")
    parser.add_argument("--peer", action="store_true", help="beside PyTorch, eager and torch.compile")
    parser.add_argument("--flops", action="store_true", help="print counted FLOPs instead of measuring")
    parser.add_argument("--minutes", type=float, help="start no case that may not end within so many minutes")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds per case")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a timed block")
    parser.add_argument("--again", action="store_true", help="measure finished cases again")
    parser.add_argument("--profile", type=Path, metavar="DIR", help="also write a trace of three calls of each case")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON file lies")
    given = parser.parse_args()
    try:
        if given.flops:
            show_flops(given.peer)
        else:
            cases = chosen(given.set, given.cases, given.peer)
            run(given, cases) if cases else parser.error("give --set, --cases or --flops")
    except UserError as error:
        parser.exit(2, f"{error}\n")


def chosen(name: str | None, cases: list[str], peer: bool) -> list[Case]:
    """The cases asked for, each once."""
    names = list(cases) or list(SETS.get(name or "", []))
    if peer:
        found = [workload.parse(case) for case in names]
        places = PEERS.get(name or "") or [f"{case.size} {case.depth}+{case.auxiliary}" for case in found]
        for place in places:
            crop = next((case.crop for case in found if str(case).startswith(f"{place} ")), None)
            at = f" at {crop[0]}x{crop[1]}" if crop else ""
            names += [f"{place} k=1 {kind}{at}" for kind in ("plain", "eager", "compile")]
    return list(dict.fromkeys(workload.parse(case) for case in names))


def group(case: Case) -> Group:
    """Cases that are measured in one process, interleaved with its first one."""
    return case.size, case.depth, case.auxiliary, case.crop, case.torch


def run(given: argparse.Namespace, cases: list[Case]) -> None:
    """Measure the cases; each group in a process of its own, so that its memory is its own."""
    began, groups = time.monotonic(), dict.fromkeys(map(group, cases))
    if len(groups) == 1:
        measure_group(given, cases, began)
        return
    results = Results("train_step", _device_elsewhere(), given.results)
    for key in groups:
        done = set() if given.again else set(results.rows())
        own = [str(case) for case in cases if group(case) == key]
        left = None if given.minutes is None else given.minutes - (time.monotonic() - began) / 60
        if set(own) <= done:
            continue
        if left is not None and left < 0.5:
            print(f"no time left for {', '.join(own)}; the same command goes on with them")
            continue
        command = [sys.executable, __file__, "--cases", *own, "--rounds", given.rounds, "--seconds", given.seconds]
        command += ["--results", given.results, *(["--again"] if given.again else [])]
        command += [] if left is None else ["--minutes", left]
        command += ["--profile", given.profile] if given.profile else []
        code = subprocess.run([str(part) for part in command], env=os.environ | {"JDEPTH_BENCHMARK": "1"}).returncode
        if code:
            print(f"{', '.join(own)}: stopped with exit code {code}", file=sys.stderr)
    print(summary(results, cases))


def _device_elsewhere() -> str:
    """The device's name, asked for by another process: this one must not hold the device."""
    ask = "import jax; print(jax.local_devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"no device: {(done.stderr.strip() or 'jax does not start').splitlines()[-1]}")
    return done.stdout.strip().splitlines()[-1]


# ---- One group --------------------------------------------------------------------------------------


def measure_group(given: argparse.Namespace, cases: list[Case], began: float) -> None:
    """Compile, measure and write case by case; the first case is the one that the others are compared with."""
    side = TorchSide() if cases[0].torch else JaxSide()
    results = Results("train_step", side.device, given.results)
    missing = [case for case in cases if given.again or str(case) not in results.rows()]
    # What a case may take: as long as the longest so far, in this process or an earlier one.
    longest = max((row.get("compile_seconds", 0.0) for row in results.rows().values()), default=0.0)
    first, tried = None, False
    for case in missing:
        spent = time.monotonic() - began
        # The first one to measure is compared with a case that another process measured: that is compiled again.
        preparing = 1 if tried or case == cases[0] else 2
        if given.minutes is not None and spent + preparing * longest > 60 * given.minutes:
            print(f"no time left for {case}; the same command goes on with it")
            continue
        started = time.monotonic()
        try:
            if not tried:
                tried, first = True, _prepared(side, cases[0], own=case == cases[0])
            mine = first if case == cases[0] else side.prepare(case)
            results.add(str(case), row_of(side, case, mine, cases[0], first, given))
            if given.profile:
                with side.trace(given.profile, case):
                    mine.call(3)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            results.add(str(case), {"failed": f"out of memory: {str(error).splitlines()[0][:200]}"})
        longest = max(longest, (time.monotonic() - started) / preparing)
        print(f"{case}: done after {time.monotonic() - began:.0f} s", flush=True)
    if not os.environ.get("JDEPTH_BENCHMARK"):  # the starting process shows them all
        print(summary(results, cases))


def _prepared(side: Any, case: Case, own: bool) -> "Ready | None":
    """The case to compare with; None where it does not fit the memory and it is another one's turn (not `own`)."""
    try:
        return side.prepare(case)
    except Exception as error:
        if own or not _out_of_memory(error):
            raise
        return None


def _out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "OutOfMemoryError"


@dataclasses.dataclass
class Ready:
    """A case that can be run: `call(n)` makes n × `steps` joint steps."""

    call: Call
    steps: int
    compile_seconds: float
    program_bytes: int | None
    about: dict[str, Any]


class JaxSide:
    """Cases in jdepth. The random parameters are drawn once for a group."""

    def __init__(self):
        self.device, self.precision = measure.device(), measure.precision()
        self.product, self.flops = measure.matrix_product(self.precision)
        self._starts: dict[tuple[str, ...], Any] = {}

    def prepare(self, case: Case) -> Ready:
        """Compile a case."""
        work = workload.build(case, self.precision)
        # One start for all cases whose backbones are held alike.
        kinds = work.model.backbone.float8
        if kinds not in self._starts:
            self._starts[kinds] = workload.initial(work)
        began = time.perf_counter()
        program = workload.Program(work, case.kind, *self._starts[kinds], workload.batch_of(case))
        seconds = time.perf_counter() - began
        held = max(measure.program_bytes(compiled) for compiled in program.compiled)
        about = {"precision": self.precision, "attention": work.model.backbone.attention}
        return Ready(program, program.steps, seconds, held, about)

    def peak_bytes(self) -> int | None:
        """Most bytes in use since the process began."""
        return measure.peak_bytes()

    def counted(self, case: Case) -> float:
        """FLOPs that the case computes."""
        return workload.counted(case)

    @contextlib.contextmanager
    def trace(self, folder: Path, case: Case) -> Iterator[None]:
        """A trace of what runs inside, for TensorBoard or Perfetto."""
        with jax.profiler.trace(str(folder / str(case).replace(" ", "_"))):
            yield


class TorchSide:
    """Cases in PyTorch."""

    def __init__(self):
        jax.config.update("jax_platforms", "cpu")  # the device is PyTorch's
        import peer
        import torch

        self.peer, self.torch, self.cuda = peer, torch, peer.DEVICE == "cuda"
        self.device = torch.cuda.get_device_name() if self.cuda else "cpu"
        self.product, self.flops = peer.matrix_product()

    def prepare(self, case: Case) -> Ready:
        """Build the model; compilation happens in its first steps."""
        joint = self.peer.JointStep(case, compiled=case.kind == "compile")
        began = time.perf_counter()
        joint.steps(1)
        about = {"precision": "bfloat16" if joint.half else "float32", "attention": "scaled_dot_product_attention"}
        return Ready(joint.steps, 1, time.perf_counter() - began, None, about)

    def peak_bytes(self) -> int | None:
        """Most bytes that tensors held since the process began."""
        return self.torch.cuda.max_memory_allocated() if self.cuda else None

    def counted(self, case: Case) -> float:
        """FLOPs by PyTorch's own counter."""
        return self.peer.counted(case)

    @contextlib.contextmanager
    def trace(self, folder: Path, case: Case) -> Iterator[None]:
        """A Chrome trace of what runs inside."""
        folder.mkdir(parents=True, exist_ok=True)
        with self.torch.profiler.profile() as profile:
            yield
        profile.export_chrome_trace(str(folder / f"{str(case).replace(' ', '_')}.json"))


def row_of(side: Any, case: Case, mine: Ready, first_case: Case, first: Ready | None, given: Any) -> dict[str, Any]:
    """Everything that is told of a case; without `first`, which did not fit the memory, no comparison with it."""
    calls: dict[str, Call] = {"product": side.product, "case": mine.call}
    compared = first is not None and mine is not first
    if compared:
        calls["first"] = first.call
    times = measure.interleaved(calls, given.rounds, given.seconds)
    seconds = [value / mine.steps for value in times["case"]]
    rate = side.flops / statistics.median(times["product"])
    whole = case.kind in ("separate", "plain", *workload.PEERS)  # as many FLOPs as the fused program
    official = workload.counted(dataclasses.replace(case, kind="fused") if whole else case, ())
    middle = statistics.median(seconds)
    row = {
        "seconds": middle,
        "rounds": seconds,
        "images_per_second": case.images / middle,
        "flops": side.counted(case),
        "official_flops": official,
        "product_flops_per_second": rate,
        "utilisation": statistics.median(
            official / own / (side.flops / product) for own, product in zip(seconds, times["product"], strict=True)
        ),
        "hours_of_the_recipe": middle * STEPS / 3600,
        "compile_seconds": mine.compile_seconds,
        "program_bytes": mine.program_bytes,
        "peak_bytes_of_the_process": side.peak_bytes(),
    } | mine.about
    if compared:
        row |= {"compared_with": str(first_case), "times_as_fast": measure.ratio(times, "first", "case")
                * mine.steps / first.steps}  # fmt: skip
    return row


# ---- Tables -----------------------------------------------------------------------------------------


def summary(results: Results, cases: list[Case]) -> str:
    """The rows of these cases as text."""
    rows, lines = results.rows(), []
    for case in cases:
        row = rows.get(str(case))
        if row is None:
            lines.append([str(case), "not measured", *[""] * 9])
        elif "failed" in row:
            lines.append([str(case), row["failed"].split(":")[0], *[""] * 9])
        else:
            lines.append(
                [
                    str(case), shown(row["seconds"], 4, 1e3), shown(row["images_per_second"]),
                    *(shown(row[key], 4, 1e-12) for key in ("flops", "official_flops")),
                    shown(row["utilisation"], 3, 100), shown(row.get("times_as_fast")), _times_pytorch(rows, case),
                    shown(row["hours_of_the_recipe"]),
                    *(shown(row[key], 3, 2**-30) for key in ("program_bytes", "peak_bytes_of_the_process")),
                ]
            )  # fmt: skip
    titles = ["case", "ms/step", "images/s", "TFLOP", "official", "util %", "× first", "× eager, compile",
              f"h/{STEPS}", "GiB", "peak"]  # fmt: skip
    rates = {f"{row['product_flops_per_second'] / 1e12:.3g}" for row in rows.values() if "seconds" in row}
    measured = f"matrix products {', '.join(sorted(rates))} TFLOP/s" if rates else "nothing measured"
    return f"\n{results.device}, {measured}\n" + table(titles, lines) + f"\nwritten to {results.path}"


def _times_pytorch(rows: dict[str, Any], case: Case) -> str:
    """How many times as fast as PyTorch's two ways on the same batches, where they are there."""
    found = []
    for kind in workload.PEERS:
        other = rows.get(str(dataclasses.replace(case, ahead=1, kind=kind)), {})
        if "seconds" in other and case.kind in ("fused", "separate", "plain"):
            found.append(f"{other['seconds'] / rows[str(case)]['seconds']:.2f}")
    return ", ".join(found)


def show_flops(peer: bool, sizes: str = "SBLg") -> None:
    """Print the FLOPs of the joint step at 4+4: by hand, counted, as released; and what each saving saves."""
    lines = [flops_row(workload.parse(f"{size} 4+4 k=1 fused"), peer) for size in sizes]
    titles = ["4+4, TFLOP", "hand", "counted", "/ hand", "released", *workload.released.SAVINGS, "all four",
              "towards taps", *(["PyTorch", "/ released"] if peer else [])]  # fmt: skip
    print(table(titles, lines))
    print("of the savings: % of the released step; towards taps: what that gradient would add, which PyTorch saves too")


def flops_row(case: Case, peer: bool) -> list[str]:
    """A line of that table."""
    counted, released = workload.counted(case), workload.counted(case, ())
    sizes = zip((case.depth, case.auxiliary), workload.crops(case), strict=True)
    hand = hand_count.joint_step(case.shape, *sizes, case.channels)
    share: Callable[[float], str] = lambda saved: shown(100 * saved / released, 3)  # noqa: E731
    each = [share(released - workload.counted(case, (saving,))) for saving in workload.released.SAVINGS]
    row = [case.size, shown(hand, 4, 1e-12), shown(counted, 4, 1e-12), shown(counted / hand, 4)]
    row += [shown(released, 4, 1e-12), *each, share(released - counted), share(workload.towards_taps(case))]
    if peer:
        import peer as torch_side

        theirs = torch_side.counted(case)
        row += [shown(theirs, 4, 1e-12), shown(theirs / released, 4)]
    return row


if __name__ == "__main__":
    main()
