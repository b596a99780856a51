"""How well a task's head does on labelled videos."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from vbkit.evaluation.evaluate import Evaluation
from vbkit.evaluation.labelled import encode_labelled, read_labelled
from vbkit.heads import Head
from vbkit.runs import Failure
from vbkit.specs import check_capability

if TYPE_CHECKING:
    from vbkit.engine import Engine
    from vbkit.features import Features

__all__ = ["check_capability", "evaluate_task"]


@contextmanager
def _remembered(head: Head) -> Iterator[dict[int, Mapping[str, pd.DataFrame]]]:
    """Tables that a head makes meanwhile, by the identity of the features: not to make them twice.

    Most heads evaluate themselves by what they predict; for one that does not, this stays empty.
    """
    made: dict[int, Mapping[str, pd.DataFrame]] = {}
    predict = head.predict

    def remember(features: Features) -> dict[str, pd.DataFrame]:
        made[id(features)] = tables = predict(features)
        return tables

    vars(head)["predict"] = remember
    try:
        yield made
    finally:
        del vars(head)["predict"]


def evaluate_task(
    engine: Engine,
    task: str,
    manifest: str | Path,
    *,
    head: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    transcript: str | Path = "auto",
    limit: int | None = None,
    predictions: bool = False,
    progress: Callable[[int, int, str, bool], None] = lambda done, total, video_id, ok: None,
) -> Evaluation:
    """Evaluate a task's head; each video is read once.

    Args:
        engine: the model, and how videos are read.
        task: its name.
        manifest: its label columns are those of the task.
        head: folder of a fine-tuned head; None for the shipped one.
        options: of the task, by name.
        transcript: `"auto"`, `"none"`, or a path.
        limit: only so many videos, the first ones.
        predictions: whether to keep the rows of the task's first table, too.
        progress: called after each video that was read with how many are done, how many there
            are, its id, and whether it could be read.

    Raises:
        UsageError: the task is unknown or cannot be evaluated, or an option is wrong.
        ManifestError: the manifest cannot be used, or a label is unknown.
        ModelError: the head cannot be used.
        MediaError: not one video could be read.
    """
    spec = engine.manager.get_task(task).spec
    check_capability(spec, "evaluate")
    (runner,) = engine.heads(
        [task], {task: options} if options else None, {task: head} if head is not None else None)
    found = read_labelled(manifest, spec.labels, limit)
    ready: Head = runner.ready()
    failures: list[Failure] = []
    try:
        examples = encode_labelled(engine, found, spec.needs, transcript=transcript,
                                   failed=failures.append, progress=progress)
        with torch.no_grad(), _remembered(ready) as made:
            metrics = ready.evaluate(examples)
        rows: list[dict[str, Any]] = []
        if predictions:
            frames = []
            for each in examples:
                tables = made.get(id(each.features))
                tables = (runner.predict(each.features) if tables is None
                          else runner.conform(tables))
                frames.append(tables[spec.name].assign(video_id=each.video_id))
            table = pd.concat(frames, ignore_index=True)
            names = ["video_id", *(name for name in table.columns if name != "video_id")]
            rows = [{str(name): value for name, value in row.items()}
                    for row in table[names].to_dict("records")]
    finally:
        runner.close()
    return Evaluation(spec.name, engine.bundle.name, len(examples), None, metrics, rows,
                      tuple(failures))
