"""Explanations: which clips, segments and words made a row, found by hiding them.

A head with the capability `explain` says which pieces of evidence there are and how to score a row
when some are hidden; the rest is here, and knows nothing of the head. Words and segments are taken
out of the transcript, clips out of the video (see `hide`), and each piece's share of the score is
its Shapley value: the mean, over the orders in which pieces can be shown one by one, of what the
score gains by it (Shapley, 1953; as explanations, Štrumbelj and Kononenko, JMLR 2010; sampled as in
Castro et al., 2009, by captum). So words that say the same thing share what they bring, where
hiding them one by one would find that none of them matters.

Importing this module imports neither torch nor captum.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from vbkit.errors import FeatureError, SchemaError
from vbkit.features import Features
from vbkit.tables import CORE_TABLES

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

__all__ = [
    "EXPLANATIONS",
    "KINDS",
    "METHODS",
    "Attribution",
    "Explanation",
    "Piece",
    "attribute",
    "check_explanations",
    "clip_pieces",
    "clips_within",
    "explain_pieces",
    "explain_text",
    "explanations_frame",
    "hide",
    "part",
    "segment_pieces",
    "word_pieces",
    "word_spans",
]

EXPLANATIONS = CORE_TABLES["explanations"]
"""The table that `Head.explain` returns."""

KINDS = ("clip", "segment", "word")
"""Kinds of evidence."""

METHODS = ("shapley", "ablation")
"""How `attribute` finds weights."""

MOST_PIECES = 32
"""Longer texts and videos are cut into so many pieces, each of several words or clips."""

EVALUATIONS = 320
"""How often a row is scored to explain it, about: enough for ten orders of 32 pieces."""

_EXACT = 5  # for so few pieces, all orders are gone through
_BATCH = 64
_WORD = re.compile(
    # A run without blanks; in Chinese and Japanese, which have none, each character.
    "[\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff]"
    "|[^\\s\\u3040-\\u30ff\\u3400-\\u9fff\\uf900-\\ufaff]+")
_CONTEXTUAL = frozenset({"segment_hidden", "tokens", "token_hidden"})
_BY_SEGMENT = ("segments", "segment_times", "segment_embeddings", "segment_hidden", "tokens",
               "token_hidden")
_BY_CLIP = ("clip_times", "clip_features", "visual_words", "clip_embeddings", "clip_hidden")
_UNKNOWN = frozenset({"pooled", "joint", "generate", "frames"})


@dataclass(frozen=True)
class Piece:
    """A piece of evidence: a run of clips, a run of segments, or some words of a segment.

    Args:
        kind: of `KINDS`.
        first, last: indices of clips (kind clip) or segments (the others), inclusive.
        start_char, end_char: of a word: where it begins in its segment's text, and one past its
            end, in characters.

    Raises:
        ValueError: it is none.
    """

    kind: str
    first: int
    last: int
    start_char: int | None = None
    end_char: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        if not 0 <= self.first <= self.last:
            raise ValueError(f"{self.kind} {self.first} to {self.last} is no range")
        if self.kind != "word":
            if self.start_char is not None or self.end_char is not None:
                raise ValueError(f"only words have characters, not a {self.kind}")
        elif self.start_char is None or self.end_char is None or (
                not 0 <= self.start_char < self.end_char) or self.first != self.last:
            raise ValueError("a word lies in one segment, from start_char to before end_char")

    @property
    def indices(self) -> range:
        """Of its clips, or segments."""
        return range(self.first, self.last + 1)

    def moved(self, places: Sequence[int]) -> Piece:
        """The same piece where its clips, or segments, are those of `places`, as after `part`."""
        return replace(self, first=places[self.first], last=places[self.last])


@dataclass(frozen=True)
class Attribution:
    """What each of n pieces brings to a score.

    Args:
        weights: n numbers, in the unit of the score; negative for what lowers it.
        score: with everything shown.
        score_hidden: with all pieces hidden. Shapley values add up to `score - score_hidden`.
        method: how the weights were found, of `METHODS` or a name of the head's own.
    """

    weights: tuple[float, ...]
    score: float
    score_hidden: float
    method: str = "shapley"


@dataclass(frozen=True)
class Explanation:
    """What made one row.

    Args:
        row: the row's label in the index of `rows`, as `Head.explain` was given them.
        target: the number that is explained, in words: the name of a column, or more.
        pieces: the evidence.
        attribution: a weight for each piece.
    """

    row: int
    target: str
    pieces: Sequence[Piece]
    attribution: Attribution

    def __post_init__(self) -> None:
        if len(self.pieces) != len(self.attribution.weights):
            raise ValueError(f"{len(self.pieces)} pieces, but {len(self.attribution.weights)} "
                             "weights")


# Weights


def attribute(
    score: Callable[[Tensor], Tensor | Sequence[float]],
    n: int,
    *,
    method: str = "shapley",
    evaluations: int = EVALUATIONS,
    seed: int = 0,
) -> Attribution:
    """What each of `n` pieces brings to a score, by scoring with some of them hidden.

    Args:
        score: (B, n) bool on the CPU, True for a piece that is shown, to B scores. It is called
            with several rows at a time, and with no row twice.
        n: number of pieces.
        method: `"shapley"`, exact for up to five pieces and sampled for more; or `"ablation"`,
            the drop of the score when a piece alone is hidden, which is quicker and misses what
            two pieces say alike.
        evaluations: about how many rows to score for Shapley values; fewer are less exact.
        seed: of the orders that are sampled. The same seed gives the same weights.

    Raises:
        FeatureError: a score is not finite.
        ValueError: the method is unknown.
    """
    import torch
    from captum.attr import FeatureAblation, ShapleyValues, ShapleyValueSampling

    if method not in METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}")
    known: dict[tuple[bool, ...], float] = {}

    def scores(shown: Tensor) -> Tensor:
        rows = [tuple(row) for row in shown.bool().tolist()]
        new = [row for row in dict.fromkeys(rows) if row not in known]
        for start in range(0, len(new), _BATCH):
            part = new[start : start + _BATCH]
            asked = torch.tensor(part, dtype=torch.bool).reshape(len(part), n)
            values = torch.as_tensor(score(asked), dtype=torch.float64).cpu().reshape(-1)
            if len(values) != len(part):
                raise FeatureError(f"{len(values)} scores were given for {len(part)} rows")
            for row, value in zip(part, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise FeatureError(f"the score is {value} with {n - sum(row)} of {n} pieces "
                                       "of evidence hidden")
                known[row] = value
        return torch.tensor([known[row] for row in rows], dtype=torch.float64)

    ends = torch.stack([torch.ones(n), torch.zeros(n)])
    full, none = scores(ends).tolist()
    if n == 0:
        return Attribution((), full, none, method)
    everything, settings = ends[:1].double(), {"perturbations_per_eval": max(n, 1)}
    # captum draws from torch's own generator, which is left as it was.
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if method == "ablation":
            found = FeatureAblation(scores).attribute(everything, 0.0, **settings)
        elif n <= _EXACT:
            found = ShapleyValues(scores).attribute(everything, 0.0, **settings)
        else:
            found = ShapleyValueSampling(scores).attribute(
                everything, 0.0, n_samples=max(4, round(evaluations / n)), **settings)
    return Attribution(tuple(found[0].tolist()), full, none, method)


def explain_text(
    score: Callable[[Sequence[str]], Tensor | Sequence[float]],
    text: str,
    *,
    most: int = MOST_PIECES,
    method: str = "shapley",
    evaluations: int = EVALUATIONS,
    seed: int = 0,
) -> tuple[list[tuple[int, int]], Attribution]:
    """What each word of a text brings to its score.

    Hidden words are left out, and the rest closes up. They are not replaced by a mask token: a
    shorter text is an ordinary input of a text encoder that was trained on sentences, a row of
    masks is not. With all words hidden the text is empty.

    Args:
        score: texts to as many scores.
        text: the text.
        most, method, evaluations, seed: as in `word_spans` and `attribute`.

    Returns:
        (start, end) of each word or phrase, in characters, and their weights.
    """
    spans = word_spans(text, most)

    def scores(shown: Tensor) -> Tensor | Sequence[float]:
        return score([_without(text, [span for span, kept in zip(spans, row, strict=True)
                                      if not kept]) for row in shown.tolist()])

    return spans, attribute(scores, len(spans), method=method, evaluations=evaluations, seed=seed)


# Pieces


def word_spans(text: str, most: int = MOST_PIECES) -> list[tuple[int, int]]:
    """(start, end) of each word, in characters; of runs of words where there are more than `most`.

    A word is what stands between blanks, with its punctuation; in Chinese and Japanese, a
    character.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    return [(words[run.start][0], words[run.stop - 1][1]) for run in _runs(len(words), most)]


