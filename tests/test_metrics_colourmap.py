"""False colours, legend and contact sheets."""

import subprocess
import sys

import numpy as np
import pytest

from jdepth import colourmap


def test_near_is_warm_far_is_cold_and_invalid_is_black():
    depth = np.array([[1.0, 5.0, 0.0], [np.nan, np.inf, -1.0]])
    picture = colourmap.colour_depth(depth, 1, 5)
    assert picture.shape == (2, 3, 3) and picture.dtype == np.uint8
    near, far = picture[0, 0].astype(int), picture[0, 1].astype(int)
    assert near[0] > near[2] and far[2] > far[0]
    assert not picture[0, 2].any() and not picture[1].any()
    assert (colourmap.colour_depth(depth, 1, 5, invalid=(9, 8, 7))[1] == (9, 8, 7)).all()


def test_depths_outside_the_range_take_its_end_colours():
    picture = colourmap.colour_depth(np.array([[0.5, 1.0, 5.0, 80.0]]), 1, 5)
    assert (picture[0, 0] == picture[0, 1]).all() and (picture[0, 2] == picture[0, 3]).all()


@pytest.mark.parametrize("depth", [np.zeros((3, 4)), np.full((3, 4), 2.0)])
def test_empty_and_constant_maps(depth):
    assert colourmap.colour_depth(depth).shape == (3, 4, 3)
    low, high = colourmap.depth_range(depth)
    assert low <= high
    assert colourmap.legend(low, high, 60).shape == (60, 72, 3)


def test_range_ignores_outliers_and_invalid_pixels():
    depth = np.linspace(2, 4, 1000)
    depth[0], depth[1:3] = 1000, 0
    low, high = colourmap.depth_range(depth, depth)
    assert 2 < low < 2.1 and 3.9 < high < 4


def test_legend_shows_the_colours_of_its_range():
    bar = colourmap.legend(0, 10, 200)
    ends = colourmap.colour_depth(np.array([[10.0, 1e-9]]), 0, 10)[0]
    assert (bar[10, 0] == ends[0]).all() and (bar[189, 0] == ends[1]).all()
    assert (bar[:, 30:] == colourmap.INK).all(axis=-1).any()  # the ticks are labelled


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 10), (0.3, 9.7), (1.95, 2.05), (0, 80), (3, 3), (0, 0.3), (0.2, 0.5), (0, 3e-5), (0, 3e8)],
)
def test_ticks_are_few_and_inside(low, high):
    ticks = colourmap._ticks(low, high)
    assert 1 <= len(ticks) <= 8 and low - 1e-6 <= min(ticks) and max(ticks) <= high + 1e-6
    assert low == high or len(ticks) >= 3
    assert colourmap.legend(low, high, 100).shape == (100, 72, 3)


def test_contact_sheet_holds_every_image_at_its_size():
    images = [[np.full((20, 30, 3), 50, np.uint8), np.full((10, 60, 3), 90, np.uint8)],
              [np.full((15, 40, 3), 130, np.uint8)]]  # fmt: skip
    sheet = colourmap.contact_sheet(images, [["image", "a caption far too long"], [""]], gap=4)
    assert sheet.dtype == np.uint8 and sheet.shape == (4 + 20 + 20 + 4 + 20 + 15 + 4, 102, 3)
    for level, size in ((50, 600), (90, 600), (130, 600)):
        assert (sheet == level).all(axis=-1).sum() >= size
    assert colourmap.contact_sheet(images, gap=4).shape == (4 + 20 + 4 + 15 + 4, 102, 3)
    with pytest.raises(ValueError, match="one per image"):
        colourmap.contact_sheet(images, [["image"]])


def test_import_is_light():
    code = "import sys, jdepth.colourmap; sys.exit('cv2' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
