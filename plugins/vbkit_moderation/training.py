"""How the moderation head learns from a user's own labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vbkit.heads import FitOptions
from vbkit.model.fitting import fit, platt
from vbkit.model.segments import Passage, SegmentClassifier
from vbkit_moderation.model import VisualModel

__all__ = ["Labelled", "fit_text", "fit_visual", "settle"]

_PULL = 4.0
"""How strongly a calibration is drawn to the one it was, in videos."""


@dataclass(frozen=True)
class Labelled:
    """Videos with what they are labelled with.

    Args:
        rows: for each video its clip features (C, Dv) with their motion (C, M), or its S segments
            with their embeddings (S, D).
        labels: (V, K) bool, by category.
    """

    rows: Sequence[Any]
    labels: np.ndarray

    def varies(self, column: int) -> bool:
        """Whether some videos have the category and some have not."""
        return bool(len(self.labels)) and 0 < self.labels[:, column].sum() < len(self.labels)


def _weights(labels: np.ndarray) -> np.ndarray:
    """(V, K): rare answers count more, by the root of how rare they are; 1 on average."""
    share = labels.mean(0).clip(1e-3, 1 - 1e-3)
    weights = np.where(labels, share**-0.5, (1 - share) ** -0.5)
    balanced: np.ndarray = weights / weights.mean(0)
    return balanced


def fit_visual(model: VisualModel, train: Labelled, val: Labelled, columns: Sequence[int],
               options: FitOptions) -> Tensor:
    """Train the linear maps of some categories; the logits (V, K) of the validation videos."""
    chosen = list(columns)
    moving = model.still.out_features
    learning = {f"still.{name}": p for name, p in model.still.named_parameters()
                if any(column < moving for column in chosen)}
    learning |= {f"{part}.{name}": p for part in ("motion", "scene")
                 for name, p in getattr(model, part).named_parameters()
                 if any(column >= moving for column in chosen)}
    for parameter in learning.values():
        parameter.requires_grad_(True)
    target = {id(part): torch.from_numpy(part.labels[:, chosen]).float() for part in (train, val)}
    weight = {id(part): torch.from_numpy(_weights(part.labels)[:, chosen]).float()
              for part in (train, val)}

    def logits_of(part: Labelled, rows: Sequence[int]) -> Tensor:
        return torch.stack([model(*part.rows[i]).amax(0) for i in rows]).cpu()

    def loss(part: Labelled, rows: Sequence[int]) -> Tensor:
        logits = logits_of(part, rows)[:, chosen]
        judged = torch.isfinite(logits)  # a still shows no motion
        each = F.binary_cross_entropy_with_logits(
            torch.where(judged, logits, 0.0), target[id(part)][rows], reduction="none")
        weights = weight[id(part)][rows] * judged
        return (each * weights).sum() / weights.sum().clamp(min=1e-6)

    def steps(random: np.random.Generator) -> Iterable[Callable[[], Tensor]]:
        order = random.permutation(len(train.rows))
        for start in range(0, len(order), 32):
            yield lambda start=start: loss(  # type: ignore[misc]
                train, order[start : start + 32].tolist())

    @torch.no_grad()
    def validate() -> float:
        return float(loss(val, range(len(val.rows))))

    fit(learning, steps, validate, options, epochs=40, decay=0.1,
        rates=lambda name: options.learning_rate or 1e-4)
    for parameter in learning.values():
        parameter.requires_grad_(False)
    with torch.no_grad():
        return logits_of(val, range(len(val.rows)))


def fit_text(model: SegmentClassifier, train: Labelled, val: Labelled, columns: Sequence[int],
             options: FitOptions) -> Tensor:
    """Train the classifier of segments; the greatest logits (V, K) of the validation videos.

    What the branch learns for some categories would move the others too, so the logits of those
    are held to what they were (Li and Hoiem, "Learning without forgetting", ECCV 2016).
    """
    chosen = list(columns)
    others = [column for column in range(train.labels.shape[1]) if column not in chosen]

    @torch.no_grad()
    def passages(part: Labelled) -> list[Passage]:
        weights = _weights(part.labels)
        out = []
        for video, (texts, embeddings) in enumerate(part.rows):
            row = np.concatenate([[video], part.labels[video], weights[video]])
            out.append(Passage(texts, torch.cat([
                torch.from_numpy(row).float().expand(len(texts), -1),
                model(texts, embeddings).cpu()], 1), embeddings))
        return out

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        videos, owner = target[:, 0].unique(return_inverse=True)
        count = logits.shape[1]
        greatest = logits.new_full((len(videos), count), -torch.inf).scatter_reduce(
            0, owner[:, None].expand(-1, count), logits, "amax")
        first = torch.stack([(owner == k).nonzero()[0, 0] for k in range(len(videos))])
        labels, weights, before = target[:, 1:].split(count, 1)
        loss = F.binary_cross_entropy_with_logits(
            greatest[:, chosen], labels[first][:, chosen], weights[first][:, chosen])
        if others:
            loss = loss + F.mse_loss(logits[:, others], before[:, others])
        return loss

    model.fit(passages(train), passages(val), loss, options, shorter=0.0)
    with torch.no_grad():
        return torch.stack([model(*row).amax(0) for row in val.rows]).cpu()


def settle(old: dict[str, Any], logits: Tensor, labels: np.ndarray,
           false_alarms: float) -> dict[str, Any]:
    """A category's calibration and threshold from validation videos.

    Platt's scaling, drawn to the calibration that it had, as there may be few videos. `review` is
    where most videos are found among the thresholds that keep the rate of false alarms, and of
    these the one nearest to a half. `block` is never reached, since so few cannot show that it is
    safe.
    """
    judged = torch.isfinite(logits)
    x, y = logits[judged].double(), torch.from_numpy(labels)[judged]
    slope, offset = platt(x, y, tuple(old["calibration"]), _PULL)
    scores = torch.sigmoid(slope * x + offset).numpy()
    shows = y.numpy() > 0
    kept = [t for t in np.linspace(0.01, 0.99, 99).round(2).tolist()
            if (scores[~shows] >= t).mean() <= false_alarms] or [0.99]
    review = max(kept, key=lambda t: (float((scores[shows] >= t).mean()), -abs(t - 0.5)))
    return {**old, "calibration": [slope, offset], "review": review, "block": None,
            "measured": {"validation_videos": len(x), "false_alarms": false_alarms}}
