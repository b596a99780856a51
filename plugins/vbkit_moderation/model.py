"""The models of the moderation head: encoder outputs in, one logit for each category out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VisualModel", "supported"]

_STILL = 1e-4  # of clip features' deviation
_NOT_LOOKED_AT = -3.0
"""Logit of motion that was not looked at: it is rarely what is looked for."""
_SURE = 0.75
"""A setting of this probability counts as certain: beyond it, it only blurs what motion tells."""


class VisualModel(nn.Module):
    """A linear map for each visual category.

    Things (`still`) are read off the first part of `clip_features`, the mean over the clip's frames
    and over their area. What moves (`motion`) is read off the output `motion`. Motion of another
    kind looks alike, sports for instance, so a second map (`scene`) of the first part of
    `clip_features` says whether the setting is one that motion was learnt in; the probability is
    the product of both, with a setting that is probable enough counted as certain. So where the
    setting is another, nobody need look at the motion, which costs more to see.

    The last part of `clip_features`, the standard deviation over the frames, tells whether anything
    moves at all; a clip in which nothing does is not judged.

    Args:
        width: of one part of `clip_features`.
        motion_width: M of the output `motion`.
        still: number of categories that are seen in a still.
        moving: number of categories that need motion.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, motion_width: int, still: int, moving: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.width = width
        self.still = nn.Linear(width, still)
        self.motion = nn.Linear(motion_width, moving)
        self.scene = nn.Linear(width, moving)

    def moves(self, clip_features: Tensor) -> Tensor:
        """(C,) bool: in which clips something moves."""
        return clip_features[:, -self.width :].amax(1) > _STILL

    def standardised(self, clip_features: Tensor) -> Tensor:
        """(C, width): the input of the maps `still` and `scene`."""
        return (clip_features[:, : self.width] - self.mean) / self.scale

    def setting(self, clip_features: Tensor) -> Tensor:
        """(C, moving): probability that the setting is one that motion was learnt in."""
        return torch.sigmoid(self.scene(self.standardised(clip_features)))

    def forward(self, clip_features: Tensor, motion: Tensor) -> Tensor:
        """Logits (C, still + moving).

        The logit of a moving category is minus infinity where nothing moves.

        Args:
            clip_features: (C, at least 2 x width).
            motion: (C, motion_width), a row of NaN where it was not looked at.
        """
        x = self.standardised(clip_features)
        moving = torch.where(motion.isnan().any(1, keepdim=True), _NOT_LOOKED_AT,
                             self.motion(motion.nan_to_num()))
        setting = (F.logsigmoid(self.scene(x)) - math.log(_SURE)).clamp(max=0)
        both = F.logsigmoid(moving) + setting
        both = both - torch.log(-torch.expm1(both.clamp(max=-1e-6)))
        both = both.masked_fill(~self.moves(clip_features)[:, None], float("-inf"))
        return torch.cat([self.still(x), both], 1)


def supported(logits: Tensor) -> Tensor:
    """Each clip's logits averaged with those of its stronger neighbour.

    What is there lasts longer than a clip, a mistake often does not. A video of one clip stays as
    it is.

    Args:
        logits: (C, K), the clips of one video in order.
    """
    if len(logits) < 2:
        return logits
    nothing = logits.new_full((1, logits.shape[1]), float("-inf"))
    before = torch.cat([nothing, logits[:-1]])
    after = torch.cat([logits[1:], nothing])
    stronger = torch.maximum(before, after)
    # Beside a clip that cannot be judged (minus infinity), a clip counts by itself.
    stronger = torch.where(torch.isinf(stronger), logits, stronger)
    return (logits + stronger) / 2
