"""Tell the language of a transcript, or that it cannot be told."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import islice
from typing import Any

__all__ = ["detect_language"]

_LANGUAGES = [
    *("ar", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he"),
    *("hi", "hr", "hu", "id", "it", "ja", "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru"),
    *("sk", "sl", "sq", "sr", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "zh"),
]
_MOST_CHARACTERS = 4000

# Heads decline what is not English, so another language takes more evidence than English does:
# (letters, probability) at least. A script of its own is evidence by itself.
_ENGLISH = (12, 0.75)
_LATIN = (30, 0.95)
_OTHER_SCRIPT = (4, 0.8)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LANGUAGES)
    return identifier


def detect_language(texts: Iterable[str]) -> str | None:
    """ISO 639-1 code of the language of `texts` together, or None where it is not sure."""
    text = " ".join(islice((text for text in texts if text.strip()), 400))[:_MOST_CHARACTERS]
    letters = [character for character in text if character.isalpha()]
    if len(letters) < min(_ENGLISH[0], _LATIN[0], _OTHER_SCRIPT[0]):
        return None
    latin = sum(character < "ɐ" for character in letters) > len(letters) / 2
    language, probability = _identifier().classify(text.lower() if latin else text)
    enough = _ENGLISH if language == "en" else _LATIN if latin else _OTHER_SCRIPT
    if len(letters) < enough[0] or probability < enough[1]:
        return None
    return str(language)
