"""The pytest plugin of vbkit: fixtures for the tests of plugins.

pytest loads it wherever vbkit is installed, so importing it must cost next to nothing: whatever a
fixture needs is imported by the fixture.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from click.testing import Result

    from vbkit.engine import Engine
    from vbkit.features import Features
    from vbkit.plugins import PluginManager


@pytest.fixture(scope="session")
def vbkit_features() -> Callable[..., Features]:
    """`vbkit.testing.make_features`: features of any size, made up from a seed."""
    from vbkit.testing.made_up import make_features

    return make_features


@pytest.fixture
def vbkit_clip(tmp_path: Path) -> Path:
    """A real video of 4.5 s with a subtitle file beside it, in a folder of this test's own."""
    from vbkit.testing import CLIP

    for suffix in (".mp4", ".srt"):
        shutil.copy(CLIP.with_suffix(suffix), tmp_path)
    return tmp_path / CLIP.name


@pytest.fixture
def vbkit_plugins() -> Iterator[PluginManager]:
    """A plugin manager that knows vbkit's own plugins and what the test registers, no others.

    While the test runs it also is what `vbkit_cli` and `vbkit_engine` use.
    """
    from vbkit.plugins import use_manager
    from vbkit.testing.engines import isolated_manager

    with use_manager(isolated_manager()) as manager:
        yield manager


@pytest.fixture
def vbkit_cli() -> Callable[..., Result]:
    """Runs a vbkit command in this process: `vbkit_cli("tasks", "people")`.

    Returns click's `Result`, with `exit_code`, `stdout`, `stderr` and `output`.
    """
    from click.testing import CliRunner

    from vbkit.cli import cli

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments],
                                  prog_name="vbkit")

    return run


@pytest.fixture
def vbkit_engine(request: pytest.FixtureRequest) -> Engine:
    """An engine with `mini` on the CPU, loaded once a process.

    It has the installed plugins, or those of `vbkit_plugins` where the test uses that.
    """
    from vbkit.testing.engines import shared_engine

    if "vbkit_plugins" in request.fixturenames:
        return shared_engine(request.getfixturevalue("vbkit_plugins"))
    return shared_engine()
