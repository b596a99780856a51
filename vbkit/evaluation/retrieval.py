"""Text-video retrieval: recall at k and median rank, from embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["retrieval_ranks", "retrieval_scores", "text_to_text_scores"]

_CHUNK = 1024
_TIE = 1e-6  # equal vectors give products that differ by rounding


def retrieval_scores(video: Any, text: Any, owner: Sequence[int]) -> dict[str, float]:
    """Recall at 1, 5, 10 (0–1) and median rank (1 is best), both ways.

    From a video, its best-placed text counts; from a text, its one video. Ties count against it,
    so embeddings that are all the same score nothing.

    Args:
        video: (N, D) embeddings, an array or a tensor on the CPU; they are compared by cosine.
        text: (M, D) embeddings.
        owner: (M,) the video of each text; every video has at least one.

    Returns:
        `video_to_text_r1`, `_r5`, `_r10`, `_median_rank`, and the same for `text_to_video`.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a video has no text.
    """
    to_text, to_video = retrieval_ranks(video, text, owner)
    return _summary("video_to_text", to_text) | _summary("text_to_video", to_video)


def retrieval_ranks(video: Any, text: Any,
                    owner: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Ranks behind `retrieval_scores`: (N,) of each video's best text, (M,) of each text's video.

    1 is best: one more than the number of wrong ones that score as high or higher.
    """
    videos, texts = _unit(video), _unit(text)
    of = np.asarray(owner, dtype=np.int64)
    if of.shape != (len(texts),) or videos.shape[1] != texts.shape[1]:
        raise ValueError(f"video {videos.shape}, text {texts.shape} and owner {of.shape} do not "
                         "fit: want (N, D), (M, D) and (M,)")
    if len(np.unique(of)) != len(videos) or of.min() < 0 or of.max() >= len(videos):
        raise ValueError("every video needs a text, and every text one of the videos")
    to_text = np.zeros(len(videos), dtype=np.int64)
    for start in range(0, len(videos), _CHUNK):
        scores = videos[start : start + _CHUNK] @ texts.T
        mine = of[None, :] == np.arange(start, start + len(scores))[:, None]
        best = np.where(mine, scores, -np.inf).max(1, keepdims=True)
        to_text[start : start + len(scores)] = 1 + (~mine & (scores >= best - _TIE)).sum(1)
    to_video = np.zeros(len(texts), dtype=np.int64)
    for start in range(0, len(texts), _CHUNK):
        scores = texts[start : start + _CHUNK] @ videos.T
        right = of[start : start + len(scores)]
        own = scores[np.arange(len(scores)), right][:, None]
        # its own video is among those that score as high
        to_video[start : start + len(scores)] = (scores >= own - _TIE).sum(1)
    return to_text, to_video


def text_to_text_scores(queries: Any, answers: Any) -> dict[str, float]:
    """From one caption to another of the same video: `text_to_text_r1`, `_r5`, `_r10`, …

    Args:
        queries: (N, D) embeddings of one caption of each video.
        answers: (N, D) embeddings of another caption of the same videos, the pool.
    """
    _, ranks = retrieval_ranks(answers, queries, range(len(queries)))
    return _summary("text_to_text", ranks)


def _unit(rows: Any) -> np.ndarray:
    array = np.asarray(rows, dtype=np.float32)
    if array.ndim != 2 or not len(array):
        raise ValueError(f"embeddings must be (N, D) with N at least 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("an embedding is not finite")
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)


def _summary(name: str, ranks: np.ndarray) -> dict[str, float]:
    recall = {f"{name}_r{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
    return recall | {f"{name}_median_rank": float(np.median(ranks))}
