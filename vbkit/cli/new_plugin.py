"""`vbkit new-plugin`: the distribution of a new task."""

from __future__ import annotations

from pathlib import Path

import click

from vbkit.errors import UsageError
from vbkit.scaffold import LICENCES, find_clashes, plan_plugin
from vbkit.scaffold import new_plugin as write_plugin

__all__ = ["new_plugin"]


@click.command("new-plugin")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR",
              help="Folder to write; the distribution's name by default.")
@click.option("--licence", "--license", default="Apache-2.0", show_default=True, metavar="SPDX",
              help=f"One of {', '.join(LICENCES)}.")
@click.option("--author", help="Who holds the copyright; git's user.name by default.")
@click.option("--summary", help="What the task does, in one line.")
@click.option("--distribution", metavar="DIST", help="What pip calls it.  [default: vbkit-NAME]")
@click.option("--allow-clash", is_flag=True,
              help="Write it although something of that name is installed.")
def new_plugin(name: str, out: Path | None, licence: str, author: str | None, summary: str | None,
               distribution: str | None, allow_clash: bool) -> None:
    """Write a plugin: the distribution of a new task NAME, with tests, ready to install.

    It compares each clip with a few labels; make of it what you need.
    """
    plugin = plan_plugin(name, distribution=distribution, licence=licence, author=author,
                         summary=summary)
    clashes = find_clashes(plugin)
    if clashes and not allow_clash:
        raise UsageError(f"{'; '.join(clashes)}: choose another NAME or --distribution, or write "
                         "it all the same with --allow-clash")
    for clash in clashes:
        click.echo(f"vbkit: warning: {clash}", err=True)
    folder = out if out is not None else Path(plugin.distribution)
    for file in write_plugin(plugin, folder):
        click.echo(folder / file)
    click.echo(
        f'\nNext:\n  cd {folder}\n  pip install -e ".[test]"\n  pytest\n'
        f"  vbkit run VIDEO --task {plugin.name} --out results", err=True)
