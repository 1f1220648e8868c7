"""Formulas of description files: what they compute and what they refuse."""

import numpy as np
import pytest

from jdepth.data.sources.formula import Formula
from jdepth.errors import UserError

VALUES = np.array([[0, 1, 255], [256, 8000, 65535]], np.uint16)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("v / 1000", VALUES / 1000.0),
        ("v * 0.001", VALUES * 0.001),
        ("-(-v + 1) ** 2", -((1.0 - VALUES.astype(float)) ** 2)),
        ("(v + 0.5) * 9.99547 / 255", (VALUES + 0.5) * 9.99547 / 255),
        ("((v >> 8) | (v << 8)) & 0xFFFF", VALUES.byteswap().astype(float)),
        ("5", np.full(VALUES.shape, 5.0)),
    ],
)
def test_formula_computes(text, expected):
    result = Formula(text)(VALUES)
    assert result.dtype == np.float64 and result.shape == VALUES.shape
    np.testing.assert_array_equal(result, expected)


def test_sun_rotation_inverts_the_rotation_of_its_files():
    millimetres = np.arange(65536, dtype=np.uint16)
    stored = ((millimetres.astype(np.uint32) << 3) | (millimetres >> 13)).astype(np.uint16)
    result = Formula("(((v >> 3) | (v << 13)) & 0xFFFF) / 1000")(stored)
    np.testing.assert_array_equal(result, millimetres / 1000)
    assert Formula("((v >> 3) | (v << 13)) & 0xFFFF")(np.uint16([8000])) == 1000


def test_division_by_zero_and_overflow_are_values_not_exceptions():
    assert np.isinf(Formula("721.5 * 0.54 / (v / 256)")(np.uint16([0]))).all()
    assert np.isinf(Formula("9 ** 9 ** 9 ** 9 + v")(np.uint16([0]))).all()
    assert np.isinf(Formula("1 / 0 + v")(np.float32([1]))).all()


@pytest.mark.parametrize(
    "text",
    [
        "w / 2", "abs(v)", "v.shape", "v[0]", "__import__('os')", "v if v else 1", "[v]", "'v'", "v % 2", "~v",
        "v := 2", "lambda: v", "v / ", "", "1j * v", "True", "v ^ 1", "v // 2", "+v", "9" * 200, "v" + " + v" * 200,
        "(" * 140 + "v" + ")" * 140 + "'",
    ],
)  # fmt: skip
def test_formula_refuses_all_else(text):
    with pytest.raises(UserError) as caught:
        Formula(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_bits_need_whole_numbers():
    with pytest.raises(UserError, match="whole numbers"):
        Formula("v >> 3")(np.float32([1.5]))
    with pytest.raises(UserError, match="whole numbers"):
        Formula("(v / 2) & 7")(np.uint16([1]))
