"""The head of the task `classification`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vbkit.errors import ManifestError, ModelError, UsageError
from vbkit.evaluation.classification import classification_scores, multilabel_scores
from vbkit.heads import Example, FitOptions, Head, HeadContext, load_head, save_head
from vbkit_classification import CLASSIFICATION, CLASSIFICATION_CLIPS, ClassificationOptions
from vbkit_classification.explain import explain_rows
from vbkit_classification.model import (
    PENALTIES,
    Inputs,
    LinearLabels,
    fit_labels,
    fit_temperature,
    loss_of,
    stack_inputs,
)

if TYPE_CHECKING:
    import pandas as pd

    from vbkit.features import Features

__all__ = ["ClassificationHead"]

NAME_TEMPERATURE = 0.03
"""Of cosines between a video and the sentences about labels; see docs/tasks/classification.md."""

LANGUAGES = ("en",)

ORDINARY = ("a photo of a man", "a photo of a woman", "a photo of people", "a photo of an animal",
            "a photo of a street", "a photo of a landscape", "a photo of a room",
            "a photo of an object", "a photo of text")
"""What a label by name has to be likelier than, where a video may have several labels or none."""


class ClassificationHead(Head):
    """Labels by their names, or by a linear map that was fitted to labelled videos."""

    def setup(self, context: HeadContext) -> None:
        """Load the head, where there is one.

        Raises:
            ModelError: it is damaged, or of another model.
            UsageError: an option is wrong.
        """
        super().setup(context)
        options = context.options
        self.options = options if isinstance(options, ClassificationOptions) else (
            ClassificationOptions())
        self.model: LinearLabels | None = None
        self.settings: dict[str, Any] = {}
        self.labels = list(dict.fromkeys(
            label.strip() for label in self.options.labels.split(",") if label.strip()))
        if "{}" not in self.options.template:
            raise UsageError(f"classification.template={self.options.template!r} has no {{}}, "
                             "which stands for the label's name")
        if context.head_path is not None:
            if self.labels:
                raise UsageError("classification.labels is for labels by name; a trained head "
                                 "has labels of its own")
            tensors, self.settings = load_head(
                context.head_path, model_name=context.model_name,
                model_fingerprint=context.model_fingerprint)
            self.labels, self.model = _model_of(tensors, self.settings)
            self.model.to(context.device)
        self._names: Tensor | None = None

    @property
    def multi(self) -> bool:
        """Whether a video may have several labels."""
        return bool(self.settings["multi"]) if self.model is not None else self.options.multi

    @property
    def guess(self) -> float:
        """The score of a label where there is nothing to judge by."""
        return 0.0 if self.multi else 1 / len(self.labels)

    def predict(self, features: Features) -> dict[str, pd.DataFrame]:
        """Tables `classification` and `classification_clips` of one video."""
        self._check_labels()
        if note := features.unread_note(LANGUAGES):
            self.context.logger.info("%s: %s by classification", features.video_id, note)
        (scores,) = self.scores([features])
        tables = {CLASSIFICATION.name: CLASSIFICATION.frame(self._rows(scores))}
        if self.options.clips and len(features.clip_times):
            rows = []
            for clip, (scores, (start, end)) in enumerate(zip(
                    self.clip_scores(features), features.clip_times.tolist(), strict=True)):
                rows += [{"start_s": start, "end_s": end, "clip": clip, **row}
                         for row in self._rows(scores)]
            tables[CLASSIFICATION_CLIPS.name] = CLASSIFICATION_CLIPS.frame(rows)
        return tables

    def scores(self, videos: Sequence[Features]) -> np.ndarray:
        """(N, K) probabilities of the labels; NaN where there is nothing to judge by."""
        if self.model is not None:
            inputs = stack_inputs([self._shown(f) for f in videos],
                                  [self._said(f) for f in videos])
            found = self._probabilities(self.model(inputs) / self.settings["temperature"])
            known = (inputs.seen | inputs.said).cpu().numpy()
        else:
            # Where there is a picture, it decides: a label's name describes what is seen.
            shown = [f.clip_embeddings if len(f.clip_embeddings) else self._said(f)
                     for f in videos]
            known = np.array([len(rows) > 0 for rows in shown])
            found = np.stack([self._by_name(rows.mean(0, keepdim=True), f)[0] if len(rows)
                              else np.zeros(len(self.labels))
                              for rows, f in zip(shown, videos, strict=True)])
        return np.where(known[:, None], found, np.nan)

    def clip_scores(self, features: Features) -> np.ndarray:
        """(C, K) probabilities of the labels, each clip by its picture alone."""
        if self.model is None:
            return self._by_name(features.clip_embeddings, features)
        visual = self._shown(features)
        count = len(visual)
        if count < len(features.clip_times):
            return np.full((len(features.clip_times), len(self.labels)), np.nan)
        text = features.segment_embeddings.new_zeros(count, self.model.text.in_features)
        inputs = Inputs(visual, text, torch.ones(count, dtype=torch.bool),
                        torch.zeros(count, dtype=torch.bool))
        return self._probabilities(self.model(inputs) / self.settings["temperature"])

    def fit(self, train: Sequence[Example], val: Sequence[Example], options: FitOptions) -> None:
        """Fit a linear map; the penalty and the temperature are chosen on `val`.

        A view of a training video is as good as a further video with its labels. Videos count
        alike, whether they have a picture, and so views, or not.
        """
        most = max(len(example.seen) for example in train)
        learnt = [(features, example) for example in train
                  for features in islice(cycle(example.seen), most)]
        named = [_labels_of(example) for example in (*(example for _, example in learnt), *val)]
        self.labels = sorted({label for _, labels in named for label in labels})
        if len(self.labels) < 2:
            raise ManifestError("the column label has fewer than two labels to tell apart; "
                                "examples of none of them may have the empty list []")
        multi = any(listed for listed, _ in named)
        targets = torch.zeros(len(named), len(self.labels))
        for row, (_, labels) in enumerate(named):
            for label in labels:
                targets[row, self.labels.index(label)] = 1
        missing = [label for label, count in zip(
            self.labels, targets[: len(learnt)].sum(0).tolist(), strict=True) if not count]
        if missing:
            raise ManifestError(f"label {missing[0]!r} is only among the validation videos; give "
                                "it more videos, or take it out")
        shown = [*(features for features, _ in learnt), *(example.features for example in val)]
        inputs = stack_inputs([_visual(each).cpu() for each in shown],
                              [self._said(each).cpu() for each in shown])
        learning = torch.arange(len(learnt))
        held = torch.arange(len(learnt), len(named))
        weights = _balance(targets[learning], multi)
        plain = torch.ones(len(self.labels))
        best: tuple[float, LinearLabels, float] | None = None
        for step, penalty in enumerate(PENALTIES):
            model = fit_labels(inputs.take(learning), targets[learning], weights, multi, penalty)
            logits = model(inputs.take(held))
            temperature = fit_temperature(logits, targets[held], multi)
            loss = float(loss_of(logits / temperature, targets[held], plain, multi))
            options.logged({"step": step, "penalty": penalty, "val_loss": loss})
            if best is None or loss < best[0]:
                best = loss, model, temperature
        assert best is not None
        _, self.model, temperature = best
        self.settings = {
            "labels": self.labels, "multi": multi, "temperature": temperature,
            "visual": inputs.visual.shape[1], "text": inputs.text.shape[1],
            "model": self.context.model_name,
            "model_fingerprint": self.context.model_fingerprint,
        }
        self.model.to(self.context.device)

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics of videos; one whose scores are NULL counts as the rarest guess."""
        self._check_labels()
        named = [_labels_of(example) for example in examples]
        unknown = sorted({label for _, labels in named for label in labels} - set(self.labels))
        if unknown:
            raise ManifestError(f"label {unknown[0]!r} is none of those that the head knows: "
                                f"{', '.join(self.labels)}")
        scores = np.nan_to_num(self.scores([example.features for example in examples]),
                               nan=self.guess)
        if self.multi:
            targets = np.array([[label in labels for label in self.labels]
                                for _, labels in named])
            return dict(multilabel_scores(targets, scores, self.labels))
        single = [labels for _, labels in named]
        if any(len(labels) != 1 for labels in single):
            raise ManifestError("a video has several labels, or none, but this head gives each "
                                "video one; use -o classification.multi=true with labels by name")
        return dict(classification_scores([labels[0] for labels in single], scores, self.labels))

    def explain(self, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
        """The clips, segments and words that made labels."""
        return explain_rows(self, features, rows)

    def save_pretrained(self, path: Path) -> None:
        """Write weights and settings into the folder `path`."""
        if self.model is None:
            raise ModelError("labels by name are no trained head; there is nothing to save")
        save_head(path, self.model.state_dict(), self.settings)

    def _check_labels(self) -> None:
        if not self.labels:
            raise UsageError("classification needs labels: name them with "
                             "-o classification.labels='cooking, sport', or give a trained head "
                             "with --head classification=FOLDER")

    def _shown(self, features: Features) -> Tensor:
        """(C, Dv) of the clips; none where the head has learnt from text alone."""
        assert self.model is not None
        visual, width = _visual(features), self.model.visual.in_features
        return visual if visual.shape[1] == width else visual.new_zeros(0, width)

    def _said(self, features: Features) -> Tensor:
        """(S, D) of the segments that say something, in a language that the model knows."""
        return features.segment_embeddings[self.read(features)]

    def read(self, features: Features) -> list[int]:
        """The segments that say something, in a language that the model knows."""
        return [place for place, (text, known) in enumerate(zip(
            features.segments, features.in_languages(LANGUAGES), strict=True))
            if known and text.strip()]

    def _by_name(self, vectors: Tensor, features: Features) -> np.ndarray:
        if self._names is None:
            sentences = [self.options.template.replace("{}", label) for label in self.labels]
            self._names = features.encode_text([*sentences, *ORDINARY])
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        logits = unit @ self._names.T / NAME_TEMPERATURE
        count = len(self.labels)
        if self.multi:  # each label against ordinary sentences, whatever the others are
            ordinary = logits[:, count:].logsumexp(1, keepdim=True)
            return (logits[:, :count] - ordinary).sigmoid().cpu().numpy()
        return logits[:, :count].softmax(1).cpu().numpy()

    def _probabilities(self, logits: Tensor) -> np.ndarray:
        return (logits.sigmoid() if self.multi else logits.softmax(1)).cpu().numpy()

    def _rows(self, scores: np.ndarray) -> list[dict[str, Any]]:
        if np.isnan(scores).any():
            return [{"label": label, "score": None, "rank": None} for label in self.labels]
        order = np.argsort(-scores, kind="stable")
        return [{"label": self.labels[place], "score": float(scores[place]), "rank": rank}
                for rank, place in enumerate(order, 1)]


def _visual(features: Features) -> Tensor:
    """(C, Dv) of each clip: its place in the shared space, and what the backbone saw."""
    return torch.cat([features.clip_embeddings, features.clip_features], 1)


def _labels_of(example: Example) -> tuple[bool, list[str]]:
    """Whether the label is a list, and the labels, as text."""
    values = [row["label"] for row in example.rows if row.get("label") is not None]
    listed = any(isinstance(value, list) for value in values)
    labels = [str(label).strip() for value in values
              for label in (value if isinstance(value, list) else [value])]
    return listed, list(dict.fromkeys(label for label in labels if label))


def _balance(targets: Tensor, multi: bool) -> Tensor:
    """(K,) weights by which rare labels count more: by the root of how rare they are."""
    count = targets.sum(0)
    if multi:
        return ((len(targets) - count) / count.clamp(min=1)).clamp(min=1, max=100).sqrt()
    return (len(targets) / (len(count) * count.clamp(min=1))).sqrt()


def _model_of(tensors: dict[str, Tensor],
              settings: dict[str, Any]) -> tuple[list[str], LinearLabels]:
    try:
        labels = [str(label) for label in settings["labels"]]
        float(settings["temperature"]), bool(settings["multi"])
        model = LinearLabels(settings["visual"], settings["text"], len(labels))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"these weights are no classification head: {error}") from error
    return labels, model.requires_grad_(False).eval()
