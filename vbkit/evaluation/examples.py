"""Captioned videos out of a manifest. No torch here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vbkit.errors import ManifestError
from vbkit.runs import Failure
from vbkit.sources import MANIFEST_SUFFIXES, Source, expand_inputs

__all__ = ["Captioned", "CaptionedSet", "manifest_path", "read_captioned", "source_identity"]


@dataclass(frozen=True)
class Captioned:
    """A video, a picture, or precomputed clip features, and what people wrote about it.

    Args:
        source: the file; `source.features` is read in its place where it is given.
        captions: at least one, in the order of the manifest.

    Raises:
        ValueError: there is no caption, or one is empty.
    """

    source: Source
    captions: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.captions or not all(caption.strip() for caption in self.captions):
            raise ValueError(f"{self.source.video_id} needs captions, none of them empty")

    @property
    def video_id(self) -> str:
        return self.source.video_id


@dataclass(frozen=True)
class CaptionedSet:
    """The captioned videos of a manifest.

    Args:
        examples: what can be evaluated, in the order of the manifest.
        failures: rows that cannot: a missing file, no caption.
    """

    examples: tuple[Captioned, ...]
    failures: tuple[Failure, ...] = ()

    @property
    def n_captions(self) -> int:
        return sum(len(example.captions) for example in self.examples)


def read_captioned(manifest: str | Path, limit: int | None = None) -> CaptionedSet:
    """The captioned videos of a manifest (`.csv`, `.jsonl`, `.parquet`).

    A row has `video`, or `features` (a `.npy` or `.safetensors` file of clip features), or both,
    and `caption`: a string, or a list of strings (in CSV as JSON). Rows that name the same video
    or the same id are put together, with all their captions.

    Args:
        manifest: its path.
        limit: only so many videos, the first ones.

    Raises:
        ManifestError: the file is no manifest, nothing in it has a caption, or a caption is no
            text.
    """
    path = manifest_path(manifest, "video and caption")
    grouped: dict[str, tuple[Source, list[str]]] = {}
    for source in expand_inputs([path]).sources:
        _, captions = grouped.setdefault(source_identity(source), (source, []))
        for row in source.rows:
            captions += _captions(path, source, row)
    if not any(captions for _, captions in grouped.values()):
        raise ManifestError(f"{path}: no row has a caption; evaluation needs a column caption, a "
                            "string or a list of strings")
    examples: list[Captioned] = []
    failures: list[Failure] = []
    for source, captions in list(grouped.values())[:limit]:
        problem = source.problem if source.features is None or source.path is None else None
        if problem is None and source.path is None and source.features is None:
            problem = "has neither video nor features"
        if problem is None and not captions:
            problem = "has no caption"
        if problem is not None:
            failures.append(Failure(source.video_id, "open", "ManifestError", problem))
        else:
            # what is said in the video is not what is evaluated, and need not be read
            examples.append(Captioned(
                replace(source, transcript=None, text=None, problem=None), tuple(captions)))
    return CaptionedSet(tuple(examples), tuple(failures))


def manifest_path(manifest: str | Path, columns: str) -> Path:
    """A manifest's path.

    Args:
        manifest: what the caller named.
        columns: what it should have, for people.

    Raises:
        ManifestError: it is of another kind, or is not there.
    """
    path = Path(manifest)
    if path.suffix.lower() not in MANIFEST_SUFFIXES:
        raise ManifestError(f"{path} is no manifest: give a .csv, .jsonl or .parquet file with "
                            f"the columns {columns}")
    if not path.is_file():
        raise ManifestError(f"{path}: no such file")
    return path


def source_identity(source: Source) -> str:
    """The same for rows that name one video: by its file, else by its id."""
    file = source.path or source.features
    return f"id {source.video_id}" if file is None else f"file {os.path.realpath(file)}"


def _captions(manifest: Path, source: Source, row: Any) -> list[str]:
    value = row.get("caption")
    values: Sequence[Any] = value if isinstance(value, list) else [value]
    for caption in values:
        if caption is not None and not isinstance(caption, str):
            raise ManifestError(f"{manifest}: the caption of {source.video_id} is a "
                                f"{type(caption).__name__}, not a string or a list of strings")
    return [" ".join(caption.split()) for caption in values if caption and caption.strip()]
