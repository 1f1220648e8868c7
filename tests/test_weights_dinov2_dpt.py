"""Depth head files: layout, which of two alike models they are, and files that do not match."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_weights_dinov2 import KEYS, failure, model_shapes
from weights_files import backbone_shapes, empty_tensors, head_shapes, random_tensors, write_stream, write_zip

from jdepth import weights
from jdepth.weights import dinov2_dpt

WIDTHS = {"s": 384, "b": 768, "l": 1024, "g": 1536}


@pytest.mark.parametrize(
    "letter, scene, farthest", [*((letter, "nyu", 10.0) for letter in WIDTHS), ("s", "kitti", 80.0)]
)
def test_every_released_file_fills_its_model(tmp_path, letter, scene, farthest):
    name = f"dinov2_vit{letter}14_{scene}_dpt"
    file = write_zip(tmp_path / f"{name}_head.pth", {"state_dict": empty_tensors(head_shapes(WIDTHS[letter]))})
    loaded = weights.load(file)
    info = loaded.info
    assert (info.model, info.backbone, info.channels, info.family) == (name, f"dinov2_vit{letter}14", 256, "dinov2_dpt")
    assert (info.min_depth, info.max_depth, info.licence) == (0.001, farthest, "Apache-2.0")
    found = {key: array.shape for key, array in weights.flatten(loaded.params).items()}
    expected = model_shapes(f"dinov2_vit{letter}14")
    assert found == {key: shape for key, shape in expected.items() if not key.startswith("backbone/")}


def test_number_of_parameters():
    counts = {384: 13_961_377, 768: 24_193_921, 1024: 34_190_017, 1536: 61_800_769}
    for width, count in counts.items():
        assert sum(int(np.prod(shape)) for shape in head_shapes(width).values()) == count


@pytest.mark.parametrize("write", [write_zip, write_stream])
def test_values_and_layout(tmp_path, write):
    file = random_tensors(head_shapes(384, channels=16))
    loaded = weights.load(write(tmp_path / "head.pth", {"state_dict": file}), model="dinov2_vits14_nyu_dpt")
    assert loaded.info.channels == 16
    decoder, head = loaded.params["decoder"], loaded.params["depth_head"]

    def of(name: str) -> np.ndarray:
        return file[f"decode_head.{name}"]

    for i in range(4):
        readout = of(f"reassemble_blocks.readout_projects.{i}.0.weight")
        assert np.array_equal(decoder[f"readout_{i}"]["kernel"], readout.T)
        project = of(f"reassemble_blocks.projects.{i}.conv.weight")
        assert np.array_equal(decoder[f"project_{i}"]["kernel"], project[:, :, 0, 0].T)
        conv = of(f"convs.{i}.conv.weight")
        assert np.array_equal(decoder[f"conv_{i}"]["kernel"], np.einsum("oihw->hwio", conv))
        fusion = decoder[f"fusion_{i}"]
        assert np.array_equal(fusion["project"]["kernel"], of(f"fusion_blocks.{i}.project.conv.weight")[:, :, 0, 0].T)
        for unit in (1, 2):
            if (i, unit) == (0, 1):
                assert "unit1" not in fusion
                continue
            for conv in (1, 2):
                source = of(f"fusion_blocks.{i}.res_conv_unit{unit}.conv{conv}.conv.weight")
                assert np.array_equal(fusion[f"unit{unit}"][f"conv{conv}"]["kernel"], np.einsum("oihw->hwio", source))
    for i, layout in ((0, "iohw->ihwo"), (1, "iohw->ihwo"), (3, "oihw->hwio")):
        source = of(f"reassemble_blocks.resize_layers.{i}.weight")
        assert np.array_equal(decoder[f"resize_{i}"]["kernel"], np.einsum(layout, source))
        assert np.array_equal(decoder[f"resize_{i}"]["bias"], of(f"reassemble_blocks.resize_layers.{i}.bias"))
    assert "resize_2" not in decoder
    assert np.array_equal(decoder["project"]["kernel"], np.einsum("oihw->hwio", of("project.conv.weight")))
    assert np.array_equal(head["conv1"]["kernel"], np.einsum("oihw->hwio", of("conv_depth.head.0.weight")))
    assert np.array_equal(head["conv2"]["kernel"], np.einsum("oihw->hwio", of("conv_depth.head.2.weight")))
    assert np.array_equal(head["conv3"]["kernel"], of("conv_depth.head.4.weight")[:, :, 0, 0].T)
    assert np.array_equal(head["conv3"]["bias"], of("conv_depth.head.4.bias"))


@pytest.fixture
def head(tmp_path) -> Path:
    """A head under a neutral name."""
    return write_zip(tmp_path / "head.pth", {"state_dict": empty_tensors(head_shapes(384, channels=16))})


def test_a_neutral_name_is_refused_with_the_candidates(head):
    message = failure(head)
    assert "dinov2_vits14_nyu_dpt or dinov2_vits14_kitti_dpt" in message and "--model" in message


@pytest.mark.parametrize("scene, farthest", [("nyu", 10.0), ("kitti", 80.0)])
def test_the_model_is_told_by_argument_name_or_settings(head, tmp_path, scene, farthest):
    model = f"dinov2_vits14_{scene}_dpt"
    assert weights.load(head, model=model).info.max_depth == farthest
    for settings in ({"model": model}, {"max_depth": farthest}, {"max_depth": int(farthest)}):
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert weights.load(head).info.model == model
    (tmp_path / "config.json").write_text('{"max_depth": 20}')
    assert "cannot tell" in failure(head)
    # The argument comes first, then the file's name, then the settings.
    (tmp_path / "config.json").write_text('{"max_depth": 20}')
    named = head.rename(tmp_path / f"my copy of {model}_head.pth")
    assert weights.load(named).info.model == model
    assert weights.load(named, model="dinov2_vits14_nyu_dpt").info.max_depth == 10.0


def test_names_and_models_that_contradict_the_tensors(head, tmp_path):
    assert "not of dinov2_vitb14_nyu_dpt" in failure(head, model="dinov2_vitb14_nyu_dpt")
    assert "not of dinov2_vits14" in failure(head, model="dinov2_vits14")
    for name in ("dinov2_vitb14_nyu_dpt_head", "dinov2_vits14_nyu_linear_head", "dinov2_vits14_pretrain"):
        head = head.rename(tmp_path / f"{name}.pth")
        assert "is named like" in failure(head)
    backbone = write_zip(tmp_path / "dinov2_vits14_kitti_dpt_head.pth", empty_tensors(backbone_shapes("s")))
    assert "is named like dinov2_vits14_kitti_dpt" in failure(backbone)


def test_a_head_where_a_backbone_is_needed(head):
    message = failure(head, model="dinov2_vits14_nyu_dpt", parts=("backbone",))
    assert "holds dinov2_vits14_nyu_dpt (decoder and depth head), expected backbone" in message


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("decode_head.project.conv.bias"), "1 missing: decode_head.project.conv.bias"),
        (lambda t: t.update({"decode_head.x": t["decode_head.project.conv.bias"]}), "1 unexpected: decode_head.x"),
        (lambda t: t.update({"backbone.x": t["decode_head.project.conv.bias"]}), "1 unexpected: backbone.x"),
        (
            lambda t: t.update({"decode_head.convs.0.conv.weight": np.zeros((16, 47, 3, 3), np.float32)}),
            "convs.0.conv.weight is (16, 47, 3, 3), expected (16, 48, 3, 3)",
        ),
    ],
)
def test_every_name_and_shape_is_checked(tmp_path, change, words):
    tensors = empty_tensors(head_shapes(384, channels=16))
    change(tensors)
    assert words in failure(write_zip(tmp_path / "a.pth", {"state_dict": tensors}), model="dinov2_vits14_nyu_dpt")


@pytest.mark.parametrize(
    "width, channels, words", [(128, 16, "width 128"), (384, 2**20, "channels"), (384, 15, "channels")]
)
def test_sizes_without_a_model(tmp_path, width, channels, words):
    assert words in failure(write_zip(tmp_path / "a.pth", empty_tensors(head_shapes(width, channels))))


@pytest.mark.skipif(not KEYS.exists(), reason="the list of released names is not at hand")
@pytest.mark.parametrize("letter", "sg")
def test_names_are_those_of_the_reference_list(letter):
    listed = json.loads(KEYS.read_text())[f"dinov2_vit{letter}14_nyu_dpt_head"]
    plan = dinov2_dpt.plan(WIDTHS[letter], 256)
    ours = {f"decode_head.{source}": entry.shape for entry in plan for source in entry.sources}
    assert ours == {key: tuple(shape) for key, shape in listed.items()}
