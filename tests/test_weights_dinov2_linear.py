"""Linear depth head files: layout, which of several alike models they are, and files that do not match."""

import numpy as np
import pytest
from test_weights_dinov2 import failure
from weights_files import empty_tensors, linear_shapes, random_tensors, write_stream, write_zip

from jdepth import families, weights

WIDTHS = {"s": 384, "b": 768, "l": 1024, "g": 1536}


@pytest.mark.parametrize("taps, suffix", [(1, "linear"), (4, "linear4")])
@pytest.mark.parametrize("letter", WIDTHS)
def test_every_released_file_fills_its_model(tmp_path, letter, taps, suffix):
    for scene, furthest in (("nyu", 10.0), ("kitti", 80.0)):
        name = f"dinov2_vit{letter}14_{scene}_{suffix}"
        tensors = empty_tensors(linear_shapes(WIDTHS[letter], taps))
        loaded = weights.load(write_zip(tmp_path / f"{name}_head.pth", {"state_dict": tensors}))
        info = loaded.info
        assert (info.model, info.family, info.max_depth) == (name, "dinov2_linear", furthest)
        head = loaded.params["depth_head"]
        assert head["kernel"].shape == (taps, 2 * WIDTHS[letter], 256) and head["bias"].shape == (256,)
        model = families.build(info, np.float32, "plain").model
        assert len(model.backbone.config.taps) == taps and model.backbone.config.taps[-1] == model.backbone.config.depth - 1
        assert (model.depth_head.min_depth, model.depth_head.max_depth) == (0.001, furthest)


@pytest.mark.parametrize("write", [write_zip, write_stream])
def test_values_and_layout(tmp_path, write):
    file = random_tensors(linear_shapes(384, 4))
    head = weights.load(write(tmp_path / "a.pth", file), model="dinov2_vits14_nyu_linear4").params["depth_head"]
    matrix = file["decode_head.conv_depth.weight"][:, :, 0, 0]
    for tap in range(4):
        np.testing.assert_array_equal(head["kernel"][tap], matrix[:, 768 * tap : 768 * (tap + 1)].T)


def test_models_of_one_width_are_told_apart(tmp_path):
    """Four taps of ViT-S are as wide as one of ViT-g."""
    file = write_zip(tmp_path / "head.pth", empty_tensors(linear_shapes(384, 4)))
    names = [f"dinov2_vits14_{s}_linear4" for s in ("nyu", "kitti")] + [f"dinov2_vitg14_{s}_linear" for s in ("nyu", "kitti")]
    line = failure(file)
    assert all(name in line for name in names) and "--model NAME" in line
    for name in names:
        assert weights.load(file, model=name).info.model == name
    assert "not of dinov2_vitb14_nyu_linear" in failure(file, model="dinov2_vitb14_nyu_linear")
    wrong = file.rename(tmp_path / "dinov2_vitl14_nyu_linear_head.pth")
    assert "is named like dinov2_vitl14_nyu_linear" in failure(wrong)


def test_round_trip_through_our_own_file(tmp_path):
    loaded = weights.load(write_zip(tmp_path / "a.pth", random_tensors(linear_shapes(384, 1))), model="dinov2_vits14_kitti_linear")
    weights.save(tmp_path / "a.safetensors", loaded.params, loaded.info)
    again = weights.load(tmp_path / "a.safetensors")
    assert again.info == loaded.info and weights.fingerprint(again.params) == weights.fingerprint(loaded.params)


@pytest.mark.parametrize(
    "name, shape, words",
    [
        ("weight", (256, 100, 1, 1), "expected (256, N, 1, 1) with N of [768, 1536"),
        ("weight", (256, 768), "expected (256, N, 1, 1)"),
        ("bias", (255,), "bias is (255,), expected (256,)"),
        ("more", (1,), "1 unexpected: decode_head.conv_depth.more"),
    ],
)
def test_files_that_do_not_match(tmp_path, name, shape, words):
    tensors = empty_tensors(linear_shapes(384, 1) | {f"decode_head.conv_depth.{name}": shape})
    assert words in failure(write_zip(tmp_path / "a.pth", tensors), model="dinov2_vits14_nyu_linear")
