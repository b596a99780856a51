"""Captions that the model's decoder writes, scored against what people wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbkit.errors import UsageError
from vbkit.evaluation.captions import caption_scores, meteor
from vbkit.evaluation.clips import ClipSequence
from vbkit.evaluation.heads import check_decoder

if TYPE_CHECKING:
    from vbkit.engine.bundle import Bundle
    from vbkit.engine.encoder import Encoder

__all__ = ["CaptioningScores", "captioning", "check_captioning"]


@dataclass(frozen=True)
class CaptioningScores:
    """How close written captions are to true ones.

    Args:
        metrics: `bleu_1` to `bleu_4`, `rouge_l`, `cider` (`captions.caption_scores`) and
            `meteor`, None where it cannot be computed here.
        predictions: each video's caption.
        notes: what is missing, and why.
    """

    metrics: dict[str, float | None]
    predictions: list[dict[str, Any]]
    notes: tuple[str, ...] = ()


def check_captioning(bundle: Bundle, max_new_tokens: int | None = None) -> None:
    """Raise, as `captioning` would, where the model cannot write such captions."""
    check_decoder(bundle)
    most = bundle.config.max_decoder_positions - 1
    if max_new_tokens is not None and max_new_tokens > most:
        raise UsageError(f"the decoder of model {bundle.name} writes at most {most} word pieces")


def captioning(encoder: Encoder, videos: Sequence[ClipSequence], *, num_beams: int = 4,
               max_new_tokens: int | None = None) -> CaptioningScores:
    """Write a caption for every video, and score it against all of the video's captions.

    Args:
        encoder: of a model with a decoder.
        videos: at least one.
        num_beams: width of the beam search; 1 is greedy.
        max_new_tokens: word pieces of a caption at most; None for the model's own limit.

    Raises:
        ModelError: the model has no decoder.
        UsageError: `max_new_tokens` is more than the decoder can write.
    """
    check_captioning(encoder.bundle, max_new_tokens)
    written = encoder.describe([video.clip_features for video in videos], num_beams=num_beams,
                               max_new_tokens=max_new_tokens)
    true = [video.captions for video in videos]
    score, note = meteor(written, true)
    return CaptioningScores(
        {**caption_scores(written, true), "meteor": score},
        [{"video_id": video.video_id, "caption": text}
         for video, text in zip(videos, written, strict=True)],
        (note,) if note else ())
