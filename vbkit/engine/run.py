"""Task heads over encoded sources, and their tables into a results folder.

A video's rows are redone when what they depend on has changed, and then replace the old ones; the
`videos` row is written last. So a killed run resumes, and nothing is ever half there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from vbkit.engine.bundle import Bundle
from vbkit.engine.pipeline import Encoded, Pipeline, Prepared, Request
from vbkit.errors import PluginError, SchemaError, VbkitError
from vbkit.explanations import check_explanations
from vbkit.features import Features
from vbkit.heads import Head, HeadContext
from vbkit.options import options_json
from vbkit.plugins import PluginManager, strict
from vbkit.runs import Failure, RunInfo, RunReport
from vbkit.specs import TaskSpec, load_object
from vbkit.store import ResultStore, list_tables
from vbkit.store.explained import forget_explanations
from vbkit.tables import CORE_TABLES, TableSchema

if TYPE_CHECKING:
    from vbkit.sources import Source

__all__ = ["HeadRunner", "Progress", "RunResult", "Runner", "fingerprint"]

logger = logging.getLogger("vbkit")
_PENDING_WRITES = 8


@dataclass(frozen=True)
class Progress:
    """An input that was dealt with.

    Args:
        done, total: inputs.
        video_id: the last one.
        status: ok, partial, failed or skipped.
        duration_s: how long it is, 0 where that is unknown.
    """

    done: int
    total: int
    video_id: str
    status: str
    duration_s: float = 0.0


@dataclass(frozen=True)
class RunResult:
    """What a run gives back.

    Args:
        tables: table name to rows: this run's, or, with a results folder, all that it holds.
        report: counts, times, failures and notes.
        run: id, tasks and model.
    """

    tables: Mapping[str, pd.DataFrame]
    report: RunReport
    run: RunInfo


@dataclass
class HeadRunner:
    """A task with its head, which is made when the first video needs it.

    Args:
        spec: the task.
        origin: the distribution and version that it comes from.
        options: an instance of its options.
        context: what its head is set up with.
    """

    spec: TaskSpec
    origin: str
    options: Any
    context: HeadContext
    head: Head | None = None
    broken: Exception | None = None

    @property
    def by_question(self) -> bool:
        """Whether each question counts by itself."""
        return "question" in self.spec.tables[0].column_names

    def identity(self, bundle: Bundle) -> str:
        """Of all that its rows depend on, apart from the input."""
        return fingerprint([self.spec.name, self.origin, self.spec.api, options_json(self.options),
                            _folder_digest(self.context.head_path),
                            bundle.fingerprint_of(self.spec.needs),
                            bundle.visual_key])

    def row_fingerprint(self, bundle: Bundle, prepared: Prepared) -> str:
        """Of all that its rows of one input depend on."""
        return row_fingerprint(self.identity(bundle), prepared)

    def predict(self, features: Features,
                questions: Sequence[str] | None = None) -> dict[str, pd.DataFrame]:
        """The head's tables, each checked against its schema.

        Args:
            features: at least what the task needs.
            questions: asked of the head; None for those of the features.

        Raises:
            Exception: whatever the head raises.
            SchemaError: a table is undeclared or breaks its schema.
        """
        head = self.ready()
        given = features.restrict(self.spec.needs, questions)
        with torch.no_grad():
            if getattr(type(head), "predict_batch", Head.predict_batch) is not Head.predict_batch:
                tables = head.predict_batch([given])[0]
            else:
                tables = head.predict(given)
        return self.conform(tables)

    def conform(self, tables: Any) -> dict[str, pd.DataFrame]:
        """What a head returned, each table checked against its schema; one left out is empty.

        Raises:
            SchemaError: a table is undeclared or breaks its schema.
        """
        known = {schema.name: schema for schema in self.spec.tables}
        if not isinstance(tables, Mapping):
            raise SchemaError(f"task {self.spec.name}: predict must return a dict of DataFrames, "
                              f"got {type(tables).__name__}")
        unknown = sorted(set(tables) - set(known))
        if unknown:
            raise SchemaError(f"task {self.spec.name} returned table {unknown[0]!r}, which it does "
                              f"not declare; declared are {', '.join(known)}")
        return {name: schema.conform(tables[name]) if name in tables else schema.empty()
                for name, schema in known.items()}

    def explain(self, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
        """What made rows of one of the task's tables, checked against `EXPLANATIONS`.

        Args:
            features: at least what the task's `needs` and `explain_needs` name.
            rows: of one video, as `Head.explain` takes them.

        Raises:
            Exception: whatever the head raises.
            SchemaError: its table breaks the schema.
        """
        head = self.ready()
        given = features.restrict(self.spec.needs | self.spec.explain_needs)
        with torch.no_grad():
            return check_explanations(head.explain(given, rows), rows)

    def ready(self) -> Head:
        """The head, set up.

        Raises:
            Exception: whatever its import or its `setup` raises, each time again.
        """
        if self.broken is not None:
            raise self.broken.with_traceback(None)
        if self.head is None:
            try:
                head = load_object(self.spec.head)()
                with torch.no_grad():
                    head.setup(self.context)
            except Exception as error:
                self.broken = error.with_traceback(None)
                raise
            self.head = head
        return self.head

    def close(self) -> None:
        """Tear the head down."""
        if self.head is not None:
            try:
                self.head.teardown()
            except Exception:
                logger.warning("task %s: teardown failed", self.spec.name, exc_info=True)
            self.head = None


@dataclass(frozen=True)
class _Todo:
    """What is to be done for a video.

    Args:
        tasks: to be run.
        questions: for each task that has some, those to ask it.
        core: whether the core tables are out of date.
        kept: for each task, the questions whose answers still hold.
    """

    tasks: tuple[HeadRunner, ...]
    questions: Mapping[str, tuple[str, ...]]
    core: bool
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Runner:
    """One run: sources through the pipeline, heads, and into the store.

    Args:
        bundle: the model.
        pipeline: prepares and encodes.
        tasks: what to run.
        manager: whose observers are told.
        store: the results folder, or None to keep tables in memory.
        questions: asked of every video, beside those of its own manifest row.
        fresh: whether to redo what is up to date.
        progress: called after each input.
        describe: columns of `runs` that only the caller knows: `command`, `versions`.
    """

    def __init__(
        self,
        bundle: Bundle,
        pipeline: Pipeline,
        tasks: Sequence[HeadRunner],
        manager: PluginManager,
        *,
        store: ResultStore | None = None,
        questions: Sequence[str] = (),
        fresh: bool = False,
        captions: bool = False,
        progress: Callable[[Progress], None] | None = None,
        describe: Mapping[str, Any] | None = None,
    ) -> None:
        self.bundle = bundle
        self.pipeline = pipeline
        self.tasks = tuple(tasks)
        self.manager = manager
        self.store = store
        self.questions = tuple(questions)
        self.fresh = fresh
        self.captions = captions
        self.progress = progress
        self.describe = dict(describe or {})
        self.seconds: dict[str, float] = defaultdict(float)
        self.failures: list[Failure] = []
        self.notes: list[str] = []
        self.counts = {"ok": 0, "partial": 0, "failed": 0, "skipped": 0}
        self._noted: dict[str, list[str]] = defaultdict(list)  # note -> the videos it is about
        self._memory: dict[str, list[pd.DataFrame]] = defaultdict(list)
        self._writes: deque[Future[None]] = deque()
        self._identities = {task.spec.name: task.identity(bundle) for task in self.tasks}

    def run(self, sources: Sequence[Source], notes: Iterable[str] = ()) -> RunResult:
        """Do all sources. A failure costs its own rows only.

        Raises:
            StoreError: the results folder cannot be written, or another run uses it.
        """
        began = time.perf_counter()
        started = pd.Timestamp.now(tz="UTC")
        info = RunInfo(
            run_id=f"{started:%Y%m%dT%H%M%S}-{os.urandom(4).hex()}",
            tasks=tuple(task.spec.name for task in self.tasks), model=self.bundle.name,
            n_inputs=len(sources), out=str(self.store.out) if self.store is not None else None)
        self.notes += notes
        self.manager.notify("vbkit_before_run", run=info)
        self._write_run(info, started, None)
        writer = ThreadPoolExecutor(1, thread_name_prefix="vbkit-write")
        try:
            prepared = self.pipeline.prepare(sources)
            encoding = self.pipeline.encode(self._requests(prepared))
            for done, encoded in enumerate(encoding, start=1):
                status = self._finish(encoded, info, writer)
                self.counts[status] += 1
                if self.progress is not None:
                    media = encoded.features.info
                    self.progress(Progress(done, len(sources), encoded.features.video_id, status,
                                           media.duration_s if media else 0.0))
            while self._writes:
                self._writes.popleft().result()
        finally:
            writer.shutdown(cancel_futures=True)
            for task in self.tasks:
                task.close()
        self.seconds |= self.pipeline.seconds
        self.seconds["total"] = time.perf_counter() - began
        for note, about in self._noted.items():
            more = f" and {len(about) - 1} more" if len(about) > 1 else ""
            self.notes.append(f"{about[0]}{more}: {note}")
        report = RunReport(
            n_ok=self.counts["ok"], n_partial=self.counts["partial"],
            n_failed=self.counts["failed"], n_skipped=self.counts["skipped"],
            failures=tuple(self.failures), seconds=dict(self.seconds), notes=tuple(self.notes))
        self._write_run(info, started, pd.Timestamp.now(tz="UTC"))
        self.manager.notify("vbkit_after_run", run=info, report=report)
        return RunResult(self._tables(), report, info)

    # --- what is to be done -------------------------------------------------------------------

    def _requests(self, prepared: Iterator[Prepared]) -> Iterator[Request]:
        for source in prepared:
            todo = self._todo(source)
            needs: frozenset[str] = frozenset().union(*(t.spec.needs for t in todo.tasks))
            if self.captions and (todo.core or todo.tasks):
                needs |= {"generate"}
            yield Request(source, needs, (), bool(todo.tasks) or todo.core, token=todo)

    def _todo(self, prepared: Prepared) -> _Todo:
        asked = tuple(dict.fromkeys((*self.questions, *prepared.source.questions)))
        store = self.store
        if store is None or prepared.broken:
            return _Todo(self.tasks, {t.spec.name: asked for t in self.tasks}, True)
        video_id = prepared.source.video_id
        tasks, kept, questions = [], {}, {task.spec.name: asked for task in self.tasks}
        for task in self.tasks:
            wanted = self._row_fingerprint(task, prepared)
            found = store.metadata(task.spec.tables[0].name, video_id) or {}
            current = found.get("fingerprint") == wanted and all(
                store.fingerprint(schema.name, video_id) == wanted
                for schema in task.spec.tables[1:])
            if not task.by_question:
                if self.fresh or not current:
                    tasks.append(task)
                continue
            answered = tuple(json.loads(found.get("questions", "[]")))
            if self.fresh or not current:
                # Answers of an older model or transcript are asked for again, not left beside.
                questions[task.spec.name] = tuple(dict.fromkeys((*answered, *asked)))
                tasks.append(task)
            elif new := tuple(q for q in asked if q not in answered):
                questions[task.spec.name] = new
                kept[task.spec.name] = answered
                tasks.append(task)
        core = (self.fresh
                or store.fingerprint("videos", video_id) != self._core_fingerprint(prepared)
                or (self.captions and self._older_captions(video_id) is None))
        return _Todo(tuple(tasks), questions, core, kept)

    def _row_fingerprint(self, task: HeadRunner, prepared: Prepared) -> str:
        return row_fingerprint(self._identities[task.spec.name], prepared)

    def _core_fingerprint(self, prepared: Prepared) -> str:
        return fingerprint([prepared.content_id, prepared.transcript_id, prepared.language,
                            prepared.segment_languages, prepared.source.location,
                            prepared.transcript.source, self.bundle.visual_key])

    # --- one video ----------------------------------------------------------------------------

    def _finish(self, encoded: Encoded, info: RunInfo, writer: ThreadPoolExecutor) -> str:
        prepared, todo = encoded.request.prepared, encoded.request.token
        video_id = prepared.source.video_id
        for note in prepared.notes:
            self._noted[note].append(video_id)
        if not encoded.request.wanted:
            return "skipped"
        failures = list(encoded.failures)
        tables: dict[str, pd.DataFrame] = {}
        schemas: dict[str, TableSchema] = {}
        metadata: dict[str, tuple[str, dict[str, str]]] = {}
        usable = encoded.features.error is None
        for task in todo.tasks if usable else ():
            began = time.perf_counter()
            try:
                made = task.predict(encoded.features, todo.questions[task.spec.name])
            except Exception as error:
                if strict():
                    raise
                if task.by_question and not todo.kept.get(task.spec.name):
                    # No rows, but what was asked is remembered, to be asked again.
                    for schema in task.spec.tables:
                        tables[schema.name], schemas[schema.name] = schema.empty(), schema
                        metadata[schema.name] = ("", {
                            "questions": json.dumps(todo.questions[task.spec.name])})
                logger.debug("task %s on %s", task.spec.name, video_id, exc_info=True)
                failures.append(Failure(video_id, "head", type(error).__name__,
                                        _message(error), task.spec.name))
                continue
            finally:
                self.seconds[f"head:{task.spec.name}"] += time.perf_counter() - began
            kept = todo.kept.get(task.spec.name, ())
            if kept and self.store is not None:
                made = self._with_kept_rows(task, video_id, made)
            own = {
                "task": task.spec.name, "plugin": task.origin, "model": info.model,
                "model_fingerprint": self.bundle.fingerprint,
                "options": options_json(task.options),
                "head": str(task.context.head_path.absolute()) if task.context.head_path else "",
                "questions": json.dumps(
                    [*kept, *todo.questions[task.spec.name]] if task.by_question else []),
            }
            for schema in task.spec.tables:
                tables[schema.name] = made[schema.name]
                schemas[schema.name] = schema
                key = self._row_fingerprint(task, prepared) if encoded.complete else ""
                metadata[schema.name] = (key, own)
        failures += self._older_failures(video_id, todo, usable)
        status = "failed" if not usable else "partial" if failures else "ok"
        tables |= self._core_tables(encoded, failures, status)
        for name in ("segments", "words", "clips", "errors", "videos"):  # last: it says "done"
            if name not in tables:
                continue
            # What was cut short by a decoder that hung or crashed is tried again next time.
            done = encoded.complete and status != "failed"
            core_fingerprint = self._core_fingerprint(prepared) if done else ""
            schemas[name] = CORE_TABLES[name]
            metadata[name] = (core_fingerprint, {"input": _input_of(prepared)})
        for failure in failures:
            self.failures.append(failure)
            self.manager.notify("vbkit_on_error", run=info, failure=failure)
        self._keep(video_id, tables, schemas, metadata, encoded, writer)
        self.manager.notify(
            "vbkit_after_video", run=info, video=video_id,
            tables={name: _with_id(frame, video_id) for name, frame in tables.items()})
        return status

    def _with_kept_rows(self, task: HeadRunner, video_id: str,
                        made: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """New answers after the older ones, which still hold."""
        assert self.store is not None
        out = {}
        for schema in task.spec.tables:
            old = self.store.rows(schema.name, video_id)
            parts = [made[schema.name]]
            if old is not None and len(old):
                parts.insert(0, old.drop(columns="video_id"))
            out[schema.name] = schema.conform(pd.concat(parts, ignore_index=True))
        return out

    def _older_failures(self, video_id: str, todo: _Todo, usable: bool) -> list[Failure]:
        """Failures of tasks that this run leaves alone."""
        old = self.store.rows("errors", video_id) if self.store is not None and usable else None
        if old is None:
            return []
        asked = {task.spec.name for task in self.tasks}
        return [Failure(video_id, row["stage"], row["error_type"], row["message"], row["task"])
                for row in old.to_dict("records")
                if row["stage"] == "head" and row["task"] not in asked]

    def _older_captions(self, video_id: str) -> list[str | None] | None:
        """Captions of a video's clips that an earlier run wrote, if it wrote any."""
        old = self.store.rows("clips", video_id) if self.store is not None else None
        if old is None or (len(old) and old["caption"].isna().all()):
            return None
        return [None if pd.isna(text) else str(text) for text in old["caption"]]

    def _captions(self, encoded: Encoded) -> list[str | None]:
        """A caption for each clip, where they were asked for or are there already."""
        features, count = encoded.features, len(encoded.clip_times)
        if self.captions and count and "generate" in features.available:
            return list(features.generate([[clip] for clip in range(count)]))
        older = None
        if not self.fresh and encoded.complete:
            older = self._older_captions(features.video_id)
        return older if older is not None and len(older) == count else [None] * count

    def _core_tables(self, encoded: Encoded, failures: Sequence[Failure],
                     status: str) -> dict[str, pd.DataFrame]:
        prepared, media = encoded.request.prepared, encoded.features.info
        source, segments = prepared.source, prepared.transcript.segments
        timed_end = max((s.end_s for s in segments if s.timed), default=None)
        duration = media.duration_s if media else prepared.sound_s or timed_end
        video = {
            "path": source.location,
            "content_id": prepared.content_id or None, "status": status,
            "error": failures[0].message if failures else None,
            "duration_s": duration,
            "start_offset_s": media.start_offset_s if media else None,
            "width": media.width if media else None, "height": media.height if media else None,
            "n_frames": media.n_frames if media else None,
            "n_clips": len(encoded.clip_times), "n_segments": len(segments),
            "transcript_source": prepared.transcript.source, "language": prepared.language,
        }
        keyframes = _keyframe_of_clip(encoded.clip_times, encoded.keyframes, prepared.content_id)
        words = [
            {"segment": i, "word": j, "start_s": w.start_s, "end_s": w.end_s, "text": w.text,
             "probability": w.probability}
            for i, s in enumerate(segments) for j, w in enumerate(s.words)]
        return {
            **({"words": CORE_TABLES["words"].frame(words)} if words else {}),
            "videos": CORE_TABLES["videos"].frame([video]),
            "segments": CORE_TABLES["segments"].frame([
                {"segment": i, "start_s": s.start_s, "end_s": s.end_s, "text": s.text,
                 "language": language}
                for i, (s, language) in enumerate(
                    zip(segments, prepared.segment_languages, strict=True))]),
            "clips": CORE_TABLES["clips"].frame([
                {"clip": i, "start_s": start, "end_s": end, "caption": caption,
                 "keyframe": picture}
                for i, ((start, end), caption, picture) in enumerate(
                    zip(encoded.clip_times, self._captions(encoded), keyframes, strict=True))]),
            "errors": CORE_TABLES["errors"].frame([
                {"stage": f.stage, "task": f.task, "error_type": f.error_type,
                 "message": f.message} for f in failures]),
        }

    # --- keeping ------------------------------------------------------------------------------

    def _keep(
        self,
        video_id: str,
        tables: Mapping[str, pd.DataFrame],
        schemas: Mapping[str, TableSchema],
        metadata: Mapping[str, tuple[str, dict[str, str]]],
        encoded: Encoded,
        writer: ThreadPoolExecutor,
    ) -> None:
        if self.store is None:
            for name, frame in tables.items():
                self._memory[name].append(_with_id(frame, video_id))
            return
        while len(self._writes) >= _PENDING_WRITES or (self._writes and self._writes[0].done()):
            self._writes.popleft().result()
        todo = encoded.request.token
        lost = [schema.name for task in todo.tasks for schema in task.spec.tables
                if schema.name not in tables and not todo.kept.get(task.spec.name)]
        replaced = {schema.name for task in todo.tasks for schema in task.spec.tables
                    if not todo.kept.get(task.spec.name)}  # answers are added after kept ones
        now = _input_of(encoded.request.prepared)
        pictures = [(keyframe_name(encoded.request.prepared.content_id, moment), jpeg)
                    for moment, jpeg in encoded.keyframes]

        def write(store: ResultStore) -> None:
            # Rows of a task that failed now, or of another picture or transcript, are superseded.
            before = (store.metadata("videos", video_id) or {}).get("input", now)
            other = [name for name in list_tables(store.out)
                     if name not in schemas and name not in CORE_TABLES] if before != now else []
            for name in (*lost, *other, *(["words"] if "words" not in schemas else [])):
                store.remove(name, video_id)
            forget_explanations(store, video_id, {*replaced, *other})
            for name, jpeg in pictures:
                if not (store.out / name).exists():
                    store.write_file(name, jpeg)
            for name, schema in schemas.items():
                key, own = metadata[name]
                store.write(schema, video_id, tables[name], fingerprint=key, metadata=own)

        self._writes.append(writer.submit(write, self.store))

    def _write_run(self, info: RunInfo, started: pd.Timestamp,
                   finished: pd.Timestamp | None) -> None:
        row = {
            "run_id": info.run_id, "started": started, "finished": finished,
            "command": self.describe.get("command", ""),
            "versions": json.dumps(self.describe.get("versions", {})),
            "tasks": json.dumps({t.spec.name: json.loads(options_json(t.options))
                                 for t in self.tasks}),
            "model": f"{self.bundle.name} {self.bundle.fingerprint}",
            "device": f"{self.bundle.device} {self.bundle.precision}",
            "cache": str(self.pipeline.cache.folder) if self.pipeline.cache else None,
            **{f"n_{status}": count for status, count in self.counts.items()},
            "seconds": None if finished is None else json.dumps(
                {name: round(seconds, 3) for name, seconds in self.seconds.items()}),
        }
        if self.store is not None:
            self.store.write_run(row)
        elif finished is not None:
            self._memory["runs"] = [CORE_TABLES["runs"].frame([row])]

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        if self.store is not None:
            return StoredTables(self.store.out)
        schemas = {**CORE_TABLES, **{s.name: s for t in self.tasks for s in t.spec.tables}}
        del schemas["explanations"]  # no run writes them
        out = {}
        for name, schema in schemas.items():
            parts = [frame for frame in self._memory[name] if len(frame)]
            if parts:
                out[name] = pd.concat(parts, ignore_index=True)
            else:
                out[name] = _with_id(schema.empty(), "") if schema.per_video else schema.empty()
        return out


