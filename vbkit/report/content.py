"""What a report shows: the tables of a results folder, video by video, as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbkit.errors import StoreError
from vbkit.store import list_tables, load_table
from vbkit.tables import VIDEO_ID

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Content", "ReportColumn", "ReportTable", "Stage", "Video", "read_content"]

Row = list[Any]

_SHOWN: dict[str, tuple[str, ...]] = {
    # Columns that the page shows of the tables that it knows; of others it shows all.
    "segments": ("segment", "start_s", "end_s", "text"),
    "clips": ("clip", "start_s", "end_s", "caption", "keyframe"),
    "errors": ("stage", "task", "error_type", "message"),
    "moderation": ("start_s", "end_s", "category", "parent_category", "score", "decision",
                   "modality", "evidence"),
    "moderation_videos": ("decision", "category", "score", "nearest_category", "note"),
    "sentiment": ("start_s", "end_s", "segment", "clip", "label", "score"),
    "sentiment_videos": ("label", "score", "p_negative", "p_neutral", "p_positive"),
    "summarisation": ("summary", "n_selected", "compression"),
    "summarisation_segments": ("start_s", "end_s", "segment", "rank", "score", "selected", "text",
                               "keyframe_s"),
    "chapters": ("start_s", "end_s", "title"),
    "classification": ("label", "score", "rank"),
    "classification_clips": ("start_s", "end_s", "clip", "label", "score", "rank"),
    "explanations": ("of_table", "of_row", "target", "score", "score_hidden", "method", "kind",
                     "weight", "start_s", "end_s", "text"),
    "qa": ("question", "rank", "answer", "score", "no_answer", "start_s", "end_s", "modality"),
}
_LEFT_OUT = frozenset({"words"})  # core tables whose rows say nothing that others do not show
_HIDDEN = frozenset({"keyframe"})  # columns that are read, but stay out of the page
_MOST_ROWS = 500_000  # of all tables and videos together
_CAPS = (10_000, 5_000, 2_000, 1_000, 500, 200, 100, 50, 20)
_HEADLINES = 3  # columns of other tasks in the list of videos


@dataclass(frozen=True)
class ReportColumn:
    """A column as the page shows it; `kind` is number, text, bool or time."""

    name: str
    kind: str
    unit: str
    doc: str


@dataclass(frozen=True)
class ReportTable:
    """A table that belongs to videos.

    Args:
        name: its name.
        doc: what a row is.
        columns: its columns, without `video_id`.
        known: whether the page has a place of its own for it; others are shown as tables.
    """

    name: str
    doc: str
    columns: tuple[ReportColumn, ...]
    known: bool

    def position(self, column: str) -> int | None:
        return next((i for i, own in enumerate(self.columns) if own.name == column), None)


@dataclass
class Video:
    """A row of `videos`, and the video's rows in all tables.

    Args:
        index: its number on the page, from 0.
        video_id: its id.
        about: its row of `videos`, by column.
        rows: its rows by table, as lists in the order of the table's columns.
        left_out: how many rows of a table are not on the page.
        keyframes: (time in s, path relative to the results folder) of its saved pictures.
        headline: what the list of videos says of it, by column of the list.
    """

    index: int
    video_id: str
    about: dict[str, Any]
    rows: dict[str, list[Row]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    keyframes: list[tuple[float, str]] = field(default_factory=list)
    headline: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What a stage of a run took (s)."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Content:
    """All that the page shows.

    Args:
        name: the results folder's own name.
        videos: the videos, by id.
        tables: the tables, by name.
        runs: rows of `runs`, the newest first; also `took` (s, or None) and `stages`, a list of
            `Stage`.
        others: tables of other tasks that have a column in the list of videos.
        notes: what the reader should know of the page itself.
        damaged: tables that could not be read, with the reason.
    """

    name: str
    videos: tuple[Video, ...]
    tables: dict[str, ReportTable]
    runs: tuple[dict[str, Any], ...]
    others: tuple[str, ...]
    notes: tuple[str, ...]
    damaged: tuple[str, ...]


def read_content(out: Path) -> Content:
    """Read a results folder.

    Raises:
        StoreError: it is no results folder, it has no videos yet, or its table `videos` is damaged.
    """
    names = list_tables(out)
    if "videos" not in names:
        raise StoreError(f"{out} has no videos yet: `vbkit run --out {out}` writes some")
    frame = load_table(out, "videos")
    videos = [Video(index, row[VIDEO_ID.name], row)
              for index, row in enumerate(_records(frame))]
    by_id = {video.video_id: video for video in videos}
    tables: dict[str, ReportTable] = {}
    damaged: list[str] = []
    strangers: set[str] = set()
    runs: list[dict[str, Any]] = []
    for name in names:
        if name == "videos" or name in _LEFT_OUT:
            continue
        try:
            table = load_table(out, name)
        except StoreError as error:
            damaged.append(str(error))
            continue
        if name == "runs":
            runs = _records(table)
        elif VIDEO_ID.name in table.columns:
            strangers |= _distribute(name, table, by_id, tables)
    notes = []
    if strangers:
        notes.append(f"{len(strangers)} video{'s are' if len(strangers) > 1 else ' is'} "
                     "still being worked on and left out")
    notes += _limit(videos)
    others = _headlines(videos, tables)
    return Content(out.resolve().name or str(out), tuple(videos), tables,
                   tuple(_with_stages(run) for run in reversed(runs)), others, tuple(notes),
                   tuple(damaged))


# --- values -----------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """A value that JSON knows; floats rounded to what can be read, NULL as None."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "isoformat"):
        return value.isoformat(timespec="seconds")
    return str(value)


