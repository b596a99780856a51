"""Whether text and video belong together: the alignment head on true and shuffled pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vbkit.errors import ManifestError, ModelError
from vbkit.evaluation.clips import ClipSequence, visual_inputs
from vbkit.evaluation.heads import pretraining_model

if TYPE_CHECKING:
    from vbkit.engine.encoder import Encoder

__all__ = ["AlignmentScores", "alignment", "derangement"]

_BATCH = 64


@dataclass(frozen=True)
class AlignmentScores:
    """How well true pairs are told from shuffled ones.

    Args:
        metrics: `accuracy` (0–1; 0.5 is chance) and `roc_auc`.
        predictions: a row for each pair.
    """

    metrics: dict[str, float]
    predictions: list[dict[str, Any]]


def derangement(count: int, seed: int = 0) -> np.ndarray:
    """A random cyclic permutation (Sattolo, 1986), so that nothing stays in its place.

    Args:
        count: at least 2.
        seed: of the choice.
    """
    if count < 2:
        raise ValueError("a derangement needs at least two items")
    generator = np.random.default_rng(seed)
    order = np.arange(count)
    for i in range(count - 1, 0, -1):
        j = int(generator.integers(i))
        order[i], order[j] = order[j], order[i]
    return order


@torch.no_grad()
def alignment(encoder: Encoder, videos: Sequence[ClipSequence], *,
              seed: int = 0) -> AlignmentScores:
    """Every caption with its own video, and every video with as many captions of another.

    Args:
        encoder: of a model with an alignment head.
        videos: at least two.
        seed: of the shuffling.

    Raises:
        ModelError: the model has no alignment head, or gives values that are not finite.
        ManifestError: there are fewer than two videos.
    """
    bundle = encoder.bundle
    model = pretraining_model(bundle, "alignment_head")
    if len(videos) < 2:
        raise ManifestError("alignment needs at least two videos with captions, to shuffle them")
    pairs: list[tuple[ClipSequence, str, bool]] = []
    for video, index in zip(videos, derangement(len(videos), seed), strict=True):
        other = videos[index].captions
        for i, caption in enumerate(video.captions):
            pairs.append((video, caption, True))
            pairs.append((video, other[i % len(other)], False))
    processor, config = bundle.processor, bundle.config
    limit = config.max_text_length - 2
    ids = [row[:limit] for row in processor.tokenize([caption for _, caption, _ in pairs])]
    scores = np.zeros(len(pairs))
    order = sorted(range(len(pairs)), key=lambda i: len(ids[i]))  # so that little is padded
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        rows = [[config.cls_token_id, *ids[i], config.video_token_id] for i in chosen]
        input_ids, mask = (x.to(bundle.device) for x in processor.pad(rows))
        # no words are asked for, so none are scored
        labels = torch.full_like(input_ids, -100)
        visual = visual_inputs(encoder, [pairs[i][0] for i in chosen])
        logits = model(input_ids, mask, labels=labels, **visual).alignment_logits
        scores[chosen] = logits.double().cpu().numpy()
    if not np.isfinite(scores).all():
        raise ModelError(f"model {bundle.name} gives alignment scores that are not finite")
    true = np.array([is_true for _, _, is_true in pairs])
    from sklearn.metrics import roc_auc_score

    return AlignmentScores(
        {"accuracy": float(((scores > 0) == true).mean()),
         "roc_auc": float(roc_auc_score(true, scores))},
        [{"video_id": video.video_id, "text": text, "aligned": is_true, "score": float(score)}
         for (video, text, is_true), score in zip(pairs, scores, strict=True)])
