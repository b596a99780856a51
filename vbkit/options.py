"""Typed options: `-o task.option=value` into a frozen data class, and back into help and JSON.

An options class is a frozen data class whose fields are `str`, `int`, `float`, `bool`, `Path`,
`Literal[...]`, an `Enum`, a `tuple[X, ...]` of these, or a union of these with or without `None`.
Text is parsed; other values (from Python) are checked. Importing this module is cheap.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import math
import os
import types
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as _get_type_hints

from vbkit.errors import OptionError, PluginError

__all__ = [
    "OptionHelp",
    "check_options_type",
    "close_matches",
    "options_help",
    "options_json",
    "parse_options",
    "split_assignments",
]

T = TypeVar("T")

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_NONE = frozenset({"none", "null", ""})
_SCALARS = (str, int, float, bool, Path)


class OptionHelp(NamedTuple):
    """One option, for people: its name, type, default and meaning, all as text."""

    name: str
    type: str
    default: str
    help: str


def close_matches(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` where `known` holds something close to `name`, else `""`."""
    found = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def split_assignments(assignments: Iterable[str]) -> dict[str, dict[str, str]]:
    """Sort `["moderation.threshold=0.4", ...]` into `{"moderation": {"threshold": "0.4"}}`.

    The task may be written `distribution:task`. Of two values for one option the last one counts.

    Raises:
        OptionError: an assignment is not of the form `task.option=value`.
    """
    sorted_out: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        task, dot, name = key.strip().rpartition(".")
        if not (equals and dot and task and name):
            raise OptionError(f"option {assignment!r}: write it as task.option=value")
        sorted_out.setdefault(task, {})[name] = value
    return sorted_out


def parse_options(options_type: type[T], values: Mapping[str, Any], task: str = "") -> T:
    """An instance of `options_type` with `values`, and its defaults for the rest.

    Text is parsed: `true/false`, `yes/no`, `on/off` and `1/0` are booleans, `none` is None where
    the type allows it, a tuple is separated by commas, an enumeration's member is given by its name
    or value, `~` in a path is the home folder. Values of other types must fit the field's type;
    an int fits a float, a list fits a tuple.

    Args:
        options_type: a frozen data class.
        values: option name -> value.
        task: the task's name, for messages.

    Raises:
        OptionError: an option is unknown, missing or has a value that does not fit.
    """
    prefix = f"{task}." if task else ""
    kinds = _kinds(options_type)
    unknown = [name for name in values if name not in kinds]
    if unknown:
        has = f"options are {', '.join(kinds)}" if kinds else "there are no options"
        raise OptionError(
            f"unknown option {prefix}{unknown[0]}{close_matches(str(unknown[0]), kinds)} ({has})"
        )
    converted: dict[str, Any] = {}
    for name, value in values.items():
        try:
            converted[name] = _convert(kinds[name], value)
        except ValueError:
            raise OptionError(
                f"option {prefix}{name}: {value!r} is not valid, give {_type_text(kinds[name])}"
            ) from None
    missing = [name for name in kinds if name not in converted and _required(options_type, name)]
    if missing:
        raise OptionError(
            f"option {prefix}{missing[0]} is required: give {_type_text(kinds[missing[0]])}"
        )
    try:
        return options_type(**converted)
    except (OptionError, ValueError, TypeError) as error:  # the class's own __post_init__
        raise OptionError(f"options of {task or options_type.__name__}: {error}") from error


def options_help(options_type: type) -> list[OptionHelp]:
    """Name, type, default and help of each option, in the order of declaration."""
    out = []
    kinds = _kinds(options_type)
    for field in _fields(options_type):
        if _required(options_type, field.name):
            default = "required"
        else:
            default = _text(_default(field))
        out.append(
            OptionHelp(
                field.name,
                _type_text(kinds[field.name]),
                default,
                str(field.metadata.get("help", "")),
            )
        )
    return out


def options_json(instance: Any) -> str:
    """The options as JSON with sorted keys: equal options give equal text, for fingerprints.

    `parse_options(type(instance), json.loads(text))` gives the same options again (a text field
    that may be None must not hold the word `none`).
    """
    kinds = _kinds(type(instance))
    values = {name: _plain(_convert(kind, getattr(instance, name), text=False))
              for name, kind in kinds.items()}
    return json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def check_options_type(options_type: type) -> None:
    """Check that every field has a type that options can have, and a default that fits it.

    Raises:
        PluginError: it is no frozen data class, or a field breaks these rules.
    """
    for field in _fields(options_type):
        kind = _kinds(options_type)[field.name]
        _check_kind(options_type, field.name, kind)
        if not _required(options_type, field.name):
            default = _default(field)
            try:
                _convert(kind, default, text=False)
            except ValueError:
                raise PluginError(
                    f"{options_type.__name__}.{field.name}: the default {default!r} is not "
                    f"{_type_text(kind)}"
                ) from None


def _fields(options_type: type) -> list[dataclasses.Field[Any]]:
    parameters = getattr(options_type, "__dataclass_params__", None)
    if not isinstance(options_type, type) or parameters is None or not parameters.frozen:
        raise PluginError(f"options must be a frozen dataclass, got {options_type!r}")
    return [field for field in dataclasses.fields(options_type) if field.init]


