# ruff: noqa: F811 (a fixture's name is an argument's)
from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from plugin_files import TASK, make_distribution, site  # noqa: F401 (a fixture)

import vbkit
from vbkit.cli import COMMANDS, cli, settings
from vbkit.cli.doctor import (
    Check,
    Status,
    _extras,
    _feature_cache,
    _in_process,
    _plugins,
    _speech,
    _torch,
    examine,
)
from vbkit.cli.plugins import on_disk
from vbkit.errors import StoreError, UsageError
from vbkit.hookspecs import hookimpl
from vbkit.plugins import PluginManager, default_manager
from vbkit.specs import TranscriberSpec

HEAVY = {"torch", "numpy", "pandas", "pyarrow", "duckdb", "av", "decord", "transformers"}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    default_manager.cache_clear()
    yield
    default_manager.cache_clear()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def program(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vbkit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]


@pytest.fixture
def extra(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of another distribution that end in all kinds of ways."""
    code = """
import click, os, sys
from vbkit.cli import settings
from vbkit.errors import StoreError, UsageError

@click.command()
@click.argument("how")
def end(how):
    "End somehow."
    if how == "settings":
        click.echo(repr(settings()))
    elif how == "vbkit":
        raise StoreError("the folder x\\nis full: free some space")
    elif how == "usage":
        raise UsageError("no task of that name")
    elif how == "bug":
        raise KeyError("x")
    elif how == "eof":
        raise EOFError("unexpected end")
    elif how == "interrupt":
        raise KeyboardInterrupt
    elif how == "return":
        return 1
    elif how == "exit":
        sys.exit(3)
    elif how == "click":
        click.get_current_context().exit(4)
    elif how == "text":
        sys.exit("no luck")
    elif how == "many":
        for number in range(100_000):
            click.echo(f"line {number}")
    elif how == "name":
        click.echo(os.fsdecode(b"caf\\xe9.mp4"))
    elif how == "log":
        import logging
        log = logging.getLogger("vbkit")
        log.debug("a detail"), log.info("a note"), log.warning("a doubt"), log.error("a fault")
"""
    commands = {"end": "acme_commands:end", "broken": "acme_broken:command",
                "wrong": "acme_commands:settings"}
    modules = {"acme_commands": code, "acme_broken": "import no_such_module"}
    make_distribution(site, "acme-commands", modules, commands=commands)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


# What is imported


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["tasks"], ["plugins"], ["models"]])
def test_listing_imports_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom vbkit.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True,
                          check=True)
    modules = set(re.findall(r"'([^']*)'", done.stderr.splitlines()[-1]))
    assert "click" in modules
    assert not HEAVY & modules
    if command == ["--help"]:
        assert not {name for name in modules if name.startswith("vbkit.cli.")}
        assert "vbkit.plugins" not in modules


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_and_has_help(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage: vbkit" in result.output.replace("cli", "vbkit")


def test_no_arguments_show_help_and_are_wrong_usage() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr
    assert result.stdout == ""


def test_version() -> None:
    assert run("--version").stdout == f"vbkit {vbkit.__version__}\n"


# How it ends


@pytest.mark.parametrize(
    ("how", "status", "line"),
    [
        ("vbkit", 1, "vbkit: error: the folder x is full: free some space"),
        ("usage", 2, "vbkit: error: no task of that name"),
        ("bug", 1, "vbkit: error: KeyError: 'x' (run with --debug for the traceback)"),
        ("eof", 1, "vbkit: error: EOFError: unexpected end (run with --debug for the traceback)"),
        ("interrupt", 130, "vbkit: interrupted"),
        ("return", 1, ""),
        ("exit", 3, ""),
        ("click", 4, ""),
        ("text", 1, "vbkit: error: no luck"),
        ("nothing", 0, ""),
    ],
)
def test_statuses_and_one_line_errors(extra: Path, how: str, status: int, line: str) -> None:
    result = run("end", how)
    assert result.exit_code == status
    assert result.stderr.strip() == line
    done = program("end", how)
    assert done.returncode == status
    assert done.stderr.strip() == line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabels"], "no such command 'tabels'; did you mean 'tables'? (see"),
        (["--loud"], "--loud"),
        (["end"], "Missing argument 'HOW'. (see"),
        (["end", "--loud"], "--loud"),
        (["tasks", "no_such_task"], "unknown task 'no_such_task'"),
    ],
)
def test_wrong_usage(extra: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("vbkit: error: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["vbkit", "bug"])
@pytest.mark.parametrize("first", [True, False])
def test_debug_shows_the_traceback(extra: Path, how: str, first: bool) -> None:
    done = program(*(["--debug", "end", how] if first else ["end", how, "--debug"]))
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "--debug" not in done.stderr.splitlines()[-1]


def test_global_options_do_before_and_after_the_command(extra: Path) -> None:
    for arguments in (["-vv", "end", "settings"], ["end", "settings", "-vv"]):
        assert "verbose=2" in run(*arguments).stdout
    assert run("-q", "end", "settings", "--debug").stdout == (
        "Settings(debug=True, verbose=0, quiet=True)\n"
    )
    assert "debug=False, verbose=0, quiet=False" in run("end", "settings").stdout
    assert settings().quiet is False


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ([], ["warning: a doubt", "a fault"]),
        (["-q"], ["a fault"]),
        (["-v"], ["a note", "warning: a doubt", "a fault"]),
        (["-vv"], ["a detail", "a note", "warning: a doubt", "a fault"]),
    ],
)
def test_the_log_goes_to_stderr(extra: Path, options: list[str], lines: list[str]) -> None:
    done = program("end", "log", *options)
    assert done.stderr.splitlines() == [f"vbkit: {line}" for line in lines]


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no pipes of this kind")
def test_a_reader_that_goes_away_is_no_error(extra: Path) -> None:
    command = [sys.executable, "-m", "vbkit", "end", "many"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_a_name_of_any_bytes_can_be_printed(extra: Path) -> None:
    done = program("end", "name", env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stdout) == (0, "caf\\udce9.mp4\n")


# Commands of plugins


def test_commands_of_plugins_are_listed_and_not_imported(extra: Path) -> None:
    result = run("--help")
    assert result.exit_code == 0
    section = result.stdout.partition("Commands of plugins:")[2]
    assert re.findall(r"^  (\w+) +From acme-commands", section, re.MULTILINE) == [
        "broken", "end", "wrong",
    ]
    assert "acme_commands" not in sys.modules
    assert "acme_broken" not in sys.modules


def test_a_broken_command_costs_an_error_when_typed(extra: Path) -> None:
    result = run("broken")
    assert result.exit_code == 1
    assert "command 'broken' of acme-commands cannot be loaded: ModuleNotFound" in result.stderr
    result = run("wrong")
    assert result.exit_code == 1
    assert "is no click command" in result.stderr


def test_a_command_of_two_distributions_is_refused(extra: Path) -> None:
    make_distribution(extra, "other", {}, commands={"end": "acme_commands:end",
                                                    "tasks": "acme_commands:end"})
    result = run("end", "nothing")
    assert result.exit_code == 2
    assert "comes from" in result.stderr
    assert run("tasks").exit_code == 0  # vbkit's own come first


def test_cli_can_be_called_without_exiting(extra: Path) -> None:
    with pytest.raises(StoreError):
        cli.main(["end", "vbkit"], standalone_mode=False)
    with pytest.raises(UsageError):
        cli.main(["end", "usage"], standalone_mode=False)
    assert isinstance(cli, click.Group)


# Completion


def test_completion_lists_commands_and_options(extra: Path) -> None:
    def complete(words: str, number: int) -> list[str]:
        environment = {**os.environ, "_VBKIT_COMPLETE": "bash_complete", "COMP_WORDS": words,
                       "COMP_CWORD": str(number)}
        return program(env=environment).stdout.split()

    assert set(complete("vbkit ta", 1)) == {"plain,tasks", "plain,tables"}
    assert set(complete("vbkit ", 1)) >= {f"plain,{name}" for name in (*COMMANDS, "broken", "end")}
    assert complete("vbkit tasks --j", 2) == ["plain,--json"]
    assert complete("vbkit broken --j", 2) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_takes_the_completion_script() -> None:
    vbkit_program = Path(sys.executable).parent / "vbkit"
    if not vbkit_program.exists():
        pytest.skip("vbkit is not installed as a program")
    script = f"""
        PATH={vbkit_program.parent}:$PATH
        eval "$(_VBKIT_COMPLETE=bash_source vbkit)"
        COMP_WORDS=(vbkit plu); COMP_CWORD=1
        _vbkit_completion vbkit
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "plugins", done.stderr


# tasks, plugins, models


@pytest.fixture
def dogs(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))
    code = TASK + """
from dataclasses import dataclass
from vbkit import ModelSpec, option

@dataclass(frozen=True)
class Options:
    threshold: float = option(0.5, help="least score of a dog")

@hookimpl
def vbkit_tasks():
    tables = (TableSchema("dogs", (Column("start_s", "float64", "s", True, "when it barks"),)),)
    yield task("dogs", tables=tables, options=Options, capabilities={"explain"})

@hookimpl
def vbkit_models():
    yield ModelSpec("kennel", "a model", "acme/kennel", "CC0")
"""
    modules = {"acme_dogs": code, "acme_bad": "1 / 0"}
    make_distribution(site, "acme-dogs", modules, {"pets": "acme_dogs", "bad": "acme_bad"},
                      version="2.5")


