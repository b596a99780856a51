"""What the words of a transcript say about which sentences matter. No torch here."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["TEXT_FEATURES", "rarities", "stem", "text_features", "words"]

_WORD = re.compile(r"[a-z0-9]+(?:['’][a-z]+)?")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOPWORDS = _set(
    """a about after again all also am an and any are aren't as at be because been before being both
    but by can can't could couldn't did didn't do does doesn't doing don't down during each even
    few for from further get gets getting go goes going gonna got had has have having he her here
    hers him his how i i'd i'll i'm i've if in into is isn't it it's its just know let let's like
    little lot made make may maybe me mean might more most much must my no nor not now of off oh
    ok okay on once one only or other our out over own please put quite really right s said same
    say see she should so some something sort such t take than that that's the their them then
    there there's these they they're thing things think this those through to too two under until
    up upon us very want was way we we'll we're we've well were what what's when where whether
    which while who whom whose why will with would yeah yes yet you you'd you'll you're you've
    your kind"""
)
_FILLERS = _set("uh um er ah yeah okay ok well basically actually mean right know")
_PRONOUNS = _set(
    """i i'm i'll i've i'd me my you your you're you'll you've we we're we'll we've us our"""
)
_POINTERS = _set("this that these those it it's that's they there's here he she")
_OPENINGS = (
    _set("so therefore thus hence"),
    _set("and but or because which"),
    _set("now first second third finally next then also today"),
    _set("okay ok yes yeah no well right thank thanks alright oh hello hi"),
    _set("the a an in for"),
)
TEXT_FEATURES = 22 + len(_OPENINGS)


def words(text: str) -> list[str]:
    """Lower-case words of `text`, apostrophes kept inside a word."""
    return _WORD.findall(text.lower().replace("’", "'"))


def stem(word: str) -> str:
    """A crude stem: the commonest English endings removed."""
    for ending in ("'s", "ing", "ies", "ed", "es", "ly", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def rarities(passages: Sequence[Sequence[str]], least: int = 5,
             most: int = 6000) -> dict[str, float]:
    """How rare each stem is: inverse document frequency over passages (natural log).

    Args:
        passages: lists of segments.
        least: stems in fewer passages are left out; they count as the rarest.
        most: how many stems to keep, the commonest first.
    """
    count: Counter[str] = Counter()
    for passage in passages:
        count.update({stem(word) for text in passage for word in words(text)})
    return {term: math.log(len(passages) / n) for term, n in count.most_common(most) if n >= least}


def text_features(segments: Sequence[str], rarity: Mapping[str, float]) -> np.ndarray:
    """Place, length, words and surroundings of each segment of a passage.

    Args:
        segments: the S segments.
        rarity: from `rarities`, of the material that the selector was trained on.

    Returns:
        (S, TEXT_FEATURES) float32.
    """
    n = len(segments)
    out = np.zeros((n, TEXT_FEATURES), np.float32)
    top = max(rarity.values(), default=0.0) + 0.5
    rows = [words(text) for text in segments]
    terms = [[stem(word) for word in row if word not in STOPWORDS] for row in rows]
    sets = [set(row) for row in terms]
    everywhere = Counter(term for row in sets for term in row)
    whole: Counter[str] = Counter(term for row in terms for term in row)
    seen: set[str] = set()
    for i, (text, row) in enumerate(zip(segments, rows, strict=True)):
        length = max(1, len(row))
        weights = [rarity.get(term, top) for term in terms[i]]
        total = sum(rarity.get(term, top) for term in sets[i])
        shared = sum(rarity.get(term, top) for term in sets[i] if everywhere[term] > 1)
        new = sum(rarity.get(term, top) for term in sets[i] if term not in seen)
        count = Counter(row)
        out[i, :22] = (
            i / max(1, n - 1), math.exp(-i / 2), math.exp(-(n - 1 - i) / 2), math.log(n) / 3,
            math.log1p(len(row)) / 3, min(len(row), 60) / 30,
            sum(map(len, row)) / length / 5, len(terms[i]) / length,
            np.mean(weights) / 4 if weights else 0.0, max(weights, default=0.0) / 8,
            math.log1p(total) / 4, shared / total if total else 0.0, math.log1p(shared) / 4,
            new / total if total else 0.0,
            math.log1p(sum(whole[term] - 1 for term in sets[i])) / 2,
            float(any(word[0].isdigit() for word in row)),
            float(text.rstrip().endswith("?")),
            sum(count[word] for word in _FILLERS) / length * 3,
            sum(count[word] for word in _PRONOUNS) / length * 3,
            sum(count[word] for word in _POINTERS) / length * 3,
            sum(word[:1].isupper() for word in text.split()[1:]) / length * 3,
            float(len(row) <= 4),
        )
        first = row[0] if row else ""
        for k, opening in enumerate(_OPENINGS):
            out[i, 22 + k] = float(first in opening)
        seen |= sets[i]
    return out
