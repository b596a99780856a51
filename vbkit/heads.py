"""What a task head is: the class that a `TaskSpec.head` names.

A head needs to inherit from nothing; `Head` is here for its documentation, its defaults and for
type checkers. Importing this module does not import torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbkit.errors import ModelError
from vbkit.int8 import SCALE, from_int8, to_int8
from vbkit.specs import NoOptions

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from vbkit.features import Features
    from vbkit.model.branch import BranchConfig, TextBranch

__all__ = [
    "HEAD_SETTINGS",
    "HEAD_WEIGHTS",
    "Example",
    "FitOptions",
    "Head",
    "HeadContext",
    "load_head",
    "save_head",
]

HEAD_WEIGHTS = "head.safetensors"
"""File of a head's tensors, in its folder."""

HEAD_SETTINGS = "head.json"
"""File of a head's settings, in its folder."""


@dataclass(frozen=True)
class HeadContext:
    """What a head is given once, before its first video.

    Args:
        options: an instance of the task's options class.
        device: `"cpu"`, `"cuda:0"`, …: where the engine's tensors are.
        head_path: folder of a fine-tuned head (`--head TASK=PATH`), or None for the shipped one.
        cache_dir: a folder of the head's own, kept between runs, or None where nothing is cached.
        logger: goes to stderr.
        model_name: the model whose outputs the head will see, e.g. `"mini"`.
        model_fingerprint: changes with the weights that decide the outputs that the head reads; a
            head trained on one model's outputs refuses another's.
        text_branch: makes a branch of the text encoder, for a task whose `needs` name
            `text_branch`; None for others.
    """

    options: Any = field(default_factory=NoOptions)
    device: str = "cpu"
    head_path: Path | None = None
    cache_dir: Path | None = None
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("vbkit"))
    model_name: str = "mini"
    model_fingerprint: str = ""
    text_branch: Callable[[BranchConfig], TextBranch] | None = None


@dataclass(frozen=True)
class Example:
    """A video with what people say of it, for training and evaluation.

    Args:
        features: the outputs that the task's `needs` names.
        rows: the label columns of every manifest row that names the video, in order; where a row
            has questions, they are among them as the list `question`.
        views: the same outputs of the same video, seen in other ways (`vbkit finetune --augment`):
            a part of the frame, mirrored, with clips that begin and end at other times, which
            `clip_times` says in seconds of the video. So labels with times hold; what counts
            clips does not. Words are the same. Of validation videos there are none.
    """

    features: Features
    rows: tuple[Mapping[str, Any], ...]
    views: tuple[Features, ...] = ()

    @property
    def video_id(self) -> str:
        return self.features.video_id

    @property
    def seen(self) -> tuple[Features, ...]:
        """The video as it is, and then its views."""
        return (self.features, *self.views)

    def label(self, column: str) -> Any:
        """A column's value in the first row that has one; None where none has."""
        return next((row[column] for row in self.rows if row.get(column) is not None), None)


@dataclass(frozen=True)
class FitOptions:
    """How a head is to be trained.

    Args:
        seed: everything drawn at random follows from it.
        epochs: passes over the examples, at most; None leaves it to the head.
        learning_rate: of what is at the head's end; None leaves it to the head.
        unfreeze: how many upper layers of the head's own branch of the encoder learn too, at
            half that rate; 0 trains what is on top of it alone.
        word_dropout: share of word pieces that are left out at random, where the head reads words.
        checkpoint: a folder where the state after each pass is kept, and from which a training
            that was cut short goes on; None keeps none.
        logged: called with named numbers as training goes on, `step` among them.
    """

    seed: int = 0
    epochs: int | None = None
    learning_rate: float | None = None
    unfreeze: int = 0
    word_dropout: float = 0.05
    checkpoint: Path | None = None
    logged: Callable[[Mapping[str, float]], None] = lambda numbers: None


