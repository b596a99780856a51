"""The categories of moderation: what each means, and whether the shipped head detects it.

Measured quality and default thresholds come from the settings that the training script wrote
beside the weights, so no number here is typed by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["CATEGORIES", "MODALITIES", "PARENTS", "Category", "category", "children", "help_text",
           "quality", "quality_table"]

MODALITIES = ("visual", "text")

_SETTINGS = Path(__file__).parent / "weights" / "head.json"


@dataclass(frozen=True)
class Category:
    """A category.

    Args:
        name: what the column `category` holds.
        parent: what the column `parent_category` holds; a category of no parent is its own.
        meaning: one line.
        modalities: where the shipped head detects it; empty where it does not.
        trained_on: data that its detector was trained on.
        why_not: why it is not detected.
    """

    name: str
    parent: str
    meaning: str
    modalities: tuple[str, ...] = ()
    trained_on: str = ""
    why_not: str = ""

    @property
    def detected(self) -> bool:
        """Whether the shipped head detects it at all."""
        return bool(self.modalities)


CATEGORIES: tuple[Category, ...] = (
    Category("fight", "violence", "people who hit or wrestle each other in earnest", ("visual",),
             "120 fights and 120 ordinary scenes of surveillance cameras; ordinary clips"),
    Category("gun", "weapons", "a firearm in view", ("visual",),
             "260 pictures with guns; ordinary pictures and clips"),
    Category("fire", "danger", "an open fire that burns what it should not", ("visual",),
             "75 pictures with fire; ordinary pictures and clips"),
    Category("nudity", "sexual", "naked people", why_not="no data to train on"),
    Category("hate", "hate", "contempt for people because of the group that they belong to",
             ("text",), "TweetEval hate, Davidson et al., MultiHateClip; plain sentences"),
    Category("offensive", "abuse", "insults and vulgar attacks", ("text",),
             "TweetEval offensive, Davidson et al., MultiHateClip; plain sentences"),
    Category("threat", "abuse", "announcing, wishing or calling for bodily harm to somebody",
             ("text",), "3,000 texts of the same sets, labelled for it; plain sentences"),
    Category("self_harm", "self_harm", "hurting oneself", why_not="no data to train on"),
    Category("drugs", "drugs", "illegal drugs", why_not="no data to train on"),
)
"""Every category, detected or not."""

PARENTS: tuple[str, ...] = tuple(dict.fromkeys(c.parent for c in CATEGORIES))

_BY_NAME = {c.name: c for c in CATEGORIES}


def category(name: str) -> Category:
    """The category of this name."""
    return _BY_NAME[name]


def children(name: str) -> tuple[str, ...]:
    """The categories that `name`, a category or a parent, stands for; none if it is unknown."""
    if name in _BY_NAME and _BY_NAME[name].parent != name:
        return (name,)
    return tuple(c.name for c in CATEGORIES if c.parent == name)


@cache
def _measured() -> dict[str, Any]:
    try:
        settings = json.loads(_SETTINGS.read_text(encoding="utf-8"))
        return {name: part["measured"] for name, part in settings["categories"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # no weights yet, as while they are being trained


def quality(name: str) -> dict[str, Any]:
    """What was measured for a category of the shipped head, as the training script wrote it."""
    return dict(_measured().get(name, {}))


def quality_table() -> list[dict[str, Any]]:
    """A row for each category: what it means, where it is detected, and how well."""
    return [
        {"category": c.name, "parent_category": c.parent, "meaning": c.meaning,
         "detected": " ".join(c.modalities) or f"no: {c.why_not}", "trained_on": c.trained_on,
         **quality(c.name)}
        for c in CATEGORIES
    ]


def help_text() -> str:
    """One line for the tables of help: which categories are detected, how well, and which not."""
    parts = []
    for c in CATEGORIES:
        if not c.detected:
            continue
        auroc = quality(c.name).get("roc_auc")
        figure = f", AUROC {auroc[0]:.3f}" if auroc else ""
        parts.append(f"{c.name} ({' '.join(c.modalities)}{figure})")
    missing = ", ".join(c.name for c in CATEGORIES if not c.detected)
    return f"{', '.join(parts)}; not detected: {missing}"
