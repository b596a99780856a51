"""The head of the task `moderation`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vbkit.errors import ManifestError, ModelError
from vbkit.evaluation.classification import calibration_error, classification_scores
from vbkit.heads import Example, FitOptions, Head, HeadContext, load_head, save_head
from vbkit.model.branch import BranchConfig
from vbkit.model.segments import SegmentClassifier
from vbkit_moderation import MODERATION, MODERATION_VIDEOS, ModerationOptions
from vbkit_moderation.explain import explain_rows
from vbkit_moderation.model import VisualModel, supported
from vbkit_moderation.policy import NEVER, Rule, make_policy
from vbkit_moderation.spans import clip_spans, gravest, segment_spans
from vbkit_moderation.taxonomy import CATEGORIES, PARENTS, children
from vbkit_moderation.training import Labelled, fit_text, fit_visual, settle

if TYPE_CHECKING:
    import pandas as pd

    from vbkit.features import Features

__all__ = ["SHIPPED", "ModerationHead"]

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the weights that the plugin ships."""

LANGUAGES = frozenset({"en"})
"""Languages that the text model was trained on."""


class ModerationHead(Head):
    """Flagged stretches of a video, and its verdict."""

    def setup(self, context: HeadContext) -> None:
        """Load the weights and the policy.

        Raises:
            ModelError: the weights are missing, damaged, or of another model.
        """
        super().setup(context)
        options = context.options
        self.options = options if isinstance(options, ModerationOptions) else ModerationOptions()
        tensors, self.settings = load_head(
            context.head_path or SHIPPED,
            model_name=context.model_name,
            model_fingerprint=context.model_fingerprint,
        )
        self.visual = visual_of(tensors, self.settings)
        self.visual.to(context.device).requires_grad_(False)
        text = self.settings["text"]
        embedded = text.get("embedded", {"width": 0, "categories": []})
        self.text = SegmentClassifier(
            context.text_branch, BranchConfig(**text["branch"]), len(text["categories"]),
            vector_size=embedded["width"],
            vector_outputs=[text["categories"].index(name) for name in embedded["categories"]],
        ).load(tensors, "text.")
        self.policy, self.undetected = make_policy(
            self.options.policy, shipped_rules(self.settings)
        )
        if self.undetected:
            context.logger.warning(
                "the policy names %s, which this head cannot detect; "
                "no video will be flagged for it", ", ".join(self.undetected),
            )

    def predict(self, features: Features) -> dict[str, pd.DataFrame]:
        """Tables `moderation` and `moderation_videos` of one video."""
        rows: list[dict[str, Any]] = []
        notes: list[str] = []
        best: list[tuple[float, str]] = []
        if note := features.unread_note(LANGUAGES):
            notes.append(note)
            self.context.logger.info("%s: %s by moderation", features.video_id, note)
        for modality, name, rule, values in self._scored(features):
            best.append((float(np.nanmax(values)), name))
            if modality == "visual":
                rows += clip_spans(name, values, features.clip_times, rule, self.options.gap_s)
            else:
                rows += segment_spans(
                    name, values, features.segment_times, features.segments, rule,
                    self.options.gap_s, self.options.evidence_chars,
                )
        rows.sort(key=lambda row: (row["start_s"] is None, row["start_s"] or 0.0, row["category"]))
        return {
            MODERATION.name: MODERATION.frame(rows),
            MODERATION_VIDEOS.name: MODERATION_VIDEOS.frame([_verdict(rows, best, notes)]),
        }

    def visual_scores(self, features: Features) -> dict[str, np.ndarray]:
        """Calibrated probabilities (C,) of each visual category, for the clips of one video."""
        logits = self.visual(features.clip_features,
                             self._motion(features, self.settings["visual"]["look"]))
        if self.options.smooth:
            logits = supported(logits)
        return self._calibrated(self.settings["visual"]["categories"], logits)

    def _motion(self, features: Features, look: float) -> Tensor:
        """(C, M): how things move; NaN in clips that are not looked at.

        Args:
            features: of a video.
            look: the least probability of the setting at which a clip is looked at.
        """
        seen = features.clip_features
        motion = seen.new_full((len(seen), self.visual.motion.in_features), torch.nan)
        wanted = self.visual.moves(seen) & (self.visual.setting(seen) >= look).any(1)
        if wanted.any() and any(self.policy.rule(name, "visual") is not None
                                for name in self.settings["visual"]["moving"]):
            motion[wanted] = features.motion(wanted.nonzero()[:, 0].tolist())
        return motion

    def text_scores(self, texts: Sequence[str], embeddings: Tensor) -> dict[str, np.ndarray]:
        """Calibrated probabilities (S,) of each text category.

        A segment that is longer than the branch reads at once has the greatest of its parts'.

        Args:
            texts: S segments.
            embeddings: (S, D), their `segment_embeddings`.
        """
        branch, categories = self.text.branch, self.settings["text"]["categories"]
        most = branch.config.segment_length
        parts, owner = [], []
        for segment, ids in enumerate(branch.tokenize(texts, cut=False)):
            for start in range(0, max(1, len(ids)), most):
                parts.append(ids[start : start + most])
                owner.append(segment)
        scores = self._calibrated(categories,
                                  self.text.logits(branch.read(parts), embeddings[owner]))
        greatest = {name: np.zeros(len(texts)) for name in scores}
        for name, values in scores.items():
            np.maximum.at(greatest[name], owner, values)
        return greatest

    def fit(self, train: Sequence[Example], val: Sequence[Example], options: FitOptions) -> None:
        """Go on training from the head's weights, on videos labelled as a whole.

        What a video is labelled with is somewhere in it: its greatest logit is what learns. A
        category learns where videos that show or say it and videos that do not are among both
        parts; the others stay as they are. Rare labels count more, by the root of how rare they
        are. A view of a training video is as good as a further video's picture. Scores are
        calibrated on the validation videos, and `review` is set there for the false-alarm rate that
        the option `false_alarms` states.
        """
        names = {"visual": self.settings["visual"]["categories"],
                 "text": self.settings["text"]["categories"]}
        moving = set(self.settings["visual"]["moving"])
        moving &= {each for example in (*train, *val) for label in _labels_of(example)
                   for each in (label, *children(label))}
        parts = [self._labelled(examples, names, bool(moving)) for examples in (train, val)]
        learnt = []
        for modality, learn in (("visual", fit_visual), ("text", fit_text)):
            learning, held = (part[modality] for part in parts)
            columns = [column for column in range(len(names[modality]))
                       if all(part.varies(column) for part in (learning, held))]
            if not columns:
                continue
            model = self.visual if modality == "visual" else self.text
            apart = options if options.checkpoint is None else replace(
                options, checkpoint=options.checkpoint / modality)
            logits = learn(model, learning, held, columns, apart)  # type: ignore[operator]
            for column in columns:
                name = names[modality][column]
                self.settings["categories"][name] = settle(
                    self.settings["categories"][name], logits[:, column],
                    held.labels[:, column], self.options.false_alarms)
                learnt.append(name)
        if not learnt:
            raise ManifestError(
                "nothing can be learnt: of a category that this head detects "
                f"({', '.join(self.settings['categories'])}), there must be videos labelled with "
                "it and videos without it, among those to learn from and those to validate with")
        self.context.logger.info("moderation learnt %s", ", ".join(learnt))
        self.policy, self.undetected = make_policy(self.options.policy,
                                                   shipped_rules(self.settings))

    def _labelled(self, examples: Sequence[Example], names: Mapping[str, list[str]],
                  moving: bool) -> dict[str, Labelled]:
        """What each modality has of the examples; motion only where it is to be learnt."""
        rows: dict[str, list[Any]] = {"visual": [], "text": []}
        labels: dict[str, list[list[bool]]] = {"visual": [], "text": []}
        for example in examples:
            given = _labels_of(example)
            wanted = {each for label in given for each in children(label)} | given
            features = example.features
            places = [place for place, (text, known) in enumerate(zip(
                features.segments, features.in_languages(LANGUAGES), strict=True))
                if known and text.strip()]
            said = ([features.segments[place] for place in places],
                    features.segment_embeddings[places])
            seen = [(view.clip_features, self._motion(view, 0.0 if moving else math.inf))
                    for view in example.seen if len(view.clip_features)]
            for modality, items in (("visual", seen), ("text", [said] if places else [])):
                for item in items:
                    rows[modality].append(item)
                    labels[modality].append([name in wanted for name in names[modality]])
        return {modality: Labelled(
            rows[modality], np.array(labels[modality], bool).reshape(-1, len(names[modality])))
            for modality in rows}

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics of videos under the policy.

        Returns:
            `accuracy`, `balanced_accuracy`, `f1_macro` and the like of whether a video is flagged
            for one of the manifest's labels; `flagged_clean`, the share of clean videos that are
            flagged for anything; and for each label L `precision_L`, `recall_L`, `f1_L` and
            `f1_macro_L` of the decisions, `roc_auc_L`, `average_precision_L` and
            `calibration_error_L` of the greatest score.
        """
        given = [_labels_of(example) for example in examples]
        names = sorted(set().union(*given))
        wanted = {name: frozenset(children(name)) for name in names}
        flags, scores = [], np.zeros((len(examples), len(names)))
        anything = []
        for row, example in enumerate(examples):
            flagged = set(self.predict(example.features)[MODERATION.name]["category"])
            anything.append(bool(flagged))
            flags.append([bool(flagged & wanted[name]) for name in names])
            best = self.greatest(example.features)
            scores[row] = [max((best.get(each, 0.0) for each in wanted[name]), default=0.0)
                           for name in names]
        # What is offensive is abuse, too.
        true = np.array([[bool(labels & ({name} | wanted[name])) for name in names]
                         for labels in given], dtype=bool).reshape(len(examples), len(names))
        guess = np.array(flags, dtype=bool).reshape(true.shape)
        clean = ~true.any(1)
        metrics: dict[str, Any] = {"n_clean": int(clean.sum())}
        metrics["flagged_clean"] = float(np.array(anything)[clean].mean()) if clean.any() else None
        if not names:
            return metrics
        either = classification_scores(
            _words(true.any(1)), np.stack([1 - scores.max(1), scores.max(1)], 1),
            ("clean", "flagged"), _words(guess.any(1)))
        metrics |= {key: value for key, value in either.items() if key != "calibration_error"}
        for column, name in enumerate(names):
            one = classification_scores(
                _words(true[:, column]), np.stack([1 - scores[:, column], scores[:, column]], 1),
                ("clean", "flagged"), _words(guess[:, column]))
            metrics |= {f"{key}_{name}": one[f"{key}_flagged"] for key in (
                "precision", "recall", "f1", "roc_auc", "average_precision")}
            metrics[f"f1_macro_{name}"] = one["f1_macro"]
            metrics[f"calibration_error_{name}"] = calibration_error(
                true[:, column], scores[:, column])
        return metrics

    def greatest(self, features: Features) -> dict[str, float]:
        """The greatest score of each category in a video, in any modality that the policy has."""
        best: dict[str, float] = {}
        for _, name, _, values in self._scored(features):
            best[name] = max(best.get(name, 0.0), float(np.nanmax(values)))
        return best

    def scores_of(self, features: Features, modality: str, category: str) -> np.ndarray:
        """Scores of a category: of the clips (C,), or of the segments (S,), NaN where one is
        silent or not read; empty where it is not looked for, or there are none."""
        return next((values for found, name, _, values in self._scored(features)
                     if (found, name) == (modality, category)), np.zeros(0))

    def _scored(self, features: Features) -> list[tuple[str, str, Rule, np.ndarray]]:
        """Modality, category, rule and probabilities of all that the policy looks for.

        Of the clips (C,), or of the segments (S,), NaN where one says nothing or is in a language
        that the head does not know, whatever its embedding is.
        """
        parts: list[tuple[str, dict[str, np.ndarray]]] = []
        if len(features.clip_times):
            parts.append(("visual", self.visual_scores(features)))
        said = np.array([bool(text.strip()) for text in features.segments], dtype=bool)
        said &= features.in_languages(LANGUAGES)
        if said.any():
            places = np.flatnonzero(said).tolist()
            scores = self.text_scores([features.segments[i] for i in places],
                                      features.segment_embeddings[places])
            parts.append(("text", {name: _placed(said, values)
                                   for name, values in scores.items()}))
        return [(modality, name, rule, values) for modality, scores in parts
                for name, values in scores.items()
                if (rule := self.policy.rule(name, modality)) is not None]

    def explain(self, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
        """The clips or words that made rows."""
        return explain_rows(self, features, rows)

    def save_pretrained(self, path: Path) -> None:
        """Write weights and settings into the folder `path`."""
        tensors = {f"visual.{name}": value for name, value in self.visual.state_dict().items()}
        tensors |= self.text.state("text.")
        save_head(path, tensors, self.settings, int8=["text.branch."])

    def _calibrated(self, names: list[str], logits: Tensor) -> dict[str, np.ndarray]:
        scores = {}
        for index, name in enumerate(names):
            slope, offset = self.settings["categories"][name]["calibration"]
            scores[name] = (
                torch.sigmoid(slope * logits[:, index].cpu().double() + offset).numpy()
            )
        return scores


def _labels_of(example: Example) -> set[str]:
    """The categories and parents that a video is labelled with; none for a clean one.

    Raises:
        ManifestError: a label is unknown.
    """
    known = {category.name for category in CATEGORIES} | set(PARENTS)
    labels: set[str] = set()
    for row in example.rows:
        value = row.get("label")
        for label in value if isinstance(value, list) else [value]:
            name = str(label).strip().lower()
            if label is None or name in ("", "none"):
                continue
            if name not in known:
                raise ManifestError(f"{example.video_id}: label {label!r} is none of none, "
                                    f"{', '.join(sorted(known))}")
            labels.add(name)
    return labels


def _words(flagged: np.ndarray) -> list[str]:
    return ["flagged" if each else "clean" for each in flagged]


def _placed(where: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` at the places that are true, NaN elsewhere."""
    out = np.full(len(where), np.nan)
    out[where] = values
    return out