def test_tasks(dogs: None) -> None:
    result = run("tasks")
    assert result.exit_code == 0
    assert re.search(r"^dogs +scores something +pets \(acme-dogs 2.5\)$", result.stdout, re.M)
    listed = json.loads(run("tasks", "--json").stdout)
    task = next(entry for entry in listed if entry["name"] == "dogs")
    assert task == json.loads(run("tasks", "dogs", "--json").stdout)
    assert task["options"] == [{"name": "threshold", "type": "float", "default": "0.5",
                                "help": "least score of a dog"}]
    assert task["needs"] == ["pooled"]
    assert task["tables"][0]["columns"][0] == {
        "name": "start_s", "dtype": "float64", "unit": "s", "nullable": True,
        "doc": "when it barks",
    }


def test_one_task_is_described(dogs: None) -> None:
    text = run("tasks", "dogs").stdout
    for part in ("dogs: scores something", "explain", "-o dogs.OPTION=VALUE", "Table dogs"):
        assert part in text
    assert re.search(r"^threshold +float +0.5 +least score of a dog$", text, re.M)
    assert re.search(r"^start_s +float64 or NULL +s +when it barks$", text, re.M)


def test_plugins(dogs: None) -> None:
    result = run("plugins")
    assert result.exit_code == 0
    assert re.search(r"^bad +acme-dogs +2.5 +failed .* ZeroDivisionError", result.stdout, re.M)
    records = {record["name"]: record for record in json.loads(run("plugins", "--json").stdout)}
    assert records["pets"] == {
        "name": "pets", "distribution": "acme-dogs", "version": "2.5", "status": "ok",
        "error": None, "declares": {"tasks": ["dogs"], "models": ["kennel"]},
    }
    assert records["bad"]["status"] == "failed"
    assert records["backbones"]["status"] == "ok"


