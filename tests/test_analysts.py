"""What analysts do with results: worked questions, the notebook, and other programs' readers."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from test_docs import ROOT, blocks_of, words, workplace  # noqa: F401 (a fixture)

import vbkit
from vbkit.plugins import default_manager
from vbkit.store import ResultStore, query
from vbkit.tables import CORE_TABLES, Column, TableSchema

PAGE = ROOT / "docs" / "analysts.md"
NOTEBOOK = ROOT / "docs" / "analysts.ipynb"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos in the schemas of the real tasks: one flagged, one without speech."""
    schemas = dict(CORE_TABLES)
    for task in default_manager().tasks():
        schemas |= {schema.name: schema for schema in task.spec.tables}
    folder = tmp_path_factory.mktemp("analysts")
    store = ResultStore(folder / "results")

    def write(table: str, video: str, *rows: dict[str, Any]) -> None:
        schema = schemas[table]
        whole = [{name: row.get(name) for name in schema.column_names} for row in rows]
        store.write(schema, video, schema.frame(whole), fingerprint="f")

    for video, decision, mood, duration in (
        ("a.mp4", "block", -0.6, 100.0), ("b.mp4", "allow", 0.4, 50.0), ("c.mp4", "allow", 0.0, 9.0)
    ):
        spoken = () if video == "c.mp4" else (
            {"segment": 0, "start_s": 1.0, "end_s": 11.0, "text": f"first of {video}"},
            {"segment": 1, "start_s": 61.0, "end_s": 76.0, "text": f"second of {video}"})
        write("videos", video, {
            "path": f"/in/{video}", "status": "ok", "duration_s": duration, "n_clips": 1,
            "n_segments": len(spoken), "transcript_source": "none"})
        write("segments", video, *spoken)
        write("sentiment", video, *(
            {"start_s": s["start_s"], "end_s": s["end_s"], "segment": s["segment"],
             "modality": "text", "label": "neutral", "score": mood + s["segment"] / 10}
            for s in spoken))
        write("sentiment_videos", video, {"label": "neutral", "score": mood, "n_rows": 2})
        flagged = decision == "block"
        write("moderation", video, *([{
            "start_s": 60.0, "end_s": 62.0, "category": "fight", "parent_category": "violence",
            "score": 0.9, "decision": "block", "modality": "visual", "evidence": "x"}] * flagged))
        write("moderation_videos", video, {
            "decision": decision, "category": "fight" if flagged else None,
            "score": 0.9 if flagged else None, "n_flagged": int(flagged)})
    return folder


def questions() -> list[tuple[str, str, str]]:
    blocks = list(blocks_of(PAGE))
    return [
        (str(after), words(before.code.replace("\\\n", " "))[2], after.code)
        for before, after in pairwise(blocks)
        if after.group == "questions"
    ]


ANSWERS = [
    [["/in/a.mp4", "block", "fight", 0.9]],
    [["a.mp4", "fight", 61.0, "second of a.mp4"]],
    [["a.mp4", 0, -0.6], ["a.mp4", 1, -0.5], ["b.mp4", 0, 0.4], ["b.mp4", 1, 0.5]],
    [["b.mp4", 0.5], ["a.mp4", 0.25], ["c.mp4", 0.0]],
    [["allow", 2, 0.2], ["block", 1, -0.6]],
]


@pytest.mark.parametrize(("number", "where"),
                         [(n, where) for n, (where, _, _) in enumerate(questions())],
                         ids=lambda value: value if isinstance(value, str) else "")
def test_a_question_has_one_answer_in_sql_and_in_pandas(
    number: int, where: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sql, code = questions()[number]
    monkeypatch.chdir(results)
    names: dict[str, Any] = {}
    exec(compile(code, where, "exec"), names)
    by_sql, by_pandas = query("results", sql), names["answer"].reset_index(drop=True)
    pd.testing.assert_frame_equal(by_sql, by_pandas, check_dtype=False)
    found = by_sql.values.tolist()
    assert [[round(v, 9) if isinstance(v, float) else v for v in row] for row in found] \
        == ANSWERS[number]


def test_there_are_five_questions() -> None:
    assert len(questions()) == len(ANSWERS) == 5
    assert all(shlex.split(sql) for _, sql, _ in questions())


@pytest.mark.slow
def test_the_notebook_runs(workplace: Path) -> None:  # noqa: F811
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept"
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3",
                            resources={"metadata": {"path": str(workplace)}}).execute()
    assert pd.read_csv(workplace / "cuts.csv")["video_id"].tolist() == ["talk.mp4"]
    shown = [output["data"]["text/plain"] for cell in notebook.cells for output in
             cell.get("outputs", []) if "data" in output]
    assert any("summarisation_segments" in text for text in shown)


