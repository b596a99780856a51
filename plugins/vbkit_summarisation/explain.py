"""What made a segment or a clip worth selecting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
import torch.nn.functional as F

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

if TYPE_CHECKING:
    from vbkit.features import Features
    from vbkit_summarisation.head import SummarisationHead

__all__ = ["explain_rows"]

EVALUATIONS = 48
"""What is said within reach is read at each."""

REACH = 6
"""Segments before and after a sentence that its explanation looks at."""

MOST_CONTEXT = 16
"""Pieces that the other segments of a transcript are looked at in."""


def explain_rows(head: SummarisationHead, features: Features,
                 rows: pd.DataFrame) -> pd.DataFrame:
    """Explain scores of `summarisation_segments`, for which a row may be selected."""
    found: list[Explanation] = []
    for index, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if pd.isna(row["score"]):
            continue
        if pd.isna(row["segment"]):
            found.append(_clip(head, features, int(index), row["start_s"]))
        else:
            found += _segment(head, features, int(index), int(row["segment"]))
    return explanations_frame(features, rows.attrs["table"], found)


def _segment(head: SummarisationHead, features: Features, index: int,
             segment: int) -> list[Explanation]:
    """The words of the sentence, and what is said before and after it, each by itself.

    A sentence of which nothing is left has a score of 0.
    """
    sentences = head.sentences(features)
    own = next(each for each in sentences if segment in each)
    near = range(max(0, own[0] - REACH), min(len(features.segments), own[-1] + 1 + REACH))
    said = part(features, segments=near, clips=[])
    sentence = [i - near.start for i in own]

    def score(variants: Sequence[Features]) -> list[float]:
        return [_score(head, each, segment - near.start, sentence) for each in variants]

    others = [i - near.start for each in sentences for i in each
              if i in near and i not in own]
    kinds: list[list[Piece]] = [word_pieces(said, sentence),
                                segment_pieces(said, others, most=MOST_CONTEXT)]
    return [Explanation(index, "score", [piece.moved(near) for piece in pieces],
                        explain_pieces(score, said, pieces, evaluations=EVALUATIONS))
            for pieces in kinds if pieces]


def _score(head: SummarisationHead, features: Features, segment: int,
           sentence: Sequence[int]) -> float:
    left = [i for i in sentence if features.segments[i].strip()]
    if not left:
        return 0.0
    # A sentence goes on as long as something of it is said.
    place = segment if segment in left else left[0]
    return head.segment_scores(features)[place] or 0.0


def _clip(head: SummarisationHead, features: Features, index: int,
          start_s: float) -> Explanation:
    """A clip's score is its mean likeness to all clips; each of them brings its share of it."""
    clips = head.clips_shown(features)
    vectors = features.clip_embeddings[clips]
    place = next(k for k, clip in enumerate(clips) if features.clip_times[clip, 0] == start_s)
    likeness = F.cosine_similarity(vectors, vectors[place : place + 1]).double().cpu() / len(clips)
    score = float(likeness.sum())
    return Explanation(index, "score", [Piece("clip", clip, clip) for clip in clips],
                       Attribution(tuple(likeness.tolist()), score, 0.0, "shares"))
