"""What a plugin declares: tasks, models, visual backbones, transcribers.

A declaration is a small frozen data class that names the code behind it as `"module:attribute"`,
imported only when it is used. So listing plugins is fast and never imports torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vbkit.errors import PluginError, UsageError
from vbkit.tables import CORE_TABLES, TableSchema

__all__ = [
    "API_VERSION",
    "CAPABILITIES",
    "CONTEXT_OUTPUTS",
    "FEATURE_OUTPUTS",
    "BackboneSpec",
    "ModelSpec",
    "NoOptions",
    "TaskSpec",
    "TranscriberSpec",
    "check_capability",
    "load_object",
    "option",
]

API_VERSION = 1
"""Version of the hook interface. A spec with a greater `api` is refused by name."""

CAPABILITIES = frozenset({"finetune", "evaluate", "explain", "augment"})

FEATURE_OUTPUTS: dict[str, str] = {
    "clip_times": "(C, 2) float64, s: start and end of each clip",
    "clip_features": "(C, Dv) float32: pooled features of the visual backbone",
    "visual_words": "(C,) int64: ids in the visual vocabulary",
    "segments": "list of S strings: the transcript's segments",
    "segment_times": "(S, 2) float64, s: start and end of each segment, NaN for untimed text",
    "clip_embeddings": "(C, D) float32: unit vectors in the space that video and text share",
    "segment_embeddings": "(S, D) float32: unit vectors in the space that video and text share",
    "clip_hidden": "(C, H) float32: contextual outputs of the joint encoder",
    "segment_hidden": "(S, H) float32: contextual outputs of the joint encoder",
    "pooled": "(H,) float32: mean of the joint encoder's outputs, weighted by duration",
    "tokens": "list of S lists of strings: word pieces",
    "token_hidden": "list of S tensors (T, H) float32: the word pieces' outputs",
    "frames": "iterator of FrameBatch: decoded pictures",
    "motion": "method: how things move in chosen clips, which are decoded again for it",
    "encode_text": "method: texts into the shared space",
    "text_branch": "method of `HeadContext`: the text encoder with low-rank changes of the head's",
    "joint": "method: texts through the joint encoder with chosen segments and clips",
    "generate": "method: the decoder",
}
"""The shared encoder outputs that `TaskSpec.needs` may name."""

CONTEXT_OUTPUTS = frozenset({"text_branch"})
"""Of these, what a head finds in its `HeadContext`, and not in `Features`."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z")


@dataclass(frozen=True)
class NoOptions:
    """The options of a task that has none."""


def option(default: Any, help: str) -> Any:
    """A field of an options data class: its default value and its line of help."""
    return dataclasses.field(default=default, metadata={"help": help})


