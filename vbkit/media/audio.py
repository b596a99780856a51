"""What is needed of sound so far: whether there is any, and how long it is."""

from __future__ import annotations

from pathlib import Path

from vbkit.errors import MediaError
from vbkit.media.index import open_container, packets

__all__ = ["audio_duration", "has_audio"]

_AV_TIME_BASE = 1_000_000


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
