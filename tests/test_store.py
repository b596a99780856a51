"""The results folder: what is written is what is read, whole, by everything that reads Parquet."""

from __future__ import annotations

import datetime as dt
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vbkit
from vbkit.errors import SchemaError, StoreError, UsageError
from vbkit.store import ResultStore, list_tables, load_table, query
from vbkit.store.layout import file_name
from vbkit.tables import Column, TableSchema

SPANS = TableSchema(
    "spans",
    (
        Column("start_s", "float64", "s", nullable=True, doc="start"),
        Column("category", "string", doc="what is seen"),
        Column("score", "float64", doc="how sure, 0 to 1"),
        Column("segment", "int64", nullable=True, doc="transcript segment"),
        Column("rank", "int64", doc="1 is best"),
        Column("chosen", "bool", nullable=True),
        Column("seen", "timestamp", nullable=True),
    ),
    doc="a stretch",
    version=1,
)
DTYPES = {
    "video_id": "string", "start_s": "float64", "category": "string", "score": "float64",
    "segment": "Int64", "rank": "int64", "chosen": "boolean", "seen": "datetime64[us, UTC]",
}
NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)


def spans(*scores: float, category: str = "fight") -> pd.DataFrame:
    return SPANS.frame(
        {"start_s": 1.5 * i or None, "category": category, "score": score, "rank": i + 1,
         "segment": i if i % 2 else None, "seen": NOON if i % 2 else None}
        for i, score in enumerate(scores)
    )


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """Three videos; the middle one, by name, has no rows."""
    store = ResultStore(tmp_path / "out")
    store.write(SPANS, "b.mp4", spans(), fingerprint="f2")
    store.write(SPANS, "c.mp4", spans(0.9, 0.1, category="gun"), fingerprint="f3")
    store.write(SPANS, "a.mp4", spans(0.2, 0.8, 0.5), fingerprint="f1")
    return store


def test_what_is_written_is_read(store: ResultStore):
    frame = load_table(store.out, "spans")
    assert frame.dtypes.astype(str).to_dict() == DTYPES
    assert frame["video_id"].tolist() == ["a.mp4"] * 3 + ["c.mp4"] * 2
    assert frame["score"].tolist() == [0.2, 0.8, 0.5, 0.9, 0.1]
    assert frame["segment"].isna().tolist() == [True, False, True, True, False]
    assert frame["start_s"].isna().tolist() == [True, False, False, True, False]
    assert frame["seen"][1] == NOON
    assert list(frame.index) == [0, 1, 2, 3, 4]
    assert frame.attrs["table"] == "spans"
    assert frame.attrs["units"] == {"start_s": "s"}
    assert frame.attrs["docs"]["score"] == "how sure, 0 to 1"
    assert list_tables(store.out) == ["spans"]
    assert list_tables(str(store.out)) == vbkit.list_tables(store.out)


def test_rows_of_one_video(store: ResultStore):
    rows = store.rows("spans", "a.mp4")
    assert rows is not None
    expected = load_table(store.out, "spans", where={"video_id": "a.mp4"})
    pd.testing.assert_frame_equal(rows, expected)
    assert rows.attrs["units"] == {"start_s": "s"}
    pd.testing.assert_frame_equal(rows.drop(columns="video_id"), spans(0.2, 0.8, 0.5))
    empty = store.rows("spans", "b.mp4")
    assert empty is not None
    assert empty.dtypes.astype(str).to_dict() == DTYPES
    assert store.rows("spans", "z.mp4") is None
    assert store.rows("nope", "a.mp4") is None


def test_a_rewrite_replaces_the_rows_of_that_video_only(store: ResultStore):
    store.write(SPANS, "a.mp4", spans(0.7), fingerprint="f9")
    frame = load_table(store.out, "spans", columns=["video_id", "score"])
    assert frame.values.tolist() == [["a.mp4", 0.7], ["c.mp4", 0.9], ["c.mp4", 0.1]]
    assert store.fingerprint("spans", "a.mp4") == "f9"
    store.remove("spans", "c.mp4")
    store.remove("spans", "c.mp4")
    assert store.video_ids("spans") == ["a.mp4", "b.mp4"]


def test_fingerprints(store: ResultStore):
    ids = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert [store.fingerprint("spans", video) for video in ids] == ["f1", "f2", "f3", None]
    assert store.fingerprint("nope", "a.mp4") is None
    assert store.video_ids("spans") == ids[:3]
    assert store.video_ids("nope") == []


