"""Small changes of meaning of Python code: which are possible, each as an exact edit of the text; some at random."""

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

KINDS = ("constant", "comparison", "axis", "sign", "order")


class Change(NamedTuple):
    """Characters `start` to `stop` of a file become `new`."""

    kind: str
    file: str
    start: int
    stop: int
    new: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.stop :]


def draw(texts: Mapping[str, str], count: int, seed: int) -> list[Change]:
    """So many changes of the files {name: text}, spread over kinds and files; the same for the same texts and seed."""
    rng = random.Random(seed)
    left = {kind: {} for kind in KINDS}
    for file, text in sorted(texts.items()):
        for change in possible(file, text):
            left[change.kind].setdefault(file, []).append(change)
    for own in [own for files in left.values() for own in files.values()]:
        rng.shuffle(own)
    drawn, times = [], Counter()
    while len(drawn) < count and any(left.values()):
        # The kind that was drawn least, then the file that was.
        kind = min((kind for kind in KINDS if left[kind]), key=lambda kind: times[kind])
        file = min(left[kind], key=lambda file: (times[file], rng.random()))
        change = left[kind][file].pop()
        if not left[kind][file]:
            del left[kind][file]
        if changes_meaning(texts[file], change.apply(texts[file])):
            drawn.append(change)
            times.update((kind, file))
    return drawn


def changes_meaning(before: str, after: str) -> bool:
    """Whether the second text is Python, and not the first one written otherwise."""
    try:
        return _meaning(before) != _meaning(after)
    except SyntaxError:
        return False


@lru_cache(maxsize=2)
def _meaning(text: str) -> str:
    return ast.dump(ast.parse(text))


def possible(file: str, text: str) -> list[Change]:
    """All changes of one file."""
    finder = _Finder(text, tree := ast.parse(text))
    finder.visit(tree)
    return [Change(kind, file, *edit) for kind, *edit in finder.found + list(finder.other_choices())]


# Each becomes the other.
_OPERATORS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"), ast.Add: ("+", "-"), ast.Sub: ("-", "+"),
}  # fmt: skip
_OPPOSITES = {"min": "max", "minimum": "maximum", "argmin": "argmax"}
_OPPOSITES |= {new: old for old, new in _OPPOSITES.items()}
_ORDERED = (ast.Sub, ast.Div, ast.MatMult)
_ATOMS = (ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.Subscript)
# Functions and methods whose first argument beside the array is an axis.
_ALONG = {"sum", "mean", "max", "min", "prod", "any", "all", "argmax", "argmin", "var", "std", "cumsum"}
_ARRAYS = ("np", "jnp")
# What people read: calls, and arguments by name.
_TOLD = {"print", "UserError", "BadItem", "Fault", "warn"}
_TEXTS = {"name", "title", "note", "source", "terms", "download", "unit", "help"}


