"""Matterport3D: 18 views of 1024x1280 from each of 10,800 panoramas in 90 houses.

Raw layout, with the house archives unpacked into one folder, or each in the folder into which the provider's script
puts it (v1/scans/HOUSE/), with or without that v1/scans:

    HOUSE/undistorted_color_images/PANO_iCAMERA_YAW.jpg       CAMERA 0..2, YAW 0..5
    HOUSE/undistorted_depth_images/PANO_dCAMERA_YAW.png       quarters of a millimetre along the axis, 0 = no reading

and the benchmark's lists of houses, scenes_{train,val,test}.txt (61, 11, 18), beside the houses or in
tasks/benchmark/ as in github.com/niessner/Matterport.

Unverified: the sizes of the downloads; that the files need no flip (the provider speaks of an origin at the bottom
left, which concerns projection).
"""

from pathlib import Path

from jdepth.data.sources.raw import Item, RawSet, listed, pairs, read_depth
from jdepth.errors import UserError

COLOUR, DEPTH = "undistorted_color_images", "undistorted_depth_images"


def items(raw: Path, split: str) -> list[Item]:
    """Views of one split's houses."""
    path = _house_list(raw, split)
    houses = [row[0] for row in listed(path, 1)]
    folders = [_house(raw, house, path) for house in houses]
    images = (image for folder in folders for image in (folder / COLOUR).glob("*_i[0-9]_[0-9].jpg"))
    return pairs(images, _identity, _depth_of, "depth")


def _house(raw: Path, name: str, listed_in: Path) -> Path:
    """The folder that holds a house's pictures."""
    for place in (name, f"{name}/{name}", f"v1/scans/{name}", f"v1/scans/{name}/{name}"):
        if (raw / place / COLOUR).is_dir():
            return raw / place
    raise UserError(
        f"{raw / name / COLOUR}: no such folder, but {listed_in.name} names the house; unpack its archive there, "
        "or take it from the list"
    )


def _identity(image: Path) -> str:
    return f"{image.parent.parent.name}/{image.stem}"


def _depth_of(image: Path) -> Path:
    pano, _, view = image.stem.rpartition("_i")
    return image.parent.with_name(DEPTH) / f"{pano}_d{view}.png"


def _house_list(raw: Path, split: str) -> Path:
    name = f"scenes_{split}.txt"
    for path in (raw / name, raw / "tasks/benchmark" / name):
        if path.is_file():
            return path
    raise UserError(
        f"{raw / name}: list file not found; copy {name} there from tasks/benchmark/ of github.com/niessner/Matterport"
    )


MATTERPORT = RawSet(
    name="matterport",
    title="Matterport3D",
    # 18 views of 10,800 panoramas, shared out by the number of houses: no count per split is published.
    counts={"train": 131760, "val": 23760, "test": 38880},
    approximate=True,
    size=(1024, 1280),
    items=items,
    read=read_depth,
    expects=(),  # several layouts: `items` says what is missing
    source=(
        "niessner.github.io/Matterport, after signing its terms: the types undistorted_color_images and "
        "undistorted_depth_images; scenes_*.txt from tasks/benchmark/ of github.com/niessner/Matterport"
    ),
    terms="Matterport's end user licence: academic, non-commercial, no redistribution",
    download="hundreds of GB",
    per_metre=4000.0,
    farthest=16.5,
    note=(
        "benchmark split by houses; the paper's split is unknown (it has about 144,000 train and 19,200 val images), "
        "and the counts here are proportional to the houses, not published"
    ),
)
