"""Host augmentation against implementations written from the description of the recipes, in plain NumPy."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from jdepth.data import geometry, order, targets, transforms
from jdepth.data.transforms import AuxiliaryAugmentation, DepthAugmentation
from jdepth.errors import UserError

NYU = DepthAugmentation(fixed_crop=(45, 472, 43, 608))
KITTI = DepthAugmentation(kb_crop=True, crop=(352, 704), brightness=(0.9, 1.1))


def rng(counter: int = 0) -> np.random.Generator:
    return order.generator(7, "test", counter)


def smooth_item(height=480, width=640) -> dict[str, np.ndarray]:
    """Red and green say where a pixel was; depth says it exactly: column + 1000 * row + 1."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns * (250 / width), rows * (250 / height), np.full(rows.shape, 128)], axis=-1)
    return {"image": np.rint(image).astype(np.uint8), "depth": (columns + 1000.0 * rows + 1).astype(np.float32)}


def noise_item(height=480, width=640, seed=0) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(seed)
    return {
        "image": noise.integers(0, 256, (height, width, 3), dtype=np.uint8),
        "depth": noise.uniform(0.5, 10, (height, width)).astype(np.float32),
        "label": noise.integers(0, 5, (height, width), dtype=np.uint8),
    }


class Scripted:
    """Stands for a generator whose draws are known: `coins` for random(), `angle`, then neutral colours."""

    def __init__(self, coins: list[float], angle: float):
        self.coins, self.angle, self.uniforms = list(coins), angle, 0

    def random(self):
        return self.coins.pop(0)

    def uniform(self, low, high, size=None):
        self.uniforms += 1
        if self.uniforms == 1:
            assert (low, high) == (-2.5, 2.5)
            return self.angle
        return np.full(size, 1.0) if size else 1.0


