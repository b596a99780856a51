"""Turn what the caller names (files, folders, globs, manifests) into sources. No torch here."""

from __future__ import annotations

import ast
import csv
import glob
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from vbkit.errors import ManifestError, TranscriptError
from vbkit.media.kinds import media_kind

__all__ = ["MANIFEST_SUFFIXES", "Inputs", "Source", "SourceKind", "expand_inputs"]

SourceKind = Literal["video", "image", "audio", "transcript", "text", "features"]

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".parquet"})

_OWN_COLUMNS = frozenset({"id", "video", "features", "transcript", "text", "question"})
_NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Source:
    """One input.

    Args:
        video_id: unique among the sources of a run.
        path: the video, picture or sound file; None for a transcript or text alone.
        kind: what it is; `"text"` is inline text, `"features"` precomputed features without a
            video.
        transcript: transcript file that was named for it, or that it is.
        text: inline text: a string, or a list of strings or of `{"text", "start", "end"}`.
        features: a file of precomputed clip features, for training and evaluation.
        questions: asked of this source.
        labels: the other columns of its manifest row, `caption` among them; of the first row
            where several name the source.
        rows: the other columns and `question` of every manifest row that names it.
        problem: why it cannot be used, in one line, or None.
    """

    video_id: str
    path: Path | None = None
    kind: SourceKind = "video"
    transcript: Path | None = None
    text: str | list[Any] | None = None
    features: Path | None = None
    questions: tuple[str, ...] = ()
    labels: Mapping[str, object] = field(default_factory=lambda: _NOTHING)
    rows: tuple[Mapping[str, object], ...] = ()
    problem: str | None = None

    @property
    def location(self) -> str | None:
        """The file that it was read from, for people; None for inline text."""
        found = self.path or self.features or self.transcript
        return None if found is None else _utf8(str(found))


@dataclass(frozen=True)
class Inputs:
    """What `expand_inputs` found.

    Args:
        sources: in the order of the inputs; those of a folder sorted by path.
        notes: what the caller should be told, e.g. that a folder has no videos.
    """

    sources: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Source]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def expand_inputs(inputs: Sequence[str | Path]) -> Inputs:
    """The sources that `inputs` name.

    An input is a video, picture, sound or transcript file, a folder (walked for media files,
    hidden ones left out), a glob, or a manifest (`.csv`, `.jsonl`, `.parquet`). A `video_id` is
    the manifest's `id`, else the POSIX path relative to the input, with the input's own name in
    front where there are several inputs.

    A file that is missing or unreadable becomes a source with a `problem`.

    Raises:
        ManifestError: a manifest cannot be read, lacks columns, or gives one id to two sources.
    """
    unique: dict[str, Path] = {}
    notes: list[str] = []
    for item in inputs:
        path = Path(os.path.expanduser(os.fspath(item)))
        key = os.path.realpath(path)
        if key in unique:
            notes.append(f"{path} is given twice; it is used once")
        else:
            unique[key] = path
    found: list[Source] = []
    names = _own_names(list(unique.values()))
    for path, name in zip(unique.values(), names, strict=True):
        prefix = f"{name}/" if len(unique) > 1 else ""
        found.extend(_expand(path, name, prefix, notes))
    if not inputs:
        notes.append("no input was given")
    return Inputs(tuple(_merge(found)), tuple(notes))


def _expand(path: Path, name: str, prefix: str, notes: list[str]) -> Iterator[Source]:
    if str(path).startswith(("http:/", "https:/", "rtsp:/")):
        address = _utf8(str(path)).replace(":/", "://", 1)
        yield Source(address, path, problem=f"{address}: download it and give the file")
    elif path.is_dir():
        files = list(_walk(path, notes))
        if not files:
            notes.append(f"{path}: no video, picture or sound file in this folder")
        for file in files:
            yield _media(_id(prefix, file.relative_to(path)), file)
    elif not path.exists() and glob.has_magic(str(path)) and not path.is_symlink():
        base = _glob_base(path)
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        files = [match for match in matches if match.is_file() and _is_media(match)]
        if not files:
            notes.append(f"{path}: no video, picture or sound file matches")
        for file in files:
            yield _media(_id(prefix, file.relative_to(base)), file)
    elif path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file() and not _is_segments(path):
        yield from _manifest(path, prefix)
    else:
        yield _media(_utf8(name), path)


