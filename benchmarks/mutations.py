"""Whether the tests can fail: python benchmarks/mutations.py --draw 60 --seed 0

  --draw 60 [--seed 0]   so many small changes of the library's meaning, drawn at random, spread over kinds and files
  --named                those of mutations_named.json
  --only TEXT            of either, those whose name contains a text

Makes one change at a time in a copy of the tree, runs the test files that should notice it, and undoes it. A change
that no test notices survives: it is shown in full, and the command ends with exit code 1. Survivors that are proven
to change nothing are listed in mutations_equal.json. Every result is written at once to results/mutations-*.json;
finished changes are not run again while their lines stay as they are.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import ROOT, Rows, UserError, table

import code_changes
from code_changes import Change

# What is changed at random, and the test files that should notice, quickest first. A file is of the first row it fits.
TESTS = {
    "jdepth/tasks.py": "tasks scoring step",
    "jdepth/step.py": "tasks step",
    "jdepth/optim.py": "optim step",
    "jdepth/scoring.py": "kept_taps scoring evaluate",
    "jdepth/metrics.py": "align metrics scoring",
    "jdepth/record.py": "record population",
    "jdepth/recipe.py": "recipe",
    "jdepth/inputs.py": "data_sources config scoring mix6_run",
    "jdepth/evaluate.py": "predict_families evaluate",
    "jdepth/losses/*.py": "losses tasks",
    "jdepth/data/protocols.py": "data_evaluation config evaluate",
    "jdepth/data/transforms.py": "data_augmentation data_evaluation data_pipeline",
    "jdepth/data/evaluation.py": "data_evaluation data_pipeline scoring",
    "jdepth/data/sources/room*.py": "rooms",
    "jdepth/data/sources/nyu_tfds.py": "nyu_tfds",
    "jdepth/data/sources/de*.py": "data_formula data_folder data_folder_mistakes data_decode raw_depth images",
    "jdepth/data/sources/fo*.py": "data_formula data_folder data_folder_mistakes data_decode data_samples",
    "jdepth/data/sources/__init__.py": "data_sources data_folder config prepare",
    "jdepth/data/sources/su[bg]*.py": "data_evaluation data_sources data_folder_mistakes",
    "jdepth/data/sources/prepared.py": "prepare_mistakes data_bad_items prepare",
    "jdepth/data/sources/*.py": "label_maps raw_matlab raw_labels raw_depth data_sources prepare_mistakes prepare",
    "jdepth/models/attention.py": "models_attention models_backbone",
    "jdepth/models/convolution.py": "models_convolution",
    "jdepth/models/products.py": "models_heads models_attention precision",
    "jdepth/models/depth_anything.py": "weights_depth_anything",
    "jdepth/models/float8.py": "float8",
    "jdepth/models/linear_head.py": "weights_dinov2_linear",
    "jdepth/models/resize.py": "models_resize models_heads models_backbone",
    "jdepth/models/heads.py": "models_heads tasks precision",
    "jdepth/models/dpt.py": "models_decoder",
    "jdepth/models/*.py": "models_attention models_heads tasks models_backbone models_decoder kept_taps",
}
REFERENCE = {
    "jdepth/losses/*.py": "losses_torch",
    "jdepth/models/resize.py": "parity_resize parity_backbone",
    "jdepth/models/float8.py": "float8_torch",
    "jdepth/models/depth_anything.py": "parity_depth_anything",
    "jdepth/models/*.py": "parity_backbone parity_depth parity_linear stacked_heads_torch",
    "jdepth/*.py": "joint_step_torch losses_torch",
}
# What a copy of the tree holds.
PARTS = ("jdepth", "tests", "configs", "launch", "benchmarks", "pyproject.toml", "README.md", "constraints.txt")
NOTICED, TOO_LONG, SURVIVED, EQUAL = "noticed", "noticed (time limit)", "survived", "changes nothing"


class Case(NamedTuple):
    """One change of a file: its lines before and after, the whole text after it, and the tests that should notice."""

    name: str
    kind: str
    file: str
    line: int
    old: str
    new: str
    text: str
    tests: tuple[str, ...]

    @property
    def sha(self) -> str:
        return hashlib.sha256("\0".join((self.file, self.old, self.new)).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--draw", type=int, metavar="N", help="so many changes at random")
    what.add_argument("--named", action="store_true", help="the changes of mutations_named.json")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", metavar="TEXT", help="changes whose name contains it")
    parser.add_argument("--all", action="store_true", help="then every fast test")
    parser.add_argument("--reference", action="store_true", help="also the comparisons with PyTorch")
    parser.add_argument("--again", action="store_true", help="run finished changes again")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: the tests end too, and the copy goes
    try:
        complete = run(parser.parse_args())
    except UserError as error:
        parser.exit(2, f"{error}\n")
    parser.exit(0 if complete else 1)


def run(given: argparse.Namespace, root: Path = ROOT) -> bool:
    """Try the changes that are asked for and print what became of them; whether every one was noticed."""
    cases = named(root, given) if given.named else drawn(root, given)
    if not (cases := [case for case in cases if given.only in case.name]):
        raise UserError(f"no change has {given.only!r} in its name")
    kind = "named" if given.named else f"drawn-{given.seed}"
    results = Rows(root / "benchmarks" / "results" / f"mutations-{kind}.json")
    rows = results.rows()
    todo = [case for case in cases if given.again or not _finished(case, rows.get(case.name, {}))]
    with private_copy(root) as tree:
        seconds = unchanged(tree, list(dict.fromkeys(test for case in todo for test in case.tests)))
        began = time.perf_counter()
        for number, case in enumerate(todo, 1):
            row = attempt(tree, case, 300 + 5 * sum(seconds[test] for test in case.tests))
            results.add(case.name, row)
            left = (time.perf_counter() - began) / number * (len(todo) - number) / 60
            by = f" by {row['by']}" if row["by"] else ""
            outcome = f"{row['outcome']}{by}  {row['seconds']:.0f} s"
            print(f"{number}/{len(todo)}  {case.name[:100]}: {outcome}  ETA {left:.0f} min", flush=True)
    rows = results.rows()
    complete = report([(case, rows[case.name]) for case in cases], _list(root / "benchmarks" / "mutations_equal.json"))
    print(f"written to {results.path}")
    return complete


def _finished(case: Case, row: Mapping[str, Any]) -> bool:
    """Whether a row is of the same change, and no further test could notice it."""
    return row.get("sha") == case.sha and (row["outcome"] != SURVIVED or set(case.tests) <= set(row["tests"]))


# ---- Which changes --------------------------------------------------------------------------------------


def drawn(root: Path, given: argparse.Namespace) -> list[Case]:
    """Changes at random."""
    files = {path.relative_to(root).as_posix(): path for pattern in TESTS for path in root.glob(pattern)}
    texts = {file: path.read_text(encoding="utf-8") for file, path in files.items()}
    cases = []
    for change in code_changes.draw(texts, given.draw, given.seed):
        case = _case("", change, texts[change.file], tests_of(change.file, given))
        edit = " ".join(f"{case.old} -> {case.new}".split())
        cases.append(case._replace(name=f"{case.file}:{case.line}: {edit}"))
    return cases


def named(root: Path, given: argparse.Namespace) -> list[Case]:
    """Changes of the list. Raises UserError for one that does not fit the code as it is."""
    cases, path = [], root / "benchmarks" / "mutations_named.json"
    for entry in _list(path):
        name, file = entry["name"], entry["file"]
        text = (root / file).read_text(encoding="utf-8") if (root / file).is_file() else ""
        if (count := text.count(entry["old"])) != 1:
            raise UserError(f"{path.name}: {name!r}: its old text must be in {file} once, and is there {count} times")
        start = text.index(entry["old"])
        change = Change("named", file, start, start + len(entry["old"]), entry["new"])
        if not code_changes.changes_meaning(text, change.apply(text)):
            raise UserError(f"{path.name}: {name!r}: after it, {file} is no Python, or means the same")
        if any(case.name == name for case in cases):
            raise UserError(f"{path.name}: {name!r}: two changes have this name")
        cases.append(_case(name, change, text, (*entry["tests"], *tests_of(file, given, own=False))))
    return cases


def _list(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path}: no JSON ({error})") from error


def _case(name: str, change: Change, text: str, tests: tuple[str, ...]) -> Case:
    """A change with the whole lines that it changes."""
    first, last = text.rfind("\n", 0, change.start) + 1, (text + "\n").find("\n", change.stop)
    old = text[first:last].strip()
    new = (text[first : change.start] + change.new + text[change.stop : last]).strip()
    line = text.count("\n", 0, change.start) + 1
    return Case(name, change.kind, change.file, line, old, new, change.apply(text), tests)


def tests_of(file: str, given: argparse.Namespace, own: bool = True) -> tuple[str, ...]:
    """Test files that should notice a change of a file, quickest first: its `own`, and those that the flags add."""

    def of(files: Mapping[str, str], prefix: str) -> list[str]:
        names = next((names for pattern, names in files.items() if Path(file).match(pattern)), "")
        return [f"tests/{prefix}test_{name}.py" for name in names.split()]

    chosen = (of(TESTS, "") if own else []) + (of(REFERENCE, "reference/") if given.reference else [])
    return (*chosen, *(["tests"] if given.all else []))


# ---- One change after the other -------------------------------------------------------------------------


@contextlib.contextmanager
def private_copy(root: Path) -> Iterator[Path]:
    """A copy of the tree, with the samples beside it that lie beside the tree."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for part in (root / name for name in PARTS if (root / name).exists()):
            if part.is_dir():
                shutil.copytree(part, tree / part.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(part, tree)
        if (root.parent / "shared").is_dir():
            (tree.parent / "shared").symlink_to((root.parent / "shared").resolve())
        yield tree


def unchanged(tree: Path, tests: Sequence[str]) -> dict[str, float]:
    """Seconds that each test file takes. Raises UserError for one that does not pass as it is."""
    seconds = {}
    for test in tests:
        began = time.perf_counter()
        outcome, by = tested(tree, [test], None)
        seconds[test] = time.perf_counter() - began
        if outcome != SURVIVED:
            raise UserError(f"{test} does not pass on the unchanged code ({by}): it cannot tell a change")
        print(f"{test} passes on the unchanged code  {seconds[test]:.0f} s", flush=True)
    return seconds


def attempt(tree: Path, case: Case, limit: float) -> dict[str, Any]:
    """Make a change in the copy, run its tests, and undo it."""
    path = tree / case.file
    before, began = path.read_text(encoding="utf-8"), time.perf_counter()
    path.write_text(case.text, encoding="utf-8")
    try:
        outcome, by = tested(tree, case.tests, limit)
    finally:
        path.write_text(before, encoding="utf-8")
    row = {key: getattr(case, key) for key in ("kind", "file", "line", "old", "new", "tests", "sha")}
    return row | {"outcome": outcome, "by": by, "seconds": round(time.perf_counter() - began, 1)}


def tested(tree: Path, tests: Sequence[str], limit: float | None) -> tuple[str, str]:
    """(what became of the tree under these tests, the test that failed first)."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    if not any(test.startswith("tests/reference") for test in tests):
        command.append("--ignore=tests/reference")
    # Without compiled files no test can see those of another change of the same second.
    own = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "JDEPTH_COMPILATION_CACHE": "off"}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=tree, env=os.environ | own, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return TOO_LONG, f"{tests[0]} and others, after {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with what the tests have started
            process.wait()
        output.seek(0)
        text = output.read()
    if code == 0:
        return SURVIVED, ""
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    ended = f"signal {-code}" if code < 0 else (text.strip().splitlines() or [f"exit code {code}"])[-1]
    return NOTICED, failed[1] if failed else ended


def report(tried: Sequence[tuple[Case, Mapping[str, Any]]], equal: Sequence[Mapping[str, str]]) -> bool:
    """Print counts per kind and the survivors in full; whether there is none."""
    why = {(entry["file"], entry["old"], entry["new"]): entry["why"] for entry in equal}
    counts, survivors = Counter(), []
    for case, row in tried:
        reason = why.get((case.file, case.old, case.new)) if row["outcome"] == SURVIVED else None
        counts[case.kind, EQUAL if reason else row["outcome"]] += 1
        if row["outcome"] == SURVIVED and not reason:
            survivors.append(case)
        if reason:
            print(f"\n{case.name}\n  changes nothing: {reason}")
    outcomes = (NOTICED, TOO_LONG, EQUAL, SURVIVED)
    kinds = dict.fromkeys(kind for kind, _ in counts)
    print("\n" + table(["kind", *outcomes], [[kind, *(str(counts[kind, o]) for o in outcomes)] for kind in kinds]))
    for case in survivors:
        print(f"\nsurvived: {case.file}:{case.line}" + (f"  {case.name}" if case.kind == "named" else ""))
        for sign, lines in (("-", case.old), ("+", case.new)):
            print(*(f"{sign} {line}" for line in lines.splitlines()), sep="\n")
    return not survivors


if __name__ == "__main__":
    main()
