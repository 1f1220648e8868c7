"""Depth Anything files: layout, which of several alike models they are, and files that do not match."""

import json

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_weights_dinov2 import KEYS, failure
from weights_files import depth_anything_shapes, empty_tensors, random_tensors, write_zip

from jdepth import families, weights
from jdepth.errors import UserError
from jdepth.models import BACKBONES, depth_model
from jdepth.models.depth_anything import DECODERS
from jdepth.weights import depth_anything, identify, mapping
from jdepth.weights.catalogue import DEPTH_ANYTHING_DECODERS, DINOV2_SIZES, MODELS, SPREAD

NAMES = [name for name, model in MODELS.items() if model.family == "depth_anything"]
SMALL = [name for name in NAMES if "vits" in name]
RELATIVE_V1, RELATIVE_V2, INDOOR, OUTDOOR = SMALL


@pytest.fixture
def neutral(tmp_path):
    """A small model's file under a name that says nothing."""
    return write_zip(tmp_path / "model.pth", empty_tensors(depth_anything_shapes("s")))


def test_catalogue():
    assert len(NAMES) == 13 and len(SMALL) == 4
    for letter, (channels, levels) in DEPTH_ANYTHING_DECODERS.items():
        assert DECODERS[DINOV2_SIZES[f"dinov2_vit{letter}14"].width] == (channels, levels)


@pytest.mark.parametrize("name", SMALL)
def test_every_small_file_fills_its_model(tmp_path, name):
    file = write_zip(tmp_path / f"{name}.pth", empty_tensors(depth_anything_shapes("s")))
    loaded = weights.load(file)
    assert (loaded.info.model, loaded.info.family, loaded.info.backbone) == (name, "depth_anything", "dinov2_vits14")
    furthest = {INDOOR: 20.0, OUTDOOR: 80.0}.get(name)
    assert (loaded.info.max_depth, loaded.info.licence) == (furthest, "Apache-2.0")
    family = families.build(loaded.info, np.float32, "plain")
    model = family.model
    assert model.backbone.config.norm_taps and model.depth_head.max_depth == furthest
    assert model.backbone.config.taps == ((8, 9, 10, 11) if name == RELATIVE_V1 else (2, 5, 8, 11))
    assert family.align_corners == (name != RELATIVE_V1) and not family.clamp
    expected = jax.eval_shape(lambda key: model.init(key, (28, 28)), jax.random.key(0))
    found = {key: array.shape for key, array in weights.flatten(loaded.params).items()}
    assert found == {key: array.shape for key, array in weights.flatten(expected).items()}


@pytest.mark.parametrize("letter", "sblg")
def test_every_size_by_names_and_shapes(letter):
    """Without reading: the largest has 5 GB."""
    plan = depth_anything.full_plan(f"dinov2_vit{letter}14", "official")
    assert {source: entry.shape for entry in plan for source in entry.sources} == depth_anything_shapes(letter)
    config = BACKBONES[f"dinov2_vit{letter}14"]
    assert SPREAD[letter] == [tap + 1 for tap in config.taps]
    model = depth_model.build_depth_anything(config.name)
    expected = jax.eval_shape(lambda key: model.init(key, (28, 28)), jax.random.key(0))
    assert mapping.shapes(plan) == {key: array.shape for key, array in weights.flatten(expected).items()}
    first = depth_model.build_depth_anything(config.name, version=1).backbone.config.taps
    assert first == tuple(range(config.depth - 4, config.depth))


def test_number_of_parameters():
    shapes = depth_anything_shapes("s")
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert total == 24_785_089  # 24.8 M, as published


def test_values_and_layout(tmp_path):
    tensors = random_tensors(depth_anything_shapes("s"))
    loaded = weights.load(write_zip(tmp_path / f"{RELATIVE_V2}.pth", tensors))
    decoder, head = loaded.params["decoder"], loaded.params["depth_head"]

    def of(name: str) -> np.ndarray:
        return tensors[f"depth_head.{name}"]

    for i in range(4):
        np.testing.assert_array_equal(decoder[f"project_{i}"]["kernel"], of(f"projects.{i}.weight")[:, :, 0, 0].T)
        conv = of(f"scratch.layer{i + 1}_rn.weight")
        np.testing.assert_array_equal(decoder[f"conv_{i}"]["kernel"], np.einsum("oihw->hwio", conv))
        fusion, source = decoder[f"fusion_{i}"], f"scratch.refinenet{4 - i}"  # ours count from the deepest
        np.testing.assert_array_equal(fusion["project"]["bias"], of(f"{source}.out_conv.bias"))
        assert ("unit1" in fusion) == (i > 0)
        for unit in (1, 2)[i == 0 :]:
            for conv in (1, 2):
                name = f"{source}.resConfUnit{unit}.conv{conv}"
                ours = fusion[f"unit{unit}"][f"conv{conv}"]
                np.testing.assert_array_equal(ours["kernel"], np.einsum("oihw->hwio", of(f"{name}.weight")))
                np.testing.assert_array_equal(ours["bias"], of(f"{name}.bias"))
    for i, layout in ((0, "iohw->ihwo"), (1, "iohw->ihwo"), (3, "oihw->hwio")):
        source = np.einsum(layout, of(f"resize_layers.{i}.weight"))
        np.testing.assert_array_equal(decoder[f"resize_{i}"]["kernel"], source)
    for conv, name in (("conv1", "output_conv1"), ("conv2", "output_conv2.0")):
        np.testing.assert_array_equal(head[conv]["kernel"], np.einsum("oihw->hwio", of(f"scratch.{name}.weight")))
    np.testing.assert_array_equal(head["conv3"]["kernel"], of("scratch.output_conv2.2.weight")[:, :, 0, 0].T)
    qkv = tensors["pretrained.blocks.3.attn.qkv.weight"]
    np.testing.assert_array_equal(loaded.params["backbone"]["blocks_3"]["attn"]["qkv"]["kernel"], qkv.T)


