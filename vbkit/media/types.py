"""The nouns of the media layer: frames, readers, transcripts. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

__all__ = [
    "FrameBatch",
    "Segment",
    "Sound",
    "SoundPiece",
    "Transcriber",
    "Transcript",
    "VideoInfo",
    "VideoReader",
    "Word",
]


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
class Word:
    """A word of a segment, with the punctuation that belongs to it.

    Args:
        text: the word.
        start_s, end_s: s.
        probability: how sure the speech recognition is (0–1), NaN where it does not say.
    """

    text: str
    start_s: float
    end_s: float
    probability: float = nan


@dataclass(frozen=True)
class Segment:
    """A stretch of transcript.

    Args:
        text: what is said.
        start_s, end_s: s, NaN where the text is untimed.
        words: its words, where their times are known.
        language: ISO 639-1 code where whoever made the transcript says so, else None.
    """

    text: str
    start_s: float = nan
    end_s: float = nan
    words: tuple[Word, ...] = ()
    language: str | None = None

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


@dataclass(frozen=True)
class SoundPiece:
    """Consecutive samples of a file's sound.

    Args:
        samples: (N,) float32, mono, about −1 to 1.
        start_s: time of the first sample (s); t = 0 is the first presented frame.
        rate: Hz.
    """

    samples: np.ndarray
    start_s: float
    rate: int

    @property
    def end_s(self) -> float:
        return self.start_s + len(self.samples) / self.rate


class Sound(Protocol):
    """A file's sound, on the time line of its picture."""

    @property
    def path(self) -> Path: ...

    def pieces(self, rate: int = 16_000, seconds: float = 30.0) -> Iterator[SoundPiece]:
        """The sound from its beginning, in pieces of about `seconds`.

        A piece starts where the one before it ends, or later where the sound has a hole of more
        than two seconds; shorter holes are filled with silence.

        Raises:
            MediaError: nothing of it can be read.
        """
        ...


class Transcriber(Protocol):
    """Speech to text: what the factory of a `TranscriberSpec` makes.

    `missing` and `prepare` are called in vbkit's own process and should import nothing heavy.
    `transcribe` is called in a process of its own, which makes its own transcriber: what crashes
    or hangs there costs one transcript.
    """

    def missing(self) -> str | None:
        """What keeps it from working without a download that nobody asked for, and what to do.

        None where it can work: a model is on disk, or one was named in the options.
        """
        ...

    def prepare(self) -> str:
        """Get what is needed, downloading what was named.

        Returns:
            A text that is another whenever the transcripts would be: model, options that matter,
            version of the method. It keys the cache.

        Raises:
            ModelError: it cannot be got. The message says what to do.
        """
        ...

    def transcribe(self, sound: Sound) -> Transcript:
        """What is said, with times on the sound's own time line, in segments of about a sentence.

        It reads `sound.pieces()` bit by bit, so that long sound needs no more memory than short
        sound. Where nothing is said, there is no segment.
        """
        ...
