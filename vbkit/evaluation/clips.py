"""Clip features of captioned videos: from files, or from the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vbkit.engine.cache import FeatureCache
from vbkit.engine.pipeline import Request
from vbkit.engine.windows import spread
from vbkit.errors import MediaError, ModelError, VbkitError
from vbkit.evaluation.examples import Captioned
from vbkit.runs import Failure

if TYPE_CHECKING:
    from vbkit.engine import Engine
    from vbkit.engine.encoder import Encoder

__all__ = ["ClipSequence", "load_clip_features", "read_clips", "visual_inputs"]


@dataclass(frozen=True)
class ClipSequence:
    """A captioned video as the model reads it.

    Args:
        video_id: its id.
        captions: what people wrote about it.
        clip_features: (C, Dv) float32 on the CPU, C at least 1.
    """

    video_id: str
    captions: tuple[str, ...]
    clip_features: Tensor


def read_clips(
    engine: Engine,
    examples: Sequence[Captioned],
    failed: Callable[[Failure], None],
    warned: Callable[[Failure], None] = lambda failure: None,
) -> Iterator[ClipSequence]:
    """Clip features of each example, in order; each video is decoded once.

    Args:
        engine: its backbone and its cache are used, where an example has no features of its own.
        examples: what to read.
        failed: called with what went wrong, in the place of an example that cannot be read.
        warned: called where a part of a video cannot be read.
    """
    decoded = _decoded(engine, [example for example in examples
                                if example.source.features is None], failed, warned)
    for example in examples:
        if example.source.features is None:
            features = next(decoded)
        else:
            try:
                features = load_clip_features(example.source.features)
                _check_width(features, engine.bundle.config.visual_feature_size)
            except VbkitError as error:
                failed(Failure(example.video_id, "open", type(error).__name__, str(error)))
                continue
        if features is not None:
            yield ClipSequence(example.video_id, example.captions, features.cpu())


def _decoded(engine: Engine, examples: Sequence[Captioned], failed: Callable[[Failure], None],
             warned: Callable[[Failure], None]) -> Iterator[Tensor | None]:
    cache = FeatureCache(engine.cache) if engine.cache is not None else None
    pipeline = engine.pipeline(cache, "none", keyframes=cache is not None)
    needs = frozenset({"clip_features"})
    requests = (Request(prepared, needs)
                for prepared in pipeline.prepare(example.source for example in examples))
    for encoded in pipeline.encode(requests):
        features = encoded.features
        if encoded.failure is not None:
            failed(encoded.failure)
            yield None
        elif not len(features.clip_features):
            failed(Failure(features.video_id, "decode", "MediaError", "has no picture"))
            yield None
        else:
            for failure in encoded.failures:
                warned(failure)
            yield features.clip_features


def load_clip_features(path: Path) -> Tensor:
    """Clip features from a file: (C, Dv) float32.

    Args:
        path: a `.safetensors` file with the tensor `clip_features`, or a `.npy` file; (C, Dv), or
            (Dv,) for one clip.

    Raises:
        MediaError: the file cannot be read, or holds something else.
    """
    try:
        if path.suffix.lower() == ".npy":
            array = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))
        else:
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                if "clip_features" not in file.keys():  # noqa: SIM118
                    raise MediaError(f"{path}: has no tensor clip_features")
                array = file.get_tensor("clip_features").float()
    except VbkitError:
        raise
    except Exception as error:  # safetensors and numpy raise whatever they meet
        raise MediaError(f"{path}: no clip features can be read ({error}); give a .npy file, or a "
                         ".safetensors file with the tensor clip_features") from None
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or 0 in array.shape:
        raise MediaError(f"{path}: clip features are (clips, features), got {tuple(array.shape)}")
    if not bool(torch.isfinite(array).all()):
        raise MediaError(f"{path}: a clip feature is not finite")
    return array


def _check_width(features: Tensor, wanted: int) -> None:
    if features.shape[1] < wanted:
        raise ModelError(f"clip features are {features.shape[1]} wide, but the model reads "
                         f"{wanted}: they come from another backbone")


def visual_inputs(encoder: Encoder, videos: Sequence[ClipSequence]) -> dict[str, Tensor]:
    """A batch's visual arguments of `VideoBertModel.forward`; long videos are thinned out evenly.

    Args:
        encoder: the model's.
        videos: B videos.

    Raises:
        ModelError: the model reads visual words, but has no vocabulary.
    """
    most = encoder.config.max_visual_positions
    return encoder.visual_inputs([spread(video.clip_features, most) for video in videos])
