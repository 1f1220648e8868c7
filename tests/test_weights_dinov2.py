"""Backbone files: every released size, Hugging Face's names, and files that do not match."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from weights_files import backbone_shapes, empty_tensors, hugging_face, random_tensors, write_stream, write_zip

from jdepth import weights
from jdepth.errors import UserError
from jdepth.models import depth_model, vit
from jdepth.weights import catalogue, dinov2, mapping

ALL = [(letter, registers) for letter in "sblg" for registers in (False, True)]
KEYS = Path(__file__).resolve().parents[2] / "shared" / "reference" / "checkpoint_keys.json"


def name_of(letter: str, registers: bool) -> str:
    return f"dinov2_vit{letter}14" + ("_reg4" if registers else "")


def model_shapes(backbone: str) -> dict[str, tuple[int, ...]]:
    model = depth_model.build(backbone)
    tree = jax.eval_shape(lambda key: model.init(key, (28, 28)), jax.random.key(0))
    return {name: leaf.shape for name, leaf in weights.flatten(tree).items()}


def failure(path: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        weights.load(path, **options)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def small() -> dict[str, np.ndarray]:
    return random_tensors(backbone_shapes("s"))


@pytest.fixture(scope="module")
def small_file(small, tmp_path_factory) -> Path:
    return write_zip(tmp_path_factory.mktemp("weights") / "dinov2_vits14_pretrain.pth", small)


def test_sizes_are_those_of_the_models():
    assert catalogue.SIZES.keys() == vit.BACKBONES.keys()
    for name, size in catalogue.SIZES.items():
        config = vit.BACKBONES[name]
        for field in ("width", "depth", "hidden", "ffn", "registers", "grid"):
            assert getattr(size, field) == getattr(config, field), (name, field)


@pytest.mark.parametrize("letter, registers", ALL)
def test_every_released_file_fills_its_model(letter, registers, tmp_path, monkeypatch):
    """Names and shapes only: the files repeat one zero, and nothing is read."""
    name = name_of(letter, registers)
    file = write_zip(tmp_path / f"{name}_pretrain.pth", empty_tensors(backbone_shapes(letter, registers)))

    def shapes_only(tensors, plan, path, what):
        expected = {source: entry.shape for entry in plan for source in entry.sources}
        mapping.check({key: tensor.shape for key, tensor in tensors.items()}, expected, path, what)
        return {key: partial(np.broadcast_to, np.float32(0), shape) for key, shape in mapping.shapes(plan).items()}

    monkeypatch.setattr(dinov2, "readers", shapes_only)
    loaded = weights.load(file)
    assert (loaded.info.model, loaded.info.backbone, loaded.info.family) == (name, name, "dinov2")
    assert loaded.info.licence == "Apache-2.0" and loaded.info.max_depth is None and loaded.info.channels is None
    found = {key: array.shape for key, array in weights.flatten(loaded.params).items()}
    assert found == {key: shape for key, shape in model_shapes(name).items() if key.startswith("backbone/")}


@pytest.mark.slow
@pytest.mark.parametrize("letter, registers", [("l", True), ("g", False)])
def test_large_files_are_read_whole(letter, registers, tmp_path):
    shapes = backbone_shapes(letter, registers)
    loaded = weights.load(write_zip(tmp_path / "any.pth", empty_tensors(shapes)))
    arrays = weights.flatten(loaded.params["backbone"])
    assert sum(array.size for array in arrays.values()) == sum(map(np.prod, shapes.values())) - shapes["norm.bias"][0]
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in arrays.values())


def test_number_of_parameters():
    counts = {"s": 22_056_576, "b": 86_580_480, "l": 304_368_640, "g": 1_136_480_768}
    for letter, count in counts.items():
        assert sum(int(np.prod(shape)) for shape in backbone_shapes(letter).values()) == count


@pytest.mark.parametrize("write", [write_zip, write_stream])
def test_values_and_layout(small, tmp_path, write):
    tree = weights.load(write(tmp_path / "vits.pth", {"state_dict": small})).params["backbone"]
    block, name = tree["blocks_7"], "blocks.7"
    expected = {
        "cls_token": small["cls_token"],
        "pos_embed": small["pos_embed"],
        "norm/scale": small["norm.weight"],
        "norm/bias": small["norm.bias"],
        "patch_embed/bias": small["patch_embed.proj.bias"],
    }
    for key, array in expected.items():
        assert np.array_equal(weights.flatten(tree)[key], array), key
    kernel, file_kernel = tree["patch_embed"]["kernel"], small["patch_embed.proj.weight"]
    assert kernel.shape == (14, 14, 3, 384) and kernel[2, 5, 1, 30] == file_kernel[30, 1, 2, 5]
    assert np.array_equal(kernel, np.moveaxis(file_kernel, (2, 3, 1, 0), (0, 1, 2, 3)))
    for key, source in (
        ("attn/qkv", "attn.qkv"),
        ("attn/proj", "attn.proj"),
        ("mlp/fc1", "mlp.fc1"),
        ("mlp/fc2", "mlp.fc2"),
    ):
        layer = block[key.split("/")[0]][key.split("/")[1]]
        assert np.array_equal(layer["kernel"], small[f"{name}.{source}.weight"].T), key
        assert np.array_equal(layer["bias"], small[f"{name}.{source}.bias"]), key
    assert np.array_equal(block["ls1"]["gamma"], small[f"{name}.ls1.gamma"])
    assert np.array_equal(block["ls2"]["gamma"], small[f"{name}.ls2.gamma"])
    assert np.array_equal(block["norm2"]["scale"], small[f"{name}.norm2.weight"])
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in weights.flatten(tree).values())


@pytest.mark.parametrize("prefix", ["", "dinov2.", "backbone.", "dinov2_with_registers."])
def test_hugging_face_names_give_the_same_tree(small, small_file, tmp_path, prefix):
    tensors = hugging_face(small, prefix)
    if prefix:
        tensors |= {"classifier.weight": np.zeros((10, 768), np.float32), "classifier.bias": np.zeros(10, np.float32)}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    found, official = weights.load(tmp_path), weights.load(small_file)
    assert weights.fingerprint(found.params) == weights.fingerprint(official.params)
    assert found.info.model == "dinov2_vits14" and found.info.source == "model.safetensors"


def test_swiglu_and_registers_under_hugging_face_names(tmp_path, monkeypatch):
    monkeypatch.setattr(dinov2, "readers", lambda tensors, plan, path, what: mapping.check(
        {key: tensor.shape for key, tensor in tensors.items()},
        {source: entry.shape for entry in plan for source in entry.sources}, path, what) or {})  # fmt: skip
    file = write_zip(tmp_path / "model.bin", hugging_face(empty_tensors(backbone_shapes("g", registers=True))))
    assert weights.load(file).info.model == "dinov2_vitg14_reg4"


def test_shards_of_a_folder(small, small_file, tmp_path):
    tensors = hugging_face(small)
    first = dict(list(tensors.items())[:90])
    parts = {"model-00001-of-00002.safetensors": first}
    parts["model-00002-of-00002.safetensors"] = {k: v for k, v in tensors.items() if k not in first}
    for file, part in parts.items():
        save_file(part, tmp_path / file)
    names = {name: file for file, part in parts.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    official = weights.fingerprint(weights.load(small_file).params)
    assert weights.fingerprint(weights.load(tmp_path).params) == official
    assert weights.fingerprint(weights.load(index).params) == official

    for changed, words in (
        (names | {"embeddings.cls_token": "../model-00001-of-00002.safetensors"}, "name of a file beside it"),
        (names | {"embeddings.cls_token": "/etc/passwd"}, "name of a file beside it"),
        (names | {"embeddings.cls_token": "..\\model-00001-of-00002.safetensors"}, "name of a file beside it"),
        ({name: file for name, file in names.items() if name != "layernorm.bias"}, "does not match the tensors"),
        (names | {"other": "model-00001-of-00002.safetensors"}, "does not match the tensors"),
        ({}, "no weight_map"),
        (3, "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        assert words in failure(index)
    index.write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    with pytest.raises(UserError, match="absent.safetensors: no such file"):
        weights.load(index)
    index.write_text("[]")
    assert "no weight_map" in failure(index)
    index.write_text("{")
    assert "damaged" in failure(index)


def test_mask_token_may_be_absent(small, tmp_path):
    without = {name: array for name, array in small.items() if name != "mask_token"}
    assert "mask_token" not in weights.load(write_zip(tmp_path / "a.pth", without)).params["backbone"]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("blocks.3.ls1.gamma"), "1 missing: blocks.3.ls1.gamma"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("blocks.11.")], "14 missing: blocks.11.norm1"),
        (lambda t: t.update({"head.weight": t["norm.bias"]}), "1 unexpected: head.weight"),
        (lambda t: t.update({"blocks.12.norm1.bias": t["norm.bias"]}), "1 unexpected: blocks.12.norm1.bias"),
        (
            lambda t: t.update(pos_embed=t["pos_embed"][:, :257]),
            "1 of another shape: pos_embed is (1, 257, 384), expected (1, 1370, 384)",
        ),
        (lambda t: t.update({"norm.bias": t["norm.bias"][:7]}), "norm.bias is (7,), expected (384,)"),
        (lambda t: t.update({"norm.bias": np.zeros(384, np.int64)}), "norm.bias holds int64"),
        (lambda t: t.update({"mask_token": t["cls_token"]}), "mask_token is (1, 1, 384)"),
        (lambda t: t.update({"cls_token": np.zeros((1, 1, 384, 0), np.float32)}), "cls_token is (1, 1, 384, 0)"),
        (lambda t: t.update(register_tokens=np.zeros((1, 5, 384), np.float32)), "register_tokens is (1, 5, 384)"),
    ],
)
def test_every_name_and_shape_is_checked(tmp_path, change, words):
    tensors = empty_tensors(backbone_shapes("s"))
    change(tensors)
    assert words in failure(write_zip(tmp_path / "a.pth", tensors))


def test_long_lists_are_cut(tmp_path):
    tensors = empty_tensors(backbone_shapes("s"))
    kept = {name: tensors[name] for name in ("cls_token", "norm.weight")}
    message = failure(write_zip(tmp_path / "a.pth", kept))
    assert "172 missing" in message and "and 166 more" in message and len(message) < 700


def test_other_widths_and_models(tmp_path):
    wide = {name: array[..., :100] for name, array in empty_tensors(backbone_shapes("s")).items()}
    assert "width 100" in failure(write_zip(tmp_path / "a.pth", wide))
    zeros = np.zeros(2, np.float32)
    for names, words in (
        ({"fc.weight": zeros}, "unknown model (fc.weight)"),
        ({"pretrained.cls_token": zeros, "depth_head.x": zeros}, "Depth Anything"),
        ({"decode_head.conv_depth.weight": zeros}, "linear depth head"),
        ({"neck.convs.0.weight": zeros, "backbone.embeddings.cls_token": zeros}, "DPT depth model (Hugging Face names)"),
        ({}, "no tensor"),
    ):
        assert words in failure(write_zip(tmp_path / "b.pth", names))


def test_official_names_must_not_contradict_the_tensors(tmp_path):
    tensors = empty_tensors(backbone_shapes("s"))
    for name in ("dinov2_vitb14_pretrain", "dinov2_vits14_reg4_pretrain", "dinov2_vits14_nyu_dpt_head"):
        assert "is named like" in failure(write_zip(tmp_path / f"{name}.pth", tensors))


def test_model_must_be_known_and_fit(tmp_path, small_file):
    assert weights.load(small_file, model="dinov2_vits14").info.model == "dinov2_vits14"
    assert "not of dinov2_vitb14" in failure(small_file, model="dinov2_vitb14")
    assert "not of dinov2_vits14_nyu_dpt" in failure(small_file, model="dinov2_vits14_nyu_dpt")
    with pytest.raises(UserError, match="did you mean dinov2_vits14"):
        weights.load(small_file, model="dinov2_vits")


def test_what_the_caller_needs(small_file):
    assert "holds dinov2_vits14 (backbone), expected decoder" in failure(small_file, parts=("decoder",))
    assert "expected dinov2_vitb14" in failure(small_file, backbone="dinov2_vitb14")
    weights.load(small_file, parts=("backbone",), backbone="dinov2_vits14")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"patch_size": 16}, "patch_size is 16"),
        ({"hidden_size": 768}, "hidden_size is 768"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
        ({"use_swiglu_ffn": True}, "use_swiglu_ffn"),
        ([], "not a JSON object"),
        ({"layer_norm_eps": 1e-12, "patch_size": 14, "hidden_size": 384, "unknown": 3}, None),
        ({"layer_norm_eps": 1e-6, "mlp_ratio": 4.0}, None),
    ],
)
def test_hugging_face_settings(tmp_path, settings, words):
    write_zip(tmp_path / "pytorch_model.bin", hugging_face(empty_tensors(backbone_shapes("s"))))
    (tmp_path / "config.json").write_text(json.dumps(settings))
    if words is None:
        assert weights.load(tmp_path).info.model == "dinov2_vits14"
        return
    with pytest.raises(UserError, match="config.json") as caught:
        weights.load(tmp_path)
    assert words in str(caught.value)


def test_settings_beside_an_official_file_are_not_its_own(tmp_path):
    (tmp_path / "config.json").write_text("{ not json")
    write_zip(tmp_path / "dinov2_vits14_pretrain.pth", empty_tensors(backbone_shapes("s")))
    assert weights.load(tmp_path / "dinov2_vits14_pretrain.pth").info.model == "dinov2_vits14"


def test_folder_without_weights(tmp_path):
    assert "folder without weights" in failure(tmp_path)


@pytest.mark.skipif(not KEYS.exists(), reason="the list of released names is not at hand")
def test_names_are_those_of_the_reference_list():
    listed = json.loads(KEYS.read_text())
    for name, entries in listed.items():
        if not name.startswith("dinov2_vit") or "head" in name:
            continue
        size = dinov2.DINOV2_SIZES[name.removesuffix("_hf")]
        rename = dinov2.to_hugging_face if name.endswith("_hf") else lambda entry: entry
        ours = {s: entry.shape for entry in map(rename, dinov2.plan(size)) for s in entry.sources}
        theirs = {
            key.replace("{i}", str(i)): tuple(shape)
            for key, shape in entries.items()
            for i in range(size.depth if "{i}" in key else 1)
        }
        assert ours == theirs, name
