"""Metrics of answers that are a span: of segments, or of seconds. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Span", "overlap", "span_scores"]

Span = tuple[float, float]
"""Start and end. Of segments, the end is one past the last."""

_LEVELS = (0.3, 0.5, 0.7)


def overlap(one: Span, other: Span) -> float:
    """Intersection over union, 0–1; two equal points overlap wholly."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    union = max(one[1], other[1]) - min(one[0], other[0])
    if union <= 0:
        return 1.0
    return max(0.0, common) / union


def span_scores(predicted: Sequence[Span | None], true: Sequence[Span],
                best: Sequence[float | None] | None = None) -> dict[str, float | None]:
    """Scores of the first answer to each of N questions.

    Args:
        predicted: the first answer's span; None where there is none, which is wrong.
        true: the right one.
        best: a point that the answer is most sure of, such as its best segment plus one half; it is
            right inside the true span. None where there is none.

    Returns:
        `r1_iou30`, `r1_iou50`, `r1_iou70`: share of answers that overlap the true span by at least
        so much; `mean_iou`; with `best`, `best_segment_inside`.

    Raises:
        ValueError: the lists differ in length, or are empty.
    """
    if not len(true) or len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} answers to {len(true)} questions; give as many of "
                         "each, and at least one")
    shares = np.array([0.0 if span is None else overlap(span, right)
                       for span, right in zip(predicted, true, strict=True)])
    out: dict[str, float | None] = {
        f"r1_iou{round(100 * level)}": float((shares >= level - 1e-9).mean()) for level in _LEVELS}
    out["mean_iou"] = float(shares.mean())
    if best is not None:
        inside = [point is not None and right[0] <= point <= right[1]
                  for point, right in zip(best, true, strict=True)]
        out["best_segment_inside"] = float(np.mean(inside))
    return out
