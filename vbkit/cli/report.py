"""`vbkit report`: a results folder as one page of HTML."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["report"]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to.  [default: OUT/report.html]")
@click.option("--title", default="", metavar="TEXT",
              help="The page's title.  [default: OUT's name]")
@click.option("--pictures", "pictures_mb", type=click.FloatRange(0), default=24.0,
              show_default=True, metavar="MB",
              help="All pictures take at most so much; where that is short, there are fewer and "
                   "smaller ones. 0 for none.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(out: Path, output: Path | None, title: str, pictures_mb: float, as_json: bool) -> int:
    """Write the results folder OUT as one page of HTML.

    The page holds everything that it shows, so it can be mailed, and opened without a network. It
    uses the pictures that runs saved; no video is opened.
    """
    from vbkit.report import write_report

    made = write_report(out, output, title=title, pictures_mb=pictures_mb)
    if as_json:
        from vbkit.cli.printing import print_json

        print_json({
            "path": str(made.path), "bytes": made.n_bytes, "n_videos": made.n_videos,
            "n_pictures": made.n_pictures, "n_pictures_saved": made.n_saved,
            "notes": list(made.notes), "damaged": list(made.damaged)})
    else:
        click.echo(made.path)
        if made.n_pictures < made.n_saved and pictures_mb:
            click.echo(f"vbkit: {made.n_pictures:,} of {made.n_saved:,} pictures fit into "
                       f"{pictures_mb:g} MB; --pictures MB allows more", err=True)
        for note in made.notes:
            click.echo(f"vbkit: note: {note}", err=True)
    for message in made.damaged:
        click.echo(f"vbkit: left out: {message}", err=True)
    return 1 if made.damaged else 0
