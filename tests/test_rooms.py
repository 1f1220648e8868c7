"""The procedural rooms: exactness of depth and labels by an independent derivation, determinism, statistics."""

import hashlib
import json
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from jdepth.data.sources.room_geometry import Box, Cylinder, Scene, Sphere, look
from jdepth.data.sources.room_render import render
from jdepth.data.sources.rooms import BASELINE, CLASSES, MAX_DEPTH, SPLITS, Rooms
from jdepth.errors import UserError

SMALL = {"height": 42, "width": 56}


def backproject(source, scene, depth):
    """World points (H, W, 3) of a depth map, in float64, from the documented intrinsics and camera pose alone."""
    fx, fy, cx, cy = source.intrinsics
    y, x = np.mgrid[: depth.shape[0], : depth.shape[1]]
    camera = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones(depth.shape)], -1) * depth[..., None].astype(np.float64)
    return camera @ scene.camera.rotation + scene.camera.position


def surface_distance(scene, points):
    """Distance (N, P) of P points to the room's planes and to each object's surface, with labels (N,)."""
    size = np.asarray(scene.size)
    rows, labels = [], []
    for axis in range(3):
        for at, name in ((0.0, "floor" if axis == 2 else "wall"), (size[axis], "ceiling" if axis == 2 else "wall")):
            rows.append(np.abs(points[:, axis] - at))
            labels.append(CLASSES.index(name))

    def solid(q):  # signed distances to the sides of a convex solid -> distance to its surface
        outside = np.sqrt(np.square(np.maximum(q, 0)).sum(-1))
        return np.where(outside > 0, outside, np.abs(q.max(-1)))

    for box in scene.boxes:
        turn = np.array([[np.cos(box.yaw), -np.sin(box.yaw), 0], [np.sin(box.yaw), np.cos(box.yaw), 0], [0, 0, 1]])
        rows.append(solid(np.abs((points - box.centre) @ turn) - box.half))
        labels.append(box.label)
    for cylinder in scene.cylinders:
        offset = points - cylinder.centre
        radial = np.hypot(offset[:, 0], offset[:, 1]) - cylinder.radius
        rows.append(solid(np.stack([radial, np.abs(offset[:, 2]) - cylinder.half_height], -1)))
        labels.append(cylinder.label)
    for sphere in scene.spheres:
        rows.append(np.abs(np.linalg.norm(points - sphere.centre, axis=-1) - sphere.radius))
        labels.append(sphere.label)
    return np.stack(rows), np.array(labels)


def first_surface(source, scene):
    """Depth (H, W) by brute force over every face of every object and every pixel, in float64."""
    fx, fy, cx, cy = source.intrinsics
    y, x = np.mgrid[: source.height, : source.width]
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones(x.shape)], -1).reshape(-1, 3) @ scene.camera.rotation
    eye, size = scene.camera.position, np.asarray(scene.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        best = np.where(rays > 0, (size - eye) / rays, -eye / rays).min(1)
        for box in scene.boxes:
            turn = np.array([[np.cos(box.yaw), -np.sin(box.yaw), 0], [np.sin(box.yaw), np.cos(box.yaw), 0], [0, 0, 1]])
            local, direction = (eye - box.centre) @ turn, rays @ turn
            for axis in range(3):  # every face as a plane of its own, then a point-in-rectangle test
                for side in (-1, 1):
                    t = (side * box.half[axis] - local[axis]) / direction[:, axis]
                    others = [i for i in range(3) if i != axis]
                    point = local + t[:, None] * direction
                    inside = (np.abs(point[:, others]) <= np.asarray(box.half)[others]).all(1)
                    best = np.where(inside & (t > 0) & (t < best), t, best)
        for cylinder in scene.cylinders:
            offset = eye - cylinder.centre
            candidates = [(side * cylinder.half_height - offset[2]) / rays[:, 2] for side in (-1, 1)]
            for t in candidates:
                inside = np.hypot(*(offset[:2] + t[:, None] * rays[:, :2]).T) <= cylinder.radius
                best = np.where(inside & (t > 0) & (t < best), t, best)
            a, b = (rays[:, :2] ** 2).sum(1), rays[:, :2] @ offset[:2]
            root = np.sqrt(b * b - a * (offset[:2] @ offset[:2] - cylinder.radius**2))
            for t in ((-b - root) / a, (-b + root) / a):
                inside = np.abs(offset[2] + t * rays[:, 2]) <= cylinder.half_height
                best = np.where(inside & (t > 0) & (t < best), t, best)
        for sphere in scene.spheres:
            offset = eye - sphere.centre
            a, b = (rays**2).sum(1), rays @ offset
            root = np.sqrt(b * b - a * (offset @ offset - sphere.radius**2))
            t = (-b - root) / a
            best = np.where((t > 0) & (t < best), t, best)
    return best.reshape(x.shape)


def test_items_have_the_documented_form():
    source = Rooms(size=3, **SMALL)
    item = source[1]
    assert len(source) == 3 and source.name == "rooms"
    assert item["image"].shape == (42, 56, 3) and item["image"].dtype == np.uint8
    assert item["depth"].shape == (42, 56) and item["depth"].dtype == np.float32
    assert item["label"].shape == (42, 56) and item["label"].dtype == np.uint8
    assert item["label"].max() < len(source.classes)
    assert item["depth"].min() >= 0 and item["depth"].max() <= MAX_DEPTH
    assert source.item_id(1) == "rooms-0-train-000001"
    for index in (-1, 3):
        with pytest.raises(IndexError):
            source[index]
    with pytest.raises(IndexError):
        source.item_id(3)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"split": "trian"}, "trian"), ({"height": 0}, "height"), ({"size": -1}, "size"), ({"seed": 0.5}, "seed")],
)
def test_mistakes_are_named(options, word):
    with pytest.raises(UserError, match=word):
        Rooms(**options)


