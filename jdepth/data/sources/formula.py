"""Arithmetic from a description file: a stored pixel value `v` to metres, without `eval`.

Allowed are numbers, `v`, ( ), unary minus and + - * / ** >> << & |. Bit operations need whole numbers.
Examples: `v / 1000`; rotated bits of SUN RGB-D `(((v >> 3) | (v << 13)) & 0xFFFF) / 1000`; disparity of
KITTI 2015 `721.5 * 0.54 / (v / 256)`.
"""

import ast
import operator

import numpy as np

from jdepth.errors import UserError

_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_BITS = {
    ast.RShift: operator.rshift,
    ast.LShift: operator.lshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
}


class Formula:
    """A parsed formula. Calling it maps an array of stored values to an array of the same shape, float64.

    Division by zero and overflow give inf or nan, never an exception: the caller treats them as invalid.
    """

    def __init__(self, text: str):
        self.text = text
        if len(text) > 300:
            raise UserError(f"depth formula {text[:40] + '...'!r} is longer than 300 characters")
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            raise UserError(f"depth formula {text!r} is not an arithmetic expression of v") from None
        _check(self._tree, text)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        v = values.astype(np.int64 if values.dtype.kind in "biu" else np.float64)
        with np.errstate(all="ignore"):
            metres = self._evaluate(self._tree, v)
        return np.broadcast_to(np.asarray(metres, np.float64), values.shape)

    def _evaluate(self, node: ast.expr, v: np.ndarray):
        if isinstance(node, ast.Name):
            return v
        if isinstance(node, ast.Constant):
            # NumPy scalars: fixed width, so that no formula can build huge integers or raise on 1 / 0.
            return np.int64(node.value) if isinstance(node.value, int) else np.float64(node.value)
        if isinstance(node, ast.UnaryOp):
            return -self._evaluate(node.operand, v)
        left, right = self._evaluate(node.left, v), self._evaluate(node.right, v)
        kind = type(node.op)
        if kind in _BITS:
            if left.dtype.kind != "i" or right.dtype.kind != "i":
                raise UserError(
                    f"depth formula {self.text!r}: >> << & | need whole numbers, as stored in 8- or 16-bit files"
                )
            return _BITS[kind](left, right)
        if kind is ast.Pow:
            left, right = left.astype(np.float64), right.astype(np.float64)
        return _ARITHMETIC[kind](left, right)


def _check(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC | _BITS:
        _check(node.left, text)
        _check(node.right, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check(node.operand, text)
    elif isinstance(node, ast.Name) and node.id == "v":
        return
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) < 2**53:
        return
    else:
        part = ast.get_source_segment(text.strip(), node) or text
        raise UserError(
            f"depth formula {text!r}: {part!r} is not allowed; use numbers, v, ( ) and + - * / ** >> << & |"
        )
