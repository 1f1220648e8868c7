"""Targets of the auxiliary tasks, computed on the host from the label map of the augmented crop.

For the image-level tasks no label map travels to the device: a multi-hot vector or one number does.
"""

from collections.abc import Sequence

import numpy as np

from jdepth.data.sources.suggest import closest
from jdepth.errors import UserError

IGNORE = 255

# What a batch carries for each task beside image, valid_size, dataset_id and photometric.
TASKS = {"mldc": "classes", "single_label": "class_id", "segmentation": "label", "reconstruction": None}


def check_task(task: str) -> None:
    """Raises UserError for an unknown task."""
    if task not in TASKS:
        raise UserError(f"unknown auxiliary task '{task}'{closest(task, TASKS)}; known: {', '.join(TASKS)}")


def needs_label(task: str) -> bool:
    """Whether the task's target comes from a label map (reconstruction's is the image itself)."""
    return TASKS[task] is not None


def multi_hot(label: np.ndarray, width: int) -> np.ndarray:
    """Multi-label dense classification: which classes appear in the crop.

    Args:
      label: (H, W) uint8 class ids, 255 = ignore.
      width: length of the vector: the largest class count of the mixture.

    Returns:
      (width,) float32, 1 where the class has at least one pixel.
    """
    return (_counts(label)[:width] > 0).astype(np.float32)


def most_frequent(label: np.ndarray) -> np.int32:
    """Single-label classification: the class with the most pixels, lowest id on ties, -1 where there is none."""
    counts = _counts(label)
    return np.int32(counts.argmax() if counts.any() else -1)


def target(task: str, label: np.ndarray | None, classes: Sequence[int]) -> dict[str, np.ndarray]:
    """The entries a sample gets for its task.

    Args:
      task: a key of `TASKS`.
      label: (H, W) uint8, or None for reconstruction.
      classes: class counts of all members of the mixture.
    """
    if task == "mldc":
        return {"classes": multi_hot(label, max(classes))}
    if task == "single_label":
        return {"class_id": most_frequent(label)}
    if task == "segmentation":
        return {"label": label}
    return {}


def _counts(label: np.ndarray) -> np.ndarray:
    """(255,) pixels per class id, ignored ones left out."""
    return np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
