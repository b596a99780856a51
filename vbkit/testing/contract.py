"""`check_task`: holds a task to the contract that users rely on, and says what to change."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbkit.errors import FeatureError, PluginError, SchemaError, UsageError, VbkitError
from vbkit.features import Features
from vbkit.heads import Example, FitOptions, Head, HeadContext
from vbkit.hookspecs import hookimpl
from vbkit.options import options_help, parse_options
from vbkit.plugins import default_manager
from vbkit.specs import FEATURE_OUTPUTS, TaskSpec, load_object
from vbkit.testing.made_up import make_features

if TYPE_CHECKING:
    import pandas as pd

    from vbkit.engine.run import HeadRunner
    from vbkit.model.branch import BranchConfig, TextBranch
    from vbkit.tables import TableSchema

__all__ = ["CHECKS", "Contract", "ContractError", "ContractWarning", "check_task", "checks_of"]

HEAVY = ("torch", "torchvision", "transformers", "timm", "tensorflow", "jax", "onnxruntime")
"""What no declaration may import."""

_PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_RANGES = {"0..1": (0.0, 1.0), "probability": (0.0, 1.0), "-1..1": (-1.0, 1.0)}
_TOLERANCE = 1e-3


class ContractError(AssertionError):
    """A task breaks the contract. The message says how, and what to change."""


class ContractWarning(UserWarning):
    """A check of a task could not be made here, or found what may be right or wrong."""


@dataclass(frozen=True)
class Contract:
    """What `check_task` found out.

    Args:
        passed: names of the checks that the task passed.
        skipped: name of a check that could not be made here to the reason.
        inapplicable: name of a check that is not for this task to the reason.
    """

    passed: tuple[str, ...]
    skipped: Mapping[str, str]
    inapplicable: Mapping[str, str]


class _Skip(Exception):  # noqa: N818 (as pytest's own)
    """The check cannot be made here."""


class _Inapplicable(Exception):  # noqa: N818
    """The check is not for this task."""


@dataclass(frozen=True)
class _Problem:
    what: str
    change: str

    def __str__(self) -> str:
        return f"{self.what}\n    change: {self.change}"


@dataclass(frozen=True)
class _Case:
    """A size of input."""

    name: str
    clips: int
    segments: int | tuple[str, ...]
    timed: bool = True
    language: str | None = "en"
    segment_languages: tuple[str | None, ...] | None = None
    questions: tuple[str, ...] = ("What is it?", "Who is there?")


_CASES = (
    _Case("no clips and no segments", 0, 0),
    _Case("one clip and no segments", 1, 0),
    _Case("no clips and one segment", 0, 1),
    _Case("one clip and one segment", 1, 1, questions=("Why?",)),
    _Case("no clips and five untimed segments", 0, 5, timed=False),
    _Case("12 clips and no segments", 12, 0, questions=()),
    _Case("12 clips and 9 segments", 12, 9),
    _Case("6 minutes (240 clips) and 80 segments", 240, 80),
    _Case("3 clips and segments that say nothing", 3, ("", "♪", "…")),
    _Case("4 clips and 3 segments in French", 4, 3, language="fr"),
    _Case("4 clips and 3 segments in an unknown language", 4, 3, language=None),
    _Case("4 clips and 4 segments, of which two are in French", 4, 4,
          segment_languages=("en", "fr", "fr", "en")),
)


@dataclass
class _Subject:
    """A task under test, and how its heads are made."""

    spec: TaskSpec
    plugin: str | None
    options: Any
    given: Mapping[str, Any]
    labels: tuple[Mapping[str, Any], ...]
    head: Path | None
    folder: Path
    read: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def cases(self) -> tuple[_Case, ...]:
        """The inputs to try: for what looks at each picture, no long ones."""
        slow = "frames" in self.spec.needs
        return tuple(case for case in _CASES if not slow or case.clips <= 12)

    @property
    def by_question(self) -> bool:
        return "question" in self.spec.tables[0].column_names

    def runner(self, head: Path | None = None, device: str = "cpu",
               options: Any = None) -> HeadRunner:
        """As the engine would make it. A new cache folder each, so that nothing is remembered."""
        from vbkit.engine.run import HeadRunner

        options = self.options if options is None else options
        context = HeadContext(
            options=options, device=device, head_path=head or self.head,
            cache_dir=Path(tempfile.mkdtemp(dir=self.folder)),
            text_branch=(self._branches(device) if "text_branch" in self.spec.needs else None),
            logger=logging.getLogger("vbkit.testing"))
        return HeadRunner(self.spec, "vbkit.testing", options, context)

    def _branches(self, device: str) -> Callable[[BranchConfig], TextBranch]:
        """`HeadContext.text_branch` of `mini`, which is loaded when a head asks for one."""
        def make(config: BranchConfig) -> TextBranch:
            from vbkit.engine import Engine
            from vbkit.testing.engines import shared_engine

            self.read.add("text_branch")
            engine = shared_engine() if device == "cpu" else Engine("mini", device)
            return engine.bundle.text_branch(config)

        return make

    def features(self, case: _Case, seed: int = 0, device: str = "cpu",
                 needs: Iterable[str] = ()) -> Features:
        """Made up, with what the task and `needs` name."""
        return make_features(
            case.clips, case.segments if isinstance(case.segments, int) else list(case.segments),
            needs=self.spec.needs | frozenset(needs), timed=case.timed, seed=seed,
            language=case.language, segment_languages=case.segment_languages,
            questions=case.questions if self.by_question else (), device=device,
            video_id=f"{case.name} (seed {seed})")

    def watched(self, features: Features) -> Features:
        """The same, which notes what is read of it in `read`."""
        subject = self

        class Watched(Features):
            def __getattr__(self, name: str) -> Any:
                if name in FEATURE_OUTPUTS:
                    subject.read.add(name)
                return super().__getattr__(name)

            def restrict(self, needs: Iterable[str],
                         questions: Sequence[str] | None = None) -> Features:
                return as_watched(super().restrict(needs, questions))

        def as_watched(given: Features) -> Features:
            made = copy.copy(given)
            made.__class__ = Watched
            return made

        return as_watched(features)


def check_task(
    task: TaskSpec | str,
    *,
    checks: str | Iterable[str] | None = None,
    plugin: types.ModuleType | str | None = None,
    options: Mapping[str, Any] | None = None,
    labels: Sequence[Mapping[str, Any]] = (),
    head: str | Path | None = None,
) -> Contract:
    """Hold a task to the contract of `docs/plugins.md`.

    `CHECKS` names the checks and says what each is about. Where all that is asked for cannot be
    checked here (`device` without a GPU), the calling test is skipped; where only some of it
    cannot, a `ContractWarning` says so. For a test for each check::

        @pytest.mark.parametrize("check", checks_of(TASK))
        def test_contract(check):
            check_task(TASK, checks=check)

    Args:
        task: the task, or the name of an installed one.
        checks: names of checks; None for all.
        plugin: the module that declares the task; None finds it among the installed plugins, or
            takes the package that its head is in.
        options: of the task, by name, where the defaults will not do.
        labels: label columns of manifest rows, two different ones or more, for a task that can be
            trained or evaluated: `[{"label": "cat"}, {"label": "dog"}]`. Each is said of made-up
            videos of 6 clips and 5 segments.
        head: folder of a trained head, for a task that does nothing without one.

    Raises:
        ContractError: the task breaks it. The message names the check, says what happened with
            what input, and what to change.
        ValueError: there is no such check.
    """
    spec = default_manager().get_task(task).spec if isinstance(task, str) else task
    wanted = _wanted(checks)
    passed: list[str] = []
    skipped: dict[str, str] = {}
    inapplicable: dict[str, str] = {}
    broken: list[tuple[str, _Problem]] = []
    cause: Exception | None = None
    with tempfile.TemporaryDirectory(prefix="vbkit-contract-") as folder:
        given = dict(options or {})
        subject = _Subject(
            spec, plugin.__name__ if isinstance(plugin, types.ModuleType) else plugin,
            _options(spec, given), given, tuple(labels),
            Path(head) if head is not None else None, Path(folder))
        for name in wanted:
            try:
                problems = list(_CHECKS[name](subject))
            except _Inapplicable as stop:
                inapplicable[name] = str(stop)
            except _Skip as stop:
                skipped[name] = str(stop)
            except Exception as error:
                cause = cause or error
                broken.append((name, _Problem(
                    f"{type(error).__name__}: {error}{_place(error)}",
                    f"let it hold that {CHECKS[name]}; the traceback above shows where it ends")))
            else:
                broken += [(name, problem) for problem in problems]
                if not problems:
                    passed.append(name)
    if broken:
        lines = "\n".join(f"- {name}: {problem}" for name, problem in broken)
        raise ContractError(
            f"task {spec.name!r} breaks the contract of vbkit:\n{lines}") from cause
    reasons = {**skipped, **inapplicable}
    if not passed and reasons:
        import pytest

        pytest.skip("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    for note in subject.notes:
        warnings.warn(f"task {spec.name!r}: {note}", ContractWarning, stacklevel=2)
    for name, reason in skipped.items():
        warnings.warn(f"task {spec.name!r}, check {name} was skipped: {reason}", ContractWarning,
                      stacklevel=2)
    return Contract(tuple(passed), skipped, inapplicable)


def checks_of(task: TaskSpec | str) -> tuple[str, ...]:
    """Names of the checks that are for a task: those of capabilities that it has not are left out.

    Args:
        task: the task, or the name of an installed one.
    """
    spec = default_manager().get_task(task).spec if isinstance(task, str) else task
    return tuple(name for name in CHECKS
                 if name not in ("evaluate", "explain") or name in spec.capabilities)


def _wanted(checks: str | Iterable[str] | None) -> list[str]:
    names = [checks] if isinstance(checks, str) else list(CHECKS if checks is None else checks)
    unknown = [name for name in names if name not in CHECKS]
    if unknown or not names:
        raise ValueError(f"no check {unknown[0] if unknown else ''!r}; "
                         f"checks are {', '.join(CHECKS)}")
    return names


def _options(spec: TaskSpec, given: Mapping[str, Any]) -> Any:
    try:
        return parse_options(spec.options, given, task=spec.name)
    except VbkitError as error:
        raise ContractError(f"task {spec.name!r} cannot be made with these options: {error}\n"
                            "    change: pass options={...} to check_task") from error


# The checks. Each yields what is wrong.


def _check_declaration(subject: _Subject) -> Iterator[_Problem]:
    spec = subject.spec
    module = subject.plugin or _declaring_module(spec)
    code = (
        "import json, sys\n"
        f"sys.path[:] = {json.dumps(sys.path)}\n"
        "from vbkit.specs import load_object\n"
        "from importlib import import_module\n"
        f"name, _, attribute = {module!r}.partition(':')\n"
        "plugin = import_module(name)\n"
        "for part in filter(None, attribute.split('.')): plugin = getattr(plugin, part)\n"
        "hook = getattr(plugin, 'vbkit_tasks', None)\n"
        "tasks = None if hook is None else [spec.name for spec in hook()]\n"
        f"print(json.dumps([tasks, [name for name in {HEAVY!r} if name in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        yield _Problem(f"importing {module}, in a process of its own, fails: {last[0]}",
                       "make it importable, or pass the module that declares the task as plugin=")
        return
    tasks, heavy = json.loads(done.stdout.splitlines()[-1])
    if tasks is None or spec.name not in tasks:
        found = "has no hook vbkit_tasks" if tasks is None else f"declares {tasks or 'no tasks'}"
        yield _Problem(
            f"{module} {found}, so nothing declares the task {spec.name!r}",
            f"yield it in a function vbkit_tasks marked @hookimpl in {module}, name that in the "
            "entry-point group `vbkit` of pyproject.toml and install the distribution, or pass "
            "plugin=MODULE")
    if heavy:
        yield _Problem(
            f"declaring the task imports {', '.join(heavy)}, which makes every vbkit command slow",
            f"keep what needs {heavy[0]} in the module of the head ({spec.head.split(':')[0]}) and "
            f"import that nowhere from {module}")
    try:
        head = load_object(spec.head)
    except PluginError as error:
        yield _Problem(str(error), "make TaskSpec.head name the head as package.module:Class")
        return
    if not callable(getattr(head, "predict", None)) or not callable(getattr(head, "setup", None)):
        yield _Problem(f"{spec.head} has no methods setup and predict",
                       "derive it from vbkit.Head, and write predict")


def _declaring_module(spec: TaskSpec) -> str:
    """The entry point that declares a task, else the package that its head is in."""
    from importlib.metadata import entry_points

    from vbkit.hookspecs import ENTRY_POINT_GROUP

    for declared in default_manager().tasks():
        if declared.spec == spec:
            for point in entry_points(group=ENTRY_POINT_GROUP):
                if point.name == declared.plugin and (
                        point.dist is None or point.dist.name == declared.distribution):
                    return point.value
    return spec.head.partition(":")[0].partition(".")[0]


def _check_documentation(subject: _Subject) -> Iterator[_Problem]:
    spec = subject.spec
    for schema in spec.tables:
        for column in schema:
            if not column.doc.strip():
                yield _Problem(f"column {column.name} of table {schema.name} says nothing about "
                               "itself, and an analyst sees nothing else of the task",
                               f'Column({column.name!r}, …, doc="what it means")')
    for entry in options_help(spec.options):
        if not entry.help.strip():
            yield _Problem(f"option {entry.name} has no help",
                           f'{entry.name}: … = option({entry.default}, "what it does")')


def _check_rows(subject: _Subject) -> Iterator[_Problem]:
    seen: set[str] = set()  # the same fault with other inputs is told once
    with _closing(subject.runner()) as runner:
        for case in subject.cases:
            subject.read.clear()
            features = subject.watched(subject.features(case))
            try:
                tables = runner.predict(features)
            except Exception as error:
                if isinstance(error, FeatureError) and subject.read - subject.spec.needs:
                    continue  # what the check `needs` is about
                key = f"{type(error).__name__} {error}"
                if key not in seen:
                    yield _raised(case.name, error)
                seen.add(key)
                continue
            for schema in subject.spec.tables:
                for key, problem in _wrong_values(schema, tables[schema.name], case, features):
                    if key not in seen:
                        yield problem
                    seen.add(key)


def _raised(where: str, error: Exception) -> _Problem:
    if isinstance(error, SchemaError):
        return _Problem(f"with {where}, a table breaks its schema: {error}",
                        "return what the schema declares, or change the schema; "
                        "TableSchema.frame(rows) and TableSchema.empty() make right tables")
    return _Problem(
        f"with {where}, the head raises {type(error).__name__}: {error}{_place(error)}",
        "videos without speech, transcripts without video, and empty ones are ordinary inputs: "
        "return empty tables or NULL where there is nothing to say")


def _place(error: Exception) -> str:
    """File and line where an error was raised, in brackets."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _wrong_values(schema: TableSchema, frame: pd.DataFrame, case: _Case,
                  features: Features) -> Iterator[tuple[str, _Problem]]:
    """Values that the schema's types let through, each with a key of what is wrong."""
    for column in schema:
        values = frame[column.name].dropna()
        low, high = _RANGES.get(column.unit, (None, None))
        if low is not None and high is not None and not values.between(low, high).all():
            worst = values[~values.between(low, high)].iloc[0]
            yield f"range {schema.name}.{column.name}", _Problem(
                f"with {case.name}, {schema.name}.{column.name} holds {worst}, but its unit is "
                f"{column.unit}", "keep it in that range, or declare another unit")
    if "question" in schema.column_names:
        other = sorted(set(frame["question"].dropna()) - set(features.questions))
        if other:
            yield f"question {schema.name}", _Problem(
                f"with {case.name}, {schema.name}.question holds {other[0]!r}, which was not "
                "asked", "write each question as it was asked")
    if {"start_s", "end_s"} <= set(schema.column_names):
        times = frame[["start_s", "end_s"]].dropna()
        if (times["end_s"] < times["start_s"]).any():
            yield f"times {schema.name}", _Problem(
                f"with {case.name}, a row of {schema.name} ends before it starts",
                "write times as features.clip_times and features.segment_times give them")


