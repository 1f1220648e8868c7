"""The tool that changes the library to see whether tests notice, on a tree of one module and one test."""

import json
import sys
from argparse import Namespace

import pytest
from tiny_config import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import code_changes
import mutations

from jdepth.errors import UserError

MODULE = '''"""A rate, 3 at first."""


def rate(step: int, kind: str = "falling", low=-1.0) -> float:
    """Falls from 3 where step >= 0."""
    if step < 0:
        raise ValueError(f"step {step} < 0: expected at least 0")
    first = 3.0 - step
    return max(first, low) if kind == "falling" else first


def means(x):
    return x.mean(axis=1) + x.reshape(x.shape[0], -1).sum(1)
'''
TEST = """from jdepth.rates import rate

def test_rate():
    assert rate(1) == 2.0
"""
SEEN = {"name": "3 -> 4", "file": "jdepth/rates.py", "old": "3.0 -", "new": "4.0 -", "tests": ["tests/test_rates.py"]}
UNSEEN = SEEN | {"name": "low -1 -> -2", "old": "low=-1.0", "new": "low=-2.0"}


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(mutations, "TESTS", {"jdepth/*.py": "rates"})
    for folder in ("jdepth", "tests", "benchmarks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['slow']\n")
    (tmp_path / "jdepth" / "__init__.py").touch()
    (tmp_path / "jdepth" / "rates.py").write_text(MODULE)
    (tmp_path / "tests" / "test_rates.py").write_text(TEST)
    return tmp_path


def run(tree, *named, **given):
    flags = {"draw": None, "named": True, "seed": 0, "only": "", "all": False, "reference": False, "again": False}
    (tree / "benchmarks" / "mutations_named.json").write_text(json.dumps(named))
    return mutations.run(Namespace(**flags | given), tree)


def rows(tree, name="named"):
    return json.loads((tree / "benchmarks" / "results" / f"mutations-{name}.json").read_text())


def test_a_change_is_noticed_or_survives_and_finished_ones_stay(tree, capsys, monkeypatch):
    assert not run(tree, SEEN, UNSEEN)
    found, out = rows(tree), capsys.readouterr().out
    assert found["3 -> 4"]["outcome"] == "noticed" and found["3 -> 4"]["by"] == "tests/test_rates.py::test_rate"
    assert found["low -1 -> -2"]["outcome"] == "survived" and found["low -1 -> -2"]["line"] == 4
    survivor = out.split("survived: ")[1]
    assert survivor.startswith("jdepth/rates.py:4  low -1 -> -2\n- def rate(") and "low=-2.0" in survivor
    assert (tree / "jdepth" / "rates.py").read_text() == MODULE

    tried = []
    monkeypatch.setattr(mutations, "unchanged", lambda tree, tests: dict.fromkeys(tests, 1.0))
    monkeypatch.setattr(mutations, "attempt", lambda tree, case, limit: tried.append(case.name) or found[case.name])
    assert not run(tree, SEEN, UNSEEN) and rows(tree) == found and not tried
    assert run(tree, SEEN, UNSEEN, only="3", again=True) and tried == ["3 -> 4"]
    # Its line is another one now.
    (tree / "jdepth" / "rates.py").write_text(MODULE.replace("3.0 - step", "3.0 - step / 1"))
    run(tree, SEEN, UNSEEN)
    assert tried == ["3 -> 4"] * 2
    # What changes nothing is told apart.
    row = found["low -1 -> -2"]
    equal = [{key: row[key] for key in ("file", "old", "new")} | {"why": "no rate is so low"}]
    (tree / "benchmarks" / "mutations_equal.json").write_text(json.dumps(equal))
    assert run(tree, UNSEEN) and "changes nothing: no rate is so low" in capsys.readouterr().out


def test_a_test_that_does_not_end_has_noticed(tree):
    (tree / "tests" / "test_rates.py").write_text(TEST + "    import time\n    time.sleep(60)\n")
    assert mutations.tested(tree, ["tests/test_rates.py"], 0.5)[0] == "noticed (time limit)"


@pytest.mark.parametrize(
    "change, told",
    [
        ({"old": "5.0"}, "'3 -> 4'.*once, and is there 0 times"), ({"old": "step"}, "is there 6 times"),
        ({"file": "jdepth/other.py"}, "is there 0 times"), ({"new": "3.00 -"}, "means the same"),
        ({"new": "3.0 - )"}, "no Python"),
    ],
)  # fmt: skip
def test_an_entry_that_does_not_fit_is_told(tree, change, told):
    with pytest.raises(UserError, match=told):
        run(tree, SEEN | change)
    with pytest.raises(UserError, match="no change has 'other' in its name"):
        run(tree, SEEN, only="other")