@pytest.mark.parametrize("index", range(12))
def test_depth_is_that_of_the_first_surface(index):
    source = Rooms(split="val", size=100, seed=3, noise=False, cache=False, **SMALL)
    item, expected = source[index], first_surface(source, source.scene(index))
    assert (item["depth"] > 0).all()
    # A ray through an edge may fall on either side of it after rounding: a handful of pixels at most.
    wrong = np.abs(item["depth"] - expected) > 1e-4 * expected
    assert wrong.sum() <= 3, f"{wrong.sum()} pixels differ"


@pytest.mark.parametrize("index", range(12))
def test_points_lie_on_surfaces_of_their_class(index):
    source = Rooms(size=100, seed=5, noise=False, cache=False, **SMALL)
    scene, item = source.scene(index), source[index]
    points = backproject(source, scene, item["depth"]).reshape(-1, 3)
    depth, label = item["depth"].ravel(), item["label"].ravel()
    distance, labels = surface_distance(scene, points)
    of_class = np.where(labels[:, None] == label[None], distance, np.inf).min(0)
    assert (of_class < 1e-4 * depth).all()
    assert (points > -1e-3).all() and (points < np.asarray(scene.size) + 1e-3).all()
    floor = label == CLASSES.index("floor")
    assert (np.abs(points[floor, 2]) < 1e-4 * depth[floor]).all()


def simple_scene(pitch=0.0, **objects):
    plain = [((0.5,) * 3, (0.0,) * 3, (1.0, 1.0), (0.0, 0.0), 1.0, 0.0, 0.0, 0.0, (0.01, 0.01), 0.0, (0.0,) * 3, 0.0)]
    camera = look((1.0, 2.0, 1.5), 0.0, pitch, 0.0)
    return Scene((6.0, 4.0, 3.0), (0,) * 6, (0.3,) * 3, camera, plain, **objects)


def test_depth_is_measured_along_the_optical_axis():
    flat = render(simple_scene(), 84, 112)
    ahead = flat.label == CLASSES.index("wall")
    end = ahead[:, 40:72]
    np.testing.assert_allclose(flat.depth[:, 40:72][end], 5.0, rtol=1e-6)  # a frontal wall has one depth
    fx, _, _, cy = Rooms(height=84, width=112).intrinsics
    rows = np.arange(84)[:, None] + np.zeros((1, 112))
    floor = flat.label == CLASSES.index("floor")
    assert floor.any()
    np.testing.assert_allclose(flat.depth[floor], (1.5 * fx / (rows - cy))[floor], rtol=1e-5)