def _kinds(options_type: type) -> dict[str, Any]:
    fields = _fields(options_type)
    try:
        hints = _get_type_hints(options_type)
    except Exception as error:  # annotations are code, and may raise anything
        raise PluginError(f"{options_type.__name__}: cannot read its types: {error}") from error
    return {field.name: hints[field.name] for field in fields}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _required(options_type: type, name: str) -> bool:
    field = options_type.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def _members(kind: Any) -> tuple[Any, ...]:
    """The members of a union, None last (so that text is None only where nothing else fits)."""
    members = get_args(kind)
    return tuple(sorted(members, key=lambda member: member is type(None)))


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _check_kind(options_type: type, name: str, kind: Any) -> None:
    if kind in _SCALARS or kind is type(None) or _is_enum(kind) or get_origin(kind) is Literal:
        return
    if _is_union(kind):
        for member in get_args(kind):
            _check_kind(options_type, name, member)
        return
    if get_origin(kind) is tuple and len(get_args(kind)) == 2 and get_args(kind)[1] is Ellipsis:
        _check_kind(options_type, name, get_args(kind)[0])
        return
    raise PluginError(
        f"{options_type.__name__}.{name}: options cannot have the type {kind!r}; use str, int, "
        "float, bool, Path, Literal, Enum, tuple[X, ...] or a union of these and None"
    )


def _convert(kind: Any, value: Any, text: bool = True) -> Any:
    """`value` as `kind`; a string is parsed where `text`. ValueError where it does not fit."""
    if _is_union(kind):
        return _convert_union(kind, value, text)
    if get_origin(kind) is Literal:
        return _convert_literal(kind, value, text)
    if get_origin(kind) is tuple:
        return _convert_tuple(get_args(kind)[0], value, text)
    if kind is type(None):
        if value is None or (text and isinstance(value, str) and value.strip().lower() in _NONE):
            return None
    elif _is_enum(kind):
        return _convert_enum(kind, value, text)
    elif isinstance(value, str):
        return _convert_text(kind, value, text)
    elif isinstance(value, bool):
        if kind is bool:
            return value
    elif kind is float and isinstance(value, Real):
        return _number(value)
    elif kind is int and isinstance(value, Integral):
        return int(value)
    elif kind is Path and isinstance(value, Path):
        return Path(os.path.expanduser(value))
    raise ValueError


def _number(value: Any) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ValueError from None
    if math.isnan(number):
        raise ValueError
    return number


def _convert_text(kind: Any, value: str, text: bool) -> Any:
    if kind is str:
        return value
    if not text:
        raise ValueError
    if kind is Path and value and "\0" not in value:
        return Path(os.path.expanduser(value))
    stripped = value.strip()
    if kind is bool and stripped.lower() in _TRUE | _FALSE:
        return stripped.lower() in _TRUE
    if kind is int:
        return int(stripped)
    if kind is float:
        return _number(stripped)
    raise ValueError


def _convert_union(kind: Any, value: Any, text: bool) -> Any:
    optional = type(None) in get_args(kind)
    if optional and value is None:
        return None
    if optional and text and isinstance(value, str) and value.strip().lower() in _NONE:
        return None
    for member in _members(kind):
        try:
            return _convert(member, value, text)
        except ValueError:
            continue
    raise ValueError


def _convert_literal(kind: Any, value: Any, text: bool) -> Any:
    choices = get_args(kind)
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    if text and isinstance(value, str):
        for choice in choices:
            if _text(choice) == value.strip():
                return choice
    raise ValueError


def _convert_tuple(kind: Any, value: Any, text: bool) -> tuple[Any, ...]:
    if isinstance(value, str):
        if not text:
            raise ValueError
        value = [part.strip() for part in value.split(",")] if value.strip() else []
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return tuple(_convert(kind, part, text) for part in value)


def _convert_enum(kind: type[enum.Enum], value: Any, text: bool) -> enum.Enum:
    if isinstance(value, kind):
        return value
    if not text:
        raise ValueError
    for member in kind:
        if value == member.name:
            return member
    for member in kind:
        same_type = type(member.value) is type(value)
        if (same_type and member.value == value) or str(member.value) == value:
            return member
    raise ValueError


def _plain(value: Any) -> Any:
    """A value that JSON can hold and `_convert` reads back."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return value.value if isinstance(value.value, str) else value.name
    if isinstance(value, tuple):
        return ",".join(_text(part) for part in value)
    return str(value)


def _type_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(_text(choice) for choice in get_args(kind))
    if _is_union(kind):
        return " | ".join(_type_text(member) for member in _members(kind))
    if get_origin(kind) is tuple:
        return f"list of {_type_text(get_args(kind)[0])}, comma separated"
    if _is_enum(kind):
        return " | ".join(_text(member) for member in kind)
    if kind is bool:
        return "true | false"
    if kind is type(None):
        return "none"
    return {str: "text", int: "int", float: "float", Path: "path"}.get(kind, str(kind))
