"""The documentation holds: its examples run, its commands parse, its links lead somewhere.

A fenced block after `<!-- test: GROUP -->` is run. Those of the group `results` run in a folder
with `talk.mp4`, `talk.srt`, `still.jpg`, and the folder `results`, which has all four tasks.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from plugin_files import make_distribution, site  # noqa: F401

import vbkit
from vbkit import hookspecs
from vbkit.cli import COMMANDS, cli
from vbkit.options import parse_options, split_assignments
from vbkit.plugins import PluginManager, default_manager
from vbkit.tables import CORE_TABLES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")),
         *sorted((ROOT / "recipes").rglob("README.md")), ROOT / "tests" / "data" / "README.md"]
PAGES = [page for page in PAGES if "_build" not in page.parts]
OF_EXAMPLES = {"people", "pace", "scenes"}  # tasks that exist only as examples


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    group: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def run(self) -> None:
        # Blank lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * self.line + self.code, str(self.page), "exec"), {"__name__": "example"})


def blocks_of(page: Path) -> Iterator[Block]:
    group, fence, language, start = None, "", "", 0
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        opening = re.match(r"(```+)(.*)", line)
        if fence:
            if line.strip() == fence:
                yield Block(page, start, language, "\n".join(lines) + "\n", group)
                fence, group = "", None
            else:
                lines.append(line)
        elif opening:
            fence, language, start, lines = opening[1], opening[2].strip(), number, []
        elif mark := re.match(r"<!-- test: (\w+) -->", line):
            group = mark[1]
        elif line.strip():
            group = None


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMAND_LINES = [
    (f"{block}: {line}", line.removeprefix("$ "))
    for block in BLOCKS if block.language == "console"
    for line in block.code.replace("\\\n", " ").splitlines() if re.match(r"(\$ )?vbkit ", line)
]


def of_group(group: str, page: str | None = None) -> list[Block]:
    return [block for block in BLOCKS
            if block.group == group and page in (None, str(block.page.relative_to(ROOT)))]


def words(line: str) -> list[str]:
    """A command's arguments, without comment, and without what the shell does with its output."""
    kept = []
    for word in shlex.split(line, comments=True)[1:]:
        if word in (">", "|", "||", "&&"):
            break
        kept.append(word)
    return kept


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, engine: vbkit.Engine, sample: Path) -> Path:
    """A folder as the examples expect it."""
    import av

    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(sample, folder / "talk.mp4")
    shutil.copy(sample.with_suffix(".srt"), folder / "talk.srt")
    with av.open(str(sample)) as video:
        next(video.decode(video=0)).to_image().save(folder / "still.jpg")
    result = engine.run([folder / "talk.mp4"], ["summarisation", "qa", "sentiment", "moderation"],
                        out=folder / "results", questions=["Who is speaking?"])
    assert not result.report.failures
    return folder


