"""Prediction and evaluation with other families: what a relative model writes and how it is scored."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_run import call, picture, refused
from weights_files import backbone_shapes, depth_anything_shapes, linear_shapes, random_tensors, write_zip

import jdepth
from jdepth import evaluate, predict, weights
from jdepth.weights import resemblance

NAME = "depth_anything_v2_vits"


def scaled(shapes, seed=0):
    """Random tensors of a size that keeps a network's values moderate."""
    tensors = random_tensors(shapes, seed)
    for name, array in tensors.items():
        array *= 0.02 if array.ndim > 1 else 0.1
        if ("norm" in name and name.endswith("weight")) or name.endswith("gamma"):
            array += 1
    return tensors


@pytest.fixture(scope="module")
def relative(tmp_path_factory):
    tensors = scaled(depth_anything_shapes("s"))
    tensors["depth_head.scratch.output_conv2.2.bias"][:] = 0.5
    return write_zip(tmp_path_factory.mktemp("zoo") / f"{NAME}.pth", tensors)


def test_a_relative_model(relative, tmp_path, capsys):
    Image.fromarray(picture(0, 30, 44)).save(tmp_path / "a.png")
    Image.fromarray(picture(1, 30, 44)).save(tmp_path / "b.png")
    out = tmp_path / "out"
    assert call(predict, f"--checkpoint={relative}", f"--out={out}", tmp_path / "a.png", tmp_path / "b.png") == 0
    names = [f"{n}_{what}" for n in "ab" for what in ("colour.png", "disparity.npy", "disparity.png")]
    assert sorted(p.name for p in out.iterdir()) == [*names, "sheet.png"]
    values = np.load(out / "a_disparity.npy")
    assert values.shape == (30, 44) and values.min() >= 0 and values.std() > 0
    with Image.open(out / "a_disparity.png") as png:
        assert png.text["kind"] == "relative disparity" and "larger is nearer" in png.text["unit"]
        stored = np.asarray(png) / float(png.text["scale"])
    np.testing.assert_allclose(stored, values, atol=values.max() / 60_000)
    assert "disparity = value / " in capsys.readouterr().out
    prediction = jdepth.load(relative)(tmp_path / "a.png")
    assert (prediction.kind, prediction.unit) == ("relative disparity", None)
    np.testing.assert_array_equal(prediction, values)
    line = refused(capsys, predict, f"--checkpoint={relative}", f"--out={out}", "--points", tmp_path / "a.png")
    assert "relative disparity, from which no points in space follow" in line


def test_a_relative_model_is_aligned_before_it_is_scored(relative, tmp_path, capsys):
    folder = tmp_path / "set"
    (folder / "rgb").mkdir(parents=True)
    (folder / "depth").mkdir()
    model, errors = jdepth.load(relative), []
    draw = np.random.default_rng(0)
    for number in range(2):
        Image.fromarray(picture(number, 30, 44)).save(folder / "rgb" / f"{number}.png")
        true = draw.uniform(1, 8, (30, 44))
        Image.fromarray((true * 1000).astype(np.uint16)).save(folder / "depth" / f"{number}.png")
        stored = (true * 1000).astype(np.uint16) / 1000
        disparity = model(folder / "rgb" / f"{number}.png", flip=True).values.astype(np.float64)
        system = np.stack([disparity.ravel(), np.ones(disparity.size)], 1)
        fitted = system @ np.linalg.lstsq(system, 1 / stored.ravel(), rcond=None)[0]
        errors.append(np.mean(np.abs(1 / np.clip(fitted, 1 / 10, 1 / 0.001) - stored.ravel()) / stored.ravel()))
    fields = {"name": "s", "image": "rgb/{id}.png", "depth": {"file": "depth/{id}.png", "scale": 0.001}, "splits": {"val": {"glob": "*"}}}
    (folder / "dataset.json").write_text(json.dumps(fields))
    out = tmp_path / "scores.json"
    assert call(evaluate, f"--checkpoint={relative}", f"--path={folder}/dataset.json", f"--out={out}") == 0
    result = json.loads(out.read_text())
    assert result["depth"]["AbsRel"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert "scale and shift of each image fitted in disparity" in result["protocol"]
    assert "fitted in disparity" in capsys.readouterr().out


def test_linear_head_joined_with_its_backbone(tmp_path, capsys):
    from jdepth import convert

    name = "dinov2_vits14_nyu_linear4"
    head = write_zip(tmp_path / f"{name}_head.pth", scaled(linear_shapes(384, 4)))
    backbone = write_zip(tmp_path / "dinov2_vits14_pretrain.pth", scaled(backbone_shapes("s"), 1))
    dest = tmp_path / "depth.safetensors"
    assert "without its backbone" in refused(capsys, predict, f"--checkpoint={head}", f"--out={tmp_path}/o", __file__)
    assert call(convert, head, dest, "--backbone", backbone) == 0
    depth = jdepth.load(dest)(picture(0, 30, 44)).values
    assert depth.shape == (30, 44) and 0.001 <= depth.min() < depth.max() <= 10
    apart = jdepth.load(head, backbone=backbone)(picture(0, 30, 44)).values
    np.testing.assert_array_equal(apart, depth)


def test_an_encoder_of_another_family_is_no_backbone_of_a_head(relative, tmp_path, capsys):
    """Its shapes are DINOv2's, its features are not."""
    from jdepth import convert

    name = "dinov2_vits14_nyu_linear4"
    head = write_zip(tmp_path / f"{name}_head.pth", scaled(linear_shapes(384, 4)))
    words = f"{relative}: holds {NAME}, but {head} was trained on dinov2_vits14; give that"
    assert words in refused(capsys, convert, head, tmp_path / "a.safetensors", "--backbone", relative)
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    arguments = (f"--checkpoint={head}", f"--backbone={relative}", f"--out={tmp_path}/o", tmp_path / "a.png")
    assert words in refused(capsys, predict, *arguments)


def test_list_names_every_model(capsys):
    from jdepth import convert

    assert call(convert, "--list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in weights.MODELS) and "ZoeDepth" in printed


@pytest.mark.parametrize(
    "names, words",
    [
        (["core.core.pretrained.blocks.0.x", "conv2.weight"], "a ZoeDepth network"),
        ([f"blocks.{i}.norm1.weight" for i in range(12)], "most like a DINOv2 backbone; it lacks"),
        ([*depth_anything_shapes("s"), "extra"], "most like a Depth Anything model; it has extra beside"),
        (["a", "b"], "2 tensors of an unknown model (a, b)"),
        ([], "holds no tensor"),
    ],
)
def test_resemblance(names, words):
    assert words in resemblance.describe(names)
