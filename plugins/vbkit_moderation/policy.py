"""The policy: from scores to decisions.

A policy file is YAML, a mapping from a category, or from a parent that stands for all its
categories, to a rule::

    gun: {review: 0.6, block: 0.95}
    abuse: {enabled: false}            # offensive and threat
    hate: {review: 0.7, block: never, modality: [text]}

What a rule leaves out stays as it is shipped; a rule for a category goes before one for its
parent. A score of at least `review` is for review, of at least `block` for blocking; `never`
switches a threshold off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vbkit.errors import OptionError
from vbkit_moderation.taxonomy import CATEGORIES, MODALITIES, PARENTS, children

__all__ = ["NEVER", "Policy", "Rule", "canonical_policy", "make_policy"]

NEVER = 2.0
"""A threshold that no score reaches."""

_KEYS = ("review", "block", "modality", "enabled")


@dataclass(frozen=True)
class Rule:
    """What to do about a category.

    Args:
        review, block: least scores for these decisions; `NEVER` for none.
        modalities: where to look for it.
        enabled: whether to look at all.
    """

    review: float = NEVER
    block: float = NEVER
    modalities: tuple[str, ...] = MODALITIES
    enabled: bool = True

    def decide(self, score: float) -> str:
        """allow, review or block."""
        if not self.enabled:
            return "allow"
        if score >= self.block:
            return "block"
        return "review" if score >= self.review else "allow"


@dataclass(frozen=True)
class Policy:
    """A rule for each category that the head detects."""

    rules: Mapping[str, Rule]

    def rule(self, category: str, modality: str) -> Rule | None:
        """The rule for a category in a modality; None where it is not looked for."""
        rule = self.rules.get(category)
        if rule is None or not rule.enabled or modality not in rule.modalities:
            return None
        return rule


def canonical_policy(source: str) -> str:
    """Read and check a policy.

    Args:
        source: path of a YAML file; or YAML text, which begins with `{` or has several lines; or
            an empty string for the shipped policy.

    Returns:
        the policy as one line of JSON (which is YAML, so it can be read again), or an empty string.

    Raises:
        OptionError: the file cannot be read or a rule is not as it should be. The message names
            file, category and value.
    """
    if not source.strip():
        return ""
    import yaml

    inline = source.lstrip().startswith("{") or "\n" in source.strip()
    where = "policy" if inline else f"policy {source}"
    try:
        text = source if inline else Path(source).expanduser().read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except OSError as error:
        raise OptionError(f"{where}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{where}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise OptionError(f"{where}: is not YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return ""
    if not isinstance(document, dict):
        raise OptionError(f"{where}: must map categories to rules, such as gun: {{review: 0.6}}")
    known = sorted({c.name for c in CATEGORIES} | set(PARENTS))
    checked: dict[str, Any] = {}
    for name, rule in document.items():
        if name not in known:
            raise OptionError(f"{where}: unknown category {name!r}; known are {', '.join(known)}")
        checked[name] = _checked(f"{where}: {name}", rule)
    return json.dumps(checked, sort_keys=True)


def make_policy(text: str, shipped: Mapping[str, Rule]) -> tuple[Policy, tuple[str, ...]]:
    """The policy that `canonical_policy` checked, over the shipped rules.

    Args:
        text: what `canonical_policy` returned.
        shipped: the shipped rule of each category that the head detects.

    Returns:
        the policy, and those categories of it that the head cannot detect.
    """
    given: dict[str, dict[str, Any]] = json.loads(text) if text else {}
    rules = dict(shipped)
    undetected: list[str] = []
    # Parents first, so that a rule for a category has the last word.
    for name in sorted(given, key=lambda n: children(n) == (n,)):
        for child in children(name):
            if child in rules:
                rules[child] = _merged(rules[child], given[name])
            elif child not in undetected and given[name].get("enabled", True):
                undetected.append(child)
    return Policy(rules), tuple(undetected)


def _checked(where: str, rule: Any) -> dict[str, Any]:
    if not isinstance(rule, dict):
        raise OptionError(f"{where}: must be a mapping of {', '.join(_KEYS)}, got {rule!r}")
    unknown = [key for key in rule if key not in _KEYS]
    if unknown:
        raise OptionError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    checked: dict[str, Any] = {}
    for key in ("review", "block"):
        if key not in rule:
            continue
        value = rule[key]
        if value is None or value == "never":
            checked[key] = None
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise OptionError(f"{where}: {key} must be a number from 0 to 1, or never; "
                              f"got {value!r}")
        else:
            checked[key] = float(value)
    review, block = checked.get("review"), checked.get("block")
    if review is not None and block is not None and block < review:
        raise OptionError(f"{where}: block ({block:g}) must not be below review ({review:g})")
    if "modality" in rule:
        value = rule["modality"]
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names or any(n not in MODALITIES for n in names):
            raise OptionError(f"{where}: modality must be a list of {', '.join(MODALITIES)}; "
                              f"got {value!r}")
        checked["modality"] = sorted(set(names), key=MODALITIES.index)
    if "enabled" in rule:
        if not isinstance(rule["enabled"], bool):
            raise OptionError(f"{where}: enabled must be true or false; got {rule['enabled']!r}")
        checked["enabled"] = rule["enabled"]
    return checked


def _merged(rule: Rule, given: Mapping[str, Any]) -> Rule:
    changes: dict[str, Any] = {
        key: NEVER if given[key] is None else given[key]
        for key in ("review", "block") if key in given
    }
    if "modality" in given:
        changes["modalities"] = tuple(given["modality"])
    if "enabled" in given:
        changes["enabled"] = given["enabled"]
    merged = replace(rule, **changes)
    if merged.block < merged.review and "review" in given and "block" not in given:
        # Only review was raised, above the shipped block: nothing between the two is left.
        return replace(merged, block=merged.review)
    return merged
