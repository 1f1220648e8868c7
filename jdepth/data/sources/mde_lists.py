"""Split files of BTS and the Monocular-Depth-Estimation-Toolbox: an image, its depth or `None`, a focal length."""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from jdepth.data.sources.raw import listed
from jdepth.errors import UserError


def rows(path: Path, origin: str) -> list[tuple[str, str]]:
    """(image, depth) of every line that has a depth, by image; leading slashes are gone.

    Args:
      origin: where the file comes from, for the error when it is not there.

    Raises:
      UserError: the file is missing or a line has fewer than two words.
    """
    if not path.is_file():
        raise UserError(f"{path}: list file not found; copy {path.name} there from {origin}")
    found = [(image.lstrip("/"), depth.lstrip("/")) for image, depth, *_ in listed(path, 2) if depth != "None"]
    return sorted(found)


def root(raw: Path, candidates: Sequence[str], names: Iterable[str]) -> Path:
    """The first folder of `candidates` below `raw` that holds the first folder of each of the listed names.

    Raises:
      UserError: none does.
    """
    folders = sorted({name.partition("/")[0] for name in names})
    absent = {place: [name for name in folders if not (raw / place / name).is_dir()] for place in candidates}
    place = min(candidates, key=lambda candidate: len(absent[candidate]))
    if not absent[place]:
        return raw / place
    if len(absent[place]) < len(folders):
        shown = ", ".join(absent[place][:5]) + (", ..." if len(absent[place]) > 5 else "")
        raise UserError(
            f"{raw / place}: {len(absent[place])} of the {len(folders)} listed folders are missing: {shown}"
        )
    places = " or ".join(str(raw / candidate) for candidate in candidates)
    raise UserError(f"{places}: expected the folders that the list names ({', '.join(folders[:3])}, ...) in it")


def identity(image: str) -> str:
    """An item's id: its image's name in the list, without the suffix."""
    return str(PurePosixPath(image).with_suffix(""))
