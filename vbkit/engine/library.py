"""Questions put to a results folder: search and ask, from its tables and its feature cache.

Nothing is decoded and no source file is opened where the cache holds what is needed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vbkit.engine.pipeline import Prepared, Request, transcript_hash
from vbkit.errors import StoreError, UsageError
from vbkit.features import Features
from vbkit.media.types import Segment, Transcript
from vbkit.sources import Source
from vbkit.store import ResultStore, load_table

if TYPE_CHECKING:
    from vbkit.engine.engine import Engine
    from vbkit.engine.run import HeadRunner

__all__ = ["Library", "last_run"]


@dataclass(frozen=True)
class LastRun:
    """What the newest row of `runs` says of the model and the feature cache."""

    model: str
    fingerprint: str
    precision: str
    cache: Path | None


def last_run(out: str | Path) -> LastRun:
    """The newest run of a results folder.

    Raises:
        StoreError: the folder holds no run.
    """
    runs = load_table(out, "runs", columns=["started", "model", "device", "cache"])
    if not len(runs):
        raise StoreError(f"{out} holds no finished run; `vbkit run … --out {out}` makes one")
    row = runs.sort_values("started").iloc[-1]
    model, _, fingerprint = str(row["model"]).rpartition(" ")
    cache = None if pd.isna(row["cache"]) else Path(str(row["cache"]))
    if cache is None or not cache.is_dir():
        cache = Path(out) / "cache"  # the folder may have been moved, with its cache inside
    return LastRun(model, fingerprint, str(row["device"]).rpartition(" ")[2], cache)


class Library:
    """The videos of a results folder, as features.

    Args:
        engine: with the model that the folder was made with.
        out: the results folder.
    """

    def __init__(self, engine: Engine, out: str | Path) -> None:
        self.engine = engine
        self.out = Path(out)
        run = last_run(out)
        if run.fingerprint != engine.bundle.fingerprint:
            raise StoreError(f"{out} was made with model {run.model} ({run.fingerprint}), but this "
                             f"is {engine.bundle.name} ({engine.bundle.fingerprint}); run the "
                             "videos again, or name the other model with --model")
        self.cache = engine.cache or run.cache
        self.missing: list[str] = []

    def features(
        self, needs: frozenset[str], questions: tuple[str, ...] = (),
        videos: Collection[str] | None = None,
    ) -> Iterator[Features]:
        """The features of every video that was encoded; the others are named in `missing`.

        Args:
            needs: names of outputs.
            questions: handed on as `features.questions`.
            videos: only these.
        """
        from vbkit.engine.cache import FeatureCache

        assert self.cache is not None
        cache = FeatureCache(self.cache)
        pipeline = self.engine.pipeline(cache, keyframes=False)
        requests = [Request(prepared, needs, questions)
                    for prepared in self._prepared(videos) if self._at_hand(cache, prepared)]
        for encoded in pipeline.encode(requests):
            if encoded.features.error is None:
                yield encoded.features.restrict(needs)

    def _prepared(self, only: Collection[str] | None = None) -> Iterator[Prepared]:
        where = None if only is None else {"video_id": list(only)}
        videos = load_table(self.out, "videos", [
            "video_id", "path", "content_id", "status", "width", "transcript_source", "language",
        ], where)
        segments = load_table(self.out, "segments", where=where)
        spoken = {str(video_id): rows for video_id, rows in segments.groupby("video_id")}
        for row in videos.to_dict("records"):
            if row["status"] == "failed":
                continue
            video_id = str(row["video_id"])
            rows = spoken.get(video_id)
            transcript = Transcript(tuple(
                Segment(str(s["text"]), _float(s["start_s"]), _float(s["end_s"]))
                for s in rows.sort_values("segment").to_dict("records"))
                if rows is not None else (), source=str(row["transcript_source"]))
            path = None if pd.isna(row["path"]) else Path(str(row["path"]))
            yield Prepared(
                Source(video_id, path, "text" if pd.isna(row["width"]) else "video"),
                content_id=str(row["content_id"]), transcript=transcript,
                transcript_id=transcript_hash(transcript),
                language=None if pd.isna(row["language"]) else str(row["language"]))

    def _at_hand(self, cache: Any, prepared: Prepared) -> bool:
        here = (not prepared.visible
                or cache.has(prepared.content_id, "visual", self.engine.bundle.visual_key))
        if not here:
            self.missing.append(prepared.source.video_id)
        return here

    def is_current(self, runner: HeadRunner, table: str, video_id: str) -> bool:
        """Whether a video's rows in a table are what a task would write now."""
        written = ResultStore(self.out).fingerprint(table, video_id)
        return written is None or any(
            written == runner.row_fingerprint(self.engine.bundle, prepared)
            for prepared in self._prepared([video_id]))

    def search(self, text: str, limit: int = 10) -> pd.DataFrame:
        """The moments nearest to `text` in the space that video and text share.

        Returns:
            Columns `video_id`, `score` (cosine), `start_s`, `end_s`, `modality` (visual or text)
            and `text` (the segment, where it is one); the best of each modality in turn.
            Neighbouring hits of a video are one row.
        """
        if not text.strip():
            raise UsageError("give a text to search for")
        query = self.engine.encode_text([text])[0]
        needs = frozenset({"clip_times", "clip_embeddings", "segments", "segment_times",
                           "segment_embeddings"})
        rows: list[dict[str, Any]] = []
        for features in self.features(needs):
            rows += _hits(features, query, limit)
        columns = ["video_id", "score", "start_s", "end_s", "modality", "text"]
        frame = pd.DataFrame(rows, columns=columns)
        # Cosines between texts are larger than those to pictures: each is ranked among its own.
        place = frame.groupby("modality")["score"].rank(ascending=False, method="first")
        frame = frame.assign(place=place).sort_values(["place", "score"], ascending=[True, False])
        frame = frame.drop(columns="place").head(limit)
        frame.attrs["units"] = {"start_s": "s", "end_s": "s"}
        return frame.reset_index(drop=True)

    def ask(self, question: str, limit: int = 5, task: str = "qa") -> pd.DataFrame:
        """Put a question to every video.

        Returns:
            The columns of `qa` with `video_id`, best answers first, ranked over all videos.
        """
        if not question.strip():
            raise UsageError("give a question")
        runner = self.engine.heads([task])[0]
        frames = []
        try:
            for features in self.features(runner.spec.needs, (question,)):
                found = runner.predict(features)[runner.spec.tables[0].name]
                frames.append(found.assign(video_id=features.video_id))
        finally:
            runner.close()
        columns = ["video_id", *runner.spec.tables[0].column_names]
        if not frames:
            return pd.DataFrame(columns=columns)
        answers = pd.concat(frames, ignore_index=True)[columns]
        answers = answers.sort_values(["no_answer", "score"], ascending=[True, False],
                                      kind="stable").head(limit).reset_index(drop=True)
        answers["rank"] = np.arange(1, len(answers) + 1)
        answers.attrs["units"] = {"start_s": "s", "end_s": "s"}
        return answers