def _check_needs(subject: _Subject) -> Iterator[_Problem]:
    undeclared: dict[str, str] = {}
    read: set[str] = set()
    # With everything there, so that all that is read is found at once, and what a head would
    # swallow the error of, too.
    every = copy.copy(subject)
    every.spec = dataclasses.replace(subject.spec, needs=frozenset(FEATURE_OUTPUTS))
    with _closing(every.runner()) as runner:
        for case in subject.cases:
            subject.read.clear()
            features = subject.watched(subject.features(case, needs=FEATURE_OUTPUTS))
            with _ignoring_errors():
                runner.predict(features)
            read |= subject.read
            for name in sorted(subject.read - subject.spec.needs):
                undeclared.setdefault(name, case.name)
    for name, where in undeclared.items():
        yield _Problem(f"with {where}, the head reads features.{name}, which `needs` does not name",
                       f'add "{name}" to `needs` of the TaskSpec, or do not read it')
    # Motion costs nothing until it is asked for, and a head may find no clip worth asking for.
    for name in sorted(subject.spec.needs - read - {"motion"}):
        subject.notes.append(f"with these options, the head never reads features.{name}: if it "
                             "never does, take it out of `needs`, so that nobody pays for it")


def _check_unmodified(subject: _Subject) -> Iterator[_Problem]:
    with _closing(subject.runner()) as runner:
        for case in subject.cases:
            features = subject.features(case)
            if "frames" in subject.spec.needs:
                features._outputs["frames"] = list(features._outputs["frames"])
            before = _snapshot(features)
            with _ignoring_errors():
                runner.predict(features)
            after = _snapshot(features)
            for name in sorted(before):
                if not _same(before[name], after[name]):
                    yield _Problem(
                        f"with {case.name}, the head changes features.{name}, which all tasks "
                        "of a run share",
                        f"work on a copy, such as features.{name}.clone(), .copy() or list(…), "
                        "and use no method that ends in _")
                    return