class _Finder(ast.NodeVisitor):
    """Collects (kind, start, stop, new text) in `found`. Types, docstrings and messages stay as they are."""

    def __init__(self, text: str, tree: ast.Module):
        self.text, self.found = text, []
        imports = [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
        self._modules = {name.asname or name.name for node in imports for name in node.names}
        self._choices, self._seen = [], set()
        lines = text.splitlines(keepends=True)
        self._starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
        self._lines = [line.encode() for line in lines]

    def _place(self, line: int, column: int) -> int:
        return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

    def _span(self, node: ast.AST) -> tuple[int, int]:
        return self._place(node.lineno, node.col_offset), self._place(node.end_lineno, node.end_col_offset)

    def _source(self, node: ast.AST) -> str:
        return self.text[slice(*self._span(node))]

    def _replace(self, kind: str, node: ast.AST, new: str) -> None:
        self.found.append((kind, *self._span(node), new))

    def _swap(self, kind: str, first: ast.AST, second: ast.AST, closed: bool = False) -> None:
        """Exchange the texts of two nodes; `closed` puts what is not one word into brackets."""
        (start, end), (begin, stop) = self._span(first), self._span(second)
        one, two = (
            f"({self._source(node)})" if closed and not isinstance(node, _ATOMS) else self._source(node)
            for node in (first, second)
        )
        self.found.append((kind, start, stop, two + self.text[end:begin] + one))

    def _operator(self, kind: str, left: ast.AST, operator: ast.AST, right: ast.AST, suffix: str = "") -> None:
        """Exchange the operator between two nodes for its counterpart."""
        old, new = _OPERATORS[type(operator)]
        start = self._span(left)[1]
        place = self.text.find(old + suffix, start, self._span(right)[0])
        if place >= 0:
            self.found.append((kind, place, place + len(old), new))

    def other_choices(self) -> Iterator[tuple]:
        """Every choice becomes the file's next one in the alphabet."""
        names = sorted({node.value for node in self._choices})
        for node in self._choices:
            other = names[(names.index(node.value) + 1) % len(names)] if len(names) > 1 else ""
            yield "constant", *self._span(node), f'"{other}"'

    def _choice(self, node: ast.AST | None) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\w+", node.value):
            self._choices.append(node)

    # ---- What is passed over --------------------------------------------------------------------------

    def visit_Raise(self, node: ast.Raise) -> None:
        """A message."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Mostly a message."""

    def visit_arg(self, node: ast.arg) -> None:
        """A name and its type."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._choice(node.value)
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self._choice(default)
        for part in (*node.decorator_list, node.args, *node.body):
            self.visit(part)
        self._statements(node.body)

    def visit_If(self, node: ast.If) -> None:
        if not self._source(node.test).startswith("__name__"):
            self._statements(node.body)
            self._statements(node.orelse)
            self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._statements(node.body)
        self.generic_visit(node)

    visit_While = visit_With = visit_For

    # ---- Constants, signs, comparisons ----------------------------------------------------------------

    def visit_Constant(self, node: ast.Constant) -> None:
        if id(node) in self._seen:
            return
        if isinstance(node.value, bool):
            self._replace("constant", node, str(not node.value))
        elif isinstance(node.value, int):
            self._replace("constant", node, str(node.value + 1))
        elif isinstance(node.value, float):
            self._replace("constant", node, repr(node.value / 2 or 1.0))

    def visit_Dict(self, node: ast.Dict) -> None:
        for value in node.values:
            self._choice(value)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub) and id(node) not in self._seen:
            self._replace("sign", node, self._source(node.operand))
        if id(node) not in self._seen:
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for (left, right), operator in zip(pairwise(sides), node.ops, strict=True):
            self._operator("comparison", left, operator, right)
        for side in sides:
            self._choice(side)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, (ast.Add, ast.Sub)) and not any(map(_is_sequence, (node.left, node.right))):
            self._operator("sign", node.left, node.op, node.right)
        if isinstance(node.op, _ORDERED) and id(node) not in self._seen and not self._is_path(node):
            self._swap("order", node.left, node.right, closed=True)
        if isinstance(node.op, ast.Pow):
            self._seen.add(id(node.left))  # the square of a difference has no order
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.op, (ast.Add, ast.Sub)) and not _is_sequence(node.value):
            self._operator("sign", node.target, node.op, node.value, suffix="=")
        self.generic_visit(node)

    def _is_path(self, node: ast.BinOp) -> bool:
        """Whether / may join paths, which have one order alone: where there are any, unless a number is divided."""
        number = isinstance(node.left, ast.Constant) and not _is_sequence(node.left)
        return isinstance(node.op, ast.Div) and "Path" in self._modules and not number

    # ---- Axes, and the order of arguments and statements ----------------------------------------------

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            ends = [node.slice.lower, node.slice.upper] if isinstance(node.slice, ast.Slice) else [node.slice]
            for number in _numbers(ends):
                self._axis(number)
        self.generic_visit(node)

    def _axis(self, node: ast.AST) -> None:
        """The axis before it, or after the first one."""
        if id(node) not in self._seen:
            self._seen.add(id(node))
            axis = ast.literal_eval(node)
            self._replace("axis", node, str(axis - 1 if axis > 0 or axis == -1 else axis + 1))

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name in _TOLD:
            return
        of_module = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") in _ARRAYS
        beside = node.args[1:] if of_module else node.args
        if name in ("transpose", "moveaxis"):
            numbers = _numbers(node.args)
            for pair in pairwise(numbers):
                self._swap("axis", *pair)
            self._seen.update(map(id, numbers))
        axes = beside[:1] if name in _ALONG and isinstance(node.func, ast.Attribute) else []
        axes = axes + [keyword.value for keyword in node.keywords if keyword.arg in ("axis", "axes")]
        for number in _numbers(axes):
            self._axis(number)
        if (name == "where" and of_module and len(beside) == 2) or (name == "clip" and len(beside) == 2):
            self._swap("order", *beside)
        if name in ("dot", "matmul") and of_module:
            self._swap("order", *node.args[:2])
        if name in ("abs", "square"):
            self._seen.update(map(id, node.args))
        if name in _OPPOSITES:
            stop = self._span(node.func)[1]
            self.found.append(("order", stop - len(name), stop, _OPPOSITES[name]))
        for keyword in node.keywords:
            if keyword.arg not in _TEXTS:
                self._choice(keyword.value)
        self.generic_visit(node)

    def _statements(self, body: Sequence[ast.stmt]) -> None:
        """Neighbours of which neither needs the other, and whose order still counts."""
        for first, second in pairwise(body):
            simple = all(isinstance(statement, (ast.Assign, ast.Expr)) for statement in (first, second))
            needs = _names(first, ast.Store) & _names(second) or _names(second, ast.Store) & _names(first)
            if simple and not needs and self._moved(first) & self._moved(second):
                self._swap("order", first, second)

    def _moved(self, statement: ast.stmt) -> set[str]:
        """Names of what a statement may change: random numbers that it draws, an object whose method it calls."""
        names = {"rng"} & _names(statement)
        if isinstance(statement, ast.Expr) and isinstance(getattr(statement.value, "func", None), ast.Attribute):
            names |= {ast.unparse(statement.value.func.value)} - self._modules
        return names


def _is_sequence(node: ast.AST) -> bool:
    """Whether + joins it to another one, as far as can be seen."""
    match node:
        case ast.BinOp(left=one, right=two) | ast.IfExp(body=one, orelse=two):
            return _is_sequence(one) or _is_sequence(two)
        case ast.Constant(value=str() | bytes()) | ast.JoinedStr() | ast.List() | ast.Tuple() | ast.ListComp():
            return True
    return False


def _numbers(nodes: Sequence[ast.AST]) -> list[ast.AST]:
    """Whole numbers, with or without a sign, among nodes and in tuples of them."""
    flat = [part for node in nodes for part in (node.elts if isinstance(node, ast.Tuple) else [node])]
    return [node for node in flat if type(getattr(getattr(node, "operand", node), "value", None)) is int]


def _names(node: ast.AST, use: type = ast.expr_context) -> set[str]:
    """Variables of a part of code; with `ast.Store` those that it sets."""
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, use)}
