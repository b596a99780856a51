"""`vbkit tasks`, `vbkit plugins`, `vbkit models`, `vbkit transcribers`: what is installed.

Imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vbkit.cli.printing import print_json, print_table
from vbkit.options import options_help
from vbkit.plugins import Declared, PluginRecord, default_manager
from vbkit.specs import ModelSpec, TaskSpec, TranscriberSpec, load_object

__all__ = ["FAILS", "hub_cache", "lacking", "models", "on_disk", "plugins", "tasks", "transcribers"]

FAILS = "it fails"
"""How what `lacking` says begins where a transcriber is broken."""

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("name", required=False)
@_json
def tasks(name: str | None, as_json: bool) -> None:
    """List the tasks; with NAME, describe one: its options, needs, and tables."""
    manager = default_manager()
    if name is not None:
        task = manager.get_task(name)
        if as_json:
            print_json(_task(task))
        else:
            _describe(task)
        return
    found = manager.tasks()
    if as_json:
        print_json([_task(task) for task in found])
        return
    names = [task.name for task in found]
    _print_rows(
        ("task", "summary", "plugin"),
        [
            (
                task.name if names.count(task.name) == 1 else task.qualified_name,
                task.spec.summary,
                f"{task.plugin} ({task.distribution} {task.version})",
            )
            for task in found
        ],
        empty="no tasks: see `vbkit plugins`",
    )


@click.command()
@_json
def plugins(as_json: bool) -> None:
    """List the plugins, also those that failed or are disabled."""
    found = default_manager().plugins()
    if as_json:
        print_json([_plugin(record) for record in found])
        return
    _print_rows(
        ("plugin", "distribution", "version", "status", "declares", "error"),
        [
            (
                record.name,
                record.distribution,
                record.version,
                record.status,
                "; ".join(f"{kind}: {', '.join(names)}"
                          for kind, names in record.declares.items() if names),
                record.error or "",
            )
            for record in found
        ],
        empty="no plugins",
    )


@click.command()
@_json
def models(as_json: bool) -> None:
    """List the named models that --model takes, and whether they are on disk."""
    found = default_manager().models()
    if as_json:
        print_json([_model(model) for model in found])
        return
    _print_rows(
        ("model", "summary", "licence", "on disk", "location"),
        [
            (
                model.name,
                model.spec.summary,
                model.spec.licence,
                "yes" if on_disk(model.spec.location) else "no",
                model.spec.location,
            )
            for model in found
        ],
        empty="no models: see `vbkit plugins`",
    )


@click.command()
@click.argument("name", required=False)
@_json
def transcribers(name: str | None, as_json: bool) -> None:
    """List what turns speech into text, and what each lacks; with NAME, its options.

    `vbkit run` uses the first that lacks nothing, or the one that -o NAME.OPTION=VALUE names, for
    videos that have no transcript otherwise.
    """
    manager = default_manager()
    if name is not None:
        found = manager.get_transcriber(name)
        if as_json:
            print_json(_transcriber(found))
            return
        click.echo(f"{found.name}: {found.spec.summary}\n")
        click.echo(f"{'plugin':8}{found.plugin} ({found.distribution} {found.version})")
        click.echo(f"{'lacks':8}{lacking(found) or 'nothing'}")
        entries = options_help(found.spec.options)
        if entries:
            click.echo(f"\nOptions, as -o {found.name}.OPTION=VALUE\n")
            _print_rows(("option", "value", "default", "meaning"), entries)
        return
    every = manager.transcribers()
    if as_json:
        print_json([_transcriber(each) for each in every])
        return
    _print_rows(
        ("transcriber", "summary", "plugin", "lacks"),
        [(each.name, each.spec.summary,
          f"{each.plugin} ({each.distribution} {each.version})", lacking(each) or "nothing")
         for each in every],
        empty="nothing that turns speech into text: see `vbkit plugins`",
    )


def lacking(transcriber: Declared[TranscriberSpec]) -> str | None:
    """What keeps a transcriber from working as it is, in words."""
    try:
        made = load_object(transcriber.spec.factory)(transcriber.spec.options(), "cpu")
        return made.missing()
    except Exception as error:
        return f"{FAILS}: {error}"


def _transcriber(transcriber: Declared[TranscriberSpec]) -> dict[str, Any]:
    return {
        "name": transcriber.name,
        "qualified_name": transcriber.qualified_name,
        "summary": transcriber.spec.summary,
        **_origin(transcriber),
        "lacks": lacking(transcriber),
        "options": [entry._asdict() for entry in options_help(transcriber.spec.options)],
    }


def on_disk(location: str) -> bool:
    """Whether a model's folder, or the hub's download of it, is there. Asks no network."""
    folder = Path(location).expanduser()
    if folder.is_dir():
        return any(folder.iterdir())
    if folder.is_absolute():
        return False
    snapshots = hub_cache() / f"models--{location.replace('/', '--')}" / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def hub_cache() -> Path:
    """Where the hub's downloads lie; it need not be there."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()


