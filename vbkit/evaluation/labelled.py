"""Labelled videos out of a manifest, encoded for a task's head."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbkit.engine.cache import FeatureCache
from vbkit.engine.pipeline import TEXT_OUTPUTS, Encoded, Pipeline, Prepared, Request
from vbkit.errors import ManifestError, MediaError
from vbkit.evaluation.examples import manifest_path, source_identity
from vbkit.heads import Example
from vbkit.media.views import Views
from vbkit.runs import Failure
from vbkit.sources import Source, expand_inputs

if TYPE_CHECKING:
    from vbkit.engine import Engine

__all__ = ["Labelled", "encode_labelled", "read_labelled"]

_CHUNK = 2048
NO_VIEWS = Views()

logger = logging.getLogger("vbkit")


@dataclass(frozen=True)
class Labelled:
    """A source and the label columns of its manifest rows.

    Args:
        source: the video or text.
        rows: at least one.
    """

    source: Source
    rows: tuple[Mapping[str, Any], ...]


def read_labelled(manifest: str | Path, columns: Collection[str],
                  limit: int | None = None) -> list[Labelled]:
    """The sources of a manifest (`.csv`, `.jsonl`, `.parquet`) that have a label.

    Rows that name the same video are put together.

    Args:
        manifest: its path.
        columns: label columns, of which a row needs one; a row without is left out.
        limit: only so many videos, the first ones.

    Raises:
        ManifestError: it is no manifest, or not one row has a label.
    """
    path = manifest_path(manifest, " or ".join(sorted(columns)))
    found: list[Labelled] = []
    places: dict[str, int] = {}
    for source in expand_inputs([path]).sources:
        rows = tuple(row for row in source.rows if any(row.get(name) is not None
                                                       for name in columns))
        if not rows:
            continue
        key = source_identity(source)
        if key in places:
            before = found[places[key]]
            found[places[key]] = Labelled(before.source, before.rows + rows)
        else:
            places[key] = len(found)
            found.append(Labelled(source, rows))
    if not found:
        raise ManifestError(f"{path}: no row has a label; it needs a column "
                            f"{' or '.join(sorted(columns))}")
    return found[:limit]


def encode_labelled(
    engine: Engine,
    labelled: Sequence[Labelled],
    needs: Collection[str],
    *,
    transcript: str | Path = "auto",
    views: Views = NO_VIEWS,
    failed: Callable[[Failure], None] = lambda failure: None,
    progress: Callable[[int, int, str, bool], None] = lambda done, total, video_id, ok: None,
) -> list[Example]:
    """Labelled sources as a head sees them, each encoded once; those that fail are left out.

    Args:
        engine: the model; with a cache, nothing is decoded twice.
        labelled: from `read_labelled`.
        needs: the outputs that the head reads.
        transcript: `"auto"`, `"none"`, or a path.
        views: of each source that has a picture, beside how it is (`Example.views`).
        failed: called with what went wrong.
        progress: called after each source, and each view of one, with how many are done, how many
            there are, the source's id, and whether it could be read.

    Raises:
        MediaError: not one source could be read.
    """
    wanted = frozenset(needs)
    engine.encoder.check_needs(wanted)
    cache = FeatureCache(engine.cache) if engine.cache is not None else None
    examples: list[Example] = []
    last = "there are none"
    picture = not wanted <= TEXT_OUTPUTS
    done, total = 0, len(labelled) * (1 + views.count)
    for start in range(0, len(labelled), _CHUNK):
        chunk = labelled[start : start + _CHUNK]
        if "segment_embeddings" in wanted and engine.bundle.text_tower is None:
            # Short texts are embedded together, in full batches, and remembered.
            engine.encode_text(list(dict.fromkeys(
                text for each in chunk for text in _inline(each.source.text))))
        pipeline = engine.pipeline(cache, transcript, keyframes=cache is not None)
        requests = (
            Request(prepared, wanted, prepared.source.questions, picture=picture)
            for prepared in pipeline.prepare(each.source for each in chunk)
        )
        shown: list[tuple[int, Prepared]] = []  # the examples that have a picture
        for each, encoded in zip(chunk, pipeline.encode(requests), strict=True):
            features = encoded.features
            done += 1
            progress(done, total, features.video_id, features.error is None)
            if encoded.failure is not None:
                failed(encoded.failure)
                last = f"{features.video_id}: {features.error}"
            else:
                if encoded.request.decodes and len(encoded.clip_times):
                    shown.append((len(examples), encoded.request.prepared))
                examples.append(Example(features.restrict(wanted), each.rows))
        done += (len(chunk) - len(shown)) * views.count
        for number, encoded in _views(pipeline, shown, wanted, views):
            done += 1
            read = encoded.failure is None and len(encoded.clip_times) > 0
            progress(done, total, encoded.features.video_id, read)
            if read:
                examples[number] = replace(examples[number], views=(
                    *examples[number].views, encoded.features.restrict(wanted)))
            else:  # as it is, it could be read
                logger.warning("%s: it could not be seen in another way: %s",
                               encoded.features.video_id, encoded.failures[-1].message)
    if not examples:
        raise MediaError(f"none of the {len(labelled)} labelled videos could be read; the last: "
                         f"{last}")
    return examples


def _views(pipeline: Pipeline, shown: Sequence[tuple[int, Prepared]], needs: frozenset[str],
           views: Views) -> Iterator[tuple[int, Encoded]]:
    """Numbered sources in each of their views, with their numbers."""
    drawn = [(number, prepared, view) for number, prepared in shown
             for view in views.of(prepared.content_id)]
    requests = (Request(prepared, needs, prepared.source.questions, view=view)
                for _, prepared, view in drawn)
    for (number, _, _), encoded in zip(drawn, pipeline.encode(requests), strict=True):
        yield number, encoded


def _inline(text: str | list[Any] | None) -> list[str]:
    parts = text if isinstance(text, list) else [text]
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [part.strip() for part in found if isinstance(part, str) and part.strip()]
