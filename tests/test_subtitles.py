"""Tables as subtitles: files that players, and vbkit itself, read back."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from vbkit.cli import cli
from vbkit.media.transcripts import load_transcript
from vbkit.store import ResultStore
from vbkit.store.subtitles import Cue, safe_names, subtitles
from vbkit.tables import CORE_TABLES, Column, TableSchema

SPANS = TableSchema("spans", (
    Column("start_s", "float64", "s", nullable=True),
    Column("end_s", "float64", "s", nullable=True),
    Column("category", "string", nullable=True), Column("score", "float64", nullable=True),
    Column("evidence", "string", nullable=True), Column("n", "int64", nullable=True),
))
HOSTILE = "<script>alert(1)</script> --> 00:00:01.000\n\nWEBVTT & \x1b[31m"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    store = ResultStore(tmp_path / "out")
    rows = [
        {"start_s": 3600.0, "end_s": 3601.2345, "category": "fight", "score": 0.714, "n": 1},
        {"start_s": 1.5, "end_s": 1.5, "category": "hate", "score": 1.0, "evidence": HOSTILE},
        {"start_s": None, "end_s": None, "category": "untimed", "score": 0.5},
    ]
    store.write(SPANS, "talks/a.mp4", SPANS.frame(rows), fingerprint="f")
    store.write(SPANS, "b.mp4", SPANS.frame(rows[:1]), fingerprint="f")
    store.write(SPANS, "empty.mp4", SPANS.empty(), fingerprint="f")
    videos = TableSchema("labels", (Column("label", "string"),))
    store.write(videos, "b.mp4", videos.frame([{"label": "x"}]), fingerprint="f")
    return store.out


def export(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["export", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.mark.parametrize("kind", ["vtt", "srt"])
def test_a_file_for_each_video(out: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "subtitles"
    code, text = export(out, "spans", "--to", kind, "--output", folder)
    assert (code, text) == (0, f"vbkit: wrote 3 subtitles of 2 videos to {folder}; rows without a "
                               "time, left out: 1\n")
    with open(folder / "files.csv", encoding="utf-8", newline="") as file:
        files = {row["video_id"]: row["file"] for row in csv.DictReader(file)}
    assert files["b.mp4"] == f"b.{kind}"
    assert set(files) == {"talks/a.mp4", "b.mp4"}
    assert {path.name for path in folder.iterdir()} == {"files.csv", *files.values()}

    read = load_transcript(folder / files["talks/a.mp4"])
    assert [(s.start_s, s.end_s) for s in read.segments] == [(1.5, 2.0), (3600.0, 3601.234)]
    assert read.segments[1].text == "fight · 0.71"
    assert read.segments[0].text.startswith("hate · 1.00")
    assert "alert(1)" in read.segments[0].text
    content = (folder / files["talks/a.mp4"]).read_text(encoding="utf-8")
    assert "<script>" not in content
    assert content.count("-->") == 2
    assert "\x1b" not in content


def test_chosen_columns_and_rows(out: Path, tmp_path: Path) -> None:
    code, _ = export(out, "spans", "--to", "vtt", "--output", tmp_path / "x", "--columns",
                     "n,category", "--where", "n IS NOT NULL AND video_id = 'b.mp4'")
    assert code == 0
    assert (tmp_path / "x" / "b.vtt").read_text() == (
        "WEBVTT\n\nNOTE spans of b.mp4\n\n01:00:00.000 --> 01:00:01.234\n1\nfight\n")


@pytest.mark.parametrize(("arguments", "message"), [
    (["spans", "--to", "vtt"], "name a folder"),
    (["labels", "--to", "vtt", "--output", "x"], "has no column start_s"),
    (["spans", "--to", "srt", "--output", "x", "--columns", "nn"], "has no column 'nn'"),
])
def test_errors(out: Path, arguments: list[str], message: str, tmp_path: Path,
                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = export(out, *arguments)
    assert code == 2
    assert message in text
    assert not (tmp_path / "x").exists()


def test_core_tables_as_subtitles(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "out")
    segments = CORE_TABLES["segments"]
    store.write(segments, "a.mp4", segments.frame(
        [{"segment": 0, "start_s": 0.0, "end_s": 2.0, "text": "Tom & Jerry, 1 < 2"}]),
        fingerprint="f")
    for kind in ("vtt", "srt"):
        assert export(tmp_path / "out", "segments", "--to", kind, "--output", tmp_path)[0] == 0
    assert "Tom &amp; Jerry, 1 &lt; 2" in (tmp_path / "a.vtt").read_text()
    assert (tmp_path / "a.srt").read_text(encoding="utf-8") == (
        "1\n00:00:00,000 --> 00:00:02,000\nTom & Jerry, 1 ‹ 2\n")
    assert load_transcript(tmp_path / "a.vtt").segments[0].text == "Tom & Jerry, 1 < 2"


@given(st.lists(st.text(max_size=120), unique=True, max_size=6))
@settings(deadline=None, max_examples=200)
def test_names_are_safe_and_never_alike(ids: list[str]) -> None:
    names = safe_names([*ids, "a.mp4", "A.mp4", "a.mkv", "files.csv", "con", "../../etc/passwd"])
    values = list(names.values())
    assert len({name.lower() for name in values}) == len(names)
    assert names["a.mp4"] == "a" or "a" in {safe_names([i])[i].lower() for i in ids}
    for name in values:
        assert 0 < len(name) <= 100
        assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
        assert name[0] not in "._-"
        assert name.lower() not in ("files", "con")


@given(st.lists(st.tuples(st.floats(0, 1e5), st.floats(0.01, 100), st.text(max_size=30)),
                max_size=5))
@settings(deadline=None, max_examples=100)
def test_any_text_stays_within_its_cue(rows: list[tuple[float, float, str]]) -> None:
    shown = [Cue(start, start + length, (" ".join(text.split()) or "-",))
             for start, length, text in rows]
    for kind in ("vtt", "srt"):
        assert subtitles(shown, kind).count("-->") == len(shown)
