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


def read_ply(path):
    """(metres (N, 3), colours (N, 3)) by the names and types in the file's own header."""
    header, body = path.read_bytes().split(b"end_header\n", 1)
    types = {"float": "<f4", "uchar": "u1"}
    fields = [line.split()[1:] for line in header.decode("ascii").splitlines() if line.startswith("property ")]
    vertices = np.frombuffer(body, [(name, types[kind]) for kind, name in fields])
    return (np.stack([vertices[name] for name in names], 1) for names in ("xyz", ("red", "green", "blue")))


# Folder, image, depth, values per metre, invalid values, camera matrix (fx, fy, cx, cy).
FRAMES = [
    ("tum_slambook2", "1.png", "1_depth.png", 5000, (0,), (520.9, 521.0, 325.1, 249.7)),
    ("7scenes_tsdf", "frame-000000.color.jpg", "frame-000000.depth.png", 1000, (0, 65535), (585.0, 585.0, 320.0, 240.0)),
]


@pytest.mark.parametrize("folder, image, depth, scale, invalid, camera", FRAMES, ids=[f[0] for f in FRAMES])
def test_a_real_frame(samples, tmp_path, folder, image, depth, scale, invalid, camera):
    """True depth and intrinsics: every valid pixel's ray, to its depth, in its colour; invalid pixels left out."""
    raw = np.asarray(Image.open(samples / "rgbd" / folder / depth)).astype(np.int64)
    seen = ~np.isin(raw, invalid)
    metres = np.where(seen, raw / scale, 0).astype(np.float32)
    pixels = images.read_image(samples / "rgbd" / folder / image)
    cloud, valid = point_cloud.points(metres, camera[:2], camera[2:])
    point_cloud.write_ply(tmp_path / "a.ply", cloud, pixels[valid])

    found, colours = read_ply(tmp_path / "a.ply")
    assert 0.5 < seen.mean() < 0.95 and len(found) == seen.sum()
    matrix = np.array([[camera[0], 0, camera[2]], [0, camera[1], camera[3]], [0, 0, 1]])
    rows, columns = np.nonzero(seen)
    rays = np.linalg.solve(matrix, np.stack([columns, rows, np.ones(len(rows))])).T
    expected = rays * raw[seen][:, None] / scale
    assert np.linalg.norm(found - expected, axis=1).max() < 1e-3
    assert np.abs(np.linalg.norm(found, axis=1) - np.linalg.norm(expected, axis=1)).max() < 1e-3
    with Image.open(samples / "rgbd" / folder / image) as opened:
        np.testing.assert_array_equal(colours, np.asarray(opened.convert("RGB"))[rows, columns])


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
