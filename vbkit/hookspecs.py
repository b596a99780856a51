"""The hooks that a plugin may implement.

A plugin is a module (or object) that an entry point of the group `vbkit` names, with functions
marked by `vbkit.hookimpl`::

    from vbkit import TaskSpec, hookimpl

    @hookimpl
    def vbkit_tasks():
        yield TaskSpec(...)

Collecting hooks are called one implementation at a time; a plugin that raises costs its own
declarations and no others. An implementation may leave out arguments that it does not use, and
arguments are only ever added. Hook wrappers are not supported. A plugin that also implements hooks
of later versions marks those `@hookimpl(optionalhook=True)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from vbkit.media.types import VideoReader
    from vbkit.runs import Failure, RunInfo, RunReport
    from vbkit.specs import BackboneSpec, ModelSpec, TaskSpec, TranscriberSpec

PROJECT = "vbkit"
ENTRY_POINT_GROUP = "vbkit"
COMMAND_GROUP = "vbkit.commands"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def vbkit_tasks() -> Iterable[TaskSpec]:
    """Declare tasks. (collecting)

    Returns:
        An iterable of `TaskSpec`; a generator is fine.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def vbkit_models() -> Iterable[ModelSpec]:
    """Declare named checkpoints that `--model` takes. (collecting)

    Returns:
        An iterable of `ModelSpec`.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def vbkit_backbones() -> Iterable[BackboneSpec]:
    """Declare visual backbones that a model bundle may name. (collecting)

    Returns:
        An iterable of `BackboneSpec`.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def vbkit_transcribers() -> Iterable[TranscriberSpec]:
    """Declare speech-to-text. (collecting)

    `--transcript auto` listens where there is neither a sidecar file nor an embedded stream. It
    uses the transcriber that `-o name.option=value` names, else the first, by name, that can work
    without a download.

    Returns:
        An iterable of `TranscriberSpec`.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def vbkit_open_video(source: Path, options: Mapping[str, Any]) -> VideoReader | None:
    """Open a source that the built-in readers cannot, or should not. (first result)

    Called in the decoding process, so it must not import torch.

    Args:
        source: path of the input.
        options: settings of the decoder, e.g. `height`, the short side in pixels that the
            backbone needs.

    Returns:
        A `vbkit.media.VideoReader`, or None to decline.

    .. versionadded:: 0.1
    """
    raise NotImplementedError


@hookspec
def vbkit_before_run(run: RunInfo) -> None:
    """Observe that a run begins. An observer that raises is logged and changes no result.

    Args:
        run: id, tasks, model and number of inputs of the run.

    .. versionadded:: 0.1
    """


@hookspec
def vbkit_after_video(run: RunInfo, video: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Observe a finished video.

    Args:
        run: the run.
        video: its `video_id`.
        tables: the tables made for it, with `video_id`; copies, free to change. They may reach
            the results folder a moment later.

    .. versionadded:: 0.1
    """


@hookspec
def vbkit_on_error(run: RunInfo, failure: Failure) -> None:
    """Observe a failure, which also is a row in `errors`.

    Args:
        run: the run.
        failure: video, stage, task and message.

    .. versionadded:: 0.1
    """


@hookspec
def vbkit_after_run(run: RunInfo, report: RunReport) -> None:
    """Observe that a run ended.

    Args:
        run: the run.
        report: counts, times and failures.

    .. versionadded:: 0.1
    """