def _check_repeat(subject: _Subject) -> Iterator[_Problem]:
    several = [case for case in subject.cases if case.clips or case.segments]
    with _closing(subject.runner()) as runner:
        first: list[dict[str, pd.DataFrame] | None] = []
        inputs = [subject.features(case) for case in several]
        for features in inputs:
            made = None
            with _ignoring_errors():
                made = runner.predict(features)
            first.append(made)
        for case, features, before in zip(reversed(several), reversed(inputs), reversed(first),
                                          strict=True):
            if before is None:
                continue
            try:
                difference = _difference(subject.spec, before, runner.predict(features), 0.0)
            except Exception as error:
                difference = f"{type(error).__name__}: {error}"
            if difference:
                yield _Problem(
                    f"with {case.name}, a second call gives other rows than the first: "
                    f"{difference}",
                    "keep nothing of one video for the next, and seed whatever is random: a "
                    "video's result must not depend on what is run beside it")
                return
        yield from _batch_problems(subject, runner, several, inputs, first)


def _batch_problems(
    subject: _Subject, runner: HeadRunner, cases: Sequence[_Case], inputs: Sequence[Features],
    alone: Sequence[dict[str, pd.DataFrame] | None],
) -> Iterator[_Problem]:
    import torch

    head = runner.ready()
    if getattr(type(head), "predict_batch", Head.predict_batch) is Head.predict_batch:
        return
    usable = [place for place, tables in enumerate(alone) if tables is not None]
    with torch.no_grad():
        together = head.predict_batch(
            [inputs[place].restrict(subject.spec.needs) for place in usable])
    if len(together) != len(usable):
        yield _Problem(f"predict_batch of {len(usable)} videos gives {len(together)} results",
                       "give one dict of tables for each, in their order")
        return
    for place, tables in zip(usable, together, strict=True):
        whole = {schema.name: schema.conform(tables[schema.name]) if schema.name in tables
                 else schema.empty() for schema in subject.spec.tables}
        before = alone[place]
        assert before is not None
        difference = _difference(subject.spec, before, whole, _TOLERANCE)
        if difference:
            yield _Problem(f"with {cases[place].name}, predict_batch gives other rows among other "
                           f"videos than alone: {difference}",
                           "do not let a video's rows depend on its neighbours in the batch")
            return


