"""Which speech to text listens, with which options."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from vbkit.errors import PluginError, UsageError, VbkitError
from vbkit.media.speech import SpeechToText
from vbkit.media.types import Transcriber
from vbkit.options import options_json, parse_options
from vbkit.plugins import Declared, PluginManager, strict
from vbkit.specs import TranscriberSpec, load_object

__all__ = ["check_transcriber", "choose_transcriber", "split_options"]

Options = Mapping[str, Mapping[str, Any]]

logger = logging.getLogger("vbkit")


def split_options(manager: PluginManager, tasks: Sequence[str],
                  options: Options) -> tuple[dict[str, Mapping[str, Any]],
                                             dict[str, Mapping[str, Any]]]:
    """Options of tasks, and of transcribers. A name that both have is the task's, if it runs."""
    asked = {name.rpartition(":")[2] for name in tasks}
    heard = {declared.name for declared in manager.transcribers()}
    of_tasks: dict[str, Mapping[str, Any]] = {}
    of_speech: dict[str, Mapping[str, Any]] = {}
    for name, values in options.items():
        bare = name.rpartition(":")[2]
        speaks = bare not in asked and bare in heard
        (of_speech if speaks else of_tasks)[name] = values
    return of_tasks, of_speech


def check_transcriber(
    manager: PluginManager, options: Options, device: str = "cpu"
) -> tuple[Declared[TranscriberSpec], Any, Transcriber]:
    """The transcriber that `options` name: what declared it, its options, and itself.

    Raises:
        UsageError: there is no such transcriber, or more than one is named, or an option is wrong.
        PluginError: it fails.
    """
    if len(options) > 1:
        raise UsageError(f"options are given for {' and '.join(options)}: choose one of them to "
                         "listen")
    name, values = next(iter(options.items()))
    declared = manager.get_transcriber(name)
    parsed: Any = parse_options(declared.spec.options, values, task=declared.name)
    try:
        return declared, parsed, load_object(declared.spec.factory)(parsed, device)
    except VbkitError:
        raise
    except Exception as error:
        raise PluginError(f"speech to text {declared.name} cannot be used: "
                          f"{type(error).__name__}: {error}") from error


def choose_transcriber(manager: PluginManager, options: Options,
                       device: str) -> SpeechToText | str | None:
    """The transcriber that `options` name, else the first that can work without a download.

    Args:
        manager: the plugins.
        options: name of a transcriber to option name to value; for at most one.
        device: of the engine.

    Returns:
        It, not started yet; or in words what each lacks; or None where none is declared.

    Raises:
        UsageError, PluginError, ModelError: what is named cannot be used.
    """
    if options:
        declared, parsed, transcriber = check_transcriber(manager, options, device)
        missing = transcriber.missing()
        if missing is not None:
            raise UsageError(f"{declared.name}: {missing}")
        return _speech(declared, parsed, transcriber, device)
    lacking = []
    for declared in sorted(manager.transcribers(), key=lambda d: d.name):
        try:
            parsed = declared.spec.options()
            transcriber = load_object(declared.spec.factory)(parsed, device)
            missing = transcriber.missing()
            if missing is None:
                return _speech(declared, parsed, transcriber, device)
            lacking.append(f"{declared.name}: {missing}")
        except Exception as error:
            if strict():
                raise
            logger.warning("speech to text %s cannot be used: %s", declared.name, error)
    return "; ".join(lacking) or None


def _speech(declared: Declared[TranscriberSpec], options: Any, transcriber: Transcriber,
            device: str) -> SpeechToText:
    kind = type(options)
    return SpeechToText(
        declared.name, declared.spec.factory, f"{kind.__module__}:{kind.__qualname__}",
        options_json(options), device, identity=transcriber.prepare())
