# ruff: noqa: F811 (a fixture's name is an argument's)
"""`vbkit.testing`: each check fails for a task that is broken, and says what to change."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plugin_files import make_distribution, site  # noqa: F401 (a fixture)

from vbkit import Column, Head, TableSchema, TaskSpec, hookimpl, option
from vbkit.errors import FeatureError, PluginError
from vbkit.heads import load_head, save_head
from vbkit.plugins import default_manager
from vbkit.specs import CONTEXT_OUTPUTS, FEATURE_OUTPUTS
from vbkit.testing import (
    CHECKS,
    CLIP,
    ContractError,
    ContractWarning,
    ModelSizes,
    check_task,
    checks_of,
    isolated_manager,
    make_features,
)
from vbkit.testing import contract as contract_module

# A task that is in order, and tasks each broken in one way

GOOD = TableSchema("good", (
    Column("start_s", "float64", "s", doc="start of the clip"),
    Column("end_s", "float64", "s", doc="end of the clip"),
    Column("score", "float64", "0..1", doc="how green it is"),
))


class GoodHead(Head):
    def predict(self, features):
        nearness = features.clip_embeddings @ features.encode_text(["green"]).T
        scores = nearness[:, 0].sigmoid().tolist()
        return {"good": GOOD.frame(
            {"start_s": start, "end_s": end, "score": score}
            for (start, end), score in zip(features.clip_times.tolist(), scores, strict=True))}


TASK = TaskSpec("good", "how green it is", "test_testing:GoodHead",
                {"clip_times", "clip_embeddings", "encode_text"}, (GOOD,))


@hookimpl
def vbkit_tasks() -> list[TaskSpec]:
    """As a plugin's module has it; this module imports torch, which the check must find."""
    return [TASK]


def broken(head: str, **changes: Any) -> TaskSpec:
    return dataclasses.replace(TASK, head=f"test_testing:{head}", **changes)


def message(task: TaskSpec, check: str, **arguments: Any) -> str:
    """What `check_task` complains about; the other checks are not made."""
    with pytest.raises(ContractError) as caught:
        check_task(task, checks=check, **arguments)
    text = str(caught.value)
    assert text.startswith(f"task {task.name!r} breaks the contract of vbkit:\n- {check}: ")
    assert "\n    change: " in text
    return text


@pytest.mark.parametrize("check", [name for name in checks_of(TASK)
                                   if name not in ("declaration", "save", "device")])
def test_a_task_in_order_passes(check: str) -> None:
    assert check_task(TASK, checks=check).passed == (check,)


def test_all_checks_at_once(site: Path) -> None:
    (site / "green.py").write_text(GREEN)
    import green  # type: ignore[import-not-found]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = check_task(green.TASK, plugin=green)
    assert {"declaration", "rows", "needs", "unmodified", "repeat", "clip"} <= set(found.passed)
    assert set(found.inapplicable) == {"save", "evaluate", "explain"}
    told = [str(w.message) for w in caught if issubclass(w.category, ContractWarning)]
    if not torch.cuda.is_available():
        assert told == ["task 'green', check device was skipped: there is no CUDA GPU here"]
        assert set(found.skipped) == {"device"}


GREEN = """
from vbkit import Column, Head, TableSchema, TaskSpec, hookimpl

GREEN = TableSchema("green", (Column("clips", "int64", doc="how many clips there are"),))

class GreenHead(Head):
    def predict(self, features):
        return {"green": GREEN.frame([{"clips": len(features.clip_times)}])}

TASK = TaskSpec("green", "counts clips", "green:GreenHead", {"clip_times"}, (GREEN,))

@hookimpl
def vbkit_tasks():
    yield TASK
"""


# declaration, documentation


@pytest.mark.parametrize(("change", "complaint"), [
    (("from vbkit", "import torch\nfrom vbkit"), "declaring the task imports torch"),
    (("@hookimpl", "import missing_thing\n@hookimpl"), "No module named 'missing_thing'"),
    (("def vbkit_tasks", "def tasks"), "green has no hook vbkit_tasks"),
    (("yield TASK", "yield from ()"), "green declares no tasks"),
])
def test_declaration(site: Path, change: tuple[str, str], complaint: str) -> None:
    (site / "green.py").write_text(GREEN.replace(*change, 1))
    task = dataclasses.replace(TASK, name="green", head="green:GreenHead",
                               tables=(dataclasses.replace(GOOD, name="green"),))
    assert complaint in message(task, "declaration")