class StoredTables(Mapping[str, pd.DataFrame]):
    """The tables of a results folder, each read when it is asked for."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __getitem__(self, name: str) -> pd.DataFrame:
        from vbkit.store import load_table

        if name not in list(self):
            raise KeyError(name)
        return load_table(self.out, name)

    def __iter__(self) -> Iterator[str]:
        return iter(list_tables(self.out))

    def __len__(self) -> int:
        return len(list(iter(self)))


def keyframe_name(content_id: str, moment: float) -> str:
    """A keyframe's path inside the results folder; the video's id is never part of it."""
    return f"keyframes/{content_id[:32]}/{round(moment * 1000):09d}.jpg"


def _keyframe_of_clip(clip_times: np.ndarray, keyframes: Sequence[tuple[float, bytes]],
                      content_id: str) -> list[str | None]:
    moments = [moment for moment, _ in keyframes]
    out: list[str | None] = []
    for start, end in clip_times:
        inside = [m for m in moments if start <= m < end or m == start]
        out.append(keyframe_name(content_id, inside[0]) if inside else None)
    return out


def _input_of(prepared: Prepared) -> str:
    return f"{prepared.content_id} {prepared.transcript_id}"


def fingerprint(value: Any) -> str:
    """A short hash of plain data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def row_fingerprint(identity: str, prepared: Prepared) -> str:
    """Of a task's rows of one input: `identity` is `HeadRunner.identity`."""
    return fingerprint([identity, prepared.content_id, prepared.transcript_id,
                        prepared.language, prepared.segment_languages])


def _folder_digest(folder: Path | None) -> str:
    if folder is None:
        return ""
    digest = hashlib.blake2b(digest_size=8)
    files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]
    for path in files:
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _with_id(frame: pd.DataFrame, video_id: str) -> pd.DataFrame:
    frame = frame.copy()
    frame.insert(0, "video_id", pd.Series([video_id] * len(frame), dtype="string",
                                          index=frame.index))
    return frame


def _message(error: Exception) -> str:
    if isinstance(error, VbkitError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def check_head_path(task: str, path: Path) -> Path:
    """A fine-tuned head's folder.

    Raises:
        PluginError: it is not there.
    """
    if not path.is_dir():
        raise PluginError(f"--head {task}={path}: there is no such folder")
    return path