def turned(array: np.ndarray, degrees: float, nearest: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rotate clockwise as seen (y down) about the centre of the pixel grid, by inverse mapping; (result, safe).

    `safe` leaves out pixels whose source lies within 1/16 pixel of a tie or of the border, where fixed-point
    interpolation may choose otherwise.
    """
    height, width = array.shape[:2]
    angle = math.radians(degrees)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    source_x = math.cos(angle) * x + math.sin(angle) * y + (width - 1) / 2
    source_y = -math.sin(angle) * x + math.cos(angle) * y + (height - 1) / 2
    padded = np.pad(array.astype(np.float64), [(2, 2), (2, 2)] + [(0, 0)] * (array.ndim - 2))
    px, py = np.clip(source_x + 2, 0, width + 2.999), np.clip(source_y + 2, 0, height + 2.999)
    if nearest:
        distance = np.minimum(abs(px % 1 - 0.5), abs(py % 1 - 0.5))
        return padded[np.floor(py + 0.5).astype(int), np.floor(px + 0.5).astype(int)], distance > 1 / 16
    x0, y0 = np.floor(px).astype(int), np.floor(py).astype(int)
    fx, fy = (px - x0)[..., None], (py - y0)[..., None]
    top = padded[y0, x0] * (1 - fx) + padded[y0, x0 + 1] * fx
    bottom = padded[y0 + 1, x0] * (1 - fx) + padded[y0 + 1, x0 + 1] * fx
    return top * (1 - fy) + bottom * fy, np.ones((height, width), bool)


@pytest.mark.parametrize("degrees", [2.5, -1.3, 0.4])
@pytest.mark.parametrize("flip", [False, True])
def test_nyu_recipe(degrees, flip):
    """Crop 45:472, 43:608, turn clockwise, mirror, crop 416x544, in this order, on image and depth."""
    item = noise_item()
    # Draws in order: rotate?, flip?, row, column, colour?
    script = Scripted([0.49, 0.49 if flip else 0.5, 0.6, 0.3, 0.5], degrees)
    result = transforms.augment_depth(item, NYU, script)

    image, _ = turned(item["image"][45:472, 43:608], degrees, nearest=False)
    depth, safe = turned(item["depth"][45:472, 43:608], degrees, nearest=True)
    if flip:
        image, depth, safe = image[:, ::-1], depth[:, ::-1], safe[:, ::-1]
    top, left = int(0.6 * 12), int(0.3 * 22)
    window = slice(top, top + 416), slice(left, left + 544)
    assert result["image"].shape == (416, 544, 3) and result["depth"].shape == (416, 544)
    # OpenCV interpolates between 1/32-pixel positions: up to 1/64 of a 255 step in each direction, on noise.
    difference = np.abs(result["image"] - image[window])
    assert difference.max() <= 255 / 32 + 1 and difference.mean() < 1
    np.testing.assert_array_equal(result["depth"][safe[window]], depth[window][safe[window]].astype(np.float32))
    assert safe.mean() > 0.7
    np.testing.assert_array_equal(result["colour"], np.ones(5))


def test_positive_angle_is_clockwise_and_corners_have_no_depth():
    item = {"image": np.full((101, 201, 3), 200, np.uint8), "depth": np.full((101, 201), 3, np.float32)}
    item["depth"][50, 190] = 9  # right of the centre: clockwise moves it down
    image, depth = geometry.cut(item["image"], item["depth"], (0, 101, 0, 201), 10.0)
    row, column = np.argwhere(depth == 9)[0]
    assert row == round(50 + 90 * math.sin(math.radians(10)))
    assert abs(column - (100 + 90 * math.cos(math.radians(10)))) < 1
    assert depth[0, 0] == 0 and depth[0, -1] == 0 and not image[0, 0].any()
    assert set(np.unique(depth)) == {0, 3, 9}


def test_nothing_switched_on_is_the_identity():
    item = noise_item()
    off = DepthAugmentation(rotate_probability=0, flip_probability=0, crop=None, colour_probability=0)
    result = transforms.augment_depth(item, off, rng())
    np.testing.assert_array_equal(result["image"], item["image"])
    np.testing.assert_array_equal(result["depth"], item["depth"])


def test_depth_beyond_the_limit_counts_as_missing():
    item = noise_item()
    limit = float(np.sort(item["depth"].ravel())[1000])  # of one pixel, which stays
    off = DepthAugmentation(rotate_probability=0, flip_probability=0, crop=None, colour_probability=0, max_depth=limit)
    depth = transforms.augment_depth(item, off, rng())["depth"]
    np.testing.assert_array_equal(depth, np.where(item["depth"] > limit, 0, item["depth"]))
    assert depth.dtype == np.float32 and (item["depth"] > limit).any()


@pytest.mark.parametrize("counter", range(6))
def test_depth_stays_aligned_with_the_image(counter):
    item = smooth_item()
    result = transforms.augment_depth(item, NYU, rng(counter))
    valid = result["depth"] > 0
    code = result["depth"][valid] - 1
    column, row = code % 1000, code // 1000
    inside = result["image"][valid][:, 2] == 128  # not blended with the black outside
    image = result["image"][valid].astype(float)
    assert inside.mean() > 0.98
    assert np.abs(image[inside, 0] - column[inside] * 250 / 640).max() <= 1.3
    assert np.abs(image[inside, 1] - row[inside] * 250 / 480).max() <= 1.3


def test_resize_keeps_depth_aligned_and_invents_none():
    item = smooth_item(424, 566)
    augmentation = DepthAugmentation(resize=(480, 640), rotate_probability=0, flip_probability=0, crop=None)
    result = transforms.augment_depth(item, augmentation, rng())
    assert result["image"].shape == (480, 640, 3)
    assert set(np.unique(result["depth"])) <= set(np.unique(item["depth"]))
    column, row = (result["depth"] - 1) % 1000, (result["depth"] - 1) // 1000
    assert np.abs(result["image"][..., 0] - column * 250 / 566).max() <= 1.5
    assert np.abs(result["image"][..., 1] - row * 250 / 424).max() <= 1.5
    doubled = [geometry.resize(item["image"], (1000, 1280), area=area) for area in (True, False)]
    np.testing.assert_array_equal(*doubled, err_msg="where an image grows there are no areas to average")
    mixed = [geometry.resize(item["image"], (100, 1280), area=area) for area in (True, False)]
    np.testing.assert_array_equal(*mixed)
    noise = noise_item(424, 566)
    halved = geometry.resize(noise["image"], (212, 283), area=True)
    means = noise["image"].reshape(212, 2, 283, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - means).max() <= 0.75
    for area in (True, False):
        smaller = replace(augmentation, resize=(141, 188), resize_area=area)
        way = cv2.INTER_AREA if area else cv2.INTER_LINEAR
        expected = cv2.resize(noise["image"], (188, 141), interpolation=way)
        np.testing.assert_array_equal(transforms.augment_depth(noise, smaller, rng())["image"], expected)


def test_kitti_recipe():
    item = smooth_item(375, 1242)
    result = transforms.augment_depth(item, replace(KITTI, rotate_probability=0, flip_probability=0), rng(1))
    assert result["image"].shape == (352, 704, 3)
    column, row = int(result["depth"][0, 0] - 1) % 1000, int(result["depth"][0, 0] - 1) // 1000
    assert row == 23 and 13 <= column <= 13 + 512
    np.testing.assert_array_equal(geometry.kb_crop(item["depth"]), item["depth"][23:, 13:1229])


def chi_square(counts: np.ndarray) -> float:
    """Normalised deviation from uniform: about standard normal if the draws are uniform."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    return (statistic - (counts.size - 1)) / math.sqrt(2 * (counts.size - 1))


def test_distributions(monkeypatch):
    angles, cut = [], geometry.cut

    def recorded(image, depth, box, degrees, flip):
        if degrees:
            angles.append(degrees)
        return cut(image, depth, box, 0.0, flip)

    monkeypatch.setattr(geometry, "cut", recorded)
    rows, columns = np.mgrid[:27, :40]
    item = {"image": np.zeros((27, 40, 3), np.uint8), "depth": (columns + 1000 * rows + 1).astype(np.float32)}
    augmentation = replace(NYU, fixed_crop=None, crop=(16, 19))
    count = 6000
    corners, flips, colours = [], 0, []
    for counter in range(count):
        result = transforms.augment_depth(item, augmentation, rng(counter))
        flipped = result["depth"][0, 0] > result["depth"][0, 1]
        flips += flipped
        corner = int((result["depth"][0, -1] if flipped else result["depth"][0, 0]) - 1)
        corners.append((corner // 1000, corner % 1000))
        colours.append(result["colour"])
    tolerance = 4 * math.sqrt(0.25 * count)
    assert abs(len(angles) - count / 2) < tolerance and abs(flips - count / 2) < tolerance
    assert -2.5 <= min(angles) < -2.4 and 2.4 < max(angles) <= 2.5
    assert abs(chi_square(np.histogram(angles, bins=20, range=(-2.5, 2.5))[0])) < 4
    offsets = np.zeros((12, 22))
    for row, column in corners:
        offsets[row, column] += 1
    assert offsets.min() > 0 and abs(chi_square(offsets)) < 4
    colours = np.array(colours)
    applied = (colours != 1).any(axis=1)
    assert abs(applied.sum() - count / 2) < tolerance
    for channel, (low, high) in enumerate([(0.9, 1.1), (0.75, 1.25), *[(0.9, 1.1)] * 3]):
        drawn = colours[applied, channel]
        assert low <= drawn.min() and drawn.max() <= high
        assert abs(chi_square(np.histogram(drawn, bins=20, range=(low, high))[0])) < 4
    assert np.abs(np.corrcoef(colours[applied].T) - np.eye(5)).max() < 0.1


def test_switching_one_step_off_does_not_shift_the_draws_of_the_others():
    item = noise_item()
    full = transforms.augment_depth(item, replace(NYU, rotate_probability=0), rng(3))
    without = transforms.augment_depth(item, replace(NYU, rotate_probability=0, colour_probability=0), rng(3))
    np.testing.assert_array_equal(full["image"], without["image"])


@pytest.mark.parametrize(
    ("augmentation", "size", "parts"),
    [
        (NYU, (400, 640), ("fixed crop rows 45:472", "400x640")),
        (DepthAugmentation(), (400, 640), ("crop 416x544", "400x640", "set resize")),
        (KITTI, (352, 1200), ("352x1216", "352x1200")),
    ],
)
def test_images_smaller_than_a_crop(augmentation, size, parts):
    with pytest.raises(UserError) as caught:
        transforms.augment_depth(noise_item(*size), augmentation, rng())
    for part in parts:
        assert part in str(caught.value)


# Auxiliary pipeline


def resized_size(height: int, width: int, scale: tuple[int, int], ratio: float) -> tuple[int, int]:
    """Size from the text: box = (int(W r), int(H r)); factor = min(long / long, short / short); nearest."""
    long, short = max(int(scale[0] * ratio), int(scale[1] * ratio)), min(int(scale[0] * ratio), int(scale[1] * ratio))
    factor = min(long / max(height, width), short / min(height, width))
    return math.floor(height * factor + 0.5), math.floor(width * factor + 0.5)


@pytest.mark.parametrize("size", [(512, 683), (683, 512), (360, 480), (1024, 2048)])
@pytest.mark.parametrize("scale", [(2048, 512), (520, 520)])
def test_auxiliary_resize(size, scale):
    for ratio in (0.5, 0.777, 1.0, 2.0):
        assert transforms._fitted(size, scale, ratio) == resized_size(*size, scale, ratio)


@pytest.mark.parametrize("size", [(480, 640), (375, 500), (1024, 2048)])
def test_crop_and_resize_in_one_equals_resize_then_crop(size):
    """OpenCV's own resize, then a slice: image within 1 grey level, labels equal."""
    generator = np.random.default_rng(5)
    image = cv2.GaussianBlur(generator.integers(0, 256, (*size, 3)).astype(np.uint8), (5, 5), 1.0)
    image[size[0] // 3 :, size[1] // 2 :] = 255 - image[size[0] // 3 :, size[1] // 2 :] // 2  # and hard edges
    label = generator.integers(0, 150, size).astype(np.uint8)
    for ratio in (0.5, 0.83, 1.37, 2.0):
        whole = resized_size(*size, (2048, 512), ratio)
        height, width = min(200, whole[0]), min(240, whole[1])
        top, left = (whole[0] - height) // 3, (whole[1] - width) // 2
        box, window = (top, top + height, left, left + width), np.s_[top : top + height, left : left + width]
        expected = cv2.resize(image, whole[::-1], interpolation=cv2.INTER_LINEAR)[window]
        found = geometry.resize_crop(image, whole, box)
        assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 1
        expected = cv2.resize(label, whole[::-1], interpolation=cv2.INTER_NEAREST)[window]
        np.testing.assert_array_equal(geometry.resize_crop_label(label, whole, box), expected)


def test_auxiliary_sample_is_aligned_padded_and_sized():
    seen_padding = 0
    augmentation = AuxiliaryAugmentation(scale=(300, 90), crop=(96, 96), canvas=(112, 128), cat_max_ratio=1.0)
    rows, columns = np.mgrid[:120, :160]
    image = np.stack([columns * 1.5, rows * 2, np.full(rows.shape, 50)], axis=-1).astype(np.uint8)
    item = {"image": image, "label": (columns // 16 + 10 * (rows // 24)).astype(np.uint8)}
    for counter in range(20):
        sample = transforms.augment_auxiliary(item, augmentation, rng(counter))
        height, width = sample["valid_size"]
        assert sample["image"].shape == (112, 128, 3) and sample["label"].shape == (112, 128)
        assert height <= 96 and width <= 96
        seen_padding += height < 96
        assert (sample["label"][height:] == 255).all() and (sample["label"][:, width:] == 255).all()
        assert not sample["image"][height:].any() and not sample["image"][:, width:].any()
        inside = sample["image"][:height, :width].astype(float)
        label = sample["label"][:height, :width].astype(int)
        assert (label != 255).all()
        # The label's nearest pixel and the image's interpolation differ by at most about one source pixel.
        assert np.abs(inside[..., 0] / 1.5 - (label % 10 * 16 + 8)).max() <= 8 + 2
        assert np.abs(inside[..., 1] / 2 - (label // 10 * 24 + 12)).max() <= 12 + 2
    assert 0 < seen_padding < 20


def test_crop_avoids_a_class_that_covers_too_much():
    label = np.zeros((64, 400), np.uint8)
    label[:, 340:] = np.arange(60) % 7 + 1
    augmentation = AuxiliaryAugmentation(scale=(400, 64), ratio=(1, 1), crop=(64, 64), canvas=(64, 64))
    item = {"image": np.zeros((64, 400, 3), np.uint8), "label": label}

    def share(setting, counter):
        crop = transforms.augment_auxiliary(item, setting, rng(counter))["label"]
        return np.bincount(crop.ravel(), minlength=8).max() / crop.size

    free = np.mean([share(replace(augmentation, cat_max_ratio=1.0), c) < 0.75 for c in range(200)])
    limited = np.mean([share(augmentation, c) < 0.75 for c in range(200)])
    # One draw succeeds with probability p; one of eleven with 1 - (1 - p)^11.
    assert 0.08 < free < 0.25
    assert abs(limited - (1 - (1 - free) ** 11)) < 0.12


@pytest.mark.parametrize(
    ("first", "rest", "accepted"),
    [
        ({3: 511, 4: 1}, 255, False),  # half the crop, but nearly all of what is labelled
        ({3: 384, 4: 128}, 255, False),  # three quarters exactly
        ({3: 383, 4: 129}, 255, True),
        ({3: 512}, 255, False),
        ({}, 255, False),
        ({3: 512}, 4, True),
    ],
)
def test_crop_ignores_255_and_wants_two_classes(first, rest, accepted):
    """A crop of 32 x 32 whose left half is `first` and whose right half is `rest`, above an unlabelled one."""
    pixels = np.full(512, 255, np.uint8)
    pixels[: sum(first.values())] = np.repeat([*first], [*first.values()])
    label = np.full((64, 32), 255, np.uint8)
    label[:32], label[:32, :16] = rest, pixels.reshape(32, 16)
    offsets = []

    class Down:
        """Draws offset 0 first and the largest one from then on; all other steps stay off."""

        def uniform(self, low, high):
            return (low + high) / 2

        def random(self, size=None):
            return 1.0 if size is None else np.ones(size)

        def integers(self, limit):
            if limit > 1:
                offsets.append(limit - 1 if offsets else 0)
                return offsets[-1]
            return 0

    augmentation = AuxiliaryAugmentation(
        scale=(64, 32), ratio=(1, 1), crop=(32, 32), canvas=(32, 32), crop_attempts=50, hue=0
    )
    item = {"image": np.repeat(np.arange(64, dtype=np.uint8)[:, None, None], 32, 1).repeat(3, 2), "label": label}
    sample = transforms.augment_auxiliary(item, augmentation, Down())
    # Where no crop will do, every retry is used and the last one is kept.
    assert len(offsets) == (1 if accepted else 51)
    np.testing.assert_array_equal(sample["label"], label[:32] if accepted else label[32:])
    assert (sample["image"][0] == (0 if accepted else 32)).all()


def test_photometric_draws():
    augmentation = AuxiliaryAugmentation()
    drawn = np.array([transforms.draw_photometric(augmentation, rng(c)) for c in range(4000)])
    neutral = transforms.NEUTRAL_PHOTOMETRIC
    rate = (drawn != neutral).mean(axis=0)
    np.testing.assert_allclose(rate, [0.5, 0.25, 0.5, 0.5, 0.25], atol=0.04)
    assert not ((drawn[:, 1] != 1) & (drawn[:, 4] != 1)).any()
    assert np.abs(drawn[:, 0]).max() <= 32
    for column in (1, 2, 4):
        assert 0.5 <= drawn[:, column].min() and drawn[:, column].max() <= 1.5
    hue = drawn[:, 3][drawn[:, 3] != 0]
    assert set(hue) == {*range(-18, 0), *range(1, 18), 180}
    off = replace(augmentation, photometric_probability=0.0)
    np.testing.assert_array_equal(transforms.draw_photometric(off, rng()), neutral)


def test_centre_sample_has_no_randomness():
    item = noise_item(120, 400)
    augmentation = AuxiliaryAugmentation(scale=(400, 120), crop=(96, 96), canvas=(96, 112))
    sample = transforms.centre_auxiliary(item, augmentation)
    np.testing.assert_array_equal(sample["image"][:, :96], item["image"][12:108, 152:248])
    np.testing.assert_array_equal(sample["label"][:, :96], item["label"][12:108, 152:248])
    np.testing.assert_array_equal(sample["photometric"], transforms.NEUTRAL_PHOTOMETRIC)


def test_unlabelled_items_and_bad_canvas():
    item = {"image": noise_item(64, 64)["image"]}
    augmentation = AuxiliaryAugmentation(scale=(64, 64), crop=(32, 32), canvas=(32, 32))
    assert "label" not in transforms.augment_auxiliary(item, augmentation, rng())
    with pytest.raises(UserError, match="larger than the canvas"):
        AuxiliaryAugmentation(crop=(600, 512))


# Targets


def test_targets():
    label = np.array([[0, 0, 3], [3, 7, 255], [255, 255, 255]], np.uint8)
    np.testing.assert_array_equal(np.flatnonzero(targets.multi_hot(targets.class_counts(label), 10)), [0, 3, 7])
    assert targets.multi_hot(targets.class_counts(label), 10).dtype == np.float32
    assert targets.most_frequent(targets.class_counts(label)) == 0  # 0 and 3 tie: the lowest
    assert targets.most_frequent(targets.class_counts(np.full((4, 4), 255, np.uint8))) == -1
    assert not targets.multi_hot(targets.class_counts(np.full((4, 4), 255, np.uint8)), 10).any()
    assert set(targets.target("segmentation", label, (8,))) == {"label"}
    assert targets.target("reconstruction", None, (3,)) == {}
    assert targets.target("mldc", label, (8, 150))["classes"].shape == (150,)
    with pytest.raises(UserError, match="did you mean 'mldc'"):
        targets.check_task("mdlc")
