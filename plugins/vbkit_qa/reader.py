"""The reader: which run of transcript segments answers a question.

A small network over the axis of segments. It sees the similarity of the question with each segment
and its surroundings, shared words, and where the talk changes its subject; it gives each segment
the evidence that an answer starts, continues or ends there. A span's score is the sum over these,
as in a semi-Markov model (Sarawagi and Cohen, NeurIPS 2004, section 3), normalised over all spans.
The answer is the span of least expected loss, not the likeliest one: the one that most of the
probability overlaps by half or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbkit_qa.text import LEXICAL_FEATURES, SEGMENT_FEATURES

__all__ = [
    "EVIDENCE",
    "Reader",
    "ReaderConfig",
    "SpanEvidence",
    "Spans",
    "choose",
    "evidence_of",
    "overlap",
    "span_evidence",
    "spans_of",
]

_WINDOWS = (1, 3, 5, 9)
_BOUNDARY = 5

EVIDENCE = 3 * len(_WINDOWS) + 2 + LEXICAL_FEATURES + SEGMENT_FEATURES + _BOUNDARY
"""Number of columns that `evidence_of` gives."""


@dataclass(frozen=True)
class ReaderConfig:
    """Sizes of the reader.

    Args:
        dim: D of the shared space.
        content: size of the learned view of a segment's own content.
        match: number of learned products of question and segment.
        hidden: width.
        max_span: longest answer, in segments.
        dropout: during training.
    """

    dim: int = 384
    content: int = 16
    match: int = 16
    hidden: int = 64
    max_span: int = 24
    dropout: float = 0.3


@dataclass(frozen=True)
class Spans:
    """All spans of a transcript of S segments: first and last segment (N,), length ≤ max_span."""

    first: Tensor
    last: Tensor

    def __len__(self) -> int:
        return len(self.first)


def spans_of(n: int, max_span: int) -> Spans:
    """Every span of up to `max_span` of `n` segments."""
    first = torch.arange(n).repeat_interleave(min(max_span, n))
    last = first + torch.arange(min(max_span, n)).repeat(n)
    keep = last < n
    return Spans(first[keep], last[keep])


def longest_answer(n: int, max_span: int) -> int:
    """Longest answer looked for among `n` segments: a third of them, at most `max_span`."""
    return max(1, min(max_span, -(-n // 3)))


def overlap(a_first: Tensor, a_last: Tensor, b_first: Tensor, b_last: Tensor) -> Tensor:
    """Intersection over union of inclusive segment spans, broadcast."""
    both = torch.minimum(a_last, b_last) - torch.maximum(a_first, b_first) + 1
    either = torch.maximum(a_last, b_last) - torch.minimum(a_first, b_first) + 1
    return (both.clamp(min=0) / either).float()


def _window_mean(x: Tensor, width: int) -> Tensor:
    """Mean over `width` neighbours along the first axis of (S, D), shorter at the ends."""
    if width == 1 or len(x) == 0:
        return x
    half = width // 2
    total = F.pad(x.cumsum(0), (0, 0, 1, 0))
    at = torch.arange(len(x), device=x.device)
    low, high = (at - half).clamp(min=0), (at + half + 1).clamp(max=len(x))
    return (total[high] - total[low]) / (high - low)[:, None]


def _boundary(x: Tensor) -> Tensor:
    """(S, 5): how alike what comes before and after each segment is, for several reaches."""
    n = len(x)
    total = F.pad(x.cumsum(0), (0, 0, 1, 0))
    at = torch.arange(n, device=x.device)
    columns = []
    for reach in (1, 2, 4):
        low, high = (at - reach).clamp(min=0), (at + reach).clamp(max=n)
        before, after = total[at] - total[low], total[high] - total[at]
        columns.append(torch.where(at > 0, F.cosine_similarity(before, after, dim=1), 0.0))
    columns.append(torch.cat([columns[0][1:], columns[0].new_zeros(1)]))
    columns.append(torch.cat([columns[2][1:], columns[2].new_zeros(1)]))
    return torch.stack(columns, 1)


def evidence_of(questions: Tensor, keywords: Tensor, segments: Tensor, lexical: Tensor,
                structure: Tensor) -> Tensor:
    """What the reader sees of each question and segment, before anything learned.

    Args:
        questions: (Q, D) unit vectors.
        keywords: (Q, D) unit vectors of the questions' content words alone.
        segments: (S, D) unit vectors.
        lexical: (Q, S, LEXICAL_FEATURES).
        structure: (S, SEGMENT_FEATURES).

    Returns:
        (Q, S, EVIDENCE).
    """
    n_questions = len(questions)
    windows = [F.normalize(_window_mean(segments, width), dim=-1) for width in _WINDOWS]
    raw = torch.stack([query @ w.T for query in (questions, keywords) for w in windows], -1)
    spread = (raw - raw.mean(1, keepdim=True)) / (raw.std(1, keepdim=True, correction=0) + 0.03)
    best = (raw[..., 1] == raw[..., 1].amax(1, keepdim=True)).float()
    rank = raw[..., 0].argsort(1, descending=True).argsort(1).float().add(1).log()
    return torch.cat([
        raw[..., :len(_WINDOWS)] * 3, spread, best[..., None], rank[..., None], lexical,
        structure.expand(n_questions, -1, -1),
        _boundary(segments).expand(n_questions, -1, -1),
    ], -1)


class _Block(nn.Module):
    """A residual convolution over segments, with layer normalisation before it."""

    def __init__(self, width: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, S, W) to (N, S, W)."""
        y = self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.dropout(F.gelu(y))


