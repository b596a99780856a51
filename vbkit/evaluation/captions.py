"""Metrics of written captions against several references, as coco-caption computes them.

BLEU is sacrebleu's; ROUGE-L and CIDEr are here, because the libraries that have them need Java or
bring speech and vision models along. All were compared with pycocoevalcap 1.2 on Flickr8k (see
`docs/evaluation.md`). METEOR needs Java and a paraphrase table: `meteor` uses pycocoevalcap where
it is installed, and says what is missing where it is not.
"""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

__all__ = ["Cider", "bleu", "caption_scores", "cider", "meteor", "rouge_l", "tokenize"]

_TOKEN = re.compile(
    r"(?:[a-z]\.){2,}"  # u.s.
    r"|(?:mr|mrs|ms|dr|jr|sr|st|mt|vs|etc|prof|inc|co|corp|ltd|ave|blvd)\.(?=\s|$)"
    r"|@\w+"
    r"|\w+(?:\.\w+)*\.(?:com|org|net|edu|gov)\b"
    r"|\d+(?:[.,:/]\d+)+(?!\w)"  # 3.5, 1,000, 2:43, 1/2
    r"|'(?:s|re|ve|ll|d|m)\b(?!')"
    r"|\w+?(?=n't\b)|n't\b"
    r"|\w+(?:[-/]\w+|'(?!(?:s|re|ve|ll|d|m|t)\b)\w+)*"  # t-shirt, girl/toddler, o'clock
    r"|[!?]+|\S"
)
_DROPPED = frozenset("'\"`.?!,:;-‘’“”–—…")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_PARTS = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"),
          "wanna": ("wan", "na"), "gimme": ("gim", "me"), "lemme": ("lem", "me")}

_ORDERS = (1, 2, 3, 4)
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0


def tokenize(text: str) -> list[str]:
    """Words of a caption as coco-caption sees them.

    Lower case; split as the Penn Treebank tokenizer does (`dog's` is `dog` and `'s`, `don't` is
    `do` and `n't`; `t-shirt` is one word); then quotes and `. , : ; ? ! - ...` are dropped.
    Brackets become `-lrb-` and the like and count as words, as they do there.
    """
    words: list[str] = []
    for token in _TOKEN.findall(text.lower().replace("’", "'")):
        if token not in _DROPPED:
            words.extend(_PARTS.get(token) or (_BRACKETS.get(token, token),))
    return words


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]
                   ) -> dict[str, float]:
    """`bleu_1` to `bleu_4`, `rouge_l` (each 0–1) and `cider` (0–10) of N captions.

    Args:
        candidates: N written captions, untokenized.
        references: for each, at least one true caption.

    Raises:
        ValueError: there are none, the lists differ in length, or a candidate has no reference.
    """
    written, true = _tokenized(candidates, references)
    scores = {f"bleu_{n}": value for n, value in zip(_ORDERS, bleu(written, true), strict=True)}
    return scores | {"rouge_l": rouge_l(written, true), "cider": cider(written, true)}


def _tokenized(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    if isinstance(candidates, str) or any(isinstance(texts, str) for texts in references):
        raise ValueError("candidates is a list of strings, references a list of lists of strings")
    if not len(candidates) or len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} candidates and {len(references)} lists of references;"
                         " give as many of each, and at least one")
    if not all(map(len, references)):
        raise ValueError("a candidate has no reference")
    return ([tokenize(text) for text in candidates],
            [[tokenize(text) for text in texts] for texts in references])


