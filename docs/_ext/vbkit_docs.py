"""Directives that describe what vbkit declares, so that no table of it is typed by hand.

    ```{vbkit-core-tables}           the core's tables
    ```{vbkit-tasks}                 the shipped tasks: options and tables
    ```{vbkit-task-list}             one line a task
    ```{vbkit-outputs}               what `TaskSpec.needs` may name
    ```{vbkit-backbones}             the declared visual backbones
    ```{vbkit-transcribers}          the shipped speech to text: options
    ```{vbkit-commands}              every command with its arguments and options
    ```{vbkit-hooks}                 every hook: its kind and what it is for
    ```{vbkit-checks}                what `vbkit.testing.check_task` checks
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from vbkit import hookspecs
from vbkit.cli import COMMANDS, cli
from vbkit.options import options_help
from vbkit.plugins import default_manager
from vbkit.specs import FEATURE_OUTPUTS
from vbkit.tables import CORE_TABLES, TableSchema
from vbkit.testing import CHECKS


def inline(text: str) -> list[nodes.Node]:
    """Text in which `code` stands between backticks."""
    out: list[nodes.Node] = []
    for number, part in enumerate(re.split(r"`([^`]*)`", text)):
        if part:
            out.append(nodes.literal(text=part) if number % 2 else nodes.Text(part))
    return out


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(headers))
    group += [nodes.colspec(colwidth=1) for _ in headers]
    head, body = nodes.thead(), nodes.tbody()
    for target, lines in ((head, [headers]), (body, rows)):
        for line in lines:
            row = nodes.row()
            for text in line:
                row += nodes.entry("", nodes.paragraph("", "", *inline(text)))
            target += row
    group += [head, body]
    return nodes.table("", group)


def paragraph(text: str) -> nodes.paragraph:
    return nodes.paragraph("", "", *inline(text))


class Generated(SphinxDirective):
    """A directive without arguments that returns what `make` gives."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        return list(self.make())

    def make(self) -> Iterable[nodes.Node]:
        raise NotImplementedError

    def section(self, title: str, name: str, *children: nodes.Node) -> nodes.section:
        section = nodes.section(ids=[nodes.make_id(name)], names=[nodes.fully_normalize_name(name)])
        section += nodes.title("", "", nodes.literal(text=title))
        section += list(children)
        self.state.document.note_explicit_target(section)
        return section

    def schema(self, schema: TableSchema, doc: str = "") -> nodes.section:
        rows = [("`video_id`", "string", "", "the input's id")] if schema.per_video else []
        for column in schema:
            kind = f"{column.dtype} or NULL" if column.nullable else column.dtype
            rows.append((code(column.name), kind, column.unit, column.doc))
        about = doc or (f"A row is {schema.doc}." if schema.doc else "")
        children = [paragraph(about)] if about else []
        return self.section(schema.name, f"table {schema.name}", *children,
                            table(("column", "type", "unit", "meaning"), rows))


class CoreTables(Generated):
    def make(self) -> Iterable[nodes.Node]:
        for schema in CORE_TABLES.values():
            yield self.schema(schema)


class Tasks(Generated):
    def make(self) -> Iterable[nodes.Node]:
        for task in _shipped():
            spec = task.spec
            summary = f"{spec.summary[:1].upper()}{spec.summary[1:]}."
            children: list[nodes.Node] = [paragraph(summary)]
            options = options_help(spec.options)
            if options:
                children.append(paragraph(f"Options, as `-o {spec.name}.OPTION=VALUE`:"))
                children.append(table(
                    ("option", "value", "default", "meaning"),
                    [(code(o.name), o.type, code(o.default), o.help) for o in options]))
            children += [self.schema(schema) for schema in spec.tables]
            yield self.section(spec.name, f"task {spec.name}", *children)


class Transcribers(Generated):
    def make(self) -> Iterable[nodes.Node]:
        for transcriber in default_manager().transcribers():
            if transcriber.distribution == "vbkit":
                yield table(("option", "value", "default", "meaning"), [
                    (code(f"{transcriber.name}.{o.name}"), o.type, code(o.default), o.help)
                    for o in options_help(transcriber.spec.options)])


class TaskList(Generated):
    def make(self) -> Iterable[nodes.Node]:
        yield table(("task", "what it does", "tables"), [
            (code(t.spec.name), t.spec.summary, ", ".join(code(s.name) for s in t.spec.tables))
            for t in _shipped()])


class Outputs(Generated):
    def make(self) -> Iterable[nodes.Node]:
        rows = []
        for name, text in FEATURE_OUTPUTS.items():
            shape, _, meaning = text.partition(": ")
            rows.append((code(name), shape, meaning))
        yield table(("name", "shape, type", "meaning"), rows)


class Backbones(Generated):
    def make(self) -> Iterable[nodes.Node]:
        yield table(("name", "what it is"), [
            (code(f"{d.spec.name}/…" if d.spec.prefix else d.spec.name), d.spec.summary)
            for d in default_manager().backbones() if d.distribution == "vbkit"])


class Commands(Generated):
    def make(self) -> Iterable[nodes.Node]:
        context = click.Context(cli, info_name="vbkit")
        for name in COMMANDS:
            command = cli.get_command(context, name)
            assert command is not None
            own = click.Context(command, info_name=name, parent=context)
            usage = command.get_usage(own).removeprefix("Usage: ")
            children: list[nodes.Node] = [nodes.literal_block(text=" ".join(usage.split()))]
            for text in (command.help or "").split("\n\n"):
                if text.startswith("\b"):
                    children.append(nodes.literal_block(text=text.removeprefix("\b").strip()))
                else:
                    children.append(paragraph(" ".join(text.split())))
            children.append(table(("option", "meaning"), list(_options(command, own))))
            yield self.section(f"vbkit {name}", f"command {name}", *children)


class Hooks(Generated):
    def make(self) -> Iterable[nodes.Node]:
        rows = []
        for name, hook in vars(hookspecs).items():
            if inspect.isfunction(hook) and hasattr(hook, "vbkit_spec"):
                first = (inspect.getdoc(hook) or "").partition("\n")[0]
                about, _, rest = first.partition(". ")
                kind = re.search(r"\((.+)\)$", rest)
                rows.append((code(name), kind[1] if kind else "observer",
                             f"{about.removesuffix('.')}."))
        yield table(("hook", "kind", "what it is for"), rows)


class Checks(Generated):
    def make(self) -> Iterable[nodes.Node]:
        yield table(("check", "what holds"), [(code(name), text) for name, text in CHECKS.items()])


def _options(command: click.Command, context: click.Context) -> Iterable[tuple[str, str]]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        yield code(record[0]), " ".join(record[1].split())


def _shipped() -> list[Any]:
    return [task for task in default_manager().tasks() if task.distribution == "vbkit"]


def setup(app: Sphinx) -> dict[str, Any]:
    for name, directive in (
        ("vbkit-core-tables", CoreTables), ("vbkit-tasks", Tasks), ("vbkit-task-list", TaskList),
        ("vbkit-transcribers", Transcribers), ("vbkit-outputs", Outputs),
        ("vbkit-backbones", Backbones),
        ("vbkit-commands", Commands),
    ):
        app.add_directive(name, directive)
    for name, directive in (("vbkit-hooks", Hooks), ("vbkit-checks", Checks)):
        app.add_directive(name, directive)
    return {"parallel_read_safe": True, "version": "1"}
