"""How fast a data set is prepared: python benchmarks/prepare.py [--images 5000] [--workers 2] [--kills 20]

Writes NYU-size frames in the original layout to a temporary folder, prepares them and prints frames/s, MB/s of the
original files, the size of the records and the largest resident memory, workers included. With --kills, prepares them
once more, killed at so many random moments and started again, and compares every file.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import raw_sets
from pipeline import resident


def start(folder: Path, out: Path, workers: int) -> subprocess.Popen:
    """The command, as a user runs it."""
    command = ["-m", "jdepth.prepare", "nyu", "--raw", folder / "raw", "--out", out, "--split", "train"]
    arguments = [sys.executable, *map(str, command), "--workers", str(workers)]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def watched(process: subprocess.Popen) -> float:
    """Wait for a process; the largest resident memory seen, MiB."""
    largest = 0.0
    while process.poll() is None:
        try:
            largest = max(largest, resident(process.pid))
        except FileNotFoundError:
            break
        time.sleep(0.05)
    if process.wait():
        raise SystemExit("preparing failed")
    return largest


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.name != ".lock"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--kills", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = raw_sets.write_nyu(folder / "raw", arguments.images)
        size = sum(path.stat().st_size for pair in files for path in pair)
        began = time.perf_counter()
        largest = watched(start(folder, folder / "whole", arguments.workers))
        seconds = time.perf_counter() - began
        written = sum(path.stat().st_size for path in (folder / "whole/nyu").glob("*array_record-*-of-?????"))
        print(
            f"{arguments.images} frames, {arguments.workers} workers: {seconds:.1f} s, "
            f"{arguments.images / seconds:.0f} frames/s, {size / seconds / 1e6:.0f} MB/s; {size / 1e6:.0f} MB become "
            f"{written / 1e6:.0f} MB; at most {largest:.0f} MiB resident"
        )
        if not arguments.kills:
            return
        rng, killed = random.Random(0), 0
        for _ in range(arguments.kills):
            process = start(folder, folder / "killed", arguments.workers)
            timer = threading.Timer(rng.uniform(0.5, max(seconds / 4, 4)), process.send_signal, [signal.SIGKILL])
            timer.start()
            killed += process.wait() != 0
            timer.cancel()
        watched(start(folder, folder / "killed", arguments.workers))
        same = digests(folder / "whole/nyu") == digests(folder / "killed/nyu")
        print(f"killed {killed} times: {'identical files' if same else 'DIFFERENT FILES'}")


if __name__ == "__main__":
    main()
