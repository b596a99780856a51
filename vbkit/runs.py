"""What a run is and how it ended: the values that observers and `Engine.run` hand out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Failure", "RunInfo", "RunReport"]


@dataclass(frozen=True)
class RunInfo:
    """A run that begins.

    Args:
        run_id: unique id.
        tasks: names of its tasks.
        model: name of its model.
        n_inputs: number of inputs.
        out: the results folder, or None where nothing is written.
    """

    run_id: str
    tasks: tuple[str, ...]
    model: str
    n_inputs: int
    out: str | None = None


@dataclass(frozen=True)
class Failure:
    """A row of `errors`: what went wrong with which video, at which stage.

    Args:
        video_id: the input.
        stage: open, decode, transcript, encode, head or store.
        error_type: class of the error.
        message: what was wrong, and what to do.
        task: the task, for stage head.
    """

    video_id: str
    stage: str
    error_type: str
    message: str
    task: str | None = None


@dataclass(frozen=True)
class RunReport:
    """How a run ended.

    Args:
        n_ok, n_partial, n_failed, n_skipped: inputs by status; skipped ones were up to date.
        failures: every failure.
        seconds: wall time by stage (s): `total`, `speech` (beside the others),
            `decode` (waited for), `backbone`, `text`, `joint`, and `head:NAME` for each task.
        notes: what an operator should know, e.g. that no speech model is there.
    """

    n_ok: int = 0
    n_partial: int = 0
    n_failed: int = 0
    n_skipped: int = 0
    failures: tuple[Failure, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