def test_a_neutral_name_is_refused_and_model_decides(neutral):
    line = failure(neutral)
    assert all(name in line for name in SMALL) and "--model NAME" in line
    for name in SMALL:
        info = weights.load(neutral, model=name).info
        assert (info.model, info.max_depth) == (name, MODELS[name].max_depth)
    assert "not of depth_anything_v2_vitb" in failure(neutral, model="depth_anything_v2_vitb")
    assert "not of dinov2_vits14" in failure(neutral, model="dinov2_vits14")


@pytest.mark.parametrize(
    "config, name",
    [
        ({"backbone_config": {"out_indices": [9, 10, 11, 12]}}, RELATIVE_V1),
        ({"backbone_config": {"out_features": ["stage9", "stage10", "stage11", "stage12"]}}, RELATIVE_V1),
        ({"backbone_config": {"out_indices": [3, 6, 9, 12]}, "depth_estimation_type": "relative", "max_depth": 1}, RELATIVE_V2),
        ({"backbone_config": {"out_indices": [3, 6, 9, 12]}, "depth_estimation_type": "metric", "max_depth": 20}, INDOOR),
        ({"backbone_config": {"out_indices": [3, 6, 9, 12]}, "depth_estimation_type": "metric", "max_depth": 80}, OUTDOOR),
        ({"model": RELATIVE_V2}, RELATIVE_V2),
    ],
)  # fmt: skip
def test_config_beside_it_decides(neutral, config, name):
    (neutral.parent / "config.json").write_text(json.dumps(config))
    assert weights.load(neutral).info.model == name


@pytest.mark.parametrize(
    "config",
    [
        {}, {"backbone_config": 3}, {"backbone_config": {"out_features": [1]}}, {"backbone_config": {"out_indices": "x"}},
        {"backbone_config": {"out_indices": [3, 6, 9, 12]}, "depth_estimation_type": "metric", "max_depth": 35},
    ],
)  # fmt: skip
def test_configs_that_decide_nothing(neutral, config):
    (neutral.parent / "config.json").write_text(json.dumps(config))
    message = failure(neutral)
    assert "cannot tell which model this is" in message and all(name in message for name in SMALL)


def test_config_beside_a_hugging_face_file_must_fit(tmp_path):
    plan = depth_anything.full_plan("dinov2_vits14", "hugging_face")
    tensors = {source: np.zeros(entry.shape, np.float32) for entry in plan for source in entry.sources}
    save_file(tensors, tmp_path / "model.safetensors")
    inner = {"out_indices": [3, 6, 9, 12]}
    config = {"backbone_config": inner, "depth_estimation_type": "metric", "max_depth": 35}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json: describes .*max_depth 35, .*other ranges are not covered"):
        weights.load(tmp_path, model=INDOOR)
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_depth": 80}))
    assert weights.load(tmp_path).info.model == OUTDOOR
    with pytest.raises(UserError, match=f"config.json: describes .*max_depth 80, {INDOOR} is another model"):
        weights.load(tmp_path, model=INDOOR)
    hostile = {"backbone_config": {"out_features": ["stage" + "9" * 5000]}, "depth_estimation_type": ["metric"]}
    (tmp_path / "config.json").write_text(json.dumps(hostile))
    with pytest.raises(UserError, match="config.json: describes"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    "name", [f"{RELATIVE_V2}_metric_indoor", f"{RELATIVE_V2}_from_{INDOOR}", f"{RELATIVE_V1}_and_{RELATIVE_V2}"]
)
def test_names_that_say_two_things_say_nothing(neutral, name):
    assert "cannot tell which model" in failure(neutral.rename(neutral.with_name(f"{name}.pth")))


