"""Evaluation protocols of depth sets as data: which pixels count, in which range, at which input size.

Sources: Monocular-Depth-Estimation-Toolbox as used by DINOv2 (nyu, kitti, sun); ZoeDepth (`*_zoedepth`);
where the paper states no crop (DIODE, Matterport3D, Taskonomy), all valid pixels count.
"""

from dataclasses import dataclass

import numpy as np

from jdepth.data import geometry
from jdepth.data.sources.suggest import closest
from jdepth.errors import UserError


@dataclass(frozen=True)
class Protocol:
    """How predictions on one data set are scored.

    Attributes:
      min_depth, max_depth: metres; a pixel counts where min_depth < ground truth < max_depth, both strict.
      crop: (top, bottom, left, right), the last ones excluded; None: the whole map.
      crop_fraction: the crop is given as fractions of the map's height and width (truncated), not in pixels.
      native: (height, width) that a pixel crop is meant for; other sizes are an error, since a crop of fixed
        pixels neither scales nor transfers. None: pixels are taken as they are, whatever the size (SUN).
      kb_crop: KITTI benchmark crop of image and ground truth, before anything else.
      clip: ground truth beyond it is set to it, before the range is looked at; predictions likewise.
      resize: (height, width) of the network's input; None: native. Ground truth stays native, and
        predictions are resized to it.
      resize_area: average areas where `resize` shrinks, as a run that trained so needs it.
      flip: the prediction is the mean of those for the image and its mirror image.
      average: "image": metrics per image, then their mean over images that have valid pixels.
      note: in words, whatever else a reader must know.
    """

    name: str
    min_depth: float = 0.001
    max_depth: float = 10.0
    crop: tuple[float, float, float, float] | None = None
    crop_fraction: bool = False
    native: tuple[int, int] | None = None
    kb_crop: bool = False
    clip: float | None = None
    resize: tuple[int, int] | None = None
    resize_area: bool = False
    flip: bool = True
    average: str = "image"
    note: str = ""

    @property
    def prediction_range(self) -> tuple[float, float]:
        """(lowest, highest) metres a prediction is clamped to before it is scored."""
        return self.min_depth, self.max_depth if self.clip is None else self.clip


_EIGEN_INDOOR = (45, 471, 41, 601)
_GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
_EIGEN_KITTI = (0.3324324, 0.91351351, 0.0359477, 0.96405229)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("nyu", crop=_EIGEN_INDOOR, native=(480, 640), note="Eigen crop, 654 test images"),
        Protocol("kitti", max_depth=80.0, kb_crop=True, crop=_GARG, crop_fraction=True, note="Garg crop, 652 images"),
        Protocol(
            "kitti_eigen", max_depth=80.0, kb_crop=True, crop=_EIGEN_KITTI, crop_fraction=True, note="Eigen crop"
        ),
        Protocol("sun", crop=_EIGEN_INDOOR, clip=8.0, resize=(480, 640), note="crop in native pixels at any size"),
        Protocol("matterport", resize=(480, 640), note="validation split"),
        Protocol("taskonomy", note="validation split"),
        Protocol("diode_indoor", note="validation split"),
        Protocol("diode_outdoor", max_depth=80.0, note="validation split"),
        Protocol("diode_indoor_zoedepth", crop=_EIGEN_INDOOR, native=(768, 1024), resize=(480, 640)),
        Protocol("diode_outdoor_zoedepth", max_depth=80.0, crop=_GARG, crop_fraction=True, resize=(480, 640)),
        Protocol("rooms", flip=False, note="synthetic rooms"),
        Protocol("whole"),
        Protocol("whole80", max_depth=80.0),
    )
}


def protocol(name: str) -> Protocol:
    """The named protocol; UserError for an unknown name."""
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UserError(f"unknown evaluation protocol '{name}'{closest(name, PROTOCOLS)}; known: {known}")
    return PROTOCOLS[name]


def default(dataset: str) -> str:
    """Name of the protocol that a data set is scored with: its own, or all valid pixels."""
    name = {"nyu_labelled": "nyu", "nyu_tfds": "nyu"}.get(dataset, dataset)
    return name if name in PROTOCOLS else "whole"


def prepare(protocol: Protocol, image: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is scored: the network's input image (h, w, 3) uint8 and the ground truth (H, W) float32 metres."""
    if protocol.kb_crop:
        image, depth = geometry.kb_crop(image), geometry.kb_crop(depth)
    if protocol.clip is not None:
        depth = np.minimum(depth, np.float32(protocol.clip))
    if protocol.resize is not None:
        image = geometry.resize(image, protocol.resize, area=protocol.resize_area)
    return np.ascontiguousarray(image), np.ascontiguousarray(depth)


def valid_mask(protocol: Protocol, depth: np.ndarray) -> np.ndarray:
    """Pixels that count.

    Args:
      depth: (H, W) float32 metres as `prepare` returns it; 0, negative, nan and inf never count.

    Returns:
      (H, W) bool.

    Raises:
      UserError: the map has not the size that the protocol's pixel crop is meant for.
    """
    height, width = depth.shape
    if protocol.native is not None and (height, width) != tuple(protocol.native):
        raise UserError(
            f"protocol '{protocol.name}' is defined for depth maps of {protocol.native[0]}x{protocol.native[1]} "
            f"(height x width), got {height}x{width}; use protocol 'whole' (all valid pixels) for such data"
        )
    mask = (depth > protocol.min_depth) & (depth < protocol.max_depth)
    if protocol.crop is None:
        return mask
    top, bottom, left, right = protocol.crop
    if protocol.crop_fraction:
        top, bottom, left, right = int(top * height), int(bottom * height), int(left * width), int(right * width)
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = True
    return mask & inside


def describe(protocol: Protocol) -> str:
    """One line to print beside every number."""
    parts = [f"{protocol.min_depth:g} < depth < {protocol.max_depth:g} m"]
    if protocol.clip is not None:
        parts.append(f"depth and prediction clipped at {protocol.clip:g} m")
    if protocol.kb_crop:
        parts.append("KITTI benchmark crop 352x1216")
    if protocol.crop is None:
        parts.append("whole image")
    else:
        top, bottom, left, right = (f"{edge:g}" for edge in protocol.crop)
        unit = " of the height and width" if protocol.crop_fraction else ""
        parts.append(f"rows {top}:{bottom}, columns {left}:{right}{unit}")
    if protocol.resize is not None:
        parts.append(f"input {protocol.resize[0]}x{protocol.resize[1]}")
    parts.append("flip averaged" if protocol.flip else "no flip")
    parts.append(f"mean over {protocol.average}s")
    return f"{protocol.name}: " + ", ".join(parts) + (f" ({protocol.note})" if protocol.note else "")
