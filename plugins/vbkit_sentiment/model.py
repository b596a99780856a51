"""The picture model of the sentiment head: clip features in, logits of three classes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["PictureSentiment", "trusted"]


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
