"""A head's own branch of the text encoder: the shared weights, with low-rank changes to them.

The upper layers of the encoder are read with `W + U D` in place of each weight `W`, where `D` and
`U` are small (LoRA: Hu et al., ICLR 2022, section 4). Only these are trained and stored, so a
branch of all six layers of `mini` at rank 8 takes 0.7 MB. The encoder itself stays as it is.

A branch reads the words of segments either each by itself (`BranchConfig.window` 0), or in runs, so
that a segment is understood from what is said around it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbkit.errors import ModelError
from vbkit.model.fitting import runs

if TYPE_CHECKING:
    from vbkit.model.modeling import EncoderLayer, VideoBertModel
    from vbkit.model.processing import VideoBertProcessor

__all__ = ["BranchConfig", "TextBranch", "token_windows"]

_ADAPTED = ("attention.query", "attention.key", "attention.value", "attention.output",
            "mlp_in", "mlp_out")
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class BranchConfig:
    """What a branch is.

    Args:
        layers: how many of the encoder's layers are changed, from the last.
        rank: of each change.
        window: word pieces, special tokens included, in which segments are read together; 0 reads
            each by itself.
        segment_length: word pieces of one segment at most; what is longer is cut.

    Raises:
        ValueError: a value is out of range.
    """

    layers: int = 6
    rank: int = 8
    window: int = 0
    segment_length: int = 126

    def __post_init__(self) -> None:
        if self.layers < 1 or self.rank < 1 or self.segment_length < 1:
            raise ValueError(f"a branch has at least one layer, rank and word piece, got {self}")
        if self.window and self.window < self.segment_length + 2:
            raise ValueError(f"a window of {self.window} word pieces does not hold a segment of "
                             f"{self.segment_length}")


class LowRank(nn.Module):
    """A linear map that stays as it is, and a low-rank one beside it that begins at 0."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.normal_(self.down, std=linear.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)

    def merged(self) -> nn.Linear:
        """One linear map that does the same."""
        out = copy.deepcopy(self.linear)
        with torch.no_grad():
            out.weight += self.up @ self.down
        return out.requires_grad_(False)


