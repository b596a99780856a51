"""From probabilities to the tables of the task. No torch here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vbkit_sentiment import LABELS

__all__ = ["clip_rows", "duration_of", "segment_rows", "silent_clips", "speech_mask", "video_row"]

_OVERLAP_S = 0.05
"""Overlap (s) that still counts as none: subtitles are timed to about a frame."""

_NO_SPEECH = re.compile(r"[\W\d_]*|[\[(*♪].*[\])*♪]", re.DOTALL)
_PROBABILITIES = tuple(f"p_{label}" for label in LABELS)


def speech_mask(segments: Sequence[str]) -> np.ndarray:
    """(S,) bool: which segments hold speech, not only marks such as `[Music]`, `♪` or `...`."""
    return np.array([not _NO_SPEECH.fullmatch(text.strip()) for text in segments], dtype=bool)


def silent_clips(
    clip_times: np.ndarray, segment_times: np.ndarray, speech: np.ndarray
) -> np.ndarray:
    """Indices of the clips that no segment of speech overlaps.

    None where some segment of speech has no times: then nobody knows which clips are silent.

    Args:
        clip_times: (C, 2) s.
        segment_times: (S, 2) s, NaN for untimed text.
        speech: (S,) bool, from `speech_mask`.
    """
    times = segment_times[speech]
    if np.isnan(times).any():
        return np.zeros(0, dtype=np.int64)
    times = times[np.argsort(times[:, 0], kind="stable")]
    ends = np.maximum.accumulate(times[:, 1]) if len(times) else np.zeros(0)
    # Among the segments that begin before a clip ends, the one that ends last decides.
    before = np.searchsorted(times[:, 0], clip_times[:, 1] - _OVERLAP_S, side="left")
    last_end = np.where(before > 0, np.concatenate([[-np.inf], ends])[before], -np.inf)
    return np.flatnonzero(last_end <= clip_times[:, 0] + _OVERLAP_S)


def segment_rows(
    segments: Sequence[str], segment_times: np.ndarray, probabilities: np.ndarray,
    notes: Sequence[str | None],
) -> list[dict[str, Any]]:
    """A row for each segment.

    Args:
        segments: S texts.
        segment_times: (S, 2) s, NaN for untimed text.
        probabilities: (S, 3), in the order of `LABELS`; NaN where a segment cannot be judged.
        notes: S notes, for the column `note`.
    """
    return [
        {**_judged(p), "start_s": start, "end_s": end, "segment": index, "clip": None,
         "modality": "text", "text": text, "note": note}
        for index, (text, (start, end), p, note) in enumerate(
            zip(segments, segment_times, probabilities, notes, strict=True)
        )
    ]


def clip_rows(
    clips: np.ndarray, clip_times: np.ndarray, probabilities: np.ndarray
) -> list[dict[str, Any]]:
    """A row for each clip of `clips` (indices), with `probabilities` (len(clips), 3)."""
    return [
        {**_judged(p), "start_s": clip_times[clip, 0], "end_s": clip_times[clip, 1],
         "segment": None, "clip": int(clip), "modality": "visual", "text": None, "note": None}
        for clip, p in zip(clips, probabilities, strict=True)
    ]


def video_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the video: means of its rows that have a label, weighted by duration.

    Untimed text weighs by its number of words, at 2.5 words a second.
    """
    judged = [row for row in rows if row["label"] is not None]
    if not judged:
        return {**_judged(np.full(3, np.nan)), "n_rows": 0}
    weights = np.array([duration_of(row) for row in judged])
    if weights.sum() <= 0:
        weights = np.ones(len(judged))
    table = np.array([[row[name] for name in _PROBABILITIES] for row in judged])
    return {**_judged(np.average(table, axis=0, weights=weights)), "n_rows": len(judged)}


def _judged(probabilities: np.ndarray) -> dict[str, Any]:
    if np.isnan(probabilities).any():
        return {"label": None, "score": None, **dict.fromkeys(_PROBABILITIES)}
    values = dict(zip(_PROBABILITIES, (float(p) for p in probabilities), strict=True))
    return {
        "label": LABELS[int(np.argmax(probabilities))],
        "score": values["p_positive"] - values["p_negative"],
        **values,
    }


def duration_of(row: dict[str, Any]) -> float:
    """By how much a row counts in its video (s)."""
    if np.isnan(row["start_s"]):
        return len(row["text"].split()) / 2.5
    return max(float(row["end_s"] - row["start_s"]), 0.0)
