"""What the commands that take labelled videos have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["check_task", "labelled_options", "speech_options", "task_options"]

_OPTIONS = [
    click.option("-o", "--option", "assignments", multiple=True, metavar="T.OPTION=VALUE",
                 help="An option of the task, or of speech to text; may be repeated."),
    click.option("--transcript", default="auto", show_default=True, metavar="auto|none|PATH",
                 help="Where speech is taken from."),
    click.option("--model", default="mini", show_default=True, metavar="NAME|PATH",
                 help="Model: a name (`vbkit models`), a folder, or a hub id."),
    click.option("--device", default="auto", show_default=True,
                 help="auto, cpu, cuda, cuda:1, mps."),
    click.option("--precision", default="auto", show_default=True,
                 type=click.Choice(["auto", "float32", "bfloat16"]),
                 help="Of the visual backbone."),
    click.option("--cache", type=click.Path(path_type=Path), envvar="VBKIT_CACHE",
                 help="Folder of a feature cache, so that a second time nothing is decoded."),
]


def labelled_options(what: str) -> Callable[[Any], Any]:
    """`--manifest`, `-o`, `--transcript`, `--model`, `--device`, `--precision` and `--cache`.

    Args:
        what: the manifest names, for the help.
    """
    manifest = click.option("--manifest", "-m", required=True, type=click.Path(path_type=Path),
                            metavar="FILE", help=f"{what} (.csv, .jsonl, .parquet).")

    def decorate(command: Any) -> Any:
        for option in reversed([manifest, *_OPTIONS]):
            command = option(command)
        return command

    return decorate


def check_task(task: str, capability: str) -> None:
    """Say before a model is loaded where a task is unknown, or its head cannot do something.

    Raises:
        UsageError: that is so.
    """
    from vbkit.plugins import default_manager
    from vbkit.specs import check_capability

    check_capability(default_manager().get_task(task).spec, capability)


def task_options(task: str, assignments: tuple[str, ...]) -> dict[str, Any]:
    """Options of one task out of `-o TASK.OPTION=VALUE`; those of speech to text are left out.

    Raises:
        UsageError: an assignment is malformed, or is for another task.
    """
    from vbkit.errors import UsageError
    from vbkit.options import split_assignments

    given = split_assignments(assignments)
    bare = task.rpartition(":")[2]
    speech = speech_options(task, assignments)
    for name in given:
        if name.rpartition(":")[2] != bare and name not in speech:
            raise UsageError(f"-o {name}.… is an option of another task than {task}")
    return {key: value for name, values in given.items() if name not in speech
            for key, value in values.items()}


def speech_options(task: str, assignments: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Options of speech to text out of `-o NAME.OPTION=VALUE`."""
    from vbkit.options import split_assignments
    from vbkit.plugins import default_manager

    given = split_assignments(assignments)
    if all(name.rpartition(":")[2] == task.rpartition(":")[2] for name in given):
        return {}
    heard = {declared.name for declared in default_manager().transcribers()}
    return {name: values for name, values in given.items()
            if name.rpartition(":")[2] in heard - {task.rpartition(":")[2]}}