def test_a_table_of_empty_files_only(tmp_path: Path):
    store = ResultStore(tmp_path)
    store.write(SPANS, "a", SPANS.empty(), fingerprint="x")
    frame = load_table(tmp_path, "spans")
    assert len(frame) == 0
    assert frame.dtypes.astype(str).to_dict() == DTYPES
    assert len(load_table(tmp_path, "spans", where="score > 0.5")) == 0
    assert len(query(tmp_path, "SELECT * FROM spans")) == 0


def test_columns(store: ResultStore):
    frame = load_table(store.out, "spans", columns=["score", "video_id", "category"])
    assert list(frame.columns) == ["video_id", "score", "category"]
    assert list(load_table(store.out, "spans", columns=["score"]).columns) == ["score"]
    with pytest.raises(UsageError, match=r"no column 'scor'; its columns are video_id, start_s"):
        load_table(store.out, "spans", columns=["scor"])
    with pytest.raises(UsageError, match="list of names"):
        load_table(store.out, "spans", columns="score")
    with pytest.raises(UsageError, match="no columns"):
        load_table(store.out, "spans", columns=[])


@pytest.mark.parametrize(
    ("where", "scores"),
    [
        ("score > 0.5 AND category = 'fight'", [0.8]),
        ("score > 0.5 -- a comment", [0.8, 0.9]),
        ("segment IS NULL OR rank = 2", [0.2, 0.8, 0.5, 0.9, 0.1]),
        ("seen = TIMESTAMPTZ '2024-05-01 12:00:00+00'", [0.8, 0.1]),
        ("video_id LIKE 'c%'", [0.9, 0.1]),
        ("score >= (SELECT max(score) FROM spans)", [0.9]),
        ("", [0.2, 0.8, 0.5, 0.9, 0.1]),
        ({}, [0.2, 0.8, 0.5, 0.9, 0.1]),
        ({"category": "gun"}, [0.9, 0.1]),
        ({"category": ["gun", "fight"], "rank": 1}, [0.2, 0.9]),
        ({"score": (0.9, 0.8)}, [0.8, 0.9]),
        ({"segment": None}, [0.2, 0.5, 0.9]),
        ({"segment": [None, 1], "video_id": "a.mp4"}, [0.2, 0.8, 0.5]),
        ({"video_id": ["a.mp4", "z.mp4"]}, [0.2, 0.8, 0.5]),
        ({"video_id": "z.mp4"}, []),
        ({"seen": NOON}, [0.8, 0.1]),
        ({"rank": pd.Series([3])}, [0.5]),
        ({"category": []}, []),
    ],
)
def test_where(store: ResultStore, where: Any, scores: list[float]):
    frame = load_table(store.out, "spans", where=where)
    assert frame["score"].tolist() == scores
    assert frame.dtypes.astype(str).to_dict() == DTYPES
    narrow = load_table(store.out, "spans", columns=["score"], where=where)
    assert narrow["score"].tolist() == scores


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("scor > 0.5", "no column 'scor'.*columns are spans: video_id, start_s"),
        ("category = fight", "single quotes"),
        ("score >", "where: syntax error"),
        ("score > 'x'", "where: Could not convert"),
        ("1 = 1); COPY spans TO 'stolen.csv'; --", "where"),
        ("EXISTS (SELECT * FROM read_text('/etc/hostname'))", "only the tables can be read"),
        ({"scor": 1}, "no column 'scor'"),
        ({"score": "x"}, "column score of table spans is double, and 'x' does not fit"),
        ({"rank": [1, "x"]}, "does not fit"),
    ],
)
def test_a_bad_condition_is_one_clear_line(store: ResultStore, where: Any, message: str):
    with pytest.raises(UsageError, match=message) as caught:
        load_table(store.out, "spans", where=where)
    assert "\n" not in str(caught.value)


