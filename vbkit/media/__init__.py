"""Open, decode and cut up videos; read transcripts. Never imports torch.

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vbkit.media.audio import FileSound, audio_duration, has_audio
    from vbkit.media.content import content_id, text_content_id
    from vbkit.media.decode import ClipBatch, DecodedVideo, DecodeJob, DecodePool
    from vbkit.media.language import detect_language, segment_languages
    from vbkit.media.open import open_video, raw_frames
    from vbkit.media.transcripts import (
        embedded_transcript,
        find_sidecar,
        load_transcript,
        parse_text,
        resolve_transcript,
    )
    from vbkit.media.types import (
        FrameBatch,
        Segment,
        Sound,
        SoundPiece,
        Transcriber,
        Transcript,
        VideoInfo,
        VideoReader,
        Word,
    )

_LAZY = {
    "ClipBatch": "decode",
    "DecodeJob": "decode",
    "DecodePool": "decode",
    "DecodedVideo": "decode",
    "FileSound": "audio",
    "FrameBatch": "types",
    "Segment": "types",
    "Sound": "types",
    "SoundPiece": "types",
    "Transcriber": "types",
    "Transcript": "types",
    "VideoInfo": "types",
    "VideoReader": "types",
    "Word": "types",
    "audio_duration": "audio",
    "content_id": "content",
    "detect_language": "language",
    "embedded_transcript": "transcripts",
    "find_sidecar": "transcripts",
    "has_audio": "audio",
    "load_transcript": "transcripts",
    "open_video": "open",
    "parse_text": "transcripts",
    "raw_frames": "open",
    "resolve_transcript": "transcripts",
    "segment_languages": "language",
    "text_content_id": "content",
}

__all__ = [
    "ClipBatch",
    "DecodeJob",
    "DecodePool",
    "DecodedVideo",
    "FileSound",
    "FrameBatch",
    "Segment",
    "Sound",
    "SoundPiece",
    "Transcriber",
    "Transcript",
    "VideoInfo",
    "VideoReader",
    "Word",
    "audio_duration",
    "content_id",
    "detect_language",
    "embedded_transcript",
    "find_sidecar",
    "has_audio",
    "load_transcript",
    "open_video",
    "parse_text",
    "raw_frames",
    "resolve_transcript",
    "segment_languages",
    "text_content_id",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"vbkit.media.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vbkit.media' has no attribute {name!r}")
