"""Cutting a video's clips and word pieces into windows that fit the joint encoder.

Windows hold at most 64 clips and 512 tokens and overlap by half; each clip and each word piece
takes its hidden state from the window in which it is most central. Plain arithmetic, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Plan", "Window", "plan_windows", "spread"]


@dataclass(frozen=True)
class Window:
    """Clips `clips[0]:clips[1]` and word pieces `pieces` (indices into the flat transcript)."""

    clips: tuple[int, int]
    pieces: np.ndarray

    @property
    def n_clips(self) -> int:
        return self.clips[1] - self.clips[0]


@dataclass(frozen=True)
class Plan:
    """Windows, and for each clip and word piece the window that it takes its output from.

    Args:
        windows: the windows.
        clip_window: (C,) int64.
        piece_window: (P,) int64.
    """

    windows: tuple[Window, ...]
    clip_window: np.ndarray
    piece_window: np.ndarray


def plan_windows(
    clip_times: np.ndarray,
    segment_lengths: Sequence[int],
    segment_times: np.ndarray,
    max_clips: int = 64,
    max_tokens: int = 512,
) -> Plan:
    """Plan the windows of one video.

    Args:
        clip_times: (C, 2) float64, s.
        segment_lengths: word pieces of each of the S segments.
        segment_times: (S, 2) float64, s; NaN for untimed text.
        max_clips: clips in a window, at most.
        max_tokens: word pieces, clips and three special tokens in a window, at most.

    Timed text shares windows with the clips of the same time. Text that has no times, or is far
    denser than speech, is read by itself, unless everything fits into one window.
    """
    n_clips, n_pieces = len(clip_times), int(sum(segment_lengths))
    budget = max_tokens - 3 - max_clips
    if n_clips <= max_clips and n_pieces <= budget:
        return _joint_plan([Window((0, n_clips), np.arange(n_pieces))], n_clips, n_pieces, None)
    timed = n_pieces > 0 and n_clips > 0 and not np.isnan(segment_times).any()
    if timed:
        times = piece_times(segment_lengths, segment_times)
        width = max_clips
        while width >= 4:
            windows = _timed_windows(clip_times, times, width)
            if max(len(window.pieces) for window in windows) <= budget:
                return _joint_plan(windows, n_clips, n_pieces, times, clip_times)
            width //= 2
    windows = [Window(span, np.arange(0)) for span in spans(n_clips, max_clips)]
    windows += [Window((0, 0), np.arange(*span)) for span in spans(n_pieces, max_tokens - 2)]
    return _joint_plan(windows, n_clips, n_pieces, None)


def spans(count: int, width: int) -> list[tuple[int, int]]:
    """`count` items in spans of at most `width`, overlapping by half."""
    if count == 0:
        return []
    starts = list(range(0, max(count - width, 0), max(width // 2, 1)))
    return [(start, start + width) for start in starts] + [(max(count - width, 0), count)]


def piece_times(segment_lengths: Sequence[int], segment_times: np.ndarray) -> np.ndarray:
    """(P,) float64, s: a segment's word pieces spread evenly over its span."""
    times = [
        start + (np.arange(length) + 0.5) / max(length, 1) * (end - start)
        for length, (start, end) in zip(segment_lengths, segment_times, strict=True)
    ]
    return np.concatenate(times) if times else np.zeros(0)


def _timed_windows(clip_times: np.ndarray, times: np.ndarray, width: int) -> list[Window]:
    windows = []
    cuts = spans(len(clip_times), width)
    for index, (first, stop) in enumerate(cuts):
        # What is said before the first clip or after the last one belongs to the outer windows.
        begin = -np.inf if index == 0 else clip_times[first, 0]
        end = np.inf if index == len(cuts) - 1 else clip_times[stop - 1, 1]
        windows.append(Window((first, stop), np.flatnonzero((times >= begin) & (times < end))))
    return windows


def _joint_plan(
    windows: list[Window],
    n_clips: int,
    n_pieces: int,
    times: np.ndarray | None,
    clip_times: np.ndarray | None = None,
) -> Plan:
    clip_window = np.full(n_clips, -1)
    clip_distance = np.full(n_clips, np.inf)
    piece_window = np.full(n_pieces, -1)
    piece_distance = np.full(n_pieces, np.inf)
    for index, window in enumerate(windows):
        first, stop = window.clips
        distance = np.abs(np.arange(first, stop) + 0.5 - (first + stop) / 2)
        _claim(clip_window, clip_distance, np.arange(first, stop), distance, index)
        if times is not None and clip_times is not None:
            middle = (clip_times[first, 0] + clip_times[stop - 1, 1]) / 2
            distance = np.abs(times[window.pieces] - middle)
        else:
            distance = np.abs(np.arange(len(window.pieces)) + 0.5 - len(window.pieces) / 2)
        _claim(piece_window, piece_distance, window.pieces, distance, index)
    kept = tuple(window for window in windows if window.n_clips or len(window.pieces))
    return Plan(kept, clip_window, piece_window)


def _claim(
    owner: np.ndarray, best: np.ndarray, items: np.ndarray, distance: np.ndarray, index: int
) -> None:
    closer = distance < best[items]
    owner[items[closer]] = index
    best[items[closer]] = distance[closer]


def spread(clip_features: Tensor, most: int) -> Tensor:
    """At most `most` of (C, Dv) clips, evenly spread over the video."""
    count = len(clip_features)
    if count <= most:
        return clip_features
    return clip_features[np.linspace(0, count - 1, most).round().astype(np.int64)]
