"""What a condition rules out is left unread; what is left unread never changes a result."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbkit.errors import StoreError, UsageError
from vbkit.store import ResultStore, load_table, query
from vbkit.store.layout import file_name
from vbkit.store.pushdown import Bound, pinned, row_groups
from vbkit.store.sql import condition
from vbkit.tables import Column, TableSchema

T = TableSchema("t", (
    Column("score", "float64", nullable=True),
    Column("n", "int64", nullable=True),
    Column("label", "string", nullable=True),
    Column("seen", "timestamp", nullable=True),
))
NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


def spoil(path: Path, column: str | None = None) -> None:
    """Damage the values of a column, or of all, and leave the footer as it is."""
    footer = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in range(footer.num_row_groups):
        for number in range(footer.num_columns):
            chunk = footer.row_group(group).column(number)
            if column in (None, chunk.path_in_schema):
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                size = chunk.total_compressed_size
                content[start : start + size] = b"\xff" * size
    path.write_bytes(content)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The rows of `low` and of `null` cannot be read."""
    store = ResultStore(tmp_path)
    for video, score, label in (("low", 0.1, "a"), ("high", 0.9, "c"), ("null", None, None)):
        rows = [{"score": score, "n": None if score is None else int(score * 10) + i,
                 "label": label, "seen": NOON} for i in range(3)]
        store.write(T, video, T.frame(rows), fingerprint="f")
    spoil(tmp_path / "tables" / "t" / file_name("low"))
    spoil(tmp_path / "tables" / "t" / file_name("null"))
    with pytest.raises(StoreError, match="cannot be read"):
        load_table(tmp_path, "t")
    return tmp_path


@pytest.mark.parametrize("where", [
    "score > 0.5", "0.5 <= score", "score BETWEEN 0.8 AND 1", "SCORE = 0.9", "t.score > 0.5",
    "label = 'c'", "label > 'b' AND n IN (9, 10, 11)", "n IN (9, 10, 11, 50) AND seen IS NOT NULL",
    "video_id = 'high'", "video_id IN ('high', 'nobody') AND (score < 0 OR score > 0)",
    {"label": "c"}, {"video_id": "high"}, {"n": [9, 10, 11]}, {"score": 0.9, "seen": NOON},
])
def test_rows_that_are_ruled_out_are_not_read(out: Path, where: Any) -> None:
    assert load_table(out, "t", where=where)["n"].tolist() == [9, 10, 11]
    if isinstance(where, str):
        assert query(out, f"SELECT n FROM t WHERE {where}")["n"].tolist() == [9, 10, 11]


@pytest.mark.parametrize("where", [
    "score > 0.5 OR n > 0", "NOT score > 0.5", "label LIKE 'c%'", "score * 2 > 1",
    "score > 0.5 AND score >= (SELECT max(score) FROM t)", {"label": [None, "c"]},
])
def test_what_does_not_rule_out_rows_reads_them(out: Path, where: Any) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        load_table(out, "t", where=where)


