"""Small grey pictures of decoded frames, for what looks at motion."""

from __future__ import annotations

import numpy as np

__all__ = ["grey_squares"]


def grey_squares(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames in grey, the whole picture squeezed to a square by area averaging.

    Grey is Pillow's, that of ITU-R BT.601. A pixel of the square is the mean over the part of the
    frame that it covers, pixels that it covers in part counted in part. All of it is integer
    arithmetic, so it is the same on every machine, whatever else is in the batch.

    Args:
        frames: (N, H, W, 3) uint8, RGB, of at most 8 megapixels.
        size: S, side of the squares, px.

    Returns:
        (N, S, S) uint8.
    """
    from PIL import Image

    count, height, width = frames.shape[:3]
    out = np.empty((count, size, size), np.uint8)
    # Memory that is used again for each frame: new pages would cost more than the sums.
    down, across = (np.zeros(shape, np.int32) for shape in ((height + 1, width), (width + 1, size)))
    for place, frame in enumerate(frames):
        grey = np.asarray(Image.fromarray(frame).convert("L"))
        sums = _box_sums(_box_sums(grey, size, down).T, size, across).T
        out[place] = (sums + (height * width) // 2) // (height * width)
    return out


def _box_sums(picture: np.ndarray, size: int, total: np.ndarray) -> np.ndarray:
    """`size` sums over equal parts of the rows of (H, W), times `size`: (size, W) int32.

    `total` is (H + 1, W) int32, with a first row of zeros; the rest is written.
    """
    height = len(picture)
    np.cumsum(picture, axis=0, dtype=np.int32, out=total[1:])
    whole, rest = np.divmod(np.arange(size + 1) * height, size)  # the parts' edges, in size-ths
    edges = total[whole] * np.int32(size)  # what overflows here is right again in the difference
    edges += picture[np.minimum(whole, height - 1)] * rest[:, None].astype(np.int32)
    return np.diff(edges, axis=0)
