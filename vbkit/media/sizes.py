"""Sizes of decoded frames, and the clips that a video is cut into."""

from __future__ import annotations

import numpy as np

__all__ = ["MAX_ASPECT", "clip_grid", "clip_sample_times", "decode_size", "frames_per_batch"]

MAX_ASPECT = 4
"""Frames longer than this many times their short side are squeezed to it."""

_BATCH_BYTES = 8 << 20
_BATCH_FRAMES = 64


def decode_size(width: int, height: int, short: int | None) -> tuple[int, int]:
    """Width and height (px) of a frame whose short side becomes `short`; unchanged for None.

    The aspect is kept up to `MAX_ASPECT`. Smaller pictures are enlarged, so that all videos
    reach the backbone in the size that it needs.
    """
    if short is None:
        return width, height
    scale = short / min(width, height)
    longest = MAX_ASPECT * short
    return (min(longest, max(1, round(width * scale))), min(longest, max(1, round(height * scale))))


def frames_per_batch(width: int, height: int) -> int:
    """How many frames of a size go into one `FrameBatch`."""
    return max(1, min(_BATCH_FRAMES, _BATCH_BYTES // (3 * width * height)))


def clip_grid(duration_s: float, clip_s: float, shift: float = 0.0) -> np.ndarray:
    """Cut a video into consecutive clips.

    The last clip is shorter; a remainder under half a clip joins the clip before it. A video
    shorter than a clip is one clip, and a picture (0 s) one clip [0, 0].

    Args:
        duration_s: of the video, s.
        clip_s: length of a clip, s.
        shift: of a clip, from -0.5 to 0.5, by which the first clip is longer, so that all others
            begin later.

    Returns:
        (C, 2) float64, s: start and end of each clip.
    """
    if clip_s <= 0:
        raise ValueError(f"clip_s must be positive, got {clip_s}")
    if not -0.5 <= shift <= 0.5:
        raise ValueError(f"shift must be from -0.5 to 0.5, got {shift}")
    count = max(1, int(np.floor(duration_s / clip_s - shift + 0.5 + 1e-9)))
    edges = (np.arange(count + 1, dtype=np.float64) + shift) * clip_s
    edges[0], edges[-1] = 0.0, duration_s
    return np.stack([edges[:-1], edges[1:]], axis=1)


def clip_sample_times(clip_times: np.ndarray, n: int, phase: float = 0.5) -> np.ndarray:
    """(C, n) float64, s: `n` evenly spaced times in each clip, at the middle of its n-ths.

    Args:
        clip_times: (C, 2) float64, s.
        n: times in each clip.
        phase: where in its n-th a time is, from 0 to 1.
    """
    start, end = clip_times[:, :1], clip_times[:, 1:]
    return start + (end - start) * (np.arange(n) + phase) / n
