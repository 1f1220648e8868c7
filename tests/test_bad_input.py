"""Training on data, weights and workdirs that are wrong: one line, exit code 2, nothing written or lost."""

import fcntl
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_config import ROOT
from tiny_run import SHORT, call, folder_set, picture, refused, save_backbone
from weights_files import depth_anything_shapes, empty_tensors, write_zip

from jdepth import checkpoint, inputs, logbook, main, predict, train, weights
from jdepth.data import order

# ml_collections reads config files with load_module.
pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.filterwarnings("ignore:the load_module")]

TINY = f"--config={ROOT}/tests/tiny_config.py"
NYU_MIX6 = f"--config={ROOT}/configs/nyu_mix6.py"


def overrides(**changes) -> list[str]:
    return [f"--config.{key}={value}" for key, value in changes.items()]


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Start a tiny run in tmp_path/run that must fail; gives its line of error. Nothing may be written."""
    monkeypatch.chdir(tmp_path)

    def started(*arguments, config=TINY, **changes) -> str:
        before = sorted(tmp_path.rglob("*"))
        line = refused(capsys, main, config, "--config.workdir=run", *arguments, *overrides(**SHORT, **changes))
        assert sorted(tmp_path.rglob("*")) == before
        return line

    return started


def on_folder(description, **changes) -> dict:
    """Changes of the tiny config to depth alone, read from a folder."""
    return {
        "alpha": 1.0,
        "data.depth.name": "folder",
        "data.depth.path": description,
        "data.depth.augmentation.crop": "(28, 42)",
        "evaluate.protocol": "whole",
    } | changes


# ---- Data ---------------------------------------------------------------------------------------------


def test_the_papers_data_is_not_there(start):
    line = start(config=NYU_MIX6)
    assert "data not found: nyu, ade20k, sun37, cityscapes34, coco_stuff, voc21, context59; expected" in line
    assert "data/nyu," in line and "jdepth.prepare nyu" in line and "README" in line
    assert "expected elsewhere/nyu;" in start(config=NYU_MIX6, data_dir="elsewhere", alpha=1.0)


def test_unknown_names(start):
    assert "unknown data set 'roms' (did you mean 'rooms'?)" in start(**{"data.depth.name": "roms"})
    assert "unknown data set 'roms'" in start(**{"data.auxiliary.name": "roms"})
    assert "mix6 is a mixture for the auxiliary task" in start(**{"data.depth.name": "mix6"})
    assert "unknown evaluation protocol 'rums' (did you mean 'rooms'?)" in start(**{"evaluate.protocol": "rums"})
    assert "no split 'vel'" in start(**{"evaluate.split": "vel"})
    assert 'backbone "vit_nan14" is unknown: did you mean "vit_nano14"?' in start(**{"backbone.name": "vit_nan14"})
    assert "set rooms and rooms_size" in start(**{"data.depth.rooms": 0})


def test_a_protocol_that_does_not_fit_is_told_before_the_first_step(start):
    line = start(**{"evaluate.protocol": "nyu"})
    assert "protocol 'nyu' is defined for depth maps of 480x640" in line and "got 48x64" in line


def test_a_crop_larger_than_the_images_is_told_before_anything_is_written(start):
    line = start(**{"data.depth.augmentation.crop": "(64, 64)"})
    assert "crop" in line and "48" in line and "64" in line


def test_depth_in_other_units_is_told_before_anything_is_written(start, tmp_path):
    description = folder_set(tmp_path / "set")
    fields = json.loads(description.read_text())
    fields["depth"]["scale"] = 1
    description.write_text(json.dumps(fields))
    assert "batches: no valid pixel; are scale, formula, invalid and max right" in start(**on_folder(description))
    del fields["depth"]["max"]
    description.write_text(json.dumps(fields))
    line = start(**on_folder(description))
    assert "depth of the first batch: median" in line and "is scale or formula right" in line


@pytest.mark.parametrize("metres, near", [(0.07, True), (2.0, False)])
def test_depth_that_is_strangely_near_is_said(metres, near):
    """It may be right: whoever trains sees it in the first line."""
    said = train._depth_range(lambda number: {"depth": {"depth": np.full((1, 2, 2), metres)}}, {"min": 0.001, "max": 10.0})
    assert said.startswith(f"depth of the first batch: median {metres:.4g} m") and ("is scale or formula" in said) == near


def test_a_folder_one_level_off(start, tmp_path):
    description = folder_set(tmp_path / "outer" / "set")
    assert "config.data.depth.path: name the dataset.json of your own images" in start(**on_folder(""))
    assert "or train depth only with config.alpha=1" in start(**{"data.auxiliary.name": "folder"})
    for wrong in (tmp_path / "outer", tmp_path / "outer" / "set" / "train"):
        line = start(**on_folder(wrong))
        assert f"no dataset.json in {wrong}; there is one at {description}" in line
    assert "not found: nothere" in start(**on_folder("nothere"))
    fields = json.loads(description.read_text())
    description.write_text(json.dumps(fields | {"root": ".."}))
    line = start(**on_folder(description))
    assert f"is root one level off? Set root to {tmp_path / 'outer' / 'set'}" in line


def test_files_that_are_wrong_from_the_start(start, tmp_path):
    description = folder_set(tmp_path / "set")
    rgb, depth = (tmp_path / "set" / "train" / kind / "a1.png" for kind in ("rgb", "depth"))
    whole = rgb.read_bytes()
    rgb.write_text("not an image")
    assert f"{rgb} is not an image file" in start(**on_folder(description))
    Image.fromarray(picture(height=60)).save(rgb)
    line = start(**on_folder(description))
    assert f"image {rgb} is 60x42" in line and f"depth {depth} is 30x42" in line
    rgb.write_bytes(whole)
    depth.unlink()
    assert "1 of 4 depth files of split 'train' not found" in start(**on_folder(description))
    description.write_text("{")
    assert f"{description} is not JSON" in start(**on_folder(description))


def test_data_that_turns_out_wrong_while_training(tmp_path, monkeypatch, capsys):
    """A truncated image in the middle: found before the first step in a small set, with nothing written;
    in a larger one the last checkpoint stays, and mending it lets the run go on."""
    monkeypatch.chdir(tmp_path)
    description = folder_set(tmp_path / "set")
    broken = tmp_path / "set" / "train" / "rgb" / f"a{order.Shuffled(4, 0, 'depth order')[3]}.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) * 3 // 4])
    changes = SHORT | {"steps": 6, "evaluate.every": 6, "batch.depth": 1, "workdir": "run"}
    arguments = (TINY, *overrides(**changes, **on_folder(description)))
    assert f"{broken} is damaged: the file ends early" in refused(capsys, main, *arguments)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(inputs, "READ_BEFORE_START", 0)
    assert f"{broken} is damaged: the file ends early" in refused(capsys, main, *arguments)
    saved = checkpoint.steps(tmp_path / "run", "last")
    assert saved == [3]
    assert [row["step"] for row in logbook.read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    broken.write_bytes(whole)
    assert call(main, *arguments) == 0
    assert "going on from step 3 of 6" in capsys.readouterr().out
    rows = [row["step"] for row in logbook.read_rows(tmp_path / "run" / "metrics.jsonl") if "depth/loss" in row]
    assert rows == [1, 2, 3, 4, 5, 6]
    assert checkpoint.steps(tmp_path / "run", "last") == [6]


def test_a_mixture_takes_no_description_of_its_own(start, tmp_path):
    description = folder_set(tmp_path / "set")
    given = on_folder(description) | {"data.auxiliary.name": "mix6", "data.auxiliary.path": description, "alpha": 0.9}
    assert "config.data.auxiliary.path: mix6 is a mixture" in start(**given)


def test_a_label_out_of_range(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    description = folder_set(tmp_path / "set")
    for path in (tmp_path / "set" / "train" / "label").iterdir():
        Image.fromarray(np.full(picture().shape[:2], 7, np.uint8)).save(path)
    given = {"data.auxiliary.name": "folder", "data.auxiliary.path": description, "data.auxiliary.split": "train"}
    line = refused(capsys, main, TINY, *overrides(**SHORT, workdir="run", **given))
    assert "holds the value 7, which is no class: 'made' has 3 classes" in line
    assert str(tmp_path / "set" / "train" / "label") in line
    assert checkpoint.steps(tmp_path / "run", "last") == []


def test_a_task_without_its_labels(start, tmp_path):
    description = folder_set(tmp_path / "set")
    fields = json.loads(description.read_text())
    del fields["label"]
    description.write_text(json.dumps(fields))
    given = {"data.auxiliary.name": "folder", "data.auxiliary.path": description, "data.auxiliary.split": "train"}
    line = start(**given)
    assert "'made' has no label; it has depth" in line


# ---- Weights ------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit(start, tmp_path, model_file):
    def frozen(path, name="vit_pico14"):
        return start(**{"backbone.train": "frozen", "backbone.weights": path, "backbone.name": name})

    assert "config.backbone.weights: a frozen vit_pico14 needs its weights" in frozen("")
    assert "config.backbone.weights: nothere.pth: no such file" in frozen("nothere.pth")
    (tmp_path / "finished" / "checkpoints").mkdir(parents=True)
    assert "is a run, expected a weights file" in frozen(tmp_path / "finished")
    pico = save_backbone(tmp_path / "pico.safetensors")
    assert f"{pico}: belongs to the backbone vit_pico14, expected vit_nano14" in frozen(pico, "vit_nano14")
    head = weights.load(model_file)
    parts = {name: head.params[name] for name in ("decoder", "depth_head")}
    weights.save(tmp_path / "head.safetensors", parts, head.info)
    line = frozen(tmp_path / "head.safetensors")
    assert "holds tiny_dpt (decoder and depth head), expected backbone" in line
    (tmp_path / "text.pth").write_text("not weights")
    assert str(tmp_path / "text.pth") in frozen(tmp_path / "text.pth")


class Hostile:
    """A pickle that runs a command when it is loaded carelessly."""

    def __reduce__(self):
        return os.mkdir, ("pickle_was_executed",)


def test_a_hostile_pickle_is_not_executed(start, tmp_path):
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    path.write_bytes(pickle.dumps({"state": Hostile()}))
    line = start(**{"backbone.train": "frozen", "backbone.weights": path})
    assert str(path) in line
    assert not (tmp_path / "pickle_was_executed").exists()


def test_init_from_nothing(start):
    assert start(init_from="nothere") == "error: config.init_from: nothere: no such file or folder"


@pytest.mark.slow
def test_init_from_another_size(start, tmp_path):
    pico = save_backbone(tmp_path / "pico.safetensors")
    line = start(**{"init_from": pico, "backbone.name": "vit_nano14", "alpha": 1.0})
    assert "nothing in the weights to start from fits this model" in line


@pytest.mark.parametrize(
    "name", [pytest.param("depth_anything_v2_vits.pth", marks=pytest.mark.slow), "a_name_that_says_nothing.pth"]
)
def test_init_from_a_depth_anything_model(start, tmp_path, name):
    """Its decoder and head are of another kind; its encoder is taken elsewhere."""
    file = write_zip(tmp_path / name, empty_tensors(depth_anything_shapes("s")))
    for backbone in ("vit_pico14", "dinov2_vits14"):
        line = start(**{"init_from": file, "backbone.name": backbone, "alpha": 1.0})
        assert f"config.init_from: {file} is of the family depth_anything" in line
        assert "give the file as config.backbone.weights" in line


# ---- Workdirs -----------------------------------------------------------------------------------------


def test_a_workdir_of_another_config(run, tmp_path, capsys):
    before = (run / "config.json").read_bytes()
    arguments = overrides(**SHORT | {"steps": 4, "alpha": 0.5, "workdir": run})
    line = refused(capsys, main, TINY, *arguments)
    assert f"{run}: holds a run of another config (alpha=0.9 there, 0.5 here; steps=2 there, 4 here)" in line
    assert (run / "config.json").read_bytes() == before
    assert checkpoint.steps(run, "last") == [2]


def test_a_finished_run_is_left_as_it_is(run, tmp_path, capsys):
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)
    rows = (copy / "metrics.jsonl").read_bytes()
    assert call(main, TINY, *overrides(**SHORT, workdir=copy)) == 0
    assert "going on from step 2 of 2" in capsys.readouterr().out
    assert (copy / "metrics.jsonl").read_bytes() == rows
    assert checkpoint.steps(copy, "last") == [2]


def test_a_run_goes_on_without_the_files_that_it_began_with(run, tmp_path, capsys):
    copy, gone = tmp_path / "tiny", tmp_path / "gone.pth"
    shutil.copytree(run, copy)
    first_files = {"init_from": gone, "backbone.weights": gone}
    assert call(main, TINY, *overrides(**SHORT, workdir=copy, **first_files)) == 0
    assert "going on from step 2 of 2" in capsys.readouterr().out
    assert json.loads((copy / "config.json").read_text())["init_from"] == str(gone)


def test_a_corrupted_config_json(run, tmp_path, capsys):
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)
    for content in ("", "{", '{"alpha": 0.9}'):
        (copy / "config.json").write_text(content)
        line = refused(capsys, main, TINY, *overrides(**SHORT, workdir=copy))
        assert str(copy / "config.json") in line
        assert (copy / "config.json").read_text() == content and checkpoint.steps(copy, "last") == [2]


def test_a_run_does_not_go_on_with_other_data(quick, tmp_path, capsys):
    description = folder_set(tmp_path / "set")
    given = overrides(**SHORT, workdir=tmp_path / "run", alpha=1.0, **{
        "data.depth.name": "folder", "data.depth.path": description, "evaluate.protocol": "whole",
        "evaluate.input_size": (28, 42), "evaluate.split": "val", "data.depth.augmentation.crop": (28, 42),
    })  # fmt: skip
    assert call(main, TINY, *given) == 0, capsys.readouterr().err
    for kind in ("rgb", "depth", "label"):
        shutil.copy(tmp_path / f"set/train/{kind}/a0.png", tmp_path / f"set/train/{kind}/b0.png")
    line = refused(capsys, main, TINY, *given)
    assert "depth/made is not what this run was started with (then 4 " in line and "now 5 " in line
    for kind in ("rgb", "depth", "label"):
        (tmp_path / f"set/train/{kind}/b0.png").unlink()
    assert call(main, TINY, *given) == 0
    # As many, but another image; then the same of what is scored.
    for split, use in (("train", "depth"), ("val", "evaluation")):
        for old, new in (("a0", "z0"), ("z0", "a0")):
            for kind in ("rgb", "depth", "label"):
                (tmp_path / f"set/{split}/{kind}/{old}.png").rename(tmp_path / f"set/{split}/{kind}/{new}.png")
            if new == "z0":
                assert f"{use}/made is not what this run was started with" in refused(capsys, main, TINY, *given)


def test_a_few_damaged_images_are_left_out_where_the_config_allows(quick, tmp_path, capsys):
    description = folder_set(tmp_path / "set", train_images=6)
    damaged = tmp_path / "set/train/rgb/a2.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    given = {
        "data.depth.name": "folder", "data.depth.path": description, "evaluate.protocol": "whole",
        "evaluate.input_size": (28, 42), "evaluate.split": "val", "data.depth.augmentation.crop": (28, 42),
    }  # fmt: skip
    strict = overrides(**SHORT, workdir=tmp_path / "strict", alpha=1.0, **given)
    assert "a2.png" in refused(capsys, main, TINY, *strict)
    lenient = {**given, "data.bad_share": 0.2}
    run = overrides(**{**SHORT, "steps": 6}, workdir=tmp_path / "run", alpha=1.0, **lenient)
    for _ in range(2):
        assert call(main, TINY, *run) == 0, capsys.readouterr().err
    (line,) = (tmp_path / "run/bad_items.txt").read_text().splitlines()
    assert "made: a2 is left out" in line


@pytest.mark.parametrize("harm", ["no arrays", "cut", "no description"])
def test_a_damaged_checkpoint_is_named(run, tmp_path, harm, capsys):
    copy, photo = tmp_path / "tiny", tmp_path / "photo.png"
    shutil.copytree(run, copy)
    Image.fromarray(picture()).save(photo)
    for kind, place in (("last", "params"), ("best", "")):
        (step,) = (path for path in (copy / "checkpoints" / kind).iterdir() if path.name.isdigit())
        arrays = step / place
        for path in sorted(path for path in arrays.rglob("*") if path.is_file()):
            if harm == "no arrays":
                path.unlink()
            elif harm == "cut":
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            elif path.name == "_METADATA":
                path.write_text("nonsense")
        line = refused(capsys, predict, f"--checkpoint={copy}", f"--kind={kind}", f"--out={tmp_path / 'out'}", photo)
        assert str(step) in line and "damaged" in line
    before = sorted(copy.rglob("*"))
    line = refused(capsys, main, TINY, *overrides(**SHORT, workdir=copy))
    assert "damaged" in line and sorted(copy.rglob("*")) == before


def test_workdirs_that_are_none(start, tmp_path):
    (tmp_path / "run").write_text("mine")
    assert "config.workdir: run is a file; name a folder" in start()
    (tmp_path / "run").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    assert "config.workdir: run has files but no config.json of a run; name a new folder" in start()
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_a_workdir_below_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = refused(capsys, main, TINY, *overrides(**SHORT, workdir=tmp_path / "file" / "run"))
    assert str(tmp_path / "file") in line and (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_workdir_without_permission(tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    line = refused(capsys, main, TINY, *overrides(**SHORT, workdir=tmp_path / "closed" / "run"))
    assert "Permission denied: check the path" in line


def test_two_runs_in_one_workdir(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        line = refused(capsys, main, TINY, *overrides(**SHORT, workdir="run"))
    assert "run: another run is writing there" in line