def _check_device(subject: _Subject) -> Iterator[_Problem]:
    device = _gpu()
    if device is None:
        raise _Skip("there is no CUDA GPU here")
    with _closing(subject.runner()) as plain, _closing(subject.runner(device=device)) as fast:
        for case in subject.cases:
            expected = None
            with _ignoring_errors():
                expected = plain.predict(subject.features(case))
            if expected is None:
                continue
            try:
                found = fast.predict(subject.features(case, device=device))
            except Exception as error:
                yield _Problem(f"with {case.name}, on a GPU, the head raises "
                               f"{type(error).__name__}: {error}",
                               "move weights to self.context.device in setup, make new tensors on "
                               "features' device, and call .cpu() before .numpy()")
                return
            difference = _difference(subject.spec, expected, found, _TOLERANCE)
            if difference:
                yield _Problem(f"with {case.name}, CPU and GPU give different rows: {difference}",
                               "compute in float32 without TF32, and break ties by position")
                return


def _check_save(subject: _Subject) -> Iterator[_Problem]:
    head = load_object(subject.spec.head)
    saves = getattr(head, "save_pretrained", Head.save_pretrained) is not Head.save_pretrained
    trains = "finetune" in subject.spec.capabilities
    if not saves and not trains:
        raise _Inapplicable("the head has no weights to save (it overrides no save_pretrained)")
    if not saves:
        yield _Problem("the task can be fine-tuned, but its head does not override save_pretrained",
                       "write it; vbkit.heads.save_head does the work")
        return
    if trains and not subject.labels:
        raise _Skip("give check_task labels=[{…}, {…}], so that there is something to learn")
    folder = subject.folder / "saved"
    folder.mkdir(exist_ok=True)
    # Given options are for a head that has learnt nothing; what is learnt may contradict them.
    options = _options(subject.spec, {}) if trains else subject.options
    with _closing(subject.runner(options=options)) as runner:
        if trains:
            _fit(subject, runner)
        runner.ready().save_pretrained(folder)
        expected = _predictions(subject, runner)
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not files:
        yield _Problem("save_pretrained writes no file", "write weights and settings into `path`; "
                       "vbkit.heads.save_head does")
        return
    pickles = [path.name for path in files if path.suffix in _PICKLES]
    if pickles:
        yield _Problem(f"save_pretrained writes {pickles[0]}, and loading such a file can run code",
                       "write safetensors and JSON; vbkit.heads.save_head does")
    with _closing(subject.runner(head=folder, options=options)) as runner:
        try:
            found = {case.name: runner.predict(subject.features(case)) for case in subject.cases
                     if case.name in expected}
        except Exception as error:
            yield _Problem(f"a head that was saved cannot be loaded: {type(error).__name__}: "
                           f"{error}", "read in setup what save_pretrained writes, from "
                           "self.context.head_path; vbkit.heads.load_head does")
            return
    for name, before in expected.items():
        difference = _difference(subject.spec, before, found[name], _TOLERANCE)
        if difference:
            yield _Problem(f"with {name}, a head that was saved and loaded gives other rows: "
                           f"{difference}", "load context.head_path in setup, where it is given, "
                           "and save all that rows depend on")
            return