def test_the_image_is_not_mirrored():
    """The camera looks along +x, so what stands at greater y is to its left, what stands higher is further up."""
    ball = Sphere((4.0, 3.0, 2.0), 0.3, 0, 13)
    y, x = np.nonzero(render(simple_scene(spheres=[ball]), 84, 112).label == 13)
    fx, fy, cx, cy = Rooms(height=84, width=112).intrinsics
    assert abs(x.mean() - (cx - fx / 3)) < 1 and abs(y.mean() - (cy - fy * 0.5 / 3)) < 1


def test_nearest_points_of_single_objects():
    sphere = render(simple_scene(spheres=[Sphere((4.0, 2.0, 1.5), 0.5, 0, 13)]), 85, 113)
    assert sphere.depth[42, 56] == pytest.approx(2.5, rel=1e-5) and sphere.label[42, 56] == 13
    cylinder = render(simple_scene(cylinders=[Cylinder((4.0, 2.0, 1.5), 0.25, 1.0, 0, 12)]), 85, 113)
    assert cylinder.depth[42, 56] == pytest.approx(2.75, rel=1e-5) and cylinder.label[42, 56] == 12
    turned = Box((4.0, 2.0, 1.5), (0.5, 0.5, 1.0), np.pi / 4, 0, 9)
    box = render(simple_scene(boxes=[turned]), 85, 113)
    assert box.depth[42, 56] == pytest.approx(3 - 0.5 * np.sqrt(2), rel=1e-5) and box.label[42, 56] == 9


def test_an_object_that_reaches_behind_the_camera_is_drawn():
    bench = Box((1.0, 1.2, 0.5), (3.0, 0.3, 0.5), 0.0, 0, 9)
    picture = render(simple_scene(boxes=[bench], pitch=-0.5), 84, 112)
    expected = picture.depth.copy()
    assert (picture.label == 9).mean() > 0.05
    assert expected[picture.label == 9].min() < 1.2


def test_noise_changes_no_depth_but_leaves_holes():
    for index in range(6):
        clean = Rooms(size=9, noise=False, **SMALL)[index]
        noisy = Rooms(size=9, **SMALL)[index]
        known = noisy["depth"] > 0
        np.testing.assert_array_equal(noisy["depth"][known], clean["depth"][known])
        np.testing.assert_array_equal(noisy["label"], clean["label"])
        assert 0.85 < known.mean() <= 1
        assert not np.array_equal(noisy["image"], clean["image"])


def test_holes_lie_where_they_are_claimed():
    """Every hole is in a projector shadow, next to an edge, at a grazing angle, on a window or out of range."""
    for index in range(8):
        source = Rooms(size=9, **SMALL)
        picture, item = render(source.scene(index), 42, 56), source[index]
        disparity = BASELINE * source.intrinsics[0] / picture.depth.astype(np.float64)
        seen_at = np.arange(56) - disparity
        claimed = (picture.depth > MAX_DEPTH) | (picture.facing < 0.12) | (item["label"] == CLASSES.index("window"))
        for k in range(1, 56):
            claimed[:, :-k] |= seen_at[:, k:] <= seen_at[:, :-k] + 1e-4
        claimed[:, 1:] |= disparity[:, :-1] - disparity[:, 1:] > 0.999
        claimed[1:] |= np.abs(np.diff(disparity, axis=0)) > 0.999
        assert claimed[item["depth"] == 0].all()


def test_same_item_twice_in_another_process_and_any_order():
    source = Rooms(size=20, split="val", seed=7, cache=False, **SMALL)
    later = source[11]
    source[3]
    again = source[11]
    longer = Rooms(size=500, split="val", seed=7, **SMALL)[11]
    program = (
        "import hashlib, json; from jdepth.data.sources.rooms import Rooms\n"
        "item = Rooms(size=20, split='val', seed=7, height=42, width=56)[11]\n"
        "print(json.dumps({k: hashlib.sha256(v.tobytes()).hexdigest() for k, v in item.items()}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    elsewhere = json.loads(run.stdout)
    for key, value in later.items():
        np.testing.assert_array_equal(value, again[key])
        np.testing.assert_array_equal(value, longer[key])
        assert hashlib.sha256(value.tobytes()).hexdigest() == elsewhere[key]


def test_splits_seeds_and_indices_are_different_rooms():
    sources = [Rooms(split=split, size=2, seed=seed, **SMALL) for split in SPLITS for seed in (0, 1)]
    assert len({source[i]["image"].tobytes() for source in sources for i in (0, 1)}) == 2 * len(sources)
    assert len({source.item_id(i) for source in sources for i in (0, 1)}) == 2 * len(sources)


def test_a_room_is_the_same_at_every_resolution():
    small, large = Rooms(size=4, height=84, width=112), Rooms(size=4)
    assert small.item_id(2) == large.item_id(2)
    assert small.scene(2).boxes == large.scene(2).boxes
    assert small.intrinsics[0] * 2 == pytest.approx(large.intrinsics[0])


def test_cache_returns_fresh_copies_and_stays_behind_when_pickled():
    source = Rooms(size=4, cache=True, **SMALL)
    first = source[0]
    original = first["depth"].copy()
    first["depth"][:] = -1
    np.testing.assert_array_equal(source[0]["depth"], original)
    np.testing.assert_array_equal(Rooms(size=4, cache=False, **SMALL)[0]["depth"], original)
    assert len(pickle.dumps(source)) < 10_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[0]["depth"], original)


