"""The selector: which sentences of a transcript belong in its summary.

The head's branch of the encoder reads the sentences of a passage together, in the manner of
extractive summarisation with a pretrained encoder (Liu and Lapata, "Text summarization with
pretrained encoders", EMNLP 2019, section 3); a small Transformer over the sentences weighs them,
with plain features of their words and places. Sentences are then taken greedily, each weighed
against its likeness to those already taken (maximal marginal relevance: Carbonell and Goldstein,
SIGIR 1998).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbkit.model.branch import TextBranch, token_windows
from vbkit_summarisation.text import TEXT_FEATURES, text_features

__all__ = ["Selector", "SelectorConfig", "Window", "score_sentences", "windows_of"]

_WINDOWS = 32
"""Windows in a batch."""


@dataclass(frozen=True)
class SelectorConfig:
    """Sizes of the selector.

    Args:
        dim: H of the branch.
        hidden: width.
        layers: Transformer layers.
        heads: attention heads.
        dropout: during training.
    """

    dim: int = 384
    hidden: int = 96
    layers: int = 1
    heads: int = 4
    dropout: float = 0.2


class Selector(nn.Module):
    """See the module's description."""

    def __init__(self, config: SelectorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SelectorConfig()
        self.content = nn.Linear(config.dim, config.hidden)
        self.plain = nn.Linear(TEXT_FEATURES, config.hidden)
        self.near = nn.Conv1d(config.hidden, config.hidden, 3, padding=1, groups=4)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.hidden, config.heads, 2 * config.hidden, config.dropout, F.gelu,
            batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.hidden)
        self.output = nn.Linear(config.hidden, 1)
        self.direct = nn.Linear(TEXT_FEATURES, 1)

    def forward(self, sentences: Tensor, plain: Tensor, mask: Tensor) -> Tensor:
        """Logits of belonging to the summary.

        Args:
            sentences: (N, S, H), from the branch.
            plain: (N, S, TEXT_FEATURES).
            mask: (N, S) bool, True where there is a sentence.

        Returns:
            (N, S).
        """
        x = self.content(self.dropout(sentences)) + self.plain(self.dropout(plain))
        x = x * mask[..., None]
        x = x + F.gelu(self.near(x.transpose(1, 2)).transpose(1, 2))
        x = self.layers(x, src_key_padding_mask=~mask)
        logits: Tensor = self.output(self.dropout(self.norm(x))) + self.direct(plain)
        return logits[..., 0]

    def judge(self, read: Sequence[Tensor], plain: Sequence[Tensor]) -> list[Tensor]:
        """Logits (S,) of each window's sentences, from what a branch reads and plain features."""
        sentences = nn.utils.rnn.pad_sequence(list(read), batch_first=True)
        features = nn.utils.rnn.pad_sequence(list(plain), batch_first=True).to(sentences)
        lengths = torch.tensor([len(rows) for rows in read], device=sentences.device)
        mask = torch.arange(sentences.shape[1], device=sentences.device) < lengths[:, None]
        logits = self(sentences, features, mask)
        return [row[:length] for row, length in zip(logits, lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class Window:
    """Sentences that are read together.

    Args:
        first: the number of the first.
        ids: their word pieces.
        plain: (S, TEXT_FEATURES) float32.
    """

    first: int
    ids: list[list[int]]
    plain: Tensor


def windows_of(branch: TextBranch, texts: Sequence[str],
               rarity: Mapping[str, float]) -> list[Window]:
    """Overlapping windows that cover a transcript's sentences."""
    ids = branch.tokenize(texts)
    spans = token_windows([len(row) + 1 for row in ids], branch.config.window - 1)
    return [Window(first, ids[first:last],
                   torch.from_numpy(text_features(texts[first:last], rarity)))
            for first, last in spans]


@torch.no_grad()
def score_sentences(selector: Selector, branch: TextBranch, texts: Sequence[str],
                    rarity: Mapping[str, float]) -> Tensor:
    """Logits (S,) of S sentences, on the CPU.

    Each takes its logit from the window in which it is most central.
    """
    out, depth = torch.zeros(len(texts)), torch.full((len(texts),), -1.0)
    windows = windows_of(branch, texts, rarity) if texts else []
    for start in range(0, len(windows), _WINDOWS):
        batch = windows[start : start + _WINDOWS]
        read = branch.read_all([window.ids for window in batch])
        for window, logits in zip(batch, selector.judge(read, [w.plain for w in batch]),
                                  strict=True):
            place = torch.arange(len(logits)).float()
            inner = torch.minimum(place, len(logits) - 1 - place)
            span = slice(window.first, window.first + len(logits))
            better = inner > depth[span]
            out[span] = torch.where(better, logits.float().cpu(), out[span])
            depth[span] = torch.where(better, inner, depth[span])
    return out