def _check_evaluate(subject: _Subject) -> Iterator[_Problem]:
    import torch

    if "evaluate" not in subject.spec.capabilities:
        raise _Inapplicable("the task does not name the capability 'evaluate'")
    if not subject.labels:
        raise _Skip("give check_task labels=[{…}, {…}], so that there is something to compare with")
    trains = "finetune" in subject.spec.capabilities
    options = _options(subject.spec, {}) if trains else subject.options
    with _closing(subject.runner(options=options)) as runner, torch.no_grad():
        if trains:
            _fit(subject, runner)
        metrics = runner.ready().evaluate(_examples(subject, 2))
    if not isinstance(metrics, Mapping) or not metrics:
        yield _Problem(f"evaluate gives {type(metrics).__name__}, and no named metrics",
                       "return a dict of names and numbers, such as {'accuracy': 0.9}")
        return
    try:
        json.dumps(metrics)
    except TypeError as error:
        yield _Problem(f"what evaluate gives cannot be written as JSON: {error}",
                       "return plain numbers (float(x), int(x)), None, or dicts of these")


def _fit(subject: _Subject, runner: HeadRunner) -> None:
    import torch

    head = runner.ready()
    torch.manual_seed(0)
    with torch.enable_grad():
        train = _examples(subject, 3)
        if "augment" in subject.spec.capabilities:  # a view's clips may be more, or fewer
            case = _Case("labelled videos", 7, 5)
            train = [replace(example, views=(subject.features(case, 200 + place),))
                     for place, example in enumerate(train)]
        head.fit(train, _examples(subject, 2, first=100), FitOptions(epochs=2))


