"""A manifest into a corpus: videos through the engine's backbone, texts through a tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vbkit.engine.cache import FeatureCache
from vbkit.engine.pipeline import Encoded, Request
from vbkit.errors import VbkitError
from vbkit.sources import Source, SourceKind, expand_inputs
from vbkit.store.lock import FolderLock
from vbkit.training.corpus import Corpus, CorpusItem, CorpusWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vbkit.engine import Engine

__all__ = ["build_corpus", "read_features"]

_NEEDS = frozenset({"clip_times", "clip_features", "segments", "segment_times"})

logger = logging.getLogger("vbkit")


def build_corpus(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase | None = None,
    transcript: str | Path = "auto",
    val_share: float = 0.05,
    progress: Callable[[int, int, int], None] | None = None,
) -> Corpus:
    """Write the corpus of a manifest, or what is missing of one.

    A row's text is its transcript; its columns `caption` (a text or a list of them), `features` (a
    file of clip features, taken instead of the video's pictures) and `split` ("train" or "val")
    are read too. Several rows may name one video: they share a split, and are never each other's
    negatives. Rows that cannot be used are skipped and counted.

    Args:
        inputs: a manifest, or whatever else `vbkit run` takes.
        out: the corpus's folder.
        engine: its backbone sees the videos; its cache, if it has one, keeps what it saw.
        tokenizer: of the model that will be trained; the engine's by default.
        transcript: `"auto"`, `"none"`, or a path.
        val_share: how many of the videos that name no split are kept for validation.
        progress: called with how many rows are in the corpus, are skipped, and there are.

    Raises:
        CorpusError: more than half of the rows cannot be used, or `out` cannot be written or holds
            the corpus of another model.
        ManifestError: the manifest cannot be read.
        StoreLockedError: another run is writing the corpus.
    """
    listed = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    sources = [_usable(source) for source in expand_inputs(listed).sources]
    bundle = engine.bundle
    with FolderLock(Path(out)).hold():
        writer = CorpusWriter(
            out, tokenizer=tokenizer if tokenizer is not None else bundle.processor.tokenizer,
            backbone=bundle.visual_key if bundle.config.backbone else "precomputed",
            precision=bundle.precision, clip_seconds=bundle.config.clip_seconds,
            val_share=val_share)
        left = [source for source in sources if source.video_id not in writer.done]
        for item in _items(left, engine, transcript):
            writer.add(item)
            if progress is not None:
                progress(writer.items, len(writer.skipped), len(sources))
        writer.close()
    return Corpus.open(out)


def read_features(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Clip features, (C, Dv) or (views, C, Dv), and (C, 2) clip times where the file has them.

    Args:
        path: `.npy`, or `.safetensors` with `clip_features` and perhaps `clip_times`.

    Raises:
        ValueError: the file cannot be read as one of these.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False), None
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            if "clip_features" not in tensors:
                raise ValueError(f"{path}: has no clip_features")
            return tensors["clip_features"], tensors.get("clip_times")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, SafetensorError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    raise ValueError(f"{path}: features are in .npy or .safetensors files")


def _usable(source: Source) -> Source:
    """A row with features needs no video, and one with a caption nothing else."""
    if source.problem is None:
        return source
    if source.features is not None and source.path is not None and not source.path.exists():
        kind: SourceKind = "transcript" if source.transcript is not None else "features"
        return dataclasses.replace(source, path=None, problem=None,
                                   kind="text" if source.text is not None else kind)
    empty = (source.path, source.features, source.transcript, source.text) == (None,) * 4
    if empty and any(row.get("caption") for row in source.rows):
        return dataclasses.replace(source, problem=None)
    return source


def _needs_engine(source: Source) -> bool:
    return bool(source.path or source.transcript or source.text is not None or source.problem)


def _items(sources: Sequence[Source], engine: Engine,
           transcript: str | Path) -> Iterator[CorpusItem]:
    cache = FeatureCache(engine.cache) if engine.cache is not None else None
    pipeline = engine.pipeline(cache, transcript, keyframes=False)
    encoded = pipeline.encode(
        Request(prepared, _NEEDS, picture=prepared.source.features is None)
        for prepared in pipeline.prepare(filter(_needs_engine, sources)))
    for source in sources:
        yield _item(source, next(encoded) if _needs_engine(source) else None)


def _item(source: Source, encoded: Encoded | None) -> CorpusItem:
    name = source.video_id
    clips = times = segment_times = None
    segments: Sequence[str] = ()
    group = None
    try:
        if encoded is not None:
            features = encoded.features
            if features.error is not None:
                return CorpusItem(name, problem=str(features.error))
            for failure in encoded.failures:  # of its transcript, or of some frames
                logger.warning("%s: %s", name, failure.message)
            clips, times = features.clip_features.cpu().numpy(), features.clip_times
            segments, segment_times = features.segments, features.segment_times
            if source.path is not None:
                group = encoded.request.prepared.content_id
        if source.features is not None:
            clips, times = read_features(source.features)
            content = hashlib.blake2b(clips.tobytes(), digest_size=16).hexdigest()
            group = group or content
        captions = [caption for row in source.rows for caption in _captions(row)]
    except (ValueError, TypeError, VbkitError) as error:
        return CorpusItem(name, problem=str(error))
    split = source.labels.get("split")
    return CorpusItem(name, clips, times, segments, segment_times,
                      list(dict.fromkeys(captions)), None if split is None else str(split), group)


def _captions(row: Mapping[str, object]) -> list[str]:
    value = row.get("caption")
    values = value if isinstance(value, list) else [value]
    for caption in values:
        if caption is not None and not isinstance(caption, str):
            raise TypeError(f"caption is a text or a list of texts, not {caption!r}")
    return [caption for caption in values if isinstance(caption, str) and caption.strip()]
