"""Time to the first step of a first and of a second start: python benchmarks/start_up.py [--rounds 1] [-- FLAGS]

Starts `python -m jdepth.main` with FLAGS (by default the quickstart) in a fresh workdir until it prints its first
step, with an empty folder of compiled programs and then with the one that this left behind. Prints both wall times,
the processor time of each and the ratios.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(flags: list[str], cache: Path, workdir: Path) -> tuple[float, float]:
    """(wall seconds, processor seconds) from the command to its first step."""
    environment = os.environ | {"JDEPTH_COMPILATION_CACHE": str(cache), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "jdepth.main", *flags, "--config.log.every=1", f"--config.workdir={workdir}"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 1/"):
                break
        else:
            raise SystemExit("the run ended before its first step:\n" + "".join(lines[-20:]))
        took = time.perf_counter() - began
        process.kill()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("flags", nargs="*", help="of jdepth.main, after --")
    given = parser.parse_args()
    flags = given.flags or ["--config=configs/quickstart.py"]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            cache = Path(folder) / f"compiled{number}"
            first, second = (start(flags, cache, Path(folder) / f"run{number}{i}") for i in (1, 2))
            files = [file for file in cache.rglob("*") if file.is_file()]
            kept = sum(file.stat().st_size for file in files)
            print(
                f"first start {first[0]:.1f} s (processor {first[1]:.1f} s), second {second[0]:.1f} s "
                f"({second[1]:.1f} s): {second[0] / first[0]:.2f} × ({second[1] / first[1]:.2f} ×); "
                f"{len(files)} files, {kept / 1e6:.1f} MB kept",
                flush=True,
            )


if __name__ == "__main__":
    main()
