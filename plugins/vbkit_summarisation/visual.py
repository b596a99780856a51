"""What a video shows: scenes, key clips, and names for them where the evidence is strong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Concept", "Concepts", "load_phrases", "pick_clips", "scenes", "time_phrase"]


def load_phrases() -> list[tuple[str, tuple[str, ...]]]:
    """The vocabulary: phrases, each with the caption words that would bear it out."""
    text = files("vbkit_summarisation").joinpath("concepts.txt").read_text(encoding="utf-8")
    out = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            phrase, _, proof = line.partition("|")
            out.append((phrase.strip(), tuple(proof.replace('"', "").split())))
    return out

_CANDIDATES = 600

ANYONE = "a person"
"""The phrase that says least of people: left out beside one that says more."""


@dataclass(frozen=True)
class Concept:
    """A phrase that a picture may be said to show, with the probability that it does."""

    index: int
    phrase: str
    probability: float


def _of_people(phrase: str) -> bool:
    return (phrase != ANYONE and phrase.split()[:2] in (
        ["a", "person"], ["several", "people"], ["a", "crowd"], ["children", "playing"])) or (
        phrase.startswith("people "))


class Concepts:
    """Names pictures, zero-shot in the space that video and text share.

    A phrase's similarity to a picture becomes a probability by a logistic function of its own,
    fitted where captions say often enough whether it holds.

    Args:
        phrases: the K phrases.
        embeddings: (K, D) unit vectors.
        slope, bias: (K,) of the logistic functions.
    """

    def __init__(self, phrases: Sequence[str], embeddings: Tensor, slope: Tensor,
                 bias: Tensor) -> None:
        self.phrases = list(phrases)
        self.embeddings = F.normalize(embeddings, dim=-1)
        self.slope, self.bias = slope, bias
        self._alike = self.embeddings @ self.embeddings.T

    def probabilities(self, pictures: Tensor) -> Tensor:
        """(N, D) unit vectors to (N, K)."""
        return torch.sigmoid((pictures @ self.embeddings.T) * self.slope + self.bias)

    def name(self, pictures: Tensor, least: float, most: int = 2) -> list[Concept]:
        """Up to `most` different phrases for a run of clips, the surest first.

        Args:
            pictures: (N, D) clips of one scene.
            least: smallest probability, of the mean over the clips.
        """
        if not len(pictures):
            return []
        p = self.probabilities(pictures).mean(0)
        found: list[Concept] = []
        for index in p.argsort(descending=True).tolist():
            if float(p[index]) < least or len(found) == most:
                break
            told = {other.phrase for other in found}
            if self.phrases[index] == ANYONE and any(map(_of_people, told)):
                continue
            if ANYONE in told and _of_people(self.phrases[index]):
                found = [other for other in found if other.phrase != ANYONE]
            if all(float(self._alike[index, other.index]) < 0.55 for other in found):
                found.append(Concept(index, self.phrases[index], float(p[index])))
        return found


def scenes(clips: Tensor, alike: float = 0.75, most: int | None = None) -> list[tuple[int, int]]:
    """Runs of clips (start, end) that look alike; neighbours are merged, the likest first.

    Args:
        clips: (C, D) unit vectors.
        alike: runs stay apart where the cosine of their means is below this.
        most: merge further until there are at most so many.
    """
    n = len(clips)
    if n == 0:
        return []
    sums = list(clips.float().cpu())
    runs = [(i, i + 1) for i in range(n)]
    near = F.cosine_similarity(clips[:-1], clips[1:], dim=1).cpu() if n > 1 else torch.zeros(0)
    while len(near):
        best = int(near.argmax())
        if float(near[best]) < alike and (most is None or len(runs) <= most):
            break
        runs[best] = (runs[best][0], runs[best + 1][1])
        sums[best] = sums[best] + sums[best + 1]
        del runs[best + 1], sums[best + 1]
        near = torch.cat([near[:best], near[best + 1:]])
        for left in (best - 1, best):
            if 0 <= left < len(near):
                near[left] = F.cosine_similarity(sums[left], sums[left + 1], dim=0)
    return runs


def pick_clips(clips: Tensor, k: int) -> tuple[list[int], Tensor]:
    """The `k` clips that together stand for all clips best, and how well each stands for them.

    Greedy facility location, which is within 1 − 1/e of the best choice (Nemhauser, Wolsey and
    Fisher, 1978), as in submodular video summarisation (Gygli et al., CVPR 2015).

    Args:
        clips: (C, D) unit vectors.
        k: how many.

    Returns:
        indices in the order picked; and scores (C,), 0–1: mean likeness to all clips.
    """
    n = len(clips)
    if n == 0:
        return [], torch.zeros(0)
    clips = clips.float().cpu()
    scores = (clips @ clips.mean(0)).clamp(0, 1)
    # Every clip may be picked in a short video, an even sample of them in a long one.
    candidates = torch.linspace(0, n - 1, min(n, _CANDIDATES)).round().long()
    near = (clips @ clips[candidates].T).clamp(0, 1)
    covered = torch.zeros(n)
    picked: list[int] = []
    for _ in range(min(k, len(candidates))):
        gain = (near - covered[:, None]).clamp(min=0).sum(0)
        gain[picked] = -1.0
        best = int(gain.argmax())
        picked.append(best)
        covered = torch.maximum(covered, near[:, best])
    return [int(candidates[i]) for i in picked], scores


def time_phrase(start_s: float, end_s: float) -> str:
    """"4.5–7.5 s" or, beyond a minute, "1:04–1:12"."""

    def clock(seconds: float) -> str:
        whole = round(seconds)
        minutes, second = divmod(whole, 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"

    if end_s < 60:
        return f"{round(start_s, 1):g}–{round(end_s, 1):g} s"
    return f"{clock(start_s)}–{clock(end_s)}"
