"""Summarisation: what a video says and shows, in a few sentences, key segments and chapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vbkit import Column, TableSchema, TaskSpec, hookimpl, option
from vbkit.errors import OptionError

__all__ = ["CHAPTERS_TABLE", "SEGMENTS_TABLE", "SUMMARY_TABLE", "SummarisationOptions",
           "vbkit_tasks"]


@dataclass(frozen=True)
class SummarisationOptions:
    """Options of the task `summarisation`."""

    sentences: int = option(0, "sentences (or key clips) to select; 0 chooses from the length")
    ratio: float = option(0.0, "select this share of the sentences instead, 0–1; 0 is off")
    diversity: float = option(0.1, "how much likeness to what is already selected counts, 0–1")
    visual: bool = option(True, "say what is shown where little or nothing is said")
    min_probability: float = option(0.65, "name only what is shown with at least this probability")
    chapters_after_s: float = option(300.0, "make chapters for videos longer than this (s)")
    min_chapter_s: float = option(60.0, "shortest chapter (s)")

    def __post_init__(self) -> None:
        for name in ("ratio", "diversity", "min_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"summarisation.{name} is {getattr(self, name)}; "
                                  "it must lie in 0–1")
        for name in ("sentences", "chapters_after_s", "min_chapter_s"):
            if getattr(self, name) < 0:
                raise OptionError(f"summarisation.{name} is {getattr(self, name)}; "
                                  "it must not be negative")


SUMMARY_TABLE = TableSchema(
    "summarisation",
    (
        Column("summary", "string", nullable=True,
               doc="selected sentences in the order of the video, and what is shown where little "
                   "is said; NULL where there is nothing to summarise"),
        Column("n_selected", "int64", doc="rows of summarisation_segments that are selected"),
        Column("compression", "float64", "", True,
               "words of the selected segments over all words of the transcript, 0–1; NULL where "
               "nothing is said that could be read"),
        Column("note", "string", nullable=True,
               doc="what of the video was not read, because its language is not known"),
    ),
)
SEGMENTS_TABLE = TableSchema(
    "summarisation_segments",
    (
        Column("start_s", "float64", "s", True, "start; NULL for untimed text"),
        Column("end_s", "float64", "s", True, "end; NULL for untimed text"),
        Column("segment", "int64", "", True, "index of the transcript segment; NULL for a clip"),
        Column("rank", "int64", "", True, "1 is the most telling; NULL where there is no score"),
        Column("score", "float64", "", True,
               "for a segment the probability that it belongs in a summary, for a clip how well "
               "it stands for the whole picture, 0–1; NULL in a language that the model does not "
               "know"),
        Column("selected", "bool", doc="whether it is part of the summary"),
        Column("text", "string", nullable=True,
               doc="what is said, or what a clip probably shows; NULL where that is not sure"),
        Column("keyframe_s", "float64", "s", True,
               "time of the saved picture nearest to the middle; NULL without a picture"),
    ),
)
CHAPTERS_TABLE = TableSchema(
    "chapters",
    (
        Column("start_s", "float64", "s", doc="start"),
        Column("end_s", "float64", "s", doc="end"),
        Column("title", "string", doc="the sentence that stands for the chapter, or what is "
               "shown, or its number"),
    ),
)


@hookimpl
def vbkit_tasks() -> Iterator[TaskSpec]:
    """Declare the task `summarisation`."""
    yield TaskSpec(
        name="summarisation",
        summary="selects what matters of what is said and shown; key segments and chapters",
        head="vbkit_summarisation.head:SummarisationHead",
        needs=frozenset({"segments", "segment_times", "segment_embeddings", "text_branch",
                         "clip_times", "clip_embeddings"}),
        tables=(SUMMARY_TABLE, SEGMENTS_TABLE, CHAPTERS_TABLE),
        options=SummarisationOptions,
        capabilities=frozenset({"finetune", "evaluate", "explain"}),
        explain_tables=(SEGMENTS_TABLE.name,),
        explain_needs=frozenset({"encode_text"}),
        labels=("selected", "summary"),
    )
