"""`vbkit explain`: which clips, segments and words made a row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vbkit.cli.run import engine_options
from vbkit.cli.tables import _complete_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["explain"]


@click.command()
@click.argument("out", metavar="OUT")
@click.argument("table", metavar="TABLE", shell_complete=_complete_table)
@click.argument("rows", nargs=-1, type=click.IntRange(0), metavar="[ROW]...")
@click.option("--where", metavar="SQL",
              help="Instead of ROW: all rows for which this holds, such as "
                   "\"category = 'gun' AND score > 0.9\".")
@click.option("--save", is_flag=True,
              help="Also write it into the table explanations of OUT, for the report.")
@click.option("--limit", "-n", type=click.IntRange(0), default=10, show_default=True, metavar="N",
              help="Pieces of evidence of each kind to print; 0 for all.")
@click.option("--head", type=click.Path(path_type=Path), metavar="PATH",
              help="A fine-tuned head.  [default: the one that wrote the rows]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@engine_options
def explain(out: str, table: str, rows: tuple[int, ...], where: str | None, save: bool,
            limit: int, head: Path | None, as_json: bool, **options: Any) -> None:
    """Say which clips, segments and words made a row.

    ROW is the number of a row of TABLE in the results folder OUT, from 0, in the order of
    `vbkit show`. A piece of evidence weighs as much as the row's score owes to it: the score is
    found again and again with some of the evidence hidden. Reads the feature cache: no video is
    opened.

    \b
    vbkit explain results moderation 0
    """
    from vbkit.cli.printing import format_value, print_frame, print_json, records
    from vbkit.errors import UsageError
    from vbkit.plugins import default_manager

    if bool(rows) == (where is not None):
        raise UsageError("name rows of the table by their numbers, or by --where")
    if where is not None:
        rows = _numbers(out, table, where)
    manager = default_manager()
    from vbkit.engine.explain import choose_rows, explain_rows

    chosen = choose_rows(manager, out, table, rows)  # a wrong number costs no model loading
    from vbkit.cli.run import open_engine

    engine = open_engine(Path(out), options)
    found = explain_rows(engine, out, chosen, head=head, save=save)
    if as_json:
        print_json(records(found))
        return
    for each in chosen:
        of_video = found[found["video_id"] == each.video_id]
        for number, place in zip(each.numbers, each.rows.index, strict=True):
            evidence = of_video[of_video["of_row"] == place]
            click.echo(f"{table} {number}, {each.video_id}: {_what(each.rows.loc[place])}")
            if not len(evidence):
                click.echo("there is nothing to explain: the row has no score")
            for (target, score, hidden), group in evidence.groupby(
                    ["target", "score", "score_hidden"], sort=False):
                shown = group if not limit else group.groupby("kind", sort=False).head(limit)
                more = f" (the first {len(shown)} of {len(group)})" if len(shown) < len(group) \
                    else ""
                print_frame(
                    _readable(shown), units={"start_s": "s", "end_s": "s"},
                    title=f"{target} {format_value(score)}, without all of this "
                          f"{format_value(hidden)}{more}")
    if save:
        rows_saved = f"{len(found):,} row{'' if len(found) == 1 else 's'}"
        click.echo(f"vbkit: wrote {rows_saved} into {out}, table explanations", err=True)


def _numbers(out: str, table: str, where: str) -> tuple[int, ...]:
    """Numbers of the rows for which a condition holds, from 0."""
    from vbkit.errors import UsageError
    from vbkit.store import load_table, query

    load_table(out, table, where="false")  # says so where there is no such table
    name = table.replace('"', '""')
    # The line break ends a comment in `where`.
    found = query(out, f'SELECT "row number" FROM (SELECT *, row_number() OVER () - 1 AS '
                       f'"row number" FROM "{name}") AS "{name}" WHERE (\n{where}\n)')
    if not len(found):
        raise UsageError(f"{table} has no rows for which that holds")
    return tuple(sorted(found["row number"].tolist()))


def _what(row: pd.Series[Any]) -> str:
    """A row's values on one line, without what is NULL or says where it is."""
    from vbkit.cli.printing import format_value

    named = {name: format_value(value.item() if hasattr(value, "item") else value, 60)
             for name, value in row.items() if not _is_place(str(name))}
    return ", ".join(f"{name} {value}" for name, value in named.items() if value != "–")


def _is_place(name: str) -> bool:
    return name.startswith(("first_", "last_")) or name in ("evidence", "best_segment")


def _readable(evidence: pd.DataFrame) -> pd.DataFrame:
    """The columns that a person reads, places in words."""
    places = []
    for row in evidence.to_dict("records"):
        unit = "clip" if row["kind"] == "clip" else "segment"
        first, last = row[f"first_{unit}"], row[f"last_{unit}"]
        places.append(f"{unit} {first}" if first == last else f"{unit}s {first}–{last}")
    shown = evidence[["weight", "kind", "start_s", "end_s", "text"]].copy()
    shown.insert(2, "place", places)
    if shown["text"].isna().all():
        shown = shown.drop(columns="text")
    return shown.reset_index(drop=True)
