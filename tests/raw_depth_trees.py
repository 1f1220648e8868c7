"""Miniature copies of data sets with depth as their makers distribute them: folders, names, encodings.

Each builder writes one below a folder and returns, by split and id and in the expected order, what reading must give.
Metres come first; how they are stored is written out here and does not use the package's code.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np
import scipy.io
from raw_trees import SIZES, Expected, Splits


class Maker:
    """Random photographs and depth, each item of another size unless one is asked for."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.made = 0

    def size(self) -> tuple[int, int]:
        self.made += 1
        return SIZES[self.made % len(SIZES)]

    def photograph(self, path: Path, size: tuple[int, int]) -> np.ndarray:
        """Write an image; (H, W, 3) RGB as decoders see it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), self.rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        return cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1].copy()

    def steps(self, size: tuple[int, int], highest: int, holes: float = 0.2) -> np.ndarray:
        """(H, W) int64 numbers of steps, 0 = hole; the highest and the lowest occur."""
        steps = self.rng.integers(1, highest, size, endpoint=True)
        steps[0, :2] = 1, highest
        steps[1:][self.rng.random((size[0] - 1, size[1])) < holes] = 0
        return steps

    def pair(self, image: Path, depth: Path, per_metre: int, farthest: float, size=None) -> Expected:
        """An image and a 16-bit PNG of `per_metre` steps in a metre, 0 = hole."""
        size = size or self.size()
        metres = self.steps(size, int(farthest * per_metre)) / per_metre
        write_16_bits(depth, np.rint(metres * per_metre))
        return Expected(self.photograph(image, size), metres.astype(np.float32))


def write_16_bits(path: Path, stored: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert stored.min() >= 0 and stored.max() < 1 << 16
    assert cv2.imwrite(str(path), stored.astype(np.uint16))


def _list(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))  # some lists lack the last newline


def _by_id(splits: Splits) -> Splits:
    return {split: dict(sorted(items.items())) for split, items in splits.items()}


def matlab_7_3(path: Path) -> h5py.File:
    """An empty MATLAB 7.3 file: HDF5 behind a header of 512 bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be open
    h5py.File(path, "w", userblock_size=512).close()
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return h5py.File(path, "r+")


def cells(texts: Iterable[str]) -> np.ndarray:
    """A MATLAB cell row of strings."""
    texts = list(texts)
    row = np.empty((1, len(texts)), object)
    row[0] = texts
    return row


def nyu(root: Path, merged: bool = False) -> Splits:
    """BTS's folders, or `merged` as the Monocular-Depth-Estimation-Toolbox wants them."""
    make, splits = Maker(1), {}
    frames = {
        "train": ("kitchen_0028b/{}_00045", "living_room_0019/{}_00111", "bedroom_0067a/{}_00010"),
        "test": ("office_kitchen/{}_01444", "bathroom/{}_00045", "bedroom/{}_00179"),
    }
    folders = {"train": "" if merged else "sync/", "test": "" if merged else "official_splits/test/"}
    for split, names in frames.items():
        splits[split], lines = {}, []
        for number, name in enumerate(names):
            image, depth = f"{name.format('rgb')}.jpg", f"{name.format('sync_depth')}.png"
            place = root / folders[split]
            size = (480, 640) if number == 0 else None
            splits[split][image.removesuffix(".jpg")] = make.pair(place / image, place / depth, 1000, 10, size)
            slash = "/" if split == "train" else ""
            lines.append(f"{slash}{image} {slash}{depth} 518.8579")
        lines.insert(1, "/kitchen_0028b/rgb_00999.jpg None 518.8579")
        _list(root / f"nyu_{split}.txt", lines)
    make.photograph(root / folders["train"] / "kitchen_0028b/rgb_00046.jpg", (15, 17))  # of no list
    return _by_id(splits)