def _columns(frame: pd.DataFrame) -> list[list[Any]]:
    return [[_plain(value) for value in frame[name].tolist()] for name in frame.columns]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    names = list(frame.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*_columns(frame), strict=True)]


def _kind(dtype: Any) -> str:
    from pandas.api import types

    if types.is_bool_dtype(dtype):
        return "bool"
    if types.is_numeric_dtype(dtype):
        return "number"
    return "time" if types.is_datetime64_any_dtype(dtype) else "text"


def _distribute(name: str, frame: pd.DataFrame, by_id: Mapping[str, Video],
                tables: dict[str, ReportTable]) -> set[str]:
    """Give each video its rows of a table; the ids that `videos` does not have."""
    wanted = _SHOWN.get(name, tuple(column for column in frame.columns if column != VIDEO_ID.name))
    chosen = [column for column in wanted if column in frame.columns]
    shown = [column for column in chosen if column not in _HIDDEN]
    docs, units = frame.attrs.get("docs", {}), frame.attrs.get("units", {})
    table = tables[name] = ReportTable(
        name, frame.attrs.get("doc", ""),
        tuple(ReportColumn(column, _kind(frame[column].dtype), units.get(column, ""),
                           docs.get(column, "")) for column in shown), name in _SHOWN)
    ids = frame[VIDEO_ID.name].tolist()
    strangers = set()
    rows = zip(*_columns(frame[shown]), strict=True) if shown else ((),) * len(ids)
    for video_id, row in zip(ids, rows, strict=True):
        if video_id in by_id:
            by_id[video_id].rows.setdefault(table.name, []).append(list(row))
        else:
            strangers.add(video_id)
    if name == "clips" and {"start_s", "end_s", "keyframe"} <= set(chosen):
        _note_keyframes(frame, by_id)
    return strangers


def _note_keyframes(clips: pd.DataFrame, by_id: Mapping[str, Video]) -> None:
    saved = clips[clips["keyframe"].notna()]
    middles = (saved["start_s"] + saved["end_s"]) / 2
    for video_id, middle, keyframe in zip(saved[VIDEO_ID.name], middles, saved["keyframe"],
                                          strict=True):
        if video_id in by_id and math.isfinite(middle):
            by_id[video_id].keyframes.append((round(float(middle), 3), str(keyframe)))


def _limit(videos: Sequence[Video]) -> list[str]:
    """Cut long tables of videos, all at one number of rows, so that the page stays readable."""
    counts = [len(rows) for video in videos for rows in video.rows.values()]
    cap = next((cap for cap in _CAPS if sum(min(count, cap) for count in counts) <= _MOST_ROWS),
               _CAPS[-1])
    cut = False
    for video in videos:
        for name, rows in video.rows.items():
            if len(rows) > cap:
                video.left_out[name] = len(rows) - cap
                video.rows[name] = rows[:cap]
                cut = True
    return [f"of longer tables the first {cap:,} rows of each video are shown"] if cut else []


