"""Small grey pictures of decoded frames, for what looks at motion."""

from __future__ import annotations

import numpy as np

__all__ = ["grey_squares"]


def grey_squares(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames in grey, the whole picture squeezed to a square by area averaging.

    Grey is that of ITU-R BT.601. A pixel of the square is the mean over the part of the frame that
    it covers, pixels that it covers in part counted in part. All of it is integer arithmetic, so
    it is the same on every machine, whatever else is in the batch.

    Args:
        frames: (N, H, W, 3) uint8, RGB.
        size: S, side of the squares, px.

    Returns:
        (N, S, S) uint8.
    """
    count, height, width = frames.shape[:3]
    out = np.empty((count, size, size), np.uint8)
    for place, frame in enumerate(frames):  # one at a time stays in the processor's cache
        grey = frame[..., 0] * np.uint16(77)
        grey += frame[..., 1] * np.uint16(150)
        grey += frame[..., 2] * np.uint16(29)
        grey += np.uint16(128)
        grey >>= np.uint16(8)
        sums = _box_sums(_box_sums(grey, size).T, size).T
        out[place] = (sums + (height * width) // 2) // (height * width)
    return out


def _box_sums(picture: np.ndarray, size: int) -> np.ndarray:
    """`size` sums over equal parts of the rows of (H, W), times `size`: (size, W) int32."""
    height, width = picture.shape
    total = np.zeros((height + 1, width), np.int32)
    np.cumsum(picture, axis=0, dtype=np.int32, out=total[1:])
    whole, rest = np.divmod(np.arange(size + 1) * height, size)  # the parts' edges, in size-ths
    edges = total[whole] * np.int32(size)  # what overflows here is right again in the difference
    edges += picture[np.minimum(whole, height - 1)] * rest[:, None].astype(np.int32)
    return np.diff(edges, axis=0)