def load_object(target: str) -> Any:
    """Import what `"module:attribute"` names.

    Raises:
        PluginError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise PluginError(f"cannot load {target}: {type(error).__name__}: {error}") from error


def _check_name(kind: str, name: str) -> None:
    if not _NAME.match(name):
        raise PluginError(f"{kind} name {name!r}: use [a-z][a-z0-9_]*")


def _check_target(kind: str, name: str, target: str) -> None:
    if not _TARGET.match(target):
        raise PluginError(f"{kind} {name}: {target!r} is not of the form package.module:Name")


def _check_options(kind: str, name: str, options: type) -> None:
    parameters = getattr(options, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise PluginError(f"{kind} {name}: options must be a frozen dataclass, got {options!r}")


@dataclass(frozen=True)
class TaskSpec:
    """A task: what its head needs, what tables it writes, and where the head is.

    Args:
        name: `[a-z][a-z0-9_]*`. `distribution:name` always works on the command line; a bare name
            that two plugins declare is an error when it is used.
        summary: one line, shown by `vbkit tasks`.
        head: `"package.module:Class"`, a `vbkit.heads.Head`, imported only when the task runs.
        needs: names of `FEATURE_OUTPUTS` that the head reads. It gets no others.
        tables: schemas of the tables that the head returns; the first is named after the task.
        options: a frozen data class; its fields become `-o name.field=value` and help text.
        capabilities: of `CAPABILITIES`. `finetune`, `evaluate` and `explain` say that the head has
            the method (`fit` for the first), and `augment` that `fit` learns from `Example.views`.
        api: version of the hook interface that the task was written for.
        labels: manifest columns of which a row needs one to be trained on or evaluated.
        explain_tables: with the capability `explain`, the tables whose rows the head explains;
            empty for all of them.
        explain_needs: further outputs that `Head.explain` reads, beside `needs`. They are not
            computed in a run, and rows do not depend on them.

    Raises:
        PluginError: a value breaks one of these rules.
    """

    name: str
    summary: str
    head: str
    needs: frozenset[str]
    tables: tuple[TableSchema, ...]
    options: type = NoOptions
    capabilities: frozenset[str] = frozenset()
    api: int = API_VERSION
    labels: tuple[str, ...] = ("label",)
    explain_tables: tuple[str, ...] = ()
    explain_needs: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _check_name("task", self.name)
        if self.api > API_VERSION:
            return  # refused by name where specs are collected; its rules are not known here
        _check_target("task", self.name, self.head)
        _check_options("task", self.name, self.options)
        object.__setattr__(self, "needs", _names(self.name, "needs", self.needs))
        object.__setattr__(self, "capabilities",
                           _names(self.name, "capabilities", self.capabilities))
        object.__setattr__(self, "tables", tuple(self.tables))
        _names(self.name, "labels", self.labels)
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "explain_needs",
                           _names(self.name, "explain_needs", self.explain_needs))
        _names(self.name, "explain_tables", self.explain_tables)
        object.__setattr__(self, "explain_tables", tuple(self.explain_tables))
        _one_line("task", self.name, self.summary)
        for kind, given, known in (("needs", self.needs, FEATURE_OUTPUTS),
                                   ("explain_needs", self.explain_needs, FEATURE_OUTPUTS),
                                   ("capabilities", self.capabilities, CAPABILITIES)):
            unknown = sorted(given - set(known))
            if unknown:
                raise PluginError(f"task {self.name}: {kind} names {unknown[0]!r}; "
                                  f"known are {', '.join(sorted(known))}")
        if not self.tables or self.tables[0].name != self.name:
            raise PluginError(f"task {self.name}: its first table must be named {self.name!r}")
        names = [table.name for table in self.tables]
        if len(set(names)) != len(names):
            raise PluginError(f"task {self.name}: a table is declared twice")
        reserved = sorted(set(names) & set(CORE_TABLES))
        if reserved:
            raise PluginError(f"task {self.name}: table name {reserved[0]!r} is the core's")
        strangers = sorted(set(self.explain_tables) - set(names))
        if strangers:
            raise PluginError(f"task {self.name}: explain_tables names {strangers[0]!r}; its "
                              f"tables are {', '.join(names)}")
        if "augment" in self.capabilities and "finetune" not in self.capabilities:
            raise PluginError(f"task {self.name}: the capability 'augment' is of no use without "
                              "'finetune'")
        if (self.explain_tables or self.explain_needs) and "explain" not in self.capabilities:
            raise PluginError(f"task {self.name}: explain_tables and explain_needs are of no use "
                              "without the capability 'explain'")

    @property
    def explained(self) -> tuple[str, ...]:
        """The tables whose rows `Head.explain` takes; none without the capability."""
        if "explain" not in self.capabilities:
            return ()
        return self.explain_tables or tuple(table.name for table in self.tables)


def _names(task: str, field: str, value: Iterable[str]) -> frozenset[str]:
    if isinstance(value, str):
        raise PluginError(f"task {task}: {field} must be a set of names, got the string {value!r}")
    return frozenset(value)


def _one_line(kind: str, name: str, summary: str) -> None:
    if not summary.strip() or "\n" in summary:
        raise PluginError(f"{kind} {name}: summary must be one line of text")


def check_capability(spec: TaskSpec, capability: str) -> None:
    """
    Raises:
        UsageError: the task's head cannot do it.
    """
    if capability not in spec.capabilities:
        what = {"finetune": "be trained", "evaluate": "be evaluated", "explain": "be explained",
                "augment": "learn from further views (--augment)"}[capability]
        raise UsageError(f"the head of task {spec.name} cannot {what}: its TaskSpec does not "
                         f"name the capability {capability!r}")


@dataclass(frozen=True)
class ModelSpec:
    """A named checkpoint.

    Args:
        name: `[a-z][a-z0-9_-]*`, what `--model` takes.
        summary: one line, shown by `vbkit models`.
        location: folder of the bundle, or a hub id that is downloaded when it is used.
        licence: terms of the weights, in a few words.
    """

    name: str
    summary: str
    location: str
    licence: str = ""
    api: int = API_VERSION

    def __post_init__(self) -> None:
        _check_name("model", self.name.replace("-", "_").replace(".", "_"))
        _one_line("model", self.name, self.summary)


@dataclass(frozen=True)
class BackboneSpec:
    """A visual backbone: pictures in, pooled features out.

    Args:
        name: what a model bundle's `backbone` names.
        summary: one line.
        factory: `"package.module:callable"`, called as `factory(weights, **arguments)` with the
            path (or hub id) of the weights or None, and the bundle's further backbone arguments.
            Returns a `vbkit.model.backbones.Backbone`.
        prefix: where True, the name stands for a family: `name/VARIANT` is passed on as the
            argument `variant`.
    """

    name: str
    summary: str
    factory: str
    prefix: bool = False
    api: int = API_VERSION

    def __post_init__(self) -> None:
        _check_name("backbone", self.name)
        _check_target("backbone", self.name, self.factory)
        _one_line("backbone", self.name, self.summary)


@dataclass(frozen=True)
class TranscriberSpec:
    """Speech to text.

    Args:
        name: `[a-z][a-z0-9_]*`.
        summary: one line, shown by `vbkit transcribers`.
        factory: `"package.module:callable"`, called as `factory(options, device)` with an instance
            of `options` and `"cpu"`, `"cuda"`, `"cuda:1"` or `"mps"`. Returns a
            `vbkit.media.Transcriber`; raises `vbkit.errors.OptionError` for options that cannot be.
        options: a frozen data class that can be imported; its fields become
            `-o name.field=value` and help text.
    """

    name: str
    summary: str
    factory: str
    options: type = NoOptions
    api: int = API_VERSION

    def __post_init__(self) -> None:
        _check_name("transcriber", self.name)
        _check_target("transcriber", self.name, self.factory)
        _check_options("transcriber", self.name, self.options)
        _one_line("transcriber", self.name, self.summary)
