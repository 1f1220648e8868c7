"""Which of the kernels that a run counts on a compiled program calls, read from its text."""

import re

from jdepth.models.vit import VisionTransformer

_RESULT = re.compile(r"\s*(?:ROOT )?(%[\w.-]+) = (\w+)\[")
_PRODUCT = re.compile(r" dot\(([^)]*)\)")
_NAME = re.compile(r"%[\w.-]+")


def attention_calls(text: str) -> int:
    """Calls of cuDNN's fused attention in `Compiled.as_text()`."""
    return text.count('custom_call_target="__cudnn$fmha')


def float8_products(text: str) -> int:
    """Matrix products of two float8 operands: calls of cuBLAS, or products within a Triton kernel."""
    found, small = 0, set()
    for line in text.splitlines():
        if line.endswith("{"):  # a computation begins, with names of its own
            small = set()
        found += 'custom_call_target="__cublas$lt$matmul$f8"' in line
        if result := _RESULT.match(line):
            name, kind = result.groups()
            product = _PRODUCT.search(line)
            operands = _NAME.findall(product[1]) if product else ()
            found += bool(operands) and small.issuperset(operands)
            if kind.startswith("f8"):
                small.add(name)
    return found


def missing(text: str, backbone: VisionTransformer) -> list[str]:
    """Lines for a person about kernels that `backbone` asks for and the compiled text of its step lacks."""
    lines, blocks = [], backbone.config.depth
    if backbone.attention == "cudnn" and attention_calls(text) < blocks:
        lines.append("attention: cuDNN was chosen, but the compiled step does not call it and is slower")
    wanted, found = blocks * len(backbone.float8), float8_products(text)
    if found < wanted:
        lines.append(
            f"float8: {found} of {wanted} matrix products of the compiled step are in float8; without a GPU of compute "
            "capability 8.9 (Ada, Hopper) or later the others only round to it and are slower: config.backbone.float8"
        )
    return lines
