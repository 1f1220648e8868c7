"""Export: the artefact in a process without jdepth, its description, and what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import call, picture, refused, save_backbone

from jdepth import export, predictor

pytestmark = pytest.mark.usefixtures("quick")
SIZE = (42, 56)


@pytest.fixture(scope="module")
def exported(model_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "new"
    assert call(export, f"--checkpoint={model_file}", "--size=42x56", f"--out={folder}") == 0
    return folder


def test_runs_in_a_process_with_jax_alone(exported, model_file, tmp_path):
    """The description's own lines, from another folder, where jdepth, flax and OpenCV cannot be imported."""
    pictures = np.stack([picture(n, *SIZE) for n in range(3)])
    np.save(tmp_path / "pictures.npy", pictures)
    lines = json.loads((exported / "description.json").read_text())["run"]
    lines = [f"images = np.load({str(tmp_path / 'pictures.npy')!r})" if line.startswith("images = ") else line for line in lines]
    script = [
        "import sys",
        "for name in ('jdepth', 'flax', 'optax', 'orbax', 'cv2', 'grain', 'PIL'): sys.modules[name] = None",
        *lines,
        f"np.save({str(tmp_path / 'values.npy')!r}, values)",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=exported, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values = np.load(tmp_path / "values.npy")
    model = predictor.load(model_file)
    expected = np.stack([model(image).values for image in pictures])
    assert values.shape == (3, *SIZE) and values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5)
    assert values.std() > 0


def test_description(exported):
    assert sorted(p.name for p in exported.iterdir()) == sorted(export.FILES)
    about = json.loads((exported / "description.json").read_text())
    assert about["images"]["shape"] == ["batch", 42, 56, 3] and about["images"]["type"] == "uint8"
    assert (about["kind"], about["unit"], about["range"]) == ("metric depth", "metres", [0.001, 10.0])
    assert about["platforms"] == ["cpu", "cuda", "tpu"] and "42x56" in about["preprocessing"]


def test_a_runs_default_size_is_its_own(run, tmp_path):
    assert call(export, f"--checkpoint={run}", f"--out={tmp_path}/out") == 0
    about = json.loads((tmp_path / "out" / "description.json").read_text())
    assert about["images"]["shape"] == ["batch", 48, 64, 3]


def test_refusals(model_file, exported, tmp_path, capsys):
    checkpoint, out = f"--checkpoint={model_file}", f"--out={tmp_path / 'x'}"
    assert "--checkpoint: is needed" in refused(capsys, export, out)
    assert "--out: is needed" in refused(capsys, export, checkpoint)
    assert "already; name another" in refused(capsys, export, checkpoint, f"--out={exported}")
    for size in ("518", "0x14", "13x28", "5000x28", "-1x28", "28x28x3"):
        assert f"--size: '{size}', expected HEIGHTxWIDTH" in refused(capsys, export, checkpoint, out, f"--size={size}")
    assert "transformers' models take any size" in refused(
        capsys, export, checkpoint, out, "--size=28x28", "--format=huggingface"
    )
    assert "has 8 decoder channels" in refused(capsys, export, checkpoint, out, "--format=huggingface")
    backbone = save_backbone(tmp_path / "backbone.safetensors")
    assert "holds the backbone" in refused(capsys, export, f"--checkpoint={backbone}", out)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(capsys, export, checkpoint, f"--out={tmp_path / 'file'}")
    assert not (tmp_path / "x").exists()


def test_a_size_that_a_family_does_not_take(tmp_path, capsys):
    from weights_files import depth_anything_shapes, empty_tensors, write_zip

    file = write_zip(tmp_path / "depth_anything_v2_vits.pth", empty_tensors(depth_anything_shapes("s")))
    line = refused(capsys, export, f"--checkpoint={file}", f"--out={tmp_path}/x", "--size=500x500")
    assert "--size: 500x500, but depth_anything_v2_vits takes multiples of 14 only" in line
