"""`Features`: what the engine hands to heads, one video at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbkit.errors import FeatureError
from vbkit.specs import FEATURE_OUTPUTS

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vbkit.media.types import FrameBatch, VideoInfo

__all__ = ["Features", "JointOutput"]


@dataclass(frozen=True)
class JointOutput:
    """Outputs of the joint encoder for N texts, each read with its own segments and clips.

    Args:
        pooled: (N, H) float32, mean over each sequence.
        text_hidden: N tensors (T, H): outputs at the text's own word pieces.
        segment_hidden: N tensors (S, H): outputs at its segments, mean over word pieces.
        clip_hidden: N tensors (C, H): outputs at its clips.
    """

    pooled: torch.Tensor
    text_hidden: list[torch.Tensor]
    segment_hidden: list[torch.Tensor]
    clip_hidden: list[torch.Tensor]


class Features:
    """The shared encoder outputs of one video.

    The outputs are attributes, named, shaped and typed as in `vbkit.specs.FEATURE_OUTPUTS`; reading
    one that was not declared raises `FeatureError`. Floats are float32 on the engine's device,
    times float64 on the CPU. All are shared between heads: treat them as read-only.

    Always there, without being declared:

    Attributes:
        video_id: the input's id.
        info: `VideoInfo`, or None for an input without a picture.
        language: ISO 639-1 code of the transcript, or None.
        segment_languages: S codes, of each segment's language: its own where it says enough to
            tell, else the transcript's; None where that is not known either.
        questions: the questions asked of this video.
        error: None, or the error that kept the source from being read; then no output is there.
        keyframe_times: times (s) of the pictures that the run saves, for tables that point at one.
    """

    clip_times: np.ndarray
    clip_features: torch.Tensor
    visual_words: torch.Tensor
    segments: list[str]
    segment_times: np.ndarray
    clip_embeddings: torch.Tensor
    segment_embeddings: torch.Tensor
    clip_hidden: torch.Tensor
    segment_hidden: torch.Tensor
    pooled: torch.Tensor
    tokens: list[list[str]]
    token_hidden: list[torch.Tensor]
    frames: Iterator[FrameBatch]
    motion: Callable[[Sequence[int]], torch.Tensor]
    encode_text: Callable[[Sequence[str]], torch.Tensor]
    joint: Callable[[Sequence[str], Sequence[Sequence[int]], Sequence[Sequence[int]]], JointOutput]
    generate: Callable[..., list[str]]

    def __init__(
        self,
        video_id: str,
        outputs: Mapping[str, Any],
        *,
        info: VideoInfo | None = None,
        language: str | None = None,
        segment_languages: Sequence[str | None] | None = None,
        questions: Sequence[str] = (),
        keyframe_times: Sequence[float] = (),
        error: Exception | None = None,
    ) -> None:
        unknown = sorted(set(outputs) - set(FEATURE_OUTPUTS))
        if unknown:
            raise FeatureError(f"{unknown[0]!r} is no output of the encoder")
        self.video_id = video_id
        self.info = info
        self.language = language
        self.segment_languages: tuple[str | None, ...] = (
            tuple(segment_languages or ())
            or (language,) * len(outputs.get("segments", ())))
        self.questions = tuple(questions)
        self.keyframe_times = tuple(keyframe_times)
        self.error = error
        self._outputs = dict(outputs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in FEATURE_OUTPUTS:
            raise AttributeError(f"Features has no attribute {name!r}")
        if self.error is not None:
            raise FeatureError(f"{self.video_id} was not encoded: {self.error}")
        try:
            return self._outputs[name]
        except KeyError:
            raise FeatureError(
                f"{name!r} was not asked for: add it to the `needs` of the TaskSpec "
                f"(or of Engine.encode); declared are {', '.join(sorted(self._outputs)) or 'none'}"
            ) from None

    @property
    def available(self) -> frozenset[str]:
        """Names of the outputs that are there."""
        return frozenset(self._outputs)

    def restrict(self, needs: Iterable[str], questions: Sequence[str] | None = None) -> Features:
        """The same features with no other outputs than `needs`; `frames` start anew.

        Args:
            needs: names of outputs.
            questions: other questions than these features have; None for the same.
        """
        wanted = set(needs)
        return Features(
            self.video_id,
            {name: iter(value) if name == "frames" else value
             for name, value in self._outputs.items() if name in wanted},
            info=self.info, language=self.language, segment_languages=self.segment_languages,
            questions=self.questions if questions is None else questions,
            keyframe_times=self.keyframe_times, error=self.error,
        )

    def in_languages(self, languages: Collection[str]) -> np.ndarray:
        """(S,) bool: which segments are in one of `languages`, or in none that could be told.

        What reads text leaves out the others, instead of guessing.
        """
        import numpy as np

        return np.array([language is None or language in languages
                         for language in self.segment_languages], dtype=bool)

    def unread_note(self, languages: Collection[str]) -> str | None:
        """A note on the segments that are in none of `languages`; None where there are none."""
        unread = [each for each in self.segment_languages
                  if each is not None and each not in languages]
        if not unread:
            return None
        names = ", ".join(sorted(set(unread)))
        if len(unread) == len(self.segment_languages):
            return f"text in language {names} was not read"
        return f"{len(unread)} of {len(self.segment_languages)} segments, in {names}, were not read"

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Features({self.video_id!r}, error={self.error!r})"
        parts = []
        for name, value in sorted(self._outputs.items()):
            shape = getattr(value, "shape", None)
            if shape is not None:
                parts.append(f"{name}={tuple(shape)}")
            elif isinstance(value, list):
                parts.append(f"{name}=[{len(value)}]")
            else:
                parts.append(name)
        return f"Features({self.video_id!r}, {', '.join(parts)})"
