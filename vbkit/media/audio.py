"""Sound: whether there is any, how long it is, and its samples on the picture's time line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vbkit.errors import MediaError
from vbkit.media.index import main_video_stream, open_container, packets, read_index
from vbkit.media.types import SoundPiece

__all__ = ["FileSound", "audio_duration", "has_audio"]

_AV_TIME_BASE = 1_000_000
_JITTER_S = 0.1  # timestamps that are off by less are taken for rounding
_LONGEST_FILLED_S = 2.0


def has_audio(path: str | Path) -> bool:
    """Whether a file has a sound stream.

    Raises:
        MediaError: the file is missing, unreadable or no media file.
    """
    with open_container(Path(path)) as container:
        return bool(container.streams.audio)


def audio_duration(path: str | Path) -> float:
    """Duration of a file's sound (s), as its container says, else counted from its packets.

    Raises:
        MediaError: the file is missing or unreadable, or has no sound.
    """
    path = Path(path)
    with open_container(path) as container:
        if not container.streams.audio:
            raise MediaError(f"{path}: there is no sound in it")
        stream = container.streams.audio[0]
        if stream.duration:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return container.duration / _AV_TIME_BASE
        first, last = None, 0.0
        for packet in packets(container, stream):
            if packet.pts is not None:
                start = float(packet.pts * stream.time_base)
                first = start if first is None else min(first, start)
                last = max(last, start + float((packet.duration or 0) * stream.time_base))
        return max(0.0, last - (first or 0.0))


class FileSound:
    """The first sound stream of a file, on the time line of its picture (`vbkit.media.Sound`).

    Args:
        path: the file.
        tick: called now and then, to show that reading goes on.
    """

    def __init__(self, path: str | Path, tick: Callable[[], None] = lambda: None) -> None:
        self.path = Path(path)
        self._tick = tick

    def __repr__(self) -> str:
        return f"FileSound({str(self.path)!r})"

    def pieces(self, rate: int = 16_000, seconds: float = 30.0) -> Iterator[SoundPiece]:
        """The sound, from its beginning, in pieces of about `seconds` (`Sound.pieces`).

        A packet that cannot be decoded leaves a hole. Where timestamps jump back, as at the joint
        of files that were put together, the sound goes on where it was.

        Raises:
            MediaError: the file cannot be read, has no sound, or none that can be decoded.
        """
        shift = self._start_of_picture()
        with open_container(self.path) as container:
            stream = _sound_stream(container)
            if stream is None:
                raise MediaError(f"{self.path}: there is no sound in it")
            if stream.codec_context is None:
                raise MediaError(f"{self.path}: its sound codec is not supported")
            joiner = _Joiner(rate, seconds)
            frames = _frames(container, stream)
            for frame in frames:
                start = None
                if frame.pts is not None and frame.time_base:
                    start = float(frame.pts * frame.time_base)
                    if shift is None:  # without a picture, the sound begins at 0
                        shift = start
                    start -= shift
                yield from joiner.add(frame, start)
                self._tick()
            yield from joiner.end()
            if joiner.empty:
                raise MediaError(f"{self.path}: its sound cannot be decoded")

    def _start_of_picture(self) -> float | None:
        """The container's time of the first presented frame (s), None where there is no picture."""
        with open_container(self.path) as container:
            if main_video_stream(container) is None:
                return None
            start = (container.start_time or 0) / _AV_TIME_BASE
        try:
            return read_index(self.path, self._tick).start_offset_s
        except MediaError:  # a picture that cannot be decoded; its sound may well be
            return start


def _sound_stream(container: Any) -> Any:
    return container.streams.best("audio") or next(iter(container.streams.audio), None)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    import av

    for packet in packets(container, stream):
        try:
            yield from stream.codec_context.decode(packet if packet.size else None)
        except av.FFmpegError:
            continue


class _Joiner:
    """Puts decoded frames together into pieces of mono sound at one rate."""

    def __init__(self, rate: int, seconds: float) -> None:
        self._rate = rate
        self._most = max(1, round(rate * seconds))
        self._resampler: Any = None
        self._format: Any = None
        self._shift = 0.0  # what timestamps are corrected by, where they jumped back
        self._clock = 0.0  # when the next frame should start
        self._start: float | None = None  # of the piece that is being made
        self._parts: list[np.ndarray] = []
        self._size = 0
        self.empty = True

    def add(self, frame: Any, start: float | None) -> Iterator[SoundPiece]:
        """Take in a frame that starts at `start` (s), or where the last one ended."""
        cut = 0
        if self._start is None:
            self._start = self._clock = start or 0.0
        elif start is not None:
            hole = start + self._shift - self._clock
            if hole > _LONGEST_FILLED_S:
                self._drain()
                yield from self._piece()
                self._start = self._clock = start + self._shift
            elif hole > _JITTER_S:
                self._drain()
                self._append(np.zeros(round(hole * self._rate), np.float32))
                self._clock += hole
            elif hole < -_LONGEST_FILLED_S:
                self._shift -= hole
            elif hole < -_JITTER_S:
                cut = round(-hole * self._rate)
                self._clock += hole
        self._clock += frame.samples / frame.sample_rate
        for samples in self._resample(frame):
            self._append(samples[cut:])
            cut = max(0, cut - len(samples))
        if self._size >= self._most:
            yield from self._piece()

    def end(self) -> Iterator[SoundPiece]:
        self._drain()
        yield from self._piece()

    def _append(self, samples: np.ndarray) -> None:
        if len(samples):
            self._parts.append(samples)
            self._size += len(samples)

    def _piece(self) -> Iterator[SoundPiece]:
        if not self._size or self._start is None:
            return
        piece = SoundPiece(np.concatenate(self._parts), self._start, self._rate)
        self._parts, self._size, self._start = [], 0, piece.end_s
        self.empty = False
        yield piece

    def _resample(self, frame: Any) -> list[np.ndarray]:
        import av

        given = (frame.format.name, frame.layout.name, frame.sample_rate)
        if given != self._format:
            self._drain()
            self._format = given
            # FFmpeg keeps the sum of channels within full scale for integers only.
            self._resampler = av.AudioResampler("s16", "mono", self._rate)
        frame.pts = None
        return [_samples(made) for made in self._resampler.resample(frame)]

    def _drain(self) -> None:
        """Get out what the resampler holds back."""
        if self._resampler is not None:
            for made in self._resampler.resample(None):
                self._append(_samples(made))
        self._resampler = self._format = None


def _samples(frame: Any) -> np.ndarray:
    return frame.to_ndarray()[0].astype(np.float32) / 32768