class Head:
    """Base class of task heads.

    One instance serves a process, is never called concurrently, and runs under `torch.no_grad`.
    """

    def setup(self, context: HeadContext) -> None:
        """Load weights and read options. Called once, before the first video."""
        self.context = context

    def predict(self, features: Features) -> dict[str, pd.DataFrame]:
        """Rows for one video.

        Args:
            features: the outputs that the task's `needs` names, and no others.

        Returns:
            One table for each of the task's schemas, without `video_id`; a table that is left out
            is empty.
        """
        raise NotImplementedError

    def predict_batch(self, batch: Sequence[Features]) -> list[dict[str, pd.DataFrame]]:
        """Rows for several videos; by default one after the other."""
        return [self.predict(features) for features in batch]

    def fit(self, train: Sequence[Example], val: Sequence[Example], options: FitOptions) -> None:
        """Learn from examples, for a task with the capability `finetune`.

        Called once, after `setup`, with gradients enabled; what was learnt is then saved by
        `save_pretrained`. No video is in both lists.

        Args:
            train: what to learn from, with the capability `augment` also in other views.
            val: what to choose and to calibrate by.
            options: how.

        Raises:
            ManifestError: the labels cannot be learnt from: the message says what to change.
        """
        raise ModelError(f"{type(self).__name__} cannot be trained")

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics over examples, for a task with the capability `evaluate`.

        Returns:
            Numbers by name, in scikit-learn's manner (`f1_macro`); None for what is undefined.

        Raises:
            ManifestError: the labels cannot be compared with: the message says what to change.
        """
        raise ModelError(f"{type(self).__name__} cannot be evaluated")

    def search_texts(self, question: str) -> Sequence[str]:
        """Texts by which videos that may answer `question` are looked for, beside it.

        `vbkit ask` reads only the videos with a clip or a segment that is near to one of them in
        the space that video and text share.
        """
        return ()

    def explain(self, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
        """Which clips, segments and words made rows, for a task with the capability `explain`.

        `vbkit.explanations` has what most heads need: pieces of evidence, their weights by
        hiding them, and the table.

        Args:
            features: the outputs that the task's `needs` and `explain_needs` name; its
                `questions` are those of the rows.
            rows: of one of the task's tables, for this video, without `video_id`.
                `rows.attrs["table"]` names the table, and the index is each row's place among
                the video's rows of that table, from 0.

        Returns:
            The table `vbkit.explanations.EXPLANATIONS`, whose column `of_row` holds values of the
            index of `rows`. A row that has nothing to explain it has no rows there.

        Raises:
            UsageError: such a row cannot be explained: the message says why, and which can.
        """
        raise ModelError(f"{type(self).__name__} cannot explain its rows")

    def teardown(self) -> None:
        """Release what `setup` took. Called once, also after an error."""

    def save_pretrained(self, path: Path) -> None:
        """Write the head's weights (safetensors) and settings (JSON) into the folder `path`."""
        raise ModelError(f"{type(self).__name__} cannot be saved")


def load_head(
    folder: Path | str, *, model_name: str | None = None, model_fingerprint: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a head that `save_head` wrote: its tensors and its settings.

    A head reads one model's outputs, so it is of no use with another's. `settings["model"]` names
    the model that it was trained on, and `settings["model_fingerprint"]`, where it is given, that
    model's weights; both are compared with what the caller passes.

    Args:
        folder: folder of the head, e.g. `Path(__file__).parent / "weights"` for the one that a
            plugin ships, or `HeadContext.head_path`.
        model_name: `HeadContext.model_name`; None compares nothing.
        model_fingerprint: `HeadContext.model_fingerprint`; empty compares nothing.

    Returns:
        tensors by name, on the CPU, floating ones as float32, those stored as int8 too; and the
        settings.

    Raises:
        ModelError: a file is missing or damaged, or the head was trained on another model.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        settings = json.loads((folder / HEAD_SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / HEAD_WEIGHTS)
    except FileNotFoundError as error:
        raise ModelError(
            f"{folder} holds no head: {Path(error.filename or HEAD_WEIGHTS).name} is missing; "
            "give a folder that the training wrote"
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the head in {folder} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{folder / HEAD_SETTINGS} must hold a JSON object")
    trained_on = settings.get("model")
    fingerprint = settings.get("model_fingerprint")
    same = bool(fingerprint) and fingerprint == model_fingerprint  # whatever it is called
    if not same and model_name is not None and trained_on not in (None, model_name):
        raise ModelError(
            f"the head in {folder} was trained on model {trained_on!r}, not on {model_name!r}; "
            f"use --model {trained_on}, or --head TASK=PATH with a head trained on {model_name!r}"
        )
    if model_fingerprint and fingerprint and fingerprint != model_fingerprint:
        raise ModelError(
            f"the head in {folder} was trained on other weights of model {trained_on!r} "
            f"({fingerprint}, here {model_fingerprint}); train it again on this one"
        )
    scales = _scales(tensors)
    try:
        return {
            name: from_int8(value, tensors[name + SCALE]) if name + SCALE in scales
            else value.to(torch.float32) if value.is_floating_point() else value
            for name, value in tensors.items() if name not in scales
        }, settings
    except ValueError as error:
        raise ModelError(f"the head in {folder} cannot be read: {error}") from error


def save_head(
    folder: Path | str, tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], *,
    int8: Collection[str] = (),
) -> None:
    """Write a head into `folder`, which is made if need be: tensors and settings.

    Args:
        folder: where to.
        tensors: the weights by name; floating ones are stored as float16.
        settings: what JSON can hold; `model` and `model_fingerprint` say which model's outputs
            the head reads (see `load_head`).
        int8: beginnings of the names of weights to store as int8, half as large, with a scale for
            each row: those of two or more dimensions, such as `"branch."` names.
    """
    import torch
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, torch.Tensor] = {}
    scales = _scales(tensors)
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        if value.is_floating_point() and value.ndim > 1 and name.startswith(tuple(int8)):
            stored[name], stored[name + SCALE] = to_int8(value)
        elif value.is_floating_point() and name not in scales:
            stored[name] = value.to(torch.float16)
        else:
            stored[name] = value
    (folder / HEAD_WEIGHTS).write_bytes(save(stored))
    text = json.dumps(settings, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    (folder / HEAD_SETTINGS).write_text(text, encoding="utf-8")


def _scales(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of the scales of int8 weights; another tensor may well be called the same."""
    import torch

    return {name + SCALE for name, value in tensors.items()
            if value.dtype == torch.int8 and name + SCALE in tensors}
