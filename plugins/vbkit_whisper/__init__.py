"""Speech to text by Whisper (Radford et al., 2022), run by faster-whisper.

Install it with `pip install "vbkit[asr]"`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from vbkit import TranscriberSpec, hookimpl
from vbkit.specs import option
from vbkit_whisper.models import LANGUAGES, check_model

__all__ = ["WhisperOptions"]


@dataclass(frozen=True)
class WhisperOptions:
    model: str = option(
        "auto", "tiny, base, small, medium, large-v3, large-v3-turbo, … (.en: English only), a "
                "folder, or a hub id; what is named is downloaded. auto: what is on disk")
    language: str = option("auto", "what is spoken, such as en; auto: heard, stretch by stretch")
    precision: Literal["auto", "float32", "float16", "bfloat16", "int8", "int8_float16"] = option(
        "auto", "of the computation. auto: int8 on a CPU, float16 on a GPU")
    vad_threshold: float = option(
        0.5, "probability of speech (0–1) from which a stretch is listened to at all")
    beam_size: int = option(5, "of the beam search; 1 is greedy and faster")
    batch_size: int = option(0, "stretches of up to 30 s that are read at once. 0: 4 on a CPU, 16 "
                                "on a GPU")
    cpu_threads: int = option(0, "on a CPU. 0: half of the cores, at most 8")

    def __post_init__(self) -> None:
        check_model(self.model)
        if self.language != "auto" and self.language not in LANGUAGES:
            raise ValueError(f"language {self.language!r} is none of auto, "
                             f"{', '.join(sorted(LANGUAGES))}")
        if not 0 < self.vad_threshold < 1:
            raise ValueError(f"vad_threshold must be between 0 and 1, not {self.vad_threshold}")
        if self.beam_size < 1:
            raise ValueError(f"beam_size must be at least 1, not {self.beam_size}")
        for name in ("batch_size", "cpu_threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} cannot be negative")


@hookimpl
def vbkit_transcribers() -> Iterator[TranscriberSpec]:
    yield TranscriberSpec(
        name="whisper",
        summary="Whisper: speech in about 100 languages, with the times of words.",
        factory="vbkit_whisper.transcriber:Whisper",
        options=WhisperOptions,
    )
