"""Prediction: every kind of image, what is written, what is refused, and the same from Python."""

import json
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image
from test_images import HOSTILE
from tiny_run import HEIGHT, WIDTH, call, picture, refused, save_backbone

import jdepth
from jdepth import memory, predict, predictor, results, scoring
from jdepth.errors import UserError
from jdepth.models import resize

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def model(model_file):
    return jdepth.load(model_file)


@pytest.fixture
def photos(tmp_path):
    """A folder of three images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, suffix in enumerate(("png", "jpg", "bmp")):
        Image.fromarray(picture(number)).save(folder / f"{number}.{suffix}")
    (folder / "notes.txt").write_text("no image")
    return folder


def written(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


# ---- From Python --------------------------------------------------------------------------------------


def test_depth_is_float32_metres_at_the_images_size(model):
    prediction = model(picture())
    depth = prediction.values
    assert (prediction.kind, prediction.unit) == ("metric depth", "m")
    assert depth.shape == (HEIGHT, WIDTH) and depth.dtype == np.float32
    assert model.min_depth <= depth.min() < depth.max() <= model.max_depth == 10.0


def test_path_picture_and_array_agree(model, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    expected = model(picture()).values
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(picture())):
        np.testing.assert_array_equal(model(given), expected)


def test_flip_averages_with_the_mirror_image(model):
    mirrored = model(picture()[:, ::-1]).values[:, ::-1]
    np.testing.assert_allclose(model(picture(), flip=True).values, (model(picture()).values + mirrored) / 2, atol=1e-5)


def test_a_run_predicts_at_its_training_area(run):
    model = predictor.load(run)
    assert model.config is not None and model.preparation.area == 48 * 64
    depth = model(picture(height=60, width=84)).values
    assert depth.shape == (60, 84) and depth.dtype == np.float32
    assert model.name == "tiny (best)" and predictor.load(run, kind="last").name == "tiny (last)"
    assert len(repr(model)) < 10_000, "parameters are not part of it"


def test_rooms_size_is_that_of_rooms_only(run):
    config = predictor.load(run).config
    assert predictor.trained_size(config) == (48, 64)
    depth = config["data"]["depth"] | {"name": "folder"}
    assert predictor.trained_size(config | {"data": config["data"] | {"depth": depth}}) is None


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)  # fmt: skip
def test_wrong_arrays_are_refused(model, array):
    with pytest.raises(UserError, match="expected .H, W, 3. uint8 RGB"):
        model(array)


def test_wrong_things_are_refused(model):
    with pytest.raises(UserError, match="image of type list"):
        model([1, 2])


# ---- Images as they come ------------------------------------------------------------------------------


def test_tiny_and_narrow_images(model):
    assert model(picture(height=1, width=1)).values.shape == (1, 1)
    assert model(picture(height=1, width=90)).values.shape == (1, 90)


def test_the_command_tells_of_an_animation_once(model_file, tmp_path, caplog):
    frames = [Image.fromarray(picture(n)) for n in range(2)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    assert call(predict, f"--checkpoint={model_file}", f"--out={tmp_path}/out", tmp_path / "a.webp") == 0
    assert caplog.text.count("a.webp: the first of 2 frames is used") == 1


def test_enormous_images(model_file, tmp_path, capsys):
    """A long strip is predicted; 400 megapixels, more than Pillow opens, are refused by name."""
    Image.new("1", (20_000, 20_000)).save(tmp_path / "square.png")
    Image.fromarray(picture(height=20, width=20_000)).save(tmp_path / "strip.png")
    arguments = (f"--checkpoint={model_file}", f"--out={tmp_path}/out", tmp_path / "square.png", tmp_path / "strip.png")
    assert call(predict, *arguments) == 2
    assert "square.png: has more than 178 megapixels; make it smaller" in capsys.readouterr().err
    assert np.load(tmp_path / "out" / "strip_depth.npy").shape == (20, 20_000)


def test_what_memory_cannot_take_is_refused_before_it_runs(model_file, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free", lambda: 1000)
    assert call(predict, f"--checkpoint={model_file}", f"--out={tmp_path}/out", photos / "0.png") == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {photos / '0.png'}: 1 × {HEIGHT}x{WIDTH} pixels need ")
    assert "GiB are free; take a smaller --batch" in line
    assert not (tmp_path / "out").exists()


def test_a_batch_that_memory_cannot_hold_is_read_in_parts(model_file, photos, tmp_path, monkeypatch, capsys):
    """Two images are as much as there is room for: more are not read at once, whatever --batch says."""
    monkeypatch.setattr(memory, "free_on_host", lambda: 2 * picture().nbytes - 1)
    monkeypatch.setattr(memory, "free", lambda: 1000)
    assert call(predict, f"--checkpoint={model_file}", f"--out={tmp_path}/out", "--batch=64", photos) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"0.png and 1 more: 2 × {HEIGHT}x{WIDTH} pixels need" in first
    assert f"2.bmp: 1 × {HEIGHT}x{WIDTH} pixels need" in second


def test_free_memory_is_told():
    assert memory.free() is None or 2**20 < memory.free() < 2**50


def test_old_sizes_are_forgotten(model_file, monkeypatch):
    compiled = []
    monkeypatch.setattr(scoring, "MOST_COMPILED", 2)
    monkeypatch.setattr(memory, "check", lambda program, rows, size, name: compiled.append(size[1]))
    model = jdepth.load(model_file)
    first = model(picture(height=14, width=14))
    for width in (15, 15, 16, 16, 14, 16):
        assert model(picture(height=14, width=width)).values.shape == (14, width)
    assert compiled == [14, 15, 16, 14]
    np.testing.assert_array_equal(model(picture(height=14, width=14)), first)


def test_resizing_to_many_sizes_keeps_no_matrices():
    depth = jax.ShapeDtypeStruct((1, 400, 400, 1), np.float32)
    tracemalloc.start()
    try:
        for more in range(10):
            size = (4000 + more, 3000 + more)
            assert jax.eval_shape(lambda x: resize.bilinear(x, size, False), depth).shape == (1, *size, 1)
        assert tracemalloc.get_traced_memory()[0] < 20e6, "the matrices of one size have 22 MB"
    finally:
        tracemalloc.stop()


# ---- What the command writes --------------------------------------------------------------------------


def test_one_image(model_file, photos, tmp_path, capsys, model):
    out = tmp_path / "new" / "out"
    assert call(predict, f"--checkpoint={model_file}", f"--out={out}", photos / "0.png") == 0
    assert written(out) == ["0_colour.png", "0_depth.npy", "0_depth.png"]
    depth = np.load(out / "0_depth.npy")
    np.testing.assert_array_equal(depth, model(photos / "0.png"))
    assert depth.dtype == np.float32 and depth.shape == (HEIGHT, WIDTH)
    with Image.open(out / "0_depth.png") as png:
        assert png.text == {"unit": "metres = value / scale", "scale": "1000", "kind": "metric depth"}
        values = np.asarray(png)
    assert values.dtype == np.uint16
    np.testing.assert_allclose(values / 1000, depth, atol=0.5001e-3)
    with Image.open(out / "0_colour.png") as coloured:
        assert coloured.mode == "RGB" and coloured.width > WIDTH and coloured.height >= HEIGHT
        assert len(np.unique(np.asarray(coloured).reshape(-1, 3), axis=0)) > 10
    printed = capsys.readouterr().out
    assert "1/1" in printed and "metres = value / 1000" in printed and "ETA 0 s" in printed


@pytest.mark.parametrize(
    "max_depth, scale",
    [(10.0, 1000), (65.0, 1000), (80.0, 256), (300.0, 218.45), (4e4, 1.63837), (1e5, 0.65535), (7e37, 9.36214e-34)],
)
def test_far_ranges_use_another_scale(tmp_path, max_depth, scale):
    depth = np.linspace(0.1, max_depth, 20, dtype=np.float32).reshape(4, 5)
    assert results.write(tmp_path, "a", predictor.Prediction(depth, "metric depth"), max_depth) == scale
    with Image.open(tmp_path / "a_depth.png") as png:
        assert float(png.text["scale"]) == scale
        values = np.asarray(png)
    assert values[0, 0] > 0 and values[-1, -1] > 9_000
    np.testing.assert_allclose(values.ravel()[1:] / scale, depth.ravel()[1:], atol=0.51 / scale)


def test_folder_pattern_and_flip(model_file, photos, tmp_path):
    out = tmp_path / "folder"
    assert call(predict, f"--checkpoint={model_file}", f"--out={out}", photos) == 0
    assert len(written(out)) == 10 and {"0_depth.png", "1_depth.png", "2_depth.png", "sheet.png"} <= set(written(out))
    out = tmp_path / "pattern"
    assert call(predict, f"--checkpoint={model_file}", f"--out={out}", "--flip", f"{photos}/*.[pj]*g") == 0
    assert len(written(out)) == 7
    mean = np.load(out / "0_depth.npy")
    assert not np.array_equal(mean, np.load(tmp_path / "folder" / "0_depth.npy"))


def test_a_runs_checkpoint(run, photos, tmp_path, capsys):
    assert call(predict, f"--checkpoint={run}", f"--out={tmp_path}/out", "--kind=last", photos / "0.png") == 0
    assert len(written(tmp_path / "out")) == 3
    step = next((run / "checkpoints" / "best").iterdir())
    line = refused(capsys, predict, f"--checkpoint={step}", f"--out={tmp_path}/inner", photos / "0.png")
    assert f"lies within a run; name the run's folder {run}" in line
    assert not (tmp_path / "inner").exists()


def test_names(tmp_path):
    folder = tmp_path / "a"
    assert predict.output_names([folder / "x.png", folder / "y.png"]) == ["x", "y"]
    assert predict.output_names([folder / "x.png", folder / "x.jpg"]) == ["x.png", "x.jpg"]
    for others in ([tmp_path / "b" / "x.png"], [folder / "x.jpg", folder / "x.png.gif"]):
        with pytest.raises(UserError, match="two images named x.png"):
            predict.output_names([folder / "x.png", *others])


def test_find_images(photos, monkeypatch):
    assert [p.name for p in predict.find_images([str(photos)])] == ["0.png", "1.jpg", "2.bmp"]
    assert len(predict.find_images([str(photos), str(photos / "0.png"), f"{photos}/*.png"])) == 3, "each image once"
    (photos / "odd[1].png").write_bytes((photos / "0.png").read_bytes())
    assert predict.find_images([str(photos / "odd[1].png")]) == [photos / "odd[1].png"]
    (photos / "folder.png").mkdir()
    assert photos / "folder.png" not in predict.find_images([str(photos)])
    monkeypatch.chdir(photos)
    assert len(predict.find_images(["**/*.jpg"])) == 1


# ---- What it refuses ----------------------------------------------------------------------------------


def test_bad_images_do_not_stop_the_others(model_file, photos, tmp_path, capsys):
    whole = (photos / "0.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.jpg").write_bytes(b"")
    HOSTILE["ztxt.png"](photos / "long.png")
    (photos / "text.png").write_text("not an image")
    out = tmp_path / "out"
    assert call(predict, f"--checkpoint={model_file}", f"--out={out}", photos) == 2
    assert len(written(out)) == 10
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") for line in errors)
    for name, line in zip(("cut.png", "empty.jpg", "long.png", "text.png"), errors, strict=True):
        assert str(photos / name) in line


def test_nothing_is_written_for_a_bad_image(model_file, tmp_path, capsys):
    (tmp_path / "a.png").write_text("not an image")
    out = tmp_path / "out"
    line = refused(capsys, predict, f"--checkpoint={model_file}", f"--out={out}", tmp_path / "a.png")
    assert line == f"error: {tmp_path / 'a.png'}: not an image file"
    assert not out.exists()


def test_arguments_are_asked_for(model_file, photos, tmp_path, capsys):
    checkpoint, out = f"--checkpoint={model_file}", f"--out={tmp_path / 'out'}"
    assert "--checkpoint: name a run's workdir" in refused(capsys, predict, out, photos)
    assert "--out: name the folder" in refused(capsys, predict, checkpoint, photos)
    assert "name at least one image" in refused(capsys, predict, checkpoint, out)
    for nothing in (tmp_path / "nothere.png", tmp_path / "*.gif", tmp_path):
        assert f"{nothing}: no image found" in refused(capsys, predict, checkpoint, out, nothing)
    assert "--kind" in refused(capsys, predict, checkpoint, out, "--kind=newest", photos)
    assert not (tmp_path / "out").exists()


def test_out_is_checked_before_anything_is_computed(photos, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    line = refused(capsys, predict, "--checkpoint=unread", f"--out={tmp_path / 'file'}", photos)
    assert line == f"error: --out: {tmp_path / 'file'} is a file; name a folder"
    assert (tmp_path / "file").read_text() == "mine"
    # A depth map of the user's beside the images must not be overwritten by ours.
    line = refused(capsys, predict, "--checkpoint=unread", f"--out={photos}", photos / "0.png")
    assert "holds 0.png itself" in line
    assert len(written(photos)) == 4
    line = refused(capsys, predict, f"--checkpoint={tmp_path}/file", f"--out={tmp_path}/file/sub", photos)
    assert "error: " in line and not list(tmp_path.glob("**/*_depth.*"))


def test_a_full_disk_is_told(model_file, photos, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError("19200 requested and 992 written")  # NumPy's, which has no error number

    monkeypatch.setattr(results.np, "save", full)
    line = refused(capsys, predict, f"--checkpoint={model_file}", f"--out={tmp_path}/out", photos / "0.png")
    assert line == f"error: --out: cannot write to {tmp_path}/out (19200 requested and 992 written)"


def test_checkpoints_that_are_none(photos, tmp_path, capsys):
    def line(path, *more):
        found = refused(capsys, predict, f"--checkpoint={path}", f"--out={tmp_path}/out", *more, photos / "0.png")
        assert not (tmp_path / "out").exists() and str(path) in found
        return found

    assert "no such file or folder; expected a run's workdir" in line(tmp_path / "nothere")
    assert "folder without weights" in line(photos)
    line(photos / "0.png")
    backbone = save_backbone(tmp_path / "backbone.safetensors")
    assert "holds the backbone vit_pico14 only" in line(backbone)


def test_a_run_whose_config_was_edited(run, photos, tmp_path, capsys):
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["decoder"]["channels"] = 16
    (copy / "config.json").write_text(json.dumps(config))
    line = refused(capsys, predict, "--checkpoint", copy, photos, "--out", tmp_path / "out")
    assert f"{copy}: its checkpoint is not of the model in its config.json" in line and "expected" in line


def test_parts_that_do_not_belong_together(model_file, run, photos, tmp_path, capsys):
    backbone = save_backbone(tmp_path / "backbone.safetensors")
    for path in (model_file, run):
        with pytest.raises(UserError, match="leave --backbone out"):
            predictor.load(path, backbone=backbone)
    with pytest.raises(UserError, match="leave --model out"):
        predictor.load(run, model="dinov2_vits14_nyu_dpt")
    with pytest.raises(UserError, match="no last checkpoint; leave --kind out"):
        predictor.load(model_file, kind="last")
    with pytest.raises(UserError, match="choose best or last"):
        predictor.load(run, kind="newest")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    (tmp_path / "begun" / "config.json").write_bytes((run / "config.json").read_bytes())
    with pytest.raises(UserError, match="has the run saved one yet"):
        predictor.load(tmp_path / "begun")
    (tmp_path / "begun" / "checkpoints" / "last" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="use --kind last"):
        predictor.load(tmp_path / "begun")
