"""Pictures that people look at: image, true depth and predicted depth side by side."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from jdepth import colourmap

# Height that small images are enlarged to before they are put on a sheet.
SHOWN_HEIGHT = 168


def depth_sheet(
    path: Path, images: Sequence[np.ndarray], truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray]
) -> None:
    """Write one row per item to a PNG: image, true depth, predicted depth, legend; one colour scale per row.

    Args:
      images: (h, w, 3) uint8 RGB.
      truths, predictions: (H, W) metres, 0 = invalid.
    """
    rows, captions = [], []
    for image, truth, prediction in zip(images, truths, predictions, strict=True):
        low, high = colourmap.depth_range(truth if (truth > 0).any() else prediction)
        shown = [image] + [colourmap.colour_depth(d, low, high) for d in (truth, prediction)]
        shown = [_enlarge(s, truth.shape) for s in shown]
        rows.append([*shown, colourmap.legend(low, high, shown[0].shape[0])])
        captions.append(["image", "true depth", "predicted depth", "m"])
    Image.fromarray(colourmap.contact_sheet(rows, captions)).save(path)


def _enlarge(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) to the shape of `size` (H, W), or larger where that is small."""
    factor = max(1.0, SHOWN_HEIGHT / size[0])
    width, height = round(size[1] * factor), round(size[0] * factor)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)
