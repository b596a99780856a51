"""The command line.

Commands are imported when they are typed, not before: `vbkit --help` imports click and nothing
heavier. Further commands come from the entry-point group `vbkit.commands`; each is a
`click.Command` and is imported only when typed.

Exit status: 0 all done, 1 something failed, 2 wrong usage, 130 interrupted, 141 the reader of the
output went away. A command may return its status.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

import vbkit
from vbkit.errors import UsageError, VbkitError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "Settings", "cli", "main", "settings"]

COMMAND_GROUP = "vbkit.commands"

COMMANDS: dict[str, tuple[str, str]] = {
    # name -> (where it is, its line in `vbkit --help`)
    "run": ("vbkit.cli.run:run", "Read videos and write the tables of the chosen tasks."),
    "ask": ("vbkit.cli.run:ask", "Ask a question of the videos in a results folder."),
    "explain": ("vbkit.cli.explain:explain", "Say which clips and words made a row of a table."),
    "search": ("vbkit.cli.run:search", "Find the moments that a text describes."),
    "tables": ("vbkit.cli.tables:tables", "List the tables of a results folder."),
    "show": ("vbkit.cli.tables:show", "Print a table."),
    "query": ("vbkit.cli.tables:query", "Query the tables with SQL."),
    "export": ("vbkit.cli.tables:export", "Write a table to a file of another format."),
    "report": ("vbkit.cli.report:report", "Write the results as a page to look at."),
    "vocab": ("vbkit.cli.vocab:vocab", "Build the visual words that clips become."),
    "pretrain": ("vbkit.cli.pretrain:pretrain", "Train a VideoBERT on videos and texts."),
    "finetune": ("vbkit.cli.finetune:finetune", "Train a task's head on labelled videos."),
    "evaluate": ("vbkit.cli.evaluate:evaluate", "Measure a head or a model on labelled videos."),
    "tasks": ("vbkit.cli.plugins:tasks", "List the tasks, or describe one."),
    "plugins": ("vbkit.cli.plugins:plugins", "List the plugins, also those that failed."),
    "models": ("vbkit.cli.plugins:models", "List the named models."),
    "transcribers": ("vbkit.cli.plugins:transcribers", "List what hears speech, or describe one."),
    "doctor": ("vbkit.cli.doctor:doctor", "Check this installation, and say what to do."),
    "new-plugin": ("vbkit.cli.new_plugin:new_plugin", "Write the plugin of a new task."),
}


@dataclass
class Settings:
    """The options that hold for every command."""

    debug: bool = False
    verbose: int = 0
    quiet: bool = False

    @property
    def log_level(self) -> int:
        if self.quiet:
            return logging.ERROR
        return {0: logging.WARNING, 1: logging.INFO}.get(self.verbose, logging.DEBUG)


_settings = Settings()


def settings() -> Settings:
    """The global options of the command that is running."""
    return _settings


class _Stderr(logging.Handler):
    """Writes `vbkit: message` to whatever stderr is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = "warning: " if record.levelno == logging.WARNING else ""
            click.echo(f"vbkit: {level}{self.format(record)}", err=True)
        except Exception:
            self.handleError(record)


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Store a global option. Those given after the command add to those given before it."""
    if value:
        setattr(_settings, str(parameter.name), value)
        logging.getLogger("vbkit").setLevel(_settings.log_level)


def _global_options(hidden: bool = False) -> list[click.Option]:
    return [
        click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set, hidden=hidden,
                     help="Show the traceback of an error."),
        click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_set,
                     hidden=hidden, help="Say more; -vv says most."),
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_set,
                     hidden=hidden, help="Say nothing but errors."),
    ]


class _ReaderGoneError(Exception):
    """Stands for a BrokenPipeError, which click would turn into exit status 1."""


@contextmanager
def _pipes() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise _ReaderGoneError from error


class VbkitGroup(click.Group):
    """A group whose commands are imported when typed, and which reports errors in one line."""

    # Commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(set(_entry_points()) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module_name, _, attribute = COMMANDS[cmd_name][0].partition(":")
            command = getattr(import_module(module_name), attribute)
        else:
            command = _extra_command(cmd_name)
        if command is not None:
            taken = {name for parameter in command.params for name in parameter.opts}
            command.params.extend(option for option in _global_options(hidden=True)
                                  if not taken & set(option.opts))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in self.list_commands(ctx):
            from vbkit.options import close_matches

            hint = close_matches(name, self.list_commands(ctx))
            raise click.UsageError(f"no such command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])
        extra = sorted((name, f"From {', '.join(map(_origin, points))}.")
                       for name, points in _entry_points().items() if name not in COMMANDS)
        if extra:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(extra)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        items = [
            CompletionItem(name, help=COMMANDS[name][1] if name in COMMANDS else None)
            for name in self.list_commands(ctx) if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    # Errors

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _pipes():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with _pipes():
            return super().invoke(ctx)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        def run() -> Any:
            return super(VbkitGroup, self).main(args, prog_name or "vbkit", complete_var,
                                                standalone_mode=False, **extra)

        global _settings
        _settings = Settings()
        if not standalone_mode:
            return run()
        handler = _Stderr()
        log = logging.getLogger("vbkit")
        level = log.level
        log.addHandler(handler)
        log.setLevel(_settings.log_level)
        try:
            status = _run(run)
        finally:
            log.removeHandler(handler)
            log.setLevel(level)
        sys.exit(status)


def _run(run: Any) -> int:
    """Run the command line; its exit status. Every error becomes one line on stderr."""
    try:
        try:
            result = run()
        except SystemExit as stop:
            result = stop.code
            if isinstance(result, str):
                _complain(result)
                result = 1
        sys.stdout.flush()
    except (BrokenPipeError, _ReaderGoneError):
        _discard_output()
        return 141  # what the shell says of a program that SIGPIPE ended
    except click.exceptions.Abort as error:
        if isinstance(error.__cause__, EOFError):
            return _unexpected(error.__cause__)
        click.echo("vbkit: interrupted", err=True)
        return 130
    except KeyboardInterrupt:
        click.echo("vbkit: interrupted", err=True)
        return 130
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see '{error.ctx.command_path} --help')"
        _complain(f"{error.format_message()}{hint}")
        return error.exit_code
    except VbkitError as error:
        _traceback()
        _complain(str(error) or type(error).__name__)
        return 2 if isinstance(error, UsageError) else 1
    except Exception as error:
        return _unexpected(error)
    return result if isinstance(result, int) else 0


def _unexpected(error: BaseException) -> int:
    _traceback()
    hint = "" if _settings.debug else " (run with --debug for the traceback)"
    _complain(f"{type(error).__name__}: {error}{hint}")
    return 1


def _complain(message: str) -> None:
    click.echo(f"vbkit: error: {' '.join(message.split())}", err=True)


def _traceback() -> None:
    if _settings.debug:
        import traceback

        traceback.print_exc()


def _discard_output() -> None:
    """Point stdout at nothing, so that flushing it at exit does not fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a real file, as in tests
        sys.stdout = io.StringIO()