# Other programs

OLD = TableSchema("t", (Column("n", "int64"), Column("label", "string", nullable=True)))
NEW = TableSchema("t", (*OLD.columns, Column("score", "float64", nullable=True),
                        Column("sure", "bool", nullable=True)), version=2)


@pytest.fixture(params=["all empty", "some empty", "extended"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bool]:
    """A results folder, and whether its files differ in their columns."""
    store = ResultStore(tmp_path)
    kind = request.param
    rows = [{"n": 1, "label": "x"}, {"n": 2, "label": None}]
    store.write(OLD, "a", OLD.frame([] if kind == "all empty" else rows), fingerprint="f")
    store.write(OLD, "b", OLD.empty(), fingerprint="f")
    store.write(OLD, "c", OLD.frame([] if kind == "all empty" else rows), fingerprint="f")
    if kind == "extended":
        store.write(NEW, "b", NEW.frame([{"n": 3, "label": "y", "score": 0.5, "sure": True}]),
                    fingerprint="g")
        store.write(NEW, "d", NEW.empty(), fingerprint="g")
    return tmp_path, kind == "extended"


def test_programs_agree(folder: tuple[Path, bool]) -> None:
    polars = pytest.importorskip("polars")
    out, extended = folder
    files = f"{out}/tables/t/*.parquet"
    ours = vbkit.load_table(out, "t")
    by_duckdb = duckdb.sql(f"FROM read_parquet('{files}', union_by_name = {extended})").df()
    if extended:
        lazy = polars.scan_parquet(files, schema=polars.from_pandas(ours).schema,
                                   missing_columns="insert", extra_columns="ignore")
        frames = [by_duckdb, lazy.collect().to_pandas()]
    else:
        frames = [by_duckdb, polars.read_parquet(files).to_pandas(),
                  polars.read_parquet(out / "tables" / "t").to_pandas(),
                  pd.read_parquet(out / "tables" / "t")]
        assert frames[3].dtypes.astype(str).to_dict() == ours.dtypes.astype(str).to_dict()
    for frame in frames:
        assert set(frame.columns) == set(ours.columns)
        ordered = frame[list(ours.columns)].sort_values(["video_id", "n"]).reset_index(drop=True)
        plain = ordered.astype(object).where(ordered.notna(), None)
        expected = ours.astype(object).where(ours.notna(), None)
        assert plain.values.tolist() == expected.values.tolist()


def test_categories(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    rows = [{"n": i, "label": label} for i, label in enumerate(["b", "a", None, "b"])]
    store.write(OLD, "v", OLD.frame(rows), fingerprint="f")
    store.write(OLD, "w", OLD.frame([]), fingerprint="f")
    frame = vbkit.load_table(tmp_path, "t", categorical=["label"])
    assert frame["label"].cat.categories.tolist() == ["a", "b"]
    assert str(frame["label"].cat.categories.dtype) == "string"
    assert frame["label"].isna().tolist() == [False, False, True, False]
    assert str(frame["video_id"].dtype) == "string"
    assert frame.attrs["docs"]["video_id"]
    everything = vbkit.load_table(tmp_path, "t", categorical=True)
    assert everything.dtypes.astype(str).tolist() == ["category", "int64", "category"]
    plain = vbkit.load_table(tmp_path, "t")
    assert everything["label"].astype("string").equals(plain["label"])
    nothing = vbkit.load_table(tmp_path, "t", where="n > 9", categorical=["label", "video_id"])
    assert nothing.dtypes.astype(str).tolist() == ["category", "int64", "category"]
    narrow = vbkit.load_table(tmp_path, "t", ["n"], categorical=["label"])
    assert list(narrow.columns) == ["n"]
    for wrong, message in ((["n"], "is no text"), (["nn"], "no column 'nn'"), ("label", "a list")):
        with pytest.raises(vbkit.VbkitError, match=message):
            vbkit.load_table(tmp_path, "t", categorical=wrong)
