"""Writing the page."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import vbkit
from vbkit.errors import StoreError, UsageError
from vbkit.report.content import Content, Video, count_by, read_content
from vbkit.report.pictures import Picture, PictureShelf

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["FILE_NAME", "Report", "write_report"]

FILE_NAME = "report.html"
PICTURES_MB = 24.0
"""How much all pictures of a page take at most by default (MB, before base64)."""

_BARS = 8  # in a chart of labels


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Args:
        path: the file.
        n_bytes: its size.
        n_videos: videos on it.
        n_pictures: pictures on it, without those of the list.
        n_saved: pictures that the results folder has of these videos.
        notes: what the page leaves out.
        damaged: tables that could not be read, with the reason.
    """

    path: Path
    n_bytes: int
    n_videos: int
    n_pictures: int
    n_saved: int
    notes: tuple[str, ...]
    damaged: tuple[str, ...]


def write_report(out: str | Path, target: str | Path | None = None, *, title: str = "",
                 pictures_mb: float = PICTURES_MB) -> Report:
    """Write a results folder as one page of HTML, and replace an older one in one step.

    Args:
        out: the results folder; reading it during a run is safe.
        target: the file; `OUT/report.html` by default.
        title: the page's title; the folder's name by default.
        pictures_mb: how much all pictures take at most (MB); where that is short, there are fewer
            and smaller ones. 0 for none.

    Raises:
        StoreError: the folder cannot be read or has no videos, the page cannot be written, or the
            packages of `vbkit[report]` are not installed.
        UsageError: `target` is a folder, or `pictures_mb` is negative.
    """
    from vbkit.store.writing import write_atomically

    if not pictures_mb >= 0:
        raise UsageError(f"pictures_mb is {pictures_mb}, but must not be negative")
    out = Path(out)
    path = out / FILE_NAME if target is None else Path(target)
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file in it")
    environment = _environment()
    charts = _chart_library()
    content = read_content(out)
    shelf = PictureShelf(out, int(pictures_mb * 1e6), len(content.videos))
    page = environment.get_template("report.html.j2").generate(
        _context(content, title or content.name, shelf, charts))

    def write(file: IO[bytes]) -> None:
        for part in page:
            file.write(part.encode("utf-8"))

    write_atomically(path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part"), write)
    return Report(path, path.stat().st_size, len(content.videos), shelf.shown, shelf.saved,
                  content.notes, content.damaged)


# --- what the page is made of -----------------------------------------------------------------


def _missing(package: str) -> StoreError:
    return StoreError(f"a report needs {package}, which is not installed: "
                      "pip install 'vbkit[report]'")


@functools.cache
def _chart_library() -> str:
    """Vega-Lite, Vega and Vega-Embed in one script, out of vl-convert-python."""
    try:
        import vl_convert
    except ImportError as error:
        raise _missing("vl-convert-python") from error
    return _script_safe(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _script_safe(code: str) -> str:
    """JavaScript that may stand in an HTML script element."""
    for end in ("</script", "<!--"):
        if end in code.lower():  # it would end the element, or hide its end
            raise StoreError(f"the chart library contains {end!r}, so that it cannot be embedded; "
                             "please report this, with `vbkit doctor`")
    return code


def _environment() -> Environment:
    try:
        import jinja2
    except ImportError as error:
        raise _missing("Jinja2") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vbkit.report"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        extensions=["jinja2.ext.do"])
    environment.filters |= {"clock": clock, "span": span, "day": _day, "json": _json,
                            "base64": lambda picture: picture.base64}
    return environment


def _template_file(name: str) -> str:
    return resources.files("vbkit.report").joinpath("templates", name).read_text("utf-8")


def _policy(scripts: list[str], style: str) -> str:
    """A content security policy: these scripts and this style, data: pictures, and nothing else."""

    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

    return "; ".join((
        "default-src 'none'", f"script-src {' '.join(map(source, scripts))}",
        f"style-src {source(style)}", "img-src data:", "base-uri 'none'", "form-action 'none'"))


def _json(value: Any) -> Markup:
    """JSON that may stand in an HTML script element, whatever its strings hold."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(
        value, dumps=functools.partial(json.dumps, ensure_ascii=False, allow_nan=False,
                                       separators=(",", ":")))


def _context(content: Content, title: str, shelf: PictureShelf, charts: str) -> dict[str, Any]:
    from markupsafe import Markup

    style, script = _template_file("report.css"), _script_safe(_template_file("report.js"))
    videos = content.videos
    headlines = [video.headline for video in videos]
    has = {name: name in content.tables for name in (
        "moderation_videos", "sentiment_videos", "summarisation", "classification", "qa")}
    last = content.runs[0] if content.runs else None
    return {
        "title": title,
        "content": content,
        "last": last,
        "has": has,
        "policy": _policy([charts, script], style),
        "style": Markup(style),
        "script": Markup(script),
        "charts": Markup(charts),
        "version": vbkit.__version__,
        "duration": sum(video.about.get("duration_s") or 0.0 for video in videos),
        "statuses": count_by(video.about.get("status") for video in videos),
        "decisions": count_by(row["decision"] for row in headlines),
        "sentiments": count_by(row["sentiment"] for row in headlines),
        "labels": count_by(row["label"] for row in headlines),
        "with_rows": {name: sum(bool(video.rows.get(name)) for video in videos)
                      for name in sorted(content.tables)},
        "videos": _shown_videos(content, shelf),
        "meta": {
            "title": title,
            "videos": [video.video_id for video in videos],
            "tables": {name: asdict(table) for name, table in content.tables.items()},
            "charts": _overview(content, has),
        },
    }


def _overview(content: Content, has: dict[str, bool]) -> dict[str, Any]:
    """What the charts of the overview show, by chart; only those that have something to show."""
    headlines = [video.headline for video in content.videos]
    charts: dict[str, Any] = {}
    last = next((run for run in content.runs if run["stages"]), None)
    if last is not None:
        charts["stages"] = [asdict(stage) for stage in last["stages"]]
    table = content.tables.get("moderation")
    if table is not None:
        category, decision = table.position("category"), table.position("decision")
        if category is not None and decision is not None:
            flagged = count_by(f"{row[decision]}\0{row[category]}" for video in content.videos
                               for row in video.rows.get("moderation", ()))
            if flagged:
                charts["flagged"] = [
                    {"decision": key.split("\0")[0], "category": key.split("\0")[1], "count": count}
                    for key, count in flagged.items()]
    if has["sentiment_videos"]:
        counts = count_by(row["sentiment"] for row in headlines)
        if counts:
            charts["sentiments"] = [{"label": label, "count": counts.get(label, 0)} for label in
                                    ("positive", "neutral", "negative")]
    if has["classification"]:
        labels = count_by(row["label"] for row in headlines)
        if labels:
            charts["labels"] = [{"label": label, "count": count}
                                for label, count in list(labels.items())[:_BARS]]
    return charts


def _shown_videos(content: Content, shelf: PictureShelf) -> Iterator[dict[str, Any]]:
    """Each video with what the page holds of it."""
    for video in content.videos:
        poster, pictures = shelf.take(*_picture_wishes(content, video))
        yield {
            "video": video,
            "poster": poster,
            "data": {"about": video.about, "rows": video.rows, "leftOut": video.left_out},
            "pictures": [_picture_json(picture) for picture in pictures],
        }


def _picture_json(picture: Picture) -> dict[str, Any]:
    return {"t": picture.time_s, "w": picture.width, "h": picture.height, "jpeg": picture.base64}


def _picture_wishes(content: Content, video: Video) -> tuple[
        list[tuple[float, str]], list[float], float | None]:
    """Keyframes, the moments that should be seen first, and the moment of the poster."""
    wanted: list[float] = []
    for name in ("moderation", "summarisation_segments", "chapters"):
        table = content.tables.get(name)
        start = table.position("start_s") if table is not None else None
        end = table.position("end_s") if table is not None else None
        selected = table.position("selected") if table is not None else None
        if start is None or end is None:
            continue
        wanted += [(row[start] + row[end]) / 2 for row in video.rows.get(name, ())
                   if row[start] is not None and row[end] is not None
                   and (selected is None or row[selected])]
    return video.keyframes, wanted, _best_moment(content, video)


def _best_moment(content: Content, video: Video) -> float | None:
    """The moment that stands for a video best: of the best segment or clip of its summary."""
    table = content.tables.get("summarisation_segments")
    if table is None:
        return None
    rank, moment = table.position("rank"), table.position("keyframe_s")
    if rank is None or moment is None:
        return None
    ranked = [(row[rank], row[moment]) for row in video.rows.get(table.name, ())
              if row[rank] is not None and row[moment] is not None]
    return min(ranked)[1] if ranked else None


# --- how values are written -------------------------------------------------------------------


def clock(seconds: float | None) -> str:
    """A moment as a player shows it: 0:07, 12:34, 1:02:03; empty for None."""
    if seconds is None:
        return ""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}"


def span(seconds: float | None) -> str:
    """A duration for reading: 0.4 s, 12 s, 3 min 5 s, 2 h 10 min; empty for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _day(text: str | None) -> str:
    """An ISO 8601 time as 26 November 2026, 04:19 UTC; the text itself where it is none."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