def test_declaration_of_what_is_no_head(site: Path) -> None:
    (site / "declares.py").write_text(GREEN.replace('"green"', '"good"'))
    for head, complaint in (("Missing", "cannot load test_testing:Missing"),
                            ("Nothing", "has no methods setup and predict")):
        assert complaint in message(broken(head), "declaration", plugin="declares")


class Nothing:
    pass


def test_an_installed_task_is_found_by_its_entry_point(site: Path) -> None:
    make_distribution(site, "acme-green", {"green": GREEN, "acme_declares": "from green import *\n"
                                           "from green import vbkit_tasks, torch"},
                      {"green": "acme_declares"})
    (site / "green.py").write_text("import torch\n" + GREEN)
    default_manager.cache_clear()
    try:
        with pytest.raises(ContractError, match=r"imports torch.*\n.*from acme_declares"):
            check_task("acme-green:green", checks="declaration")
    finally:
        default_manager.cache_clear()


@dataclasses.dataclass(frozen=True)
class Helpless:
    size: int = 3
    speed: float = option(1.0, "how fast")


def test_documentation() -> None:
    silent = TableSchema("good", (Column("score", "float64"),))
    text = message(broken("GoodHead", tables=(silent,), options=Helpless), "documentation")
    assert "column score of table good says nothing about itself" in text
    assert "option size has no help" in text
    assert "option speed" not in text


# rows


class NeedsClips(GoodHead):
    def predict(self, features):
        features.clip_embeddings[0]
        return super().predict(features)


class Numbers(Head):
    def predict(self, features):
        return {"good": GOOD.frame([{"start_s": "0", "end_s": 1.0, "score": 0.5}])}


class Undeclared(Head):
    def predict(self, features):
        return {"other": GOOD.frame([])}


class NoDict(Head):
    def predict(self, features):
        return GOOD.frame([])


class TooMuch(Head):
    def predict(self, features):
        return {"good": GOOD.frame([{"start_s": 0.0, "end_s": 1.0, "score": 1.5}])}


class Backwards(Head):
    def predict(self, features):
        return {"good": GOOD.frame([{"start_s": 2.0, "end_s": 1.0, "score": 0.5}])}


class Misuses(GoodHead):
    def predict(self, features):
        features.encode_text("green")
        return super().predict(features)


class Unready(GoodHead):
    def setup(self, context):
        raise OSError("the weights are not there")


@pytest.mark.parametrize(("head", "complaint"), [
    ("NeedsClips", r"with no clips and no segments, the head raises IndexError: .*test_test"),
    ("Numbers", r"table good, column start_s \(float64\): row 0 holds '0'"),
    ("Undeclared", r"returned table 'other', which it does not declare"),
    ("NoDict", r"predict must return a dict of DataFrames, got DataFrame"),
    ("TooMuch", r"good.score holds 1.5, but its unit is 0..1"),
    ("Backwards", r"a row of good ends before it starts"),
    ("Misuses", r"encode_text takes a list of strings"),
    ("Unready", r"the weights are not there"),
])
def test_rows(head: str, complaint: str) -> None:
    text = message(broken(head), "rows")
    assert re.search(complaint, text)
    assert text.count("change:") == 1  # the same fault with other inputs is told once


ANSWERS = TableSchema("good", (Column("question", "string", doc="what was asked"),))


class MakesUpQuestions(Head):
    def predict(self, features):
        return {"good": ANSWERS.frame([{"question": "Is it green?"}])}


def test_rows_of_questions() -> None:
    text = message(broken("MakesUpQuestions", tables=(ANSWERS,)), "rows")
    assert "good.question holds 'Is it green?', which was not asked" in text


# needs


class Greedy(GoodHead):
    def predict(self, features):
        if len(features.clip_times):
            features.clip_hidden.sum(), features.tokens
        return super().predict(features)


class Sly(GoodHead):
    def predict(self, features):
        with contextlib.suppress(FeatureError):
            features.pooled.sum()
        return super().predict(features)