def _utf8(text: str) -> str:
    """`text` fit for a table: bytes of a file name that are no UTF-8 become `\\xNN`."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _id(prefix: str, relative: Path) -> str:
    return prefix + _utf8(relative.as_posix())


def _own_names(paths: list[Path]) -> list[str]:
    """The last part of each path; as many parts as tell them apart where several end the same."""
    parts = [
        Path(os.path.abspath(_glob_base(path) if _is_glob(path) else path)).parts for path in paths
    ]
    lengths = [1] * len(paths)
    while True:
        names = ["/".join(part[-n:]).lstrip("/") or "root" for part, n in zip(parts, lengths,
                                                                             strict=True)]
        same = [i for i, name in enumerate(names) if names.count(name) > 1
                and lengths[i] < len(parts[i])]
        if not same:
            break
        for i in same:
            lengths[i] += 1
    # Two globs in one folder still have the same name.
    return [name if names.index(name) == i else f"{name}#{names[:i].count(name) + 1}"
            for i, name in enumerate(map(_utf8, names))]


def _is_glob(path: Path) -> bool:
    return glob.has_magic(str(path)) and not path.exists()


def _glob_base(path: Path) -> Path:
    """The folder in front of a pattern's first wildcard."""
    base = Path()
    for part in path.parts[:-1]:
        if glob.has_magic(part):
            break
        base /= part
    return base


def _is_media(path: Path) -> bool:
    return not path.name.startswith(".") and media_kind(path) in ("video", "image", "audio")


