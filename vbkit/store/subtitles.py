"""Tables of stretches as subtitle files, to watch results in a player."""

from __future__ import annotations

import hashlib
import html
import math
import re
import unicodedata
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vbkit._conform import utf8
from vbkit.errors import StoreError, UsageError
from vbkit.store.writing import write_atomically

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Cue", "Written", "cues", "safe_names", "subtitles", "write_subtitles"]

Kind = Literal["vtt", "srt"]

_FIRST = ("decision", "category", "label", "title", "caption", "question", "answer", "score")
_SECOND = ("text", "evidence")
_SHORTEST_S = 0.5
_MOST_LETTERS = 80
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Cue:
    """A subtitle.

    Args:
        start_s: when it appears (s), at least 0.
        end_s: when it goes (s), after `start_s`.
        lines: what is shown, each a line without line breaks.
    """

    start_s: float
    end_s: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """What `write_subtitles` did.

    Args:
        files: `video_id` to the file of its subtitles.
        n_cues: subtitles in all.
        n_untimed: rows that were left out because they have no time.
    """

    files: Mapping[str, Path]
    n_cues: int
    n_untimed: int


def write_subtitles(
    frame: pd.DataFrame, folder: Path, kind: Kind, columns: Sequence[str] | None = None
) -> Written:
    """Write the rows of each video as a subtitle file of its own.

    Also writes `files.csv`, which says by `video_id` which file is whose: an id may hold anything,
    and a file name may not.

    Args:
        frame: rows with `video_id`, `start_s` and `end_s`.
        folder: where to; made where it is not there.
        kind: `"vtt"` (WebVTT) or `"srt"` (SubRip).
        columns: what to show of a row, a line each; None for what tells most.

    Raises:
        UsageError: the rows have no video or no times.
        StoreError: a file cannot be written.
    """
    import pandas as pd

    missing = [name for name in ("video_id", "start_s", "end_s") if name not in frame.columns]
    if missing:
        raise UsageError(f"table {frame.attrs.get('table', '')} has no column {missing[0]}: "
                         f"only what has a time can be shown as .{kind}")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: name a folder, which gets a .{kind} file a video")
    timed = frame[frame["start_s"].notna() & frame["end_s"].notna()]
    groups = {str(video_id): rows for video_id, rows in timed.groupby("video_id", sort=False)}
    names = safe_names(groups)
    files: dict[str, Path] = {}
    count = 0
    for video_id, rows in groups.items():
        found = list(cues(rows, columns))
        files[video_id] = folder / f"{names[video_id]}.{kind}"
        _write(files[video_id], subtitles(found, kind, f"{frame.attrs.get('table', '')} of "
                                                       f"{video_id}"))
        count += len(found)
    listed = pd.DataFrame({"video_id": list(files), "file": [path.name for path in files.values()]})
    _write(folder / "files.csv", listed.to_csv(index=False, lineterminator="\n"))
    return Written(files, count, len(frame) - len(timed))


def cues(rows: pd.DataFrame, columns: Sequence[str] | None = None) -> Iterator[Cue]:
    """The rows of a video as subtitles, in the order of their times."""
    shown = [[name] for name in columns] if columns is not None else [
        [name for name in names if name in rows.columns] for names in (_FIRST, _SECOND)]
    if not any(shown):
        shown = [[name] for name in rows.columns if name not in ("video_id", "start_s", "end_s")]
    for row in rows.sort_values(["start_s", "end_s"], kind="stable").to_dict("records"):
        start = max(float(row["start_s"]), 0.0)
        end = max(float(row["end_s"]), start)
        if not math.isfinite(end):
            continue
        lines = [" · ".join(text for text in (_shown(row[name]) for name in names) if text)
                 for names in shown]
        kept = tuple(line for line in lines if line)
        if kept:
            yield Cue(start, end if end > start else start + _SHORTEST_S, kept)


def _shown(value: Any) -> str:
    import pandas as pd

    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.2f}"
    visible = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(visible.split())


def subtitles(shown: Iterable[Cue], kind: Kind, note: str = "") -> str:
    """The text of a subtitle file. What is shown is text: it cannot become markup or a cue."""
    blocks = []
    if kind == "vtt":
        blocks.append("WEBVTT")
        if note:
            blocks.append(f"NOTE {html.escape(_shown(note), quote=False)}")
    for number, cue in enumerate(shown, 1):
        times = f"{_time(cue.start_s, kind)} --> {_time(cue.end_s, kind)}"
        if kind == "vtt":
            lines = [html.escape(line, quote=False) for line in cue.lines]
            blocks.append("\n".join([times, *lines]))
        else:  # which has no escapes, and players take <…> for markup
            lines = [line.translate({60: "‹", 62: "›"}) for line in cue.lines]
            blocks.append("\n".join([str(number), times, *lines]))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _time(seconds: float, kind: Kind) -> str:
    total = round(seconds * 1000)
    minutes, ms = divmod(total, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{ms // 1000:02}{'.' if kind == 'vtt' else ','}{ms % 1000:03}"


def safe_names(video_ids: Iterable[str]) -> dict[str, str]:
    """A file name for each id, without suffix, safe on every file system, no two alike.

    A short id of plain letters keeps its own, without its suffix; any other gets a hash.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for video_id in video_ids:
        stem = re.sub(r"\.\w{2,5}$", "", video_id)
        name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", utf8(stem)))
        name = name.strip("._-")[:_MOST_LETTERS].rstrip(".")
        plain = name == stem and name.isascii() and not _RESERVED.match(name)
        if not name or not plain or name.lower() in taken | {"files"}:
            digest = hashlib.sha256(utf8(video_id).encode()).hexdigest()[:8]
            name = "-".join(part for part in (
                re.sub(r"[^a-zA-Z0-9_.-]+", "_", name).strip("._-"), digest) if part)
        taken.add(name.lower())
        names[video_id] = name
    return names


def _write(target: Path, text: str) -> None:
    if target.is_dir():
        raise StoreError(f"cannot write {target}: it is a folder")
    temp = target.with_name(f".{uuid.uuid4().hex}.part")
    write_atomically(target, temp, lambda file: file.write(text.encode("utf-8",
                                                                       "backslashreplace")))
