"""`vbkit report`: what the page holds, and that nothing of a video can be more than text in it.

What it does in a browser is in test_report_browser.py.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from report_files import SCHEMAS, video_rows, write_results, write_tables

from vbkit.cli import cli
from vbkit.errors import StoreError, UsageError
from vbkit.report import page, write_report
from vbkit.report.content import read_content
from vbkit.report.page import clock, span
from vbkit.report.pictures import PictureShelf, choose

HOSTILE = """</script><script>bad=1</script><img src=x onerror="bad=1"> ' ${1} <!-- \u2028 ]]>"""


class Page(HTMLParser):
    """What a parser makes of a page: its tags, its data blocks by id, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.blocks: dict[str, str] = {}
        self.text = ""
        self._block: str | None = None
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._block = dict(attrs).get("id") or f"{tag} {len(self.blocks)}"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._block = None

    def handle_data(self, data: str) -> None:
        if self._block is None:
            self.text += data
        else:
            self.blocks[self._block] = self.blocks.get(self._block, "") + data

    def json(self, name: str) -> Any:
        return json.loads(self.blocks[name])

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    videos: dict[str, dict[str, Any]] = {f"{i}.mp4": {"seed": i, "clips": 12} for i in range(6)}
    videos[HOSTILE] = {"seed": 6, "clips": 12, "said": HOSTILE}
    videos["broken.mp4"] = {"seed": 7, "clips": 12, "status": "partial"}
    return write_results(tmp_path_factory.mktemp("report") / "talks", videos)


@pytest.fixture(scope="module")
def made(out: Path) -> Page:
    return Page(write_report(out).path)


# --- the page ---------------------------------------------------------------------------------


def test_one_file_that_loads_nothing(out: Path, made: Page):
    for tag, attributes in made.tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/jpeg;base64,")), tag
        assert not [name for name in attributes if name.startswith("on")]
    assert "link" not in dict(made.tags)
    policy = next(tag["content"] for tag in made.of("meta") if "http-equiv" in tag)
    assert str(policy).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in str(policy)


def test_overview(made: Page):
    for part in ("talks", "broken.mp4", "partial", "for review", "to block", "vbkit run videos",
                 "1 min 15 s", "last run 28 November 2026, 12:00 UTC"):
        assert part in made.text
    meta = made.json("meta")
    assert meta["videos"] == sorted(meta["videos"])
    stages = {row["name"]: row["seconds"] for row in meta["charts"]["stages"]}
    assert stages["visual backbone"] == 41.0
    assert stages["moderation"] == 1.5
    assert stages["everything else"] == pytest.approx(75 - 12.5 - 41 - 6 - 2 - 1.5)
    assert sum(row["count"] for row in meta["charts"]["flagged"]) == 3  # seeds 1, 3, 6


def test_every_row_of_a_video_is_there(out: Path, made: Page):
    meta = made.json("meta")
    index = meta["videos"].index("3.mp4")
    data = made.json(f"data-{index}")
    expected = video_rows("3.mp4", seed=3, clips=12)
    assert data["about"]["duration_s"] == 18.0
    for name in ("segments", "moderation", "qa", "chapters", "people", "explanations"):
        columns = [column["name"] for column in meta["tables"][name]["columns"]]
        rows = [dict(zip(columns, row, strict=True)) for row in data["rows"][name]]
        wanted = [{column: row.get(column) for column in columns} for row in expected[name]]
        assert rows == [{column: round(value, 4) if isinstance(value, float) else value
                         for column, value in row.items()} for row in wanted]
    assert len(made.json(f"pictures-{index}")) == 12
    people = {column["name"]: column for column in meta["tables"]["people"]["columns"]}
    assert people["score"] == {"name": "score", "kind": "number", "unit": "0..1",
                               "doc": "how much it looks like people"}
    assert not meta["tables"]["people"]["known"]
    assert meta["tables"]["segments"]["known"]
    assert "words" not in meta["tables"]  # the transcript has them


def test_tables_of_other_tasks_with_a_row_a_video_are_in_the_list(made: Page):
    assert "loud, −23.5" in made.text
    assert "quiet, −23.5" in made.text


def test_hostile_values_are_text(made: Page):
    assert len(made.of("script")) == 1 + 2 * 8 + 2  # meta, data and pictures, library and page
    assert sum(tag.get("type") is None for tag in made.of("script")) == 2
    assert all(str(tag["src"]).startswith("data:image/jpeg;") for tag in made.of("img"))
    assert HOSTILE in made.text
    meta = made.json("meta")
    index = meta["videos"].index(HOSTILE)
    texts = [row[3] for row in made.json(f"data-{index}")["rows"]["segments"]]
    assert texts[1] == HOSTILE


@given(st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False)))
@settings(max_examples=100, deadline=None)
def test_json_is_safe_in_html(value: dict[str, Any]):
    text = str(page._json(value))
    assert not set("<>&'") & set(text)
    assert json.loads(text) == value


# --- folders as they come ---------------------------------------------------------------------


def test_a_real_run(tmp_path: Path, engine: Any, sample: Path):
    result = engine.run([sample], tasks=["moderation", "sentiment"], out=tmp_path / "results")
    assert result.report.n_ok == 1
    made = write_report(tmp_path / "results")
    seen = Page(made.path)
    assert made.path == tmp_path / "results" / "report.html"
    assert (made.n_videos, made.n_bytes) == (1, made.path.stat().st_size)
    assert made.n_pictures == made.n_saved == 10
    assert "sample.mp4" in seen.text
    meta = seen.json("meta")
    stages = {row["name"]: row["seconds"] for row in meta["charts"]["stages"]}
    assert stages["visual backbone"] > 0
    assert sum(stages.values()) == pytest.approx(result.report.seconds["total"], rel=0.02)


def test_without_pictures_words_or_tasks(tmp_path: Path):
    rows = video_rows("a", keyframes=False)
    bare = {**rows["videos"][0], "path": None, "duration_s": None, "width": None, "height": None,
            "n_frames": None, "language": None, "start_offset_s": None, "content_id": None}
    write_tables(tmp_path, {"videos": [("a", bare)]})
    made = write_report(tmp_path)
    seen = Page(made.path)
    assert (made.n_pictures, seen.json("pictures-0")) == (0, [])
    assert seen.json("data-0")["rows"] == {}


def test_no_results(tmp_path: Path):
    with pytest.raises(StoreError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="no tables yet"):
        write_report(tmp_path)
    write_tables(tmp_path, {"segments": []})
    with pytest.raises(StoreError, match="no videos yet"):
        write_report(tmp_path)
    assert not list(tmp_path.glob("*.html"))


def test_a_damaged_table_is_left_out_and_said(out: Path, tmp_path: Path):
    folder = tmp_path / "results"
    shutil.copytree(out, folder)
    (folder / "tables" / "qa" / "all.parquet").write_bytes(b"PAR1 no more")
    result = CliRunner().invoke(cli, ["report", str(folder)])
    assert result.exit_code == 1
    assert "left out" in result.output
    seen = Page(folder / "report.html")
    assert "cannot be read as a table" in seen.text
    assert "qa" not in seen.json("meta")["tables"]
    (folder / "tables" / "videos" / "all.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(StoreError, match="cannot be read"):
        write_report(folder)


def test_videos_under_way_are_left_out(out: Path, tmp_path: Path):
    rows = video_rows("done")
    write_tables(tmp_path, {
        "videos": [("done", rows["videos"][0])],
        "segments": [(video, row) for video in ("done", "doing") for row in rows["segments"]]})
    content = read_content(tmp_path)
    assert [video.video_id for video in content.videos] == ["done"]
    assert content.notes == ("1 video is still being worked on and left out",)


def test_long_tables_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vbkit.report.content._MOST_ROWS", 150)
    monkeypatch.setattr("vbkit.report.content._CAPS", (100, 50, 10))
    rows = video_rows("a", clips=100)
    write_tables(tmp_path, {
        "videos": [("a", rows["videos"][0]), ("b", rows["videos"][0])],
        "segments": [("a", row) for row in rows["segments"]]
        + [("b", row) for row in rows["segments"][:20]],
        "chapters": [("a", row) for row in rows["chapters"]]})
    assert len(rows["segments"]) == 75  # 75 + 20 + 3 fit
    assert read_content(tmp_path).notes == ()
    monkeypatch.setattr("vbkit.report.content._MOST_ROWS", 90)
    content = read_content(tmp_path)
    assert content.notes == ("of longer tables the first 50 rows of each video are shown",)
    assert content.videos[0].left_out == {"segments": 25}
    assert [len(video.rows["segments"]) for video in content.videos] == [50, 20]
    assert len(content.videos[0].rows["chapters"]) == 3


# --- pictures ---------------------------------------------------------------------------------


def test_pictures_keep_to_their_limit(out: Path, tmp_path: Path):
    sizes = {}
    for limit in (0.0, 0.05, 0.2, 24.0):
        made = write_report(out, tmp_path / "page.html", pictures_mb=limit)
        seen = Page(made.path)
        sizes[limit] = made.n_pictures
        used = sum(len(picture["jpeg"]) * 3 / 4 for i in range(made.n_videos)
                   for picture in seen.json(f"pictures-{i}"))
        assert used <= limit * 1e6
    assert sizes[0.0] == 0
    assert 8 <= sizes[0.05] < sizes[0.2] < sizes[24.0] == 96


def test_pictures_outside_the_folder_are_not_read(tmp_path: Path):
    out = tmp_path / "results"
    (out / "keyframes").mkdir(parents=True)
    file = io.BytesIO()
    Image.new("RGB", (32, 18)).save(file, "JPEG")
    for path in (tmp_path / "secret.jpg", out / "keyframes" / "own.jpg"):
        path.write_bytes(file.getvalue())
    (out / "keyframes" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (out / "keyframes" / "text.jpg").write_text("no picture")
    shelf = PictureShelf(out, 10**6, 1)
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "keyframes/link.jpg",
             "keyframes/text.jpg", "keyframes/gone.jpg", "keyframes", "keyframes/own.jpg"]
    _, pictures = shelf.take([(float(i), name) for i, name in enumerate(names)])
    assert [picture.time_s for picture in pictures] == [6.0]


@given(st.integers(1, 300), st.integers(1, 60),
       st.lists(st.floats(0, 450, allow_nan=False), max_size=20))
def test_choice_of_pictures(n: int, count: int, wanted: list[float]):
    times = [1.5 * i + 0.75 for i in range(n)]
    chosen = choose(times, wanted, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(n, count)
    if wanted and count < n:  # what matters most is seen
        assert min(range(n), key=lambda i: abs(times[i] - wanted[0])) in chosen
    if not wanted and 4 <= count < n:  # and nothing long goes unseen
        gaps = [b - a for a, b in pairwise(chosen)]
        assert max(gaps) <= 4 * n / count + 1


# --- the command ------------------------------------------------------------------------------


def test_command(out: Path, tmp_path: Path):
    target = tmp_path / "pages" / "a.html"
    result = CliRunner().invoke(cli, [
        "report", str(out), "--output", str(target), "--title", "A & <b>", "--pictures", "0.05",
        "--json"])
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed["path"] == str(target)
    assert (printed["n_videos"], printed["n_pictures_saved"], printed["damaged"]) == (8, 96, [])
    assert "<title>A &amp; &lt;b&gt;</title>" in target.read_text("utf-8")
    said = CliRunner().invoke(cli, ["report", str(out), "--output", str(target),
                                     "--pictures", "0.05"])
    assert said.stdout == f"{target}\n"
    assert "of 96 pictures fit into 0.05 MB" in said.stderr
    assert [path.name for path in target.parent.iterdir()] == ["a.html"]


def test_command_says_what_is_wrong(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UsageError, match="is a folder"):
        write_report(out, tmp_path)
    with pytest.raises(UsageError, match="negative"):
        write_report(out, pictures_mb=-1)
    monkeypatch.setattr(page, "_chart_library", page._chart_library.__wrapped__)
    for missing in ("vl_convert", "jinja2"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)
            with pytest.raises(StoreError, match=r"pip install 'vbkit\[report\]'"):
                write_report(out)


def test_no_torch():
    code = ("import sys; from vbkit.cli.report import report; import vbkit.report; "
            "assert not {'torch', 'pandas', 'jinja2', 'PIL'} & set(sys.modules), sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_times():
    assert [clock(t) for t in (None, 0.0, 7.2, 754, 3723)] == ["", "0:00", "0:07", "12:34",
                                                               "1:02:03"]
    assert [span(t) for t in (None, 0.42, 12.0, 185, 180, 7800)] == [
        "", "0.4 s", "12 s", "3 min 5 s", "3 min", "2 h 10 min"]


def test_generated_folders_are_as_runs_write_them():
    for name, rows in video_rows("a").items():
        SCHEMAS[name].frame(rows)