def _examples(subject: _Subject, rounds: int, first: int = 0) -> list[Example]:
    case = _Case("labelled videos", 6, 5)
    return [Example(subject.features(case, first + turn * len(subject.labels) + place), (row,))
            for turn in range(rounds) for place, row in enumerate(subject.labels)]


def _predictions(subject: _Subject, runner: HeadRunner) -> dict[str, dict[str, pd.DataFrame]]:
    """Tables by the name of the case; without those that the check `rows` reports."""
    found = {}
    for case in subject.cases:
        with _ignoring_errors():
            found[case.name] = runner.predict(subject.features(case))
    return found


def _check_explain(subject: _Subject) -> Iterator[_Problem]:
    if "explain" not in subject.spec.capabilities:
        raise _Inapplicable("the task does not name the capability 'explain'")
    explained, seen = 0, set()
    spec = subject.spec
    with _closing(subject.runner()) as runner:
        for case in subject.cases:
            features = subject.features(case, needs=spec.explain_needs)
            tables: dict[str, pd.DataFrame] = {}
            with _ignoring_errors():
                tables = runner.predict(features)
            for name in spec.explained:
                if name not in tables or tables[name].empty:
                    continue
                rows = tables[name].head(3)
                rows.attrs["table"] = name
                problem: _Problem | None
                try:
                    found = runner.explain(features, rows)
                except UsageError:
                    continue  # rows that cannot be explained, and it says why
                except Exception as error:
                    problem = _unexplained(case.name, name, error)
                else:
                    explained += len(found)
                    wrong = _wrong_places(found, features)
                    problem = _Problem(
                        f"with {case.name}, a row of {name} is explained by {wrong}",
                        "count clips, segments and characters as features has them; "
                        "vbkit.explanations.explanations_frame does") if wrong else None
                if problem and problem.change not in seen:
                    seen.add(problem.change)
                    yield problem
    if not explained and not seen:
        yield _Problem("explain says nothing of any row, with any input",
                       "return the evidence for rows, or take 'explain' out of the capabilities")


