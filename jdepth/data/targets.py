"""Targets of the auxiliary tasks, computed on the host from the label map of the augmented crop.

For the image-level tasks no label map travels to the device: a multi-hot vector or one number does.
"""

from collections.abc import Sequence

import cv2
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


def multi_hot(counts: np.ndarray, width: int) -> np.ndarray:
    """Multi-label dense classification: which classes appear in the crop.

    Args:
      counts: (255,) pixels per class id, as `class_counts`.
      width: length of the vector: the largest class count of the mixture.

    Returns:
      (width,) float32, 1 where the class has at least one pixel.
    """
    return (counts[:width] > 0).astype(np.float32)


def most_frequent(counts: np.ndarray) -> np.int32:
    """Single-label classification: the class with the most pixels, lowest id on ties, -1 where there is none."""
    return np.int32(counts.argmax() if counts.any() else -1)


def target(
    task: str, label: np.ndarray | None, classes: Sequence[int], counts: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The entries a sample gets for its task.

    Args:
      task: a key of `TASKS`.
      label: (H, W) uint8, or None for reconstruction.
      classes: class counts of all members of the mixture.
      counts: the label's `class_counts`, where they are known.
    """
    if task in ("mldc", "single_label") and counts is None:
        counts = class_counts(label)
    if task == "mldc":
        return {"classes": multi_hot(counts, max(classes))}
    if task == "single_label":
        return {"class_id": most_frequent(counts)}
    if task == "segmentation":
        return {"label": label}
    return {}


def class_counts(label: np.ndarray) -> np.ndarray:
    """(255,) pixels per class id of a (H, W) uint8 label map, ignored ones left out."""
    # Counted in float32, exact up to 2^24 pixels; NumPy's bincount first makes 64-bit numbers of them.
    return cv2.calcHist([label], [0], None, [IGNORE + 1], [0, IGNORE + 1]).ravel()[:IGNORE].astype(np.int64)
