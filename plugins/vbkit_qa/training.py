"""How the readers of transcripts learn from a user's own questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vbkit.heads import FitOptions
from vbkit.model.fitting import fit, platt
from vbkit_qa.calibration import Logistic
from vbkit_qa.reader import Reader, Spans, overlap

__all__ = ["Answered", "Asked", "fit_reader", "recalibrated", "span_loss"]

_QUESTIONS = 16
"""Questions to a transcript that are learnt from at once."""
_LEAST = 30
"""Fewer validation questions calibrate nothing."""
_PULL = 4.0
"""How strongly a calibration is drawn to the one it was, in questions."""


@dataclass(frozen=True)
class Asked:
    """What a reader sees of Q questions to a transcript of S segments.

    Args:
        place: (S,) int64, the numbers of the segments that are read.
        asked: (Q, D) unit vectors.
        segments: (S, D) unit vectors.
        lexical: (Q, S, LEXICAL_FEATURES).
        evidence: (Q, S, EVIDENCE).
        spans: the spans that may be answers.
    """

    place: np.ndarray
    asked: Tensor
    segments: Tensor
    lexical: Tensor
    evidence: Tensor
    spans: Spans


@dataclass(frozen=True)
class Answered:
    """Questions to a transcript with their answers: (Q, 2) int64, first and last segment read."""

    given: Asked
    answers: Tensor

    def is_right(self, question: int, first: int, last: int) -> bool:
        """Whether a span overlaps the answer by half or more."""
        begin, end = self.answers[question].tolist()
        shared = min(last, end) - max(first, begin) + 1
        return shared >= 0.5 * (max(last, end) - min(first, begin) + 1)


def span_loss(reader: Reader, given: Asked, agree: Tensor, chosen: Tensor) -> Tensor:
    """Cross-entropy of the probability of spans that agree by half or more with the answer.

    Args:
        agree: (Q, N), intersection over union of each span with each answer.
        chosen: which questions; those that no span agrees with do not count.
    """
    scores = reader.score_spans(
        reader(given.asked[chosen], given.segments, given.evidence[chosen]), given.spans)
    log_p, agree = scores.log_softmax(1), agree[chosen]
    target = torch.where(agree >= 0.5, agree**2, 0.0)
    known = target.sum(1) > 0
    target = target / target.sum(1, keepdim=True).clamp(min=1e-6)
    likeliest = -(target * log_p).sum(1)
    agreeing = -torch.logsumexp(log_p.masked_fill(agree < 0.5, -1e4), 1)
    return (0.3 * likeliest + 0.7 * agreeing)[known].sum() / max(1, int(known.sum()))


def fit_reader(reader: Reader, train: Sequence[Answered], val: Sequence[Answered],
               options: FitOptions) -> None:
    """Train a reader, which ends as it was at the least validation loss."""
    agree = {id(item): overlap(item.given.spans.first, item.given.spans.last,
                               item.answers[:, :1], item.answers[:, 1:]).to(item.given.asked)
             for item in (*train, *val)}
    learning = {name: parameter.requires_grad_(True)
                for name, parameter in reader.named_parameters()}

    def loss(item: Answered, chosen: np.ndarray) -> Tensor:
        return span_loss(reader, item.given, agree[id(item)], torch.from_numpy(chosen))

    def steps(random: np.random.Generator) -> Iterable[Callable[[], Tensor]]:
        reader.train()
        for index in random.permutation(len(train)):
            item = train[index]
            order = random.permutation(len(item.answers))
            for start in range(0, len(order), _QUESTIONS):
                yield lambda item=item, start=start, order=order: loss(  # type: ignore[misc]
                    item, order[start : start + _QUESTIONS])

    @torch.no_grad()
    def validate() -> float:
        reader.eval()
        losses = [float(loss(item, np.arange(len(item.answers)))) for item in val]
        return float(np.average(losses, weights=[len(item.answers) for item in val]))

    fit(learning, steps, validate, options, epochs=12, decay=0.05,
        rates=lambda name: options.learning_rate or 5e-4)
    reader.eval().requires_grad_(False)


def recalibrated(score: Logistic, odds: Sequence[float], right: Sequence[bool]) -> Logistic:
    """A score's logistic function of log odds, fitted to which answers were right.

    It is drawn to what it was, and stays as it is where fewer than 30 answers tell.
    """
    if len(odds) < _LEAST:
        return score
    weight, bias = platt(torch.tensor(odds), torch.tensor(right), (score.weight[0], score.bias),
                         _PULL)
    return Logistic((weight,), bias)