def _walk(folder: Path, notes: list[str]) -> Iterator[Path]:
    """Media files of a folder and its folders, sorted, without hidden ones."""

    def failed(error: OSError) -> None:
        notes.append(f"{error.filename}: this folder cannot be read ({error.strerror})")

    seen: set[str] = set()
    files: list[Path] = []
    for top, folders, names in os.walk(folder, onerror=failed, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [path for name in names if _is_media(path := Path(top, name))]
    yield from sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def _problem(path: Path) -> str | None:
    """Why a file cannot be read, or None."""
    try:
        with path.open("rb"):
            return None
    except FileNotFoundError:
        if path.is_symlink():
            return f"{path}: a link to a file that does not exist"
        return f"{path}: no such file"
    except IsADirectoryError:
        return f"{path}: is a folder; name a file"
    except PermissionError:
        return f"{path}: no permission to read it"
    except (OSError, ValueError) as error:
        return f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"


def _media(video_id: str, path: Path) -> Source:
    """A source for one file; a suffix that tells nothing is left to the decoder."""
    kind = media_kind(path) or "video"
    if kind == "transcript":
        return Source(video_id, None, "transcript", path, problem=_problem(path))
    return Source(video_id, path, kind, problem=_problem(path))


# Manifests


def _is_segments(path: Path) -> bool:
    """Whether a .jsonl file is a transcript (a segment a line), not a manifest."""
    if path.suffix.lower() != ".jsonl":
        return False
    try:
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    row = json.loads(line.decode("utf-8-sig"))
                    if isinstance(row, str):
                        return True
                    return (isinstance(row, dict) and "text" in row
                            and bool({"start", "end"} & row.keys())
                            and not {"id", "video", "transcript"} & row.keys())
    except (OSError, ValueError):
        pass
    return False


def _manifest(path: Path, prefix: str) -> Iterator[Source]:
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    try:
        columns, rows = readers[path.suffix.lower()](path)
    except ManifestError:
        raise
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not {"video", "features", "transcript", "text"} & columns:
        raise ManifestError(
            f"{path}: a manifest needs a column video, transcript or text, or features; "
            f"it has {', '.join(sorted(columns)) or 'none'}"
        )
    for number, row in rows:
        try:
            yield _row_source(path, prefix, number, row)
        except ManifestError as error:
            raise ManifestError(f"{path}, row {number}: {error}") from None


def _csv_rows(path: Path) -> tuple[set[str], list[tuple[int, dict[str, Any]]]]:
    from vbkit.media.transcripts import decode_text

    try:
        text = decode_text(path.read_bytes())
    except TranscriptError as error:
        raise ManifestError(f"{path}: {error}") from None
    header = text.split("\n", 1)[0]
    delimiter = next((d for d in (",", ";", "\t") if d in header), ",")
    limit = csv.field_size_limit(1 << 30)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        rows = []
        for number, row in enumerate(reader, 1):
            if row.pop(None, None):
                raise ManifestError(f"{path}, row {number}: more values than columns; put quotes "
                                    "around a value with a comma in it")
            rows.append((number, {k: v if k == "id" else _csv_value(v) for k, v in row.items()}))
    except csv.Error as error:
        raise ManifestError(f"{path}: not CSV ({error})") from None
    finally:
        csv.field_size_limit(limit)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ManifestError(f"{path}: column {twice[0]} occurs twice")
    return set(names), rows


def _csv_value(value: str | None) -> Any:
    """A list or string out of JSON; anything else is the string that it is.

    A list may also be as Python prints it, which is how pandas writes one into CSV.
    """
    text = "" if value is None else value.strip()
    if not text.startswith(("[", '"')):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            parsed = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            if text.startswith('"'):  # said by someone, not written by Python
                break
            continue
        return parsed if isinstance(parsed, list | str) else value
    return value


def _jsonl_rows(path: Path) -> tuple[set[str], list[tuple[int, dict[str, Any]]]]:
    rows = []
    columns: set[str] = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise ManifestError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ManifestError(f"{path}, line {number}: not a JSON object")
            columns |= row.keys()
            rows.append((number, row))
    return columns, rows


def _parquet_rows(path: Path) -> tuple[set[str], list[tuple[int, dict[str, Any]]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        cause = str(error).splitlines()[0]
        raise ManifestError(f"{path}: not a Parquet file ({cause})") from None
    return set(table.column_names), list(enumerate(table.to_pylist(), 1))


def _is_missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _row_source(manifest: Path, prefix: str, number: int, row: Mapping[str, Any]) -> Source:
    video = _file(manifest, row.get("video"), "video")
    transcript = _file(manifest, row.get("transcript"), "transcript")
    features = _file(manifest, row.get("features"), "features")
    text = row.get("text")
    if not isinstance(text, list) and _is_missing(text):
        text = None
    elif not isinstance(text, str | list):
        raise ManifestError(f"text is a string or a list, not {type(text).__name__}")
    labels = MappingProxyType({
        key: value for key, value in row.items()
        if key not in _OWN_COLUMNS and (isinstance(value, list) or not _is_missing(value))
    })
    questions = _questions(row.get("question"))
    kind: SourceKind
    if video is not None:
        found = media_kind(video)
        kind = found if found is not None and found != "transcript" else "video"
    elif transcript is not None and text is None:
        kind = "transcript"
    else:
        kind = "features" if features is not None and text is None else "text"
    given = row.get("id")
    if not _is_missing(given):
        video_id = str(given)
    else:
        main = video or features or transcript
        video_id = prefix + (f"row-{number}" if main is None else _relative(main, manifest.parent))
    problem = None
    if video is None and features is None and transcript is None and text is None:
        problem = f"{manifest}, row {number}: neither video nor transcript nor text is given"
    for file in (video or features, transcript if text is None else None):
        if problem is None and file is not None and (why := _problem(file)) is not None:
            problem = f"{why} ({manifest.name}, row {number})"
    rows = (MappingProxyType({**labels, **({"question": list(questions)} if questions else {})}),)
    return Source(video_id, video, kind, transcript, text, features, questions, labels, rows,
                  problem)


def _file(manifest: Path, value: Any, column: str) -> Path | None:
    if _is_missing(value):
        return None
    if not isinstance(value, str):
        raise ManifestError(f"{column} is a path, not {type(value).__name__}")
    return manifest.parent / os.path.expanduser(value.strip())


def _relative(path: Path, folder: Path) -> str:
    try:
        return _utf8(path.relative_to(folder).as_posix())
    except ValueError:
        return _utf8(path.as_posix())


def _questions(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    questions = [item for item in values if not _is_missing(item)]
    for question in questions:
        if not isinstance(question, str):
            raise ManifestError(f"question is a string, not {type(question).__name__}")
    return tuple(dict.fromkeys(questions))


def _merge(sources: Sequence[Source]) -> list[Source]:
    """Join the rows that name the same source under the same id.

    Raises:
        ManifestError: two sources have one id.
    """
    merged: dict[str, Source] = {}
    for source in sources:
        first = merged.get(source.video_id)
        if first is None:
            merged[source.video_id] = source
            continue
        if not _same(first, source):
            raise ManifestError(
                f"id {source.video_id!r} names two sources ({_named(first)} and "
                f"{_named(source)}); give each an id of its own"
            )
        merged[source.video_id] = replace(
            first,
            questions=tuple(dict.fromkeys((*first.questions, *source.questions))),
            labels=MappingProxyType({**source.labels, **first.labels}),
            rows=(*first.rows, *source.rows),
        )
    return list(merged.values())


def _same(one: Source, other: Source) -> bool:
    def key(path: Path | None) -> str | None:
        return None if path is None else os.path.realpath(path)

    return (
        key(one.path) == key(other.path)
        and key(one.transcript) == key(other.transcript)
        and key(one.features) == key(other.features)
        and one.text == other.text
    )


def _named(source: Source) -> str:
    if source.text is not None:
        text = source.text if isinstance(source.text, str) else json.dumps(source.text)
        inline = f"the text {text[:30]!r}"
        return f"{source.path} with {inline}" if source.path else inline
    names = [str(path) for path in (source.path, source.features, source.transcript)
             if path is not None]
    return " with ".join(names) or "an empty row"
