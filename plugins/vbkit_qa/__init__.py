"""Question answering: the passage or the moment of a video that answers a question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vbkit import Column, TableSchema, TaskSpec, hookimpl, option
from vbkit.errors import OptionError

__all__ = ["QA_TABLE", "QaOptions", "vbkit_tasks"]


@dataclass(frozen=True)
class QaOptions:
    """Options of the task `qa`."""

    top_k: int = option(3, "at most this many answers to each question")
    answerable: float = option(
        0.5, "no_answer is true where the probability that the video answers is below this"
    )
    visual: bool = option(True, "look for answers in the picture, not only in the transcript")
    max_moment_s: float = option(30.0, "longest moment (s) given as an answer from the picture")

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise OptionError(f"qa.top_k is {self.top_k}; it must be at least 1")
        if not 0 <= self.answerable <= 1:
            raise OptionError(f"qa.answerable is {self.answerable}; it must lie in 0–1")
        if self.max_moment_s <= 0:
            raise OptionError(f"qa.max_moment_s is {self.max_moment_s}; it must be positive")


QA_TABLE = TableSchema(
    "qa",
    (
        Column("question", "string", doc="the question, as it was asked"),
        Column("rank", "int64", doc="1 is the best answer found, also where no_answer is true"),
        Column("answer", "string", nullable=True,
               doc="what is said there, or when it is shown; NULL where the video has nothing "
                   "that could be read"),
        Column("score", "float64", doc="probability that this answer is right, 0–1: that it "
               "overlaps the true passage by half or more, or that the picture shows it"),
        Column("no_answer", "bool", doc="whether probably nothing in this video answers"),
        Column("start_s", "float64", "s", True, "start of the answer; NULL for untimed text"),
        Column("end_s", "float64", "s", True, "end of the answer; NULL for untimed text"),
        Column("first_segment", "int64", "", True, "first transcript segment; NULL for a moment "
               "found in the picture"),
        Column("last_segment", "int64", "", True, "last transcript segment, inclusive"),
        Column("best_segment", "int64", "", True, "the segment that belongs to the answer most "
               "surely"),
        Column("modality", "string", nullable=True,
               doc="where the answer was found: text or visual; NULL where there is no answer"),
        Column("note", "string", nullable=True,
               doc="what of the video was not read, because its language is not known"),
    ),
)


@hookimpl
def vbkit_tasks() -> Iterator[TaskSpec]:
    """Declare the task `qa`."""
    yield TaskSpec(
        name="qa",
        summary="answers questions with a passage of the transcript or a moment of the picture",
        head="vbkit_qa.head:QaHead",
        needs=frozenset({"segments", "segment_times", "segment_embeddings", "clip_times",
                         "clip_embeddings", "encode_text"}),
        tables=(QA_TABLE,),
        options=QaOptions,
        capabilities=frozenset({"finetune", "evaluate", "explain"}),
        labels=("answer_start", "answer_start_s", "answer"),
    )
