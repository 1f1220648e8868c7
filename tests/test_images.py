"""Reading images: every kind that people have, upright and in RGB, and what is refused."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tiny_run import HEIGHT, WIDTH, picture

from jdepth import images
from jdepth.errors import UserError


def test_upright_as_the_exif_tag_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.fromarray(picture()).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png"), np.rot90(picture(), -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_matter(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert images.read_image(tmp_path / "a.jpg").shape == picture().shape


def test_grey_palette_alpha_and_cmyk_become_rgb(tmp_path):
    pixels = Image.fromarray(picture())
    grey = np.asarray(pixels.convert("L"))
    for name, image, expected in (
        ("grey.png", pixels.convert("L"), np.repeat(grey[..., None], 3, 2)),
        ("grey_alpha.png", pixels.convert("LA"), np.repeat(grey[..., None], 3, 2)),
        ("alpha.png", Image.fromarray(np.dstack([picture(), grey])), picture()),
        ("palette.png", pixels.quantize(255), np.asarray(pixels.quantize(255).convert("RGB"))),
        ("bits.png", pixels.convert("1"), np.repeat(255 * np.asarray(pixels.convert("1"), np.uint8)[..., None], 3, 2)),
        ("cmyk.tif", pixels.convert("CMYK"), picture()),
    ):
        image.save(tmp_path / name)
        read = images.read_image(tmp_path / name)
        assert read.dtype == np.uint8, name
        np.testing.assert_array_equal(read, expected, err_msg=name)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("highest", [255, 65535])
def test_sixteen_bits_are_read_as_in_training(tmp_path, suffix, highest):
    from jdepth.data.sources import decode

    values = np.random.default_rng(0).integers(0, highest + 1, (HEIGHT, WIDTH)).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(images.read_image(path), decode.read_image(path))
    np.testing.assert_array_equal(images.read_image(path)[..., 0], values >> 8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_colour(tmp_path, suffix):
    values = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), values[..., ::-1])
    np.testing.assert_array_equal(images.read_image(tmp_path / f"a.{suffix}"), values >> 8)


def test_pixels_without_a_known_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "wide.tif")
    for name in ("float.tif", "wide.tif"):
        with pytest.raises(UserError, match=f"{name}: .*expected 8 or 16 bits"):
            images.read_image(tmp_path / name)


def long_text(path, add):
    """A sound picture whose PNG has, in a few kilobytes, more text than Pillow takes."""
    text = PngImagePlugin.PngInfo()
    getattr(text, add)("comment", "x" * 2**21, zip=True)
    Image.fromarray(picture()).save(path, pnginfo=text)


def blp(compression):
    written = io.BytesIO()
    Image.fromarray(picture()).quantize().save(written, "BLP")
    return written.getvalue()[:4] + compression.to_bytes(4, "little") + written.getvalue()[8:]


HOSTILE = {
    "ztxt.png": lambda path: long_text(path, "add_text"),
    "itxt.png": lambda path: long_text(path, "add_itxt"),
    "icc.png": lambda path: Image.fromarray(picture()).save(path, icc_profile=bytes(2**21)),
    "deep.pgm": lambda path: path.write_bytes(b"P5 2 2 70000\n" + bytes(8)),
    "wordy.ppm": lambda path: path.write_bytes(b"P6 2 two 255\n" + bytes(12)),
    "unknown.blp": lambda path: path.write_bytes(blp(compression=209)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_open_strangely_are_refused(tmp_path, name):
    HOSTILE[name](tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: not a(n image file| readable image)"):
        images.read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_an_animation_the_first_frame(tmp_path, caplog, name):
    frames = [Image.fromarray(picture(n)).quantize(255).convert("RGB") for n in range(3)]
    lossless = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **lossless)
    np.testing.assert_array_equal(images.read_image(tmp_path / name), frames[0])
    word = "pages" if name == "a.tif" else "frames"
    assert [r.getMessage() for r in caplog.records] == [f"{tmp_path / name}: the first of 3 {word} is used"]


def test_what_follows_the_first_frame_does_not_matter(tmp_path, caplog):
    frames = [Image.fromarray(picture(n)) for n in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    whole = (tmp_path / "a.gif").read_bytes()
    expected = images.read_image(tmp_path / "a.gif")
    frames[0].save(tmp_path / "one.gif")
    length = (tmp_path / "one.gif").stat().st_size
    for cut in (length + 40, len(whole) * 2 // 3, len(whole) - 1):
        (tmp_path / "cut.gif").write_bytes(whole[:cut])
        np.testing.assert_array_equal(images.read_image(tmp_path / "cut.gif"), expected)
    # Phones put a preview or a gain map behind the picture, which is no second picture.
    caplog.clear()
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert images.read_image(tmp_path / "a.jpg").shape == picture().shape and not caplog.records