def test_threads_share_one_source():
    source, expected = Rooms(size=6, **SMALL), [Rooms(size=6, cache=False, **SMALL)[i] for i in range(6)]
    failures = []

    def read():
        for i in list(range(6)) * 2:
            if any(not np.array_equal(source[i][key], expected[i][key]) for key in expected[i]):
                failures.append(i)

    threads = [threading.Thread(target=read) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures


def test_needs_numpy_alone():
    program = (
        "import sys, numpy.random; before = set(sys.modules)\n"
        "from jdepth.data.sources.rooms import Rooms; Rooms(size=1, height=42, width=56)[0]\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(m for m in new if m not in sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(json.loads(run.stdout.replace("'", '"'))) <= {"jdepth", "numpy"}


@pytest.fixture(scope="module")
def many():
    """Depth (N, H, W) and labels of 400 training rooms and depth of 64 validation rooms at 42 x 56."""
    train, val = Rooms(size=400, cache=False, **SMALL), Rooms(split="val", size=64, cache=False, **SMALL)
    items = [train[i] for i in range(400)]
    depth, label = (np.stack([item[key] for item in items]) for key in ("depth", "label"))
    return depth, label, np.stack([val[i]["depth"] for i in range(64)])


def absrel(prediction, depth):
    valid = depth > 0
    return (np.abs(prediction - depth)[valid] / depth[valid]).mean()


def test_position_alone_predicts_no_better_than_a_constant(many):
    """What a network gains over a constant has to come from looking: no map of the pixel's position helps."""
    train, _, val = many
    constant = min(absrel(np.full(val.shape, c), val) for c in np.linspace(0.5, 4, 176))
    known = np.where(train > 0, train, np.nan)
    ordered = np.sort(known, 0)  # missing ones (nan) at the end
    weight = np.nan_to_num(1 / ordered).cumsum(0)
    at = (weight < weight[-1] / 2).sum(0)
    best_map = np.take_along_axis(ordered, at[None], 0)[0]  # per pixel the constant with the least AbsRel on train
    for prediction in (np.nanmean(known, 0), np.nanmedian(known, 0), best_map):
        assert absrel(np.broadcast_to(prediction, val.shape), val) >= 0.9 * constant


def test_depths_vary_between_and_within_rooms(many):
    train, _, _ = many
    known = np.where(train > 0, train, np.nan)
    level = np.log(np.nanmedian(known, (1, 2)))
    assert level.std() > 0.35
    low, high = np.nanpercentile(known, [2, 98])
    assert low < 0.9 and high > 5
    spread = np.nanpercentile(known, 90, (1, 2)) / np.nanpercentile(known, 10, (1, 2))
    assert np.median(spread) > 1.6


def test_share_of_holes(many):
    assert 0.01 < (many[0] == 0).mean() < 0.04


def test_presence_of_classes(many):
    labels = many[1]
    present = np.stack([(labels == c).any((1, 2)) for c in range(len(CLASSES))], 1)
    rate = dict(zip(CLASSES, present.mean(0)))
    assert rate.pop("wall") > 0.95 and rate.pop("floor") > 0.5
    assert all(0.12 < r < 0.65 for r in rate.values()), rate
    assert 3 < present.sum(1).mean() < 8 and len({tuple(p) for p in present}) > 100
