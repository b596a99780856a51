"""Logistic calibration, in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Logistic", "log_odds"]


@dataclass(frozen=True)
class Logistic:
    """A probability from a few measurements: the logistic function of their weighted sum.

    Fitted on material that the scores were not trained on, in the manner of Platt ("Probabilistic
    outputs for support vector machines", 1999).

    Args:
        weight: one a measurement.
        bias: the constant.
    """

    weight: tuple[float, ...]
    bias: float

    def __call__(self, values: Sequence[float]) -> float:
        """The probability, 0–1."""
        total = self.bias + sum(w * x for w, x in zip(self.weight, values, strict=True))
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Logistic:
        """What `to_settings` wrote."""
        return cls(tuple(map(float, settings["weight"])), float(settings["bias"]))

    def to_settings(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def log_odds(probability: float) -> float:
    """The logit of a probability, which is kept off 0 and 1."""
    bounded = min(max(probability, 1e-4), 1 - 1e-4)
    return math.log(bounded / (1 - bounded))