def test_needs() -> None:
    text = message(broken("Greedy"), "needs")
    assert "with one clip and no segments, the head reads features.clip_hidden" in text
    assert 'add "tokens" to `needs`' in text
    assert "reads features.pooled" in message(broken("Sly"), "needs")
    # What the others say does not hide it, and it is said once.
    with pytest.raises(ContractError) as caught:
        check_task(broken("Greedy"), checks=["rows", "needs"])
    assert str(caught.value).count("clip_hidden") == 2


def test_needs_that_nobody_reads_are_told() -> None:
    spare = broken("GoodHead", needs=TASK.needs | {"pooled"})
    with pytest.warns(ContractWarning, match=r"never reads features.pooled: .*out of `needs`"):
        assert check_task(spare, checks="needs").passed == ("needs",)


# unmodified


class Doubles(GoodHead):
    def predict(self, features):
        features.clip_embeddings.mul_(2)
        return super().predict(features)


class Appends(GoodHead):
    def predict(self, features):
        features.segments.append("and so on")
        return super().predict(features)


class Blanks(GoodHead):
    def predict(self, features):
        for batch in features.frames:
            batch.data[:] = 0
        return super().predict(features)


@pytest.mark.parametrize(("head", "need", "name"), [
    ("Doubles", "clip_embeddings", "clip_embeddings"), ("Appends", "segments", "segments"),
    ("Blanks", "frames", "frames")])
def test_unmodified(head: str, need: str, name: str) -> None:
    task = broken(head, needs=TASK.needs | {need})
    assert f"the head changes features.{name}, which all tasks" in message(task, "unmodified")


# repeat


class Remembers(GoodHead):
    def setup(self, context):
        super().setup(context)
        self.most = 0

    def predict(self, features):
        self.most = max(self.most, len(features.clip_times))
        return {"good": GOOD.frame(
            [{"start_s": 0.0, "end_s": float(self.most), "score": 0.5}])}


class Throws(GoodHead):
    def predict(self, features):
        return {"good": GOOD.frame([{"start_s": 0.0, "end_s": 1.0, "score": random.random()}])}


class Mixes(GoodHead):
    def predict_batch(self, batch):
        longest = max(len(features.clip_times) for features in batch)
        return [{"good": GOOD.frame([{"start_s": 0.0, "end_s": longest, "score": 0.5}])}
                for _ in batch]


class Loses(GoodHead):
    def predict_batch(self, batch):
        return [self.predict(features) for features in batch[:1]]


@pytest.mark.parametrize(("head", "complaint"), [
    ("Remembers", "a second call gives other rows than the first: table good"),
    ("Throws", "a second call gives other rows than the first: table good"),
    ("Mixes", "predict_batch gives other rows among other videos than alone"),
    ("Loses", "predict_batch of 11 videos gives 1 results"),
])
def test_repeat(head: str, complaint: str) -> None:
    assert complaint in message(broken(head), "repeat")


# device


class OnlyOnCpu(GoodHead):
    def predict(self, features):
        if self.context.device != "cpu":
            raise RuntimeError("Expected all tensors to be on the same device")
        return super().predict(features)


class OtherOnGpu(GoodHead):
    def predict(self, features):
        shift = 0.0 if self.context.device == "cpu" else 1.0
        return {"good": GOOD.frame([{"start_s": 0.0, "end_s": 1.0 + shift, "score": 0.5}])}


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    # `cpu:0` is the CPU under another name, so the check itself can be tried everywhere.
    monkeypatch.setattr(contract_module, "_gpu", lambda: "cpu:0")
    assert check_task(TASK, checks="device").passed == ("device",)
    assert "on a GPU, the head raises RuntimeError" in message(broken("OnlyOnCpu"), "device")
    assert "CPU and GPU give different rows: table good" in message(broken("OtherOnGpu"), "device")


def test_device_without_a_gpu_skips_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(pytest.skip.Exception, match="device: there is no CUDA GPU here"):
        check_task(TASK, checks="device")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_device_on_a_gpu() -> None:
    assert check_task(TASK, checks="device").passed == ("device",)


# save, evaluate


class Learns(GoodHead):
    """Learns how many examples it was shown."""

    count = 0

    def setup(self, context):
        super().setup(context)
        if context.head_path is not None:
            self.count = int(load_head(context.head_path)[0]["count"])

    def predict(self, features):
        return {"good": GOOD.frame([{"start_s": 0.0, "end_s": self.count, "score": 0.5}])}

    def fit(self, train, val, options):
        assert torch.is_grad_enabled()
        assert not {e.video_id for e in train} & {e.video_id for e in val}
        self.count = len(train)

    def evaluate(self, examples):
        return {"count": self.count, "by_label": {"none": None}}

    def save_pretrained(self, path):
        save_head(path, {"count": torch.tensor(self.count)}, {})


