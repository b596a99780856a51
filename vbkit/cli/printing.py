"""Printing tables: for people in a terminal, as aligned text into a pipe, as JSON for machines."""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["format_value", "print_frame", "print_json", "print_table", "records", "shorten"]

NULL = "–"
_PLAIN_TEXT = 80  # characters of a text cell in a pipe
_TERMINAL_TEXT = 400  # and in a terminal, where it is wrapped
_NARROWEST = 16  # a wrapped column gets no narrower than this


def print_frame(
    frame: pd.DataFrame,
    *,
    as_json: bool = False,
    units: Mapping[str, str] | None = None,
    title: str = "",
    full: bool = False,
) -> None:
    """Print a DataFrame on stdout, without its index.

    Args:
        frame: the rows.
        as_json: print a JSON list with an object for each row, nothing shortened.
        units: unit by column, shown in the header; those in `frame.attrs["units"]` by default.
        title: a line above the table; none in JSON.
        full: never shorten text.
    """
    if as_json:
        print_json(records(frame))
        return
    units = frame.attrs.get("units", {}) if units is None else units
    names = [str(name) for name in frame.columns]
    columns = [frame.iloc[:, index].tolist() for index in range(len(names))]
    print_table(names, list(zip(*columns, strict=True)), units=units, title=title, full=full)


def print_table(
    names: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    units: Mapping[str, str] | None = None,
    title: str = "",
    full: bool = False,
) -> None:
    """Print rows on stdout: with lines and colours in a terminal, else as plain aligned text.

    Where a terminal is too narrow for the columns, each row is printed as a block of lines.
    Numbers are rounded for reading and aligned to the right; NULL is a dash.
    """
    rows = [list(row) for row in rows]
    terminal = sys.stdout.isatty()
    limit = None if full else _TERMINAL_TEXT if terminal else _PLAIN_TEXT
    units = units or {}
    headers = [f"{name} ({units[name]})" if units.get(name) else name for name in names]
    columns = [[row[index] for row in rows] for index in range(len(names))]
    right = [_is_numeric(column) for column in columns]
    cells = [_format_column(column, limit) for column in columns]
    if terminal:
        _print_rich(headers, cells, right, title)
    else:
        _print_plain(headers, cells, right, title)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as values that JSON knows: NULL, NaN and infinity as None, times as ISO 8601."""
    names = [str(name) for name in frame.columns]
    columns = [
        [_json_value(value) for value in frame.iloc[:, index].tolist()]
        for index in range(len(names))
    ]
    if not columns:
        return [{} for _ in range(len(frame))]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))


def shorten(text: str, limit: int | None) -> str:
    """Text on one line, at most `limit` characters, fit for a terminal.

    Line breaks and tabs become spaces. Control characters, with which a transcript could steer
    the terminal, become a replacement character.
    """
    clean = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in ("Cc", "Cs") else char
        for char in " ".join(text.split())
    )
    if limit is not None and len(clean) > limit:
        return clean[: limit - 1].rstrip() + "…"
    return clean


def format_value(value: Any, limit: int | None = None) -> str:
    """A value as a person reads it."""
    return _format_column([value], limit)[0]


def _is_null(value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    return type(value).__name__ in ("NAType", "NaTType")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_numeric(values: Iterable[Any]) -> bool:
    present = [value for value in values if not _is_null(value)]
    return bool(present) and all(map(_is_number, present))


def _format_column(values: Sequence[Any], limit: int | None) -> list[str]:
    decimals = _decimals([value for value in values if isinstance(value, float)])
    return [_format(value, limit, decimals) for value in values]


def _decimals(values: Sequence[float]) -> int:
    """As many decimals as a column needs, three at most."""
    finite = [value for value in values if math.isfinite(value)]
    return next(
        (n for n in range(3) if all(abs(value - round(value, n)) < 1e-9 for value in finite)), 3
    )


def _format(value: Any, limit: int | None, decimals: int) -> str:
    if _is_null(value):
        return NULL
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value and (abs(value) < 0.001 or abs(value) >= 1e9):
            return f"{value:.3g}"
        return f"{value:.{decimals}f}"
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ", timespec="seconds")
    return shorten(str(value), limit)


def _json_value(value: Any) -> Any:
    if _is_null(value):
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, int, bool)):
        return value
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return _json_value(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    return str(value)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _print_plain(
    headers: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], title: str
) -> None:
    lines = [list(headers), *(list(row) for row in zip(*cells, strict=True))]
    widths = [max(_width(line[index]) for line in lines) for index in range(len(headers))]
    if title:
        click.echo(title)
    for line in lines:
        padded = []
        for text, width, to_right in zip(line, widths, right, strict=True):
            space = " " * (width - _width(text))
            padded.append(space + text if to_right else text + space)
        click.echo("  ".join(padded).rstrip())


def _print_rich(
    headers: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], title: str
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    widest = [max(map(_width, (header, *column)), default=0)
              for header, column in zip(headers, cells, strict=True)]
    least = [
        width if to_right else min(width, max(_NARROWEST, _width(header)))
        for header, width, to_right in zip(headers, widest, right, strict=True)
    ]
    if title:
        console.print(Text(title, style="bold"))
    if sum(least) + 2 * len(least) > console.width:
        _print_blocks(console, headers, cells)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for header, width, to_right in zip(headers, least, right, strict=True):
        table.add_column(
            Text(header), justify="right" if to_right else "left", min_width=width,
            no_wrap=to_right, overflow="fold",
        )
    for row in zip(*cells, strict=True):
        table.add_row(*(Text(text, style="dim" if text == NULL else "") for text in row))
    console.print(table)


def _print_blocks(console: Any, headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    for number, row in enumerate(zip(*cells, strict=True), start=1):
        console.rule(f"row {number}", align="left", style="dim")
        block = Table.grid(padding=(0, 2))
        block.add_column(no_wrap=True)
        block.add_column(overflow="fold")
        for header, text in zip(headers, row, strict=True):
            block.add_row(Text(header, style="bold"), Text(text))
        console.print(block)
