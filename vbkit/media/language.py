"""Tell the language of a transcript and of its segments, or that it cannot be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import islice
from typing import Any

__all__ = ["detect_language", "segment_languages"]

_LANGUAGES = [
    *("ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he"),
    *("hi", "hr", "hu", "id", "it", "ja", "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru"),
    *("sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "zh"),
]
_MOST_CHARACTERS = 4000

# Heads decline what is not English, so that a text in Latin script is in another language takes
# more than a likeliest language: English must be nearly ruled out. A script of its own is evidence
# by itself. Of 72,000 English utterances, lecture sentences and tweets, 1 is taken for another
# language; of 110 short sentences in fifteen other languages, 95 are recognised alone.
_ENGLISH = (12, 0.75)  # letters, and its probability, at least
_LATIN = (10, 4, 0.5)  # letters, words (names are shorter), and its probability, at least …
_ENGLISH_RULED_OUT = 0.01  # … while that of English is below this
_OTHER_SCRIPT = 4  # letters
_SURE = 0.9  # English amid another language, or the right one of those that share a script


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LANGUAGES)
    return identifier


def detect_language(texts: Iterable[str]) -> str | None:
    """ISO 639-1 code of the language of `texts` together, or None where it is not sure."""
    text = " ".join(islice((text for text in texts if text.strip()), 400))[:_MOST_CHARACTERS]
    return _tell(text)[0]


def segment_languages(texts: Sequence[str], language: str | None) -> tuple[str | None, ...]:
    """ISO 639-1 codes of the language of each of `texts`, a transcript's segments.

    A segment has the transcript's language unless it says enough to be sure of another one.

    Args:
        texts: the segments.
        language: of the transcript; None where that is not known.

    Returns:
        One code a segment; None where neither it nor the transcript tells.
    """
    known: dict[str, str | None] = {}
    for text in texts:
        if text not in known:
            found, probability = _tell(text[:_MOST_CHARACTERS])
            # What is found to be other than English has ruled English out already.
            sure = found is not None and (language == "en" or probability >= _SURE)
            known[text] = found if sure or language is None else language
    return tuple(known[text] for text in texts)


def _tell(text: str) -> tuple[str | None, float]:
    """The language of a text and its probability; None where the evidence is not enough."""
    letters = [character for character in text if character.isalpha()]
    if len(letters) < _OTHER_SCRIPT:
        return None, 0.0
    latin = sum(character < "ɐ" for character in letters) > len(letters) / 2
    ranked = _identifier().rank(text.lower() if latin else text)
    language, probability = str(ranked[0][0]), float(ranked[0][1])
    if language == "en":
        enough = len(letters) >= _ENGLISH[0] and probability >= _ENGLISH[1]
    elif latin:
        english = next(float(p) for name, p in ranked if name == "en")
        enough = (len(letters) >= _LATIN[0] and len(text.split()) >= _LATIN[1]
                  and probability >= _LATIN[2] and english < _ENGLISH_RULED_OUT)
    else:
        enough = True
    return (language, probability) if enough else (None, 0.0)
