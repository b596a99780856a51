"""A manifest into a corpus: videos through the engine's backbone, texts through a tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vbkit.engine.pipeline import Encoded, Request
from vbkit.errors import VbkitError
from vbkit.sources import Source, expand_inputs
from vbkit.training.corpus import Corpus, CorpusItem, write_corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vbkit.engine import Engine

__all__ = ["build_corpus", "read_features"]

_NEEDS = frozenset({"clip_times", "clip_features", "segments", "segment_times"})


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
    file of clip features, relative to the manifest, which are taken instead of the video's) and
    `split` ("train" or "val") are read too. Several rows may name one video. Rows that cannot be
    used are skipped and counted.

    Args:
        inputs: a manifest, or whatever else `vbkit run` takes.
        out: the corpus's folder.
        engine: its backbone sees the videos, and its cache keeps what it saw.
        tokenizer: of the model that will be trained; the engine's by default.
        transcript: `"auto"`, `"none"`, or a path.
        val_share: how many of the videos that name no split are kept for validation.
        progress: called with how many rows are done, skipped, and there are.

    Raises:
        CorpusError: more than half of the rows cannot be used, or `out` cannot be written or holds
            the corpus of another model.
        ManifestError: the manifest cannot be read.
    """
    listed = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    sources = expand_inputs(listed).sources
    folders = [path.parent if path.is_file() else path for path in map(Path, listed)]
    bundle = engine.bundle
    told = None if progress is None else (
        lambda done, skipped: progress(done, skipped, len(sources)))
    return write_corpus(
        _items(sources, engine, transcript, folders), out,
        tokenizer=tokenizer if tokenizer is not None else bundle.processor.tokenizer,
        backbone=bundle.visual_key if bundle.config.backbone else "precomputed",
        precision=bundle.precision, clip_seconds=bundle.config.clip_seconds,
        val_share=val_share, progress=told)


def read_features(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Clip features, and clip times where the file has them.

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


def _items(sources: Sequence[Source], engine: Engine, transcript: str | Path,
           folders: Sequence[Path]) -> Iterator[CorpusItem]:
    pipeline = engine.pipeline(engine._cache(None), transcript, keyframes=False)
    groups: dict[str, str] = {}  # content -> the first id that shows it
    requests = (
        Request(prepared, _NEEDS, picture="features" not in prepared.source.labels)
        for prepared in pipeline.prepare(_with_text(source) for source in sources))
    for encoded in pipeline.encode(requests):
        yield _item(encoded, groups, folders)


def _with_text(source: Source) -> Source:
    """A row that holds only a caption or features is as good as one with an empty text."""
    if (source.path is None and source.transcript is None and source.text is None
            and {"caption", "features"} & set(source.labels)):
        return dataclasses.replace(source, text="", kind="text", problem=None)
    return source


def _item(encoded: Encoded, groups: dict[str, str], folders: Sequence[Path]) -> CorpusItem:
    source, features = encoded.request.prepared.source, encoded.features
    if features.error is not None:
        return CorpusItem(source.video_id, problem=str(features.error))
    rows: Sequence[Mapping[str, object]] = source.rows or (source.labels,)
    captions: list[str] = []
    try:
        for row in rows:
            captions += _captions(row.get("caption"))
        given = source.labels.get("features")
        clips: Any = features.clip_features.cpu().numpy()
        times: Any = features.clip_times
        shown = encoded.request.prepared.content_id if source.path is not None else ""
        if given is not None:
            path = _find(str(given), folders)
            clips, times = read_features(path)
            shown = str(path.resolve())
    except (ValueError, TypeError, VbkitError) as error:
        return CorpusItem(source.video_id, problem=str(error))
    group = groups.setdefault(shown, source.video_id) if shown else source.video_id
    split = source.labels.get("split")
    return CorpusItem(
        source.video_id, clips, times, features.segments, features.segment_times,
        list(dict.fromkeys(captions)), str(split) if split is not None else None, group)


def _captions(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    for caption in values:
        if caption is not None and not isinstance(caption, str):
            raise TypeError(f"caption is a text or a list of texts, not {caption!r}")
    return [caption for caption in values if isinstance(caption, str) and caption.strip()]


def _find(name: str, folders: Sequence[Path]) -> Path:
    paths = [folder / Path(name).expanduser() for folder in folders]
    return next((path for path in paths if path.is_file()), paths[0])