class Reader(nn.Module):
    """See the module's description."""

    def __init__(self, config: ReaderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ReaderConfig()
        self.content = nn.Linear(config.dim, config.content)
        self.match = nn.Linear(config.dim, config.match, bias=False)
        inputs = EVIDENCE + config.content + config.match
        self.drop = nn.Dropout(config.dropout)
        self.enter = nn.Linear(inputs, config.hidden)
        self.blocks = nn.ModuleList(
            _Block(config.hidden, dilation, config.dropout) for dilation in (1, 2, 4, 1)
        )
        self.norm = nn.LayerNorm(config.hidden)
        self.leave = nn.Linear(config.hidden, 3)
        self.length = nn.Parameter(torch.zeros(config.max_span))

    def forward(self, questions: Tensor, segments: Tensor, evidence: Tensor) -> Tensor:
        """Evidence for start, inside and end.

        Args:
            questions: (Q, D) unit vectors.
            segments: (S, D) unit vectors.
            evidence: (Q, S, EVIDENCE), from `evidence_of`.

        Returns:
            (Q, S, 3).
        """
        parts = [
            evidence,
            self.content(segments).expand(len(questions), -1, -1),
            self.match(questions)[:, None] * self.match(segments) * 8,
        ]
        x = self.enter(self.drop(torch.cat(parts, -1)))
        for block in self.blocks:
            x = block(x)
        return self.leave(self.norm(x))

    def score_spans(self, evidence: Tensor, spans: Spans) -> Tensor:
        """Scores of spans before normalisation: (Q, S, 3) to (Q, N)."""
        start, inside, end = evidence.unbind(-1)
        total = F.pad(inside.cumsum(1), (1, 0))
        return (start[:, spans.first] + end[:, spans.last]
                + total[:, spans.last + 1] - total[:, spans.first]
                + self.length[spans.last - spans.first])


def choose(scores: Tensor, spans: Spans, k: int, iou: float = 0.5,
           beam: int = 300) -> list[tuple[int, int, float]]:
    """The `k` best spans that share little with each other, by expected overlap.

    Args:
        scores: (N,) scores of the spans before normalisation.
        spans: the spans.
        k: how many.
        iou: two spans agree where their intersection over union reaches this.
        beam: only the likeliest spans are looked at.

    Returns:
        Up to k tuples of first segment, last segment and the probability mass that agrees.
    """
    probability = scores.softmax(0)
    keep = probability.topk(min(beam, len(probability))).indices
    first, last, p = spans.first[keep], spans.last[keep], probability[keep]
    agree = overlap(first[:, None], last[:, None], first, last)
    mass = (agree >= iou).float() @ p
    # Ties and near ties go to the span that agrees best on average.
    mass = mass + 0.02 * (agree @ p)
    out: list[tuple[int, int, float]] = []
    free = torch.ones(len(keep), dtype=torch.bool)
    while len(out) < k and bool(free.any()):
        best = int(torch.where(free, mass, -1.0).argmax())
        out.append((int(first[best]), int(last[best]), float(mass[best])))
        shared = torch.minimum(last, last[best]) - torch.maximum(first, first[best]) + 1
        free &= shared <= 0.3 * torch.minimum(last - first, last[best] - first[best]).add(1)
    return out


@dataclass(frozen=True)
class SpanEvidence:
    """What the calibration of an answer's score sees.

    Args:
        span: what says whether these are the right segments, if the transcript answers at all:
            log odds of the span's share of probability, and its likeness to the question.
        subject: what says whether the transcript answers: nothing that depends on its length.
        best: the segment that belongs to the answer most surely.
    """

    span: list[float]
    subject: list[float]
    best: int


def span_evidence(first: int, last: int, mass: float, scores: Tensor, spans: Spans,
                  question: Tensor, segments: Tensor, lexical: Tensor) -> SpanEvidence:
    """The evidence for one answer.

    Args:
        first, last: the span, inclusive.
        mass: its share of probability, from `choose`.
        scores: (N,) scores of all spans.
        spans: the spans.
        question: (D,) unit vector.
        segments: (S, D) unit vectors.
        lexical: (S, LEXICAL_FEATURES) for this question.
    """
    probability = scores.softmax(0)
    inside = probability.new_zeros(len(segments) + 1)
    inside.index_add_(0, spans.first, probability)
    inside.index_add_(0, spans.last + 1, -probability)
    best = first + int(inside.cumsum(0)[first: last + 1].argmax())
    nearest = float((segments[first: last + 1] @ question).amax())
    window = float(F.normalize(segments[first: last + 1].mean(0), dim=0) @ question)
    shared = lexical[first: last + 1]
    words = [float(shared[:, 0].amax()), float(shared[:, 2].amax())]
    bounded = min(max(mass, 0.01), 0.99)
    return SpanEvidence([math.log(bounded / (1 - bounded)), window, *words],
                        [nearest, window, *words], best)
