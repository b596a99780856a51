"""Discovery and isolation of plugins.

A plugin is what an entry point of the group `vbkit` names. Each is loaded, asked for what it
declares, and told what happens in a run, in a try of its own: a plugin that fails costs its own
declarations and one line in the log, never another plugin's. Nothing here imports torch.

Two environment variables matter: `VBKIT_DISABLE_PLUGINS=a,b` leaves plugins (or whole
distributions) out, and `VBKIT_STRICT=1` raises where a failure would be reported.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import pluggy

from vbkit import hookspecs
from vbkit.errors import PluginError, UsageError, VbkitError
from vbkit.hookspecs import ENTRY_POINT_GROUP, PROJECT
from vbkit.options import check_options_type, close_matches
from vbkit.specs import API_VERSION, BackboneSpec, ModelSpec, TaskSpec, TranscriberSpec

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from vbkit.media.types import VideoReader

__all__ = [
    "DISABLE_VARIABLE",
    "STRICT_VARIABLE",
    "Declared",
    "PluginManager",
    "PluginRecord",
    "check_tables",
    "default_manager",
    "strict",
    "use_manager",
]

DISABLE_VARIABLE = "VBKIT_DISABLE_PLUGINS"
STRICT_VARIABLE = "VBKIT_STRICT"

_log = logging.getLogger("vbkit")

Spec = TypeVar("Spec", TaskSpec, ModelSpec, BackboneSpec, TranscriberSpec)
Kind = Literal["task", "model", "backbone", "transcriber"]

_COLLECTING: dict[str, tuple[Kind, type]] = {
    "vbkit_tasks": ("task", TaskSpec),
    "vbkit_models": ("model", ModelSpec),
    "vbkit_backbones": ("backbone", BackboneSpec),
    "vbkit_transcribers": ("transcriber", TranscriberSpec),
}
_OBSERVERS = frozenset(
    {"vbkit_before_run", "vbkit_after_video", "vbkit_on_error", "vbkit_after_run"}
)
_reported: set[tuple[str, str]] = set()
"""Failures that this process has already put on stderr."""


def strict() -> bool:
    """Whether `VBKIT_STRICT` asks for plugins' failures to be raised."""
    return os.environ.get(STRICT_VARIABLE, "").strip().lower() not in ("", "0", "false", "no")


