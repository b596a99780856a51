"""Questions put to a results folder: search and ask, from its tables and its feature cache.

Nothing is decoded and no source file is opened where the cache holds what is needed. All videos
are looked through by their embeddings, in one file (`index.py`); a head reads the nearest few.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vbkit.engine.index import MODALITIES, EmbeddingIndex, IndexedVideo, stamps
from vbkit.engine.pipeline import Prepared, Request, transcript_hash
from vbkit.errors import StoreError, UsageError
from vbkit.features import Features
from vbkit.media.types import Segment, Transcript
from vbkit.sources import Source
from vbkit.store import ResultStore, load_table
from vbkit.store.layout import file_name, read_whole, table_folder

if TYPE_CHECKING:
    from vbkit.engine.cache import FeatureCache
    from vbkit.engine.engine import Engine
    from vbkit.engine.run import HeadRunner
    from vbkit.heads import Head

__all__ = ["MOST_READ", "Library", "last_run"]

MOST_READ = 24
"""Videos that are read for a question."""

_EMBEDDINGS = frozenset({"clip_times", "clip_embeddings", "segment_times", "segment_embeddings"})
_ROW = ("video_id", "path", "content_id", "status", "width", "transcript_source", "language")

logger = logging.getLogger("vbkit")


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
        self._index: EmbeddingIndex | None = None

    def features(self, needs: frozenset[str], questions: tuple[str, ...] = (),
                 videos: Collection[str] | None = None) -> Iterator[Features]:
        """The features of every video that was encoded; the others are named in `missing`.

        Args:
            needs: names of the outputs to make.
            questions: handed on as `features.questions`.
            videos: ids of videos, to have only those.
        """
        prepared = self._prepared() if videos is None else chain.from_iterable(
            map(self._prepared_of, videos))
        yield from self._encoded(prepared, needs, questions)

    def _encoded(self, prepared: Iterable[Prepared], needs: frozenset[str],
                 questions: tuple[str, ...] = ()) -> Iterator[Features]:
        from vbkit.engine.cache import FeatureCache

        assert self.cache is not None
        cache = FeatureCache(self.cache)
        pipeline = self.engine.pipeline(cache, "none", keyframes=False)
        requests = [Request(each, needs, questions)
                    for each in prepared if self._at_hand(cache, each)]
        for encoded in pipeline.encode(requests):
            if encoded.features.error is None:
                yield encoded.features.restrict(needs)

    def _prepared(self) -> Iterator[Prepared]:
        videos = load_table(self.out, "videos", columns=list(_ROW))
        segments = load_table(self.out, "segments")
        spoken = {str(video_id): rows.astype(object).where(rows.notna(), None).to_dict("records")
                  for video_id, rows in segments.groupby("video_id")}
        plain = videos.astype(object).where(videos.notna(), None)
        for values in plain.itertuples(index=False, name=None):
            row = dict(zip(plain.columns, values, strict=True))
            if row["status"] != "failed":
                yield _prepared(row, spoken.get(str(row["video_id"]), ()))

    def _prepared_of(self, video_id: str) -> Iterator[Prepared]:
        """A video, or nothing where it is not there or failed; the other files stay closed."""
        place = self._index.places.get(video_id) if self._index is not None else None
        if self._index is not None and place is not None:
            row = self._index.about[place]["row"]
        else:
            try:
                path = table_folder(self.out, "videos") / file_name(video_id)
                row = read_whole(path, _ROW)[1].to_pylist()[0]
            except FileNotFoundError:
                return
        if row["status"] != "failed":
            yield _prepared(row, self._segments(video_id))

    def _segments(self, video_id: str) -> list[dict[str, Any]]:
        """The rows of `segments` of one video."""
        try:
            return read_whole(table_folder(self.out, "segments") / file_name(video_id)
                              )[1].to_pylist()
        except FileNotFoundError:
            return []

    def _at_hand(self, cache: FeatureCache, prepared: Prepared) -> bool:
        here = (not prepared.visible
                or cache.has(prepared.content_id, "visual", self.engine.bundle.visual_key))
        video_id = prepared.source.video_id
        if not here and video_id not in self.missing:
            self.missing.append(video_id)
        return here

    def is_current(self, runner: HeadRunner, table: str, video_id: str) -> bool:
        """Whether a video's rows in a table are what a task would write now."""
        written = ResultStore(self.out).fingerprint(table, video_id)
        return written is None or any(
            written == runner.row_fingerprint(self.engine.bundle, prepared)
            for prepared in self._prepared_of(video_id))

    # --- the index ----------------------------------------------------------------------------

    def index(self, *, cheap: bool = False) -> EmbeddingIndex:
        """The embeddings of all videos, brought up to date and kept beside the results.

        Args:
            cheap: leave out texts that would have to be encoded first; the next call without it
                does that.
        """
        from vbkit.engine.cache import FeatureCache

        bundle = self.engine.bundle
        key = (f"{bundle.fingerprint_of({'clip_embeddings', 'segment_embeddings'})} "
               f"{bundle.visual_key}")
        now = stamps(self.out)
        old = self._index if self._index is not None else EmbeddingIndex.load(self.out, key)
        assert self.cache is not None
        cache = FeatureCache(self.cache)
        kept: dict[str, int] = {}
        for place, about in enumerate(old.about if old is not None else ()):
            name = file_name(str(about["row"]["video_id"]))
            if now.get(name) == about["stamp"] and (
                    about["complete"] or not self._may_be_complete(cache, about["row"], cheap)):
                kept[name] = place
        if old is None or len(kept) < len(now) or len(old) != len(now):
            made = self._indexed({name: stamp for name, stamp in now.items() if name not in kept},
                                 cache, cheap)
            same = [old.video(place) for place in kept.values()] if old is not None else []
            videos = sorted([*same, *made], key=lambda video: video.video_id)
            old = EmbeddingIndex.of(key, videos, bundle.config.shared_size)
            try:
                old.save(self.out)
            except StoreError as error:  # a folder that may only be read is slower, not useless
                logger.debug("%s", error)
        self._index = old
        self.missing = [str(about["row"]["video_id"]) for about in old.about
                        if not about["complete"]]
        return old

    def _may_be_complete(self, cache: FeatureCache, row: Mapping[str, Any], cheap: bool) -> bool:
        return not cheap and (row["width"] is None or cache.has(
            str(row["content_id"]), "visual", self.engine.bundle.visual_key))

    def _indexed(self, wanted: Mapping[str, str], cache: FeatureCache,
                 cheap: bool) -> Iterator[IndexedVideo]:
        """The parts of the index of some videos, by the names of their files."""
        text_key = self.engine.bundle.fingerprint_of({"segment_embeddings"})
        width = self.engine.bundle.config.shared_size

        def part(row: Mapping[str, Any], stamp: str, features: Features | None,
                 complete: bool) -> IndexedVideo:
            vectors = [torch.zeros(0, width) if features is None else getattr(features, name)
                       for name in ("clip_embeddings", "segment_embeddings")]
            times = [np.zeros((0, 2)) if features is None else getattr(features, name)
                     for name in ("clip_times", "segment_times")]
            return IndexedVideo(
                row, stamp, complete, *(each.half().cpu() for each in vectors),
                *(torch.from_numpy(np.array(each, np.float64)) for each in times))

        rows: dict[str, tuple[Mapping[str, Any], str]] = {}
        prepared = []
        for name, stamp in wanted.items():
            try:
                _, data = read_whole(table_folder(self.out, "videos") / name, _ROW)
            except FileNotFoundError:
                continue
            row = data.to_pylist()[0]
            if row["status"] == "failed":
                yield part(row, stamp, None, complete=True)
                continue
            rows[str(row["video_id"])] = row, stamp
            each = _prepared(row, self._segments(str(row["video_id"])))
            if not cheap or not each.transcript.segments or cache.has(
                    each.transcript_id, "text", text_key):
                prepared.append(each)
        for features in self._encoded(prepared, _EMBEDDINGS):
            row, stamp = rows.pop(features.video_id)
            yield part(row, stamp, features, complete=True)
        for row, stamp in rows.values():
            yield part(row, stamp, None, complete=False)

    # --- questions ----------------------------------------------------------------------------

    def search(self, text: str, limit: int = 10) -> pd.DataFrame:
        """The moments nearest to `text` in the space that video and text share.

        Returns:
            Columns `video_id`, `score` (cosine), `start_s`, `end_s`, `modality` (visual or text)
            and `text` (the segment, where it is one); the best of each modality in turn.
            Neighbouring hits of a video are one row.
        """
        if not text.strip():
            raise UsageError("give a text to search for")
        index = self.index()
        query = self.engine.encode_text([text])
        rows: list[dict[str, Any]] = []
        for name, modality in (("clip", "visual"), ("segment", "text")):
            # The best hits are in the videos whose best hits are the best.
            for place in _best(index.nearest(query, name)[0], limit):
                rows += _hits(index.video(place), modality, query[0], limit)
        columns = ["video_id", "score", "start_s", "end_s", "modality", "segment"]
        frame = pd.DataFrame(rows, columns=columns)
        # Cosines between texts are larger than those to pictures: each is ranked among its own.
        places = frame.groupby("modality")["score"].rank(ascending=False, method="first")
        frame = frame.assign(place=places).sort_values(["place", "score"], ascending=[True, False])
        frame = frame.drop(columns="place").head(limit).reset_index(drop=True)
        frame["text"] = [self._said(video_id, segment) for video_id, segment in zip(
            frame["video_id"], frame.pop("segment"), strict=True)]
        frame.attrs["units"] = {"start_s": "s", "end_s": "s"}
        return frame

    def _said(self, video_id: str, segment: Any) -> str | None:
        if pd.isna(segment):
            return None
        return next((str(row["text"]) for row in self._segments(video_id)
                     if row["segment"] == segment), None)

    def ask(self, question: str | Sequence[str], limit: int = 5, task: str = "qa",
            most: int = MOST_READ) -> pd.DataFrame:
        """Put a question, or several, to every video.

        The videos whose clips or segments come nearest to a question are read by the task's head,
        the others are not.

        Args:
            question: one or several.
            limit: answers to each.
            task: whose head answers.
            most: videos to read for each question.

        Returns:
            The columns of `qa` with `video_id`, best answers first, ranked over all videos; the
            answers to each question in turn.
        """
        questions = list(dict.fromkeys([question] if isinstance(question, str) else question))
        if not questions or not all(each.strip() for each in questions):
            raise UsageError("give a question")
        runner = self.engine.heads([task])[0]
        columns = ["video_id", *runner.spec.tables[0].column_names]
        frames = []
        try:
            asked = self._candidates(runner.ready(), questions, most)
            for features in self.features(runner.spec.needs, tuple(questions), list(asked)):
                found = runner.predict(features, asked[features.video_id])
                frames.append(found[runner.spec.tables[0].name].assign(
                    video_id=features.video_id))
        finally:
            runner.close()
        if not frames:
            return pd.DataFrame(columns=columns)
        answers = pd.concat(frames, ignore_index=True)[columns]
        answers = answers.sort_values(["no_answer", "score"], ascending=[True, False],
                                      kind="stable")
        answers = pd.concat([answers[answers["question"] == each].head(limit)
                             for each in questions], ignore_index=True)
        answers["rank"] = answers.groupby("question", sort=False).cumcount() + 1
        answers.attrs["units"] = {"start_s": "s", "end_s": "s"}
        return answers

    def _candidates(self, head: Head, questions: Sequence[str],
                    most: int) -> dict[str, list[str]]:
        """For each video to be read, the questions that it may answer."""
        index = self.index()
        found: dict[str, list[str]] = {}
        texts = {question: [question, *head.search_texts(question)] for question in questions}
        every = list(dict.fromkeys(text for each in texts.values() for text in each))
        vectors = dict(zip(every, self.engine.encode_text(every), strict=True))
        for question in questions:
            queries = torch.stack([vectors[text] for text in dict.fromkeys(texts[question])])
            ranked = [_best(row, most) for name in MODALITIES
                      for row in index.nearest(queries, name)]
            for place in _in_turn(ranked, most):
                video_id = str(index.about[place]["row"]["video_id"])
                found.setdefault(video_id, []).append(question)
        return found