def _origin(declared: Declared[Any]) -> dict[str, str]:
    return {
        "plugin": declared.plugin,
        "distribution": declared.distribution,
        "version": declared.version,
    }


def _task(task: Declared[TaskSpec]) -> dict[str, Any]:
    spec = task.spec
    return {
        "name": spec.name,
        "qualified_name": task.qualified_name,
        "summary": spec.summary,
        **_origin(task),
        "needs": sorted(spec.needs),
        "capabilities": sorted(spec.capabilities),
        "options": [entry._asdict() for entry in options_help(spec.options)],
        "tables": [
            {
                "name": table.name,
                "columns": [
                    {
                        "name": column.name,
                        "dtype": column.dtype,
                        "unit": column.unit,
                        "nullable": column.nullable,
                        "doc": column.doc,
                    }
                    for column in table
                ],
            }
            for table in spec.tables
        ],
    }


def _plugin(record: PluginRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "distribution": record.distribution,
        "version": record.version,
        "status": record.status,
        "error": record.error,
        "declares": {kind: list(names) for kind, names in record.declares.items()},
    }


def _model(model: Declared[ModelSpec]) -> dict[str, Any]:
    spec = model.spec
    return {
        "name": spec.name,
        "summary": spec.summary,
        "location": spec.location,
        "licence": spec.licence,
        "on_disk": on_disk(spec.location),
        **_origin(model),
    }


def _describe(task: Declared[TaskSpec]) -> None:
    spec = task.spec
    click.echo(f"{spec.name}: {spec.summary}\n")
    facts = [
        ("plugin", f"{task.plugin} ({task.distribution} {task.version})"),
        ("needs", ", ".join(sorted(spec.needs)) or "nothing"),
    ]
    if spec.capabilities:
        facts.append(("can", ", ".join(sorted(spec.capabilities))))
    for key, value in facts:
        click.echo(f"{key:8}{value}")
    entries = options_help(spec.options)
    if entries:
        click.echo(f"\nOptions, as -o {spec.name}.OPTION=VALUE\n")
        _print_rows(("option", "value", "default", "meaning"), entries)
    for table in spec.tables:
        click.echo(f"\nTable {table.name}\n")
        _print_rows(
            ("column", "type", "unit", "meaning"),
            [
                (
                    column.name,
                    f"{column.dtype}{' or NULL' if column.nullable else ''}",
                    column.unit,
                    column.doc,
                )
                for column in table
            ],
        )


def _print_rows(
    header: Sequence[str], rows: Sequence[Sequence[str]], empty: str = "nothing"
) -> None:
    """A table; columns that are empty throughout are left out."""
    if not rows:
        click.echo(empty, err=True)
        return
    keep = [i for i in range(len(header)) if any(row[i] for row in rows)]
    print_table([header[i] for i in keep], [[row[i] for i in keep] for row in rows], full=True)
