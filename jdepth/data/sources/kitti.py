"""KITTI, Eigen's split with the depth benchmark's ground truth: driving, about 375x1242, 23,158 / 652 images.

Raw layout, either of

    input/DATE/DRIVE/image_02/data/FRAME.png      gt_depth/DRIVE/proj_depth/groundtruth/image_02/FRAME.png
    DATE/DRIVE/image_02/data/FRAME.png            {train,val}/DRIVE/proj_depth/groundtruth/image_02/FRAME.png

(Monocular-Depth-Estimation-Toolbox, which merges the provider's train and val drives; as the archives unpack), with
kitti_eigen_train.txt and kitti_eigen_test.txt beside them. 45 of the 697 test images have no such ground truth.

Unverified: the licence's version; the size of the depth archive.
"""

from pathlib import Path

from jdepth.data.sources import mde_lists
from jdepth.data.sources.raw import Item, RawSet, read_depth
from jdepth.errors import UserError

ORIGIN = "splits/ of github.com/zhyever/Monocular-Depth-Estimation-Toolbox"
DEPTH_FOLDERS = ("gt_depth", "train", "val")


def items(raw: Path, split: str) -> list[Item]:
    """Images of one split, those without ground truth left out."""
    path = raw / f"kitti_eigen_{split}.txt"
    found = mde_lists.rows(path, ORIGIN)
    if not found:
        return []
    images = mde_lists.root(raw, ("input", ""), (image for image, _ in found))
    drives = _drives(raw)
    listed = []
    for image, depth in found:
        drive = depth.partition("/")[0]
        if drive not in drives:
            places = ", ".join(f"{folder}/" for folder in DEPTH_FOLDERS)
            raise UserError(
                f"{path}: depth of {drive} is in none of {places} of {raw}; unpack data_depth_annotated.zip there"
            )
        listed.append(Item(mde_lists.identity(image), {"image": images / image, "depth": drives[drive] / depth}))
    return listed


def _drives(raw: Path) -> dict[str, Path]:
    """Drives that have ground truth, and the folder that each lies in."""
    folders = [raw / name for name in DEPTH_FOLDERS]
    return {drive.name: folder for folder in folders if folder.is_dir() for drive in folder.iterdir()}


EIGEN = RawSet(
    name="kitti",
    title="KITTI, Eigen's split",
    counts={"train": 23158, "test": 652},
    items=items,
    read=read_depth,
    expects=("train:kitti_eigen_train.txt", "test:kitti_eigen_test.txt"),
    source=(
        "cvlibs.net/datasets/kitti: the raw recordings (synced and rectified) and data_depth_annotated.zip; "
        f"kitti_eigen_train.txt and kitti_eigen_test.txt from {ORIGIN}"
    ),
    terms="CC BY-NC-SA 3.0",
    download="175 to 200 GB (recordings) and about 14 GB (depth)",
    per_metre=256.0,
    farthest=90.0,
    note="sparse LiDAR depth, 0 = no return; native size: the benchmark crop is made when images are used",
)