def nyu_labelled(root: Path) -> Splits:
    rng, height, width = np.random.default_rng(2), 480, 640
    split_of = ("train", "test", "test", "train", "train", "test")
    images = rng.integers(0, 256, (len(split_of), height, width, 3), dtype=np.uint8)
    steps = rng.integers(0, 10_000, (len(split_of), height, width), dtype=np.int64)
    beyond = rng.uniform(0.1, 0.9, steps.shape)  # fractions of a millimetre, which are lost
    metres = np.where(steps == 0, 0, (steps + beyond) / 1000).astype(np.float32)
    with matlab_7_3(root / "nyu_depth_v2_labeled.mat") as file:
        file["images"] = images.transpose(0, 3, 2, 1)
        file["rawDepths"] = metres.transpose(0, 2, 1)
        file["depths"] = np.full((len(split_of), width, height), 5, np.float32)  # in-filled
    places = {split: [n for n, own in enumerate(split_of, 1) if own == split] for split in ("train", "test")}
    scipy.io.savemat(root / "splits.mat", {f"{split}Ndxs": np.array([own]).T for split, own in places.items()})
    splits: Splits = {"train": {}, "test": {}}
    for index, split in enumerate(split_of):
        image = images[index].copy()
        if split == "test":
            image[:7], image[474:], image[:, :7], image[:, 632:] = 0, 0, 0, 0
        splits[split][f"{index:05d}"] = Expected(image, (steps[index] / 1000).astype(np.float32))
    return splits


SUN_FRAMES = {
    "train": (
        "kv2/kinect2data/000065_2014-05-16_20-14-38_260595134347_rgbf000121-resize",
        "xtion/sun3ddata/hotel_umd/maryland_hotel3/0000100-000003336776",
        "kv1/NYUdata/NYU0003",
        "realsense/shr/2014_10_27-17_09_29-1311000087",
    ),
    "test": (
        "xtion/xtion_align_data/2014_12_16-14_02_51-NexusPlayer",
        "kv1/b3dodata/img_0063",
        "kv2/kinect2data/000002_2014-05-26_14-23-37_260595134347_rgbf000103-resize",
        "realsense/lg/2014_10_30-15_44_22-1311000073",
    ),
}
# Frames as the toolbox numbers them, which is neither list's order.
SUN_NUMBERED = tuple(sorted((*SUN_FRAMES["train"], *SUN_FRAMES["test"]), key=lambda frame: frame[::-1]))
PROVIDER = "/n/fs/sun3d/data/SUNRGBD"