# --- runs -------------------------------------------------------------------------------------


def _with_stages(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "took": _took(run), "stages": _stages(run.get("seconds"))}


def _took(run: Mapping[str, Any]) -> float | None:
    """From start to end (s); None for a run that did not end."""
    try:
        began, ended = (datetime.fromisoformat(run[name]) for name in ("started", "finished"))
    except (KeyError, TypeError, ValueError):
        return None
    return max(0.0, (ended - began).total_seconds())


def _stages(text: Any) -> list[Stage]:
    """Stages of a run, longest first, and what is left of its total; empty where it is unknown."""
    try:
        seconds = {str(name): float(value) for name, value in json.loads(text).items()}
    except (TypeError, ValueError, AttributeError):
        return []
    total = seconds.pop("total", None)
    stages = [Stage(_stage_name(name), value) for name, value in seconds.items()
              if math.isfinite(value) and value > 0]
    rest = total - sum(stage.seconds for stage in stages) if total else 0.0
    if rest > 0.005 * (total or 1.0):
        stages.append(Stage("everything else", rest))
    return sorted(stages, key=lambda stage: -stage.seconds)


def _stage_name(name: str) -> str:
    known = {"decode": "waiting for decoding", "backbone": "visual backbone",
             "text": "reading text", "joint": "joint encoder"}
    return known.get(name, name.removeprefix("head:"))


# --- the list of videos -----------------------------------------------------------------------


def _values(video: Video, table: ReportTable | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in video.rows.get(table.name, [])]


def _headlines(videos: Sequence[Video], tables: Mapping[str, ReportTable]) -> tuple[str, ...]:
    """Fill `Video.headline`; the tables of other tasks that have a headline."""
    others = _one_row_tables(videos, tables)
    for video in videos:
        rows = {name: _values(video, tables.get(name)) for name in (
            "moderation_videos", "sentiment_videos", "summarisation", "classification", "qa",
            *others)}
        first = {name: own[0] if own else {} for name, own in rows.items()}
        labels = sorted((row for row in rows["classification"] if row.get("score") is not None),
                        key=lambda row: -row["score"])
        questions = [row for row in rows["qa"] if row.get("rank") in (1, None)]
        video.headline = {
            "decision": first["moderation_videos"].get("decision"),
            "category": first["moderation_videos"].get("category"),
            "sentiment": first["sentiment_videos"].get("label"),
            "sentiment_score": first["sentiment_videos"].get("score"),
            "summary": first["summarisation"].get("summary"),
            "label": labels[0].get("label") if labels else None,
            "label_score": labels[0].get("score") if labels else None,
            "questions": len(questions),
            "answers": sum(not row.get("no_answer") for row in questions),
            "errors": len(video.rows.get("errors", ())),
            **{name: _words(first[name], tables[name]) for name in others},
        }
    return others


def _one_row_tables(videos: Sequence[Video],
                    tables: Mapping[str, ReportTable]) -> tuple[str, ...]:
    """Tables of other tasks with at most a row a video, which say something of it as a whole."""
    found = [name for name, table in sorted(tables.items()) if not table.known and table.columns
             and any(name in video.rows for video in videos)
             and all(len(video.rows.get(name, ())) <= 1 for video in videos)]
    return tuple(found[:_HEADLINES])


def _words(row: Mapping[str, Any], table: ReportTable) -> str | None:
    """A few words for a row: its first text, its first number."""
    said: list[str] = []
    for kind in ("text", "bool", "number"):
        column = next((own for own in table.columns if own.kind == kind), None)
        value = row.get(column.name) if column is not None else None
        if column is not None and value is not None and len(said) < 2:
            said.append(str(value) if kind == "text" else
                        f"{column.name}: {'yes' if value else 'no'}" if kind == "bool" else
                        f"{value:g}".replace("-", "\N{MINUS SIGN}"))
    return ", ".join(said) or None


def count_by(values: Iterable[Any]) -> dict[str, int]:
    """How often each value that is not NULL occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[str(value)] = counts.get(str(value), 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