@dataclass
class PluginRecord:
    """A plugin as `vbkit plugins` shows it.

    Args:
        name: name of its entry point, or the name that it was registered under.
        distribution: the distribution that brings it; its own name for one that was registered.
        version: version of the distribution, `""` where unknown.
        status: ok; failed: something of it could not be used, see `error`; disabled: left out by
            `VBKIT_DISABLE_PLUGINS`.
        error: what failed, in one line.
        declares: names of what it declared and of the other hooks that it implements, by kind:
            `tasks`, `models`, `backbones`, `transcribers`, `hooks`.
    """

    name: str
    distribution: str
    version: str = ""
    status: Literal["ok", "failed", "disabled"] = "ok"
    error: str | None = None
    declares: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`name (distribution version)`, for messages."""
        if self.distribution == self.name and not self.version:
            return self.name
        return f"{self.name} ({' '.join(filter(None, (self.distribution, self.version)))})"


@dataclass(frozen=True)
class Declared(Generic[Spec]):
    """A declaration and where it comes from.

    Args:
        spec: what was declared.
        plugin: name of the plugin.
        distribution: the distribution that brings the plugin.
        version: version of that distribution.
    """

    spec: Spec
    plugin: str
    distribution: str
    version: str

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def qualified_name(self) -> str:
        """`distribution:name`, which names it even where another plugin declares that name."""
        return f"{self.distribution}:{self.spec.name}"


class PluginManager:
    """The plugins of this process and what they declare.

    Plugins are loaded at the first question, not before. Safe to share between threads.

    Args:
        entry_points: the entry points to load; None for those of the installed distributions,
            `()` for none.
    """

    def __init__(self, entry_points: Iterable[EntryPoint] | None = None) -> None:
        self._entry_points = None if entry_points is None else tuple(entry_points)
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self._records: dict[str, PluginRecord] = {}  # by pluggy's name of the plugin
        self._declared: dict[Kind, list[Declared[Any]]] = {
            kind: [] for kind, _ in _COLLECTING.values()
        }
        self._refused: list[tuple[Kind, str, PluginRecord, str]] = []
        self._failed_calls: set[tuple[str, str]] = set()
        self._loaded = False
        self._lock = threading.RLock()

    # Loading

    def load(self) -> None:
        """Load the entry points, once. Failures are recorded and raise only under VBKIT_STRICT."""
        with self._lock:
            if self._loaded:
                return
            self._loaded = True
            try:
                for entry_point in self._discover():
                    self._load_entry_point(entry_point)
            except BaseException:
                self._loaded = False
                raise

    def register(self, plugin: object, name: str, *, version: str = "") -> PluginRecord:
        """Add a plugin of this process, such as a module or object made in a test or notebook.

        Its tasks are named `name:task` where a bare name clashes.

        Raises:
            PluginError: a plugin of that name was registered before, or, under VBKIT_STRICT, it
                fails.
        """
        self.load()
        with self._lock:
            if name in self._records:
                raise PluginError(f"a plugin {name!r} is already registered")
            record = PluginRecord(name, name, version)
            if not self._disabled(record):
                self._add(name, record, lambda: plugin)
            self._records[name] = record
            return record

    def unregister(self, name: str) -> None:
        """Forget a plugin that `register` added, and what it declared.

        Raises:
            PluginError: there is none of that name.
        """
        with self._lock:
            record = self._records.get(name)
            if record is None:
                raise PluginError(f"no plugin {name!r} is registered")
            del self._records[name]
            self._forget(name, record)

    def _discover(self) -> list[EntryPoint]:
        if self._entry_points is None:
            from importlib.metadata import entry_points

            found: Iterable[EntryPoint] = entry_points(group=ENTRY_POINT_GROUP)
        else:
            found = self._entry_points
        return sorted(found, key=lambda point: (_distribution(point)[0] != "vbkit",
                                                _distribution(point)[0], point.name))

    def _load_entry_point(self, entry_point: EntryPoint) -> None:
        distribution, version = _distribution(entry_point)
        record = PluginRecord(entry_point.name, distribution, version)
        key = f"{distribution}:{entry_point.name}"
        if key in self._records:
            return  # the same distribution found twice on the path; the first one counts
        if not self._disabled(record):
            self._add(key, record, entry_point.load)
        self._records[key] = record

    def _disabled(self, record: PluginRecord) -> bool:
        left_out = {normalise(name) for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
        if {normalise(record.name), normalise(record.distribution)} & left_out:
            record.status = "disabled"
            return True
        return False

    def _add(self, key: str, record: PluginRecord, load: Callable[[], object]) -> None:
        try:
            plugin = load()
            self._register(plugin, key)
            self._collect(plugin, key, record)
        except (Exception, SystemExit) as error:
            self._forget(key, record)
            record.status = "failed"
            record.error = _one_line(error)
            record.declares = {}
            if strict():
                raise PluginError(f"plugin {record.label} failed: {record.error}") from error

    def _register(self, plugin: object, key: str) -> None:
        if plugin is None or isinstance(plugin, type):
            raise PluginError(
                f"its entry point names {'a class' if plugin else 'None'}: "
                "name a module, or an instance, whose functions are hook implementations"
            )
        for name, other in self._pluggy.list_name_plugin():
            if other is plugin:
                raise PluginError(f"its code is already registered as {name}")
        try:
            self._pluggy.register(plugin, key)
        except pluggy.PluginValidationError as error:
            text = " ".join(str(error).split())
            raise PluginError(text.removeprefix(f"Plugin {key!r} ")) from error
        known = sorted((*_COLLECTING, *_OBSERVERS, "vbkit_open_video"))
        for caller in self._pluggy.get_hookcallers(plugin) or ():
            for implementation in caller.get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                if not caller.has_spec() and not implementation.optionalhook:
                    raise PluginError(
                        f"there is no hook {caller.name}{close_matches(caller.name, known)}"
                    )
                if implementation.hookwrapper or implementation.wrapper:
                    raise PluginError(f"{caller.name}: hook wrappers are not supported")

    def _forget(self, key: str, record: PluginRecord) -> None:
        if self._pluggy.has_plugin(key):
            self._pluggy.unregister(name=key)
        for declared in self._declared.values():
            declared[:] = [item for item in declared if not _is_of(item, record)]
        self._refused = [refused for refused in self._refused if refused[2] is not record]

    # Collecting

    def _collect(self, plugin: object, key: str, record: PluginRecord) -> None:
        others = []
        for caller in self._pluggy.get_hookcallers(plugin) or ():
            if not caller.has_spec():
                continue
            if caller.name not in _COLLECTING:
                others.append(caller.name)
                continue
            kind, wanted = _COLLECTING[caller.name]
            names: list[str] = []
            for implementation in caller.get_hookimpls():
                if implementation.plugin is not plugin:
                    continue
                specs = _consume(caller.name, wanted, implementation.function())
                names.extend(spec.name for spec in specs if self._admit(kind, spec, record))
            record.declares[f"{kind}s"] = tuple(names)
        if others:
            record.declares["hooks"] = tuple(sorted(others))

    def _admit(self, kind: Kind, spec: Any, record: PluginRecord) -> bool:
        """Take in one declaration, or refuse it by name and keep the plugin's others."""
        why = None
        if spec.api > API_VERSION:
            why = (
                f"{kind} {spec.name} is written for version {spec.api} of vbkit's hooks, this "
                f"vbkit has version {API_VERSION}: upgrade vbkit"
            )
        elif any(item.name == spec.name and item.distribution == record.distribution
                 for item in self._declared[kind]):
            why = f"{kind} {spec.name} is declared twice by the distribution {record.distribution}"
        elif kind in ("task", "transcriber"):
            check_options_type(spec.options)
        if why is None:
            self._declared[kind].append(
                Declared(spec, record.name, record.distribution, record.version)
            )
            return True
        if strict():
            raise PluginError(why)
        self._refused.append((kind, spec.name, record, why))
        record.status = "failed"
        record.error = why if record.error is None else f"{record.error}; {why}"
        return False

    # What there is

    def plugins(self) -> list[PluginRecord]:
        """All plugins, also failed and disabled ones. Nothing is put on stderr."""
        self.load()
        with self._lock:
            return list(self._records.values())

    def tasks(self) -> list[Declared[TaskSpec]]:
        """The declared tasks, by name."""
        return self._all("task")

    def models(self) -> list[Declared[ModelSpec]]:
        """The declared models, by name."""
        return self._all("model")

    def backbones(self) -> list[Declared[BackboneSpec]]:
        """The declared visual backbones, by name."""
        return self._all("backbone")

    def transcribers(self) -> list[Declared[TranscriberSpec]]:
        """The declared transcribers, by name."""
        return self._all("transcriber")

    def get_task(self, name: str) -> Declared[TaskSpec]:
        """The task `name`, or `distribution:name` (the plugin's name does for the distribution's).

        Raises:
            UsageError: there is none, or several plugins declare a bare `name`.
            PluginError: the plugin that should declare it has failed or is disabled.
        """
        return self._get("task", name)

    def get_model(self, name: str) -> Declared[ModelSpec]:
        """The model `name` or `distribution:name`; raises as `get_task` does."""
        return self._get("model", name)

    def get_transcriber(self, name: str) -> Declared[TranscriberSpec]:
        """The transcriber `name` or `distribution:name`; raises as `get_task` does."""
        return self._get("transcriber", name)

    def get_backbone(self, name: str) -> tuple[Declared[BackboneSpec], str | None]:
        """The backbone `name` and None, or for `family/variant` the family and the variant.

        Raises:
            UsageError, PluginError: as `get_task`; or a variant is given to what is no family.
        """
        base, slash, variant = name.partition("/")
        declared: Declared[BackboneSpec] = self._get("backbone", base)
        if slash and not declared.spec.prefix:
            raise UsageError(f"backbone {base} has no variants: write {base}, not {name}")
        return declared, variant or None

    def _all(self, kind: Kind) -> list[Declared[Any]]:
        self.load()
        self._report()
        with self._lock:
            return sorted(self._declared[kind], key=lambda item: (item.name, item.distribution))

    def _get(self, kind: Kind, name: str) -> Declared[Any]:
        everything = self._all(kind)
        origin, colon, bare = name.rpartition(":")
        found = [item for item in everything if item.name == bare]
        if colon:
            by_distribution = [i for i in found if normalise(i.distribution) == normalise(origin)]
            found = by_distribution or [
                i for i in found if normalise(i.plugin) == normalise(origin)
            ]
        if len(found) == 1:
            return found[0]
        if found:
            sides = " and ".join(f"{i.distribution} (plugin {i.plugin})" for i in found)
            forms = " or ".join(i.qualified_name for i in found)
            raise UsageError(f"{kind} {name!r} is declared by {sides}: write {forms}")
        self._raise_if_refused(kind, origin, bare)
        known = {i.name for i in everything} | {i.qualified_name for i in everything}
        hint = close_matches(name, known)
        if not hint:
            names = sorted({i.name for i in everything})
            hint = f"; {kind}s are {', '.join(names)}" if names else f"; no {kind} is installed"
        failed = [record.name for record in self._records.values() if record.status == "failed"]
        if failed:
            hint += f" (failed plugins: {', '.join(failed)}; see `vbkit plugins`)"
        raise UsageError(f"unknown {kind} {name!r}{hint}")

    def _raise_if_refused(self, kind: Kind, origin: str, bare: str) -> None:
        for refused_kind, name, record, why in self._refused:
            if (refused_kind, name) == (kind, bare) and _matches(record, origin):
                raise PluginError(f"plugin {record.label}: {why}")
        for record in self._records.values():
            if normalise(record.name) != normalise(bare) or not _matches(record, origin):
                continue
            if record.status == "failed":
                raise PluginError(
                    f"{kind} {bare}: plugin {record.label} failed: {record.error}"
                )
            if record.status == "disabled":
                raise PluginError(
                    f"{kind} {bare}: plugin {record.label} is disabled by {DISABLE_VARIABLE}"
                )

    def _report(self) -> None:
        """One line for each failed plugin, once a process."""
        with self._lock:
            for record in self._records.values():
                key = (record.distribution, record.name)
                if record.status == "failed" and key not in _reported:
                    _reported.add(key)
                    _log.error("plugin %s failed: %s", record.label, record.error)

    # Calling

    def notify(self, hook_name: str, **arguments: Any) -> None:
        """Call every implementation of the observer `hook_name`, each in its own try.

        One that raises is logged, the first time as a warning, and changes nothing. Each gets its
        own copies of the DataFrames in an argument `tables`.

        Raises:
            ValueError: `hook_name` is no observer, or `arguments` are not those of its
                specification.
            PluginError: under VBKIT_STRICT, an observer raised.
        """
        if hook_name not in _OBSERVERS:
            raise ValueError(f"{hook_name!r} is none of {', '.join(sorted(_OBSERVERS))}")
        caller = getattr(self._pluggy.hook, hook_name)
        if set(arguments) != set(caller.spec.argnames):
            raise ValueError(f"{hook_name} takes {', '.join(caller.spec.argnames)}")
        for record, call in self._implementations(hook_name):
            own = dict(arguments)
            if isinstance(own.get("tables"), Mapping):
                own["tables"] = {name: table.copy() for name, table in own["tables"].items()}
            try:
                call(own)
            except (Exception, SystemExit) as error:
                self._call_failed(hook_name, record, error)

    def open_video(self, source: Path, options: Mapping[str, Any]) -> VideoReader | None:
        """The first reader that a plugin gives for `source`, or None where all decline.

        An implementation that raises, other than a `VbkitError` about the source, or returns what
        is no reader is logged and passed over.

        Raises:
            VbkitError: a plugin recognised the source and says why it cannot be read.
            PluginError: under VBKIT_STRICT, an implementation failed.
        """
        for record, call in self._implementations("vbkit_open_video"):
            try:
                reader = call({"source": source, "options": options})
                if reader is None:
                    continue
                if not callable(getattr(reader, "frames_at", None)):
                    raise TypeError(f"returned {type(reader).__name__}, which is no VideoReader")
            except VbkitError:
                raise
            except (Exception, SystemExit) as error:
                self._call_failed("vbkit_open_video", record, error)
                continue
            return reader
        return None

    def implements(self, hook_name: str) -> bool:
        """Whether any plugin implements a hook."""
        return any(True for _ in self._implementations(hook_name))

    def _implementations(
        self, hook_name: str
    ) -> Iterator[tuple[PluginRecord, Callable[[Mapping[str, Any]], Any]]]:
        self.load()
        caller = getattr(self._pluggy.hook, hook_name)
        for implementation in reversed(caller.get_hookimpls()):  # pluggy keeps the first one last
            record = self._records.get(implementation.plugin_name)
            if record is None:
                continue

            def call(arguments: Mapping[str, Any], implementation: Any = implementation) -> Any:
                names = implementation.argnames
                return implementation.function(*[arguments[name] for name in names])

            yield record, call

    def _call_failed(self, hook_name: str, record: PluginRecord, error: BaseException) -> None:
        message = f"plugin {record.label}, {hook_name}: {_one_line(error)}"
        if strict():
            raise PluginError(message) from error
        key = (record.label, hook_name)
        level = logging.DEBUG if key in self._failed_calls else logging.WARNING
        self._failed_calls.add(key)
        _log.log(level, "%s (ignored)", message)


