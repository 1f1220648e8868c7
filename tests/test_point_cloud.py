"""Point clouds: geometry by hand and on a real frame, and a file that another library reads."""

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny_run import picture

from jdepth import images, point_cloud
from jdepth.errors import UserError


def test_points_by_hand():
    depth = np.array([[1.0, 2.0, 0.0], [np.nan, 4.0, 3.0]], np.float32)
    cloud, valid = point_cloud.points(depth, (2.0, 4.0), (1.0, 0.5))
    np.testing.assert_array_equal(valid, [[True, True, False], [False, True, True]])
    expected = [[-0.5, -0.125, 1], [0, -0.25, 2], [0, 0.5, 4], [1.5, 0.375, 3]]
    np.testing.assert_allclose(cloud, expected, atol=1e-6)
    middle, _ = point_cloud.points(np.ones((3, 5), np.float32), (1.0, 1.0))
    np.testing.assert_allclose(middle.mean(0), (0, 0, 1), atol=1e-6)


def test_projecting_the_points_gives_the_pixels_back():
    """OpenCV's camera model, the same axes."""
    depth = np.random.default_rng(0).uniform(0.5, 9, (40, 60)).astype(np.float32)
    fx, fy, cx, cy = 51.9, 52.3, 30.1, 19.4
    cloud, _ = point_cloud.points(depth, (fx, fy), (cx, cy))
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    pixels, _ = cv2.projectPoints(cloud.astype(np.float64), np.zeros(3), np.zeros(3), matrix, None)
    rows, columns = np.mgrid[:40, :60]
    np.testing.assert_allclose(pixels[:, 0], np.stack([columns.ravel(), rows.ravel()], 1), atol=1e-3)


def test_ply_is_read_back(tmp_path):
    cloud = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    colours = np.random.default_rng(1).integers(0, 256, (7, 3)).astype(np.uint8)
    point_cloud.write_ply(tmp_path / "a.ply", cloud, colours)
    content = (tmp_path / "a.ply").read_bytes()
    header, body = content.split(b"end_header\n", 1)
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\n") and b"element vertex 7\n" in header
    assert len(body) == 7 * 15
    for row in range(7):
        np.testing.assert_array_equal(np.frombuffer(body[15 * row : 15 * row + 12], "<f4"), cloud[row])
        assert tuple(body[15 * row + 12 : 15 * row + 15]) == tuple(colours[row])


def test_focal_length_from_exif(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50
    image = Image.fromarray(picture(height=240, width=360))
    image.save(tmp_path / "a.jpg", exif=exif)
    # 36 mm of film are 360 pixels here, since the aspect ratio is that of film.
    assert images.focal_length(tmp_path / "a.jpg") == pytest.approx((500.0,))
    image.save(tmp_path / "b.jpg")
    assert images.focal_length(tmp_path / "b.jpg") is None
    (tmp_path / "c.jpg").write_bytes(b"no image")
    assert images.focal_length(tmp_path / "c.jpg") is None


def test_numbers_of_flags():
    assert point_cloud.parse_numbers("focal", "518.9,519.5", (1, 2)) == (518.9, 519.5)
    for text in ("", "a", "1,2,3", "nan", "inf,1"):
        with pytest.raises(UserError, match="--focal: .*expected 1 or 2 numbers"):
            point_cloud.parse_numbers("focal", text, (1, 2))