def test_columns_that_are_not_asked_for_are_not_read(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write(T, "a", T.frame([{"score": 0.5, "n": 1, "label": "x", "seen": NOON}]),
                fingerprint="f")
    spoil(tmp_path / "tables" / "t" / file_name("a"), "label")
    assert load_table(tmp_path, "t", ["n"])["n"].tolist() == [1]
    assert load_table(tmp_path, "t", ["n"], where="score < 1")["n"].tolist() == [1]
    assert load_table(tmp_path, "t", ["n"], where={"score": 0.5})["n"].tolist() == [1]
    for sql in ("SELECT n AS m FROM t ORDER BY m", "SELECT count(*) FROM t",
                "SELECT avg(a.n) FROM t a JOIN t b USING (video_id) WHERE a.N > 0",
                "WITH x AS (SELECT n FROM t) SELECT max(n) FROM x"):
        assert query(tmp_path, sql).iat[0, 0] == 1
    for sql in ("SELECT * FROM t", "SELECT t FROM t", "SELECT x FROM t AS x", "SUMMARIZE t",
                "SELECT COLUMNS('l.*') FROM t", "SELECT n FROM t a NATURAL JOIN t b"):
        with pytest.raises(StoreError, match="cannot be read"):
            query(tmp_path, sql)


def test_row_groups_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    data = pa.table({"n": [1, 2, 3, 4, None, None, 7, None]})
    pq.write_table(data, path, row_group_size=2)
    footer = pq.read_metadata(path)
    assert row_groups(footer, [Bound("n", (3,))]) == [1]
    assert row_groups(footer, [Bound("n", low=2)]) == [0, 1, 3]
    assert row_groups(footer, [Bound("n", high=2)]) == [0]
    assert row_groups(footer, [Bound("n", (), null=True)]) == [2, 3]
    assert row_groups(footer, [Bound("n", ("3",))]) == [0, 1, 3]  # cannot be compared
    assert row_groups(footer, [Bound("m", (3,))]) == [0, 1, 2, 3]
    assert row_groups(footer, []) == [0, 1, 2, 3]


def test_an_id_that_is_compared_as_a_number_pins_no_file(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write(T, "05", T.frame([{"n": 1}]), fingerprint="f")
    assert load_table(tmp_path, "t", where="video_id = 5")["n"].tolist() == [1]
    paths = [tmp_path / file_name(name) for name in ("a", "b")]
    assert pinned(paths, [Bound("video_id", ("b",))]) == paths[1:]
    assert pinned(paths, [Bound("video_id", ("b",), null=True)]) == paths


def test_columns_of_files_that_are_not_opened(tmp_path: Path) -> None:
    """A video that was written before a column was added has it, as NULL, when asked for alone."""
    store = ResultStore(tmp_path)
    names = [f"v{i}" for i in range(5)]
    for version, name in enumerate(names):
        schema = TableSchema("t", (*T.columns, Column(f"c{version}", "int64")), version=version)
        store.write(schema, name, schema.frame([{"n": 1, f"c{version}": version}]), fingerprint="f")
    for asked in ("c0", "c2", "c4"):
        rows = load_table(tmp_path, "t", ["video_id", asked], where={"video_id": "v2"})
        assert str(rows[asked].dtype) == "Int64"
        assert rows[asked].isna().tolist() == [asked != "c2"]
        rows = load_table(tmp_path, "t", [asked], where="video_id = 'v2' AND n = 1")
        assert len(rows) == 1
    assert load_table(tmp_path, "t", ["n"], where="video_id = 'v2' AND c3 IS NULL")["n"][0] == 1
    with pytest.raises(UsageError, match="no column 'c9'"):
        load_table(tmp_path, "t", ["c9"], where={"video_id": "v2"})


numbers = st.one_of(st.none(), st.integers(-3, 3))
fractions = st.one_of(st.none(), st.sampled_from([-0.1, 0.0, 0.1, 0.3, 1 / 3, 1e300, math.inf]))
texts = st.one_of(st.none(), st.sampled_from(["", "a", "b", "ä", "ab", "日本"]))
literals = {
    "n": st.integers(-4, 4).map(str),
    "score": st.sampled_from(["-0.1", "0", "0.1", "0.3", "0.333", "1e300", "0.30000000000000004"]),
    "label": st.sampled_from(["''", "'a'", "'b'", "'ä'", "'日本'", "'zz'"]),
}


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    column = draw(st.sampled_from(sorted(literals)))
    value = literals[column]
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return f"{column} BETWEEN {draw(value)} AND {draw(value)}"
    if kind == 1:
        return f"{column} IN ({draw(value)}, {draw(value)})"
    if kind == 2:
        return f"{column} IS {draw(st.sampled_from(['', 'NOT ']))}NULL"
    sides = [column, draw(value)]
    if kind == 3:
        sides.reverse()
    return draw(st.sampled_from(["=", "<", "<=", ">", ">=", "<>"])).join(sides)


@settings(deadline=None, max_examples=15)
@given(
    videos=st.lists(st.lists(st.tuples(fractions, numbers, texts), max_size=3), min_size=1,
                    max_size=4),
    parts=st.lists(comparisons(), min_size=1, max_size=3),
    glue=st.sampled_from([" AND ", " OR "]),
)
def test_push_down_changes_no_result(tmp_path_factory: pytest.TempPathFactory, videos: list[Any],
                                     parts: list[str], glue: str) -> None:
    out = tmp_path_factory.mktemp("out")
    store = ResultStore(out)
    for number, rows in enumerate(videos):
        frame = T.frame({"score": s, "n": n, "label": t} for s, n, t in rows)
        store.write(T, f"v{number}", frame, fingerprint="f")
    where = glue.join(parts)
    # The subquery keeps conditions from being pushed down.
    expected = query(out, f"SELECT * FROM (SELECT * FROM t) WHERE {where}")
    found = load_table(out, "t", where=where)
    pd.testing.assert_frame_equal(found, expected.astype(found.dtypes.to_dict()))
    narrow = load_table(out, "t", ["video_id"], where=where)
    assert narrow["video_id"].tolist() == found["video_id"].tolist()


def test_conditions_that_are_none() -> None:
    for where in ("score >", "1 = 1); COPY t TO 'x'; --", "x" * 1_000, "(" * 20):
        columns, bounds = condition(where, "t")
        assert bounds == ()
        assert columns is None or where[0] == "x"
