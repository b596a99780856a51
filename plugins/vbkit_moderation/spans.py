"""From scores to flagged stretches. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vbkit_moderation.policy import Rule
from vbkit_moderation.taxonomy import category

__all__ = ["GRAVITY", "clip_spans", "gravest", "merge", "segment_spans", "shorten"]

GRAVITY = {"allow": 0, "review": 1, "block": 2}


def merge(flagged: np.ndarray, times: np.ndarray, gap_s: float) -> Iterator[tuple[int, int]]:
    """Runs of flagged items, first and last index, with gaps bridged.

    Two flagged items belong together when one follows the other directly, or when all that lies
    between them lasts at most `gap_s` seconds.

    Args:
        flagged: (N,) bool.
        times: (N, 2) s, NaN for untimed items, between which no gap is bridged.
        gap_s: s.
    """
    indices = np.flatnonzero(flagged)
    if not len(indices):
        return
    first = last = int(indices[0])
    end = times[last, 1]
    for index in map(int, indices[1:]):
        near = times[index, 0] - end <= gap_s + 1e-6
        untimed = np.isnan(times[index, 0]) or np.isnan(end)
        if near or (untimed and index == last + 1):
            last, end = index, np.fmax(end, times[index, 1])
        else:
            yield first, last
            first = last = index
            end = times[index, 1]
    yield first, last


def clip_spans(
    name: str, scores: np.ndarray, times: np.ndarray, rule: Rule, gap_s: float
) -> list[dict[str, Any]]:
    """Rows of a visual category: `scores` (C,) of clips at `times` (C, 2)."""
    rows = []
    for first, last in merge(scores >= min(rule.review, rule.block), times, gap_s):
        score = float(scores[first : last + 1].max())
        clips = f"clip {first}" if first == last else f"clips {first}–{last}"
        rows.append({
            **_row(name, rule, score, times[first : last + 1]),
            "modality": "visual",
            "evidence": f"{clips}, {name} probability {score:.2f}",
            "first_segment": None, "last_segment": None, "first_clip": first, "last_clip": last,
        })
    return rows


def segment_spans(
    name: str, scores: np.ndarray, times: np.ndarray, segments: Sequence[str], rule: Rule,
    gap_s: float, evidence_chars: int,
) -> list[dict[str, Any]]:
    """Rows of a text category: `scores` (S,) of `segments`, NaN where one was not judged.

    The evidence is the segment that scores highest in the stretch.
    """
    known = np.nan_to_num(scores, nan=-1.0)
    rows = []
    for first, last in merge(known >= min(rule.review, rule.block), times, gap_s):
        best = first + int(known[first : last + 1].argmax())
        rows.append({
            **_row(name, rule, float(known[best]), times[first : last + 1]),
            "modality": "text",
            "evidence": shorten(segments[best], evidence_chars),
            "first_segment": first, "last_segment": last, "first_clip": None, "last_clip": None,
        })
    return rows


def gravest(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row with the gravest decision, and of these the highest score."""
    return max(rows, key=lambda row: (GRAVITY[row["decision"]], row["score"]), default=None)


def shorten(text: str, length: int) -> str:
    """`text` on one line, cut at a word where it is longer than `length` characters."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    cut = line[: max(length - 1, 0)]
    if " " in cut and not line[len(cut)].isspace():
        cut = cut.rsplit(" ", 1)[0]
    return cut.rstrip() + "…"


def _row(name: str, rule: Rule, score: float, times: np.ndarray) -> dict[str, Any]:
    timed = not np.isnan(times).all()
    return {
        "start_s": float(np.nanmin(times[:, 0])) if timed else None,
        "end_s": float(np.nanmax(times[:, 1])) if timed else None,
        "category": name,
        "parent_category": category(name).parent,
        "score": score,
        "decision": rule.decide(score),
    }
