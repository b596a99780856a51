"""A task's head trained on labelled videos.

    OUT/head.safetensors, OUT/head.json   what `vbkit run --head TASK=OUT` loads
    OUT/finetune.json                     what it was trained on, and how well it does
    OUT/tensorboard/                      its losses, where TensorBoard is installed
    OUT/checkpoint/                       while it trains: what a training that is cut short
                                          goes on from

The videos are encoded once, into the feature cache; a head is trained on outputs of the encoder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vbkit.engine.cache import FeatureCache
from vbkit.errors import ManifestError, TrainingError, UsageError
from vbkit.evaluation.labelled import Labelled, encode_labelled, read_labelled
from vbkit.heads import Example, FitOptions, Head
from vbkit.media.views import Views
from vbkit.runs import Failure
from vbkit.specs import check_capability

if TYPE_CHECKING:
    from vbkit.engine import Engine

__all__ = ["FINETUNE_FILE", "FinetuneResult", "finetune", "split_videos"]

FINETUNE_FILE = "finetune.json"
CHECKPOINTS = "checkpoint"


@dataclass(frozen=True)
class FinetuneResult:
    """What a training of a head came to.

    Args:
        task: its name.
        out: folder of the head.
        n_train, n_val: videos.
        metrics: on the validation videos.
        seconds: of encoding, and of training.
        failures: videos that could not be read.
    """

    task: str
    out: Path
    n_train: int
    n_val: int
    metrics: Mapping[str, Any]
    seconds: Mapping[str, float]
    failures: tuple[Failure, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        """What `vbkit finetune` prints."""
        return {"task": self.task, "out": str(self.out), "n_train": self.n_train,
                "n_val": self.n_val, "n_failed": len(self.failures), **self.metrics}


def finetune(
    engine: Engine,
    task: str,
    manifest: str | Path,
    out: str | Path,
    *,
    val: str | Path | None = None,
    val_share: float = 0.2,
    head: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    fit: FitOptions | None = None,
    transcript: str | Path = "auto",
    augment: int = 0,
    mirror: bool = True,
    resume: bool = False,
    progress: Callable[[int, int, str, bool], None] = lambda done, total, video_id, ok: None,
) -> FinetuneResult:
    """Train a task's head, measure it on videos that it did not learn from, and save it.

    Args:
        engine: the model. With a cache, a second training decodes nothing.
        task: its name.
        manifest: labelled videos, with the label columns of the task. A column `split` with the
            values train and val divides them.
        out: folder of the head, new or empty.
        val: manifest of the validation videos.
        val_share: how many videos validate, where neither `val` nor `split` says it.
        head: a head to go on from; None for the shipped one, or none.
        options: of the task, by name.
        fit: how to train.
        transcript: `"auto"`, `"none"`, or a path.
        augment: how many further views of each training video to learn from: parts of the frame,
            mirrored or not, with clips moved in time. They follow from the seed and the video's
            content. Validation videos are seen as they are.
        mirror: whether views may be mirrored: not where labels tell left from right.
        resume: go on from the checkpoint of a training that was cut short in `out`, if any.
        progress: called after each video, and each view of one, that was read with how many are
            done, how many there are, its id, and whether it could be read.

    Raises:
        UsageError: the task is unknown or cannot be trained, or not on views, an option is wrong,
            or `out` holds something.
        ManifestError: a manifest cannot be used, or its labels cannot be learnt from.
        MediaError: not one video could be read.
        TrainingError: `out` cannot be written.
    """
    spec = engine.manager.get_task(task).spec
    check_capability(spec, "finetune")
    if augment:
        check_capability(spec, "augment")
    fit = fit if fit is not None else FitOptions()
    views = Views(augment, fit.seed, mirror)
    folder = Path(out)
    check_folder(folder, resume)
    labelled = read_labelled(manifest, spec.labels)
    if val is not None:
        held = read_labelled(val, spec.labels)
        paths = {each.source.path for each in labelled} & {
            each.source.path for each in held} - {None}
        if paths:
            raise ManifestError(f"{val}: {sorted(map(str, paths))[0]} is among the training "
                                "videos too; a video that was learnt from validates nothing")
    else:
        labelled, held = split_videos(labelled, val_share, fit.seed)
    cache = FeatureCache(engine.cache) if engine.cache is not None else None
    (runner,) = engine.heads(
        [task], {task: options} if options else None, {task: head} if head is not None else None,
        cache)
    ready: Head = runner.ready()
    failures: list[Failure] = []
    began = time.perf_counter()
    reads = len(labelled) * (1 + augment)
    total = reads + len(held)
    try:
        parts: list[list[Example]] = []
        for rows, shown, before in ((labelled, views, 0), (held, Views(), reads)):
            def told(done: int, _: int, video_id: str, ok: bool, before: int = before) -> None:
                progress(before + done, total, video_id, ok)

            parts.append(encode_labelled(engine, rows, spec.needs, transcript=transcript,
                                         views=shown, failed=failures.append, progress=told))
        encoded = time.perf_counter()
        torch.manual_seed(fit.seed)
        with torch.enable_grad(), _drawn(fit, folder) as told_too:
            ready.fit(parts[0], parts[1], replace(told_too, checkpoint=folder / CHECKPOINTS))
        trained = time.perf_counter()
        with torch.no_grad():
            metrics = ready.evaluate(parts[1]) if "evaluate" in spec.capabilities else {}
        result = FinetuneResult(
            spec.name, folder, len(parts[0]), len(parts[1]), metrics,
            {"encode": encoded - began, "train": trained - encoded}, tuple(failures))
        try:
            ready.save_pretrained(folder)
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            (folder / FINETUNE_FILE).write_text(json.dumps({
                **result.as_dict(), "manifest": str(manifest), "model": engine.bundle.name,
                "seed": fit.seed, "augment": augment, "mirror": mirror,
                "validation": [each.video_id for each in parts[1]],
            }, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"cannot write the head to {folder}: {error}") from error
    finally:
        runner.close()
    return result


def check_folder(folder: Path, resume: bool) -> None:
    """Raise unless a head can be written into a folder.

    Raises:
        UsageError: it holds something, or a training that was cut short and is not to go on.
    """
    if not folder.exists():
        return
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if CHECKPOINTS in held and held <= {CHECKPOINTS, "tensorboard"}:
        if not resume:
            raise UsageError(f"{folder} holds a training that was cut short; go on with it by "
                             "--resume, or name another folder")
    elif held:
        raise UsageError(f"{folder} holds something already; name another folder")


@contextmanager
def _drawn(fit: FitOptions, folder: Path) -> Iterator[FitOptions]:
    """The same options, with what is logged drawn by TensorBoard too, where it is installed.

    Nothing is left of a training that failed, apart from its checkpoint.
    """
    if find_spec("tensorboard") is None:
        yield fit
        return
    from torch.utils.tensorboard import SummaryWriter

    existed = folder.exists()
    writer: SummaryWriter | None = None

    def logged(numbers: Mapping[str, float]) -> None:
        nonlocal writer
        fit.logged(numbers)
        if writer is None:
            writer = SummaryWriter(str(folder / "tensorboard"))
        for name, value in numbers.items():
            if name != "step":
                writer.add_scalar(name, value, int(numbers.get("step", 0)))

    try:
        yield replace(fit, logged=logged)
    except BaseException:
        if writer is not None:
            writer.close()
            if not (folder / CHECKPOINTS).exists():
                shutil.rmtree(folder / "tensorboard" if existed else folder, ignore_errors=True)
        raise
    if writer is not None:
        writer.close()


def split_videos(labelled: Sequence[Labelled], val_share: float,
                 seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """Training and validation videos: by the column `split`, else at random.

    Raises:
        ManifestError: a value of `split` is unknown, or one part would be empty.
    """
    named = [next((row["split"] for row in each.rows if row.get("split") is not None), None)
             for each in labelled]
    if any(name is not None for name in named):
        unknown = sorted({str(name) for name in named} - {"train", "val"})
        if unknown:
            raise ManifestError(f"the column split says {unknown[0]!r}; it is train or val, in "
                                "every row")
        held = np.array([name == "val" for name in named])
    else:
        if not 0 < val_share < 1:
            raise UsageError(f"the share of validation videos is {val_share}, but must be above 0 "
                             "and below 1")
        order = np.random.default_rng(seed).permutation(len(labelled))
        held = order < max(1, round(val_share * len(labelled)))
    if held.all() or not held.any():
        raise ManifestError(f"of {len(labelled)} labelled videos {int(held.sum())} would validate; "
                            "there must be some to learn from, and some to validate with")
    return ([each for each, out in zip(labelled, held, strict=True) if not out],
            [each for each, out in zip(labelled, held, strict=True) if out])
