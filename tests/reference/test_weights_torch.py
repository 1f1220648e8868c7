"""Files written by PyTorch and transformers themselves, read without either and run through our models."""

import json
from collections import OrderedDict

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import jax
import numpy as np
import port
import torch_params
from safetensors.torch import load_file, save_file

from jdepth import convert, weights
from jdepth.errors import UserError
from jdepth.models import BACKBONES, build
from jdepth.weights import pytorch_file

TOLERANCE = 1e-4  # of the reference's largest value
formats = pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "stream"])


def read(path) -> dict[str, np.ndarray]:
    with pytorch_file.opened(path) as tensors:
        return {name: tensor.read() for name, tensor in tensors.items()}


def values(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@formats
def test_tensors_of_every_type_and_layout_are_bit_equal(tmp_path, as_zip):
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    tensors = {
        **{
            str(t): (torch.randn(3, 4) * 50).to(t)
            for t in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        },
        **{str(t): torch.randint(0, 100, (5,)).to(t) for t in (torch.int64, torch.int32, torch.int16, torch.int8)},
        **{str(t): torch.randint(0, 100, (5,)).to(t) for t in (torch.uint8, torch.bool, torch.uint16)},
        "shared": base,
        "transposed": base.T,
        "slice": base[1:5:2, 3:],
        "row": base[4],
        "expanded": base[0, :1].expand(3, 5),
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(4)),
        "buffer": torch.nn.Parameter(torch.randn(4), requires_grad=False),
    }
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=as_zip)
    found = read(tmp_path / "a.pth")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == values(tensor).dtype and found[name].shape == tuple(tensor.shape), name
        assert found[name].tobytes() == np.ascontiguousarray(values(tensor)).tobytes(), name


@formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_training_checkpoint_as_frameworks_save_it(tmp_path, as_zip, protocol):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, amsgrad=True)
    module(torch.randn(2, 3, 6, 6)).sum().backward()
    optimizer.step()
    meta = {
        "epoch": 3,
        "iter": 38400,
        "mmcv_version": "1.5.0",
        "time": "Mon Mar 27 10:33:21 2023",
        "config": "optimizer = dict(type='AdamW')\n",
        "seed": None,
        "hook_msgs": {
            "best_score": np.float64(0.0893),
            "float32": np.float32(1.5),
            "int64": np.int64(-3),
            "bool": np.bool_(True),
            "text": np.str_("abs_rel"),
            "array": np.arange(6.0).reshape(2, 3),
            "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
            "none": np.zeros((0, 2), np.float32),
            "bytes": b"\x00\xff",
            "no bytes": b"",
            "big": np.arange(3, dtype=">i4"),
        },
        "CLASSES": ("a", "b"),
        "size": torch.Size([3, 4]),
        "device": torch.device("cuda", 1),
        "dtype": torch.bfloat16,
        "names": {"a", "b"},
        "frozen": frozenset([1]),
        "order": OrderedDict(a=[1, 2.5, -(10**20)]),
        "generator": torch.get_rng_state(),
    }
    content = {"meta": meta, "state_dict": module.state_dict(), "optimizer": optimizer.state_dict()}
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=as_zip, pickle_protocol=protocol)
    found = read(path)
    assert found.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert np.array_equal(found[name], tensor.numpy()), name


@formats
def test_a_whole_pickled_module_is_refused_by_its_class(tmp_path, as_zip):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(UserError, match="torch.nn.modules.linear.Linear"):
        weights.load(tmp_path / "a.pth")


# Through the models


def official_backbone(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Hugging Face's tensors under the names of DINOv2's own files (the reverse of what we read)."""
    official = {}
    for name, tensor in published.items():
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.", "")
        name = name.replace("encoder.layer.", "blocks.").replace("attention.output.dense", "attn.proj")
        name = name.replace("layer_scale1.lambda1", "ls1.gamma").replace("layer_scale2.lambda1", "ls2.gamma")
        name = name.replace("mlp.weights_in", "mlp.w12").replace("mlp.weights_out", "mlp.w3")
        name = name.replace("layernorm.", "norm.")
        if ".key." in name or ".value." in name:
            continue
        if ".query." in name:
            thirds = [published[name_of(name, part)] for part in ("query", "key", "value")]
            name, tensor = name.replace("attention.attention.query", "attn.qkv"), torch.cat(thirds)
        official[name] = tensor
    return official


def name_of(official: str, part: str) -> str:
    return official.replace("blocks.", "encoder.layer.").replace(".query.", f".{part}.")


def official_head(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The port's `neck` and `head` under the names of DINOv2's own files."""
    official = {}
    for name, tensor in published.items():
        if "fusion_stage.layers.0.residual_layer1" in name or not name.startswith(("neck.", "head.")):
            continue  # an unused layer of the port, and the backbone
        for theirs, ours in (
            ("neck.reassemble_stage.readout_projects.", "reassemble_blocks.readout_projects."),
            ("neck.convs.", "convs."),
            ("neck.fusion_stage.layers.", "fusion_blocks."),
            ("residual_layer", "res_conv_unit"),
            ("convolution", "conv"),
            ("head.projection.", "project.conv."),
            ("head.head.", "conv_depth.head."),
        ):
            name = name.replace(theirs, ours)
        if name.startswith("neck.reassemble_stage.layers."):
            _, _, _, level, kind, leaf = name.split(".")
            kinds = {"projection": f"projects.{level}.conv", "resize": f"resize_layers.{level}"}
            name = f"reassemble_blocks.{kinds[kind]}.{leaf}"
        elif name.startswith(("convs.", "fusion_blocks.")):
            stem, leaf = name.rsplit(".", 1)
            name = f"{stem.replace('projection', 'project')}.conv.{leaf}"
        official[f"decode_head.{name}"] = tensor
    return official


def tokens(params: dict, backbone: str, images: np.ndarray) -> np.ndarray:
    model = build(backbone).backbone
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda params, images: model.apply({"params": params}, images, final_norm=True).tokens)
        return np.asarray(run(params["backbone"], images))


