"""What is read from a program that was compiled for a GPU; where jax has its CUDA plugin, from such a program itself."""

import importlib.util
import sys
from pathlib import Path

import pytest
from tiny_config import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_program
import hand_count
import workload
from test_benchmarks import start

from jdepth import communication

PLUGIN = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
TEXT = """
%fused_add (p: f32[8,16], q: f32[8,16]) -> f32[8,16] {
  %p = f32[8,16]{1,0} parameter(0)
  %q = f32[8,16]{1,0} parameter(1)
  ROOT %add.1 = f32[8,16]{1,0} add(%p, %q)
}

%body.3 (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[], f32[8,16]{1,0}) parameter(0)
  %x.1 = f32[8,16]{1,0} get-tuple-element(%state), index=1
  %loop_add_fusion.9 = f32[8,16]{1,0} fusion(%x.1), kind=kLoop, calls=%fused_add
  ROOT %tuple.3 = (s32[], f32[8,16]{1,0}) tuple(%i, %loop_add_fusion.9)
}

ENTRY %main.1 (a: f32[8,16], w: bf16[16,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0), metadata={op_name="a"}
  %w = bf16[16,16]{1,0} parameter(1)
  %loop_add_fusion.1 = f32[8,16]{1,0} fusion(%a, %a), kind=kLoop, calls=%fused_add
  %loop_slice_fusion.2 = bf16[2,16]{1,0} fusion(%w), kind=kLoop, calls=%fused_slice
  %gemm_fusion_dot.1 = f32[8,16]{1,0} fusion(%loop_add_fusion.1, %w), kind=kCustom, calls=%gemm
  %conv.1 = (bf16[2,16]{1,0}, u8[0]{0}) custom-call(%w, %w), custom_call_target="__cudnn$convForward"
  %while.1 = (s32[], f32[8,16]{1,0}) while(%t), condition=%c, body=%body.3, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = f32[8,16]{1,0} get-tuple-element(%while.1), index=1
}
"""


def test_bytes_moved_beside_products():
    array, piece = 8 * 16 * 4, 2 * 16 * 2
    # a and its sum; a slice read and written; three rounds of a body that reads and writes.
    assert gpu_program.moved_bytes(TEXT) == 2 * array + 2 * piece + 3 * 2 * array


def test_bytes_of_a_tuple():
    assert communication.array_bytes("(bf16[4,24]{1,0}, /*index=1*/f8e4m3fn[3]{0}, u8[0]{0})") == 2 * 96 + 3


@pytest.mark.parametrize("size", ["S", "g"])
def test_float8_flops_against_the_backbones(size):
    """All matrices of all blocks: the hand count without attention and patches."""
    case = workload.parse(f"{size} 4+4 k=1 float8")
    kinds = workload.float8.KINDS[case.shape.ffn]
    shape, rest = case.shape, 0.0
    for images, crop in zip((4, 4), workload.crops(case), strict=True):
        height, width = hand_count.padded(crop)
        patches = height * width // 14**2
        own = hand_count.backbone(shape, (height, width)) - 2.0 * patches * 14**2 * 3 * shape.width
        rest += images * (own - shape.depth * 4.0 * (patches + 1) ** 2 * shape.width)
    assert gpu_program.float8_flops(case, kinds) == pytest.approx(rest, rel=1e-9)


def test_mistakes_are_one_line():
    assert start("gpu_program", "--cases", "tiny 2+2 k=1 separate", code=2).count("\n") == 1
    if not PLUGIN:
        told = start("gpu_program", "--cases", "tiny 2+2 k=1 fused", code=2)
        assert "extra cuda12" in told and told.count("\n") == 1


@pytest.mark.skipif(not PLUGIN, reason="jax has no CUDA plugin here: pip install jax[cuda12]")
def test_the_compiler_for_a_gpu_calls_every_kernel(tmp_path: Path):
    cases = ("tiny 2+2 k=1 fused at 56x84", "tiny 2+2 k=2 float8 at 56x84")
    out = start("gpu_program", "--cases", *cases, "--results", tmp_path, JAX_PLATFORMS="cpu")
    # Four blocks, images of two streams; four products each.
    assert out.count("8 of 8") == 2 and out.count("16 of 16") == 1
