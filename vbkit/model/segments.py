"""A classifier of transcript segments: a branch of the text encoder, and a linear map on top.

The map may read a vector of each segment as well, such as its shared embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbkit.errors import ModelError
from vbkit.model.branch import BranchConfig, TextBranch
from vbkit.model.fitting import dropped, fit

if TYPE_CHECKING:
    from vbkit.heads import FitOptions

__all__ = ["Passage", "SegmentClassifier"]

_PASSAGES = 16
"""Passages in a batch of training."""


@dataclass(frozen=True)
class Passage:
    """Segments in their order, with what is to be said of them.

    Args:
        texts: the S segments.
        target: (S, …), as the loss takes it.
        vectors: (S, D), for a classifier that reads vectors.
    """

    texts: Sequence[str]
    target: Tensor
    vectors: Tensor | None = None


class SegmentClassifier(nn.Module):
    """Logits of segments.

    Args:
        make: `HeadContext.text_branch`.
        config: of the branch.
        outputs: number of logits.
        dropout: of what the branch reads, and of the vectors.
        vector_size: D of the vectors that come with the segments, such as `segment_embeddings`.
        vector_outputs: indices of the logits that read them, too; the others only read the branch.

    Raises:
        ModelError: the task's `needs` do not name `text_branch`.
    """

    def __init__(self, make: Callable[[BranchConfig], TextBranch] | None, config: BranchConfig,
                 outputs: int, dropout: float = 0.2, *, vector_size: int = 0,
                 vector_outputs: Sequence[int] = ()) -> None:
        super().__init__()
        if make is None:
            raise ModelError("there is no branch of the encoder: the task's `needs` must name "
                             "'text_branch'")
        self._make = make
        self.branch = make(config)
        self.output = nn.Linear(self.branch.hidden_size, outputs).to(self.branch.device)
        self.vector_outputs = list(vector_outputs)
        self.beside = nn.Linear(vector_size, len(self.vector_outputs), bias=False).to(
            self.branch.device) if self.vector_outputs else None
        self.dropout = dropout
        self.eval()

    def load(self, tensors: Mapping[str, Tensor], prefix: str = "") -> SegmentClassifier:
        """Take weights that `state` gave, and make ready to be used.

        Raises:
            ModelError: they are another classifier's.
        """
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()
               if name.startswith(prefix)}
        self.branch.load({name.removeprefix("branch."): tensor for name, tensor in own.items()
                          if name.startswith("branch.")})
        try:
            for part, layer in self._maps():
                layer.load_state_dict({name.removeprefix(part): tensor for name, tensor
                                       in own.items() if name.startswith(part)})
        except RuntimeError as error:
            raise ModelError(f"these weights are another classifier's: {error}") from error
        self.branch.merge()
        return self.eval().requires_grad_(False)

    def state(self, prefix: str = "") -> dict[str, Tensor]:
        """All weights of its own, for `vbkit.heads.save_head`."""
        return ({f"{prefix}{part}{name}": tensor for part, layer in self._maps()
                 for name, tensor in layer.state_dict().items()}
                | {f"{prefix}branch.{name}": tensor for name, tensor
                   in self.branch.state().items()})

    def _maps(self) -> list[tuple[str, nn.Linear]]:
        """The linear maps, each after what the names of its weights begin with."""
        return [("output.", self.output)] + (
            [] if self.beside is None else [("beside.", self.beside)])

    def forward(self, texts: Sequence[str], vectors: Tensor | None = None) -> Tensor:
        """Logits (S, outputs) of a transcript's segments; `vectors` is (S, D)."""
        return self.logits(self.branch.read(self.branch.tokenize(texts)), vectors)

    def logits(self, states: Tensor, vectors: Tensor | None = None) -> Tensor:
        """Logits (N, outputs) of what the branch reads.

        Args:
            states: (N, H), as `TextBranch.read` gives them.
            vectors: (N, D), for a classifier that reads vectors; others leave them.

        Raises:
            ValueError: there are no vectors, but it reads some.
        """
        logits: Tensor = self.output(states)
        if self.beside is not None:
            if vectors is None:
                raise ValueError("this classifier reads a vector of each segment, too")
            chosen = torch.tensor(self.vector_outputs, device=logits.device)
            logits = logits.index_add(1, chosen, self.beside(vectors.to(logits)))
        return logits

    def fit(self, train: Sequence[Passage], val: Sequence[Passage],
            loss: Callable[[Tensor, Tensor], Tensor], options: FitOptions, *,
            epochs: int = 12, shorter: float = 0.4) -> None:
        """Learn from passages, and be ready to be used with what was learnt.

        With `options.unfreeze` the branch learns too, from words of which some are left out.

        Args:
            train: what to learn from.
            val: what to choose the best pass by.
            loss: of logits (S, outputs) and targets (S, …).
            options: how.
            epochs: passes, where `options` says none.
            shorter: how often only a few segments of a passage are read, so that little context
                is an ordinary input; for a branch that learns.

        Raises:
            ModelError: the branch has fewer layers than `options.unfreeze` says.
            TrainingError: see `vbkit.model.fitting.fit`.
        """
        branch = self._make(self.branch.config)  # one that is not merged can learn
        branch.load(self.branch.state())
        own = branch.unfreeze(options.unfreeze)
        self.branch = branch.eval()
        learning = {f"branch.{number}": parameter for number, parameter in enumerate(own)}
        for part, layer in self._maps():
            layer.requires_grad_(True)
            learning |= {f"{part}{name}": p for name, p in layer.named_parameters()}
        rate = options.learning_rate or 1e-3
        ids = {part: [branch.tokenize(item.texts) for item in items]
               for part, items in (("train", train), ("val", val))}
        targets = {part: [item.target.to(branch.device) for item in items]
                   for part, items in (("train", train), ("val", val))}
        nothing = torch.zeros(0, device=branch.device)
        vectors = {part: [nothing.expand(len(item.texts), 0) if item.vectors is None
                          else item.vectors.to(branch.device) for item in items]
                   for part, items in (("train", train), ("val", val))}
        read: dict[str, list[Tensor]] = {}
        if not own:
            with torch.no_grad():
                read = {part: branch.read_all(rows) for part, rows in ids.items()}

        def logits_of(rows: Sequence[Tensor], beside: Sequence[Tensor]) -> Tensor:
            states, given = (F.dropout(torch.cat(list(each)), self.dropout, self.training)
                             for each in (rows, beside))
            return self.logits(states, given)

        def batch(chosen: Sequence[int], random: np.random.Generator) -> Tensor:
            if not own:
                return loss(logits_of([read["train"][i] for i in chosen],
                                      [vectors["train"][i] for i in chosen]),
                            torch.cat([targets["train"][i] for i in chosen]))
            cut, beside, wanted = [], [], []
            for i in chosen:
                first, last = _run(len(ids["train"][i]), shorter, random)
                cut.append([dropped(row, options.word_dropout, random)
                            for row in ids["train"][i][first:last]])
                beside.append(vectors["train"][i][first:last])
                wanted.append(targets["train"][i][first:last])
            return loss(logits_of(branch.read_all(cut), beside), torch.cat(wanted))

        def steps(random: np.random.Generator) -> Iterable[Callable[[], Tensor]]:
            order = random.permutation(len(train))
            self.train()
            for start in range(0, len(order), _PASSAGES):
                yield lambda start=start: batch(  # type: ignore[misc]
                    order[start : start + _PASSAGES].tolist(), random)

        @torch.no_grad()
        def validate() -> float:
            self.eval()
            rows = read["val"] if not own else branch.read_all(ids["val"])
            return float(loss(logits_of(rows, vectors["val"]), torch.cat(targets["val"])))

        fit(learning, steps, validate, options, epochs=epochs,
            rates=lambda name: rate / 2 if name.startswith("branch.") else rate)
        branch.merge()
        self.eval().requires_grad_(False)


def _run(count: int, shorter: float, random: np.random.Generator) -> tuple[int, int]:
    """All of `count` segments, or at random a few that follow each other."""
    if count < 2 or random.random() >= shorter:
        return 0, count
    first = int(random.integers(count))
    return first, min(count, first + int(random.choice([1, 1, 2, 4])))
