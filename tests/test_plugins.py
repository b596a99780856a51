# ruff: noqa: F811 (a fixture's name is an argument's)
from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from plugin_files import TASK, make_distribution, site  # noqa: F401 (a fixture)

import vbkit.plugins
from vbkit import Column, ModelSpec, TableSchema, TaskSpec, TranscriberSpec, hookimpl
from vbkit.errors import MediaError, PluginError, UsageError
from vbkit.plugins import PluginManager, check_tables, default_manager
from vbkit.specs import API_VERSION, BackboneSpec

TASKS = TASK + "@hookimpl\ndef vbkit_tasks():\n    "


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vbkit.plugins, "_reported", set())
    monkeypatch.delenv("VBKIT_STRICT", raising=False)
    monkeypatch.delenv("VBKIT_DISABLE_PLUGINS", raising=False)


def make_task(name: str = "dogs", *tables: str, **arguments: Any) -> TaskSpec:
    schemas = tuple(TableSchema(table, (Column("score", "float64"),)) for table in (name, *tables))
    given = {"needs": frozenset({"pooled"}), "tables": schemas, "head": "nowhere.dogs:Head"}
    return TaskSpec(name, "finds dogs", **{**given, **arguments})


def plugin(**hooks: Any) -> SimpleNamespace:
    """An object whose attributes are hook implementations."""
    return SimpleNamespace(**{name: hookimpl(hook) for name, hook in hooks.items()})


def declaring(*specs: TaskSpec) -> SimpleNamespace:
    return plugin(vbkit_tasks=lambda: list(specs))


def empty_manager() -> PluginManager:
    return PluginManager(entry_points=())


# Discovery


def test_entry_points_are_found_with_their_provenance(site: Path) -> None:
    code = TASKS + "yield task('cats')\n"
    make_distribution(
        site, "acme-cats", {"acme_cats": code}, {"felines": "acme_cats"}, version="3.1"
    )
    task = PluginManager().get_task("cats")
    assert (task.plugin, task.distribution, task.version) == ("felines", "acme-cats", "3.1")
    assert task.qualified_name == "acme-cats:cats"
    for name in ("acme-cats:cats", "Acme_Cats:cats", "felines:cats"):
        assert PluginManager().get_task(name) == task


def test_the_first_party_plugins_are_found_and_work() -> None:
    records = {record.name: record for record in PluginManager().plugins()
               if record.distribution == "vbkit"}
    assert {"backbones", "mini", "moderation", "qa", "sentiment", "summarisation"} <= set(records)
    assert {record.status for record in records.values()} == {"ok"}
    assert "s3d" in records["backbones"].declares["backbones"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("syntax error", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        (TASKS + "return None", "TaskSpec objects in a list, got None"),
        (TASKS + "return 'dogs'", "got str"),
        (TASKS + "return task('dogs')", "got TaskSpec"),
        (TASKS + "yield 'dogs'", "TaskSpec objects, got str"),
        (TASKS + "yield task('dogs')\n    raise KeyError('x')",
         "KeyError: 'x'"),
        (TASKS + "yield task('Dogs')", "use [a-z]"),
        (TASKS + "yield task('videos')", "'videos' is the core's"),
        (TASK + "@hookimpl\ndef vbkit_tasks(engine):\n    yield task('dogs')", "{'engine'}"),
        (TASK + "@hookimpl\ndef vbkit_task():\n    yield task('dogs')",
         "no hook vbkit_task; did you mean 'vbkit_tasks'"),
        (TASK + "@hookimpl(wrapper=True)\ndef vbkit_tasks():\n    return (yield)",
         "wrappers are not supported"),
        (TASKS + "from dataclasses import make_dataclass\n"
                 "    O = make_dataclass('O', [('x', set, 1)], frozen=True)\n"
                 "    yield task('dogs', options=O)",
         "O.x: options cannot have the type"),
    ],
)
def test_a_failing_plugin_costs_only_itself(
    site: Path, caplog: pytest.LogCaptureFixture, code: str, error: str
) -> None:
    good = TASKS + "yield task('cats')\n"
    make_distribution(site, "acme-bad", {"acme_bad": code}, {"bad": "acme_bad"})
    make_distribution(site, "acme-good", {"acme_good": good}, {"good": "acme_good"})
    manager = PluginManager()
    records = {record.name: record for record in manager.plugins()}
    assert (records["bad"].status, records["good"].status) == ("failed", "ok")
    assert error in records["bad"].error
    assert "\n" not in records["bad"].error
    assert records["bad"].declares == {}
    assert not caplog.records  # nothing was used so far
    assert manager.get_task("cats").plugin == "good"
    assert "dogs" not in [task.name for task in manager.tasks()]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("plugin bad (acme-bad 1.0) failed: ")


