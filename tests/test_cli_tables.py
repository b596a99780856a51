"""`vbkit tables`, `show`, `query`, `export`, and how tables are printed."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from vbkit.cli import printing
from vbkit.cli import tables as commands
from vbkit.errors import StoreError, UsageError, VbkitError
from vbkit.store import ResultStore
from vbkit.tables import Column, TableSchema

SPANS = TableSchema(
    "spans",
    (
        Column("start_s", "float64", "s", doc="start"),
        Column("score", "float64", nullable=True, doc="how sure"),
        Column("n", "int64", nullable=True),
        Column("text", "string", nullable=True, doc="what is said"),
        Column("seen", "timestamp", nullable=True),
    ),
    doc="a stretch",
)
NOON = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
TEXTS = ['=HYPERLINK("http://x")', "+1", "-1", "@a", "a, \"b\"\nc\x1b[31m", None, "日本語", "#N/A"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("results")
    store = ResultStore(folder)
    rows = [{"start_s": 1.5 * i, "score": i / 10 if i else None, "n": i or None, "text": text,
             "seen": NOON if i else None} for i, text in enumerate(TEXTS)]
    store.write(SPANS, "a.mp4", SPANS.frame(rows), fingerprint="f", metadata={"task": "spans"})
    store.write(SPANS, "b.mp4", SPANS.frame(rows * 4), fingerprint="f")
    store.write(SPANS, "c.mp4", SPANS.empty(), fingerprint="f")
    labels = TableSchema("labels", (Column("label", "string"),))
    store.write(labels, "a.mp4", labels.frame([{"label": "x"}]), fingerprint="f",
                metadata={"task": "naming"})
    return str(folder)


def call(command: click.Command, *arguments: str) -> Result:
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=True)
    if isinstance(result.exception, VbkitError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_tables(out: str):
    lines = call(commands.tables, out).stdout.splitlines()
    assert lines[0].split() == ["table", "rows", "videos", "columns", "meaning"]
    assert lines[1].split() == ["labels", "1", "1", "video_id,", "label", "written", "by", "the",
                                "task", "naming"]
    assert lines[2].split()[:3] == ["spans", "40", "3"]
    assert lines[2].endswith("a stretch")
    long = call(commands.tables, out, "--columns").stdout
    lines = long.splitlines()
    assert ["spans", "start_s", "float64", "s", "start"] in [line.split() for line in lines]


def test_tables_json(out: str):
    labels, spans = json.loads(call(commands.tables, out, "--json").stdout)
    assert labels["table"] == "labels"
    assert (spans["rows"], spans["videos"], spans["videos_with_rows"]) == (40, 3, 2)
    assert spans["meaning"] == "a stretch"
    assert spans["columns"][1] == {
        "name": "start_s", "type": "float64", "unit": "s", "nullable": False, "meaning": "start",
    }
    assert [column["type"] for column in spans["columns"]] == [
        "string", "float64", "float64", "int64", "string", "timestamp",
    ]


def test_show(out: str):
    result = call(commands.show, out, "spans", "--limit", "6")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["video_id", "start_s", "(s)", "score", "n", "text", "seen"]
    assert lines[1].split() == ["a.mp4", "0.0", "–", "–", '=HYPERLINK("http://x")', "–"]
    assert lines[2].split() == ["a.mp4", "1.5", "0.1", "1", "+1", "2024-05-01", "12:00:00+00:00"]
    assert lines[-1] == "… 34 more rows of 40; --limit 0 shows all"
    assert "\x1b" not in result.stdout  # a transcript cannot steer the terminal
    assert len(call(commands.show, out, "spans", "--limit", "0").stdout.splitlines()) == 41


def test_show_columns_where_and_json(out: str):
    result = call(commands.show, out, "spans", "--columns", "n, video_id", "--where",
                  "n >= 3 AND video_id = 'b.mp4'", "--limit", "2", "--json")
    rows = json.loads(result.stdout)
    assert rows == [{"video_id": "b.mp4", "n": 3}, {"video_id": "b.mp4", "n": 4}]
    assert result.stderr == "… 18 more rows of 20; --limit 0 shows all\n"
    first = json.loads(call(commands.show, out, "spans", "--limit", "1", "--json").stdout)[0]
    assert first == {"video_id": "a.mp4", "start_s": 0.0, "score": None, "n": None,
                     "text": TEXTS[0], "seen": None}
    nothing = call(commands.show, out, "spans", "--where", "n > 100")
    assert nothing.stdout.splitlines()[-1] == "spans has no rows for which that holds"
    assert call(commands.show, out, "spans", "--where", "n > 100", "--json").stdout == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["show", "spans", "--columns", "nn"], UsageError, "columns are video_id, start_s, score"),
        (["show", "spans", "--columns", ","], UsageError, "no columns"),
        (["show", "spans", "--where", "nn > 1"], UsageError, "no column 'nn'.*start_s"),
        (["show", "span"], StoreError, "there are: labels, spans"),
        (["query", "SELECT nn FROM spans"], UsageError, "no column 'nn'.*start_s"),
        (["query", "SELECT 1", "--json", "--csv"], UsageError, "exclude"),
        (["query", "COPY spans TO 'x.csv'"], UsageError, "only one SELECT"),
        (["export", "spans"], UsageError, "name a format"),
        (["export", "spans", "--output", "x.doc"], UsageError, "name a format"),
        (["export", "spans", "--to", "csv", "--output", "."], UsageError, "is a folder"),
    ],
)
def test_errors(out: str, arguments: list[str], kind: type[VbkitError], message: str,
                tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        call(getattr(commands, arguments[0]), out, *arguments[1:])
    assert list(tmp_path.iterdir()) == []


def test_query(out: str):
    sql = "SELECT video_id, count(*) AS n, max(score) AS s FROM spans GROUP BY 1 ORDER BY 1"
    lines = [line.split() for line in call(commands.query, out, sql).stdout.splitlines()]
    assert lines == [["video_id", "n", "s"], ["a.mp4", "8", "0.7"], ["b.mp4", "32", "0.7"]]
    rows = json.loads(call(commands.query, out, sql, "--json").stdout)
    assert rows[1] == {"video_id": "b.mp4", "n": 32, "s": 0.7}
    text = call(commands.query, out, sql, "--csv").stdout
    assert text == "video_id,n,s\na.mp4,8,0.7\nb.mp4,32,0.7\n"
    mixed = call(commands.query, out, "SELECT [1, 2] AS l, {'a': NULL} AS s, "
                 "DATE '2024-01-01' AS d, 'inf'::DOUBLE AS i, 1.5::DECIMAL(4, 2) AS c, true AS b",
                 "--json")
    assert json.loads(mixed.stdout) == [
        {"l": [1, 2], "s": {"a": None}, "d": "2024-01-01", "i": None, "c": 1.5, "b": True}
    ]


def test_export_csv_and_jsonl(out: str, tmp_path: Path):
    text = call(commands.export, out, "spans", "--to", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(rows) == 40
    assert rows[4]["text"] == TEXTS[4]
    assert rows[0]["score"] == ""
    target = tmp_path / "spans.jsonl"
    result = call(commands.export, out, "spans", "--output", str(target), "--where", "n IS NULL",
                  "--columns", "text,n")
    assert result.stderr == f"vbkit: wrote 5 rows to {target}\n"
    assert result.stdout == ""
    lines = target.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": TEXTS[0], "n": None}] * 5
    assert list(tmp_path.iterdir()) == [target]


def test_export_parquet(out: str, tmp_path: Path):
    target = tmp_path / "new" / "spans.parquet"
    call(commands.export, out, "spans", "--to", "parquet", "--output", str(target))
    frame = pd.read_parquet(target)
    assert frame["text"][6] == "日本語"
    schema = pq.read_schema(target)
    assert schema.field("start_s").metadata[b"unit"] == b"s"
    assert len(frame) == 40
    data = subprocess.run(
        [sys.executable, "-m", "vbkit.cli", "export", out, "spans", "--to", "parquet"],
        capture_output=True, check=True,
    ).stdout
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(data)), frame)


def test_export_xlsx(out: str, tmp_path: Path):
    openpyxl = pytest.importorskip("openpyxl")
    target = tmp_path / "spans.xlsx"
    call(commands.export, out, "spans", "--to", "xlsx", "--output", str(target), "--where",
         "video_id = 'a.mp4'")
    book = openpyxl.load_workbook(target)
    sheet = book["spans"]
    rows = list(sheet.iter_rows())
    assert [cell.value for cell in rows[0]] == ["video_id", "start_s", "score", "n", "text", "seen"]
    texts = [row[4] for row in rows[1:]]
    assert [cell.value for cell in texts[:4]] == TEXTS[:4]
    assert all(cell.data_type == "s" for cell in texts if cell.value is not None)
    assert all(cell.quotePrefix for cell in texts[:4])
    assert texts[4].value == 'a, "b"\nc\N{REPLACEMENT CHARACTER}[31m'
    assert rows[1][2].value is None
    assert rows[2][5].value == NOON.replace(tzinfo=None)
    about = [[cell.value for cell in row] for row in book["about these columns"].iter_rows()]
    assert ["start_s", "s", "start"] in about
    assert ["seen", "UTC", None] in [[*row[:2], row[2] or None] for row in about]


def test_export_xlsx_without_openpyxl(out: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(StoreError, match=r"pip install 'vbkit\[excel\]'"):
        call(commands.export, out, "spans", "--to", "xlsx", "--output", "x.xlsx")


def test_table_names_are_completed(out: str):
    parameter = next(p for p in commands.show.params if p.name == "table")
    context = click.Context(commands.show)
    context.params["out"] = out
    assert [item.value for item in parameter.shell_complete(context, "s")] == ["spans"]
    context.params["out"] = "nowhere"
    assert parameter.shell_complete(context, "s") == []


def test_format_value():
    values = [None, float("nan"), pd.NA, pd.NaT, True, 3, 0.5, 1234.56789, 1e-7, 2.0, "a\tb\nc"]
    assert [printing.format_value(value) for value in values] == [
        "–", "–", "–", "–", "yes", "3", "0.5", "1234.568", "1e-07", "2", "a b c",
    ]
    assert printing.shorten("word " * 30, 12) == "word word w…"
    assert printing.shorten("a\x1b[2Jb\x00", None) == "a\N{REPLACEMENT CHARACTER}[2Jb" \
        "\N{REPLACEMENT CHARACTER}"


def test_plain_columns_are_aligned(capsys: pytest.CaptureFixture[str]):
    printing.print_table(("name", "n"), [("日本", 1), ("x", 10), ("[red]", None)], units={"n": "s"})
    assert capsys.readouterr().out.splitlines() == [
        "name   n (s)", "日本       1", "x         10", "[red]      –",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("columns", "blocks"), [(120, False), (40, True)])
def test_in_a_terminal(out: str, columns: int, blocks: bool):
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "vbkit.cli", "show", out, "spans", "--limit", "2"],
        stdout=slave, env={**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", "TERM": "xterm"},
    )
    os.close(slave)
    chunks = []
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", b"".join(chunks).decode())
    assert ("row 2" in text) is blocks
    assert "start_s (s)" in text
    assert "38 more rows of 40" in text
    assert all(len(line) <= columns for line in text.replace("\r", "").split("\n")[:-2])
