"""`load_features`: what the engine has read of a results folder's videos, as numpy arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import torch

from vbkit.engine.cache import FeatureCache
from vbkit.engine.engine import Engine
from vbkit.engine.library import Library, last_run
from vbkit.engine.pipeline import Request
from vbkit.errors import FeatureError, StoreError, UsageError
from vbkit.specs import CONTEXT_OUTPUTS, FEATURE_OUTPUTS

if TYPE_CHECKING:
    from vbkit.features import Features

__all__ = ["VideoFeatures", "load_features"]

ARRAYS = frozenset(FEATURE_OUTPUTS) - CONTEXT_OUTPUTS - {
    "frames", "motion", "encode_text", "joint", "generate"}


class VideoFeatures:
    """The encoder's outputs for a video, as numpy arrays, which are read-only.

    Only what `load_features` was asked for is there; anything else raises `FeatureError`. Shapes
    are those of `vbkit.specs.FEATURE_OUTPUTS`: C clips, S segments. A video without speech has
    S = 0, a text without a picture C = 0.

    Attributes:
        video_id: the video.
        language: ISO 639-1 code of the transcript, or None.
        clip_times: (C, 2) float64, s: start and end of each clip.
        clip_features: (C, Dv) float32: pooled features of the visual backbone.
        visual_words: (C,) int64: ids in the visual vocabulary.
        segments: S strings: the transcript.
        segment_times: (S, 2) float64, s: start and end, NaN for untimed text.
        clip_embeddings: (C, D) float32: unit vectors in the space that video and text share.
        segment_embeddings: (S, D) float32: unit vectors in the same space.
        clip_hidden: (C, H) float32: contextual outputs of the joint encoder.
        segment_hidden: (S, H) float32: contextual outputs of the joint encoder.
        pooled: (H,) float32: their mean, weighted by duration.
        tokens: S lists of word pieces.
        token_hidden: S arrays (T, H) float32: the word pieces' outputs.
    """

    clip_times: np.ndarray
    clip_features: np.ndarray
    visual_words: np.ndarray
    segments: list[str]
    segment_times: np.ndarray
    clip_embeddings: np.ndarray
    segment_embeddings: np.ndarray
    clip_hidden: np.ndarray
    segment_hidden: np.ndarray
    pooled: np.ndarray
    tokens: list[list[str]]
    token_hidden: list[np.ndarray]

    def __init__(
        self, video_id: str, outputs: Mapping[str, Any], language: str | None = None
    ) -> None:
        self.video_id = video_id
        self.language = language
        self._outputs = dict(outputs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in FEATURE_OUTPUTS:
            raise AttributeError(f"VideoFeatures has no attribute {name!r}")
        try:
            return self._outputs[name]
        except KeyError:
            raise FeatureError(f"{name} was not asked for: load_features(…, needs={{{name!r}, …}})"
                               ) from None

    def __repr__(self) -> str:
        parts = [f"{name}={value.shape}" if isinstance(value, np.ndarray)
                 else f"{name}=[{len(value)}]" for name, value in sorted(self._outputs.items())]
        return f"VideoFeatures({', '.join([repr(self.video_id), *parts])})"


@overload
def load_features(  # type: ignore[overload-overlap]  # a string is an iterable of strings, too
    out: str | Path, video_id: str, needs: Iterable[str] = ..., *, cache: str | Path | None = None,
    engine: Engine | None = None, missing: Literal["raise", "skip"] = "raise",
) -> VideoFeatures: ...
@overload
def load_features(
    out: str | Path, video_id: Iterable[str] | None = None, needs: Iterable[str] = ..., *,
    cache: str | Path | None = None, engine: Engine | None = None,
    missing: Literal["raise", "skip"] = "raise",
) -> dict[str, VideoFeatures]: ...
def load_features(
    out: str | Path,
    video_id: str | Iterable[str] | None = None,
    needs: Iterable[str] = ("clip_times", "clip_embeddings"),
    *,
    cache: str | Path | None = None,
    engine: Engine | None = None,
    missing: Literal["raise", "skip"] = "raise",
) -> VideoFeatures | dict[str, VideoFeatures]:
    """What the engine has read of the videos of a results folder, without decoding them again.

    It comes from the feature cache of the run, and from the tables `videos` and `segments`. What
    follows quickly from the cached clip features, such as embeddings, is computed where it is not
    cached itself; the first call loads the model for that, which `engine` saves later ones.

    Args:
        out: the results folder.
        video_id: the video, or several; None for all that were encoded.
        needs: names of `vbkit.specs.FEATURE_OUTPUTS`, except `frames` and the methods.
        cache: the feature cache; None for the one that the newest run used.
        engine: an engine with the model of the results; None loads one.
        missing: what to do about videos whose clip features are not in the cache: `"raise"`, or
            `"skip"` to leave them out.

    Returns:
        For one `video_id` its features; else a dictionary of them by `video_id`, in that order.

    Raises:
        UsageError: an output is unknown or is no array, or the folder has no such video.
        StoreError: the cache does not hold what is needed, `out` is no results folder, or it was
            made with another model.
        ModelError: the model does not have an output.
    """
    if isinstance(needs, str):
        raise UsageError(f"needs must be a set of names, got the string {needs!r}")
    wanted = frozenset(needs)
    unknown = sorted(wanted - ARRAYS)
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no array that the cache can give; needs may name "
                         f"{', '.join(sorted(ARRAYS))}")
    last = last_run(out)
    if engine is None:
        engine = Engine(last.model, precision=last.precision, cache=cache)
    engine.encoder.check_needs(wanted)
    library = Library(engine, out)
    folder = Path(cache) if cache is not None else library.cache
    assert folder is not None
    prepared = {each.source.video_id: each for each in library._prepared()}
    if video_id is not None:
        asked = [video_id] if isinstance(video_id, str) else list(dict.fromkeys(video_id))
        absent = [name for name in asked if name not in prepared]
        if absent:
            raise UsageError(f"{out} has no video {absent[0]!r} that was encoded; "
                             "vbkit.load_table(…, 'videos') lists them")
        prepared = {name: prepared[name] for name in asked}
    store = FeatureCache(folder)
    visual = engine.bundle.visual_key
    gone = [name for name, each in prepared.items()
            if each.visible and not store.has(each.content_id, "visual", visual)]
    if gone and (missing == "raise" or isinstance(video_id, str)):
        some = ", ".join(gone[:3]) + (", …" if len(gone) > 3 else "")
        raise StoreError(
            f"the feature cache {folder} does not hold {len(gone)} of {len(prepared)} videos "
            f"({some}): run them again, name another cache, or leave them out with missing='skip'")
    requests = [Request(each, wanted) for name, each in prepared.items() if name not in set(gone)]
    pipeline = engine.pipeline(store, "none", keyframes=False)
    found = {}
    for encoded in pipeline.encode(requests):
        if encoded.features.error is not None:
            raise StoreError(f"{encoded.features.video_id}: {encoded.features.error}")
        features = encoded.features.restrict(wanted)
        found[features.video_id] = _numpy(features, wanted)
    return found[video_id] if isinstance(video_id, str) else found


def _numpy(features: Features, needs: frozenset[str]) -> VideoFeatures:
    outputs = {name: _array(getattr(features, name)) for name in needs}
    return VideoFeatures(features.video_id, outputs, features.language)


def _array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
        return value
    return [_array(item) if isinstance(item, torch.Tensor) else item for item in value]