class Unsaved(Learns):
    save_pretrained = Head.save_pretrained


class Forgets(Learns):
    def setup(self, context):
        self.context = context


class Pickles(Learns):
    def save_pretrained(self, path):
        torch.save({}, path / "head.pt")


class Silent(Learns):
    def save_pretrained(self, path):
        pass


class Unloadable(Learns):
    def setup(self, context):
        if context.head_path is not None:
            raise ValueError("bad magic number")
        super().setup(context)


class Unfit(Learns):
    def fit(self, train, val, options):
        raise KeyError("label")


LABELS = [{"label": "green"}, {"label": "red"}]


def trained(head: str) -> TaskSpec:
    return broken(head, capabilities={"finetune", "evaluate"})


def test_a_head_that_learns_passes() -> None:
    found = check_task(trained("Learns"), checks=["save", "evaluate"], labels=LABELS)
    assert found.passed == ("save", "evaluate")


@pytest.mark.parametrize(("head", "complaint"), [
    ("Unsaved", "its head does not override save_pretrained"),
    ("Forgets", "a head that was saved and loaded gives other rows"),
    ("Pickles", "writes head.pt, and loading such a file can run code"),
    ("Silent", "save_pretrained writes no file"),
    ("Unloadable", "cannot be loaded: ValueError: bad magic number"),
    ("Unfit", "KeyError: 'label'"),
])
def test_save(head: str, complaint: str) -> None:
    assert complaint in message(trained(head), "save", labels=LABELS)


def test_save_needs_labels_and_weights() -> None:
    with pytest.raises(pytest.skip.Exception, match="give check_task labels"):
        check_task(trained("Learns"), checks="save")
    with pytest.raises(pytest.skip.Exception, match="no weights to save"):
        check_task(TASK, checks="save")
    # Weights that come with the plugin are saved and loaded without training.
    assert check_task(broken("Learns"), checks="save").passed == ("save",)


class Lists(Learns):
    def evaluate(self, examples):
        return [0.5]


class Tensors(Learns):
    def evaluate(self, examples):
        return {"accuracy": torch.tensor(0.5)}


@pytest.mark.parametrize(("head", "complaint"), [
    ("Lists", "evaluate gives list, and no named metrics"),
    ("Tensors", "cannot be written as JSON"),
])
def test_evaluate(head: str, complaint: str) -> None:
    assert complaint in message(trained(head), "evaluate", labels=LABELS)


def test_checks_are_those_that_apply() -> None:
    assert set(checks_of(TASK)) == set(CHECKS) - {"evaluate", "explain"}
    assert "evaluate" in checks_of(trained("Learns"))
    assert "clip" in checks_of("qa")


# explain


class Explains(GoodHead):
    """Each row by its own clip."""

    evidence = 0

    def explain(self, features, rows):
        from vbkit.explanations import EXPLANATIONS

        return EXPLANATIONS.frame(
            {"of_table": rows.attrs["table"], "of_row": int(row), "target": "score",
             "score": 1.0, "score_hidden": 0.0, "method": "shapley", "kind": "clip", "rank": 1,
             "weight": 1.0, "first_clip": int(row) + self.evidence,
             "last_clip": int(row) + self.evidence, **self.more(features)}
            for row in rows.index)

    def more(self, features):
        return {}


class ExplainsNothing(Explains):
    def explain(self, features, rows):
        return super().explain(features, rows.head(0))


class ExplainsElsewhere(Explains):
    evidence = 100


class ExplainsGreedily(Explains):
    def more(self, features):
        features.tokens  # noqa: B018
        return {}


class ExplainsOthers(Explains):
    def explain(self, features, rows):
        return super().explain(features, rows).assign(of_row=77)


class ExplainsBadly(Explains):
    def more(self, features):
        raise ZeroDivisionError("no luck")


