"""Words into sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbkit.media import Segment, Word

__all__ = ["Heard", "sentences"]

_PAUSE_S = 1.0
_LONGEST_S = 20.0
_LONGEST = 280  # characters
_ENDS = tuple(".!?…。！？।؟")
_COMMAS = tuple(",;:，、；：")
_CLOSING = "\"'”’)]»」』"
_ABBREVIATIONS = frozenset({
    "approx", "capt", "col", "dr", "e.g", "etc", "gen", "i.e", "jr", "mr", "mrs", "ms", "mt",
    "prof", "rev", "sgt", "sr", "st", "vs"})


@dataclass(frozen=True)
class Heard:
    """A word as Whisper gives it: with the space before it, if any.

    Args:
        text: the word, with its punctuation.
        start_s, end_s: s.
        probability: 0–1.
        language: ISO 639-1 code, or None.
    """

    text: str
    start_s: float
    end_s: float
    probability: float
    language: str | None = None


def sentences(words: Sequence[Heard]) -> list[Segment]:
    """Segments of about a sentence: they end with one, at a pause, or when they become too long.

    Args:
        words: in order of time.
    """
    out: list[Segment] = []
    begun: list[Heard] = []
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else None
        begun.append(word)
        if after is None or _ends(word, after):
            out += _cut(begun)
            begun = []
    return out


def _ends(word: Heard, after: Heard) -> bool:
    if after.start_s - word.end_s >= _PAUSE_S or after.language != word.language:
        return True
    text, following = word.text.strip().rstrip(_CLOSING), after.text.strip().lstrip("\"'“‘(¿¡")
    if not text.endswith(_ENDS) or following[:1].islower():
        return False
    bare = text.rstrip(".").lower()
    return not (text.endswith(".") and (bare in _ABBREVIATIONS or (len(bare) == 1 and bare.isalpha()
                                                                   and bare != "i")))


def _cut(words: Sequence[Heard]) -> list[Segment]:
    """Words of one sentence, cut where it is too long: after a comma, else at the longest pause."""
    if not "".join(word.text for word in words).strip():
        return []
    length = sum(len(word.text) for word in words)
    seconds = words[-1].end_s - words[0].start_s
    if len(words) < 2 or (seconds <= _LONGEST_S and length <= _LONGEST):
        return [_segment(words)]

    def worth(place: int) -> tuple[bool, float]:
        comma = words[place - 1].text.strip().endswith(_COMMAS)
        middle = abs(2 * place - len(words)) / len(words)
        gap = words[place].start_s - words[place - 1].end_s
        return comma and middle < 0.7, gap - 0.5 * middle

    place = max(range(1, len(words)), key=worth)
    return [*_cut(words[:place]), *_cut(words[place:])]


def _segment(words: Sequence[Heard]) -> Segment:
    text = " ".join("".join(word.text for word in words).split())
    start = words[0].start_s
    end = max(start, words[-1].end_s)
    return Segment(
        text, round(start, 3), round(end, 3),
        tuple(Word(word.text.strip(), round(word.start_s, 3), round(word.end_s, 3),
                   round(word.probability, 4)) for word in words if word.text.strip()),
        words[0].language)
