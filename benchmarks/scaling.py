"""How a joint step scales over devices: python benchmarks/scaling.py [--size g] [--batch 4] [--ahead 8]

Weak: --batch + --batch images on every device, k = 1. Strong: --batch + --batch images for all devices, with --ahead
steps looked ahead, which devices that are too many for the batch share out. Both on 1, 2, 4, ... of this process's devices, in
rounds that meet all numbers of devices alike; efficiency is against one device. On a CPU, which the devices only share,
it is a check that the programs run:

  XLA_FLAGS=--xla_force_host_platform_device_count=4 python benchmarks/scaling.py --size tiny --crop 56x84
"""

import argparse
import math
import statistics
from pathlib import Path

import measure
from measure import RESULTS, Results, UserError, shown, table

import jax
import workload
from workload import Case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="g", choices=workload.SIZES)
    parser.add_argument("--crop", metavar="HxW", help="instead of the recipe's crops")
    parser.add_argument("--batch", type=int, default=4, help="images of each task: per device (weak), of all (strong)")
    parser.add_argument("--ahead", type=int, default=8, help="steps that the strong rows look ahead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a timed block")
    parser.add_argument("--again", action="store_true", help="measure finished cases again")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where the JSON file lies")
    given = parser.parse_args()
    try:
        run(given)
    except UserError as error:
        parser.exit(2, f"{error}\n")


def numbers(devices: int) -> list[int]:
    """1, 2, 4, ... and all of them."""
    powers = [1 << i for i in range(devices.bit_length()) if 1 << i <= devices]
    return powers if powers[-1] == devices else [*powers, devices]


def case_of(given: argparse.Namespace, batch: int, ahead: int) -> Case:
    """The fused joint step with this global batch."""
    at = f" at {given.crop}" if given.crop else ""
    return workload.parse(f"{given.size} {batch}+{batch} k={ahead} fused{at}")


def run(given: argparse.Namespace) -> None:
    """Measure weak and strong scaling, write and print them."""
    devices = jax.local_devices()
    counts, results = numbers(len(devices)), Results("scaling", measure.device(), given.results)
    # Every number of devices must share batch and steps evenly.
    fits = lambda b: all(given.ahead % (n // math.gcd(n, b)) == 0 for n in counts)  # noqa: E731
    whole = next(b for b in range(given.batch, 10**9, given.batch) if fits(b))
    for kind in ("weak", "strong"):
        cases = {
            n: case_of(given, given.batch * n, 1) if kind == "weak" else case_of(given, whole, given.ahead)
            for n in counts
        }
        names = {n: f"{kind} {cases[n]} on {n} of {len(devices)}" for n in counts}
        if given.again or not set(names.values()) <= set(results.rows()):
            scale(given, results, cases, names)
        lines = [
            [
                names[n], shown(row["steps_per_second"]), shown(row["images_per_second"]),
                shown(row["efficiency"], 3, 100), shown(row["program_bytes"], 3, 2**-30),
            ]
            for n in counts
            for row in [results.rows()[names[n]]]
        ]  # fmt: skip
        print("\n" + table([f"{results.device}: {kind}", "steps/s", "images/s", "efficiency %", "GiB/device"], lines))
    print(f"written to {results.path}")


def scale(given: argparse.Namespace, results: Results, cases: dict[int, Case], names: dict[int, str]) -> None:
    """Time the cases on so many devices each, interleaved, and add a row for each."""
    precision, devices = measure.precision(), jax.local_devices()
    programs, start = {}, None
    for n, case in cases.items():
        work = workload.build(case, precision)
        start = start or workload.initial(work)
        programs[n] = workload.Program(work, case.kind, *start, workload.batch_of(case), devices[:n])
    times = measure.interleaved({str(n): program for n, program in programs.items()}, given.rounds, given.seconds)
    for n, case in cases.items():
        seconds = statistics.median(times[str(n)]) / case.ahead
        # Images per second and device against those of one device, round by round.
        efficiency = measure.ratio(times, "1", str(n)) * case.images / cases[1].images / n
        row = {
            "devices": n, "seconds": seconds, "steps_per_second": 1 / seconds,
            "images_per_second": case.images / seconds, "efficiency": efficiency, "precision": precision,
            "program_bytes": max(measure.program_bytes(compiled) for compiled in programs[n].compiled),
        }  # fmt: skip
        results.add(names[n], row)


if __name__ == "__main__":
    main()
