"""The converter: files in, one complete file out, and one line for every mistake."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from weights_files import (
    backbone_shapes,
    empty_tensors,
    head_shapes,
    hugging_face,
    random_tensors,
    write_stream,
    write_zip,
)

from jdepth import command_line, convert, weights

NYU = "dinov2_vits14_nyu_dpt"


def run(*arguments: object) -> int:
    return command_line.call(convert.main, convert.USAGE, convert.define, ["convert", *map(str, arguments)])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    tensors = random_tensors(backbone_shapes("s"))
    return write_zip(tmp_path_factory.mktemp("backbone") / "dinov2_vits14_pretrain.pth", tensors)


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Path:
    content = {"meta": {"iter": 38400}, "state_dict": random_tensors(head_shapes(384, channels=16), seed=1)}
    return write_stream(tmp_path_factory.mktemp("head") / f"{NYU}_head.pth", content)


def test_backbone(backbone, tmp_path, capsys):
    dest = tmp_path / "a.safetensors"
    assert run(backbone, dest) == 0
    printed = capsys.readouterr().out
    assert "dinov2_vits14" in printed and "Apache-2.0" in printed
    found, original = weights.load(dest), weights.load(backbone)
    assert found.info == original.info
    assert weights.fingerprint(found.params) == weights.fingerprint(original.params)


def test_head_joined_with_its_backbone(backbone, head, tmp_path, capsys):
    dest = tmp_path / "depth.safetensors"
    assert run(head, dest, "--backbone", backbone) == 0
    assert "0.001 to 10 m" in capsys.readouterr().out
    found = weights.load(dest, parts=("backbone", "decoder", "depth_head"), backbone="dinov2_vits14")
    assert found.info.model == NYU and found.info.max_depth == 10.0
    assert found.info.source == f"{head.name} + {backbone.name}"
    parts = {**weights.load(backbone).params, **weights.load(head).params}
    assert weights.fingerprint(found.params) == weights.fingerprint(parts)


def test_converted_files_can_be_joined_and_a_neutral_name_needs_the_model(backbone, head, tmp_path):
    neutral = tmp_path / "head.pth"
    neutral.write_bytes(head.read_bytes())
    files = [tmp_path / f"{name}.safetensors" for name in ("backbone", "head", "whole", "at_once")]
    assert run(backbone, files[0]) == 0
    assert run(neutral, files[1]) == 2
    assert run(neutral, files[1], f"--model={NYU}") == 0
    assert run(files[1], files[2], "--backbone", files[0]) == 0
    assert run(neutral, files[3], "--model", NYU, "--backbone", backbone) == 0
    assert weights.fingerprint(weights.load(files[2]).params) == weights.fingerprint(weights.load(files[3]).params)


def test_an_existing_file_is_kept_unless_asked(backbone, tmp_path, capsys):
    dest = tmp_path / "a.safetensors"
    dest.write_bytes(b"precious")
    assert run(backbone, dest) == 2
    assert "--overwrite" in capsys.readouterr().err and dest.read_bytes() == b"precious"
    assert run(backbone, dest, "--overwrite") == 0
    assert weights.load(dest).info.model == "dinov2_vits14"


class Harmful:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_bad_sources_are_one_line_and_write_nothing(backbone, head, tmp_path, capsys):
    sources = tmp_path / "sources"
    sources.mkdir()

    def source(name: str, content: bytes) -> Path:
        (sources / name).write_bytes(content)
        return sources / name

    whole = backbone.read_bytes()
    (sources / "folder").mkdir()
    other = write_zip(sources / "b.pth", empty_tensors(head_shapes(768, channels=16)))
    registers = write_zip(sources / "registers.pth", empty_tensors(backbone_shapes("s", registers=True)))
    cases = [
        ([sources / "absent.pth"], "absent.pth: no such file"),
        ([source("empty.pth", b"")], "empty.pth: is empty"),
        ([source("text.pth", b"hello")], "text.pth: is not a PyTorch checkpoint"),
        ([source("short.pth", whole[: len(whole) // 2])], "short.pth"),
        ([source("cut.pth", head.read_bytes()[:-100])], "truncated"),
        ([source("harm.pth", pickle.dumps(Harmful(tmp_path / "ran")))], "system, which no weights file needs"),
        ([sources / "folder"], "folder without weights"),
        ([source("short.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{")], "truncated"),
        ([head, "--backbone", head], "holds dinov2_vits14_nyu_dpt (decoder and depth head), expected backbone"),
        ([backbone, "--backbone", backbone], "without a depth head"),
        ([other, "--model=dinov2_vitb14_nyu_dpt", "--backbone", backbone], "was trained on dinov2_vitb14"),
        ([head, "--backbone", registers], "holds dinov2_vits14_reg4"),
        ([head, "--model=dinov2_vitb14_nyu_dpt"], "not of dinov2_vitb14_nyu_dpt"),
        ([head, "--model=nyu"], "is unknown"),
    ]
    dest = tmp_path / "out" / "a.safetensors"
    dest.parent.mkdir()
    for (path, *options), words in cases:
        assert run(path, dest, *options) == 2, words
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
        assert not list(dest.parent.iterdir())
    assert not (tmp_path / "ran").exists()


def test_bad_arguments(backbone, tmp_path, capsys):
    for arguments, words in (
        ([], "expected SOURCE and DEST"),
        ([backbone], "expected SOURCE and DEST"),
        ([backbone, tmp_path / "a.safetensors", "more"], "got 3 arguments"),
        ([backbone, tmp_path / "a.pth"], "ends in .safetensors"),
        ([backbone, tmp_path / "absent" / "a.safetensors"], "no such folder"),
        ([backbone, tmp_path / "a.safetensors", "--modell=x"], "modell"),
    ):
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error
    assert run("--help") == 0
    assert "SOURCE" in capsys.readouterr().out


def test_a_joined_model_cannot_be_joined_again(backbone, head, tmp_path, capsys):
    dest = tmp_path / "whole.safetensors"
    convert.convert(head, dest, backbone=backbone)
    assert run(dest, tmp_path / "b.safetensors", "--backbone", backbone) == 2
    assert "holds its backbone already" in capsys.readouterr().err


def test_hugging_face_folder(tmp_path):
    tensors = hugging_face(random_tensors(backbone_shapes("s")))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    info = convert.convert(tmp_path, tmp_path / "ours.safetensors").info
    assert info.backbone == "dinov2_vits14" and info.source == "model.safetensors"
    kernel = weights.load(tmp_path / "ours.safetensors").params["backbone"]["blocks_0"]["mlp"]["fc1"]["kernel"]
    assert np.array_equal(kernel, tensors["encoder.layer.0.mlp.fc1.weight"].T)