def test_not_a_results_folder(tmp_path: Path, store: ResultStore):
    with pytest.raises(StoreError, match="no table 'span'; there are: spans"):
        load_table(store.out, "span")
    with pytest.raises(StoreError, match=r"no table '\.\./out'"):
        load_table(store.out, "../out")
    with pytest.raises(StoreError, match="no such folder"):
        load_table(tmp_path / "nope", "spans")
    with pytest.raises(StoreError, match="no results folder"):
        list_tables(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        list_tables(tmp_path / "file")


def test_the_folder_is_read_by_others(store: ResultStore):
    folder = store.out / "tables" / "spans"
    sql = f"SELECT count(*), sum(score), count(segment) FROM read_parquet('{folder}/*.parquet')"
    assert duckdb.sql(sql).fetchall() == [(5, pytest.approx(2.5), 2)]
    frame = pd.read_parquet(folder)
    assert len(frame) == 5
    assert frame.columns[0] == "video_id"
    assert str(frame["segment"].dtype) == "Int64"
    assert {path.suffix for path in folder.iterdir()} == {".parquet"}
    footer = pq.read_metadata(folder / file_name("a.mp4"))
    assert footer.row_group(0).column(0).compression == "SNAPPY"


def test_the_folder_is_read_by_polars(store: ResultStore):
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(store.out / "tables" / "spans")
    assert frame.shape == (5, 8)
    assert sorted(frame["video_id"].unique().to_list()) == ["a.mp4", "c.mp4"]


def test_metadata(tmp_path: Path):
    store = ResultStore(tmp_path)
    store.write(SPANS, "ü.mp4", spans(0.5), fingerprint="f",
                metadata={"task": "spans", "options": '{"threshold": 0.5}', "video_id": "no"})
    schema = pq.read_schema(tmp_path / "tables" / "spans" / file_name("ü.mp4"))
    metadata = {key.decode(): value.decode() for key, value in schema.metadata.items()}
    assert metadata["vbkit.table"] == "spans"
    assert metadata["vbkit.schema_version"] == "1"
    assert metadata["vbkit.fingerprint"] == "f"
    assert metadata["vbkit.video_id"] == "ü.mp4"
    assert metadata["vbkit.options"] == '{"threshold": 0.5}'
    assert schema.field("start_s").metadata[b"unit"] == b"s"
    assert schema.field("start_s").metadata[b"doc"] == b"start"
    kept = store.metadata("spans", "ü.mp4")
    assert kept is not None
    assert kept["task"] == "spans"


def test_what_does_not_match_the_schema_is_not_written(store: ResultStore):
    bad = spans(0.1).astype({"rank": "float64"})
    bad["rank"] = 1.7
    with pytest.raises(SchemaError, match="column rank"):
        store.write(SPANS, "a.mp4", bad, fingerprint="f9")
    assert store.fingerprint("spans", "a.mp4") == "f1"


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(st.text(max_size=40), min_size=1, max_size=4, unique=True),
    texts=st.lists(st.text(max_size=20), max_size=4),
    number=st.floats(allow_nan=False),
)
def test_any_id_and_any_text(tmp_path_factory: pytest.TempPathFactory, ids: list[str],
                             texts: list[str], number: float):
    out = tmp_path_factory.mktemp("out")
    store = ResultStore(out)
    schema = TableSchema("t", (Column("text", "string"), Column("x", "float64")))
    for video in ids:
        store.write(schema, video, schema.frame([{"text": text, "x": number} for text in texts]),
                    fingerprint=video or "-")
    assert store.video_ids("t") == sorted(video for video in ids if video)
    frame = load_table(out, "t")
    assert frame["video_id"].tolist() == [video for video in sorted(ids) for _ in texts]
    assert frame["text"].tolist() == texts * len(ids)
    assert set(frame["x"]) <= {number}
    for video in ids:
        assert store.fingerprint("t", video) == (video or "-")
        assert len(load_table(out, "t", where={"video_id": video})) == len(texts)


def test_ids_of_file_names_that_are_not_utf8(tmp_path: Path):
    store = ResultStore(tmp_path)
    video = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    store.write(SPANS, video, spans(0.5), fingerprint="f")
    assert store.fingerprint("spans", video) == "f"
    assert store.video_ids("spans") == ["caf\\udce9.mp4"]
    assert len(load_table(tmp_path, "spans", where={"video_id": video})) == 1


def test_files_of_an_older_schema_are_united_by_name(tmp_path: Path):
    store = ResultStore(tmp_path)
    old = TableSchema("t", (Column("gone", "int64"), Column("x", "int64", doc="old")))
    new = TableSchema("t", (Column("x", "float64", "s", doc="new"), Column("y", "int64")),
                      version=2)
    store.write(new, "a", new.frame([{"x": 0.5, "y": 7}]), fingerprint="2")
    store.write(old, "b", old.frame([{"gone": 3, "x": 4}]), fingerprint="1")
    frame = load_table(tmp_path, "t")
    assert frame.dtypes.astype(str).to_dict() == {
        "video_id": "string", "x": "float64", "y": "Int64", "gone": "Int64",
    }
    assert frame["x"].tolist() == [0.5, 4.0]
    assert frame["y"].tolist() == [7, pd.NA]
    assert frame["gone"].tolist() == [pd.NA, 3]
    assert frame.attrs["docs"]["x"] == "new"
    assert frame.attrs["units"] == {"x": "s"}
    assert load_table(tmp_path, "t", where="y IS NULL")["video_id"].tolist() == ["b"]
    assert load_table(tmp_path, "t", where={"y": None})["video_id"].tolist() == ["b"]
    assert query(tmp_path, "SELECT sum(gone) AS s FROM t")["s"].tolist() == [3]


