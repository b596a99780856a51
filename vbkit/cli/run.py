"""`vbkit run`, `vbkit ask`, `vbkit search`."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vbkit.errors import UsageError

if TYPE_CHECKING:
    from vbkit.engine import Engine
    from vbkit.engine.run import Progress, RunResult

__all__ = ["ask", "run", "search"]

_LISTED_VIDEOS = 40
_LISTED_FAILURES = 20

_engine_options = [
    click.option("--model", default=None, metavar="NAME|PATH",
                 help="Model: a name (`vbkit models`), a folder, or a hub id.  [default: mini]"),
    click.option("--device", default="auto", show_default=True,
                 help="auto, cpu, cuda, cuda:1, mps."),
    click.option("--precision", default="auto", show_default=True,
                 type=click.Choice(["auto", "float32", "bfloat16"]),
                 help="Of the visual backbone."),
    click.option("--cache", type=click.Path(path_type=Path), envvar="VBKIT_CACHE",
                 help="Folder of the feature cache.  [default: OUT/cache]"),
]


def engine_options(command: Any) -> Any:
    for option in reversed(_engine_options):
        command = option(command)
    return command


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--task", "-t", "tasks", multiple=True, required=True, metavar="T",
              help="A task (`vbkit tasks`); may be repeated.")
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path),
              help="The results folder.")
@engine_options
@click.option("--head", "heads", multiple=True, metavar="T=PATH",
              help="A fine-tuned head for a task; may be repeated.")
@click.option("--transcript", default="auto", show_default=True, metavar="auto|none|PATH",
              help="auto: a sidecar file, else an embedded stream, else speech, with a model that "
                   "is on disk or that -o whisper.model names.")
@click.option("--question", "questions", multiple=True, metavar="Q",
              help="A question for `qa`, asked of every video; may be repeated.")
@click.option("-o", "options", multiple=True, metavar="NAME.OPTION=VALUE",
              help="An option of a task (`vbkit tasks T` lists them), or of speech to text "
                   "(`vbkit transcribers T`), such as whisper.model=small; may be repeated.")
@click.option("--policy", type=click.Path(path_type=Path), metavar="FILE",
              help="Moderation policy (YAML); short for -o moderation.policy=FILE.")
@click.option("--captions", is_flag=True,
              help="Write a caption for every clip into the table clips.")
@click.option("--fresh", is_flag=True, help="Redo everything, and ignore the cache.")
@click.option("--wait", "wait_s", type=click.FloatRange(0), default=0.0, metavar="SECONDS",
              help="Wait so long for another run that uses OUT.")
@click.option("--decode-workers", type=click.IntRange(1), help="Decoding processes.")
@click.option("--decode-timeout", type=click.FloatRange(0.1), default=60.0, show_default=True,
              metavar="SECONDS", help="A decoder that is silent for so long is stopped.")
@click.option("--reader", type=click.Choice(["auto", "pyav", "decord"]), default="auto",
              show_default=True, help="Who decodes.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON report.")
def run(
    inputs: tuple[str, ...],
    tasks: tuple[str, ...],
    out: Path,
    model: str | None,
    device: str,
    precision: str,
    cache: Path | None,
    heads: tuple[str, ...],
    transcript: str,
    questions: tuple[str, ...],
    options: tuple[str, ...],
    policy: Path | None,
    captions: bool,
    fresh: bool,
    wait_s: float,
    decode_workers: int | None,
    decode_timeout: float,
    reader: str,
    as_json: bool,
) -> int:
    """Read videos and write the tables of the chosen tasks.

    INPUT is a video, picture, sound or subtitle file, a folder, a glob, or a manifest (.csv,
    .jsonl, .parquet) with the columns id, video, transcript, text, question. What is up to date is
    not done again.

    Exit status: 0 all done, 1 some inputs or tasks failed (the rest is written), 2 wrong usage.
    """
    from vbkit.options import split_assignments
    from vbkit.plugins import default_manager

    manager = default_manager()
    assigned = split_assignments(options)
    declared = [manager.get_task(name) for name in tasks]  # a wrong name costs no model loading
    if policy is not None:
        _assign_policy(policy, declared, assigned)
    with _progress(as_json) as progress:
        from vbkit.engine import Engine
        from vbkit.engine.listening import split_options

        of_tasks, of_speech = split_options(manager, tasks, assigned)
        engine = Engine(model or "mini", device, precision=precision, cache=cache,
                        decode_workers=decode_workers, decode_timeout_s=decode_timeout,
                        reader=reader, manager=manager, options=of_speech)
        result = engine.run(
            list(inputs), list(tasks), out=out, questions=questions, options=of_tasks,
            heads=_heads(heads), transcript=transcript, fresh=fresh, captions=captions,
            wait_s=wait_s, progress=progress, command=shlex.join(["vbkit", *sys.argv[1:]]))
    if as_json:
        _print_json_report(result, out)
    else:
        _print_report(result, out, progress.seen)
    report = result.report
    return 1 if report.n_failed or report.n_partial or report.failures else 0


def _assign_policy(policy: Path, declared: list[Any], assigned: dict[str, dict[str, str]]) -> None:
    takers = [d.spec.name for d in declared
              if "policy" in {field.name for field in dataclasses.fields(d.spec.options)}]
    if not takers:
        raise UsageError("--policy is for the task moderation, which was not asked for")
    for name in takers:
        assigned.setdefault(name, {})["policy"] = str(policy)


def _heads(assignments: tuple[str, ...]) -> dict[str, str]:
    out = {}
    for assignment in assignments:
        task, equals, path = assignment.partition("=")
        if not equals or not task or not path:
            raise UsageError(f"--head {assignment!r}: write TASK=PATH")
        out[task] = path
    return out


# --- progress, on stderr ----------------------------------------------------------------------


class _Reporter:
    """Shows progress: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, silent: bool) -> None:
        self.seen: list[Progress] = []
        self.silent = silent
        self.failed = 0
        self._last_line = time.monotonic()
        self._first: float | None = None  # when the first input was done: before it, things load
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        self.failed += progress.status == "failed"
        if self._first is None:
            self._first = time.monotonic()
        if self.silent:
            return
        if sys.stderr.isatty():
            self._draw(progress)
        elif time.monotonic() - self._last_line > 10 and progress.done < progress.total:
            self._last_line = time.monotonic()
            click.echo(f"vbkit: {self._line(progress)}", err=True)

    def _line(self, progress: Progress) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        line = f"{progress.done} of {progress.total} inputs{failed}"
        if progress.done < 2 or self._first is None:
            return line
        elapsed = time.monotonic() - self._first
        left = elapsed / (progress.done - 1) * (progress.total - progress.done)
        return f"{line}, {_span(left)} left"

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(BarColumn(), TextColumn("{task.description}"),
                            console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=progress.total)
        self._bar.update(self._task, completed=progress.done,
                         description=f"{self._line(progress)}  {progress.video_id}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def _progress(as_json: bool) -> Iterator[_Reporter]:
    from vbkit.cli import settings

    quiet = settings().quiet
    reporter = _Reporter(silent=quiet)
    if not quiet and not as_json and sys.stderr.isatty():
        click.echo("vbkit: loading the model …", err=True)
    try:
        yield reporter
    finally:
        reporter.close()


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


# --- the report at the end --------------------------------------------------------------------


def _print_json_report(result: RunResult, out: Path) -> None:
    from vbkit.cli.printing import print_json

    report = result.report
    print_json({
        "run_id": result.run.run_id, "out": str(out), "tasks": list(result.run.tasks),
        "n_ok": report.n_ok, "n_partial": report.n_partial, "n_failed": report.n_failed,
        "n_skipped": report.n_skipped,
        "failures": [dataclasses.asdict(failure) for failure in report.failures],
        "notes": list(report.notes),
        "seconds": {name: round(value, 3) for name, value in report.seconds.items()},
    })


def _print_report(result: RunResult, out: Path, seen: list[Progress]) -> None:
    from vbkit.cli.printing import print_table

    report = result.report
    for note in report.notes:
        click.echo(f"vbkit: note: {note}", err=True)
    for failure in report.failures[:_LISTED_FAILURES]:
        where = f"task {failure.task}" if failure.task else failure.stage
        click.echo(f"vbkit: {failure.video_id}: {where}: {failure.message}", err=True)
    if len(report.failures) > _LISTED_FAILURES:
        more = len(report.failures) - _LISTED_FAILURES
        click.echo(f"vbkit: {more} more failures: vbkit show {out} errors", err=True)
    if not seen:
        click.echo("vbkit: there was nothing to do: no video, sound or subtitle file was found",
                   err=True)
        return
    if len(seen) <= _LISTED_VIDEOS:
        headlines = _headlines(result, {p.video_id for p in seen})
        names = ["video_id", "status", "duration_s", *result.run.tasks]
        print_table(names, [
            [p.video_id, p.status, round(p.duration_s, 1) if p.duration_s else None,
             *(headlines[task].get(p.video_id) for task in result.run.tasks)]
            for p in seen
        ])
    total = report.seconds.get("total", 0.0)
    counts = [f"{count} {name}" for name, count in (
        ("done", report.n_ok), ("done in part", report.n_partial), ("failed", report.n_failed),
        ("already up to date", report.n_skipped)) if count]
    click.echo(f"\n{', '.join(counts)}, in {_span(total)}. The tables are in {out}; "
               f"see them with: vbkit show {out} {result.run.tasks[0]}")


def _headlines(result: RunResult, videos: set[str]) -> dict[str, dict[str, str]]:
    """For each task and video, a few words: its by-video row where it has one, else a count."""
    out: dict[str, dict[str, str]] = {}
    for task in result.run.tasks:
        rows = result.tables.get(f"{task}_videos")
        if rows is None:
            rows = result.tables.get(task)
        out[task] = {}
        if rows is None:
            continue
        rows = rows[rows["video_id"].isin(videos)]
        words = [name for name in ("decision", "category", "label", "summary", "answer")
                 if name in rows.columns]
        for video_id, group in rows.groupby("video_id", sort=False):
            first = group.iloc[0].dropna()
            said = [str(first[name]) for name in words if name in first]
            text = ", ".join(said) if words else f"{len(group)} rows"
            if "no_answer" in group.columns:
                best = group[group["rank"] == 1]
                answered = best[~best["no_answer"].astype(bool)]
                if len(best) > 1:
                    text = f"{len(answered)} of {len(best)} questions answered"
                elif not len(answered):
                    text = "no answer"
            out[task][str(video_id)] = text if len(text) <= 60 else text[:59] + "…"
    return out


# --- questions to a results folder ------------------------------------------------------------


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("questions", metavar="QUESTION...", nargs=-1, required=True)
@click.option("--limit", "-n", type=click.IntRange(1), default=5, show_default=True,
              help="How many answers to each question.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@engine_options
def ask(out: Path, questions: tuple[str, ...], limit: int, as_json: bool, **options: Any) -> None:
    """Ask one or more questions of all videos in a results folder.

    All videos are looked through by their embeddings, and the nearest are read. Reads the feature
    cache: no video is opened.
    """
    from vbkit.cli.printing import print_frame

    library = _library(out, options)
    answers = library.ask(questions, limit)
    _tell_missing(library)
    if not as_json:
        for question, found in answers.groupby("question", sort=False):
            if bool(found["no_answer"].all()):
                about = "that" if len(questions) == 1 else f"“{question}”"
                click.echo(f"vbkit: nothing in these videos seems to answer {about}; the nearest:",
                           err=True)
    several = ["question"] if len(questions) > 1 else []
    shown = answers if as_json else answers[
        [*several, "rank", "video_id", "answer", "score", "start_s", "end_s", "modality"]]
    print_frame(shown, as_json=as_json, units={"start_s": "s", "end_s": "s"})


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("text")
@click.option("--limit", "-n", type=click.IntRange(1), default=10, show_default=True,
              help="How many moments.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@engine_options
def search(out: Path, text: str, limit: int, as_json: bool, **options: Any) -> None:
    """Find the moments of a results folder that a text describes.

    Score is the cosine between text and moment; compare scores of one modality only. Reads the
    feature cache: no video is opened.
    """
    from vbkit.cli.printing import print_frame

    library = _library(out, options)
    found = library.search(text, limit)
    _tell_missing(library)
    print_frame(found, as_json=as_json)


def _library(out: Path, options: dict[str, Any]) -> Any:
    from vbkit.store import list_tables

    list_tables(out)  # says so, before a model is loaded, where this is no results folder
    from vbkit.engine.library import Library

    return Library(open_engine(out, options), out)


def open_engine(out: Path, options: dict[str, Any]) -> Engine:
    """An engine with the model of a results folder's last run, where no other is named."""
    from vbkit.engine import Engine
    from vbkit.engine.library import last_run

    last = last_run(out)
    precision = options["precision"] if options["precision"] != "auto" else last.precision
    return Engine(options["model"] or last.model, options["device"], precision=precision,
                  cache=options["cache"])


def _tell_missing(library: Any) -> None:
    if library.missing:
        names = ", ".join(library.missing[:3]) + (" …" if len(library.missing) > 3 else "")
        click.echo(f"vbkit: {len(library.missing)} videos are not in the feature cache and were "
                   f"left out ({names}); `vbkit run` them again", err=True)

