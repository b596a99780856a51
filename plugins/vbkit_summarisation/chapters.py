"""Chapters of a long video: where the talk, or the picture, changes its subject."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["boundaries", "title_of"]


def boundaries(embeddings: Tensor, times: np.ndarray, least_s: float, reach: int = 8) -> list[int]:
    """Indices at which a chapter begins, 0 first.

    TextTiling (Hearst, Computational Linguistics 1997) on embeddings: a chapter begins where the
    similarity of what comes before and after has a dip whose depth is unusual for this video.

    Args:
        embeddings: (N, D) unit vectors of segments or clips.
        times: (N, 2) start and end (s).
        least_s: shortest chapter (s).
        reach: how many items to compare on each side.
    """
    n = len(embeddings)
    if n < 4:
        return [0] if n else []
    total = F.pad(embeddings.float().cpu().cumsum(0), (0, 0, 1, 0))
    at = torch.arange(1, n)
    before = total[at] - total[(at - reach).clamp(min=0)]
    after = total[(at + reach).clamp(max=n)] - total[at]
    near = F.cosine_similarity(before, after, dim=1).numpy()
    left = np.maximum.accumulate(near)
    right = np.maximum.accumulate(near[::-1])[::-1]
    # The peaks on both sides are looked for nearby, not over the whole video.
    for i in range(len(near)):
        left[i] = near[max(0, i - 2 * reach): i + 1].max()
        right[i] = near[i: i + 2 * reach + 1].max()
    depth = left + right - 2 * near
    floor = depth.mean() + 0.5 * depth.std()
    chosen = [0]
    end_s = float(times[-1, 1])
    for i in np.argsort(-depth, kind="stable").tolist():
        if depth[i] <= floor or depth[i] <= 0.05:
            break
        start_s = float(times[i + 1, 0])
        apart = min(abs(start_s - float(times[j, 0])) for j in chosen)
        if apart >= least_s and end_s - start_s >= least_s:
            chosen.append(i + 1)
    return sorted(chosen)


def title_of(texts: Sequence[str], embeddings: Tensor, scores: Sequence[float],
             longest: int = 80) -> str:
    """The sentence that stands for a chapter: central, telling, and short.

    Args:
        texts: the chapter's segments.
        embeddings: (N, D) unit vectors.
        scores: (N,) from the selector, 0–1.
        longest: longer sentences are cut at a word, with an ellipsis.
    """
    centre = F.normalize(embeddings.float().mean(0), dim=0)
    central = (embeddings.float() @ centre).cpu()

    def worth(i: int) -> float:
        length = len(texts[i].split())
        return float(central[i]) + 0.5 * float(scores[i]) - (
            0.3 if length < 4 else 0.01 * max(0, length - 12))

    best = " ".join(texts[max(range(len(texts)), key=worth)].split())
    if len(best) > longest:
        best = best[: longest - 1].rsplit(" ", 1)[0].rstrip(",;:.") + "…"
    return best.rstrip(".") if best.count(".") <= 1 else best
