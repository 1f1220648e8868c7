"""Device colour against OpenCV and NumPy re-implementations of the published pipelines."""

import cv2
import jax
import numpy as np
import pytest

from jdepth import colour


def noise(count: int, height=40, width=64, seed=0) -> np.ndarray:
    """Rows of a multiple of 64 pixels: OpenCV rounds the rest of a row otherwise than its vectorised part."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    images[:, :8, :8] = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8, 1)  # greys: no hue, no saturation
    images[:, 8, :6] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]]
    return images


def test_normalise():
    images = noise(2)
    expected = (images - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    result = jax.jit(colour.normalise)(images)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_array_equal(result, jax.jit(colour.normalise)(images.astype(np.float32)))


def test_depth_colour():
    images = noise(4)
    parameters = np.random.default_rng(1).uniform(0.9, 1.1, (4, 5)).astype(np.float32)
    parameters[1, 0], parameters[2, 1], parameters[3] = 1.1, 1.25, 1.0
    expected = []
    for image, (gamma, brightness, *factors) in zip(images, parameters.astype(np.float64), strict=True):
        bgr = image[..., ::-1].astype(np.float64) ** gamma * brightness
        bgr = bgr * np.array(factors)[::-1]
        expected.append(np.clip(bgr, 0, 255)[..., ::-1])
    result = jax.jit(colour.depth_colour)(images, parameters)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-3)
    np.testing.assert_array_equal(result[3], images[3])
    assert (np.asarray(result) % 1 != 0).mean() > 0.3  # not rounded to grey levels


def test_gamma_acts_on_0_to_255():
    images = np.full((2, 1, 1, 3), 255, np.uint8)
    parameters = np.array([[0.9, 1, 1, 1, 1], [1.1, 1, 1, 1, 1]], np.float32)
    np.testing.assert_allclose(np.asarray(colour.depth_colour(images, parameters))[:, 0, 0, 0], [146.5, 255], atol=0.05)


def quantised(values: np.ndarray, alpha=1.0, beta=0.0) -> np.ndarray:
    return np.clip(values.astype(np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8)


def distorted(image: np.ndarray, brightness=None, contrast=None, first=True, saturation=None, hue=None) -> np.ndarray:
    """PhotoMetricDistortion from its description, on BGR uint8 with OpenCV; None = the coin said no."""
    bgr = np.ascontiguousarray(image[..., ::-1])
    if brightness is not None:
        bgr = quantised(bgr, beta=brightness)
    if contrast is not None and first:
        bgr = quantised(bgr, alpha=contrast)
    if saturation is not None:
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = quantised(hsv[..., 1], alpha=saturation)
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if hue is not None:
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if contrast is not None and not first:
        bgr = quantised(bgr, alpha=contrast)
    return bgr[..., ::-1]


CASES = {
    "nothing": ({}, (0, 1, 1, 0, 1)),
    "brightness": ({"brightness": -17.3}, (-17.3, 1, 1, 0, 1)),
    "contrast first": ({"contrast": 1.37}, (0, 1.37, 1, 0, 1)),
    "contrast last": ({"contrast": 0.61, "first": False}, (0, 1, 1, 0, 0.61)),
    "saturation": ({"saturation": 1.42}, (0, 1, 1.42, 0, 1)),
    "less saturation": ({"saturation": 0.55}, (0, 1, 0.55, 0, 1)),
    "hue": ({"hue": 11}, (0, 1, 1, 11, 1)),
    "hue back": ({"hue": -18}, (0, 1, 1, -18, 1)),
    "hue by nothing": ({"hue": 0}, (0, 1, 1, 180, 1)),
    "all, contrast first": (
        {"brightness": 21.9, "contrast": 0.83, "saturation": 1.2, "hue": 7},
        (21.9, 0.83, 1.2, 7, 1),
    ),
    "all, contrast last": (
        {"brightness": -9.5, "contrast": 0.9, "first": False, "saturation": 0.7, "hue": -4},
        (-9.5, 1, 0.7, -4, 0.9),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_photometric(name):
    options, parameters = CASES[name]
    image = noise(1)[0]
    result = np.asarray(jax.jit(colour.photometric)(image[None], np.array([parameters], np.float32)))[0]
    expected = distorted(image, **options)
    assert (result % 1 == 0).all() and result.min() >= 0 and result.max() <= 255
    difference = np.abs(result - expected)
    if "saturation" in options or "hue" in options:
        # Rarely one grey level in the way back from HSV, which a hue step after a saturation step amplifies.
        assert np.quantile(difference, 0.99) <= 1 and difference.mean() < 0.03
        assert difference.max() <= (9 if "saturation" in options and "hue" in options else 2)
    else:
        assert not difference.any()


def test_hsv_equals_opencv():
    image = noise(1, 400, 512, seed=3)[0]
    hsv = np.stack([np.asarray(plane) for plane in colour._to_hsv(image.astype(np.float32))], axis=-1)
    np.testing.assert_array_equal(hsv, cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
    back = np.asarray(colour._from_hsv(hsv[..., 0], hsv[..., 1], hsv[..., 2]))
    difference = np.abs(back - cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def test_samples_of_a_batch_do_not_mix():
    images = noise(3)
    parameters = np.array([CASES[name][1] for name in ("hue", "saturation", "contrast last")], np.float32)
    photometric = jax.jit(colour.photometric)
    together = photometric(images, parameters)
    for row in range(3):
        alone = photometric(images[row : row + 1], parameters[row : row + 1])
        np.testing.assert_array_equal(together[row], alone[0])


def test_pad_to_mean():
    normalised = colour.normalise(noise(2))
    padded = np.asarray(jax.jit(colour.pad_to_mean)(normalised, np.array([[40, 64], [17, 30]], np.int32)))
    np.testing.assert_array_equal(padded[0], normalised[0])
    np.testing.assert_array_equal(padded[1, :17, :30], normalised[1, :17, :30])
    assert not padded[1, 17:].any() and not padded[1, :, 30:].any()


def test_pixels_without_hue_stay_grey():
    """Black, white and grey pixels have neither hue nor saturation: no division by zero."""
    images = np.stack([np.zeros((4, 4, 3)), np.full((4, 4, 3), 255), np.full((4, 4, 3), 7)]).astype(np.uint8)
    parameters = np.array([[5, 0.7, 1.3, 9, 1]] * 3, np.float32)
    result = np.asarray(colour.photometric(images, parameters))
    assert np.isfinite(result).all() and (np.ptp(result, axis=-1) == 0).all()
    assert np.isfinite(np.asarray(colour.depth_colour(images, np.full((3, 5), 0.9, np.float32)))).all()
