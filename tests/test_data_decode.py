"""Kinds of image, depth and label files: exact stored numbers, or one line and nothing else on standard error."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from jdepth.data.sources import decode
from jdepth.errors import UserError

ROWS = np.arange(16).reshape(2, 8)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def packed(rows: np.ndarray, bits: int) -> list[bytes]:
    """Each row's numbers side by side in `bits` bits each."""
    return [np.packbits(np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - bits :]).tobytes() for row in rows]


def grey_png(rows: np.ndarray, bits: int, size: tuple[int, int] | None = None) -> bytes:
    """A grey PNG; `size` (width, height) is what its header says, if not the truth."""
    header = struct.pack(">IIBBBBB", *(size or rows.shape[::-1]), bits, 0, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in packed(rows, bits)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def grey_tiff(rows: np.ndarray, bits: int, white_is_zero: bool = False) -> bytes:
    height, width = rows.shape
    content = b"".join(packed(rows, bits))
    values = {256: width, 257: height, 258: bits, 259: 1, 262: 0 if white_is_zero else 1}
    values |= {273: 8, 277: 1, 278: height, 279: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    directory = struct.pack("<H", len(values)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory


def encoded(kind: str, **options) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def stored(tmp_path):
    """Writes a file; gives its path."""

    def write(name: str, content: bytes):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def refused(read, path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("read", [decode.read_values, decode.read_ids])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_narrow_grey_png_gives_what_is_stored(stored, read, bits):
    rows = ROWS % 2**bits
    np.testing.assert_array_equal(read(stored("x.png", grey_png(rows, bits))), rows)


def test_narrow_grey_tiff_labels(stored):
    np.testing.assert_array_equal(decode.read_ids(stored("x.tif", grey_tiff(ROWS, 4))), ROWS)
    assert "stores white as 0" in refused(decode.read_ids, stored("y.tif", grey_tiff(ROWS, 8, white_is_zero=True)))


@pytest.mark.parametrize("ascii_numbers", [False, True])
@pytest.mark.parametrize("largest", [100, 255, 1000, 65535])
def test_pgm(stored, ascii_numbers, largest):
    numbers = ROWS.astype(">u2" if largest > 255 else "u1").tobytes()
    content = b" ".join(b"%d" % value for value in ROWS.ravel()) if ascii_numbers else numbers
    path = stored("x.pgm", (b"P2" if ascii_numbers else b"P5") + b"\n# by hand\n8 2\n%d\n" % largest + content)
    exact = {decode.read_ids: largest in (255, 65535)}
    exact[decode.read_values] = exact[decode.read_ids] or not ascii_numbers
    for read, reads in exact.items():
        if reads:
            np.testing.assert_array_equal(read(path), ROWS)
        else:
            assert f"largest value {largest}" in refused(read, path)


@pytest.mark.parametrize("kind", [2, 3, 5, 6])
@pytest.mark.parametrize("largest", [100, 255, 1000, 65535])
def test_pgm_and_ppm_images(stored, kind, largest):
    """Read as bright as they are, or refused."""
    shares = np.linspace(0, 1, 8).reshape(2, 4)[..., None].repeat(1 if kind in (2, 5) else 3, -1)
    numbers = np.round(shares * largest).astype(int)
    content = numbers.astype(">u2" if largest > 255 else "u1").tobytes()
    content = content if kind > 4 else b" ".join(b"%d" % value for value in numbers.ravel()) + b"\n"
    path = stored("x.ppm", b"P%d\n4 2\n%d\n" % (kind, largest) + content)
    if largest in (255, 65535) or (largest < 255 and kind < 4):
        assert np.abs(decode.read_image(path) - shares * 255).max() <= 2
    else:
        assert f"largest value {largest}" in refused(decode.read_image, path)


@pytest.mark.parametrize("read", [decode.read_values, decode.read_ids])
def test_pbm_is_refused(stored, read):
    """Its 1 is black, which readers turn into 0."""
    assert "write it as PNG" in refused(read, stored("x.pbm", b"P4\n8 1\n\x50"))


def test_too_many_pixels(stored):
    path = stored("x.png", grey_png(ROWS, 8, size=(30000, 30000)))
    assert "900000000 pixels" in refused(decode.header_size, path)
    refused(decode.read_ids, path)


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, depth=np.ones((2, 2)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (npz(), "magic string"),
        (b"1.5 2.5\n", "magic string"),
        (npy(np.ones((2, 2)))[:-8], "cannot read"),
        (npy(np.full((2, 2), "far")), "holds <U3 values; expected real numbers"),
        (npy(np.ones((2, 2), [("depth", "f4")])), "expected real numbers"),
        (npy(np.ones((2, 2), np.complex64)), "holds complex64 values"),
        (npy(np.ones((2, 2), "M8[s]")), "holds datetime64[s] values"),
    ],
)
def test_npy_that_is_no_array_of_numbers(stored, content, part):
    path = stored("x.npy", content)
    for read in (decode.header_size, decode.read_values, decode.read_ids):
        assert part in refused(read, path)


def flipped(data: bytes) -> bytes:
    place = len(data) * 2 // 3
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("flipped.png", flipped(encoded("PNG"))),
        ("cut.png", encoded("PNG")[:-20]),
        ("signature.png", encoded("PNG")[:8]),
        ("cut.tif", encoded("TIFF")[:-200]),
        ("cut_packed.tif", encoded("TIFF", compression="tiff_lzw")[:-500]),
        ("cut.jpg", encoded("JPEG")[:-20]),
        ("cut_progressive.jpg", encoded("JPEG", progressive=True)[:-20]),
    ],
)
def test_damaged_files_leave_standard_error_alone(stored, capfd, name, content):
    refused(decode.read_image, stored(name, content))
    assert capfd.readouterr().err == ""


def test_bytes_behind_a_picture_are_no_damage(stored):
    """Phones append videos; what those hold may look like a part of the picture."""
    thumbnail = Image.Exif()
    thumbnail[0x927C] = b"\xff\xd8\xff\xda\xff\xd9"
    for kind, options in (("JPEG", {"exif": thumbnail}), ("JPEG", {"progressive": True}), ("PNG", {})):
        whole = encoded(kind, **options)
        expected = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        for behind in (b"\0\0mp4\xff\xda\0", b"IDAT", b"\n"):
            np.testing.assert_array_equal(decode.read_image(stored("x", whole + behind)), expected)
