"""What made a label: the clips and segments of a video, and the words of the weightiest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from vbkit.explanations import (
    Explanation,
    Piece,
    clip_pieces,
    explain_pieces,
    explanations_frame,
    part,
    segment_pieces,
    word_pieces,
)
from vbkit_classification import CLASSIFICATION

if TYPE_CHECKING:
    from vbkit.features import Features
    from vbkit_classification.head import ClassificationHead

__all__ = ["explain_rows"]


def explain_rows(head: ClassificationHead, features: Features,
                 rows: pd.DataFrame) -> pd.DataFrame:
    """Explain scores of `classification` or `classification_clips`.

    Where nothing is left to judge by, each label is as good as the other.
    """
    table = rows.attrs["table"]
    found: list[Explanation] = []
    for index, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if pd.isna(row["score"]):
            continue
        if table == CLASSIFICATION.name:
            found += _video(head, features, int(index), row["label"])
        else:
            found.append(_clip(head, features, int(index), row))
    return explanations_frame(features, table, found)


def _video(head: ClassificationHead, features: Features, index: int,
           label: str) -> list[Explanation]:
    place, guess = head.labels.index(label), head.guess

    def score(variants: Sequence[Features]) -> list[float]:
        values = [float(head.scores([each])[0, place]) for each in variants]
        return [guess if math.isnan(value) else value for value in values]

    clips = clip_pieces(features)
    # By their names, labels are looked for in what is said only where there is no picture.
    reads = head.model is not None or not clips
    said = segment_pieces(features, head.read(features)) if reads else []
    together: list[Piece] = [*clips, *said]
    whole = explain_pieces(score, features, together)
    found = [Explanation(index, f"score of {label}", together, whole)]
    if said:
        weightiest = max(zip(whole.weights[len(clips):], said, strict=True),
                         key=lambda pair: pair[0])[1]
        words = word_pieces(features, weightiest.indices)
        found.append(Explanation(index, f"score of {label}", words,
                                 explain_pieces(score, features, words)))
    return found


def _clip(head: ClassificationHead, features: Features, index: int,
          row: dict[str, Any]) -> Explanation:
    """A clip is judged by its own picture alone."""
    place, clip = head.labels.index(row["label"]), int(row["clip"])
    shown = part(features, segments=[], clips=[clip])

    def score(variants: Sequence[Features]) -> list[float]:
        return [float(head.clip_scores(each)[0, place]) if len(each.clip_times) else head.guess
                for each in variants]

    piece = Piece("clip", 0, 0)
    return Explanation(index, f"score of {row['label']}", [piece.moved([clip])],
                       explain_pieces(score, shown, [piece]))