def test_the_only_model_of_a_size_needs_no_name(tmp_path):
    assert identify.choose(tmp_path / "a.pth", ["depth_anything_v2_vitg"], None) == "depth_anything_v2_vitg"


def test_checkpoints_of_training_hold_it_under_model(tmp_path):
    content = {"model": empty_tensors(depth_anything_shapes("s")), "optimizer": None, "epoch": 3}
    assert weights.load(write_zip(tmp_path / "a.pth", content), model=INDOOR).info.model == INDOOR
    zoe = {"model": {"core.core.pretrained.x": np.zeros(2, np.float32)}, "epoch": 3}
    assert "a ZoeDepth network" in failure(write_zip(tmp_path / "depth_anything_metric_depth_indoor.pt", zoe))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"min_depth": 0.0, "max_depth": 20.0}, "says depths from 0.0 to 20.0"),
        ({"channels": 128}, "says 128 channels"),
        ({"model": "depth_anything_v2_vitb"}, "says backbone dinov2_vits14"),
        ({"model": "mine"}, "unknown depth_anything model mine"),
        ({"model": "dinov2_vits14_nyu_dpt"}, "unknown depth_anything model dinov2_vits14_nyu_dpt"),
        ({"family": "other"}, "unknown family other"),
        ({"family": "dinov2"}, "holds backbone, decoder, depth_head"),
        ({"input_area": 0}, "input_area = 0"),
        ({"area_averaged": 1}, "area_averaged = 1"),
    ],
)
def test_converted_files_that_contradict_themselves(tmp_path, neutral, change, words):
    loaded = weights.load(neutral, model=RELATIVE_V2)
    weights.save(tmp_path / "a.safetensors", loaded.params, loaded.info)
    with safe_open(tmp_path / "a.safetensors", "np") as opened:
        said = json.loads(opened.metadata()["jdepth"])
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", {"jdepth": json.dumps(said | change)})
    assert words in failure(tmp_path / "b.safetensors")


def test_every_name_and_shape_is_checked(tmp_path):
    for change, words in (
        (lambda t: t.pop("depth_head.projects.2.bias"), "1 missing: depth_head.projects.2.bias"),
        (lambda t: t.update(more=t["pretrained.norm.bias"]), "1 unexpected: more"),
        (lambda t: t.update({"pretrained.norm.bias": np.zeros(3, np.float32)}), "pretrained.norm.bias is (3,)"),
    ):
        tensors = empty_tensors(depth_anything_shapes("s"))
        change(tensors)
        assert words in failure(write_zip(tmp_path / f"{RELATIVE_V2}.pth", tensors))
    # Never used, so that it may be absent.
    tensors = empty_tensors(depth_anything_shapes("s"))
    for conv in (1, 2):
        del tensors[f"depth_head.scratch.refinenet4.resConfUnit1.conv{conv}.bias"]
    assert weights.load(write_zip(tmp_path / f"{RELATIVE_V2}.pth", tensors)).info.model == RELATIVE_V2


def test_encoder_as_a_backbone_for_training(neutral, tmp_path):
    loaded = weights.load(neutral, parts=("backbone",), backbone="dinov2_vits14")
    assert set(loaded.params) == {"backbone"} and loaded.info.family == "dinov2"
    for name in ("dinov2_vits14_pretrain", "depth_anything_v2_vitl"):
        wrong = neutral.rename(tmp_path / f"{name}.pth")
        assert "is named like" in failure(wrong, parts=("backbone",))
        neutral = wrong
    named = neutral.rename(tmp_path / f"{RELATIVE_V1}.pth")
    assert weights.load(named, parts=("backbone",)).info.model == RELATIVE_V1
    assert "expected dinov2_vitb14" in failure(named, parts=("backbone",), backbone="dinov2_vitb14")


def test_round_trip_through_our_own_file(tmp_path):
    for name in (RELATIVE_V1, OUTDOOR):
        loaded = weights.load(write_zip(tmp_path / f"{name}.pth", empty_tensors(depth_anything_shapes("s"))))
        weights.save(tmp_path / f"{name}.safetensors", loaded.params, loaded.info)
        again = weights.load(tmp_path / f"{name}.safetensors")
        assert again.info == loaded.info and weights.fingerprint(again.params) == weights.fingerprint(loaded.params)


@pytest.mark.skipif(not KEYS.exists(), reason="the list of released names is not at hand")
@pytest.mark.parametrize("naming, listed", [("official", "depth_anything_vits"), ("hugging_face", "depth_anything_vits_hf")])
def test_names_are_those_of_the_reference_list(naming, listed):
    keys = {}
    for key, shape in json.loads(KEYS.read_text())[listed].items():
        numbers = range(12) if "{i}" in key else [0]
        keys |= {key.replace("{i}", str(i)): tuple(shape) for i in numbers}
    plan = depth_anything.full_plan("dinov2_vits14", naming)
    assert {source: entry.shape for entry in plan for source in entry.sources} == keys
