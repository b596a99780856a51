"""`vbkit new-plugin`: what it writes installs, runs and passes its own tests; what it refuses."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbkit.errors import UsageError
from vbkit.plugins import PluginManager
from vbkit.scaffold import (
    LICENCES,
    NewPlugin,
    ScaffoldError,
    find_clashes,
    new_plugin,
    plan_plugin,
)
from vbkit.testing import CLIP


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_venv(folder: Path) -> Path:
    """A venv that sees what this interpreter sees, and its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    seen = [path for path in sys.path if Path(path).is_dir() and "tests" not in Path(path).parts]
    Path(site, "seen.pth").write_text("\n".join(seen) + "\n")
    return python


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("PYTEST", "PYTHON", "VBKIT"))}
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True,
                          timeout=500, check=False, env=environment)


@pytest.mark.slow
def test_a_new_plugin_installs_runs_and_passes_its_own_tests(here: Path) -> None:
    pytest.importorskip("hatchling")
    done = run(sys.executable, "-m", "vbkit", "new-plugin", "what-is-it", "--author", "Ann Author",
               cwd=here)
    assert done.returncode == 0, done.stderr
    project = here / "vbkit-what-is-it"
    assert {str(project.relative_to(here) / "tests" / "test_what_is_it.py"),
            str(project.relative_to(here) / "LICENSE")} <= set(done.stdout.split())
    python = make_venv(here / "venv")
    done = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps",
               "--no-build-isolation", "--disable-pip-version-check", project, cwd=here)
    assert done.returncode == 0, done.stderr

    done = run(python, "-m", "vbkit", "plugins", "--json", cwd=here)
    (plugin,) = [p for p in json.loads(done.stdout) if p["distribution"] == "vbkit-what-is-it"]
    assert (plugin["status"], plugin["declares"]) == ("ok", {"tasks": ["what_is_it"]})
    assert "venv" in run(python, "-c", "import vbkit_what_is_it as p; print(p.__file__)",
                         cwd=here).stdout

    done = run(python, "-m", "vbkit", "run", CLIP, "--task", "what_is_it", "--out", "out",
               "--device", "cpu", "-o", "what_is_it.labels=a meadow, cars", cwd=here)
    assert done.returncode == 0, done.stderr
    shown = run(python, "-m", "vbkit", "show", "out", "what_is_it", "--json", cwd=here)
    assert [row["label"] for row in json.loads(shown.stdout)] == ["a meadow", "cars", "cars"]

    done = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    done = run(python, "-m", "ruff", "check", "--no-cache", ".", cwd=project)
    assert done.returncode == 0, done.stdout


def test_names_follow_from_the_task() -> None:
    for given_name in ("on-camera", "on_camera", "vbkit-on-camera", "vbkit_on_camera"):
        plugin = plan_plugin(given_name, author="A")
        assert (plugin.name, plugin.distribution, plugin.package, plugin.class_name) == (
            "on_camera", "vbkit-on-camera", "vbkit_on_camera", "OnCamera")
    plugin = plan_plugin("people", distribution="Acme.People-1", author="A")
    assert plugin.package == "acme_people_1"
    assert 'people = "acme_people_1"' in plugin.files()["pyproject.toml"]


@pytest.mark.parametrize("licence", LICENCES)
def test_each_licence(licence: str) -> None:
    files = plan_plugin("people", licence=licence.lower(), author="Ann Author").files()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["license"] == licence
    assert "Ann Author" in files["LICENSE"]
    assert "$" not in files["LICENSE"]
    assert ("Private :: Do Not Upload" in project["classifiers"]) == (
        licence == "LicenseRef-Proprietary")


@given(author=st.text(min_size=1).filter(lambda t: t.strip() and t.isprintable()),
       summary=st.text(min_size=1).filter(lambda t: t.strip(" .") and t.isprintable()))
def test_any_author_and_summary_give_files_that_parse(author: str, summary: str) -> None:
    plugin = plan_plugin("people", author=author, summary=summary)
    files = plugin.files()
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["authors"] == [{"name": author}]
    assert project["description"] == plugin.summary
    for name, text in files.items():
        if name.endswith(".py"):
            ast.parse(text)


@pytest.mark.parametrize(("name", "message"), [
    ("People", r"cannot name a task.*such as 'people'"),
    ("is it?", r"such as 'is_it'"),
    ("9lives", r"such as 'lives'"),
    ("größe", r"cannot name a task"),
    ("", r"cannot name a task"),
    ("../x", r"such as 'x'"),
    ("videos", r"the table videos is vbkit's own"),
])
def test_bad_names_are_refused_and_a_better_one_is_said(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_plugin(name, author="A")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"distribution": "a b"}, "cannot name a distribution"),
    ({"distribution": "import"}, "which Python cannot import"),
    ({"distribution": "3d-people"}, "which Python cannot import"),
    ({"licence": "MTI"}, "unknown licence 'MTI'; did you mean 'MIT'"),
    ({"licence": "GPL"}, "known are Apache-2.0, BSD-3-Clause, MIT"),
    ({"summary": "two\nlines"}, "summary must be one line"),
    ({"author": "a\tb"}, "author must be one line"),
])
def test_other_values_are_checked(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_plugin("people", **{"author": "A", **arguments})  # type: ignore[arg-type]


def test_what_is_installed_under_the_name_is_told(vbkit_cli, here: Path) -> None:
    for name, message in (
        ("qa", "the task qa is declared by vbkit"),
        ("chapters", "the table chapters is written by the task summarisation of vbkit"),
    ):
        result = vbkit_cli("new-plugin", name)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "--allow-clash" in result.stderr
    result = vbkit_cli("new-plugin", "x", "--distribution", "pluggy")
    assert "the distribution pluggy" in result.stderr
    assert "the package pluggy is importable" in result.stderr
    assert list(here.iterdir()) == []
    result = vbkit_cli("new-plugin", "chapters", "--allow-clash")
    assert result.exit_code == 0
    assert "warning: the table chapters" in result.stderr
    assert (here / "vbkit-chapters" / "pyproject.toml").is_file()


def test_nothing_clashes_with_a_new_name() -> None:
    plugin = plan_plugin("surely_new", author="A")
    assert find_clashes(plugin, PluginManager()) == []


def test_what_is_there_is_left_alone(here: Path, vbkit_cli) -> None:
    taken = here / "vbkit-people"
    taken.mkdir()
    (taken / "mine.txt").write_text("precious")
    result = vbkit_cli("new-plugin", "people")
    assert result.exit_code == 2
    assert "not empty" in result.stderr
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    (here / "file").touch()
    assert "is no folder" in vbkit_cli("new-plugin", "people", "--out", "file").stderr
    (here / "empty").mkdir()
    result = vbkit_cli("new-plugin", "people", "--out", "empty")
    assert result.exit_code == 0, result.stderr
    assert (here / "empty" / "src" / "vbkit_people" / "head.py").is_file()
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_a_failure_leaves_nothing_behind(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file").touch()
    plugin = plan_plugin("people", author="A")
    with pytest.raises(ScaffoldError, match="cannot write"):
        new_plugin(plugin, here / "file" / "new")
    files = {**plugin.files(), "pyproject.toml/x": ""}  # a file where a folder must be
    monkeypatch.setattr(NewPlugin, "files", lambda self: files)
    with pytest.raises(ScaffoldError, match="cannot write"):
        new_plugin(plugin, here / "new")
    assert [path.name for path in here.iterdir()] == ["file"]