def test_the_unchanged_code_must_pass(tree):
    (tree / "jdepth" / "rates.py").write_text(MODULE.replace("3.0 - step", "3.0 - 2 * step"))
    with pytest.raises(UserError, match="test_rates.py does not pass on the unchanged code .*::test_rate"):
        run(tree, SEEN)


def test_a_draw_is_that_of_its_seed(tree, monkeypatch):
    given = Namespace(draw=8, seed=3, all=False, reference=False)
    first, again = mutations.drawn(tree, given), mutations.drawn(tree, given)
    assert first == again and len({case.text for case in first}) == 8
    assert {case.kind for case in first} == set(code_changes.KINDS)
    assert mutations.drawn(tree, Namespace(**vars(given) | {"seed": 4})) != first
    assert all(case.tests == ("tests/test_rates.py",) for case in first)
    monkeypatch.setattr(mutations, "unchanged", lambda tree, tests: dict.fromkeys(tests, 1.0))
    assert run(tree, draw=1, named=False, seed=3) == (rows(tree, "drawn-3")[first[0].name]["outcome"] == "noticed")
    assert list(rows(tree, "drawn-3")) == [first[0].name]


def test_every_kind_of_change():
    found = code_changes.possible("jdepth/rates.py", MODULE)
    lines = MODULE.splitlines()
    edits = {
        (change.kind, text)
        for change in found
        for old, text in zip(lines, change.apply(MODULE).splitlines(), strict=True)
        if old != text
    }
    end = 'if kind == "falling" else first'
    assert edits == {
        ("constant", 'def rate(step: int, kind: str = "", low=-1.0) -> float:'),
        ("constant", 'def rate(step: int, kind: str = "falling", low=-0.5) -> float:'),
        ("sign", 'def rate(step: int, kind: str = "falling", low=1.0) -> float:'),
        ("comparison", "    if step <= 0:"), ("constant", "    if step < 1:"),
        ("sign", "    first = 3.0 + step"), ("order", "    first = step - 3.0"), ("constant", "    first = 1.5 - step"),
        ("order", f"    return min(first, low) {end}"),
        ("comparison", f"    return max(first, low) {end.replace('==', '!=')}"),
        ("constant", f"    return max(first, low) {end.replace('falling', '')}"),
        ("axis", "    return x.mean(axis=0) + x.reshape(x.shape[0], -1).sum(1)"),
        ("axis", "    return x.mean(axis=1) + x.reshape(x.shape[1], -1).sum(1)"),
        ("axis", "    return x.mean(axis=1) + x.reshape(x.shape[0], -1).sum(0)"),
        ("sign", "    return x.mean(axis=1) - x.reshape(x.shape[0], -1).sum(1)"),
        ("sign", "    return x.mean(axis=1) + x.reshape(x.shape[0], 1).sum(1)"),
        ("constant", "    return x.mean(axis=1) + x.reshape(x.shape[0], -2).sum(1)"),
    }  # fmt: skip


def test_orders_that_count():
    """Neither squares and sizes of differences, nor statements of which one needs the other."""
    text = """
a = (b - c) ** 2 + np.abs(b - c)
d = np.where(a, b - c, rng.random())
e = rng.random()
f = rng.random() + e
x.transpose(0, 2, 1)
lines.append(é @ b)
lines.append(2)
"""
    function = "def f():" + text.replace("\n", "\n    ")
    orders = [c.apply(function) for c in code_changes.possible("f.py", function) if c.kind in ("order", "axis")]
    changed = [
        tuple(new.strip() for old, new in zip(function.splitlines(), text.splitlines(), strict=True) if old != new)
        for text in orders
    ]
    assert sorted(changed) == sorted([
        ("d = np.where(a, c - b, rng.random())",), ("d = np.where(a, rng.random(), b - c)",),
        ("e = rng.random()", "d = np.where(a, b - c, rng.random())"), ("lines.append(b @ é)",),
        ("x.transpose(2, 0, 1)",), ("x.transpose(0, 1, 2)",), ("lines.append(2)", "lines.append(é @ b)"),
    ])  # fmt: skip


def test_the_named_changes_and_test_files_are_there():
    given = Namespace(all=False, reference=False)
    tests = {test for case in mutations.named(ROOT, given) for test in case.tests}
    for files, folder in ((mutations.TESTS, "tests"), (mutations.REFERENCE, "tests/reference")):
        tests |= {f"{folder}/test_{name}.py" for names in files.values() for name in names.split()}
    assert tests and not [test for test in tests if not (ROOT / test).is_file()]
    assert all(any(ROOT.glob(pattern)) for pattern in mutations.TESTS)
