"""The nouns of the media layer: frames, readers, transcripts. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from typing import Protocol, runtime_checkable

import numpy as np

__all__ = ["FrameBatch", "Segment", "Transcript", "VideoInfo", "VideoReader"]


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its video, corrected where it is known to be wrong.

    Times are seconds; t = 0 is the first presented frame.

    Args:
        duration_s: from the first frame's start to the last frame's end.
        start_offset_s: the container's own time of the first presented frame.
        width, height: px, as presented (after rotation and pixel aspect are applied).
        n_frames: presented frames.
        codec: name of the codec, e.g. `"h264"`; `"image"` for a still picture.
        rotation: degrees clockwise that were applied.
        has_audio: whether there is a sound stream.
        reader: who decodes it: `"decord"`, `"pyav"`, `"image"` or a plugin's own.
    """

    duration_s: float
    width: int
    height: int
    n_frames: int
    start_offset_s: float = 0.0
    codec: str = ""
    rotation: int = 0
    has_audio: bool = False
    reader: str = ""

    def __post_init__(self) -> None:
        if not (isfinite(self.duration_s) and self.duration_s >= 0):
            raise ValueError(f"duration_s is {self.duration_s}")
        if min(self.width, self.height, self.n_frames) < 1:
            raise ValueError(f"no picture: {self.width}x{self.height}, {self.n_frames} frames")


@dataclass(frozen=True)
class FrameBatch:
    """Decoded pictures with their times.

    Args:
        data: (N, H, W, 3) uint8, RGB.
        pts_seconds: (N,) float64, s, when each frame is first shown; t = 0 is the first frame.
        duration_seconds: (N,) float64, s, for how long.
    """

    data: np.ndarray
    pts_seconds: np.ndarray
    duration_seconds: np.ndarray

    def __post_init__(self) -> None:
        if self.data.ndim != 4 or self.data.shape[-1] != 3 or self.data.dtype != np.uint8:
            raise ValueError(f"data must be (N, H, W, 3) uint8, got {self.data.shape} "
                             f"{self.data.dtype}")
        for name in ("pts_seconds", "duration_seconds"):
            value = getattr(self, name)
            if value.shape != (len(self.data),) or value.dtype != np.float64:
                raise ValueError(f"{name} must be ({len(self.data)},) float64, got "
                                 f"{value.shape} {value.dtype}")

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        span = f", {self.pts_seconds[0]:.3f}–{self.pts_seconds[-1]:.3f} s" if len(self) else ""
        return f"FrameBatch({'x'.join(map(str, self.data.shape))} uint8{span})"


@runtime_checkable
class VideoReader(Protocol):
    """An opened video. What `vbkit_open_video` returns."""

    @property
    def info(self) -> VideoInfo: ...

    def frames_at(self, times: Sequence[float]) -> Iterator[FrameBatch]:
        """The frames shown at `times` (s, not decreasing), in batches of bounded size.

        A frame is repeated where two times fall on it. A frame that cannot be decoded is replaced
        by the last good one before it; `damaged` counts those.
        """
        ...

    @property
    def damaged(self) -> int:
        """How many of the frames asked for so far could not be decoded."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Segment:
    """A stretch of transcript. Times are seconds, NaN where the text is untimed."""

    text: str
    start_s: float = nan
    end_s: float = nan

    def __post_init__(self) -> None:
        if isnan(self.start_s) != isnan(self.end_s):
            raise ValueError(f"segment {self.text[:40]!r} has a start or an end, but not both")

    @property
    def timed(self) -> bool:
        return not isnan(self.start_s)


@dataclass(frozen=True)
class Transcript:
    """A transcript: its segments in the order given, one to one.

    Args:
        segments: the segments.
        source: `"sidecar"`, `"embedded"`, `"speech"`, `"text"` or `"none"`.
        language: ISO 639-1 code where it is known, else None.
        notes: what was repaired or left out, for people.
    """

    segments: tuple[Segment, ...] = ()
    source: str = "none"
    language: str | None = None
    notes: tuple[str, ...] = ()