def test_a_failed_plugin_is_one_line_and_no_failure(dogs: None) -> None:
    done = program("tasks")
    assert done.returncode == 0
    assert done.stderr == (
        "vbkit: plugin bad (acme-dogs 2.5) failed: ZeroDivisionError: division by zero\n"
    )
    assert program("--help").stderr == ""


def test_models(dogs: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    model = next(m for m in json.loads(run("models", "--json").stdout) if m["name"] == "kennel")
    assert model["location"] == "acme/kennel"
    assert model["on_disk"] is False
    (tmp_path / "hub" / "models--acme--kennel" / "snapshots" / "abc").mkdir(parents=True)
    model = next(m for m in json.loads(run("models", "--json").stdout) if m["name"] == "kennel")
    assert model["on_disk"] is True
    assert re.search(r"^kennel +a model +CC0 +yes +acme/kennel$", run("models").stdout, re.M)
    assert not on_disk(str(tmp_path / "nowhere"))
    assert on_disk(str(tmp_path))


# doctor


def test_doctor_examines_this_installation(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(tmp_path)}
    for name in ("python", "vbkit", "torch", "torchvision", "torch + torchvision", "device", "cpu",
                 "PyAV", "decord", "plugins", "model mini", "models", "feature cache", "disk",
                 "speech to text", "extra excel", "extra tensorboard"):
        assert name in checks
    assert checks["torch + torchvision"].status == "ok", checks
    assert checks["PyAV"].status == "ok"
    assert checks["disk"].detail.endswith(str(tmp_path))


def test_doctor_reports_a_crash_and_an_error() -> None:
    assert _in_process("import os; os.abort()") == {"error": "crashed (SIGABRT)"}
    assert _in_process("import no_such_module")["error"].startswith("ModuleNotFoundError")
    assert _in_process("pass") == {"error": "gave no answer"}
    assert _in_process("print('noise'); print('{\"a\": 1}')") == {"a": 1}


def test_doctor_knows_a_mixed_build() -> None:
    from concurrent.futures import Future

    def verdict(answer: dict[str, object]) -> Check:
        future: Future[dict[str, object]] = Future()
        future.set_result(answer)
        return next(iter(_torch(future)))

    both = {"torch": "2.9+cpu", "torchvision": "0.24+cu130", "cuda": False, "mps": False}
    mixed = verdict({**both, "torchvision_error":
                     "RuntimeError: operator torchvision::nms does not exist"})
    assert mixed.status == "fail"
    assert "from the same index" in mixed.todo
    assert verdict(both).status == "ok"
    assert verdict({"torch_error": "OSError: libcudart.so"}).status == "fail"


def test_doctor_says_what_speech_to_text_lacks() -> None:
    def says(lacks: str | Exception | None) -> tuple[str, str]:
        class Ears:
            def __init__(self, options: object, device: str) -> None:
                pass

            def missing(self) -> str | None:
                if isinstance(lacks, Exception):
                    raise lacks
                return lacks

        class Plugin:
            @hookimpl
            def vbkit_transcribers(self) -> Iterator[TranscriberSpec]:
                yield TranscriberSpec("ears", "Hears.", "made_up_ears:Ears")

        module = types.ModuleType("made_up_ears")
        module.Ears = Ears  # type: ignore[attr-defined]
        manager = PluginManager()
        manager.register(Plugin(), "ears")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "made_up_ears", module)
            check = next(check for check in _speech(manager) if "ears" in check.detail)
        return check.status, check.detail

    assert says(None) == ("ok", "ears lacks nothing")
    assert says("no model is on disk") == ("ok", "not by ears: no model is on disk")
    assert says(ValueError("my ears hurt")) == ("warn", "not by ears: it fails: my ears hurt")


