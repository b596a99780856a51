from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbkit import NoOptions, option
from vbkit.errors import OptionError, PluginError, UsageError
from vbkit.options import (
    check_options_type,
    options_help,
    options_json,
    parse_options,
    split_assignments,
)


class Mode(enum.Enum):
    FAST = "fast"
    EXACT = "exact"


@dataclass(frozen=True)
class Options:
    threshold: float = option(0.5, help="least score")
    count: int = option(3, help="how many")
    strict: bool = False
    title: str = "a title"
    language: str | None = None
    limit: int | None = None
    level: Literal["low", "high"] = "low"
    width: Literal[1, 2] = 1
    mode: Mode = Mode.FAST
    labels: tuple[str, ...] = ("a", "b")
    weights: tuple[float, ...] = ()
    policy: Path | None = None


@dataclass(frozen=True)
class Required:
    path: Path
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} is not between 0 and 1")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("threshold", "0.25", 0.25),
        ("threshold", "1", 1.0),
        ("threshold", "-inf", float("-inf")),
        ("count", " 7 ", 7),
        ("strict", "Yes", True),
        ("strict", "0", False),
        ("title", "none", "none"),
        ("title", "", ""),
        ("title", "a=b", "a=b"),
        ("language", "none", None),
        ("language", "de", "de"),
        ("limit", "", None),
        ("limit", "5", 5),
        ("level", "high", "high"),
        ("width", "2", 2),
        ("mode", "exact", Mode.EXACT),
        ("mode", "EXACT", Mode.EXACT),
        ("labels", "x, y,z", ("x", "y", "z")),
        ("labels", "", ()),
        ("weights", "1,2.5", (1.0, 2.5)),
        ("policy", "policy.yaml", Path("policy.yaml")),
        ("policy", "none", None),
    ],
)
def test_text_is_parsed(name: str, text: str, value: object) -> None:
    parsed = getattr(parse_options(Options, {name: text}), name)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("threshold", "high", "float"),
        ("threshold", "nan", "float"),
        ("threshold", True, "float"),
        ("threshold", None, "float"),
        ("threshold", 10**400, "float"),
        ("count", "1.5", "int"),
        ("count", 1.5, "int"),
        ("count", True, "int"),
        ("strict", "maybe", "true | false"),
        ("strict", 1, "true | false"),
        ("title", 3, "text"),
        ("limit", "many", "int | none"),
        ("level", "middle", "low | high"),
        ("width", True, "1 | 2"),
        ("mode", "slow", "fast | exact"),
        ("labels", [1], "list of text"),
        ("labels", {"a"}, "list of text"),
        ("weights", "1,x", "list of float"),
        ("policy", 3, "path | none"),
    ],
)
def test_a_wrong_value_names_option_value_and_what_is_wanted(
    name: str, value: object, wanted: str
) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options(Options, {name: value}, "moderation")
    message = str(caught.value)
    assert f"moderation.{name}" in message
    assert repr(value) in message
    assert wanted in message


def test_values_from_python_are_taken_as_they_are() -> None:
    given_values = {"threshold": 1, "labels": ["x"], "policy": Path("p"), "mode": Mode.EXACT,
                    "limit": None, "count": np.int64(4), "weights": (np.float32(0.5), 1)}
    parsed = parse_options(Options, given_values)
    assert parsed == Options(threshold=1.0, labels=("x",), policy=Path("p"), mode=Mode.EXACT,
                             count=4, weights=(0.5, 1.0))
    assert type(parsed.count) is int


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_options(Options, {"policy": "~/p.yaml"}).policy == tmp_path / "p.yaml"


def test_an_unknown_option_gets_close_matches() -> None:
    with pytest.raises(OptionError, match=r"qa\.treshold; did you mean 'threshold'"):
        parse_options(Options, {"treshold": "1"}, "qa")
    with pytest.raises(OptionError, match="there are no options"):
        parse_options(NoOptions, {"x": "1"}, "qa")


