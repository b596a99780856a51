"""Rows of a results folder explained, from its tables and its feature cache."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vbkit.errors import FeatureError, SchemaError, StoreError, UsageError
from vbkit.explanations import EXPLANATIONS
from vbkit.plugins import PluginManager
from vbkit.specs import TaskSpec
from vbkit.store import ResultStore, load_table
from vbkit.store.explained import keep_explanations
from vbkit.tables import CORE_TABLES

if TYPE_CHECKING:
    from vbkit.engine.engine import Engine
    from vbkit.engine.run import HeadRunner

__all__ = ["ChosenRows", "choose_rows", "explain_rows"]

logger = logging.getLogger("vbkit")


@dataclass(frozen=True)
class ChosenRows:
    """Rows of one video to explain.

    Args:
        video_id: the video.
        spec: the task that wrote them.
        table: one of its tables.
        numbers: of the rows in the table of all videos.
        rows: as `Head.explain` takes them.
        written: what the store keeps of how they were written.
    """

    video_id: str
    spec: TaskSpec
    table: str
    numbers: tuple[int, ...]
    rows: pd.DataFrame
    written: dict[str, str]


def choose_rows(manager: PluginManager, out: str | Path, table: str,
                numbers: Sequence[int]) -> list[ChosenRows]:
    """Find rows to explain, without loading a model.

    Args:
        manager: the plugins.
        out: the results folder.
        table: a table of a task.
        numbers: of rows in `load_table(out, table)`, which are counted from 0.

    Raises:
        StoreError: the folder cannot be read, or has no such table.
        UsageError: there is no such row, or no task that explains it.
    """
    whole = load_table(out, table)
    if table in CORE_TABLES:
        raise UsageError(f"{table} is written by vbkit itself; only rows of a task can be "
                         f"explained ({_explained(manager)})")
    wrong = [number for number in numbers if not 0 <= number < len(whole)]
    if wrong:
        there = f"its rows are 0 to {len(whole) - 1}" if len(whole) else "it has no rows"
        raise UsageError(f"{table} has no row {wrong[0]}: {there}, in the order of "
                         f"`vbkit show {out} {table}`")
    store = ResultStore(out)
    chosen = []
    picked = whole.loc[list(dict.fromkeys(numbers))]
    for video_id, part in picked.groupby("video_id", sort=False):
        written = store.metadata(table, str(video_id)) or {}
        spec = manager.get_task(written.get("task", "")).spec
        if table not in spec.explained:
            raise UsageError(f"task {spec.name} does not explain rows of {table}; what can be "
                             f"explained is {_explained(manager)}")
        of_video = whole.index[whole["video_id"] == video_id]
        schema = next(each for each in spec.tables if each.name == table)
        try:
            rows = schema.conform(part[list(schema.column_names)])
        except (SchemaError, KeyError) as error:
            raise StoreError(f"{table} was written by another version of task {spec.name} "
                             f"({error}); `vbkit run` {video_id} again") from error
        rows.index = pd.Index([of_video.get_loc(label) for label in part.index])
        rows.attrs = {"table": table, **{name: whole.attrs[name] for name in ("units", "docs")}}
        chosen.append(ChosenRows(str(video_id), spec, table, tuple(map(int, part.index)), rows,
                                 written))
    return chosen


def _explained(manager: PluginManager) -> str:
    names = [name for task in manager.tasks() for name in task.spec.explained]
    return ", ".join(dict.fromkeys(names)) or "nothing: no installed task explains its rows"


def explain_rows(engine: Engine, out: str | Path, chosen: Sequence[ChosenRows], *,
                 head: str | Path | None = None, save: bool = False) -> pd.DataFrame:
    """Explain rows; no video is opened, unless `motion` is read of it that is not cached.

    Args:
        engine: with the model that the folder was made with.
        out: the results folder.
        chosen: from `choose_rows`.
        head: folder of a fine-tuned head; None for the one that wrote the rows.
        save: whether to write what is found into the table `explanations`.

    Returns:
        the table `explanations`, with `video_id`.

    Raises:
        StoreError: features are no longer in the cache, the folder was made with another model,
            or it cannot be written.
        Exception: what the head raises.
    """
    from vbkit.engine.library import Library

    library = Library(engine, out)
    store = ResultStore(out)
    frames = []
    runners: dict[tuple[str, ...], HeadRunner] = {}  # loaded once for all videos alike
    try:
        for each in chosen:
            folder = str(head or each.written.get("head", ""))
            task, options = each.spec.name, each.written.get("options") or "{}"
            key = (task, options, folder)
            if key not in runners:
                (runners[key],) = engine.heads([task], {task: json.loads(options)},
                                               {task: folder} if folder else None)
            found = _explain(library, runners[key], each, current=head is None)
            if save:
                with store.lock():
                    keep_explanations(store, each.video_id, each.table,
                                      each.rows.index.tolist(), found)
            found.insert(0, "video_id", pd.Series([each.video_id] * len(found), dtype="string"))
            frames.append(found)
    finally:
        for runner in runners.values():
            runner.close()
    whole = pd.concat(frames, ignore_index=True)
    whole.attrs = {"table": EXPLANATIONS.name,
                   "units": {column.name: column.unit for column in EXPLANATIONS if column.unit},
                   "docs": {column.name: column.doc for column in EXPLANATIONS}}
    return whole


def _explain(library: Any, runner: HeadRunner, chosen: ChosenRows, current: bool) -> pd.DataFrame:
    needs = runner.spec.needs | runner.spec.explain_needs
    library.engine.encoder.check_needs(needs, runner.spec.name)
    questions: tuple[str, ...] = ()
    if "question" in chosen.rows.columns:
        questions = tuple(dict.fromkeys(chosen.rows["question"]))
    videos = list(library.features(needs, questions, [chosen.video_id]))
    if not videos:
        raise StoreError(
            f"the features of {chosen.video_id} are no longer in the feature cache "
            f"{library.cache}: `vbkit run` it again, or name the cache with --cache")
    if current and not library.is_current(runner, chosen.table, chosen.video_id):
        logger.warning("%s: task %s, its head or what is installed has changed since the rows of "
                       "%s were written; what is explained is what it says now", chosen.video_id,
                       runner.spec.name, chosen.table)
    try:
        return runner.explain(videos[0], chosen.rows)
    except FeatureError as error:
        raise FeatureError(f"task {runner.spec.name} cannot explain {chosen.table}: {error}"
                           ) from error