def test_doctor_measures_the_feature_cache(tmp_path: Path) -> None:
    entry = tmp_path / "ab" / "abcdef" / "visual-1.safetensors"
    entry.parent.mkdir(parents=True)
    entry.write_bytes(bytes(2_500_000))
    (tmp_path / "link").symlink_to(entry)
    check = _feature_cache(tmp_path)
    assert (check.status, check.detail) == (
        "ok", f"2.5 MB of 1 contents, 1 files in {tmp_path}")
    assert _feature_cache(entry).status == "fail"
    assert _feature_cache(tmp_path / "new").status == "ok"


def test_doctor_says_which_extras_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        if name == "openpyxl":
            return "2.0"
        if name == "tensorboard":
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr("vbkit.cli.doctor.version", version)
    checks = {check.name: check for check in _extras()}
    assert "(here is 2.0)" in checks["extra excel"].detail
    assert checks["extra excel"].todo == "if wanted: pip install 'vbkit[excel]'"
    assert checks["extra tensorboard"].detail.startswith("not installed, for curves")
    assert all(check.status == "ok" for check in checks.values())
    assert "extra dev" not in checks
    monkeypatch.undo()
    (excel,) = [check for check in _extras() if check.name == "extra excel"]
    pytest.importorskip("openpyxl")
    assert excel == Check("extra excel", "ok", "installed, for vbkit export --to xlsx: openpyxl")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctors_exit_status_and_json(status: Status, code: int, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, object]] = []

    def answer(folder: Path | None, cache: Path | None) -> list[Check]:
        asked.append((folder, cache))
        return [Check("disk", status, "so and so", "do this")]

    monkeypatch.setattr("vbkit.cli.doctor.examine", answer)
    monkeypatch.delenv("VBKIT_CACHE", raising=False)
    (tmp_path / "cache").mkdir()
    done = run("doctor", "--out", str(tmp_path), "--json")
    assert done.exit_code == code
    assert json.loads(done.stdout) == [
        {"name": "disk", "status": status, "detail": "so and so", "todo": "do this"}]
    text = run("doctor", "--out", str(tmp_path / "new" / "er"), "--cache", "c")
    assert text.exit_code == code
    assert text.stdout.split(maxsplit=2) == [status, "disk", "so and so -> do this\n"]
    assert asked == [(tmp_path, tmp_path / "cache"), (tmp_path, Path("c"))]


def test_doctor_finds_a_failed_plugin(dogs: None) -> None:
    checks = {check.name: check for check in _plugins(PluginManager())}
    assert checks["plugin bad"].status == "fail"
    assert "uninstall acme-dogs" in checks["plugin bad"].todo
    assert "plugins" not in checks