def error(found: np.ndarray, reference: np.ndarray) -> float:
    assert found.shape == reference.shape
    return float(np.abs(found - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("backbone", ["dinov2_vits14", "dinov2_vits14_reg4"])
def test_backbone_from_hugging_face_and_official_files(tmp_path, backbone):
    """At 518×518 pixels, where the position table is used as it is."""
    model = port.backbone(BACKBONES[backbone])
    torch_params.randomise(model, 0)
    model.save_pretrained(tmp_path / "folder")
    images = np.random.default_rng(0).standard_normal((1, 518, 518, 3)).astype(np.float32)
    with torch.no_grad():
        reference = model(torch.from_numpy(images).permute(0, 3, 1, 2)).last_hidden_state.numpy()
    loaded = weights.load(tmp_path / "folder")
    assert loaded.info.model == backbone
    found = tokens(loaded.params, backbone, images)
    print(f"{backbone}: {error(found, reference):.1e} of the largest value")
    assert error(found, reference) < TOLERANCE

    # The same numbers under official names, in both containers, and sharded.
    official = official_backbone(load_file(tmp_path / "folder" / "model.safetensors"))
    mark = weights.fingerprint(loaded.params)
    for as_zip in (True, False):
        path = tmp_path / f"{backbone}_pretrain.pth"
        torch.save(official, path, _use_new_zipfile_serialization=as_zip)
        assert weights.fingerprint(weights.load(path).params) == mark
    model.save_pretrained(tmp_path / "shards", max_shard_size="30MB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    assert weights.fingerprint(weights.load(tmp_path / "shards").params) == mark


def test_half_precision_files(tmp_path):
    model = port.backbone(BACKBONES["dinov2_vits14"])
    tensors = {name: torch.from_numpy(array) for name, array in torch_params.published_tensors(model).items()}
    for dtype in (torch.bfloat16, torch.float16):
        half = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        save_file(half, tmp_path / "model.safetensors")
        torch.save(official_backbone(half), tmp_path / "a.pth")
        exact = weights.fingerprint(weights.load(tmp_path / "a.pth").params)
        assert weights.fingerprint(weights.load(tmp_path / "model.safetensors").params) == exact
        kernel = weights.load(tmp_path).params["backbone"]["blocks_0"]["mlp"]["fc1"]["kernel"]
        assert np.array_equal(kernel, half["encoder.layer.0.mlp.fc1.weight"].float().numpy().T)


def test_depth_model_joined_from_official_files(tmp_path):
    backbone = "dinov2_vits14"
    model = port.depth_model(BACKBONES[backbone])
    torch_params.randomise(model, 1)
    with torch.no_grad():  # where the last ReLU leaves the map alive
        model.head.head[4].bias.fill_(1.0)
    images = np.random.default_rng(1).standard_normal((1, 518, 518, 3)).astype(np.float32)
    with torch.no_grad():
        reference = model(torch.from_numpy(images).permute(0, 3, 1, 2)).predicted_depth.numpy() + 0.001

    model.save_pretrained(tmp_path / "folder")
    published = load_file(tmp_path / "folder" / "model.safetensors")
    parts = {name.removeprefix("backbone."): t for name, t in published.items() if name.startswith("backbone.")}
    head = official_head(published)
    moments = {i: {"step": torch.tensor(1.0), "exp_avg": t * 0} for i, t in enumerate(head.values())}
    content = {
        "meta": {"iter": 38400, "hook_msgs": {"best_score": np.float64(0.09)}},
        "state_dict": OrderedDict(head),
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]},
    }
    head_file, backbone_file = tmp_path / f"{backbone}_nyu_dpt_head.pth", tmp_path / f"{backbone}_pretrain.pth"
    marks = set()
    for as_zip in (True, False):
        torch.save(content, head_file, _use_new_zipfile_serialization=as_zip)
        torch.save(official_backbone(parts), backbone_file, _use_new_zipfile_serialization=as_zip)
        info = convert.convert(head_file, tmp_path / "depth.safetensors", backbone=backbone_file, overwrite=True).info
        assert (info.model, info.max_depth) == (f"{backbone}_nyu_dpt", 10.0)
        params = weights.load(tmp_path / "depth.safetensors").params
        marks.add(weights.fingerprint(params))
    assert len(marks) == 1
    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(build(backbone).__call__)(params, images))
    print(f"{backbone} depth: {error(found, reference):.1e} of the largest depth {reference.max():.2f}")
    assert reference.std() > 1e-3 and error(found, reference) < TOLERANCE


def test_settings_that_transformers_writes_are_understood(tmp_path):
    model = port.backbone(BACKBONES["dinov2_vits14"])
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert {"hidden_size", "patch_size", "layer_norm_eps", "num_attention_heads"} <= settings.keys()
    (tmp_path / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-12}))
    weights.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"patch_size": 16}))
    with pytest.raises(UserError, match="patch_size is 16"):
        weights.load(tmp_path)
