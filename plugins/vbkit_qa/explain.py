"""What made an answer: the segments and words that were read, or the clips."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from vbkit.explanations import (
    Explanation,
    Piece,
    clip_pieces,
    clips_within,
    explain_pieces,
    explanations_frame,
    part,
    segment_pieces,
    word_pieces,
)

if TYPE_CHECKING:
    from vbkit.features import Features
    from vbkit_qa.head import QaHead

__all__ = ["explain_rows"]

REACH = 4
"""Segments or clips on either side of an answer that are looked at one by one."""

CANDIDATES = 6
"""Answers among which the row's is looked for, when something is hidden."""

EVALUATIONS = 160
"""The whole transcript is read at each."""


def explain_rows(head: QaHead, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
    """Explain the score of answers.

    With evidence hidden, the question is asked again, and the score is that of the best answer
    that has a segment or a clip in common with the row's; 0 where there is none.
    """
    asking = copy.copy(head)
    asking.options = replace(head.options, top_k=max(CANDIDATES, head.options.top_k))
    found: list[Explanation] = []
    for index, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if pd.isna(row["modality"]):
            continue
        explain = _said if row["modality"] == "text" else _seen
        found += explain(asking, features, int(index), row)
    return explanations_frame(features, rows.attrs["table"], found)


def _said(head: QaHead, features: Features, index: int,
          row: dict[str, Any]) -> list[Explanation]:
    said, read = part(features, clips=[]), features.in_languages({head.language})
    stretch = range(int(row["first_segment"]), int(row["last_segment"]) + 1)
    answer = [i for i in stretch if read[i]]

    def score(variants: Sequence[Features]) -> list[float]:
        return [_read(head, row["question"], each, answer) for each in variants]

    near, rest = ([i for i in places if read[i]]
                  for places in _around(stretch, len(features.segments)))
    kinds: list[list[Piece]] = [
        [*segment_pieces(said, near), *segment_pieces(said, rest, most=12)],
        word_pieces(said, answer),
    ]
    return [Explanation(index, "score", pieces,
                        explain_pieces(score, said, pieces, evaluations=EVALUATIONS))
            for pieces in kinds if pieces]


def _read(head: QaHead, question: str, features: Features, answer: Sequence[int]) -> float:
    # An answer that has nothing in common with this one but silence is another.
    left = [i for i in answer if features.segments[i].strip()]
    return max((row["score"] for row in head.found_in("text", question, features)
                if any(row["first_segment"] <= i <= row["last_segment"] for i in left)),
               default=0.0)


def _seen(head: QaHead, features: Features, index: int,
          row: dict[str, Any]) -> list[Explanation]:
    moment = clips_within(features, row["start_s"], row["end_s"])
    shown = part(features, segments=[])
    near, rest = _around(range(moment[0], moment[-1] + 1), len(features.clip_times))

    def score(variants: Sequence[Features]) -> list[float]:
        return [_looked(head, row["question"], each, row["start_s"], row["end_s"])
                for each in variants]

    pieces = [*clip_pieces(shown, near), *clip_pieces(shown, rest, most=12)]
    return [Explanation(index, "score", pieces,
                        explain_pieces(score, shown, pieces, evaluations=EVALUATIONS))]


def _looked(head: QaHead, question: str, features: Features, start_s: float,
            end_s: float) -> float:
    wanted = set(clips_within(features, start_s, end_s))
    return max((row["score"] for row in head.found_in("visual", question, features)
                if wanted & set(clips_within(features, row["start_s"], row["end_s"]))),
               default=0.0)


def _around(answer: range, count: int) -> tuple[list[int], list[int]]:
    """Indices in and near an answer, and all others."""
    near = range(max(0, answer.start - REACH), min(count, answer.stop + REACH))
    return list(near), [i for i in range(count) if i not in near]
