"""Table schemas: what fits a column, and that nothing is changed to make it fit."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbkit.errors import SchemaError
from vbkit.tables import CORE_TABLES, DTYPES, Column, TableSchema

SCHEMA = TableSchema(
    "things",
    (
        Column("name", "string", doc="what it is called"),
        Column("start_s", "float64", "s", nullable=True),
        Column("count", "int64"),
        Column("rank", "int64", nullable=True),
        Column("chosen", "bool"),
        Column("seen", "timestamp", nullable=True),
    ),
)

ROW: dict[str, Any] = {
    "name": "a", "start_s": 1.5, "count": 2, "rank": None, "chosen": True,
    "seen": dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC),
}


def one(dtype: str, nullable: bool = False) -> TableSchema:
    return TableSchema("t", (Column("x", dtype, nullable=nullable),))


def test_frame_has_the_declared_dtypes():
    frame = SCHEMA.frame([ROW, {**ROW, "rank": 3, "start_s": None, "seen": None}])
    assert list(frame.columns) == list(SCHEMA.column_names)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {
        "name": "string", "start_s": "float64", "count": "int64", "rank": "Int64",
        "chosen": "bool", "seen": "datetime64[us, UTC]",
    }
    assert frame["rank"].tolist() == [pd.NA, 3]
    assert math.isnan(frame["start_s"][1])


def test_empty_has_the_same_dtypes():
    assert SCHEMA.empty().dtypes.equals(SCHEMA.frame([ROW]).dtypes)
    assert len(SCHEMA.empty()) == 0
    bare = pd.DataFrame(columns=["seen", "name", "start_s", "count", "rank", "chosen"])
    assert SCHEMA.conform(bare).dtypes.equals(SCHEMA.empty().dtypes)


def test_a_nullable_column_may_be_left_out_of_a_row_and_no_other():
    row = {key: value for key, value in ROW.items() if key not in ("rank", "seen")}
    assert SCHEMA.frame([row]).isna().loc[0, ["rank", "seen"]].all()
    del row["count"]
    with pytest.raises(SchemaError, match="column count: missing in row 1"):
        SCHEMA.frame([ROW, row])


def test_large_integers_beside_null_keep_their_value():
    frame = one("int64", True).frame([{"x": 2**53 + 1}, {"x": None}])
    assert frame["x"][0] == 2**53 + 1


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("string", 1), ("string", 1.5), ("string", b"a"), ("string", ["a"]), ("string", True),
        ("float64", "1.5"), ("float64", True), ("float64", 2**53 + 1), ("float64", 1j),
        ("float64", 10**400), ("float64", [1.0]), ("float64", np.array(1.0)),
        ("int64", 1.7), ("int64", "1"), ("int64", True), ("int64", 2**63), ("int64", math.inf),
        ("int64", np.uint64(2**63)), ("int64", np.array([1])),
        ("bool", 1), ("bool", 0.0), ("bool", "true"),
        ("timestamp", "2024-01-01"), ("timestamp", 0), ("timestamp", dt.date(2024, 1, 1)),
        ("timestamp", dt.datetime(2024, 1, 1)),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_row(dtype: str, value: object):
    good = {"string": "a", "float64": 1.0, "int64": 1, "bool": True,
            "timestamp": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}[dtype]
    with pytest.raises(SchemaError, match=rf"table t, column x \({dtype}\): row 1 holds"):
        one(dtype).frame([{"x": good}, {"x": value}])


@pytest.mark.parametrize(
    ("dtype", "series"),
    [
        ("int64", pd.Series([1.0, 1.7])),
        ("int64", pd.Series([1.0, 1.7], dtype="float32")),
        ("int64", pd.Series([1, 2**63], dtype="uint64")),
        ("int64", pd.Series([1, 1.5], dtype="Float64")),
        ("int64", pd.Series([True, False])),
        ("int64", pd.Series(["1", "2"], dtype="category")),
        ("float64", pd.Series([1, 2**53 + 1])),
        ("float64", pd.Series(["1", "2"])),
        ("bool", pd.Series([1, 0])),
        ("string", pd.Series([1, 2])),
        ("timestamp", pd.Series(pd.to_datetime(["2024-01-01", "2024-01-02"]))),
    ],
)
def test_a_column_of_another_dtype_is_an_error(dtype: str, series: pd.Series):
    with pytest.raises(SchemaError, match="column x"):
        one(dtype).conform(pd.DataFrame({"x": series}))


@pytest.mark.parametrize(
    ("dtype", "series", "expected"),
    [
        ("int64", pd.Series([1.0, 2.0]), [1, 2]),
        ("int64", pd.Series([1, 2], dtype="Int8"), [1, 2]),
        ("int64", pd.Series([1, 2], dtype="uint64"), [1, 2]),
        ("float64", pd.Series([1, 2]), [1.0, 2.0]),
        ("float64", pd.Series([0.5, 0.25], dtype="float32"), [0.5, 0.25]),
        ("float64", pd.Series([0.5, 0.25], dtype="Float32"), [0.5, 0.25]),
        ("float64", pd.Series([np.float16(0.5), 2], dtype=object), [0.5, 2.0]),
        ("string", pd.Series(["a", "b"], dtype="category"), ["a", "b"]),
        ("string", pd.Series(["a", np.str_("b")], dtype=object), ["a", "b"]),
        ("string", pd.Series(["é\udcff", "b"], dtype=object), ["é\\udcff", "b"]),
        ("bool", pd.Series([True, np.False_], dtype=object), [True, False]),
        ("bool", pd.Series([True, False], dtype="boolean"), [True, False]),
    ],
)
def test_exact_conversions(dtype: str, series: pd.Series, expected: list[Any]):
    got = one(dtype).conform(pd.DataFrame({"x": series}))["x"]
    assert got.tolist() == expected
    assert str(got.dtype) == {"string": "string"}.get(dtype, dtype)


def test_times_become_utc():
    zone = dt.timezone(dt.timedelta(hours=2))
    frame = one("timestamp").frame([{"x": dt.datetime(2024, 1, 1, 1, tzinfo=zone)},
                                    {"x": pd.Timestamp("2024-01-01", tz="UTC")}])
    assert frame["x"][0].isoformat() == "2023-12-31T23:00:00+00:00"
    assert frame["x"][1].isoformat() == "2024-01-01T00:00:00+00:00"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("null", [None, float("nan"), pd.NA, pd.NaT])
def test_null_is_kept_or_refused(dtype: str, null: object):
    got = one(dtype, True).frame([{"x": null}])["x"]
    assert got.isna().all()
    assert str(got.dtype) == DTYPES[dtype]
    with pytest.raises(SchemaError, match=r"row 0 holds .* not nullable"):
        one(dtype).frame([{"x": null}])


def test_columns_must_be_those_declared():
    frame = SCHEMA.frame([ROW])
    with pytest.raises(SchemaError, match="column count is missing; got name"):
        SCHEMA.conform(frame.drop(columns="count"))
    with pytest.raises(SchemaError, match="column cuont is not declared"):
        SCHEMA.conform(frame.assign(cuont=1))
    with pytest.raises(SchemaError, match="video_id is added by the core"):
        SCHEMA.conform(frame.assign(video_id="a"))
    with pytest.raises(SchemaError, match=r"\(row 0\): column cuont is not declared"):
        SCHEMA.frame([{**ROW, "cuont": 1}])
    with pytest.raises(SchemaError, match="column name is there twice"):
        SCHEMA.conform(pd.concat([frame, frame[["name"]]], axis=1))


def test_declarations_are_checked():
    with pytest.raises(SchemaError, match="dtype 'float'"):
        Column("x", "float")
    with pytest.raises(SchemaError, match="column name 'X'"):
        Column("X", "int64")
    with pytest.raises(SchemaError, match="declared twice"):
        TableSchema("t", (Column("x", "int64"), Column("x", "bool")))
    with pytest.raises(SchemaError, match="video_id"):
        TableSchema("t", (Column("video_id", "string"),))
    with pytest.raises(SchemaError, match="table name"):
        TableSchema("../t", ())


def test_every_core_column_has_a_meaning():
    for schema in CORE_TABLES.values():
        assert schema.doc
        assert all(column.doc for column in schema)


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(),
    st.text(max_size=5), st.binary(max_size=3), st.lists(st.integers(), max_size=2),
    st.datetimes(), st.datetimes(timezones=st.just(dt.UTC)), st.dates(),
    st.decimals(allow_nan=False),
    st.floats(width=32).map(np.float32), st.integers(0, 2**64 - 1).map(np.uint64),
    st.fractions(), st.complex_numbers(),
)


def is_null(value: object) -> bool:
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(DTYPES)), st.booleans(), st.lists(ANYTHING, max_size=4))
def test_conform_keeps_every_value_or_raises(dtype: str, nullable: bool, values: list[Any]):
    """Whatever a head returns: the same values come back, or a SchemaError; the input stays."""
    before = pd.DataFrame({"x": pd.Series(values, dtype=object, index=range(7, 7 + len(values)))})
    frame = before.copy(deep=True)
    schema = one(dtype, nullable)
    try:
        out = schema.conform(frame)
    except SchemaError:
        out = None
    assert frame["x"].dtype == object
    assert list(frame.index) == list(before.index)
    assert all(a is b or a == b or (is_null(a) and is_null(b))
               for a, b in zip(frame["x"], before["x"], strict=True))
    if out is None:
        return
    assert str(out["x"].dtype) == schema.columns[0].pandas_dtype()
    assert list(out.index) == list(range(len(values)))
    for given_value, got in zip(values, out["x"], strict=True):
        if is_null(given_value):
            assert nullable
            assert pd.isna(got)
        elif isinstance(given_value, str):
            assert got.encode() == given_value.encode("utf-8", "backslashreplace")
        else:
            assert got == given_value
            assert isinstance(given_value, (bool, np.bool_)) == isinstance(got, (bool, np.bool_))
    again = schema.conform(out)
    pd.testing.assert_frame_equal(again, out)
    if len(out) and dtype == "float64":
        again.loc[0, "x"] = -1.0
        assert out.loc[0, "x"] != -1.0 or values[0] == -1.0  # a copy, not a view


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=5))
def test_integers_survive_exactly(values: list[int | None]):
    got = one("int64", True).frame([{"x": value} for value in values])["x"]
    assert [None if pd.isna(value) else int(value) for value in got] == values


def test_importing_schemas_imports_no_pandas():
    code = "import sys, vbkit.tables, vbkit.store, vbkit.cli.tables, vbkit.cli.printing; " \
           "print([m for m in ('pandas', 'pyarrow', 'duckdb', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
