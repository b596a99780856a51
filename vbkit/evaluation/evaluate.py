"""`vbkit evaluate`, from Python: a model, a manifest of captioned videos, numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vbkit.engine.windows import spread
from vbkit.errors import MediaError, ModelError, UsageError
from vbkit.evaluation.alignment import alignment
from vbkit.evaluation.captioning import captioning, check_captioning
from vbkit.evaluation.clips import ClipSequence, read_clips
from vbkit.evaluation.cloze import check_cloze, load_cloze, masked_words, zero_shot_cloze
from vbkit.evaluation.examples import read_captioned
from vbkit.evaluation.heads import pretraining_model
from vbkit.evaluation.retrieval import retrieval_ranks, retrieval_scores, text_to_text_scores
from vbkit.runs import Failure

if TYPE_CHECKING:
    from vbkit.engine import Engine

__all__ = ["EVALUATIONS", "Evaluation", "evaluate"]

EVALUATIONS = ("cloze", "retrieval", "caption", "alignment")

_TEXT_POOL = 1000



@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Args:
        task: one of `EVALUATIONS`, or a task.
        model: the model's name.
        n_videos: how many were evaluated.
        n_captions: theirs; None where captions are not what is evaluated.
        metrics: by name; None for what cannot be computed here.
        predictions: rows of what the model said, for a closer look.
        failures: videos that could not be read.
        notes: what the reader of the numbers should know.
    """

    task: str
    model: str
    n_videos: int
    n_captions: int | None
    metrics: dict[str, Any]
    predictions: list[dict[str, Any]] = field(default_factory=list)
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """What `vbkit evaluate` prints: one flat object, its metrics last."""
        return {
            "task": self.task, "model": self.model, "n_videos": self.n_videos,
            **({} if self.n_captions is None else {"n_captions": self.n_captions}),
            "n_failed": len(self.failures), **self.metrics,
            **({"notes": list(self.notes)} if self.notes else {}),
        }


def evaluate(
    engine: Engine,
    task: str,
    manifest: str | Path,
    *,
    limit: int | None = None,
    seed: int = 0,
    words: str | Path | None = None,
    template: str | None = None,
    num_beams: int = 4,
    max_new_tokens: int | None = None,
    progress: Callable[[int, int, str, bool], None] = lambda done, total, video_id, ok: None,
    warned: Callable[[Failure], None] = lambda failure: None,
) -> Evaluation:
    """Evaluate an engine's model on captioned videos; each video is read once.

    Args:
        engine: the model, and how videos are read.
        task: one of `EVALUATIONS`.
        manifest: as `examples.read_captioned` takes it.
        limit: only so many videos, the first ones.
        seed: of masking (cloze) and shuffling (alignment).
        words, template: of the cloze, as `cloze.load_cloze` takes them.
        num_beams, max_new_tokens: of captioning, as `captioning.captioning` takes them.
        progress: called after each video that was read with how many are done, how many there
            are, its id, and whether it could be read.
        warned: called where a part of a video cannot be read.

    Raises:
        UsageError: the task is unknown, or an argument is wrong.
        ManifestError: the manifest cannot be used.
        ModelError: the model lacks what the task needs.
        MediaError: not one video could be read.
    """
    bundle = engine.bundle
    if task not in EVALUATIONS:
        raise UsageError(f"no evaluation {task!r}; known are {', '.join(EVALUATIONS)}")
    # What is missing is said before any video is read.
    found = read_captioned(manifest, limit)
    gaps = load_cloze(bundle, words, template) if task == "cloze" else None
    if gaps is not None:
        check_cloze(bundle, gaps)
    elif task == "alignment":
        pretraining_model(bundle, "alignment_head")
    elif task == "caption":
        check_captioning(bundle, max_new_tokens)

    failures = list(found.failures)
    seen: list[ClipSequence] = []
    embeddings: list[Tensor] = []
    total = len(found.examples)
    failed_before = len(failures)

    def failed(failure: Failure) -> None:
        failures.append(failure)
        progress(len(seen) + len(failures) - failed_before, total, failure.video_id, False)

    for clips in read_clips(engine, found.examples, failed, warned):
        if task == "retrieval":
            embeddings.append(_video_embedding(engine, clips.clip_features))
        seen.append(_thinned(engine, clips, keep=task != "retrieval"))
        progress(len(seen) + len(failures) - failed_before, total, clips.video_id, True)
    if not seen:
        first = failures[0]
        raise MediaError(f"{manifest}: none of its {len(failures)} videos could be read; the "
                         f"first: {first.video_id}: {first.message}")
    metrics: dict[str, Any]
    predictions: list[dict[str, Any]]
    notes: tuple[str, ...] = ()
    if gaps is not None:
        scores = zero_shot_cloze(engine.encoder, seen, gaps)
        metrics = {**scores.metrics, **masked_words(engine.encoder, seen, seed=seed)}
        predictions = scores.predictions
    elif task == "alignment":
        pairs = alignment(engine.encoder, seen, seed=seed)
        metrics, predictions = {**pairs.metrics}, pairs.predictions
    elif task == "caption":
        written = captioning(engine.encoder, seen, num_beams=num_beams,
                             max_new_tokens=max_new_tokens)
        metrics, predictions, notes = {**written.metrics}, written.predictions, written.notes
    else:
        metrics, predictions = _retrieval(engine, seen, torch.stack(embeddings))
    return Evaluation(task, bundle.name, len(seen), sum(len(video.captions) for video in seen),
                      metrics, predictions, tuple(failures), notes)


def _thinned(engine: Engine, video: ClipSequence, keep: bool) -> ClipSequence:
    """A video with no more of its clip features than the model reads at once."""
    config = engine.bundle.config
    features = spread(video.clip_features, config.max_visual_positions) if keep else (
        video.clip_features[:0])
    return ClipSequence(video.video_id, video.captions,
                        features[:, : config.visual_feature_size].clone())


@torch.no_grad()
def _video_embedding(engine: Engine, clip_features: Tensor) -> Tensor:
    """(D,) unit vector: the mean of a video's clip embeddings, as in the contrast of training."""
    clips = engine.encoder.embed_clips(clip_features.to(engine.device))
    return F.normalize(clips.sum(0), dim=0).cpu()


def _retrieval(engine: Engine, videos: Sequence[ClipSequence],
               embeddings: Tensor) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    texts = [caption for video in videos for caption in video.captions]
    owner = [index for index, video in enumerate(videos) for _ in video.captions]
    encoded = engine.encode_text(texts).cpu()
    if not bool(torch.isfinite(embeddings).all() and torch.isfinite(encoded).all()):
        raise ModelError(f"model {engine.bundle.name} gives embeddings that are not finite")
    metrics: dict[str, Any] = {**retrieval_scores(embeddings, encoded, owner)}
    first = np.cumsum([0, *(len(video.captions) for video in videos)])
    starts = [int(first[i]) for i, video in enumerate(videos[:_TEXT_POOL])
              if len(video.captions) > 1]
    metrics["text_to_text_r1"] = text_to_text_scores(
        encoded[starts], encoded[[start + 1 for start in starts]]
    )["text_to_text_r1"] if len(starts) > 1 else None
    metrics["n_text_to_text"] = len(starts)
    to_text, to_video = retrieval_ranks(embeddings, encoded, owner)
    return metrics, [
        {"video_id": videos[index].video_id, "text": text, "text_to_video_rank": int(rank),
         "video_to_text_rank": int(to_text[index])}
        for text, index, rank in zip(texts, owner, to_video, strict=True)
    ]
