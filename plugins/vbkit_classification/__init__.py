"""A user's own labels: from their names alone, or learnt from labelled videos.

The task `classification` writes two tables. `classification` has a row for each video and label;
`classification_clips`, with the option `clips`, one for each clip and label.

Without training, a label is its name: a video is compared with a sentence about each label in the
space that video and text share, and scores are their shares among the labels. `vbkit finetune`
learns labels from a manifest instead; what a head learns adds up over the clips and segments of a
video, so that a clip's scores are those of a video of that clip alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vbkit import TaskSpec, hookimpl, option
from vbkit.tables import Column, TableSchema

__all__ = ["CLASSIFICATION", "CLASSIFICATION_CLIPS", "ClassificationOptions", "vbkit_tasks"]


@dataclass(frozen=True)
class ClassificationOptions:
    """Options of the task `classification`."""

    labels: str = option("", "labels to choose from by their names, separated by commas")
    template: str = option("a photo of {}", "the sentence about a label, {} standing for its name")
    multi: bool = option(False, "whether a video may have several labels (by name)")
    clips: bool = option(False, "also score each clip, into classification_clips")


_SCORES = (
    Column("label", "string", doc="the label"),
    Column("score", "float64", "0..1", True,
           "probability of the label; NULL where there is nothing to judge by"),
    Column("rank", "int64", "", True, "1 is the likeliest label; NULL without a score"),
)

CLASSIFICATION = TableSchema("classification", _SCORES)

CLASSIFICATION_CLIPS = TableSchema(
    "classification_clips",
    (
        Column("start_s", "float64", "s", doc="start of the clip"),
        Column("end_s", "float64", "s", doc="end of the clip"),
        Column("clip", "int64", doc="index of the clip"),
        *_SCORES,
    ),
)


@hookimpl
def vbkit_tasks() -> Iterable[TaskSpec]:
    """Declare the task `classification`."""
    yield TaskSpec(
        name="classification",
        summary="your own labels, by their names or learnt from labelled videos",
        head="vbkit_classification.head:ClassificationHead",
        needs=frozenset({"clip_times", "clip_features", "clip_embeddings", "segments",
                         "segment_embeddings", "encode_text"}),
        tables=(CLASSIFICATION, CLASSIFICATION_CLIPS),
        options=ClassificationOptions,
        capabilities=frozenset({"finetune", "evaluate", "explain", "augment"}),
    )