def test_a_column_whose_type_changed(tmp_path: Path):
    store = ResultStore(tmp_path)
    old = TableSchema("t", (Column("x", "int64"),))
    new = TableSchema("t", (Column("x", "string"),), version=2)
    store.write(old, "a", old.frame([{"x": 4}]), fingerprint="1")
    store.write(new, "b", new.frame([{"x": "four"}]), fingerprint="2")
    assert load_table(tmp_path, "t")["x"].tolist() == ["4", "four"]


@pytest.mark.parametrize("content", [b"", b"PAR1", None])
def test_a_torn_file_counts_as_absent_and_is_named(store: ResultStore, content: bytes | None):
    path = store.out / "tables" / "spans" / file_name("a.mp4")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert store.fingerprint("spans", "a.mp4") is None
    assert store.rows("spans", "a.mp4") is None
    assert store.video_ids("spans") == ["b.mp4", "c.mp4"]
    for where in (None, "score > 0", {"rank": 1}):
        with pytest.raises(StoreError, match=path.name):
            load_table(store.out, "spans", where=where)
    with pytest.raises(StoreError, match=path.name):
        query(store.out, "SELECT * FROM spans")
    store.write(SPANS, "a.mp4", spans(0.3), fingerprint="f1")
    assert len(load_table(store.out, "spans")) == 3


@pytest.mark.parametrize("where", [None, "score >= 0", {"category": "fight"}])
def test_damage_inside_a_file_is_named(store: ResultStore, where: Any):
    path = store.out / "tables" / "spans" / file_name("a.mp4")
    content = bytearray(path.read_bytes())
    footer = int.from_bytes(content[-8:-4], "little")
    content[4 : len(content) - 8 - footer] = b"\xff" * (len(content) - 12 - footer)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{path.name}.*run again"):
        load_table(store.out, "spans", where=where)


def test_runs(tmp_path: Path):
    store = ResultStore(tmp_path)
    row = {
        "run_id": "r2", "started": NOON, "finished": None, "command": "vbkit run", "versions": "{}",
        "tasks": "{}", "model": "mini", "device": "cpu", "cache": None,
        "n_ok": 0, "n_partial": 0, "n_failed": 0, "n_skipped": 0,
    }
    store.write_run(row)
    store.write_run({**row, "run_id": "r1", "started": NOON + dt.timedelta(hours=1)})
    store.write_run({**row, "finished": NOON + dt.timedelta(minutes=1), "n_ok": 3})
    frame = load_table(tmp_path, "runs")
    assert frame["run_id"].tolist() == ["r2", "r1"]  # by time
    assert frame["n_ok"].tolist() == [3, 0]
    assert frame["finished"].isna().tolist() == [False, True]
    assert "video_id" not in frame


def test_write_file(store: ResultStore):
    path = store.write_file("keyframes/ab/1.jpg", b"picture")
    assert path == store.out / "keyframes" / "ab" / "1.jpg"
    assert path.read_bytes() == b"picture"
    for bad in ("../x", "/x", ""):
        with pytest.raises(StoreError, match="no path inside"):
            store.write_file(bad, b"")


def test_clean_removes_leftovers_only(store: ResultStore):
    leftover = store.out / ".tmp" / "123-abc"
    leftover.write_bytes(b"half")
    store.clean()
    assert not leftover.exists()
    assert len(load_table(store.out, "spans")) == 5
    ResultStore(store.out / "nope").clean()
    assert not (store.out / "nope").exists()