@pytest.fixture
def loaded(engine: vbkit.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples that make an engine get one whose model is loaded already."""
    monkeypatch.setattr("vbkit.engine.engine.Bundle", lambda *arguments: engine.bundle)


# Examples


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("block", of_group("results"), ids=str)
def test_example_runs(block: Block, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    block.run()


def test_the_readmes_plugin_works_as_written(
    site: Path,  # noqa: F811
    engine: vbkit.Engine, workplace: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, project = of_group("plugin", "README.md")
    declared = tomllib.loads(project.code)["project"]
    (entry_point,) = declared["entry-points"]["vbkit"].items()
    make_distribution(site, declared["name"], {entry_point[1]: module.code},
                      plugins=dict([entry_point]), version=declared["version"])
    assert "torch" not in module.code

    manager = PluginManager()
    record = next(record for record in manager.plugins() if record.name == entry_point[0])
    assert (record.status, record.error) == ("ok", None)
    assert record.declares["tasks"] == ("people",)
    monkeypatch.setattr(engine, "manager", manager)
    result = engine.run([workplace / "talk.mp4", workplace / "talk.srt"], ["people"])
    rows = result.tables["people"]
    assert not result.report.failures
    assert set(rows["video_id"]) == {"talk.mp4"}  # subtitles alone have no clips
    assert len(rows) == int(result.tables["videos"].set_index("video_id").at["talk.mp4", "n_clips"])
    assert rows["score"].between(0, 1).all()


def test_the_readmes_plugin_has_20_lines() -> None:
    module = of_group("plugin", "README.md")[0]
    lines = [line for line in module.code.splitlines() if line.strip()]
    assert len(lines) <= 22


@pytest.mark.usefixtures("loaded")
def test_the_guides_plugin_works_as_written(
    site: Path,  # noqa: F811
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    module, *examples = of_group("pace", "docs/plugins.md")
    (site / "vbkit_pace.py").write_text(module.code)
    monkeypatch.chdir(workplace)
    assert len(examples) == 2
    for example in examples:
        example.run()
    assert "words_per_s" in capsys.readouterr().out


def files_of(group: str) -> dict[str, str]:
    """The files of a group's blocks, each of which begins with a comment that names it."""
    return {match[1]: block.code for block in of_group(group)
            if (match := re.match(r"# (\S+\.py)\n", block.code))}


@pytest.mark.slow
@pytest.mark.usefixtures("loaded")
def test_the_tutorial_and_the_testing_guide_work_as_written(
    site: Path,  # noqa: F811
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    begin = next(line for where, line in COMMAND_LINES
                 if "tutorial.md" in where and "new-plugin" in line)
    project = tmp_path / "project"
    outcome = CliRunner().invoke(cli, [*words(begin), "--out", str(project)])
    assert outcome.exit_code == 0, outcome.output
    files = files_of("tutorial")
    assert len(files) == 3
    for name, text in files.items():
        assert (project / name).is_file()  # it replaces what was generated
        (project / name).write_text(text)
    shutil.copytree(project / "src" / "vbkit_scenes", site / "vbkit_scenes")
    (by_hand,) = [block for block in of_group("tutorial") if block.code not in files.values()]
    by_hand.run()
    shown = next(block.code for block in BLOCKS
                 if block.page == by_hand.page and "a green meadow  0." in block.code)
    printed = [line.split()[:-1] for line in capsys.readouterr().out.splitlines()]
    assert printed == [line.split()[:-1] for line in shown.splitlines()]  # all but the scores
    # The testing guide's files with them, so that the model is loaded once.
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "vbkit_pace.py").write_text(of_group("pace", "docs/plugins.md")[0].code)
    for name, text in files_of("testing").items():
        (tmp_path / "guide" / name).write_text(text)
    folders = ["project/tests", "guide"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *folders],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'project' / 'src'}:{tmp_path / 'guide'}"})
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b2\d passed", done.stdout), done.stdout


