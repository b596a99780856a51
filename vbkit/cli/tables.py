"""`vbkit tables`, `show`, `query` and `export`: reading a results folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd
    from click.shell_completion import CompletionItem

__all__ = ["export", "query", "show", "tables"]


def _complete_table(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    from vbkit.errors import VbkitError
    from vbkit.store import list_tables

    try:
        names = list_tables(context.params["out"])
    except (VbkitError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


_out = click.argument("out", metavar="OUT")
_table = click.argument("table", metavar="TABLE", shell_complete=_complete_table)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_where = click.option(
    "--where", metavar="SQL",
    help="Only rows for which this holds, such as \"score > 0.5 AND category = 'fight'\".",
)


@click.command()
@_out
@click.option("--columns", is_flag=True, help="List each column with its type, unit and meaning.")
@_json
def tables(out: str, columns: bool, as_json: bool) -> None:
    """List the tables of the results folder OUT.

    `videos` counts the videos that a table was written for, also those that it has no rows of.
    """
    from vbkit.cli.printing import print_json, print_table
    from vbkit.store import list_tables
    from vbkit.store.reading import StoredTable

    found = [StoredTable.read(out, name, _describe) for name in list_tables(out)]
    if as_json:
        print_json(found)
    elif columns:
        print_table(
            ("table", "column", "type", "unit", "meaning"),
            [
                (table["table"], column["name"], column["type"], column["unit"], column["meaning"])
                for table in found
                for column in table["columns"]
            ],
            full=True,
        )
    else:
        print_table(
            ("table", "rows", "videos", "columns", "meaning"),
            [
                (
                    table["table"],
                    table["rows"],
                    table["videos"],
                    ", ".join(column["name"] for column in table["columns"]),
                    table["meaning"],
                )
                for table in found
            ],
            full=True,
        )


def _describe(table: Any) -> dict[str, Any]:
    about = table.attributes()
    task = table.files[-1].get("task")
    per_video = [file for file in table.files if file.video_id]
    return {
        "table": table.name,
        "rows": table.n_rows,
        "videos": len(per_video) if per_video else None,
        "videos_with_rows": sum(file.n_rows > 0 for file in per_video) if per_video else None,
        "meaning": about["doc"] or (f"written by the task {task}" if task else ""),
        "columns": [
            {
                "name": field.name,
                "type": _type_name(str(field.type)),
                "unit": about["units"].get(field.name, ""),
                "nullable": field.nullable,
                "meaning": about["docs"].get(field.name, ""),
            }
            for field in table.schema
        ],
    }


def _type_name(arrow: str) -> str:
    return {"double": "float64"}.get(arrow, "timestamp" if arrow.startswith("timestamp") else arrow)


@click.command()
@_out
@_table
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=0), metavar="N",
              help="Rows to print; 0 for all.")
@click.option("--columns", metavar="A,B,…", help="Only these columns, in this order.")
@_where
@_json
def show(
    out: str, table: str, limit: int, columns: str | None, where: str | None, as_json: bool
) -> None:
    """Print rows of TABLE in the results folder OUT."""
    from vbkit.cli.printing import print_frame
    from vbkit.store.reading import head, retry, to_pandas

    stored, data, total = retry(
        out, lambda: head(out, table, _split(columns), where, limit or None))
    frame = to_pandas(data, stored.schema)
    frame.attrs.update(stored.attributes(data.column_names))
    print_frame(frame, as_json=as_json)
    more = total - len(frame)
    if more > 0:
        note = f"… {more:,} more row{'s' if more > 1 else ''} of {total:,}; --limit 0 shows all"
        click.echo(note, err=as_json)
    elif not len(frame):
        which = "no rows for which that holds" if where else "no rows"
        click.echo(f"{table} has {which}", err=as_json)


def _split(columns: str | None) -> list[str] | None:
    if columns is None:
        return None
    return [name for name in (part.strip() for part in columns.split(",")) if name]


@click.command()
@_out
@click.argument("sql", metavar="SQL")
@_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def query(out: str, sql: str, as_json: bool, as_csv: bool) -> None:
    """Run one SELECT, in DuckDB's SQL, over the tables of the results folder OUT.

    Each table is a view of its name. Nothing but these tables can be read, and nothing written.

    \b
    vbkit query results "SELECT category, count(*) FROM moderation GROUP BY category"
    """
    from vbkit.cli.printing import print_frame
    from vbkit.errors import UsageError
    from vbkit.store import query as run_query

    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other")
    frame = run_query(out, sql)
    if as_csv:
        _write_csv(frame, sys.stdout.buffer)
    else:
        print_frame(frame, as_json=as_json)


@click.command()
@_out
@_table
@click.option("--to", "kind",
              type=click.Choice(["csv", "jsonl", "parquet", "xlsx", "vtt", "srt", "manifest"]),
              help="The format; by default what the end of FILE says. vtt, srt: subtitles, a file "
                   "for each video. manifest: a CSV of labels for a person to correct and `vbkit "
                   "finetune` to learn from.")
@click.option("--output", metavar="FILE", default="-",
              help="Where to; - is stdout, the default. For vtt and srt, a folder.")
@click.option("--columns", metavar="A,B,…", help="Only these columns, in this order.")
@_where
def export(
    out: str, table: str, kind: str | None, output: str, columns: str | None, where: str | None
) -> None:
    """Write TABLE of the results folder OUT as CSV, JSON lines, Parquet or an Excel file.

    As vtt or srt, whatever has a time (moderation, sentiment, segments, chapters, …) becomes
    subtitles, to be watched in a player with the video: a file for each video, in a folder, where
    files.csv says which is whose.

    As a manifest, what moderation, sentiment or classification say of each video is written with
    where it is and what is said in it: correct the column label, and train on it.
    """
    from vbkit.errors import UsageError
    from vbkit.store import load_table

    if kind is None:
        kind = Path(output).suffix.removeprefix(".").lower()
        if kind not in _WRITERS:
            formats = ", ".join((*_WRITERS, "vtt", "srt", "manifest"))
            raise UsageError(f"name a format: --to {formats}")
    if kind in ("vtt", "srt"):
        _export_subtitles(out, table, kind, output, _split(columns), where)
        return
    stdout = sys.stdout.buffer
    if output == "-" and kind in ("parquet", "xlsx") and stdout.isatty():
        raise UsageError(f"{kind} is not text: name a file, --output {table}.{kind}")
    if kind == "xlsx":
        _require_openpyxl()
    if kind == "manifest":
        from vbkit.store.labels import label_manifest

        if columns or where:
            raise UsageError("--columns and --where are not for --to manifest")
        frame = label_manifest(out, table)
    else:
        frame = load_table(out, table, _split(columns), where)
    write = _WRITERS.get(kind, _write_csv)
    if output == "-":
        write(frame, stdout)
        stdout.flush()
        return
    _write_to(Path(output), lambda file: write(frame, file))
    rows = f"{len(frame):,} row{'' if len(frame) == 1 else 's'}"
    click.echo(f"vbkit: wrote {rows} to {output}", err=True)


def _export_subtitles(out: str, table: str, kind: Any, output: str, columns: list[str] | None,
                      where: str | None) -> None:
    from vbkit.errors import UsageError
    from vbkit.store import load_table
    from vbkit.store.subtitles import write_subtitles

    if output == "-":
        raise UsageError(f"{kind} is a file for each video: name a folder, --output FOLDER")
    frame = load_table(out, table, where=where)
    unknown = [name for name in columns or () if name not in frame.columns]
    if unknown:
        raise UsageError(f"table {table} has no column {unknown[0]!r}; "
                         f"its columns are {', '.join(frame.columns)}")
    done = write_subtitles(frame, Path(output), kind, columns)
    untimed = f"; rows without a time, left out: {done.n_untimed:,}" if done.n_untimed else ""
    click.echo(f"vbkit: wrote {done.n_cues:,} subtitle{'' if done.n_cues == 1 else 's'} of "
               f"{len(done.files):,} video{'' if len(done.files) == 1 else 's'} to "
               f"{output}{untimed}", err=True)


def _write_to(target: Path, write: Callable[[IO[bytes]], None]) -> None:
    import uuid

    from vbkit.errors import UsageError
    from vbkit.store.writing import write_atomically

    if target.is_dir():
        raise UsageError(f"--output {target} is a folder: name a file in it")
    if target.exists() and not target.is_file():  # a pipe or a device, which cannot be replaced
        with open(target, "wb") as file:
            write(file)
        return
    temp = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    write_atomically(target, temp, write)


def _write_csv(frame: pd.DataFrame, file: IO[bytes]) -> None:
    file.write(frame.to_csv(index=False, lineterminator="\n").encode("utf-8", "backslashreplace"))


def _write_jsonl(frame: pd.DataFrame, file: IO[bytes]) -> None:
    import json

    from vbkit.cli.printing import records

    for row in records(frame):
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def _write_parquet(frame: pd.DataFrame, file: IO[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.Table.from_pandas(frame, preserve_index=False)
    fields = []
    for field in data.schema:
        about = {"unit": frame.attrs["units"].get(field.name, ""),
                 "doc": frame.attrs["docs"].get(field.name, "")}
        fields.append(field.with_metadata(about))
    metadata = {**(data.schema.metadata or {}), b"vbkit.table": frame.attrs["table"].encode()}
    pq.write_table(data.cast(pa.schema(fields, metadata)), file, compression="zstd")


_EXCEL_ROWS = 1_048_576
_EXCEL_TEXT = 32_767


def _require_openpyxl() -> None:
    from vbkit.errors import StoreError

    try:
        import openpyxl  # noqa: F401
    except ImportError as error:
        raise StoreError(
            "xlsx needs openpyxl, which is not installed: pip install 'vbkit[excel]'"
        ) from error


def _write_xlsx(frame: pd.DataFrame, file: IO[bytes]) -> None:
    """A workbook: the rows, and a second sheet with unit and meaning of each column."""
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    from vbkit.errors import UsageError

    if len(frame) >= _EXCEL_ROWS:
        raise UsageError(
            f"{len(frame):,} rows are more than an Excel sheet holds; use --where, or --to csv"
        )
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet(frame.attrs["table"][:31])
    sheet.freeze_panes = "A2"
    notes = book.create_sheet("about these columns")

    def cells(target: Any, values: Any) -> list[Any]:
        row = []
        for value in values:
            cell = WriteOnlyCell(target, value=None)
            plain = _excel_value(value)
            if isinstance(plain, str):
                # As text whatever it starts with: a transcript must not become a formula.
                cell.value = plain
                cell.data_type = "s"
                cell.quotePrefix = plain[:1] in ("=", "+", "-", "@")
            else:
                cell.value = plain
            row.append(cell)
        return row

    sheet.append(cells(sheet, frame.columns))
    columns = [frame.iloc[:, index].tolist() for index in range(frame.shape[1])]
    for row in zip(*columns, strict=True):
        sheet.append(cells(sheet, row))
    notes.append(cells(notes, ("column", "unit", "meaning")))
    for name in frame.columns:
        unit = "UTC" if str(frame[name].dtype).startswith("datetime") else ""
        unit = frame.attrs["units"].get(name, unit)
        notes.append(cells(notes, (name, unit, frame.attrs["docs"].get(name, ""))))
    book.save(file)


def _excel_value(value: Any) -> Any:
    """A value as Excel can hold it: no time zones, no infinity, no control characters."""
    import datetime as dt
    import math

    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    from vbkit.cli.printing import _is_null

    if _is_null(value):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).replace(tzinfo=None)
    if isinstance(value, str):
        text = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", value)
        return text if len(text) <= _EXCEL_TEXT else text[: _EXCEL_TEXT - 1] + "…"
    return value


_WRITERS: dict[str, Callable[[Any, IO[bytes]], None]] = {
    "csv": _write_csv,
    "jsonl": _write_jsonl,
    "parquet": _write_parquet,
    "xlsx": _write_xlsx,
}
