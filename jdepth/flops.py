"""FLOPs of a function, counted from its jaxpr without running or compiling it.

A multiply-add counts as 2. Only matrix products and convolutions are counted: they are what an
accelerator is bought for, and everything else is bound by memory.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jdepth.peak_memory import inner_jaxprs


def count(function: Callable, *abstract: Any) -> float:
    """FLOPs of matrix products and convolutions in `function(*abstract)`, loops multiplied out.

    Args:
      abstract: arrays or jax.ShapeDtypeStruct trees; nothing is computed.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*abstract).jaxpr)


def _jaxpr_flops(jaxpr) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        (contract, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contract)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    inner = [_jaxpr_flops(j) for j in inner_jaxprs(equation)]
    if name == "cond":
        return max(inner, default=0.0)
    if name == "scan":
        return equation.params["length"] * sum(inner)
    return sum(inner)


def _convolution_flops(equation) -> float:
    """2 × products of a kernel entry with a real input; zeros of padding and dilation are not counted."""
    source, kernel, out = (v.aval.shape for v in (*equation.invars[:2], equation.outvars[0]))
    given, numbers = equation.params, equation.params["dimension_numbers"]
    pairs = 1
    for axis, (i, k, o) in enumerate(zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)):
        # Where each pair of an output and a kernel entry reads, on the input's dilated axis.
        place = np.arange(out[o])[:, None] * given["window_strides"][axis] - given["padding"][axis][0]
        place = place + np.arange(kernel[k]) * given["rhs_dilation"][axis]
        between = given["lhs_dilation"][axis]
        pairs *= np.sum((place >= 0) & (place % between == 0) & (place < source[i] * between))
    batch, features = (out[d] for d in numbers.out_spec[:2])
    return 2.0 * int(pairs) * batch * features * kernel[numbers.rhs_spec[1]]
