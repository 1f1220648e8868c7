"""Prediction of videos, batches, sheets and point clouds by the command."""

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_run import HEIGHT, WIDTH, call, picture, refused

from jdepth import memory, predict, predictor, video
from jdepth.errors import UserError

pytestmark = pytest.mark.usefixtures("quick")
FRAMES = 5


@pytest.fixture
def clip(tmp_path):
    """A short video of smooth pictures, which compression leaves nearly alone."""
    path = tmp_path / "clip.mp4"
    writer = video.Writer(path, 10.0, (HEIGHT, WIDTH))
    for number in range(FRAMES):
        writer.add(smooth(number))
    writer.close()
    return path


def smooth(number):
    """Red grows to the right, green downwards; blue is the same everywhere."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    channels = [columns * 100 / WIDTH, rows * 100 / HEIGHT, np.full(rows.shape, 130)]
    return (np.stack(channels, -1) + 20 * number).astype(np.uint8)


def test_frames_are_read_in_order(clip):
    about = video.info(clip)
    assert (about.frames, about.rate, about.size) == (FRAMES, 10.0, (HEIGHT, WIDTH))
    frames = list(video.frames(clip))
    assert len(frames) == FRAMES
    for number, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - smooth(number)).mean((0, 1)).max() < 6  # of each channel


def test_videos_are_written_in_their_colours(clip):
    """As another reader sees it: blue, green and red, the first row on top."""
    capture = cv2.VideoCapture(str(clip))
    read, frame = capture.read()
    capture.release()
    assert read and np.abs(frame[..., ::-1].astype(int) - smooth(0)).mean((0, 1)).max() < 6


@pytest.mark.parametrize("batch", [1, 2, 100_000])
def test_a_video(model_file, clip, tmp_path, capsys, batch):
    out = tmp_path / "out"
    arguments = (f"--checkpoint={model_file}", f"--out={out}", f"--batch={batch}", "--frames", clip)
    assert call(predict, *arguments) == 0
    assert f"{FRAMES} frames" in capsys.readouterr().out
    assert sorted(p.name for p in out.iterdir()) == ["clip", "clip_colour.mp4"]
    assert sorted(p.name for p in (out / "clip").iterdir()) == [f"{n:06d}_depth.png" for n in range(FRAMES)]
    assert len(list(video.frames(out / "clip_colour.mp4"))) == FRAMES
    model = predictor.load(model_file)
    for number, frame in enumerate(video.frames(clip)):
        with Image.open(out / "clip" / f"{number:06d}_depth.png") as png:
            stored = np.asarray(png) / float(png.text["scale"])
        np.testing.assert_allclose(stored, model(frame).values, atol=1e-3)


def test_broken_videos_are_told(model_file, clip, tmp_path, capsys):
    whole = clip.read_bytes()
    bad = {"empty.mp4": b"", "text.avi": b"no video" * 100, "cut.mp4": whole[: len(whole) // 3]}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: not a readable video"):
            list(video.frames(tmp_path / name))
    out = tmp_path / "out"
    assert call(predict, f"--checkpoint={model_file}", f"--out={out}", tmp_path / "text.avi", clip) == 2
    assert "text.avi: not a readable video" in capsys.readouterr().err
    assert (out / "clip_colour.mp4").exists(), "the others go on"
    with pytest.raises(UserError, match="no such file"):
        video.info(tmp_path / "nothere.mp4")


def test_a_broken_video_is_told_in_one_line(model_file, tmp_path, capfd):
    """Nothing from FFmpeg or OpenCV beside it."""
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(100_000))
    capfd.readouterr()
    assert call(predict, f"--checkpoint={model_file}", f"--out={tmp_path / 'out'}", tmp_path / "a.mp4") == 2
    assert capfd.readouterr().err == f"error: {tmp_path / 'a.mp4'}: not a readable video\n"


def test_a_video_that_could_not_be_written_whole_is_told(model_file, clip, tmp_path, monkeypatch, capsys):
    """OpenCV writes on when the disk is full, and leaves a file that cannot be played."""
    class Full(video.Writer):
        def close(self):
            self._writer.release()
            self._path.write_bytes(self._path.read_bytes()[:200])
            self._writer = cv2.VideoWriter()
            super().close()

    monkeypatch.setattr(video, "Writer", Full)
    line = refused(capsys, predict, f"--checkpoint={model_file}", f"--out={tmp_path / 'out'}", clip)
    assert "clip_colour.mp4: could not be written to its end; is there free space?" in line
    assert not (tmp_path / "out" / "clip_colour.mp4").exists()


def test_a_batch_of_frames_that_memory_cannot_hold(model_file, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "free", lambda: 1000)
    line = refused(capsys, predict, f"--checkpoint={model_file}", f"--out={tmp_path / 'out'}", "--batch=64", clip)
    assert f"{clip}: {FRAMES} × {HEIGHT}x{WIDTH} pixels need" in line


def test_batches_of_one_size(model_file, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, width in enumerate((WIDTH, WIDTH - 9, WIDTH, WIDTH, WIDTH - 9)):
        Image.fromarray(picture(number, HEIGHT, width)).save(folder / f"{number}.png")
    for batch in (1, 2):
        assert call(predict, f"--checkpoint={model_file}", f"--out={tmp_path / str(batch)}", f"--batch={batch}", folder) == 0
    for number in range(5):
        one, two = (np.load(tmp_path / batch / f"{number}_depth.npy") for batch in "12")
        np.testing.assert_allclose(one, two, atol=1e-5)
    sheet = np.asarray(Image.open(tmp_path / "1" / "sheet.png"))
    assert sheet.shape[0] > 5 * HEIGHT and sheet.shape[1] > 2 * WIDTH


def test_points(model_file, tmp_path, capsys):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 35
    Image.fromarray(picture(0)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(picture(1)).save(tmp_path / "b.png")
    arguments = (f"--checkpoint={model_file}", f"--out={tmp_path / 'out'}", "--points", tmp_path / "a.jpg", tmp_path / "b.png")
    assert call(predict, *arguments) == 2
    assert "b.png: says no focal length in EXIF" in capsys.readouterr().err
    assert (tmp_path / "out" / "a_points.ply").exists() and (tmp_path / "out" / "b_depth.png").exists()
    assert call(predict, *arguments[:-2], tmp_path / "b.png", "--out", tmp_path / "none") == 2
    assert "b.png says no focal length in EXIF; give --focal" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    assert call(predict, *arguments, "--focal=50,52", "--centre=30,20") == 0
    body = (tmp_path / "out" / "b_points.ply").read_bytes().split(b"end_header\n", 1)[1]
    vertices = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    depth = np.load(tmp_path / "out" / "b_depth.npy")
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    expected = np.stack([(columns - 30) / 50 * depth, (rows - 20) / 52 * depth, depth], -1).reshape(-1, 3)
    np.testing.assert_allclose(vertices["xyz"], expected, atol=1e-5)
    np.testing.assert_array_equal(vertices["rgb"], picture(1).reshape(-1, 3))


def test_flags_that_do_not_fit_what_is_named(model_file, clip, tmp_path, capsys):
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    arguments = (f"--checkpoint={model_file}", f"--out={tmp_path / 'out'}")
    assert f"--points: is for images; leave {clip} out" in refused(capsys, predict, *arguments, "--points", clip)
    assert "--frames: is for videos" in refused(capsys, predict, *arguments, "--frames", tmp_path / "a.png")


def test_flags_of_points(model_file, tmp_path, capsys):
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    arguments = (f"--checkpoint={model_file}", f"--out={tmp_path / 'out'}", tmp_path / "a.png")
    assert "serves point clouds only, and needs numbers" in refused(capsys, predict, *arguments, "--focal=50")
    for focal in ("-3", "0", "a", "1,2,3"):
        assert "--focal: " in refused(capsys, predict, *arguments, "--points", f"--focal={focal}")
    assert "--centre: " in refused(capsys, predict, *arguments, "--points", "--centre=5")