def _unexplained(case: str, table: str, error: Exception) -> _Problem:
    where = f"with {case}, explaining rows of {table}"
    if isinstance(error, FeatureError):
        return _Problem(f"{where} fails: {error}",
                        "name in explain_needs of the TaskSpec what explain reads beside `needs`")
    if isinstance(error, SchemaError):
        return _Problem(f"{where} gives no table of explanations: {error}",
                        "make it with vbkit.explanations.explanations_frame")
    return _Problem(f"{where} raises {type(error).__name__}: {error}",
                    "raise vbkit.errors.UsageError, saying why, for rows that cannot be explained, "
                    "or leave tables out of explain_tables")


def _wrong_places(found: pd.DataFrame, features: Features) -> str:
    """Evidence that is not in the video, in words; "" where all of it is."""
    for row in found.dropna(subset="last_clip").to_dict("records"):
        if not 0 <= row["first_clip"] <= row["last_clip"] < len(features.clip_times):
            return f"clips {row['first_clip']} to {row['last_clip']}, which it does not have"
    for row in found.dropna(subset="last_segment").to_dict("records"):
        if not 0 <= row["first_segment"] <= row["last_segment"] < len(features.segments):
            return (f"segments {row['first_segment']} to {row['last_segment']}, which it does not "
                    "have")
    for row in found.dropna(subset="end_char").to_dict("records"):
        text = features.segments[row["first_segment"]]
        if not 0 <= row["start_char"] < row["end_char"] <= len(text):
            return f"characters {row['start_char']} to {row['end_char']} of {text!r}"
    return ""