def test_required_options_and_the_class_own_check() -> None:
    with pytest.raises(OptionError, match=r"t\.path is required: give path"):
        parse_options(Required, {}, "t")
    with pytest.raises(OptionError, match="options of t: threshold 2"):
        parse_options(Required, {"path": "x", "threshold": "2"}, "t")


def test_assignments_are_sorted_by_task() -> None:
    assert split_assignments(["a.x=1", "a.y=b=c", "my-dist:a.x=2", "a.x=3", "acme.v:t.o="]) == {
        "a": {"x": "3", "y": "b=c"}, "my-dist:a": {"x": "2"}, "acme.v:t": {"o": ""},
    }


@pytest.mark.parametrize("text", ["", "a", "a.b", "a=1", ".b=1", "a.=1", "=1", "=a.b"])
def test_a_malformed_assignment_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match=r"task\.option=value"):
        split_assignments([text])


def test_help_has_types_defaults_and_meanings() -> None:
    entries = {entry.name: entry for entry in options_help(Options)}
    assert list(entries) == list(Options.__dataclass_fields__)
    assert entries["threshold"] == ("threshold", "float", "0.5", "least score")
    assert entries["language"][1:3] == ("text | none", "none")
    assert entries["level"][1:3] == ("low | high", "low")
    assert entries["labels"].default == "a,b"
    assert entries["mode"][1:3] == ("fast | exact", "fast")
    assert options_help(Required)[0].default == "required"
    assert options_help(NoOptions) == []


def test_every_default_in_the_help_is_a_value_that_can_be_given() -> None:
    texts = {entry.name: entry.default for entry in options_help(Options)}
    assert parse_options(Options, texts) == Options()


def test_equal_options_have_equal_json() -> None:
    assert options_json(Options(threshold=1)) == options_json(Options(threshold=1.0))
    assert options_json(Options()) != options_json(Options(count=4))
    assert list(json.loads(options_json(Options()))) == sorted(Options.__dataclass_fields__)


@given(
    st.builds(
        Options,
        threshold=st.floats(allow_nan=False), count=st.integers(), strict=st.booleans(),
        title=st.text(), limit=st.none() | st.integers(), level=st.sampled_from(["low", "high"]),
        language=st.none() | st.text().filter(lambda s: s.strip().lower() not in
                                              ("", "none", "null")),
        width=st.sampled_from([1, 2]), mode=st.sampled_from(Mode),
        labels=st.lists(st.text()).map(tuple),
        weights=st.lists(st.floats(allow_nan=False)).map(tuple),
        policy=st.none() | st.from_regex(r"[a-m][a-z/. ]{0,8}", fullmatch=True).map(Path),
    )
)
def test_json_round_trip(options: Options) -> None:
    assert parse_options(Options, json.loads(options_json(options))) == options


@given(st.dictionaries(st.sampled_from(list(Options.__dataclass_fields__)), st.text()))
def test_any_text_is_parsed_or_refused(values: dict[str, str]) -> None:
    try:
        parsed = parse_options(Options, values)
    except OptionError:
        return
    check_options_type(type(parsed))
    assert parse_options(Options, json.loads(options_json(parsed))) == parsed


def test_types_and_defaults_are_checked_where_they_are_declared() -> None:
    @dataclass(frozen=True)
    class BadType:
        table: dict[str, int] = field(default_factory=dict)

    @dataclass(frozen=True)
    class BadDefault:
        count: int = option("three", help="")

    @dataclass
    class Thawed:
        count: int = 3

    check_options_type(Options)
    with pytest.raises(PluginError, match=r"BadType\.table: options cannot have the type"):
        check_options_type(BadType)
    with pytest.raises(PluginError, match=r"BadDefault\.count: the default 'three' is not int"):
        check_options_type(BadDefault)
    with pytest.raises(PluginError, match="frozen dataclass"):
        check_options_type(Thawed)