def check_tables(tasks: Iterable[Declared[TaskSpec] | TaskSpec]) -> None:
    """Check that no two different tasks of one run write a table of the same name.

    Raises:
        UsageError: two do. The message names both and the table.
    """
    writers: dict[str, tuple[str, TaskSpec]] = {}
    for task in tasks:
        spec = task if isinstance(task, TaskSpec) else task.spec
        label = spec.name if isinstance(task, TaskSpec) else task.qualified_name
        for table in spec.tables:
            other, other_spec = writers.setdefault(table.name, (label, spec))
            if other_spec != spec or other != label:
                raise UsageError(
                    f"tasks {other} and {label} both write the table {table.name}: "
                    "run them into two results folders"
                )


@cache
def default_manager() -> PluginManager:
    """The manager of the installed plugins, one a process (`default_manager.cache_clear()`)."""
    return _used[-1] if _used else PluginManager()


_used: list[PluginManager] = []


@contextmanager
def use_manager(manager: PluginManager) -> Iterator[PluginManager]:
    """Meanwhile, `default_manager` gives `manager`; for tests."""
    _used.append(manager)
    default_manager.cache_clear()
    try:
        yield manager
    finally:
        _used.pop()
        default_manager.cache_clear()


def normalise(name: str) -> str:
    """A distribution's name as PEP 503 compares it; `""` stays empty."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _matches(record: PluginRecord, origin: str) -> bool:
    return not origin or normalise(origin) in (
        normalise(record.distribution), normalise(record.name)
    )


def _is_of(item: Declared[Any], record: PluginRecord) -> bool:
    return (item.plugin, item.distribution) == (record.name, record.distribution)


def _distribution(entry_point: EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that an entry point belongs to."""
    distribution = entry_point.dist
    if distribution is None:
        return entry_point.value.partition(":")[0].partition(".")[0], ""
    try:
        return distribution.name, distribution.version
    except Exception:  # broken metadata must not end discovery
        return entry_point.name, ""


def _consume(hook_name: str, wanted: type, result: Any) -> list[Any]:
    """The declarations of one implementation, checked."""
    if result is None or isinstance(result, (str, bytes)) or not isinstance(result, Iterable):
        what = repr(result) if result is None else type(result).__name__
        raise TypeError(f"{hook_name} must give {wanted.__name__} objects in a list, got {what}")
    specs = list(result)
    for spec in specs:
        if not isinstance(spec, wanted):
            raise TypeError(
                f"{hook_name} must give {wanted.__name__} objects, got {type(spec).__name__}"
            )
    return specs


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, VbkitError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