def _float(value: Any) -> float:
    return math.nan if pd.isna(value) else float(value)


def _hits(features: Features, query: torch.Tensor, limit: int) -> list[dict[str, Any]]:
    rows = []
    for modality, vectors, times in (
        ("visual", features.clip_embeddings, features.clip_times),
        ("text", features.segment_embeddings, features.segment_times),
    ):
        if not len(vectors):
            continue
        scores = (vectors @ query).cpu().numpy()
        taken = np.zeros(len(scores), dtype=bool)
        for best in np.argsort(-scores, kind="stable")[: 4 * limit]:
            if taken[best]:
                continue
            first = last = int(best)
            if modality == "visual":  # a moment goes on while its clips are nearly as near
                floor = scores[best] - 0.05
                while first > 0 and scores[first - 1] >= floor and not taken[first - 1]:
                    first -= 1
                while (last + 1 < len(scores) and scores[last + 1] >= floor
                       and not taken[last + 1]):
                    last += 1
            taken[first : last + 1] = True
            rows.append({
                "video_id": features.video_id, "score": float(scores[best]),
                "start_s": times[first, 0], "end_s": times[last, 1], "modality": modality,
                "text": features.segments[best] if modality == "text" else None})
    return sorted(rows, key=lambda row: -row["score"])[:limit]
