"""Frames of videos, read and written with OpenCV's FFmpeg."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from jdepth.errors import UserError

# What OpenCV and FFmpeg say of a broken file would stand beside the one line that we say: only errors, and nothing.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

@dataclass(frozen=True)
class VideoInfo:
    """Frames as the file's header says (0 where it does not), per second, and (height, width) of one."""

    frames: int
    rate: float
    size: tuple[int, int]


def info(path: Path) -> VideoInfo:
    """What the file says about itself. Raises UserError for what is no video."""
    capture = _opened(path)
    try:
        count, rate = capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)
        size = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
    finally:
        capture.release()
    if min(size) < 1:
        raise UserError(f"{path}: not a readable video (frames of {size[0]}x{size[1]})")
    return VideoInfo(max(0, int(count)), rate if 0 < rate < 1000 else 25.0, size)


def frames(path: Path) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB of each frame, upright. Raises UserError for what is no video or has no frame."""
    capture = _opened(path)
    number = 0
    try:
        while True:
            read, frame = capture.read()
            if not read:
                break
            number += 1
            yield np.ascontiguousarray(frame[..., ::-1])
    finally:
        capture.release()
    if not number:
        raise UserError(f"{path}: not a readable video (no frame could be decoded)")


class Writer:
    """Writes (H, W, 3) uint8 RGB frames of one size to an MP4."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]):
        self._path, self._size, self._added = path, size, 0
        self._writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (size[1], size[0]))
        if not self._writer.isOpened():
            raise UserError(f"{path}: cannot be written as a video of {size[1]}x{size[0]}")

    def add(self, frame: np.ndarray) -> None:
        if frame.shape[:2] != self._size:
            raise ValueError(f"a frame of {frame.shape[:2]} in a video of {self._size}")
        self._writer.write(np.ascontiguousarray(frame[..., ::-1]))
        self._added += 1

    def close(self) -> None:
        """Finish the file. Raises UserError where it does not hold every frame: OpenCV does not tell of a full disk."""
        self._writer.release()
        try:
            held = info(self._path).frames
        except UserError:
            held = 0
        if held < self._added:
            self._path.unlink(missing_ok=True)
            raise UserError(f"{self._path}: could not be written to its end; is there free space?")


def _opened(path: Path) -> cv2.VideoCapture:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UserError(f"{path}: not a readable video")
    return capture