@pytest.mark.parametrize(("head", "complaint"), [
    ("Explains", ""),
    ("ExplainsNothing", "explain says nothing of any row, with any input"),
    ("ExplainsElsewhere", "is explained by clips 100 to 100, which it does not have"),
    ("ExplainsGreedily", "name in explain_needs of the TaskSpec"),
    ("ExplainsOthers", "of_row is 77, which is none of the rows"),
    ("ExplainsBadly", "raises ZeroDivisionError: no luck"),
])
def test_explain(head: str, complaint: str) -> None:
    pytest.importorskip("vbkit.explanations")
    task = broken(head, capabilities={"explain"})
    assert "explain" in checks_of(task)
    if complaint:
        assert complaint in message(task, "explain")
    else:
        assert check_task(task, checks="explain").passed == ("explain",)


# clip


class OnlyMadeUp(GoodHead):
    def predict(self, features):
        if features.info is not None and features.info.reader != "made up":
            raise RuntimeError("that is a real video")
        return super().predict(features)


_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Restless:
    seed: int = dataclasses.field(default_factory=lambda: next(_numbers),
                                  metadata={"help": "new each time"})


def test_clip() -> None:
    text = message(broken("OnlyMadeUp"), "clip")
    assert "on the real clip, clip.mp4: RuntimeError: RuntimeError: that is a real video" in text
    text = message(broken("GoodHead", options=Restless), "clip")
    assert "a second run over the same videos does not find its rows up to date" in text


# Its arguments


def test_arguments() -> None:
    with pytest.raises(ValueError, match="no check 'row'; checks are declaration, "):
        check_task(TASK, checks="row")
    with pytest.raises(ContractError, match=r"unknown option good.x[^\n]*\n +change: pass options"):
        check_task(TASK, options={"x": 1})


# Made-up features


def test_made_up_features_are_of_the_size_of_minis(vbkit_engine, vbkit_clip: Path) -> None:
    (real,) = vbkit_engine.encode([vbkit_clip], set(FEATURE_OUTPUTS) - {"joint", "motion"})
    made = make_features(clips=3, segments=2)
    for name in sorted(real.available - {"encode_text", "generate", "frames", "tokens"}):
        one, other = getattr(real, name), getattr(made, name)
        if name == "token_hidden":
            one, other = one[0][:1], other[0][:1]
        assert type(one) is type(other), name
        if not isinstance(one, list):
            assert (one.shape, one.dtype) == (other.shape, other.dtype), name
    assert int(made.visual_words.max()) < vbkit_engine.bundle.config.visual_vocab_size
    assert vbkit_engine.bundle.config.visual_vocab_size == ModelSizes().visual_words
    assert made.encode_text(["a", "b"]).shape == real.encode_text(["a", "b"]).shape
    pictures, others = list(real.frames), list(made.frames)
    assert sum(map(len, pictures)) == sum(map(len, others)) == 12
    np.testing.assert_allclose(np.concatenate([batch.pts_seconds for batch in pictures]),
                               np.concatenate([batch.pts_seconds for batch in others]))


@given(clips=st.integers(0, 12), segments=st.integers(0, 8), timed=st.booleans(),
       seed=st.integers(0, 9))
def test_made_up_features_of_any_size(clips: int, segments: int, timed: bool, seed: int) -> None:
    made = make_features(clips, segments, timed=timed, seed=seed)
    assert made.available == set(FEATURE_OUTPUTS) - CONTEXT_OUTPUTS
    for name in ("clip_times", "clip_features", "visual_words", "clip_embeddings", "clip_hidden"):
        assert len(getattr(made, name)) == clips
    for name in ("segments", "segment_times", "segment_embeddings", "segment_hidden", "tokens",
                 "token_hidden"):
        assert len(getattr(made, name)) == segments
    assert all(len(t) == len(h) for t, h in zip(made.tokens, made.token_hidden, strict=True))
    assert (made.info is None) == (clips == 0)
    assert np.isnan(made.segment_times).all() == (not timed or not segments)
    assert sum(len(batch) for batch in made.frames) == 4 * clips
    norms = torch.cat([made.clip_embeddings, made.segment_embeddings]).norm(dim=1)
    assert torch.allclose(norms, torch.ones(clips + segments), atol=1e-5)
    part = make_features(clips, segments, timed=timed, seed=seed, needs={"clip_hidden", "segments"})
    assert torch.equal(part.clip_hidden, made.clip_hidden)
    assert part.segments == made.segments
    with pytest.raises(FeatureError, match="'pooled' was not asked for"):
        part.pooled  # noqa: B018
    if clips:
        other = make_features(clips, segments, seed=seed + 1)
        assert not torch.equal(other.clip_embeddings, made.clip_embeddings)


