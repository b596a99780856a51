"""Words of questions and segments: tokens, stems, overlap. No torch here."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

__all__ = ["LEXICAL_FEATURES", "SEGMENT_FEATURES", "content_words", "lexical_features",
           "segment_features", "stem", "words"]

_WORD = re.compile(r"[a-z0-9]+(?:['’][a-z]+)?")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOPWORDS = _set(
    """a about after again all also am an and any are as at be because been before being but by can
    cannot could did do does doing done don't down during each else every few for from further get
    gets getting go goes going gonna got had has have having he her here hers him his how i i'd
    i'll i'm i've if in into is it it's its just kind know let let's like little lot made make
    makes making may me might more most much must my need needed needs no nor not now of off ok
    okay on once one only or other our out over own please put really right s said same say see
    she should show shown shows so some something sort such t take than that that's the their them
    then there there's these they thing things this those through to too under until up upon us
    use used uses using very want wanted wants was way we we'll we're we've well were what what's
    when where whether which while who whom whose why will with would yes you you'd you'll you're
    you've your happen happens possible video tell explain q"""
)
"""Words that carry little of what a question asks for."""

_CUES = (
    _set("now next then first second third finally another lastly also"),
    _set("so okay ok alright well let's here there"),
    _set("if when to in"),
    _set("i i'll i'm i've we we'll we're let"),
    _set("and or but because which"),
)

LEXICAL_FEATURES = 6
SEGMENT_FEATURES = 7 + len(_CUES)


def words(text: str) -> list[str]:
    """Lower-case words of `text`, apostrophes kept inside a word."""
    return _WORD.findall(text.lower().replace("’", "'"))


def stem(word: str) -> str:
    """A crude stem: common English endings removed, so that `adding` meets `added` and `adds`."""
    word = word.split("'")[0] if word.endswith("'s") else word
    for ending in ("ations", "ation", "ingly", "edly", "ings", "ments", "ment", "ions", "ing",
                   "ion", "ies", "ers", "est", "ed", "er", "es", "ly", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    if len(word) > 3 and word[-1] == word[-2]:
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word[-1] in "ei" else word


def content_words(text: str) -> list[str]:
    """The words of `text` that are no stop words; all its words where it has no others."""
    every = words(text)
    return [word for word in every if word not in STOPWORDS] or every


def _coverage(question: Counter[str], found: set[str], weight: dict[str, float]) -> float:
    total = sum(weight[term] for term in question)
    return sum(weight[term] for term in question if term in found) / total if total else 0.0


def lexical_features(questions: Sequence[str], segments: Sequence[str]) -> np.ndarray:
    """How much of each question's words each segment, and its surroundings, say.

    Words are weighted by their rarity within the transcript (inverse document frequency).

    Returns:
        (Q, S, LEXICAL_FEATURES) float32.
    """
    stems = [[stem(word) for word in content_words(text)] for text in segments]
    sets = [set(row) for row in stems]
    pairs = [set(itertools.pairwise(row)) for row in stems]
    frequency = Counter(term for row in sets for term in row)
    n = len(segments)
    out = np.zeros((len(questions), n, LEXICAL_FEATURES), np.float32)
    near = [set().union(*sets[max(0, i - 1): i + 2]) for i in range(n)]
    wide = [set().union(*sets[max(0, i - 3): i + 4]) for i in range(n)]
    ahead = [set().union(*sets[i: i + 4]) for i in range(n)]
    for q, text in enumerate(questions):
        row = [stem(word) for word in content_words(text)]
        terms = Counter(row)
        bigrams = set(itertools.pairwise(row))
        weight = {term: math.log(1 + n / (0.5 + frequency[term])) for term in terms}
        for i in range(n):
            out[q, i, 0] = _coverage(terms, sets[i], weight)
            out[q, i, 1] = _coverage(terms, near[i], weight)
            out[q, i, 2] = _coverage(terms, wide[i], weight)
            out[q, i, 3] = _coverage(terms, ahead[i], weight)
            out[q, i, 4] = len(bigrams & pairs[i])
        best = out[q, :, 0].max(initial=0.0)
        out[q, :, 5] = out[q, :, 0] / best if best > 0 else 0.0
    return out


def segment_features(segments: Sequence[str]) -> np.ndarray:
    """What a segment's place, length and opening words say about boundaries of a topic.

    Returns:
        (S, SEGMENT_FEATURES) float32.
    """
    n = len(segments)
    out = np.zeros((n, SEGMENT_FEATURES), np.float32)
    for i, text in enumerate(segments):
        tokens = words(text)
        first = tokens[0] if tokens else ""
        out[i, 0] = i / max(1, n - 1)
        out[i, 1] = math.exp(-i / 3)
        out[i, 2] = math.exp(-(n - 1 - i) / 3)
        out[i, 3] = math.log1p(len(tokens)) / 3
        out[i, 4] = float(text.rstrip().endswith("?"))
        out[i, 5] = float(text.rstrip().endswith((".", "!", "?")))
        out[i, 6] = float(text[:1].isupper())
        for k, cue in enumerate(_CUES):
            out[i, 7 + k] = float(first in cue or (k == 0 and bool(set(tokens[:3]) & cue)))
    return out
