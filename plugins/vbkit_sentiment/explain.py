"""What made a row of sentiment: the words of a segment and its neighbours, or the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vbkit.explanations import (
    Attribution,
    Explanation,
    Piece,
    explain_pieces,
    explanations_frame,
    part,
    segment_pieces,
    word_pieces,
)
from vbkit_sentiment import LABELS, SENTIMENT
from vbkit_sentiment.rows import duration_of

if TYPE_CHECKING:
    from vbkit.features import Features
    from vbkit_sentiment.head import SentimentHead

__all__ = ["explain_rows"]

EVALUATIONS = 160
"""What is said within reach is read at each."""

REACH = 6
"""Segments before and after one that its explanation looks at; those further off move it little."""

GUESS = 1 / 3
"""The probability of each label where there is nothing to judge by."""


def explain_rows(head: SentimentHead, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
    """Explain the probability of the label, in rows of `sentiment` or `sentiment_videos`.

    Without a word, or without a picture, it is a guess, 1/3.
    """
    table = rows.attrs["table"]
    found = []
    for index, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if pd.isna(row["label"]):
            continue
        target = f"p_{row['label']}"
        if table != SENTIMENT.name:
            found.append(_video(head, features, int(index), target, float(row[target])))
        elif pd.isna(row["segment"]):
            found.append(_clip(head, features, int(index), target, int(row["clip"])))
        else:
            found.append(_segment(head, features, int(index), target, int(row["segment"])))
    return explanations_frame(features, table, found)


def _segment(head: SentimentHead, features: Features, row: int, target: str,
             segment: int) -> Explanation:
    speech = np.flatnonzero(head.read(features)).tolist()
    place = speech.index(segment)
    reach = REACH if head.options.context else 0
    near = speech[max(0, place - reach) : place + reach + 1]
    own = near.index(segment)
    said = part(features, segments=near, clips=[])

    def score(variants: Sequence[Features]) -> list[float]:
        return [_probability(head, each, target, own) for each in variants]

    pieces = [*word_pieces(said, [own]),
              *segment_pieces(said, [i for i in range(len(near)) if i != own])]
    return Explanation(row, target, [piece.moved(near) for piece in pieces],
                       explain_pieces(score, said, pieces, evaluations=EVALUATIONS))


def _probability(head: SentimentHead, features: Features, target: str, segment: int) -> float:
    value = head.segment_probabilities(features)[segment, LABELS.index(target.removeprefix("p_"))]
    return GUESS if np.isnan(value) else float(value)


def _clip(head: SentimentHead, features: Features, row: int, target: str,
          clip: int) -> Explanation:
    """A silent clip is judged by its own picture alone."""
    shown = part(features, segments=[], clips=[clip])

    def score(variants: Sequence[Features]) -> list[float]:
        tables = [head.predict(each)[SENTIMENT.name] for each in variants]
        return [float(table[target].iloc[0]) if len(table) else GUESS for table in tables]

    piece = Piece("clip", 0, 0)
    return Explanation(row, target, [piece.moved([clip])], explain_pieces(score, shown, [piece]))


def _video(head: SentimentHead, features: Features, row: int, target: str,
           value: float) -> Explanation:
    """A video's probabilities are the weighted mean of its rows'; each brings its share of it."""
    table = head.predict(features)[SENTIMENT.name]
    judged: list[dict[str, Any]] = table[table["label"].notna()].to_dict("records")
    durations = np.array([duration_of(each) for each in judged])
    if durations.sum() <= 0:
        durations = np.ones(len(judged))
    weights = durations / durations.sum() * [each[target] - GUESS for each in judged]
    pieces = [Piece("clip", int(each["clip"]), int(each["clip"])) if pd.isna(each["segment"])
              else Piece("segment", int(each["segment"]), int(each["segment"]))
              for each in judged]
    return Explanation(row, target, pieces,
                       Attribution(tuple(map(float, weights)), value, GUESS, "shares"))
