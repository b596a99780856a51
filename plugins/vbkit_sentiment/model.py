"""The models of the sentiment head: encoder outputs in, logits of three classes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CONTEXT", "PictureSentiment", "TextSentiment", "neighbours", "trusted"]

CONTEXT = (-2, -1, 1)
"""Which neighbours of a segment are read with it."""


def neighbours(embeddings: Tensor, groups: Sequence[int] | None = None) -> Tensor:
    """Each segment with its neighbours; zeros where there is none.

    Args:
        embeddings: (S, D), the segments in order.
        groups: S numbers; only segments of one number (a dialogue, a video) are neighbours.
            None takes all as one group.

    Returns:
        (S, 1 + len(CONTEXT), D): the segment itself, then those of `CONTEXT`.
    """
    count = len(embeddings)
    group = torch.zeros(count, dtype=torch.long) if groups is None else torch.as_tensor(groups)
    group = group.to(embeddings.device)
    here = torch.arange(count, device=embeddings.device)
    stack = [embeddings]
    for offset in CONTEXT:
        there = (here + offset).clamp(0, max(count - 1, 0))
        known = (here + offset >= 0) & (here + offset < count)
        known = known & (group[there] == group)
        stack.append(embeddings[there] * known[:, None])
    return torch.stack(stack, 1)


class TextSentiment(nn.Module):
    """A linear map of the segment plus a hidden layer over the segment and its neighbours.

    Args:
        width: D, of the embeddings.
        hidden: units of the hidden layer.
        dropout: of its units; inputs are dropped at 0.4 times that.
        context_dropout: how often a neighbour is left out in training, so that a segment that has
            none is an ordinary input.
    """

    def __init__(
        self, width: int, hidden: int = 256, dropout: float = 0.7, context_dropout: float = 0.6
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 3)
        self.hidden = nn.Linear(width, hidden)
        self.context = nn.Linear(width * len(CONTEXT), hidden, bias=False)
        self.output = nn.Linear(hidden, 3)
        self.dropout = dropout
        self.context_dropout = context_dropout
        self.scale = width**0.5 / 4  # entries of a unit vector are small; this suits the optimiser

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (S, 3) of `neighbours(...)` (S, 1 + len(CONTEXT), D)."""
        inputs = self.scale * inputs
        own = F.dropout(inputs[:, 0], 0.4 * self.dropout, self.training)
        others = inputs[:, 1:]
        if self.training:
            kept = torch.rand(len(others), others.shape[1], 1, device=others.device)
            others = others * (kept > self.context_dropout)
        others = F.dropout(others.flatten(1), 0.4 * self.dropout, self.training)
        hidden = F.gelu(self.hidden(own) + self.context(others))
        logits: Tensor = self.linear(own) + self.output(
            F.dropout(hidden, self.dropout, self.training)
        )
        return logits


class PictureSentiment(nn.Module):
    """A linear map of a clip's mean features, standardised.

    Only the first part of `clip_features` (the mean over the clip's frames and over their area) is
    read; the last, the change in time, is zero for a still and would tell pictures from videos.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.linear = nn.Linear(width, 3)

    def forward(self, clip_features: Tensor) -> Tensor:
        """Logits (C, 3) of `clip_features` (C, at least width)."""
        logits: Tensor = self.linear((clip_features[:, : len(self.mean)] - self.mean) / self.scale)
        return logits


def trusted(logits: Tensor, prior: Sequence[float], trust: float) -> Tensor:
    """Log-probabilities drawn towards those of an ordinary picture.

    Args:
        logits: (C, 3).
        prior: the shares of the three classes among ordinary pictures.
        trust: 0 to 1, how far the logits are believed.
    """
    usual = torch.tensor(prior, dtype=logits.dtype, device=logits.device)
    return torch.log(trust * logits.softmax(1) + (1 - trust) * usual)