def word_pieces(features: Features, segments: Iterable[int],
                most: int = MOST_PIECES) -> list[Piece]:
    """The words of some segments, at most about `most` pieces in all."""
    chosen = [index for index in segments if features.segments[index].strip()]
    count = sum(len(word_spans(features.segments[index], most=10**9)) for index in chosen)
    pieces = []
    for index in chosen:
        text = features.segments[index]
        own = len(word_spans(text, most=10**9))
        share = own if count <= most else max(1, round(most * own / count))
        pieces += [Piece("word", index, index, *span) for span in word_spans(text, share)]
    return pieces


def segment_pieces(features: Features, segments: Iterable[int] | None = None,
                   most: int = MOST_PIECES) -> list[Piece]:
    """Segments that say something: those named, or all; neighbours as one where there are many."""
    chosen = range(len(features.segments)) if segments is None else segments
    said = sorted(index for index in set(chosen) if features.segments[index].strip())
    return [Piece("segment", *run) for run in _grouped(said, most)]


def clip_pieces(features: Features, clips: Iterable[int] | None = None,
                most: int = MOST_PIECES) -> list[Piece]:
    """Clips: those named, or all; neighbours as one where there are more than `most`."""
    chosen = range(len(features.clip_times)) if clips is None else clips
    return [Piece("clip", *run) for run in _grouped(sorted(set(chosen)), most)]