def test_an_unusable_folder_is_one_clear_line(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    store = ResultStore(tmp_path / "file" / "out")
    with pytest.raises(StoreError, match="cannot write"):
        store.write(SPANS, "a", spans(), fingerprint="f")
    with pytest.raises(StoreError, match=r"cannot use .*--out"), store.lock():
        pass
    assert ResultStore(tmp_path / "new").out.exists() is False  # nothing made before it is needed


def test_query(store: ResultStore):
    frame = query(
        store.out,
        "SELECT category, count(*) AS n, sum(rank) AS r, avg(score) AS s, max(seen) AS t "
        "FROM spans GROUP BY category ORDER BY category",
    )
    assert frame["category"].tolist() == ["fight", "gun"]
    assert frame["n"].tolist() == [3, 2]
    assert frame["r"].tolist() == [6, 3]
    assert frame.dtypes.astype(str).to_dict() == {
        "category": "string", "n": "int64", "r": "int64", "s": "float64",
        "t": "datetime64[us, UTC]",
    }
    twice = query(store.out, "SELECT a.video_id, b.video_id FROM spans a, spans b LIMIT 1")
    assert list(twice.columns) == ["video_id", "video_id_1"]
    assert query(store.out, "SHOW TABLES")["name"].tolist() == ["spans"]
    assert "score" in query(store.out, "DESCRIBE spans")["column_name"].tolist()
    pivot = query(store.out, "PIVOT spans ON category USING count(*) GROUP BY video_id")
    assert set(pivot.columns) == {"video_id", "fight", "gun"}
    assert query(store.out, "SELECT 1 AS one;")["one"].tolist() == [1]


def test_a_query_can_read_tables_only(store: ResultStore, tmp_path: Path):
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    frame = pd.DataFrame({"x": [1]})  # a variable that DuckDB could otherwise find
    other = next((store.out / "tables" / "spans").iterdir())
    before = sorted(tmp_path.rglob("*"))
    for sql in (
        f"SELECT * FROM read_csv('{secret}')", f"SELECT * FROM '{secret}'",
        f"SELECT * FROM read_text('{secret}')", f"SELECT * FROM read_parquet('{other}')",
        "SELECT * FROM glob('/*')", "SELECT * FROM frame",
        f"COPY spans TO '{tmp_path}/x.csv'", f"EXPORT DATABASE '{tmp_path}/x'",
        f"ATTACH '{tmp_path}/x.db'", "INSTALL httpfs", "LOAD httpfs", "SET threads = 1",
        "SET enable_external_access = true", "CREATE TABLE x AS SELECT 1", "DROP VIEW spans",
        f"SELECT 1; COPY spans TO '{tmp_path}/x.csv'", "", "SELEC 1",
        f"WITH x AS (SELECT 1) SELECT * FROM query('COPY spans TO ''{tmp_path}/x.csv''')",
        f"CREATE TABLE x AS SELECT 1; SELECT * FROM read_csv('{secret}')",
    ):
        with pytest.raises(UsageError) as caught:
            query(store.out, sql)
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    assert len(frame) == 1
    with pytest.raises(UsageError, match="no table 'span'; tables are spans"):
        query(store.out, "SELECT * FROM span")
    with pytest.raises(UsageError, match="no column 'scor'"):
        query(store.out, "SELECT scor FROM spans")


def test_readers_beside_a_writer_see_whole_rows(tmp_path: Path):
    """While a run replaces and removes files, a reader gets old or new rows, never a mixture."""
    store = ResultStore(tmp_path)
    videos = [f"v{i}" for i in range(8)]
    for video in videos:
        store.write(SPANS, video, spans(0.0), fingerprint="0")
    stop = threading.Event()
    failures: list[BaseException] = []

    def rewrite() -> None:
        n = 0
        try:
            while not stop.is_set():
                n += 1
                for video in videos:
                    score = (n % 7) / 10
                    store.write(SPANS, video, spans(*[score] * (n % 5 + 1)), fingerprint=str(n))
                store.remove("spans", videos[n % 7])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            for where in (None, "score >= 0", {"category": "fight"}):
                frame = load_table(tmp_path, "spans", where=where)
                groups = frame.groupby("video_id")["score"]
                assert (groups.nunique() == 1).all()
                assert frame["video_id"].is_monotonic_increasing
                assert (frame.groupby("video_id")["rank"].max() == groups.size()).all()
            query(tmp_path, "SELECT video_id, count(*) FROM spans GROUP BY ALL")
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_many_videos_in_order(tmp_path: Path):
    """120 videos: rows by video_id, then as written, whichever way they are filtered."""
    store = ResultStore(tmp_path)
    for i in range(120):
        store.write(SPANS, f"v{i * 77 % 120:03d}", spans(0.5, 0.6, 0.7), fingerprint="f")
    for where in (None, "score > 0", "rank > 0 AND score < 2", {"category": "fight"}):
        frame = load_table(tmp_path, "spans", where=where)
        assert frame["video_id"].tolist() == [f"v{i:03d}" for i in range(120) for _ in range(3)]
        assert frame["rank"].tolist() == [1, 2, 3] * 120