def test_made_up_methods_take_and_refuse_what_the_engines_do() -> None:
    made = make_features(clips=3, segments=["one two", "three"], questions=("Why?",))
    assert made.questions == ("Why?",)
    assert made.segment_languages == ("en", "en")
    mixed = make_features(segments=2, segment_languages=["fr", None])
    assert mixed.in_languages({"en"}).tolist() == [False, True]
    out = made.joint(["a b", "c"], [[0, 1], []], [[2], [0, 1]])
    assert [len(rows) for rows in out.segment_hidden] == [2, 0]
    assert [len(rows) for rows in out.clip_hidden] == [1, 2]
    assert out.pooled.shape == (2, 384)
    assert len(made.generate([[0], [1, 2]], num_beams=1)) == 2
    for call in (lambda: made.joint(["a"], [[2]], [[]]), lambda: made.joint(["a"], [], [[]]),
                 lambda: made.generate([[]]), lambda: made.generate([[3]]),
                 lambda: made.encode_text("a"), lambda: make_features(needs={"smell"}),
                 lambda: make_features(segments=2, segment_languages=["en"])):
        with pytest.raises(FeatureError):
            call()


# Fixtures, and what loading them costs


def test_the_clip_is_there_with_its_subtitles(vbkit_clip: Path, tmp_path: Path) -> None:
    assert vbkit_clip.parent == tmp_path
    assert vbkit_clip.read_bytes() == CLIP.read_bytes()
    assert vbkit_clip.with_suffix(".srt").is_file()
    assert sum(path.stat().st_size for path in CLIP.parent.iterdir()) < 64_000


def test_an_isolated_manager_knows_nothing_else(site: Path, vbkit_plugins, vbkit_cli) -> None:
    make_distribution(site, "acme-green", {"acme_green": GREEN}, {"green": "acme_green"})
    names = {task.spec.name for task in vbkit_plugins.tasks()}
    assert "green" not in names
    assert "qa" in names
    (site / "green.py").write_text(GREEN)
    import green

    vbkit_plugins.register(green, "verdant")
    assert "verdant" in vbkit_cli("plugins").stdout  # the command line uses it, too
    assert default_manager() is vbkit_plugins
    with pytest.raises(PluginError, match=r"plugin bad failed: .*no hook vbkit_task;"):
        isolated_manager(bad=types.SimpleNamespace(vbkit_task=hookimpl(lambda: None)))


def test_the_managers_plugins_run_on_the_engine(vbkit_plugins, vbkit_engine, vbkit_clip) -> None:
    vbkit_plugins.register(sys.modules[__name__], "mine")
    result = vbkit_engine.run([vbkit_clip], ["good"])
    assert len(result.tables["good"]) == 3


def test_the_isolated_manager_is_gone_afterwards() -> None:
    assert {record.name for record in default_manager().plugins()} >= {"qa", "mini"}
    assert "mine" not in {record.name for record in default_manager().plugins()}


def test_loading_the_pytest_plugin_costs_next_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    heavy = {'torch', 'numpy', 'pandas', 'pyarrow', 'click', 'pluggy._nothing'}\n"
        "    print('HEAVY', sorted(heavy & set(sys.modules)))\n"
        "    print('OURS', sorted(m for m in sys.modules if m.split('.')[0] == 'vbkit'))\n")
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"],
                          cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OURS ['vbkit', 'vbkit.testing', 'vbkit.testing.plugin']" in done.stdout
    ours = "import sys; before = set(sys.modules); import pytest; sys.modules.pop('vbkit', None)\n"
    code = ours + ("import time; began = time.perf_counter(); import vbkit.testing.plugin\n"
                   "print(time.perf_counter() - began)\n"
                   "print(sorted({'torch', 'numpy', 'pandas', 'click'} & set(sys.modules)))")
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           check=True).stdout.splitlines()
    assert lines[1] == "[]"
    assert float(lines[0]) < 0.25  # measured: 2 ms


def test_its_fixtures_are_listed_with_what_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-q", "--collect-only", str(CLIP.parent)],
        capture_output=True, text=True, check=False)
    for name in ("vbkit_features", "vbkit_clip", "vbkit_plugins", "vbkit_cli", "vbkit_engine"):
        assert name in done.stdout