def _prepared(row: Mapping[str, Any], segments: Sequence[Mapping[Any, Any]]) -> Prepared:
    """A video as the pipeline takes it, from its rows in `videos` and `segments`."""
    rows = sorted(segments, key=lambda each: int(each["segment"]))
    language = None if row["language"] is None else str(row["language"])
    transcript = Transcript(
        tuple(Segment(str(each["text"]), _float(each["start_s"]), _float(each["end_s"]))
              for each in rows), source=str(row["transcript_source"]))
    path = None if row["path"] is None else Path(str(row["path"]))
    return Prepared(
        Source(str(row["video_id"]), path, "text" if row["width"] is None else "video"),
        content_id=str(row["content_id"]), transcript=transcript,
        transcript_id=transcript_hash(transcript), language=language,
        # folders of earlier versions do not say it
        segment_languages=tuple(
            language if each.get("language") is None else str(each["language"])
            for each in rows))


def _best(scores: torch.Tensor, most: int) -> list[int]:
    """Places of the greatest scores, greatest first; -inf is none."""
    values, places = scores.topk(min(most, len(scores)))
    return [int(place) for place, value in zip(places, values, strict=True)
            if value > -torch.inf]


def _in_turn(rankings: Sequence[Sequence[int]], most: int) -> list[int]:
    """Up to `most` different places: the first of each ranking, then the second, and so on."""
    places = dict.fromkeys(place for row in zip_longest(*rankings) for place in row
                           if place is not None)
    return list(places)[:most]


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _hits(video: IndexedVideo, modality: str, query: torch.Tensor,
          limit: int) -> list[dict[str, Any]]:
    """The best moments of a video, best first."""
    vectors, times = ((video.clip_embeddings, video.clip_times) if modality == "visual"
                      else (video.segment_embeddings, video.segment_times))
    scores = (vectors.to(query) @ query).cpu().numpy()
    taken = np.zeros(len(scores), dtype=bool)
    rows: list[dict[str, Any]] = []
    for best in np.argsort(-scores, kind="stable")[: 4 * limit]:
        if taken[best]:
            continue
        first = last = int(best)
        if modality == "visual":  # a moment goes on while its clips are nearly as near
            floor = scores[best] - 0.05
            while first > 0 and scores[first - 1] >= floor and not taken[first - 1]:
                first -= 1
            while last + 1 < len(scores) and scores[last + 1] >= floor and not taken[last + 1]:
                last += 1
        taken[first : last + 1] = True
        rows.append({
            "video_id": video.video_id, "score": float(scores[best]),
            "start_s": float(times[first, 0]), "end_s": float(times[last, 1]),
            "modality": modality, "segment": int(best) if modality == "text" else None})
    return rows[:limit]