def visual_of(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> VisualModel:
    """The visual model with its weights, in evaluation mode.

    Raises:
        ModelError: the tensors are not those of this head.
    """
    try:
        own = settings["visual"]
        moving = len(own["moving"])
        visual = VisualModel(own["width"], own["motion_width"], len(own["categories"]) - moving,
                             moving)
        visual.load_state_dict({name.removeprefix("visual."): value
                                for name, value in tensors.items() if name.startswith("visual.")})
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"these weights are no moderation head: {error}") from error
    return visual.eval()


def shipped_rules(settings: Mapping[str, Any]) -> dict[str, Rule]:
    """The rule of each category that the head detects, with the thresholds of its settings."""

    def threshold(value: float | None) -> float:
        return NEVER if value is None else float(value)

    return {
        name: Rule(threshold(part["review"]), threshold(part["block"]), (part["modality"],))
        for name, part in settings["categories"].items()
    }


def _verdict(
    rows: list[dict[str, Any]], best: list[tuple[float, str]], notes: list[str]
) -> dict[str, Any]:
    worst = gravest(rows)
    if worst is not None:
        decision, name, score = worst["decision"], worst["category"], worst["score"]
    elif best:
        decision, name, score = "allow", None, max(best)[0]
    else:
        decision, name, score = None, None, None
        if not notes:
            notes = ["nothing to judge: neither picture nor text"]
    return {"decision": decision, "category": name, "score": score,
            "nearest_category": max(best)[1] if best else None, "n_flagged": len(rows),
            "note": "; ".join(notes) or None}