def _sun(kind: str, root: Path) -> Splits:
    make, values, images = Maker(3), {}, {}
    for frame in SUN_NUMBERED:
        folder, size = root / "SUNRGBD" / frame, make.size()
        images[frame] = make.photograph(folder / "image/0000103.jpg", size)
        make.photograph(folder / "fullres/0000103.jpg", (31, 33))
        (folder / "image/._0000103.jpg").write_bytes(b"what some systems add to archives")
        metres = make.steps(size, 12_000) / 1000
        millimetres = np.rint(metres * 1000).astype(np.int64)
        # Rotated left by 3 of 16 bits: what leaves above comes back below, from 8.192 m on.
        write_16_bits(folder / "depth/0000091.png", (millimetres * 8) % 65536 + millimetres // 8192)
        write_16_bits(folder / "depth_bfx/0000091.png", np.full(size, 8))
        labels = make.rng.permutation(np.resize(np.arange(38), size[0] * size[1])).reshape(size)
        metres = np.minimum(metres, 8.0).astype(np.float32)
        values[frame] = metres if kind == "depth" else (labels, np.where(labels == 0, 255, labels - 1).astype(np.uint8))
    toolbox = root / "SUNRGBDtoolbox"
    lists = {f"all{split}": cells(f"{PROVIDER}/{frame}" for frame in frames) for split, frames in SUN_FRAMES.items()}
    (toolbox / "traintestSUNRGBD").mkdir(parents=True)
    scipy.io.savemat(toolbox / "traintestSUNRGBD/allsplit.mat", lists)
    if kind == "label":
        _sun_labels(toolbox / "Metadata", [values[frame][0] for frame in SUN_NUMBERED])
        values = {frame: pair[1] for frame, pair in values.items()}
    expected = {frame: Expected(images[frame], values[frame]) for frame in SUN_NUMBERED}
    return _by_id({split: {frame: expected[frame] for frame in frames} for split, frames in SUN_FRAMES.items()})


def _sun_labels(folder: Path, labels: list[np.ndarray]) -> None:
    """The toolbox's two files: labels behind references, and which frame each belongs to."""
    with matlab_7_3(folder / "SUNRGBD2Dseg.mat") as file:
        references = np.empty((len(labels), 1), h5py.ref_dtype)
        for number, label in enumerate(labels):
            file[f"#refs#/{number:x}"] = label.T.astype(np.uint8)
            references[number, 0] = file[f"#refs#/{number:x}"].ref
        file.create_dataset("SUNRGBD2Dseg/seglabel", data=references, dtype=h5py.ref_dtype)
    fields = [("sequenceName", object), ("depthpath", object), ("rgbpath", object), ("valid", object)]
    rows = [
        (f"SUNRGBD/{frame}", f"{PROVIDER}/{frame}/depth_bfx/0000091.png", f"{PROVIDER}/{frame}/image/0000103.jpg", 1)
        for frame in SUN_NUMBERED
    ]
    scipy.io.savemat(folder / "SUNRGBDMeta.mat", {"SUNRGBDMeta": np.array([rows], dtype=fields)})


def sun37_small(root: Path) -> Splits:
    """Images and labels alone, renumbered, as github.com/ankurhanda/sunrgbd-meta-data has them."""
    make, splits = Maker(4), {}
    for split, before in (("train", 5050), ("test", 0)):
        splits[split] = {}
        for number in (1, 2, 3):
            size, name = make.size(), f"img-{before + number:06d}"
            image = make.photograph(root / f"SUNRGBD-{split}_images/img-{number:06d}.jpg", size)
            labels = make.rng.permutation(np.resize(np.arange(38), size[0] * size[1])).reshape(size)
            path = root / f"sunrgbd_train_test_labels/{name}.png"
            path.parent.mkdir(exist_ok=True)
            assert cv2.imwrite(str(path), labels.astype(np.uint8))
            splits[split][name] = Expected(image, np.where(labels == 0, 255, labels - 1).astype(np.uint8))
    return splits


def matterport(root: Path, lists: str = "") -> Splits:
    make, splits = Maker(5), {}
    houses = {"train": ("r1Q1Z4BcV1o", "17DRP5sb8fy"), "val": ("2azQ1b91cZZ",), "test": ("2t7WUuJeko7",)}
    for split, names in houses.items():
        splits[split] = {}
        for house in names:
            for pano, view in (("0b22fa63d0f54a529c525afbf2e8bb25", "0_5"), ("0b22fa63d0f54a529c525afbf2e8bb25", "2_0"),
                               ("f0_i1b2c3d4e5f60718293a4b5c6d7e8", "1_3")):  # fmt: skip
                image = root / house / f"undistorted_color_images/{pano}_i{view}.jpg"
                depth = root / house / f"undistorted_depth_images/{pano}_d{view}.png"
                splits[split][f"{house}/{pano}_i{view}"] = make.pair(image, depth, 4000, 16)
        _list(root / lists / f"scenes_{split}.txt", names)
    return _by_id(splits)


def taskonomy(root: Path, masks: bool = True) -> Splits:
    make, splits = Maker(6), {}
    buildings = {"train": ("hanson", "arona"), "val": ("wiconisco",), "test": ("ihlen",)}
    views = ((0, 3), (2, 1), (2, 10), (10, 0))
    for split, names in buildings.items():
        splits[split] = {}
        for building in sorted(names):
            for point, view in views:
                stem, size = f"{building}/point_{point}_view_{view}", make.size()
                metres = make.steps(size, 100 * 512) / 512
                holes = metres == 0
                stored = np.where(holes, 65535, np.rint(metres * 512))
                if masks:  # it may also say what the depth does not
                    holes[-1, -1] = True
                    mask = root / f"mask_valid/taskonomy/{stem}_domain_mask_valid.png"
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    assert cv2.imwrite(str(mask), np.where(holes, 0, 255).astype(np.uint8))
                write_16_bits(root / f"depth_zbuffer/taskonomy/{stem}_domain_depth_zbuffer.png", stored)
                image = make.photograph(root / f"rgb/taskonomy/{stem}_domain_rgb.png", size)
                splits[split][stem] = Expected(image, np.where(holes, 0, metres).astype(np.float32))
    make.photograph(root / "rgb/taskonomy/woodbine/point_0_view_0_domain_rgb.png", (15, 17))
    (root / "rgb/taskonomy/hanson/point_0_view_3_domain_rgb.png.aria2").write_bytes(b"")
    rows = ["id,train,val,test", "woodbine,1,0,0", "mosquito,0,1,0", "brinnon,0,0,1"]  # left out
    for split, names in buildings.items():
        rows += [",".join([name, *("01"[split == column] for column in ("train", "val", "test"))]) for name in names]
    (root / "train_val_test_full.csv").write_bytes("\r".join(rows).encode())
    return splits


def kitti(root: Path, merged: bool = False) -> Splits:
    """The provider's folders, or `merged` as the Monocular-Depth-Estimation-Toolbox wants them."""
    make, splits = Maker(7), {}
    frames = {
        "train": (("2011_10_03", "0034", 2933), ("2011_09_26", "0051", 5), ("2011_09_26", "0001", 77)),
        "test": (("2011_09_26", "0002", 69), ("2011_09_26", "0009", 13), ("2011_09_29", "0071", 356)),
    }
    provided = {"0002": "val"}  # in which of the provider's folders a drive's depth lies, if not in train
    for split, names in frames.items():
        splits[split], lines = {}, []
        for number, (date, drive, frame) in enumerate(names):
            part, drive = provided.get(drive, "train"), f"{date}_drive_{drive}_sync"
            image = f"{date}/{drive}/image_02/data/{frame:010d}.png"
            depth = f"{drive}/proj_depth/groundtruth/image_02/{frame:010d}.png"
            places = (root / "input", root / "gt_depth") if merged else (root, root / part)
            size = (375, 1242) if number == 0 else None
            found = make.pair(places[0] / image, places[1] / depth, 256, 85, size)
            splits[split][image.removesuffix(".png")] = found
            lines.append(f"{image} {depth} 721.5377")
        if split == "test":
            lines.insert(1, "2011_09_26/2011_09_26_drive_0059_sync/image_02/data/0000000000.png None 721.5377")
        _list(root / f"kitti_eigen_{split}.txt", lines)
    return _by_id(splits)


def _diode(place: str, farthest: float, root: Path) -> Splits:
    make, splits = Maker(8), {}
    scans = {
        "train": ("scene_00000/scan_00000", "scene_00000/scan_00001", "scene_00005/scan_00052"),
        "val": ("scene_00019/scan_00183", "scene_00020/scan_00184", "scene_00021/scan_00191"),
    }
    other = "outdoor" if place == "indoors" else "indoors"
    for split, names in scans.items():
        splits[split] = {}
        for scan in names:
            stem = f"{scan[6:11]}_{scan[17:]}_{place}_000_010"
            file, size = root / split / place / scan / stem, make.size()
            image = make.photograph(file.with_suffix(".png"), size)
            metres = make.rng.uniform(0.6, farthest, size).astype(np.float32)
            valid = make.rng.random(size) > 0.3
            metres[0, 0], valid[0, 0] = 0, True  # not measured, though the mask says so
            metres[0, 1], valid[0, 1] = 250, False
            np.save(f"{file}_depth.npy", metres[..., None])
            np.save(f"{file}_depth_mask.npy", valid.astype(np.float32))
            splits[split][f"{scan}/{stem}"] = Expected(image, np.where(valid, metres, np.float32(0)))
        (root / split / other / names[0]).mkdir(parents=True)
    return splits


# By the name of the set.
TREES: dict[str, Callable[[Path], Splits]] = {
    "nyu": nyu,
    "nyu_labelled": nyu_labelled,
    "sun": partial(_sun, "depth"),
    "sun37": partial(_sun, "label"),
    "matterport": matterport,
    "taskonomy": taskonomy,
    "kitti": kitti,
    "diode_indoor": partial(_diode, "indoors", 40.0),
    "diode_outdoor": partial(_diode, "outdoor", 300.0),
}
# Other layouts in which a set circulates: its name, a blank, which layout.
LAYOUTS: dict[str, Callable[[Path], Splits]] = {
    "nyu merged": partial(nyu, merged=True),
    "kitti merged": partial(kitti, merged=True),
    "sun37 small": sun37_small,
    "matterport benchmark": partial(matterport, lists="tasks/benchmark"),
    "taskonomy unmasked": partial(taskonomy, masks=False),
}
