"""Evaluation from the command line: runs and weights files, on rooms and folders, and what is refused."""

import json

import cv2
import jax
import numpy as np
import pytest
from PIL import Image
from tiny_run import HEIGHT, WIDTH, call, folder_set, picture, refused

from jdepth import evaluate, memory, predictor
from jdepth.data import protocols

pytestmark = pytest.mark.usefixtures("quick")

SCORES = {"AbsRel", "SqRel", "RMSE", "RMSElog", "SILog", "log10", "d1", "d2", "d3"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def scored(capsys, *arguments) -> tuple[dict, str]:
    """(content of the JSON file, what was printed)."""
    capsys.readouterr()
    assert call(evaluate, *arguments) == 0
    out = capsys.readouterr().out
    path = out.rsplit("written to ", 1)[1].strip()
    with open(path) as file:
        return json.load(file), out


def test_a_run_is_scored_as_in_training(run, here, tmp_path, capsys):
    result, out = scored(capsys, f"--workdir={run}", f"--out={tmp_path}/result.json")
    assert not list(here.iterdir())
    expected = json.loads((run / "evaluation.json").read_text())
    for key in SCORES:
        assert result["depth"][key] == pytest.approx(expected["best"][key], rel=1e-5), key
    assert result["depth"]["images"] == 3 and result["protocol"] == expected["protocol"]
    assert result["constant_AbsRel"] == pytest.approx(expected["constant_AbsRel"])
    assert {"task": "mldc", "dataset": "rooms", "split": "val"}.items() <= result["auxiliary"].items()
    assert 0 <= result["auxiliary"]["mAP"] <= 1
    lines = out.splitlines()
    assert lines[0] == "tiny (best) on rooms, 3 images"
    assert lines[1] == expected["protocol"], "the protocol stands above the numbers"
    assert "AbsRel" in lines[3] and f"{result['depth']['AbsRel']:.4f}" in lines[4]
    assert any(line.startswith("mldc on rooms val: ") for line in lines)


def test_limit_and_batch(run, tmp_path, capsys):
    one, _ = scored(capsys, f"--workdir={run}", "--limit=2", f"--out={tmp_path}/a.json")
    two, _ = scored(capsys, f"--workdir={run}", "--limit=2", "--batch=2", f"--out={tmp_path}/b.json")
    assert one["depth"]["images"] == two["depth"]["images"] == 2
    scored(capsys, f"--workdir={run}", "--limit=1")
    (run / "evaluation_best_1_images.json").unlink()
    assert one["depth"]["AbsRel"] == pytest.approx(two["depth"]["AbsRel"], rel=1e-5)


def test_rooms_of_another_split(run, here, capsys):
    result, out = scored(capsys, f"--checkpoint={run}", "--dataset=rooms", "--split=test", "--limit=2", "--kind=last")
    assert not list(here.iterdir()), "a run's scores lie in the run"
    (run / "evaluation_last_rooms_test_2_images.json").unlink()
    assert result["model"] == "tiny (last)" and result["depth"]["images"] == 2 and "auxiliary" not in result
    assert "input 48x64" in result["protocol"], "a run gets images at its training size"


@pytest.fixture(scope="module")
def predicted(model_file):
    """(2, HEIGHT, WIDTH) depth of the two pictures by hand, from the network's own maps.

    They and their mirror images are normalised; each map is clamped to 0.001 to 10 m, then resized to the picture;
    the two maps of a picture are averaged.
    """
    model = predictor.load(model_file)
    images = (np.stack([picture(0), picture(1)]) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    both = np.concatenate([images, images[:, :, ::-1]]).astype(np.float32)
    maps = np.asarray(jax.jit(model.model.__call__)(model.params, both))
    assert maps.shape[1:] != (HEIGHT, WIDTH) and all(one.min() < 9 < 11 < one.max() for one in maps)
    maps = [cv2.resize(one, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for one in np.clip(maps, 0.001, 10)]
    return np.mean([[maps[0], maps[1]], [maps[2][:, ::-1], maps[3][:, ::-1]]], axis=0)


def varied_set(folder, metres):
    """(description, (2, HEIGHT, WIDTH) metres): the folder set, its held-out depth as given, in whole millimetres."""
    description, stored = folder_set(folder), (metres * 1000).astype(np.uint16)
    for number in range(2):
        Image.fromarray(stored[number]).save(folder / "val" / "depth" / f"a{number}.png")
    return description, stored / 1000


def test_a_metric_model_is_aligned_in_disparity_where_asked(model_file, predicted, here, tmp_path, capsys):
    """Scale and shift of 1 / depth by NumPy's least squares, on depth that is such a function but for some noise."""
    nearness = 5 / predicted - 0.35 + np.random.default_rng(2).uniform(-0.02, 0.02, predicted.shape)
    description, true = varied_set(tmp_path / "set", 1 / nearness)
    arguments = (f"--checkpoint={model_file}", f"--path={description}", "--align=disparity")
    result, out = scored(capsys, *arguments)
    errors = []
    for one, target in zip(1 / predicted, true, strict=True):
        system = np.stack([one.ravel(), np.ones(one.size)], axis=1)
        fitted = system @ np.linalg.lstsq(system, 1 / target.ravel(), rcond=None)[0]
        errors.append(np.mean(np.abs(1 / np.clip(fitted, 1 / 10, 1 / 0.001) - target.ravel()) / target.ravel()))
    assert result["depth"]["AbsRel"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert "scale and shift of each image fitted in disparity" in result["protocol"] and result["protocol"] in out


def test_a_file_on_a_folder_is_scored_against_its_depth(model_file, predicted, here, tmp_path, capsys):
    description, true = varied_set(tmp_path / "set", np.random.default_rng(2).uniform(1, 9, (2, HEIGHT, WIDTH)))
    arguments = (f"--checkpoint={model_file}", "--dataset=folder", f"--path={description}")
    result, out = scored(capsys, *arguments)
    assert result["model"] == "tiny_dpt" and result["dataset"] == "made" and result["depth"]["images"] == 2
    assert result["protocol"] == protocols.describe(protocols.protocol("whole")) and result["protocol"] in out
    error = np.abs(predicted - true) / true
    assert result["depth"]["AbsRel"] == pytest.approx(error.mean((1, 2)).mean(), rel=1e-4)
    rmse = np.sqrt(np.square(predicted - true).mean((1, 2)))
    assert result["depth"]["RMSE"] == pytest.approx(rmse.mean(), rel=1e-4)
    assert result["constant_AbsRel"] > 0
    # A label that is no class does not matter to depth.
    Image.fromarray(np.full(picture().shape[:2], 77, np.uint8)).save(tmp_path / "set" / "val" / "label" / "a0.png")
    again, _ = scored(capsys, *arguments, "--protocol=whole80")
    assert again["protocol"].startswith("whole80: ")
    # Another set, another protocol: none overwrites the others.
    fields = json.loads(description.read_text())
    description.with_name("other.json").write_text(json.dumps(fields | {"name": "of others/2"}))
    other, _ = scored(capsys, *arguments[:1], f"--path={description.with_name('other.json')}")
    assert other["dataset"] == "of others/2" and other["split"] == "val" and other["path"].endswith("other.json")
    scored(capsys, *arguments, "--limit=1")
    # Hugging Face's cache: links of one name, in folders of their own, to files in one folder.
    named = here / "of_an_author" / "model.safetensors"
    named.parent.mkdir()
    named.symlink_to(model_file)
    scored(capsys, f"--checkpoint={named}", *arguments[1:])
    names = {"tiny_made_val", "tiny_made_val_whole80", "tiny_of_others_2_val", "tiny_made_val_1_images"}
    names |= {"of_an_author_made_val"}
    assert {path.name for path in here.glob("*.json")} == {f"evaluation_{name}.json" for name in names}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "give --workdir RUN, or --checkpoint PATH with --dataset NAME"),
        (("--workdir=a", "--checkpoint=b"), "give --workdir RUN, or --checkpoint PATH with --dataset NAME"),
        (("--checkpoint=b",), "--checkpoint needs a data set"),
        (("--workdir=a", "--dataset=rooms"), "--dataset: a run is scored as its config says"),
        (("--workdir=a", "--protocol=nyu"), "--protocol: a run is scored as its config says"),
        (("--checkpoint=b", "--dataset=rooms", "--limit=-1"), "--limit"),
        (("--checkpoint=b", "--dataset=rooms", "--batch=0"), "--batch"),
        (("--checkpoint=b", "--dataset=rooms", "--kind=newest"), "--kind"),
        (("--checkpoint=b", "--dataset=rooms"), "b: no such file or folder"),
        (("--workdir=a", "--out=x.json"), "a: no such file or folder"),
        (("--workdir=a",), "--workdir: a: no such file or folder"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, here, capsys):
    assert message in refused(capsys, evaluate, *arguments)
    assert not list(here.iterdir())


def test_out_is_checked_before_anything_is_computed(here, capsys):
    line = refused(capsys, evaluate, "--checkpoint=unread", "--dataset=rooms", "--out=nothere/result.json")
    assert line == "error: --out: nothere/result.json: expected a file in an existing folder"
    assert "expected a file" in refused(capsys, evaluate, "--checkpoint=unread", "--dataset=rooms", f"--out={here}")


def test_wrong_data_sets(model_file, here, tmp_path, capsys):
    def line(*arguments):
        return refused(capsys, evaluate, f"--checkpoint={model_file}", *arguments)

    assert "unknown data set 'romms' (did you mean 'rooms'?)" in line("--dataset=romms")
    assert "data not found: nyu; expected data/nyu; prepare" in line("--dataset=nyu")
    assert "expected there/nyu; prepare" in line("--dataset=nyu", "--data_dir=there")
    assert "data set 'folder' needs a path" in line("--dataset=folder")
    assert "not found: nothere" in line("--dataset=folder", "--path=nothere")
    assert "no split 'tests'" in line("--dataset=rooms", "--split=tests")
    labels = folder_set(tmp_path / "labels", depth=False)
    assert "'made' has no depth; it has label" in line("--dataset=folder", f"--path={labels}")
    assert not list(here.iterdir())


def test_wrong_protocols(model_file, here, tmp_path, capsys):
    arguments = (f"--checkpoint={model_file}", "--dataset=folder", f"--path={folder_set(tmp_path / 'set')}")
    line = refused(capsys, evaluate, *arguments, "--protocol=nyuu")
    assert "unknown evaluation protocol 'nyuu' (did you mean 'nyu'?)" in line
    line = refused(capsys, evaluate, *arguments, "--protocol=nyu")
    assert "protocol 'nyu' is defined for depth maps of 480x640" in line and "use protocol 'whole'" in line
    assert not list(here.iterdir())


def test_depth_without_a_valid_pixel(model_file, here, tmp_path, capsys):
    description = folder_set(tmp_path / "set")
    for path in (tmp_path / "set" / "val" / "depth").iterdir():
        Image.fromarray(np.zeros(picture().shape[:2], np.uint16)).save(path)
    line = refused(capsys, evaluate, f"--checkpoint={model_file}", "--dataset=folder", f"--path={description}")
    assert "no image has a valid pixel under protocol whole" in line


def test_what_memory_cannot_take_is_refused_before_it_runs(run, model_file, here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free", lambda: 1000)
    description = folder_set(tmp_path / "set")
    for arguments in (
        (f"--workdir={run}",),
        (f"--checkpoint={model_file}", f"--path={description}", "--batch=2"),
        (f"--checkpoint={model_file}", f"--path={description}", "--align=disparity"),
    ):
        line = refused(capsys, evaluate, *arguments)
        assert " pixels need " in line and "GiB are free; take a smaller --batch" in line
    assert not list(here.iterdir()) and not (run / "evaluation_best.json").exists()


def test_a_weights_file_is_not_a_workdir(model_file, tmp_path, capsys):
    for out in ((), (f"--out={tmp_path}/x.json",)):
        line = refused(capsys, evaluate, f"--workdir={model_file}", *out)
        assert line.startswith("error: --workdir: ") and "is not a run; use --checkpoint with --dataset" in line


def test_flags_of_the_other_kind_of_checkpoint_are_refused(run, model_file, here, capsys):
    for path in (f"--workdir={run}",), (f"--checkpoint={run}", "--dataset=rooms"):
        assert "leave --model out" in refused(capsys, evaluate, *path, "--model=dinov2_vits14_nyu_dpt")
    line = refused(capsys, evaluate, f"--checkpoint={model_file}", "--dataset=rooms", "--kind=last")
    assert "is not a run, so it has no last checkpoint; leave --kind out" in line
    assert not list(here.iterdir())
