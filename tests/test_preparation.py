"""How images are brought to the network: sizes against the released rule, pixels against OpenCV."""

import cv2
import numpy as np
import pytest
from tiny_run import picture

from jdepth.preparation import MOST_PIXELS, Preparation

LOWER_BOUND = Preparation(least=518)


@pytest.mark.parametrize(
    "size, expected",
    [
        ((480, 640), (518, 686)), ((518, 518), (518, 518)), ((1, 1), (518, 518)), ((375, 1242), (518, 1722)),
        ((352, 1216), (518, 1792)), ((1080, 1920), (518, 924)), ((3024, 4032), (518, 686)), ((640, 480), (686, 518)),
    ],
)  # fmt: skip
def test_lower_bound_as_released(size, expected):
    """By hand from the rule: the larger scale for both sides, nearest multiple of 14, never below 518."""
    assert LOWER_BOUND.size(*size) == expected


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (20_000, 30), (7, 3000), (100, 9000)])
@pytest.mark.parametrize("preparation", [LOWER_BOUND, Preparation(), Preparation(area=9408)])
def test_extreme_shapes_stay_affordable(preparation, size):
    height, width = preparation.size(*size)
    assert 1 <= height * width <= MOST_PIXELS * 1.1
    assert (height > width) == (size[0] > size[1])
    if preparation.least:
        assert height % 14 == width % 14 == 0


def test_cubic_is_opencvs_on_floating_point_pixels():
    image = picture(height=40, width=60)
    found = Preparation(least=56)(image)
    expected = cv2.resize(image / 255.0, (84, 56), interpolation=cv2.INTER_CUBIC)
    assert found.shape == (56, 84, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found / 255, expected, atol=2e-6)
    assert found.min() < 0 or found.max() > 255, "cubic interpolation overshoots, and nothing is cut off"


def test_own_size_and_area():
    image = picture(height=30, width=50)
    assert Preparation()(image) is image
    assert Preparation(area=30 * 50 // 4)(image).shape[:2] == (15, 25)
