"""Training of a head's small model, and of its branch of the encoder, on labelled videos."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from vbkit.errors import TrainingError

if TYPE_CHECKING:
    from vbkit.heads import FitOptions

__all__ = ["dropped", "fit", "platt", "runs"]

CHECKPOINT = "checkpoint.safetensors"
"""File of a training's state, in the folder of its checkpoint."""


def fit(
    learning: Mapping[str, nn.Parameter],
    steps: Callable[[np.random.Generator], Iterable[Callable[[], Tensor]]],
    validate: Callable[[], float],
    options: FitOptions,
    *,
    epochs: int,
    rates: Callable[[str], float],
    patience: int = 4,
    decay: float = 0.01,
) -> int:
    """AdamW with early stopping; the parameters end as they were at the least validation loss.

    What is drawn in a pass follows from the seed and its number, so that a training that goes on
    from its checkpoint ends as one that was never cut short.

    Args:
        learning: the parameters by name.
        steps: a pass over the training data: for each batch, a function that gives its loss.
        validate: the loss on validation data, by which the best pass is chosen.
        options: seed, epochs, checkpoint and where numbers go.
        epochs: passes, where `options` says none.
        rates: the learning rate of a parameter.
        patience: training stops after so many passes without a lower validation loss.
        decay: of weights.

    Returns:
        The best pass; 0 where none was better than the beginning.

    Raises:
        TrainingError: the loss is not finite, or a checkpoint is of another training.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in learning.items():
        groups.setdefault(rates(name), []).append(parameter)
    optimiser = torch.optim.AdamW(
        [{"params": found, "lr": rate, "weight_decay": decay} for rate, found in groups.items()])
    last = options.epochs or epochs
    best, best_epoch, first = validate(), 0, 1
    kept = {name: parameter.detach().clone() for name, parameter in learning.items()}
    options.logged({"step": 0, "val_loss": best})
    if options.checkpoint is not None and (options.checkpoint / CHECKPOINT).exists():
        first, best, best_epoch, kept = _resume(options.checkpoint, learning, optimiser)
    for epoch in range(first, last + 1):
        if epoch - best_epoch > patience:
            break
        torch.manual_seed(options.seed * 100_003 + epoch)
        losses = []
        for loss_of in steps(np.random.default_rng([options.seed, epoch])):
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of()
            if not torch.isfinite(loss.detach()):
                raise TrainingError("the training's loss is not finite; try a lower "
                                    "--learning-rate")
            loss.backward()
            nn.utils.clip_grad_norm_(learning.values(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
        value = validate()
        options.logged({"step": epoch, "val_loss": value,
                        "train_loss": float(np.mean(losses)) if losses else 0.0})
        if value < best:
            best, best_epoch = value, epoch
            kept = {name: parameter.detach().clone() for name, parameter in learning.items()}
        if options.checkpoint is not None:
            _keep(options.checkpoint, learning, optimiser, epoch, best, best_epoch, kept)
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(kept[name])
    return best_epoch


def _keep(folder: Path, learning: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer,
          epoch: int, best: float, best_epoch: int, kept: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    from vbkit.files import renamed

    tensors = {f"now.{name}": p.detach() for name, p in learning.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in kept.items()}
    for name, parameter in learning.items():
        for part, value in optimiser.state.get(parameter, {}).items():
            tensors[f"adam.{part}.{name}"] = torch.as_tensor(value)
    data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                {"epoch": json.dumps([epoch, best, best_epoch])})
    with renamed(folder / CHECKPOINT) as path:
        path.write_bytes(data)


def _resume(folder: Path, learning: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer,
            ) -> tuple[int, float, int, dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT
    try:
        with safe_open(path, framework="pt") as file:
            epoch, best, best_epoch = json.loads(file.metadata()["epoch"])
            kept: dict[str, Tensor] = {}
            with torch.no_grad():
                for name, parameter in learning.items():
                    parameter.copy_(file.get_tensor(f"now.{name}"))
                    kept[name] = file.get_tensor(f"best.{name}").to(parameter.device)
                    optimiser.state[parameter] = {
                        part: file.get_tensor(f"adam.{part}.{name}").to(
                            "cpu" if part == "step" else parameter.device)
                        for part in ("step", "exp_avg", "exp_avg_sq")}
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"{path} is no checkpoint of this training ({error}); remove it to "
                            "begin anew") from error
    return epoch + 1, best, best_epoch, kept


def dropped(ids: Sequence[int], share: float, random: np.random.Generator) -> list[int]:
    """Word dropout: word pieces left out at random, at least one kept."""
    if share <= 0 or len(ids) < 2:
        return list(ids)
    keep = random.random(len(ids)) >= share
    keep[random.integers(len(ids))] = True
    return [piece for piece, kept in zip(ids, keep, strict=True) if kept]


def runs(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Batches of indices, alike in length, that take `room` word pieces with their padding.

    What is longer than `room` is alone.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in order.tolist():
        if batch and (len(batch) + 1) * lengths[index] > room:
            batches.append(batch)
            batch = []
        batch.append(index)
    return [*batches, batch] if batch else batches


def platt(logits: Tensor, labels: Tensor, start: tuple[float, float] = (1.0, 0.0),
          pull: float = 1.0) -> tuple[float, float]:
    """Slope and offset by which a sigmoid of logits says how often a label is 1 (Platt, 1999).

    Args:
        logits: (N,) floats.
        labels: (N,) 0 or 1.
        start: slope and offset that are drawn to, as there may be few labels.
        pull: how strongly, as so many labels.
    """
    x, y = logits.detach().double(), labels.double()
    before = torch.tensor(start, dtype=torch.double)
    values = before.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([values], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(
            values[0] * x + values[1], y, reduction="sum")
        loss = loss + pull * (values - before).square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)
    slope, offset = values.detach().tolist()
    return slope, offset