def clips_within(features: Features, start_s: float, end_s: float) -> list[int]:
    """Indices of the clips whose middle lies in a stretch (s), as after `hide` it may be fewer."""
    middle = features.clip_times.mean(1)
    return [int(index) for index in ((middle >= start_s) & (middle <= end_s)).nonzero()[0]]


def _runs(n: int, most: int) -> list[slice]:
    """`n` things in a row as at most `most` runs of about equal length."""
    count = min(n, max(1, most))
    return [slice(i * n // count, (i + 1) * n // count) for i in range(count)]


def _grouped(indices: Sequence[int], most: int) -> list[tuple[int, int]]:
    """First and last of runs of neighbours that cover sorted `indices` and nothing else."""
    out: list[tuple[int, int]] = []
    for run in _runs(len(indices), most):
        part = indices[run]
        first = part[0]
        for before, after in zip(part, [*part[1:], None], strict=True):
            if after != before + 1:
                out.append((first, before))
                first = after if after is not None else before
    return out


# Hiding


def part(features: Features, *, segments: Sequence[int] | None = None,
         clips: Sequence[int] | None = None) -> Features:
    """A video of some of the segments and clips, for a row that depends on no others.

    Their indices are then counted anew; `Piece.moved` counts them as before.

    Args:
        features: the whole.
        segments, clips: indices to keep, in order; None keeps all.
    """
    out = {name: getattr(features, name) for name in features.available - _UNKNOWN}
    for names, kept in ((_BY_SEGMENT, segments), (_BY_CLIP, clips)):
        for name in names if kept is not None else ():
            if name in out:
                assert kept is not None
                whole = out[name]
                out[name] = [whole[i] for i in kept] if isinstance(whole, list) else (
                    whole[list(kept)])
    if clips is not None and "motion" in out:
        out["motion"] = _motion_of(out["motion"], clips)
    found = _Hidden(features, out)
    if segments is not None:
        found.segment_languages = tuple(features.segment_languages[i] for i in segments)
    return found


def hide(features: Features, pieces: Iterable[Piece]) -> Features:
    """The same video with some evidence hidden.

    A hidden segment keeps its place and says nothing: its text is empty, and its vector zero, as
    where there is none. So the indices of segments stay what they are. Hidden words are left out
    of their segment's text, which is encoded anew. Hidden clips are taken out, as if those seconds
    had not been filmed, and the others keep their times: a vector of zeros, or the mean of other
    clips, would be a picture, and not even one that a backbone could have seen.

    What the joint encoder gives for the rest (`clip_hidden`, `segment_hidden`, `tokens`,
    `token_hidden`) is as it was when it read everything; `pooled`, `joint`, `generate` and
    `frames` are not there.

    Args:
        features: with `encode_text`, where words are to be hidden and `segment_embeddings` are
            there.
        pieces: what to hide.

    Raises:
        FeatureError: words, or clips, cannot be hidden in these outputs.
    """
    return _Variants(features, [list(pieces)])[0]


def explain_pieces(
    score: Callable[[Sequence[Features]], Tensor | Sequence[float]],
    features: Features,
    pieces: Sequence[Piece],
    *,
    method: str = "shapley",
    evaluations: int = EVALUATIONS,
    seed: int = 0,
) -> Attribution:
    """What each piece of evidence brings to the score of a row.

    Args:
        score: variants of `features` with evidence hidden, to as many scores of the row. A row
            that is not found any more has a score, too: what the head says where there is nothing.
        features: the video.
        pieces: the evidence, which should not overlap; what is in none stays as it is.
        method, evaluations, seed: as in `attribute`.

    Raises:
        FeatureError: as `hide`, or a score is not finite.
    """
    def scores(shown: Tensor) -> Tensor | Sequence[float]:
        return score(_Variants(features, [
            [piece for piece, kept in zip(pieces, row, strict=True) if not kept]
            for row in shown.tolist()]))

    return attribute(scores, len(pieces), method=method, evaluations=evaluations, seed=seed)


class _Hidden(Features):
    """The features of a video, with other outputs."""

    def __init__(self, features: Features, outputs: Mapping[str, Any]) -> None:
        vars(self).update(vars(features), _outputs=dict(outputs))

    def __getattr__(self, name: str) -> Any:
        if name in _UNKNOWN:
            raise FeatureError(f"{name!r} is not known with evidence hidden: a score that is "
                               "explained by hiding must not read it")
        return super().__getattr__(name)


class _Variants(Sequence[Features]):
    """Variants of a video, each made when it is asked for: long videos are large.

    The texts of all of them are encoded together, once.
    """

    def __init__(self, features: Features, hidden: Sequence[Sequence[Piece]]) -> None:
        self.features = features
        self.hidden = hidden
        self.outputs = {name: getattr(features, name)
                        for name in features.available - _UNKNOWN}
        old = self.outputs.get("segments", [])
        self.texts = [_texts(old, pieces) for pieces in hidden]
        new = list(dict.fromkeys(text for row in self.texts
                                 for text, was in zip(row, old, strict=True)
                                 if text != was and text))
        self.fresh: dict[str, Tensor] = {}
        if not new:
            return
        contextual = sorted(_CONTEXTUAL & set(self.outputs))
        if contextual:
            raise FeatureError(f"words cannot be hidden in {contextual[0]}, which was made when "
                               "the whole text was read; hide segments, or restrict the features")
        if "segment_embeddings" in self.outputs:
            if "encode_text" not in self.outputs:
                raise FeatureError("to hide words, texts have to be encoded anew: add encode_text "
                                   "to explain_needs")
            self.fresh = dict(zip(new, self.outputs["encode_text"](new), strict=True))

    def __len__(self) -> int:
        return len(self.hidden)

    @overload
    def __getitem__(self, index: int) -> Features: ...
    @overload
    def __getitem__(self, index: slice) -> list[Features]: ...
    def __getitem__(self, index: int | slice) -> Features | list[Features]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return _Hidden(self.features, _variant(self.outputs, self.hidden[index],
                                               self.texts[index], self.fresh))


def _texts(segments: Sequence[str], pieces: Sequence[Piece]) -> list[str]:
    """The segments without what is hidden of them."""
    texts = list(segments)
    words: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for piece in pieces:
        if piece.kind == "word":
            assert piece.start_char is not None
            assert piece.end_char is not None
            words[piece.first].append((piece.start_char, piece.end_char))
    for index, spans in words.items():
        texts[index] = _without(texts[index], spans)
    for piece in pieces:
        if piece.kind == "segment":
            for index in piece.indices:
                texts[index] = ""
    return texts


def _variant(outputs: Mapping[str, Any], pieces: Sequence[Piece], texts: list[str],
             fresh: Mapping[str, Tensor]) -> dict[str, Any]:
    out = dict(outputs)
    if "segments" in out:
        changed = [(i, text) for i, (text, was) in
                   enumerate(zip(texts, outputs["segments"], strict=True)) if text != was]
        out["segments"] = texts
        silent = [index for index, text in changed if not text]
        for name in ("segment_embeddings", "segment_hidden"):
            if name in out and changed:
                vectors = out[name].clone()
                vectors[silent] = 0
                for index, text in changed:
                    if text and name == "segment_embeddings":
                        vectors[index] = fresh[text].to(vectors)
                out[name] = vectors
        for name in ("tokens", "token_hidden"):
            if name in out:
                out[name] = [row[:0] if i in silent else row for i, row in enumerate(out[name])]
    gone = {index for piece in pieces if piece.kind == "clip" for index in piece.indices}
    if gone:
        for name in _BY_CLIP:
            if name in out:
                out[name] = out[name][[i for i in range(len(out[name])) if i not in gone]]
        if "motion" in out:
            count = next((len(outputs[name]) for name in _BY_CLIP if name in outputs), None)
            if count is None:
                raise FeatureError("to hide clips of what reads motion, their number must be "
                                   "known: add clip_times to explain_needs")
            out["motion"] = _motion_of(out["motion"],
                                       [i for i in range(count) if i not in gone])
    return out


def _motion_of(motion: Callable[[Sequence[int]], Tensor],
               kept: Sequence[int]) -> Callable[[Sequence[int]], Tensor]:
    """The method `motion` of a video that has the clips `kept` of another, counted anew."""
    def motion_of(clips: Sequence[int]) -> Tensor:
        strange = [clip for clip in clips if not 0 <= clip < len(kept)]
        if strange:
            raise FeatureError(f"motion: there is no clip {strange[0]} among {len(kept)}")
        return motion([kept[clip] for clip in clips])

    return motion_of


def _without(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """`text` without some spans of characters; empty where nothing but blanks is left."""
    kept, at = [], 0
    for start, end in sorted(spans):
        kept.append(text[at:start])
        at = max(at, end)
    kept.append(text[at:])
    left = "".join(kept)
    return re.sub(r"\s+", " ", left).strip() if len(kept) > 1 else text


# The table


def explanations_frame(features: Features, table: str,
                       explanations: Iterable[Explanation]) -> pd.DataFrame:
    """What `Head.explain` returns: a row for each piece of evidence, the strongest first.

    Args:
        features: of the video: `segments` for texts; `clip_times` and `segment_times`, where they
            are there, for times.
        table: the table of the rows that are explained, `rows.attrs["table"]`.
        explanations: of its rows.
    """
    rows: list[dict[str, Any]] = []
    for explanation in explanations:
        found = explanation.attribution
        rows += [{
            "of_table": table, "of_row": explanation.row, "target": explanation.target,
            "score": found.score, "score_hidden": found.score_hidden, "method": found.method,
            "kind": piece.kind, "weight": weight, **_place(features, piece),
        } for piece, weight in zip(explanation.pieces, found.weights, strict=True)]
    rows.sort(key=lambda row: (row["of_row"], -row["weight"]))
    ranks: dict[tuple[int, str], int] = defaultdict(int)
    for row in rows:
        ranks[row["of_row"], row["kind"]] += 1
        row["rank"] = ranks[row["of_row"], row["kind"]]
    return EXPLANATIONS.frame(rows)


def _place(features: Features, piece: Piece) -> dict[str, Any]:
    """Where a piece is, and what is said there."""
    if piece.kind == "clip":
        return {"first_clip": piece.first, "last_clip": piece.last,
                **_times(features, "clip_times", piece)}
    text = " ".join(features.segments[index] for index in piece.indices)
    if piece.kind == "word":
        text = text[piece.start_char : piece.end_char]
    return {"first_segment": piece.first, "last_segment": piece.last, "text": text,
            "start_char": piece.start_char, "end_char": piece.end_char,
            **_times(features, "segment_times", piece)}


def _times(features: Features, name: str, piece: Piece) -> dict[str, float | None]:
    if name not in features.available:
        return {}
    times: np.ndarray = getattr(features, name)[piece.first : piece.last + 1]
    known = times[~(times[:, 0] != times[:, 0])]
    if not len(known):
        return {"start_s": None, "end_s": None}
    return {"start_s": float(known[:, 0].min()), "end_s": float(known[:, 1].max())}


def check_explanations(frame: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """What a head returned for `rows`, conforming to `EXPLANATIONS`.

    Raises:
        SchemaError: it breaks the schema, is about other rows than those, or has weights that are
            not finite.
    """
    frame = EXPLANATIONS.conform(frame)
    table = rows.attrs["table"]
    strangers = sorted({str(name) for name in frame["of_table"]} - {table})
    if strangers:
        raise SchemaError(f"explanations: of_table is {strangers[0]!r}, but the rows are of "
                          f"{table}")
    unasked = sorted(set(frame["of_row"].tolist()) - set(rows.index.tolist()))
    if unasked:
        raise SchemaError(f"explanations: of_row is {unasked[0]}, which is none of the rows that "
                          "were to be explained")
    kinds = sorted(set(frame["kind"].tolist()) - set(KINDS))
    if kinds:
        raise SchemaError(f"explanations: kind is {kinds[0]!r}, which is none of "
                          f"{', '.join(KINDS)}")
    for name in ("score", "score_hidden", "weight"):
        if not all(math.isfinite(value) for value in frame[name]):
            raise SchemaError(f"explanations: {name} is not finite")
    return frame
