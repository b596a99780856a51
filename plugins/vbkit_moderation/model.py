"""The models of the moderation head: encoder outputs in, one logit for each category out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VisualModel", "supported"]


class VisualModel(nn.Module):
    """A linear map for each visual category.

    Of `clip_features` two parts are read: the first, the mean over the clip's frames and over their
    area, and the last, its standard deviation over the frames, the change in time. Things (`still`)
    are read off the first; the last is zero for a picture, and would tell pictures from videos.

    What moves is read off the last part, after a square root that evens out few strong changes
    (`motion`). Motion of another kind looks alike, sports for instance, so a second map (`scene`)
    of the first part says whether the setting is one that motion was learnt in; the probability is
    the product of both. A clip in which nothing moves is not judged.

    Args:
        width: of one part.
        still: number of categories that are seen in a still.
        moving: number of categories that need motion.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int, still: int, moving: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(2 * width))
        self.register_buffer("scale", torch.ones(2 * width))
        self.width = width
        self.still = nn.Linear(width, still)
        self.motion = nn.Linear(width, moving)
        self.scene = nn.Linear(width, moving)

    def rooted(self, clip_features: Tensor) -> Tensor:
        """(C, 2 x width): the two parts, with the square root of the last."""
        changes = clip_features[:, -self.width :].clamp(min=0).sqrt()
        return torch.cat([clip_features[:, : self.width], changes], 1)

    def standardised(self, clip_features: Tensor) -> Tensor:
        """The inputs of the linear maps."""
        return (self.rooted(clip_features) - self.mean) / self.scale

    def forward(self, clip_features: Tensor) -> Tensor:
        """Logits (C, still + moving) of `clip_features` (C, at least 2 x width).

        The logit of a moving category is minus infinity where nothing moves.
        """
        x = self.standardised(clip_features)
        both = F.logsigmoid(self.motion(x[:, self.width :])) + F.logsigmoid(
            self.scene(x[:, : self.width])
        )
        moving = both - torch.log(-torch.expm1(both.clamp(max=-1e-6)))
        is_still = clip_features[:, -self.width :].amax(1, keepdim=True) <= 1e-4
        moving = moving.masked_fill(is_still, float("-inf"))
        return torch.cat([self.still(x[:, : self.width]), moving], 1)


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
