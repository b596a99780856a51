"""Which kind of input a file is, told by its suffix."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

__all__ = [
    "AUDIO_SUFFIXES",
    "IMAGE_SUFFIXES",
    "TRANSCRIPT_SUFFIXES",
    "VIDEO_SUFFIXES",
    "MediaKind",
    "media_kind",
]

MediaKind = Literal["video", "image", "audio", "transcript"]

VIDEO_SUFFIXES = frozenset(
    {
        ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gif", ".h264", ".h265",
        ".hevc", ".ivf", ".m1v", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov",
        ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt",
        ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    }
)
IMAGE_SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif",
        ".tiff", ".webp",
    }
)
AUDIO_SUFFIXES = frozenset(
    {
        ".aac", ".ac3", ".aif", ".aiff", ".amr", ".flac", ".m4a", ".m4b", ".mka", ".mp2", ".mp3",
        ".oga", ".ogg", ".opus", ".wav", ".wma",
    }
)
TRANSCRIPT_SUFFIXES = (".srt", ".vtt", ".json", ".jsonl", ".txt")
"""In the order in which a sidecar is looked for."""


def media_kind(path: PurePath) -> MediaKind | None:
    """The kind that the suffix tells, or None where it tells nothing."""
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in AUDIO_SUFFIXES:
        return "audio"
    if suffix in TRANSCRIPT_SUFFIXES:
        return "transcript"
    return None
