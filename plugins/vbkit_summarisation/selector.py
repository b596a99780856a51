"""The selector: which sentences of a transcript belong in its summary.

A small Transformer over the sentence embeddings of a passage, in the manner of extractive
summarisation with a sentence encoder (Liu and Lapata, "Text summarization with pretrained
encoders", EMNLP 2019, section 3), beside plain features of words and place. Sentences are then
taken greedily, each weighed against its likeness to those already taken (maximal marginal
relevance: Carbonell and Goldstein, SIGIR 1998).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbkit_summarisation.text import TEXT_FEATURES

__all__ = ["PLACE_FEATURES", "Selector", "SelectorConfig", "place_features", "windows"]

PLACE_FEATURES = 8


@dataclass(frozen=True)
class SelectorConfig:
    """Sizes of the selector.

    Args:
        dim: D of the shared space.
        hidden: width.
        layers: Transformer layers.
        heads: attention heads.
        window: sentences scored at once; longer transcripts are scored in overlapping windows.
        dropout: during training.
    """

    dim: int = 384
    hidden: int = 96
    layers: int = 2
    heads: int = 4
    window: int = 32
    dropout: float = 0.2


def place_features(segments: Tensor) -> Tensor:
    """How a segment relates to its passage: (S, D) unit vectors to (S, PLACE_FEATURES)."""
    n = len(segments)
    near = segments @ segments.T
    centre = F.normalize(segments.mean(0, keepdim=True), dim=-1)
    central = (segments @ centre.T)[:, 0]
    before = torch.cat([near.new_zeros(1), near.diagonal(1)]) if n > 1 else near.new_zeros(n)
    after = torch.cat([near.diagonal(1), near.new_zeros(1)]) if n > 1 else near.new_zeros(n)
    others = near - torch.eye(n, device=near.device)
    mean = others.sum(1) / max(1, n - 1)
    rank = central.argsort(descending=True).argsort().float() / max(1, n - 1)
    spread = (central - central.mean()) / (central.std(correction=0) + 0.03)
    return torch.stack([central, spread, rank, mean, others.amax(1), before, after,
                        (others > 0.5).float().sum(1).log1p()], 1)


def windows(n: int, size: int) -> list[tuple[int, int]]:
    """Windows (start, end) of `size` with half a window of overlap that cover `n` segments."""
    if n <= size:
        return [(0, n)]
    starts = [*list(range(0, n - size, size // 2)), n - size]
    return [(start, start + size) for start in starts]


class Selector(nn.Module):
    """See the module's description."""

    def __init__(self, config: SelectorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SelectorConfig()
        self.content = nn.Linear(config.dim, config.hidden)
        self.plain = nn.Linear(TEXT_FEATURES + PLACE_FEATURES, config.hidden)
        self.near = nn.Conv1d(config.hidden, config.hidden, 3, padding=1, groups=4)
        self.drop = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.hidden, config.heads, 2 * config.hidden, config.dropout, F.gelu,
            batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.hidden)
        self.leave = nn.Linear(config.hidden, 1)
        self.direct = nn.Linear(TEXT_FEATURES + PLACE_FEATURES, 1)

    def forward(self, segments: Tensor, plain: Tensor, mask: Tensor) -> Tensor:
        """Logits of belonging to the summary.

        Args:
            segments: (N, S, D) unit vectors.
            plain: (N, S, TEXT_FEATURES + PLACE_FEATURES).
            mask: (N, S) bool, True where there is a segment.

        Returns:
            (N, S).
        """
        x = self.content(self.drop(segments) * 4) + self.plain(self.drop(plain))
        x = x * mask[..., None]
        x = x + F.gelu(self.near(x.transpose(1, 2)).transpose(1, 2))
        x = self.layers(x, src_key_padding_mask=~mask)
        return (self.leave(self.drop(self.norm(x))) + self.direct(plain))[..., 0]