def _entry_points() -> dict[str, list[EntryPoint]]:
    """The commands that other distributions bring, by name. Imports none of them."""
    from importlib.metadata import entry_points

    found: dict[str, list[EntryPoint]] = {}
    for entry_point in entry_points(group=COMMAND_GROUP):
        found.setdefault(entry_point.name, []).append(entry_point)
    return found


def _origin(entry_point: EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist is not None else entry_point.value


def _extra_command(name: str) -> click.Command | None:
    points = _entry_points().get(name, [])
    if not points:
        return None
    if len(points) > 1:
        raise UsageError(
            f"command {name!r} comes from {' and '.join(map(_origin, points))}: uninstall one"
        )
    from vbkit.errors import PluginError

    try:
        command = points[0].load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"command {name!r} of {_origin(points[0])} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(command, click.Command):
        raise PluginError(
            f"command {name!r} of {_origin(points[0])} is no click command: {points[0].value}"
        )
    return command


@click.group(
    cls=VbkitGroup,
    params=_global_options(),
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(vbkit.__version__, message="vbkit %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Tables out of videos.

    Start with: vbkit run VIDEO --task moderation --out results
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


def main() -> NoReturn:
    """The program `vbkit`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    cli.main(prog_name="vbkit")
    raise AssertionError("unreachable")