def _check_clip(subject: _Subject) -> Iterator[_Problem]:
    from vbkit.store import load_table
    from vbkit.testing import CLIP
    from vbkit.testing.engines import isolated_manager, shared_engine

    spec = subject.spec
    declaring = types.SimpleNamespace(vbkit_tasks=hookimpl(lambda: [spec]))
    engine = shared_engine(isolated_manager(contract=declaring))
    out = subject.folder / "results"
    arguments: dict[str, Any] = {
        "tasks": [f"contract:{spec.name}"], "out": out,
        "options": {spec.name: subject.given} if subject.given else None,
        "heads": {spec.name: subject.head} if subject.head is not None else None,
        "questions": ["What is in the street?"] if subject.by_question else []}
    inputs = [CLIP, CLIP.with_suffix(".srt")]
    result = engine.run(inputs, **arguments)
    for failure in result.report.failures:
        yield _Problem(f"on the real clip, {failure.video_id}: {failure.error_type}: "
                       f"{failure.message}", "VBKIT_STRICT=1 shows the traceback")
    if result.report.failures:
        return
    for schema in spec.tables:
        frame = load_table(out, schema.name)
        names = ["video_id", *schema.column_names]
        if list(frame.columns) != names:
            yield _Problem(f"table {schema.name} comes back from disk with the columns "
                           f"{list(frame.columns)}", f"declare them as {names}")
    again = engine.run(inputs, **arguments)
    if again.report.n_skipped != len(inputs):
        yield _Problem("a second run over the same videos does not find its rows up to date",
                       "let options have the same values whenever they are made from the same text")


_CHECKS: dict[str, Callable[[_Subject], Iterator[_Problem]]] = {
    "declaration": _check_declaration,
    "documentation": _check_documentation,
    "rows": _check_rows,
    "needs": _check_needs,
    "unmodified": _check_unmodified,
    "repeat": _check_repeat,
    "device": _check_device,
    "save": _check_save,
    "evaluate": _check_evaluate,
    "explain": _check_explain,
    "clip": _check_clip,
}

CHECKS: Mapping[str, str] = types.MappingProxyType({
    "declaration": "a plugin declares the task, without importing torch or the like",
    "documentation": "each column says what it means, each option what it does",
    "rows": "inputs without clips, without segments, with one and with many give tables that "
            "match their schemas",
    "needs": "the head reads no output that `needs` does not name",
    "unmodified": "the head leaves what it is given as it is",
    "repeat": "the same video gives the same rows, whatever came before it or is beside it",
    "device": "CPU and GPU give the same rows",
    "save": "a head that was saved and loaded gives the same rows",
    "evaluate": "metrics are named numbers",
    "explain": "explanations match their schema",
    "clip": "a real video and its subtitles alone run through the engine, into a results folder "
            "and out again, and are up to date the second time",
})
"""Names of the checks that `check_task` makes, and what each is about."""


# Help


def _gpu() -> str | None:
    """The GPU's name as a torch device, or None."""
    import torch

    return "cuda" if torch.cuda.is_available() else None


@contextmanager
def _closing(runner: HeadRunner) -> Iterator[HeadRunner]:
    try:
        yield runner
    finally:
        runner.close()


@contextmanager
def _ignoring_errors() -> Iterator[None]:
    """For checks beside `rows`, which reports what the head raises."""
    try:
        yield
    except Exception as error:
        logging.getLogger("vbkit.testing").debug("ignored: %s", error)


def _snapshot(features: Features) -> dict[str, Any]:
    """Copies of all values; methods are left out."""
    return {name: copy.deepcopy(value) for name, value in features._outputs.items()
            if not callable(value)}


def _same(one: Any, other: Any) -> bool:
    import numpy as np
    import torch

    if isinstance(one, torch.Tensor):
        return (isinstance(other, torch.Tensor) and one.shape == other.shape
                and torch.equal(one, other))
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, list):
        return (isinstance(other, list) and len(one) == len(other)
                and all(map(_same, one, other)))
    if hasattr(one, "pts_seconds"):  # a FrameBatch
        return all(_same(getattr(one, name), getattr(other, name))
                   for name in ("data", "pts_seconds", "duration_seconds"))
    return bool(one == other)


def _difference(spec: TaskSpec, one: Mapping[str, pd.DataFrame],
                other: Mapping[str, pd.DataFrame], tolerance: float) -> str:
    """Where two results differ, in one line; "" where they agree."""
    import pandas as pd

    for schema in spec.tables:
        try:
            if tolerance:  # of floats; all else is compared exactly
                pd.testing.assert_frame_equal(one[schema.name], other[schema.name],
                                              rtol=tolerance, atol=tolerance)
            else:
                pd.testing.assert_frame_equal(one[schema.name], other[schema.name],
                                              check_exact=True)
        except AssertionError as error:
            return f"table {schema.name}: {' '.join(str(error).split())}"
    return ""
