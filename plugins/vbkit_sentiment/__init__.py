"""Sentiment of what is said, and of what is shown where nobody speaks.

The task `sentiment` writes two tables. `sentiment` has a row for each transcript segment, and one
for each clip of silence; `sentiment_videos` has one row for each video.

A segment is read with the two before it and the one after it, because "What?" alone says little.
Its three probabilities are calibrated, and `score` is `p_positive - p_negative`. `neutral` is a
class of its own and not a word for unsure: where the head is unsure, the greatest of the three
probabilities is low.

Silence is every clip that no segment overlaps; a video without a transcript is silent throughout,
and under untimed text no clip is, because nobody knows. There the picture alone decides, which
says little about sentiment: probabilities stay near those of an ordinary picture.

Text in a language other than English is not scored: its rows are there with NULLs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vbkit import TaskSpec, hookimpl, option
from vbkit.tables import Column, TableSchema

__all__ = ["LABELS", "SENTIMENT", "SENTIMENT_VIDEOS", "SentimentOptions", "vbkit_tasks"]

LABELS = ("negative", "neutral", "positive")
"""The labels, in the order of the model's outputs."""


@dataclass(frozen=True)
class SentimentOptions:
    """Options of the task `sentiment`."""

    context: bool = option(True, "read each segment with its neighbours")
    silence: bool = option(True, "give clips where nobody speaks a row, judged by the picture")


SENTIMENT = TableSchema(
    "sentiment",
    (
        Column("start_s", "float64", "s", True, "start; NULL for untimed text"),
        Column("end_s", "float64", "s", True, "end; NULL for untimed text"),
        Column("segment", "int64", "", True,
               "index of the transcript segment; NULL for a clip where nobody speaks"),
        Column("clip", "int64", "", True, "index of the clip; NULL for a transcript segment"),
        Column("modality", "string", doc="text (a segment) or visual (a clip)"),
        Column("label", "string", "", True,
               "the likeliest of negative, neutral and positive; NULL where it cannot be judged"),
        Column("score", "float64", "-1..1", True, "p_positive - p_negative"),
        Column("p_negative", "float64", "probability", True, "calibrated probability of negative"),
        Column("p_neutral", "float64", "probability", True, "calibrated probability of neutral"),
        Column("p_positive", "float64", "probability", True, "calibrated probability of positive"),
        Column("text", "string", "", True, "what is said; NULL for a clip"),
        Column("note", "string", "", True, "why there is no label, where that needs saying"),
    ),
)

SENTIMENT_VIDEOS = TableSchema(
    "sentiment_videos",
    (
        Column("label", "string", "", True,
               "the likeliest label by the mean probabilities; NULL where no row has one"),
        Column("score", "float64", "-1..1", True, "mean score of the rows, weighted by duration"),
        Column("p_negative", "float64", "probability", True, "mean over the rows, weighted"),
        Column("p_neutral", "float64", "probability", True, "mean over the rows, weighted"),
        Column("p_positive", "float64", "probability", True, "mean over the rows, weighted"),
        Column("n_rows", "int64", doc="rows of `sentiment` with a label"),
    ),
)


@hookimpl
def vbkit_tasks() -> Iterable[TaskSpec]:
    """Declare the task `sentiment`."""
    yield TaskSpec(
        name="sentiment",
        summary="negative, neutral or positive: each segment, each silent clip, the video",
        head="vbkit_sentiment.head:SentimentHead",
        needs=frozenset(
            {"segments", "segment_times", "text_branch", "clip_times", "clip_features"}
        ),
        tables=(SENTIMENT, SENTIMENT_VIDEOS),
        options=SentimentOptions,
        capabilities=frozenset({"finetune", "evaluate", "explain"}),
        labels=("label", "score"),
    )