class TextBranch(nn.Module):
    """See the module's description.

    The branch is on the model's device. Its parameters are the changes alone; the encoder's
    weights are shared, and frozen.

    Args:
        model: the encoder, whose adapters take no part.
        processor: its tokenizer.
        config: what the branch is.

    Raises:
        ModelError: the model has fewer layers, or its positions are too few for the window.
    """

    def __init__(self, model: VideoBertModel, processor: VideoBertProcessor,
                 config: BranchConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or BranchConfig()
        if config.layers > len(model.layers):
            raise ModelError(f"the encoder has {len(model.layers)} layers, so a branch cannot "
                             f"change {config.layers}")
        most = model.config.max_position_embeddings
        if max(config.window, config.segment_length + 2) > most:
            raise ModelError(f"the encoder reads {most} word pieces, fewer than the branch")
        self.hidden_size = model.config.hidden_size
        self.processor = processor
        self._shared = [model]  # in a list, so that it is no part of this module
        self._first = len(model.layers) - config.layers
        # Copies of the layers' structure that share the layers' parameters.
        shared = {id(p): p for p in model.layers.parameters()}
        self._layers: list[EncoderLayer] = [
            cast("EncoderLayer", copy.deepcopy(layer, dict(shared)))
            for layer in model.layers[self._first :]]
        self.changes = nn.ModuleDict()
        for number, layer in enumerate(self._layers):
            for name in _ADAPTED:
                path, _, last = name.rpartition(".")
                owner = layer.get_submodule(path) if path else layer
                change = LowRank(getattr(owner, last), config.rank)
                change.linear.requires_grad_(False)
                setattr(owner, last, change)
                self.changes[f"{number}_{name.replace('.', '_')}"] = change
        self.to(model.feature_mean.device)

    @property
    def device(self) -> torch.device:
        return self._shared[0].feature_mean.device

    def train(self, mode: bool = True) -> TextBranch:
        """Training mode, dropout included, or not."""
        super().train(mode)
        for layer in self._layers:
            layer.train(mode)
        return self

    def _named_changes(self) -> Iterator[tuple[str, LowRank]]:
        for name, change in self.changes.items():
            yield name, cast("LowRank", change)

    def unfreeze(self, layers: int) -> list[nn.Parameter]:
        """Let the changes of the uppermost layers learn, and no others; returns them.

        Raises:
            ModelError: the branch has fewer layers.
        """
        if not 0 <= layers <= self.config.layers:
            raise ModelError(f"this branch has {self.config.layers} layers that can learn, not "
                             f"{layers}")
        first = self.config.layers - layers
        learning: list[nn.Parameter] = []
        for name, change in self._named_changes():
            for part in (change.down, change.up):
                part.requires_grad_(int(name.partition("_")[0]) >= first)
                learning += [part] if part.requires_grad else []
        return learning

    def state(self) -> dict[str, Tensor]:
        """The changes by name, for `vbkit.heads.save_head`."""
        return {f"{name}.{part}": getattr(change, part).detach()
                for name, change in self._named_changes() for part in ("down", "up")}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take changes that `state` gave.

        Raises:
            ModelError: they are of another shape.
        """
        wanted = self.state()
        for name, tensor in wanted.items():
            if name not in state or state[name].shape != tensor.shape:
                raise ModelError(f"these are no changes of {self.config.layers} layers at rank "
                                 f"{self.config.rank}: {name} does not fit")
            tensor.copy_(state[name])

    def merge(self) -> TextBranch:
        """Make the changes part of weights of its own: quicker to read with, not to be trained."""
        for layer in self._layers:
            for name in _ADAPTED:
                path, _, last = name.rpartition(".")
                owner = layer.get_submodule(path) if path else layer
                change = getattr(owner, last)
                if isinstance(change, LowRank):
                    setattr(owner, last, change.merged())
        return self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (B, L, H) of padded sequences `[CLS] … [SEP]` (B, L)."""
        (model,) = self._shared
        mask = attention_mask.bool()
        x = model.text_embeddings(input_ids, (mask.long().cumsum(1) - 1).clamp_(min=0))
        attention = None if bool(mask.all()) else mask[:, None, None, :]
        for layer in model.layers[: self._first]:
            x, _ = layer(x, attention, False, False)
        for layer in self._layers:
            x, _ = layer(x, attention, False, False)
        return x

    def tokenize(self, texts: Sequence[str], cut: bool = True) -> list[list[int]]:
        """Word pieces of segments, as `read` takes them; whole ones without `cut`."""
        rows = self.processor.tokenize(texts)
        return [row[: self.config.segment_length] for row in rows] if cut else rows

    def read(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Segments of one transcript in their order, each a mean of its word pieces' hidden states.

        Args:
            ids: word pieces of S segments, from `tokenize`.

        Returns:
            (S, H) float32; zeros for a segment without word pieces.
        """
        return self.read_all([ids])[0]

    def read_all(self, transcripts: Sequence[Sequence[Sequence[int]]]) -> list[Tensor]:
        """`read` for several transcripts, in batches that they share."""
        config = self._shared[0].config
        rows: list[list[int]] = []
        marks: list[tuple[int, int, int, list[tuple[int, int]]]] = []
        for number, ids in enumerate(transcripts):
            spans = ([(i, i + 1) for i in range(len(ids))] if not self.config.window else
                     token_windows([len(row) + 1 for row in ids], self.config.window - 1))
            for first, last in spans:
                row, places = [config.cls_token_id], []
                for pieces in ids[first:last]:
                    places.append((len(row), len(row) + len(pieces)))
                    row += [*pieces, config.sep_token_id]
                rows.append(row)
                marks.append((number, first, last, places))
        found = [[torch.zeros(0)] * len(ids) for ids in transcripts]
        depth = [[-1] * len(ids) for ids in transcripts]
        for batch in runs([len(row) for row in rows], _BATCH_TOKENS):
            tokens, mask = self.processor.pad([rows[i] for i in batch])
            hidden = self(tokens.to(self.device), mask.to(self.device)).float()
            for states, index in zip(hidden, batch, strict=True):
                number, first, last, places = marks[index]
                for segment, (begin, end) in zip(range(first, last), places, strict=True):
                    inner = min(segment - first, last - 1 - segment)
                    if inner > depth[number][segment]:  # from where it is most central
                        depth[number][segment] = inner
                        found[number][segment] = (
                            states[begin:end].mean(0) if end > begin
                            else states.new_zeros(self.hidden_size))
        empty = torch.zeros(0, self.hidden_size, device=self.device)
        return [torch.stack(segments) if segments else empty for segments in found]


def token_windows(lengths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Runs of segments (first, past the last) that fit into `room`, half overlapping.

    Args:
        lengths: word pieces of each segment.
        room: of a window; a segment that is longer has one to itself.
    """
    windows: list[tuple[int, int]] = []
    first = 0
    while first < len(lengths):
        last, used = first, 0
        while last < len(lengths) and (last == first or used + lengths[last] <= room):
            used += lengths[last]
            last += 1
        windows.append((first, last))
        if last == len(lengths):
            break
        # The next window begins where half of this one's word pieces are passed.
        passed, middle = 0, first
        while middle < last - 1 and passed + lengths[middle] <= used / 2:
            passed += lengths[middle]
            middle += 1
        first = max(middle, first + 1)
    return windows