def bleu(candidates: Sequence[Sequence[str]],
         references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """Corpus BLEU-1 to BLEU-4 (Papineni et al., 2002), 0–1, not smoothed.

    The reference length is that of the closest reference, the shorter one in a tie.

    Args:
        candidates: N lists of words.
        references: for each, lists of words.
    """
    from sacrebleu.metrics import BLEU

    written = [" ".join(words) for words in candidates]
    width = max(map(len, references))
    streams: Any = [[" ".join(texts[i]) if i < len(texts) else None for texts in references]
               for i in range(width)]
    return [
        BLEU(tokenize="none", smooth_method="none", max_ngram_order=order, force=True)
        .corpus_score(written, streams).score / 100
        for order in _ORDERS
    ]


def rouge_l(candidates: Sequence[Sequence[str]],
            references: Sequence[Sequence[Sequence[str]]]) -> float:
    """ROUGE-L (Lin, 2004), 0–1: mean F of the longest common subsequence, beta 1.2.

    Precision and recall are each the best over the references.
    """
    total = 0.0
    for words, texts in zip(candidates, references, strict=True):
        common = [_common_length(words, text) for text in texts]
        if not any(common):
            continue
        precision = max(common) / len(words)
        recall = max(c / len(text) for c, text in zip(common, texts, strict=True) if text)
        square = _ROUGE_BETA**2
        total += (1 + square) * precision * recall / (recall + square * precision)
    return total / len(candidates)


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for i, rival in enumerate(other, 1):
            above = row[i]
            row[i] = before + 1 if word == rival else max(above, row[i - 1])
            before = above
    return row[-1]


def cider(candidates: Sequence[Sequence[str]],
          references: Sequence[Sequence[Sequence[str]]]) -> float:
    """CIDEr as coco-caption reports it, 0–10; published figures like "0.50" are on this scale.

    The mean of `Cider` with the document frequencies of the references given here, so the number
    depends on the set, and with one candidate alone it is 0.
    """
    scorer = Cider(references)
    return sum(scorer.score(words, scorer.prepare(texts)) for words, texts in zip(
        candidates, references, strict=True)) / len(candidates)


class Cider:
    """CIDEr-D (Vedantam et al., CVPR 2015, section 7) of single captions, without stemming.

    The cosine of tf-idf vectors of 1- to 4-grams, candidate counts clipped to the reference's, a
    Gaussian of width 6 on the difference in length, mean over n and references, times 10.

    Args:
        documents: the true captions of each video, as lists of words or word pieces, by which
            n-grams are weighted.
    """

    def __init__(self, documents: Sequence[Sequence[Sequence[Hashable]]]) -> None:
        frequency: Counter[tuple[Hashable, ...]] = Counter()
        for texts in documents:
            frequency.update({ngram for text in texts for ngram in _ngrams(text)})
        self._unseen = math.log(len(documents))
        self._idf = {ngram: self._unseen - math.log(count) for ngram, count in frequency.items()}

    def prepare(self, references: Sequence[Sequence[Hashable]]) -> list[_TfIdf]:
        """True captions of one video, weighted once for any number of candidates."""
        return [self._weighted(text) for text in references]

    def score(self, candidate: Sequence[Hashable], references: Sequence[_TfIdf]) -> float:
        """0–10.

        Args:
            candidate: words or word pieces.
            references: from `prepare`.
        """
        written = self._weighted(candidate)
        return 10 * sum(map(written.similarity, references)) / len(references)

    def _weighted(self, words: Sequence[Hashable]) -> _TfIdf:
        return _TfIdf(_ngrams(words), self._idf, self._unseen)


def _ngrams(words: Sequence[Hashable]) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(words[i : i + n]) for n in _ORDERS for i in range(len(words) - n + 1))


class _TfIdf:
    """The weighted n-grams of one caption."""

    def __init__(self, counts: Counter[tuple[Hashable, ...]],
                 idf: Mapping[tuple[Hashable, ...], float], unseen: float) -> None:
        self.weights: tuple[dict[tuple[Hashable, ...], float], ...] = tuple({} for _ in _ORDERS)
        self.length = 0  # in bigrams, as there
        for ngram, count in counts.items():
            self.weights[len(ngram) - 1][ngram] = count * idf.get(ngram, unseen)
            self.length += count if len(ngram) == 2 else 0
        self.norms = [math.sqrt(sum(w * w for w in weights.values())) for weights in self.weights]

    def similarity(self, reference: _TfIdf) -> float:
        """Mean over n of the clipped cosine."""
        total = 0.0
        for mine, theirs, norm, other in zip(self.weights, reference.weights, self.norms,
                                             reference.norms, strict=True):
            if norm and other:
                product = sum(min(weight, theirs[ngram]) * theirs[ngram]
                              for ngram, weight in mine.items() if ngram in theirs)
                total += product / (norm * other)
        gap = self.length - reference.length
        return total / len(_ORDERS) * math.exp(-gap * gap / (2 * _CIDER_SIGMA**2))


def meteor(candidates: Sequence[str],
           references: Sequence[Sequence[str]]) -> tuple[float | None, str]:
    """METEOR 1.5 (Denkowski and Lavie, 2014), 0–1, by pycocoevalcap and Java.

    Args:
        candidates, references: as in `caption_scores`.

    Returns:
        The score and "", or None and what is missing.
    """
    written, true = _tokenized(candidates, references)
    try:
        from pycocoevalcap.meteor.meteor import Meteor
    except ImportError:
        return None, ("METEOR is left out: it needs Java, a paraphrase table and "
                      "pip install 'vbkit[meteor]'")
    if shutil.which("java") is None:
        return None, "METEOR is left out: it needs Java, and there is no program java"
    try:
        score, _ = Meteor().compute_score(
            {i: [" ".join(words) for words in texts] for i, texts in enumerate(true)},
            {i: [" ".join(words)] for i, words in enumerate(written)})
    except Exception as error:  # whatever a Java process does when it has no memory
        return None, f"METEOR is left out: its Java program failed ({error})"
    return float(score), ""
