"""Which moment of the picture shows what a question asks for, zero-shot in the shared space."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moment", "find_moments", "prompt_of", "standardise", "time_phrase", "visual_evidence"]

_AUXILIARY = r"(?:does|do|did|is|are|was|were|can|could|will|would|has|have|had|am)"
_RULES: tuple[tuple[str, str], ...] = (
    (r"^(?:please\s+)?(?:show|find|give)\s+(?:me\s+)?(?:the\s+(?:moments?|part|scene)s?\s+"
     r"(?:where|when|in which|with|of)\s+)?", ""),
    (r"^(?:at\s+)?(?:what|which)\s+(?:time|moment|point)\s+(?:in the video\s+)?"
     rf"{_AUXILIARY}?\s*", ""),
    (r"^(?:when|where)\s+(?:in the video\s+)?" + rf"{_AUXILIARY}\s+(?:there\s+)?(?:be\s+)?", ""),
    (r"^(?:when|where)\s+(?:can|do|could)\s+(?:we|i|you|one)\s+see\s+", ""),
    (r"^(?:is|are|was|were)\s+there\s+(?:any\s+)?", ""),
    (r"^(?:who|what|which)\s+(?:is|are|was|were)\s+(?=\w+ing\b)", "someone "),
    (r"^(?:can|do|could)\s+(?:we|i|you|one)\s+see\s+", ""),
    (rf"^who\s+{_AUXILIARY}\s+", ""),
    (r"^who\s+", "someone who "),
    (r"^does\s+(?:it|the video|this|anyone|anybody|someone)\s+(?:show\s+)?", ""),
    (rf"^{_AUXILIARY}\s+(?=(?:the|a|an|any|some|this|that|people|someone|they|he|she)\b)", ""),
)
_DOING = re.compile(r"^what\s+(?:is|are|was|were)\s+(.+?)\s+doing\b")
_AT_WHAT_TIME = re.compile(r"^(?:what|which)\s+(?:time|moment|point)\b")
_TRAILING = re.compile(
    r"\s+(?:(?:in|on|during)\s+(?:the|this)\s+(?:video|clip|film|picture|scene|image)"
    r"|(?:appear|appears|happen|happens|visible|shown|seen|on screen))\s*$")
_NOT_VISUAL = re.compile(
    r"^(?:why|how\b|what\b|which|whose|who\s+(?:said|says|is speaking|speaks)|should|explain|tell)")


def prompt_of(question: str) -> str | None:
    """What a picture that answers would show, as a phrase; None where no picture could answer.

    "When does a man ride a bicycle?" becomes "a man ride a bicycle". Questions for reasons, ways,
    numbers and names are left to the transcript.
    """
    text = " ".join(question.lower().replace("’", "'").split()).strip(" ?!.\"'")
    doing = _DOING.match(text)
    if doing:
        return re.sub(r"^the\s+", "a ", doing.group(1))
    timed = _AT_WHAT_TIME.match(text)
    if not text or (_NOT_VISUAL.match(text) and not timed):
        return None
    for pattern, replacement in _RULES:
        changed = re.sub(pattern, replacement, text, count=1)
        if changed != text:
            text = changed
            break
    text = _TRAILING.sub("", text).strip(" ,")
    return re.sub(r"^the\s+", "a ", text) or None


def names_somebody(question: str) -> bool:
    """Whether the answer is a who, which a transcript that has it says better than a picture."""
    return re.match(r"\W*who(?:se|m|'s)?\b", question.lower()) is not None


@dataclass(frozen=True)
class Moment:
    """A run of clips: first and last index, the best clip of it, and its evidence."""

    first: int
    last: int
    best: int
    cosine: float
    z: float


def standardise(similarity: Tensor, background: Tensor) -> Tensor:
    """Similarities on the scale of a phrase's similarities to ordinary pictures.

    Middle and spread are taken from the lower half of the ordinary pictures, since some of the
    others may show what the phrase says.

    Args:
        similarity: (C,) cosines of a phrase with clips.
        background: (B,) cosines of the same phrase with ordinary pictures.

    Returns:
        (C,) z-scores.
    """
    low, middle = background.quantile(torch.tensor([0.16, 0.5], device=background.device))
    return (similarity - middle) / (middle - low + 0.01)


def find_moments(similarity: Tensor, z: Tensor, limit: int, k: int) -> list[Moment]:
    """Up to `k` separate runs of clips, best first.

    A run grows from its best clip while its neighbours keep two thirds of that clip's evidence.

    Args:
        similarity: (C,) cosines.
        z: (C,) the same, standardised.
        limit: longest run, in clips.
        k: how many.
    """
    n = len(z)
    free = [True] * n
    values, cosines = z.tolist(), similarity.tolist()
    moments: list[Moment] = []
    for _ in range(k):
        open_clips = [i for i in range(n) if free[i]]
        if not open_clips:
            break
        best = max(open_clips, key=lambda i: (values[i], -i))
        floor = values[best] - max(0.3, abs(values[best]) / 3)
        first = last = best
        while last - first + 1 < limit:
            grown = max(
                (i for i in (first - 1, last + 1)
                 if 0 <= i < n and free[i] and values[i] >= floor),
                key=lambda i: values[i], default=None)
            if grown is None:
                break
            first, last = min(first, grown), max(last, grown)
        moments.append(Moment(first, last, best, cosines[best], values[best]))
        for i in range(max(0, first - 1), min(n, last + 2)):
            free[i] = False
    return moments


def visual_evidence(moment: Moment, n_clips: int) -> list[float]:
    """What the calibration of a moment's score sees."""
    return [moment.cosine, moment.z, math.log1p(n_clips)]


def time_phrase(start_s: float, end_s: float) -> str:
    """"4.5–7.5 s" or, beyond a minute, "1:04–1:12"."""

    def clock(seconds: float) -> str:
        minutes, second = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"

    if end_s < 60:
        return f"{round(start_s, 1):g}–{round(end_s, 1):g} s"
    return f"{clock(start_s)}–{clock(end_s)}"
