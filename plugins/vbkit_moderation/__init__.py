"""Moderation: stretches of a video that show or say what a person should look at.

The task `moderation` writes `moderation`, a row for each flagged stretch, and
`moderation_videos`, one verdict for each video: allow, review or block.

`vbkit_moderation.taxonomy.CATEGORIES` says which categories there are, which of them the shipped
head detects, in the picture or in what is said, and how well that was measured. A category that it
cannot detect is never written, so `allow` says nothing about it.

Scores are calibrated probabilities (at one positive in ten, see `docs/tasks/moderation.md`). A
policy turns them into decisions: each category has a threshold for review and one for block,
chosen on validation data for a stated rate of false alarms, and a policy file changes them
(`vbkit_moderation.policy`). A clip counts with its neighbours, so that a flash of one clip is no
alarm; flagged clips or segments that follow each other are one row.

Text in a language other than English is not scored; `moderation_videos.note` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vbkit import TaskSpec, hookimpl, option
from vbkit.tables import Column, TableSchema
from vbkit_moderation.policy import canonical_policy
from vbkit_moderation.taxonomy import help_text

__all__ = ["DECISIONS", "MODERATION", "MODERATION_VIDEOS", "ModerationOptions", "vbkit_tasks"]

DECISIONS = ("allow", "review", "block")
"""The decisions, mildest first."""


@dataclass(frozen=True)
class ModerationOptions:
    """Options of the task `moderation`.

    Raises:
        OptionError: the policy cannot be read or holds what it may not.
    """

    policy: str = option(
        "", "YAML file (or YAML text): category or parent -> review, block, modality, enabled")
    gap_s: float = option(1.5, "flagged stretches at most this far apart (s) are one row")
    smooth: bool = option(True, "judge each clip with the stronger of its neighbours")
    evidence_chars: int = option(120, "longest quotation in the column evidence")
    false_alarms: float = option(
        0.02, "finetune: share of videos without a category that may be flagged for it")

    def __post_init__(self) -> None:
        # The policy itself is kept, not its path: results are redone when the file changes.
        object.__setattr__(self, "policy", canonical_policy(self.policy))


MODERATION = TableSchema(
    "moderation",
    (
        Column("start_s", "float64", "s", True, "start; NULL for untimed text"),
        Column("end_s", "float64", "s", True, "end; NULL for untimed text"),
        Column("category", "string", doc=help_text()),
        Column("parent_category", "string", doc="the parent, e.g. weapons for gun"),
        Column("score", "float64", "0..1", doc="greatest calibrated probability in the stretch"),
        Column("decision", "string", doc="review or block, by the policy"),
        Column("modality", "string", doc="visual or text"),
        Column("evidence", "string", doc="the clips that were judged, or the words"),
        Column("first_segment", "int64", "", True, "first transcript segment; NULL for visual"),
        Column("last_segment", "int64", "", True, "last transcript segment; NULL for visual"),
        Column("first_clip", "int64", "", True, "first clip; NULL for text"),
        Column("last_clip", "int64", "", True, "last clip; NULL for text"),
    ),
)

MODERATION_VIDEOS = TableSchema(
    "moderation_videos",
    (
        Column("decision", "string", "", True,
               "allow, review or block: the gravest of the rows; NULL where nothing was judged"),
        Column("category", "string", "", True, "category of the gravest row; NULL for allow"),
        Column("score", "float64", "0..1", True,
               "its score; for allow the greatest score of any category"),
        Column("nearest_category", "string", "", True,
               "category with the greatest score, flagged or not"),
        Column("n_flagged", "int64", doc="rows of `moderation`"),
        Column("note", "string", "", True, "what was not judged, and why"),
    ),
)


@hookimpl
def vbkit_tasks() -> Iterable[TaskSpec]:
    """Declare the task `moderation`."""
    yield TaskSpec(
        name="moderation",
        summary="flags fights, guns, fire, offensive or hateful speech, threats; gives a verdict",
        head="vbkit_moderation.head:ModerationHead",
        needs=frozenset(
            {"segments", "segment_times", "segment_embeddings", "text_branch", "clip_times",
             "clip_features", "motion"}
        ),
        tables=(MODERATION, MODERATION_VIDEOS),
        options=ModerationOptions,
        capabilities=frozenset({"finetune", "evaluate", "explain", "augment"}),
        explain_needs=frozenset({"encode_text"}),
    )
