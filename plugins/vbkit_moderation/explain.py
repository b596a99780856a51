"""What made a row of moderation: the clips of its stretch, or the words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vbkit.explanations import (
    Explanation,
    clip_pieces,
    clips_within,
    explain_pieces,
    explanations_frame,
    part,
    word_pieces,
)
from vbkit_moderation import MODERATION

if TYPE_CHECKING:
    from vbkit.features import Features
    from vbkit_moderation.head import ModerationHead

__all__ = ["explain_rows"]


def explain_rows(head: ModerationHead, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
    """Explain rows of `moderation` or `moderation_videos`, whose score is a probability.

    Where no clip of a stretch is left, or no word, nothing would be flagged: the score is 0. A
    verdict is explained by the stretch that has its score.
    """
    table = rows.attrs["table"]
    found = []
    for index, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if table != MODERATION.name:
            category = row["nearest_category"] if pd.isna(row["category"]) else row["category"]
            if pd.isna(category) or (stretch := _greatest(head, features, category)) is None:
                continue
        else:
            category, stretch = row["category"], row
        explain = _seen if stretch["modality"] == "visual" else _said
        found.append(explain(head, features, int(index), category, stretch))
    return explanations_frame(features, table, found)


def _seen(head: ModerationHead, features: Features, row: int, category: str,
          stretch: Mapping[str, Any]) -> Explanation:
    first, last = int(stretch["first_clip"]), int(stretch["last_clip"])
    start_s, end_s = features.clip_times[first, 0], features.clip_times[last, 1]
    # A clip counts with the stronger of its neighbours, which may be outside the stretch.
    near = range(max(0, first - 1), min(len(features.clip_times), last + 2))
    shown = part(features, segments=[], clips=near)

    def score(variants: Sequence[Features]) -> list[float]:
        return [_best(head, each, "visual", category, clips_within(each, start_s, end_s))
                for each in variants]

    pieces = clip_pieces(shown)
    return Explanation(row, f"score of {category}", [piece.moved(near) for piece in pieces],
                       explain_pieces(score, shown, pieces))


def _said(head: ModerationHead, features: Features, row: int, category: str,
          stretch: Mapping[str, Any]) -> Explanation:
    read = head.scores_of(features, "text", category)  # NaN of a segment in another language
    near = [i for i in range(int(stretch["first_segment"]), int(stretch["last_segment"]) + 1)
            if not np.isnan(read[i])]
    said = part(features, segments=near, clips=[])

    def score(variants: Sequence[Features]) -> list[float]:
        return [_best(head, each, "text", category, range(len(near))) for each in variants]

    pieces = word_pieces(said, range(len(near)))
    return Explanation(row, f"score of {category}", [piece.moved(near) for piece in pieces],
                       explain_pieces(score, said, pieces))


def _best(head: ModerationHead, features: Features, modality: str, category: str,
          places: Sequence[int]) -> float:
    """The greatest score of some clips or segments; 0 where there is none, or nothing is said."""
    values = head.scores_of(features, modality, category)
    inside = values[list(places)] if len(places) and len(values) else values[:0]
    inside = inside[~np.isnan(inside)]
    return float(inside.max()) if len(inside) else 0.0


def _greatest(head: ModerationHead, features: Features, category: str) -> dict[str, Any] | None:
    """The stretch that has the greatest score of a category in a video, or the one clip."""
    flagged = head.predict(features)[MODERATION.name]
    flagged = flagged[flagged["category"] == category]
    if len(flagged):
        stretch: dict[str, Any] = flagged.loc[flagged["score"].idxmax()].to_dict()
        return stretch
    best: tuple[float, str, int] | None = None
    for modality in ("visual", "text"):
        values = head.scores_of(features, modality, category)
        if len(values) and not np.isnan(values).all():
            place = int(np.nanargmax(values))
            if best is None or values[place] > best[0]:
                best = float(values[place]), modality, place
    if best is None:
        return None
    _, modality, place = best
    unit = "clip" if modality == "visual" else "segment"
    return {"modality": modality, f"first_{unit}": place, f"last_{unit}": place}