@pytest.mark.usefixtures("loaded")
def test_the_page_on_explanations_has_a_plugin_that_works_as_written(
    site: Path,  # noqa: F811
    tmp_path: Path, engine: vbkit.Engine, workplace: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (module,) = of_group("explained")
    (site / "vbkit_dogs.py").write_text(module.code)
    import vbkit_dogs  # type: ignore[import-not-found]

    manager = PluginManager()
    manager.register(vbkit_dogs, "dogs")
    monkeypatch.setattr(engine, "manager", manager)
    result = engine.run([workplace / "talk.mp4"], ["dogs"], out=tmp_path / "results")
    assert not result.report.failures
    evidence = engine.explain(tmp_path / "results", "dogs", 0)
    assert len(evidence) == int(result.tables["videos"].at[0, "n_clips"])
    assert evidence["weight"].sum() == pytest.approx(result.tables["dogs"].at[0, "score"],
                                                     abs=1e-4)


# Commands


@pytest.mark.parametrize("line", [line for _, line in COMMAND_LINES],
                         ids=[where for where, _ in COMMAND_LINES])
def test_command_line_is_one_that_vbkit_takes(line: str) -> None:
    arguments = words(line)
    while arguments[0].startswith("-"):
        assert arguments.pop(0) in {"-q", "-v", "-vv", "--debug"}
    name, *rest = arguments
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"there is no command {name}"
    with command.make_context(name, rest) as context:  # raises for what it does not know
        given = context.params
    if name == "run":
        tasks = set(given["tasks"]) - OF_EXAMPLES
        specs = {task: default_manager().get_task(task).spec for task in tasks}
        specs |= {heard.name: heard.spec for heard in default_manager().transcribers()}
        for task, values in split_assignments(given["options"]).items():
            if task not in OF_EXAMPLES:
                parse_options(specs[task].options, values, task)


@pytest.mark.parametrize(
    "line",
    [line for _, line in COMMAND_LINES
     if words(line)[0] in {"tables", "show", "query", "export", "report", "tasks", "plugins",
                           "models"}
     and not OF_EXAMPLES & set(re.findall(r"\w+", line))],
)
def test_command_that_reads_runs(line: str, workplace: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    arguments = words(line)
    if "xlsx" in line:
        pytest.importorskip("openpyxl")
    outcome = CliRunner().invoke(cli, arguments)
    assert outcome.exit_code == 0, outcome.output


# Completeness


def hooks() -> list[str]:
    return [name for name, value in vars(hookspecs).items()
            if inspect.isfunction(value) and hasattr(value, "vbkit_spec")]


@pytest.mark.parametrize("name", hooks())
def test_every_hook_is_documented(name: str) -> None:
    hook = getattr(hookspecs, name)
    doc = inspect.getdoc(hook) or ""
    assert len(doc.splitlines()[0]) > 10
    assert ".. versionadded::" in doc
    for parameter in inspect.signature(hook).parameters:
        assert re.search(rf"^ +{parameter}: \S", doc, re.MULTILINE), f"{parameter} is not described"
    page = (ROOT / "docs" / "hooks.md").read_text()
    assert f"\n## `{name}`\n" in page
    assert f".. autofunction:: vbkit.hookspecs.{name}\n" in page


@pytest.mark.parametrize("name", hooks())
def test_every_hook_has_an_example_and_a_test_that_runs_it(name: str) -> None:
    import test_hooks

    assert files_of(f"hook_{name}"), f"docs/hooks.md has no example of {name}"
    test = getattr(test_hooks, f"test_{name}", None)
    assert test is not None, f"tests/test_hooks.py has no test_{name}"
    assert f'example("{name}"' in inspect.getsource(test)


def test_all_hooks_are_found() -> None:
    assert {"vbkit_tasks", "vbkit_open_video", "vbkit_after_run"} <= set(hooks())
    assert len(hooks()) == len(re.findall(r"^def vbkit_", inspect.getsource(hookspecs), re.M))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_docs(command: str) -> None:
    assert any(words(line)[0] == command for _, line in COMMAND_LINES) or any(
        f"`vbkit {command}" in page.read_text() for page in PAGES)


def options_of_run() -> list[str]:
    command = cli.get_command(click.Context(cli), "run")
    assert command is not None
    return [name for parameter in command.params if isinstance(parameter, click.Option)
            and not parameter.hidden for name in parameter.opts if name.startswith("--")]


@pytest.mark.parametrize("option", options_of_run())
def test_every_option_of_run_is_in_the_docs(option: str) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert re.search(rf"(?<![\w-]){option}(?![\w-])", text)


def test_every_column_has_a_meaning() -> None:
    shipped = [task.spec for task in default_manager().tasks() if task.distribution == "vbkit"]
    schemas = [*CORE_TABLES.values(), *(schema for spec in shipped for schema in spec.tables)]
    nameless = [f"{schema.name}.{column.name}" for schema in schemas for column in schema
                if not column.doc]
    assert not nameless


def test_every_shipped_task_has_a_page() -> None:
    shipped = {task.spec.name for task in default_manager().tasks() if task.distribution == "vbkit"}
    assert shipped <= {page.stem for page in (ROOT / "docs" / "tasks").glob("*.md")}


def test_the_recipes_command_names_only_what_its_script_takes() -> None:
    command = next(block.code for block in BLOCKS if block.page.parent.name == "mini"
                   and "build.py" in block.code)
    script = (ROOT / "recipes" / "mini" / "build.py").read_text()
    taken = set(re.findall(r'add_argument\("(--\w+)"', script))
    required = set(re.findall(r'add_argument\("(--\w+)".*required=True', script))
    given = set(re.findall(r"--\w+", command))
    assert required <= given <= taken


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links() -> list[tuple[Path, str]]:
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"`[^`\n]*`", "", text)
        found += [(page, target) for target in re.findall(r"\]\(([^)\s]+)\)", text)
                  if not re.match(r"\w+:", target)]
    return found


@pytest.mark.parametrize(("page", "target"), links(),
                         ids=[f"{page.relative_to(ROOT)}->{target}" for page, target in links()])
def test_internal_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists()
    if anchor:
        assert anchor in anchors(file)


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent == ROOT / "docs"
                                  and p.name != "index.md"], ids=lambda p: p.name)
def test_every_page_is_in_the_index(page: Path) -> None:
    assert re.search(rf"^{page.stem}$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)


@pytest.mark.slow
def test_sphinx_builds_without_a_warning(tmp_path: Path) -> None:
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package)
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html",
         str(ROOT / "docs"), str(tmp_path / "html")],
        capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "html" / "hooks.html").read_text()
    for kind, count in (("collecting", 4), ("first result", 1), ("observer", 4)):
        assert len(re.findall(rf"<td><p>{kind}</p></td>", page)) == count
    page = (tmp_path / "html" / "tables.html").read_text()
    for schema in CORE_TABLES.values():
        assert all(f">{name}<" in page for name in schema.column_names)
