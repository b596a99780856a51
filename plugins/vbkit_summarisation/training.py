"""How the selector learns from a user's own summaries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vbkit.heads import FitOptions
from vbkit.model.branch import TextBranch
from vbkit.model.fitting import dropped, fit
from vbkit_summarisation.selector import Selector, Window, windows_of

__all__ = ["Summarised", "fit_selector"]

_BATCH = 16
_LISTWISE = 0.3
"""Weight of the loss that compares a window's sentences with each other."""


@dataclass(frozen=True)
class Summarised:
    """A transcript's S sentences, and which of them its summary has, (S,) bool."""

    texts: Sequence[str]
    selected: np.ndarray


def fit_selector(selector: Selector, branch: TextBranch, rarity: Mapping[str, float],
                 train: Sequence[Summarised], val: Sequence[Summarised],
                 options: FitOptions) -> None:
    """Train the selector, and the upper layers of its branch with `options.unfreeze`."""
    own = branch.unfreeze(options.unfreeze)
    branch.eval()
    learning = {f"branch.{number}": parameter for number, parameter in enumerate(own)}
    learning |= {f"selector.{name}": parameter.requires_grad_(True)
                 for name, parameter in selector.named_parameters()}
    parts: dict[str, list[tuple[Window, Tensor]]] = {}
    for part, items in (("train", train), ("val", val)):
        parts[part] = [
            (window, torch.from_numpy(
                item.selected[window.first : window.first + len(window.ids)]).float())
            for item in items for window in windows_of(branch, item.texts, rarity)]
    with torch.no_grad():
        read = {part: branch.read_all([window.ids for window, _ in rows])
                for part, rows in parts.items() if part == "val" or not own}

    def loss(part: str, chosen: Sequence[int], random: np.random.Generator | None) -> Tensor:
        windows = [parts[part][i] for i in chosen]
        if own and random is not None:
            sentences = branch.read_all([[dropped(row, options.word_dropout, random)
                                          for row in window.ids] for window, _ in windows])
        elif own:
            sentences = branch.read_all([window.ids for window, _ in windows])
        else:
            sentences = [read[part][i] for i in chosen]
        logits = selector.judge(sentences, [window.plain for window, _ in windows])
        losses = []
        for row, (_, target) in zip(logits, windows, strict=True):
            target = target.to(row)
            value = F.binary_cross_entropy_with_logits(row, target)
            if target.any():
                value = value - _LISTWISE * (target * row.log_softmax(0)).sum() / target.sum()
            losses.append(value)
        return torch.stack(losses).mean()

    def steps(random: np.random.Generator) -> Iterable[Callable[[], Tensor]]:
        order = random.permutation(len(parts["train"]))
        selector.train()
        for start in range(0, len(order), _BATCH):
            yield lambda start=start: loss(  # type: ignore[misc]
                "train", order[start : start + _BATCH].tolist(), random)

    @torch.no_grad()
    def validate() -> float:
        selector.eval()
        count = len(parts["val"])
        return float(np.mean([float(loss("val", range(start, min(start + _BATCH, count)), None))
                              for start in range(0, count, _BATCH)]))

    rate = options.learning_rate or 5e-4
    fit(learning, steps, validate, options, epochs=12,
        rates=lambda name: rate / 2 if name.startswith("branch.") else rate)
    selector.eval().requires_grad_(False)
    branch.merge()