def test_strict_raises_instead(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_distribution(site, "acme-bad", {"acme_bad": "1 / 0"}, {"bad": "acme_bad"})
    monkeypatch.setenv("VBKIT_STRICT", "1")
    manager = PluginManager()
    for _ in range(2):
        with pytest.raises(PluginError, match=r"plugin bad \(acme-bad 1.0\) failed: ZeroDivision"):
            manager.tasks()
    monkeypatch.setenv("VBKIT_STRICT", "0")
    assert manager.plugins()


@pytest.mark.parametrize("value", ["felines", " x, FELINES ", "acme-cats", "acme_cats"])
def test_plugins_and_distributions_can_be_disabled(
    site: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    make_distribution(site, "acme-cats", {"acme_cats": "1 / 0"}, {"felines": "acme_cats"})
    monkeypatch.setenv("VBKIT_DISABLE_PLUGINS", value)
    manager = PluginManager()
    record = next(record for record in manager.plugins() if record.name == "felines")
    assert (record.status, record.error) == ("disabled", None)
    assert "acme_cats" not in sys.modules
    with pytest.raises(PluginError, match="disabled by VBKIT_DISABLE_PLUGINS"):
        manager.get_task("felines")


def test_asking_for_a_failed_plugin_task_shows_its_error(site: Path) -> None:
    make_distribution(site, "acme-cats", {"acme_cats": "1 / 0"}, {"cats": "acme_cats"})
    manager = PluginManager()
    with pytest.raises(PluginError, match=r"task cats: plugin cats .* failed: ZeroDivisionError"):
        manager.get_task("acme-cats:cats")
    with pytest.raises(UsageError, match="failed plugins: cats"):
        manager.get_task("kittens")


def test_a_failure_is_reported_once_a_process(site: Path) -> None:
    make_distribution(site, "acme-bad", {"acme_bad": "1 / 0"}, {"bad": "acme_bad"})
    code = (
        "from vbkit.plugins import PluginManager, default_manager\n"
        "default_manager().tasks(); default_manager().models(); PluginManager().tasks()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(site)})
    lines = done.stderr.splitlines()
    assert lines == ["plugin bad (acme-bad 1.0) failed: ZeroDivisionError: division by zero"]


# Registering in the process


def test_plugins_of_this_process() -> None:
    manager = empty_manager()
    record = manager.register(declaring(make_task("dogs"), make_task("cats")), "pets", version="2")
    assert record.declares == {"tasks": ("dogs", "cats")}
    assert [task.qualified_name for task in manager.tasks()] == ["pets:cats", "pets:dogs"]
    with pytest.raises(PluginError, match="'pets' is already registered"):
        manager.register(declaring(), "pets")
    manager.unregister("pets")
    assert manager.tasks() == []
    assert manager.plugins() == []
    with pytest.raises(PluginError, match="no plugin 'pets'"):
        manager.unregister("pets")


def test_what_cannot_be_a_plugin() -> None:
    class Plugin:
        @hookimpl
        def vbkit_tasks(self) -> list[TaskSpec]:
            return [make_task()]

    manager = empty_manager()
    assert manager.register(Plugin(), "instance").status == "ok"
    assert "names a class" in (manager.register(Plugin, "class").error or "")
    assert "names None" in (manager.register(None, "none").error or "")
    shared = plugin()
    assert manager.register(shared, "one").status == "ok"
    assert "already registered as one" in (manager.register(shared, "two").error or "")


def test_hooks_of_later_versions_may_be_optional() -> None:
    later = SimpleNamespace()
    later.vbkit_later = hookimpl(lambda what: None, optionalhook=True)
    assert empty_manager().register(later, "later").status == "ok"


# Names


def test_a_bare_name_that_two_plugins_declare_is_an_error_when_used() -> None:
    manager = empty_manager()
    manager.register(declaring(make_task("dogs")), "one")
    manager.register(declaring(make_task("dogs"), make_task("cats")), "two")
    assert manager.get_task("cats").plugin == "two"
    with pytest.raises(UsageError) as caught:
        manager.get_task("dogs")
    for part in ("'dogs'", "one (plugin one)", "two (plugin two)", "one:dogs or two:dogs"):
        assert part in str(caught.value)
    assert manager.get_task("two:dogs").plugin == "two"


def test_one_distribution_declares_a_name_once() -> None:
    manager = empty_manager()
    record = manager.register(declaring(*map(make_task, ("dogs", "dogs", "cats"))), "a")
    assert record.status == "failed"
    assert "task dogs is declared twice" in (record.error or "")
    assert [task.name for task in manager.tasks()] == ["cats", "dogs"]


def test_unknown_names_get_close_matches() -> None:
    manager = empty_manager()
    with pytest.raises(UsageError, match="unknown task 'dogs'; no task is installed"):
        manager.get_task("dogs")
    manager.register(declaring(make_task("moderation"), make_task("qa")), "a")
    with pytest.raises(UsageError, match="unknown task 'moderatoin'; did you mean 'moderation'"):
        manager.get_task("moderatoin")
    with pytest.raises(UsageError, match="unknown task 'b:qa'; did you mean 'a:qa'"):
        manager.get_task("b:qa")
    with pytest.raises(UsageError, match="unknown task 'zzz'; tasks are moderation, qa"):
        manager.get_task("zzz")


def test_a_newer_api_is_refused_by_name_and_the_rest_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    future = make_task("future", api=API_VERSION + 1, head="v2 head", needs={"smell"})
    model = ModelSpec("huge", "a model", "acme/huge", api=API_VERSION + 1)
    manager = empty_manager()
    record = manager.register(
        plugin(vbkit_tasks=lambda: [future, make_task("dogs")], vbkit_models=lambda: [model]), "a"
    )
    assert record.status == "failed"
    assert "task future is written for version 2" in (record.error or "")
    assert "model huge" in (record.error or "")
    assert record.declares == {"tasks": ("dogs",), "models": ()}
    assert manager.get_task("dogs").plugin == "a"
    with pytest.raises(PluginError, match=r"task future is written for version 2 .*upgrade vbkit"):
        manager.get_task("future")
    monkeypatch.setenv("VBKIT_STRICT", "1")
    with pytest.raises(PluginError, match="future"):
        empty_manager().register(declaring(future), "a")


def test_tables_of_one_run_do_not_clash() -> None:
    manager = empty_manager()
    manager.register(declaring(make_task("dogs", "breeds"), make_task("cats", "breeds")), "one")
    manager.register(declaring(make_task("dogs")), "two")
    dogs, cats, other = map(manager.get_task, ("one:dogs", "cats", "two:dogs"))
    check_tables([dogs, dogs])
    check_tables([make_task("dogs"), make_task("cats")])
    with pytest.raises(UsageError, match="one:dogs and one:cats both write the table breeds"):
        check_tables([dogs, cats])
    with pytest.raises(UsageError, match="one:dogs and two:dogs both write the table dogs"):
        check_tables([dogs, other])


def test_models_backbones_and_transcribers() -> None:
    manager = empty_manager()
    manager.register(
        plugin(
            vbkit_models=lambda: [ModelSpec("big-2.0", "a model", "acme/big")],
            vbkit_backbones=lambda: [BackboneSpec("net", "a net", "m:net"),
                                     BackboneSpec("family", "nets", "m:nets", prefix=True)],
            vbkit_transcribers=lambda: [TranscriberSpec("ears", "hears", "m:ears")],
        ),
        "a",
    )
    assert manager.get_model("big-2.0").spec.location == "acme/big"
    assert manager.get_transcriber("a:ears").spec.summary == "hears"
    assert [item.name for item in manager.transcribers()] == ["ears"]
    assert [item.name for item in manager.models()] == ["big-2.0"]
    assert [item.name for item in manager.backbones()] == ["family", "net"]
    for name, variant in (("net", None), ("family/x", "x"), ("a:family/org/x", "org/x"),
                          ("family//abs/path", "/abs/path"), ("family", None)):
        declared, got = manager.get_backbone(name)
        assert (declared.name, got) == (name.partition("/")[0].rpartition(":")[2], variant)
    with pytest.raises(UsageError, match="backbone net has no variants"):
        manager.get_backbone("net/x")
    with pytest.raises(UsageError, match="unknown backbone 'nett'; did you mean 'net'"):
        manager.get_backbone("nett")


# Calling


def test_an_observer_that_raises_changes_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def spoil(tables: dict[str, pd.DataFrame]) -> None:
        tables["t"].loc[0, "score"] = -1.0
        del tables["t"]
        raise RuntimeError("no\nluck")

    manager = empty_manager()
    manager.register(plugin(vbkit_after_video=lambda video: seen.append(f"1 {video}")), "first")
    manager.register(plugin(vbkit_after_video=spoil), "bad")
    manager.register(
        plugin(vbkit_after_video=lambda video, tables: seen.append(f"2 {tables['t'].score[0]}")),
        "last",
    )
    tables = {"t": pd.DataFrame({"score": [0.5]})}
    for _ in range(2):
        manager.notify("vbkit_after_video", run=None, video="v", tables=tables)
    assert sorted(seen) == ["1 v", "1 v", "2 0.5", "2 0.5"]
    assert tables["t"].score[0] == 0.5
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert warnings == ["plugin bad, vbkit_after_video: RuntimeError: no luck (ignored)"]
    monkeypatch.setenv("VBKIT_STRICT", "1")
    with pytest.raises(PluginError, match="plugin bad, vbkit_after_video: RuntimeError: no luck"):
        manager.notify("vbkit_after_video", run=None, video="v", tables=tables)


def test_notify_checks_its_caller() -> None:
    manager = empty_manager()
    with pytest.raises(ValueError, match="'vbkit_tasks' is none of"):
        manager.notify("vbkit_tasks")
    with pytest.raises(ValueError, match="vbkit_before_run takes run"):
        manager.notify("vbkit_before_run", report=1)


class Reader:
    def frames_at(self, times: list[float]) -> None: ...


def test_the_first_plugin_that_opens_a_video_wins(caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader()
    calls: list[str] = []

    def broken(source: Path) -> Reader:
        calls.append("broken")
        raise OSError("a bug")

    manager = empty_manager()
    source = Path("x.raw")
    assert manager.open_video(source, {}) is None
    manager.register(plugin(vbkit_open_video=lambda source: reader), "opens")
    manager.register(plugin(vbkit_open_video=lambda source: None), "declines")
    manager.register(plugin(vbkit_open_video=lambda options: "reader"), "wrong")
    manager.register(plugin(vbkit_open_video=broken), "broken")
    assert manager.open_video(source, {"height": 224}) is reader
    assert calls == ["broken"]
    assert "plugin broken, vbkit_open_video: OSError: a bug (ignored)" in caplog.text
    assert "returned str, which is no VideoReader" in caplog.text


def test_a_plugin_may_say_why_a_video_cannot_be_read() -> None:
    def refuse(source: Path) -> None:
        raise MediaError(f"{source}: half of it is missing")

    manager = empty_manager()
    manager.register(plugin(vbkit_open_video=refuse), "a")
    with pytest.raises(MediaError, match="half of it is missing"):
        manager.open_video(Path("x.raw"), {})


def test_the_default_manager_is_one() -> None:
    assert default_manager() is default_manager()


def test_listing_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from vbkit.plugins import default_manager; m = default_manager()\n"
        "m.tasks(), m.models(), m.backbones(), m.transcribers(), m.plugins()\n"
        "print(sorted({'torch', 'pandas', 'pyarrow', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
