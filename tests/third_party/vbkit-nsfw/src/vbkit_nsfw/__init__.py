"""Declares the task `nsfw`.

vbkit imports this module whenever it lists what is installed, so it must not import torch; the head
is in `vbkit_nsfw.head`, and imports onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vbkit import Column, TableSchema, TaskSpec, hookimpl, option

__all__ = ["NSFW", "NSFW_VIDEOS", "TASK", "NsfwOptions", "vbkit_tasks"]


@dataclass(frozen=True)
class NsfwOptions:
    """Options of the task: `-o nsfw.review=0.4` on the command line."""

    review: float = option(0.8, "score of a clip from which a person should look, 0-1")
    block: float = option(0.95, "score of a clip from which to block, 0-1")
    frames: int = option(4, "how many of a clip's four frames to look at, 1-4")

    def __post_init__(self) -> None:
        if not 0 < self.review <= self.block <= 1:
            raise ValueError(f"review is {self.review} and block {self.block}, but there must be "
                             "0 < review <= block <= 1")
        if not 1 <= self.frames <= 4:
            raise ValueError(f"frames is {self.frames}, but must be 1 to 4")


# Named as in vbkit's own table `moderation`, so that a query may take both.
NSFW = TableSchema(
    "nsfw",
    (
        Column("start_s", "float64", "s", doc="start of the flagged stretch"),
        Column("end_s", "float64", "s", doc="end"),
        Column("category", "string", doc="nudity"),
        Column("parent_category", "string", doc="sexual"),
        Column("score", "float64", "0..1", doc="greatest score of a clip in the stretch"),
        Column("decision", "string", doc="review or block"),
        Column("modality", "string", doc="visual"),
        Column("evidence", "string", doc="the picture of that clip with the greatest score"),
        Column("first_clip", "int64", doc="first clip"),
        Column("last_clip", "int64", doc="last clip, inclusive"),
    ),
    doc="a stretch with pictures that are not safe for work",
)

NSFW_VIDEOS = TableSchema(
    "nsfw_videos",
    (
        Column("decision", "string", nullable=True,
               doc="allow, review or block; NULL without a picture"),
        Column("score", "float64", "0..1", True,
               "greatest score of a clip, the mean of its pictures"),
        Column("n_frames", "int64", doc="pictures that were looked at"),
    ),
    doc="a video's verdict",
)

TASK = TaskSpec(
    name="nsfw",
    summary="pictures that are not safe for work, by Yahoo's open_nsfw",
    head="vbkit_nsfw.head:NsfwHead",
    needs=frozenset({"clip_times", "frames"}),
    tables=(NSFW, NSFW_VIDEOS),
    options=NsfwOptions,
)


@hookimpl
def vbkit_tasks() -> Iterator[TaskSpec]:
    """Declare the task."""
    yield TASK
