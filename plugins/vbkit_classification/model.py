"""The model of a trained classification head: a linear map of what clips and segments average to.

Being linear, it gives a video the mean of what it gives the clips, and a clip can be scored by
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Inputs", "LinearLabels", "fit_labels", "fit_temperature", "stack_inputs"]

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Strengths of the penalty on weights that training chooses from, per standardised input."""
_ITERATIONS = 60


@dataclass(frozen=True)
class Inputs:
    """What N videos (or clips) are judged by.

    Args:
        visual: (N, Dv) mean over the clips; zeros where there is none.
        text: (N, D) mean over the segments; zeros where there is none.
        seen, said: (N,) bool, whether there are clips, and segments.
    """

    visual: Tensor
    text: Tensor
    seen: Tensor
    said: Tensor

    def __len__(self) -> int:
        return len(self.visual)

    def take(self, rows: Tensor) -> Inputs:
        return Inputs(self.visual[rows], self.text[rows], self.seen[rows], self.said[rows])


def stack_inputs(visual: Sequence[Tensor], text: Sequence[Tensor]) -> Inputs:
    """Means over clips (C, Dv) and segments (S, D), each possibly none, of N videos.

    Where there are none, their width does not count.
    """
    def means(parts: Sequence[Tensor]) -> Tensor:
        width = next((rows.shape[1] for rows in parts if len(rows)), parts[0].shape[1])
        return torch.stack([rows.mean(0) if len(rows) else rows.new_zeros(width)
                            for rows in parts])

    return Inputs(means(visual), means(text),
                  torch.tensor([len(rows) > 0 for rows in visual]),
                  torch.tensor([len(rows) > 0 for rows in text]))


class LinearLabels(nn.Module):
    """Logits of labels, from standardised visual and text inputs.

    Args:
        visual: Dv.
        text: D.
        labels: K.
    """

    def __init__(self, visual: int, text: int, labels: int) -> None:
        super().__init__()
        for name, width in (("visual", visual), ("text", text)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_scale", torch.ones(width))
        self.visual = nn.Linear(visual, labels, bias=False)
        self.text = nn.Linear(text, labels, bias=False)
        self.bias = nn.Parameter(torch.zeros(labels))
        nn.init.zeros_(self.visual.weight)
        nn.init.zeros_(self.text.weight)

    def forward(self, inputs: Inputs) -> Tensor:
        """(N, K) logits."""
        visual = self.standardised(inputs.visual, inputs.seen, "visual")
        text = self.standardised(inputs.text, inputs.said, "text")
        logits: Tensor = self.visual(visual) + self.text(text) + self.bias
        return logits

    def standardised(self, rows: Tensor, there: Tensor, name: str) -> Tensor:
        """What is missing is as good as the average."""
        mean, scale = getattr(self, f"{name}_mean"), getattr(self, f"{name}_scale")
        return (rows - mean) / scale * there[:, None]

    def measure(self, inputs: Inputs) -> None:
        """Take mean and scale from training inputs."""
        for name, rows, there in (("visual", inputs.visual, inputs.seen),
                                  ("text", inputs.text, inputs.said)):
            if bool(there.any()):
                chosen = rows[there]
                getattr(self, f"{name}_mean").copy_(chosen.mean(0))
                spread = chosen.std(0, correction=0)
                # An input that hardly varies is not blown up; all count alike by their number.
                floor = 0.1 * spread.mean().clamp(min=1e-6)
                scale = spread.clamp(min=floor) * rows.shape[1] ** 0.5
                getattr(self, f"{name}_scale").copy_(scale)


def loss_of(logits: Tensor, targets: Tensor, weights: Tensor, multi: bool) -> Tensor:
    """Weighted mean: cross-entropy of one label each, or binary of any number.

    Args:
        logits: (N, K).
        targets: (N, K) 0 or 1; a single label's row sums to 1.
        weights: (K,) of each label's examples.
        multi: whether a video may have several labels.
    """
    if multi:
        each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        scale = torch.where(targets > 0, weights, 1.0)
        return (each * scale).mean()
    scale = (targets * weights).sum(1)
    return -((targets * logits.log_softmax(1)).sum(1) * scale).sum() / scale.sum()


def fit_labels(inputs: Inputs, targets: Tensor, weights: Tensor, multi: bool,
               penalty: float) -> LinearLabels:
    """Logistic regression with an L2 penalty, by L-BFGS.

    Args:
        inputs: of N videos.
        targets, weights, multi: as in `loss_of`.
        penalty: of the squared weights.
    """
    model = LinearLabels(inputs.visual.shape[1], inputs.text.shape[1], targets.shape[1])
    model.measure(inputs)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=_ITERATIONS, history_size=10,
                                  line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        size = model.visual.weight.square().sum() + model.text.weight.square().sum()
        loss = loss_of(model(inputs), targets, weights, multi) + penalty * size / 1000
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return model.requires_grad_(False).eval()


def fit_temperature(logits: Tensor, targets: Tensor, multi: bool) -> float:
    """By what to divide logits so that held-out labels are likeliest (Guo et al., ICML 2017)."""
    weights = torch.ones(targets.shape[1])
    candidates = torch.logspace(-1, 1, 81)
    losses = torch.stack([loss_of(logits / t, targets, weights, multi) for t in candidates])
    return float(candidates[int(losses.argmin())])
