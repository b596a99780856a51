"""Read transcripts: subtitle files, Whisper's JSON, plain text, embedded streams, inline text."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbkit.errors import MediaError, TranscriptError
from vbkit.media.kinds import TRANSCRIPT_SUFFIXES
from vbkit.media.language import detect_language
from vbkit.media.types import Segment, Transcript, Word

if TYPE_CHECKING:
    from vbkit.sources import Source

__all__ = [
    "NO_SOUND",
    "decode_text",
    "detect_language",
    "embedded_transcript",
    "find_sidecar",
    "finish_transcript",
    "load_transcript",
    "note_times_past",
    "parse_text",
    "resolve_transcript",
    "sidecars",
]

NO_SOUND = "there is no sound in it"

_MOST_BYTES = 64 << 20
_LONG_LINE = 300  # characters; a longer line of plain text is split into sentences
_TEXT_CODECS = frozenset({"ass", "mov_text", "srt", "ssa", "subrip", "text", "webvtt"})

_CLOCK = r"(?:(\d+):)?(\d{1,3}):(\d{1,2})(?:[.,](\d{1,6}))?"
_TIMING = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}(?=\s|$)")
_TAG = re.compile(r"</?[a-zA-Z0-9][^<>]*>")
_ASS_OVERRIDE = re.compile(r"\{\\[^{}]*\}")
_WORD_TIME = re.compile(r"<\d+:\d\d(?::\d\d)?[.,]\d+>")
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200e\u200f\u2060\xad"))
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])\s*")
_LANGUAGE_SUFFIX = re.compile(r"[a-z]{2,3}(?:[-_][a-z0-9]{2,8})*", re.IGNORECASE)


# Text and bytes


def decode_text(data: bytes) -> str:
    """Text out of bytes in UTF-8, UTF-16 or UTF-32 with or without a mark, else Windows-1252.

    Raises:
        TranscriptError: the bytes are no text.
    """
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\x00\x00", "utf-32"),
        (b"\x00\x00\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(encoding, "replace").lstrip("\ufeff")
    head = data[:4096]
    if head.count(0) > len(head) // 4:
        little = head[1::2].count(0) > head[0::2].count(0)
        text = data.decode("utf-16-le" if little else "utf-16-be", "replace")
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            # The five bytes that Windows-1252 leaves undefined are Latin-1's controls.
            text = data.decode("cp1252", "replace").replace("\ufffd", "")
    sample = text[:4096]
    odd = sum(c == "\ufffd" or (c < " " and c not in "\t\n\r\f\v\x1b") for c in sample)
    if odd > len(sample) // 50:
        raise TranscriptError("it is not text")
    return text


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise TranscriptError(f"{path}: too large for a transcript")
        return decode_text(path.read_bytes())
    except FileNotFoundError:
        raise TranscriptError(f"{path}: no such file") from None
    except OSError as error:
        raise TranscriptError(f"{path}: cannot be read ({error.strerror or error})") from None
    except TranscriptError as error:
        raise TranscriptError(f"{path}: {error}") from None


def _clean(text: str) -> str:
    """A cue's text without markup, entities and line breaks."""
    text = _ASS_OVERRIDE.sub("", text.replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " "))
    text = html.unescape(_TAG.sub("", text)).translate(_INVISIBLE)
    return " ".join(text.split())


def _sentences(line: str) -> list[str]:
    if len(line) <= _LONG_LINE:
        return [line]
    return [part for part in (part.strip() for part in _SENTENCE_END.split(line)) if part]


# Files


def load_transcript(path: str | Path) -> Transcript:
    """Read a transcript file.

    `.srt` and `.vtt` cues lose their markup; `.json` is Whisper's (`{"segments": [{"start",
    "end", "text"}]}`, or such a list); `.jsonl` has a segment a line; `.txt` an untimed segment a
    line, long lines being split into sentences. Segments come in order of time, the end of each
    clamped to the start of the next; what was repaired is in `notes`.

    Raises:
        TranscriptError: the file is missing, unreadable, or no transcript.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    readers: dict[str, Callable[[str], tuple[list[Segment], str | None]]] = {
        ".srt": _from_srt, ".vtt": _from_vtt, ".json": _from_json, ".jsonl": _from_jsonl,
        ".txt": _from_lines,
    }
    if suffix not in readers:
        raise TranscriptError(
            f"{path}: {suffix or 'no suffix'} is no transcript; "
            f"known are {', '.join(TRANSCRIPT_SUFFIXES)}"
        )
    text = _read(path)
    try:
        segments, language = readers[suffix](text)
    except TranscriptError as error:
        raise TranscriptError(f"{path}: {error}") from None
    return _finish(segments, "sidecar", language, path.name)


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str | None) -> float:
    return (int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
            + (float(f"0.{fraction}") if fraction else 0.0))


def _cues(text: str) -> list[tuple[float, float, list[str]]]:
    """(start, end, lines up to the next timing line) of each cue."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    timings = [(i, match) for i, line in enumerate(lines) if (match := _TIMING.match(line))]
    stops = [*(i for i, _ in timings), len(lines)][1:]
    return [
        (_seconds(*match.groups()[:4]), _seconds(*match.groups()[4:]), lines[i + 1 : stop])
        for (i, match), stop in zip(timings, stops, strict=True)
    ]


def _from_srt(text: str) -> tuple[list[Segment], None]:
    cues = _cues(text)
    if not cues and text.strip():
        raise TranscriptError("no subtitle with a time (00:00:01,000 --> 00:00:02,000) in it")
    segments = []
    for position, (start, end, lines) in enumerate(cues):
        if position < len(cues) - 1:
            lines = _without_number(lines)
        segments.append(Segment(_clean("\n".join(lines)), start, end))
    return segments, None


def _without_number(lines: list[str]) -> list[str]:
    """A cue's lines without the number of the cue after it, which stands alone on a line."""
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    if end and lines[end - 1].strip().isdigit() and (end == 1 or not lines[end - 2].strip()):
        return lines[: end - 1]
    return lines[:end]


def _from_vtt(text: str) -> tuple[list[Segment], None]:
    cues = _cues(text)
    if not cues and text.strip() and not text.lstrip("\ufeff").startswith("WEBVTT"):
        raise TranscriptError("neither a WEBVTT header nor a cue in it")
    rolling = bool(_WORD_TIME.search(text))
    segments: list[Segment] = []
    before: list[str] = []
    for start, end, lines in cues:
        body: list[str] = []
        for line in lines:
            if not line.strip() and (body or not rolling):
                break
            body.append(_clean(line))
        # Captions that roll up repeat the line above; it was a segment already.
        fresh = [line for line in body if line not in before] if rolling else body
        segments.append(Segment(" ".join(line for line in fresh if line), start, end))
        before = body or before
    return segments, None


def _number(value: Any) -> float:
    """A time (s), NaN where there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return nan
    return number if isfinite(number) else nan


def _segment(item: Any, where: str) -> Segment:
    """A segment out of a string or of `{"text", "start", "end"}`.

    Raises:
        TranscriptError: it is neither.
    """
    if isinstance(item, str):
        return Segment(item)
    if not isinstance(item, Mapping) or not isinstance(item.get("text"), str):
        raise TranscriptError(f"{where} is neither a string nor an object with a \"text\"")
    start, end = _number(item.get("start")), _number(item.get("end"))
    if end != end and start == start:
        end = start + _number(item.get("duration"))
    if start != start or end != end:
        start = end = nan
    return Segment(item["text"], start, end, _words(item.get("words")))


def _words(value: Any) -> tuple[Word, ...]:
    """The timed words of Whisper's JSON, without those that are malformed."""
    words = []
    for item in value if isinstance(value, list) else ():
        if not isinstance(item, Mapping) or not isinstance(item.get("word"), str):
            continue
        start, end = _number(item.get("start")), _number(item.get("end"))
        if start == start and end == end and item["word"].strip():
            words.append(Word(item["word"].strip(), start, end, _number(item.get("probability"))))
    return tuple(words)


def _from_json(text: str) -> tuple[list[Segment], str | None]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"not JSON ({_one_line(error)})") from None
    language = None
    if isinstance(value, Mapping):
        if isinstance(value.get("language"), str) and re.fullmatch("[a-z]{2}", value["language"]):
            language = value["language"]
        items = value.get("segments")
        if items is None:
            raise TranscriptError("not a transcript: it has no \"segments\"")
    else:
        items = value
    if not isinstance(items, list):
        raise TranscriptError("not a transcript: no list of segments in it")
    segments = [_segment(item, f"segment {i}") for i, item in enumerate(items)]
    return [replace(s, text=" ".join(s.text.split())) for s in segments], language


def _from_jsonl(text: str) -> tuple[list[Segment], None]:
    segments = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TranscriptError(f"line {number}: not JSON ({_one_line(error)})") from None
        segment = _segment(item, f"line {number}")
        segments.append(replace(segment, text=" ".join(segment.text.split())))
    return segments, None


def _from_lines(text: str) -> tuple[list[Segment], None]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [Segment(part) for line in lines if line for part in _sentences(line)], None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _finish(
    segments: Iterable[Segment], source: str, language: str | None, name: str
) -> Transcript:
    """Drop empty segments, put the rest in order, note what was repaired."""
    kept = [segment for segment in segments if segment.text.strip()]
    notes = []
    timed = [segment for segment in kept if segment.timed]
    if timed and len(timed) < len(kept):
        notes.append(f"{name}: {len(kept) - len(timed)} of {len(kept)} segments have no times")
    elif timed:
        backward = sum(segment.end_s < segment.start_s for segment in timed)
        if backward:
            notes.append(f"{name}: {backward} segment(s) end before they start; the end was "
                         "taken to be the start")
        order = sorted(timed, key=lambda segment: segment.start_s)
        if order != timed:
            notes.append(f"{name}: segments were not in order of time and have been sorted")
        overlapping = 0
        kept = []
        for segment, after in zip(order, [*order[1:], None], strict=True):
            start = max(0.0, segment.start_s)
            end = max(start, segment.end_s)
            if after is not None and start < after.start_s < end:
                overlapping += 1
                end = after.start_s
            kept.append(replace(segment, start_s=start, end_s=end))
        if overlapping:
            notes.append(f"{name}: {overlapping} segment(s) overlap the next; they were cut "
                         "to end where it starts")
    if not kept:
        notes.append(f"{name}: there is no text in it")
    if language is None:
        language = detect_language(segment.text for segment in kept)
    return Transcript(tuple(kept), source, language, tuple(notes))


def finish_transcript(transcript: Transcript, source: str) -> Transcript:
    """What a transcriber made, put in order: segments sorted, not overlapping, none empty.

    The language is what it says of the transcript, else of most of the time, else the text's own.
    """
    language = transcript.language
    if language is None:
        spoken: dict[str, float] = {}
        for segment in transcript.segments:
            if segment.language is not None and segment.timed:
                spoken[segment.language] = (
                    spoken.get(segment.language, 0.0) + segment.end_s - segment.start_s)
        language = max(spoken, key=spoken.__getitem__) if spoken else None
    if not transcript.segments:
        return replace(transcript, source=source)
    made = _finish(transcript.segments, source, language, source)
    return replace(made, notes=(*transcript.notes, *made.notes))


# Inline text


def parse_text(value: str | Sequence[str | Mapping[str, Any]]) -> Transcript:
    """A transcript out of inline text.

    A string gives an untimed segment for each line that is not blank. A list of strings, or of
    `{"text", "start", "end"}`, is kept one to one, in its order, empty strings included.

    Raises:
        TranscriptError: an entry is neither.
    """
    if isinstance(value, str):
        lines = (line.strip() for line in value.splitlines())
        segments = [Segment(line) for line in lines if line]
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        segments = [_segment(item, f"text[{i}]") for i, item in enumerate(value)]
    else:
        raise TranscriptError(f"text must be a string or a list, not {type(value).__name__}")
    language = detect_language(segment.text for segment in segments)
    return Transcript(tuple(segments), "text", language)


# Beside and inside videos


@lru_cache(maxsize=64)
def _names(folder: str, changed_ns: int) -> tuple[str, ...]:
    return tuple(sorted(os.listdir(folder)))


def sidecars(video: str | Path) -> list[Path]:
    """Transcript files beside a video, best first.

    They have the video's stem, or the stem and a language (`talk.en.srt`; English first); formats
    come in the order of `TRANSCRIPT_SUFFIXES`.
    """
    video = Path(video)
    try:
        names = _names(str(video.parent), video.parent.stat().st_mtime_ns)
    except OSError:
        return []
    found = []
    for name in names:
        if not name.startswith(video.stem) or name == video.name:
            continue
        rest, suffix = os.path.splitext(name[len(video.stem) :])
        if suffix == "" and rest.startswith("."):
            rest, suffix = "", rest
        suffix = suffix.lower()
        if suffix not in TRANSCRIPT_SUFFIXES:
            continue
        if rest and not (rest[0] == "." and _LANGUAGE_SUFFIX.fullmatch(rest[1:])):
            continue
        path = video.parent / name
        if path.is_file():
            english = rest[1:3].lower() == "en"
            rank = (TRANSCRIPT_SUFFIXES.index(suffix), rest != "", not english, name)
            found.append((rank, path))
    return [path for _, path in sorted(found)]


def find_sidecar(video: str | Path) -> Path | None:
    """The best transcript file beside a video, or None."""
    return next(iter(sidecars(video)), None)


def embedded_transcript(
    path: str | Path, start_offset_s: float | None = None
) -> Transcript | None:
    """The text subtitles inside a video, or None where there are none.

    The stream is the default one, else the first; forced ones (foreign parts only) come last, and
    subtitles that are pictures are left out.

    Args:
        path: the video.
        start_offset_s: the container's time of the first presented frame, where it is known.

    Raises:
        MediaError: the file cannot be read.
    """
    import av
    from av.stream import Disposition

    from vbkit.media.index import main_video_stream, open_container, packets, read_index

    path = Path(path)
    segments = []
    with open_container(path) as container:
        streams = [
            stream for stream in container.streams.subtitles
            if stream.codec_context is not None and stream.codec_context.name in _TEXT_CODECS
        ]
        if not streams:
            return None
        stream = min(streams, key=lambda s: (
            bool(s.disposition & Disposition.forced),
            not s.disposition & Disposition.default,
            s.index,
        ))
        if start_offset_s is None and main_video_stream(container) is not None:
            start_offset_s = read_index(path).start_offset_s
        shift = start_offset_s or 0.0
        for packet in packets(container, stream):
            if not packet.size or packet.pts is None:
                continue
            start = float(packet.pts * stream.time_base) - shift
            end = start + float((packet.duration or 0) * stream.time_base)
            try:
                text = _packet_text(packet)
            except av.FFmpegError:
                continue
            if text:
                segments.append(Segment(text, start, end))
    if not segments:
        return None
    return _finish(segments, "embedded", None, "embedded subtitles")


def _packet_text(packet: Any) -> str:
    """The text of a subtitle packet, without markup."""
    parts = []
    for item in packet.decode():
        for piece in item if hasattr(item, "__iter__") else (item,):
            dialogue = getattr(piece, "dialogue", b"")
            parts.append(_clean(dialogue.decode("utf-8", "replace")))
    return " ".join(part for part in parts if part)


# What a source's transcript is


def note_times_past(transcript: Transcript, duration_s: float, slack_s: float = 1.0) -> Transcript:
    """The same transcript, with a note where segments start after the end of the video."""
    late = sum(s.timed and s.start_s > duration_s + slack_s for s in transcript.segments)
    if not late:
        return transcript
    note = (f"{late} of {len(transcript.segments)} segments start after the end of the video "
            f"({duration_s:.1f} s); is it the right transcript?")
    return replace(transcript, notes=(*transcript.notes, note))


def resolve_transcript(
    source: Source,
    mode: str | Path = "auto",
    *,
    embedded: Callable[[], Transcript | None] | None = None,
    speech: Callable[[Path], Transcript] | str | None = None,
    duration_s: float | None = None,
) -> Transcript:
    """The transcript of a source.

    What its manifest row names comes first, whatever the mode: inline text, then a file. Else
    `"none"` gives none, a path that file (or, where it is a folder, the file in it with the
    video's stem), and `"auto"` the first of: a sidecar, an embedded stream, speech.

    Args:
        source: the source.
        mode: `"auto"`, `"none"` or a path.
        embedded: gives the embedded transcript, or None; by default the file is read here.
        speech: turns the sound of a file into text, or says in words why it cannot; None where
            there is none.
        duration_s: of the picture, to note segments that come after its end.

    Returns:
        A transcript; without segments and with `source` `"none"` where there is none, and with
        notes that say what was passed over.

    Raises:
        TranscriptError: a transcript that was named, by the manifest or `mode`, cannot be read.
    """
    transcript = _resolve(source, mode, embedded, speech)
    return transcript if duration_s is None else note_times_past(transcript, duration_s)


def _resolve(
    source: Source,
    mode: str | Path,
    embedded: Callable[[], Transcript | None] | None,
    speech: Callable[[Path], Transcript] | str | None,
) -> Transcript:
    if source.text is not None:
        return parse_text(source.text)
    if source.transcript is not None:
        return load_transcript(source.transcript)
    if mode == "none":
        return Transcript(notes=("no transcript: --transcript none",))
    if source.path is None or source.kind == "image":
        return Transcript()
    if mode != "auto":
        named = Path(mode)
        if not named.is_dir():
            return load_transcript(named)
        beside = sidecars(named / source.path.name)
        if beside:
            return load_transcript(beside[0])
        return Transcript(notes=(f"no transcript of {source.path.name} in {named}",))
    notes: list[str] = []
    for path in sidecars(source.path):
        try:
            found = load_transcript(path)
        except TranscriptError as error:
            notes.append(f"passed over: {error}")
            continue
        if found.segments:
            return replace(found, notes=(*notes, *found.notes))
        notes.extend(found.notes)
    if source.kind == "video":
        try:
            inside = embedded_transcript(source.path) if embedded is None else embedded()
        except MediaError as error:
            inside = None
            notes.append(f"embedded subtitles: {error}")
        if inside is not None and inside.segments:
            return replace(inside, notes=(*notes, *inside.notes))
    passed = ["no sidecar file"]
    if source.kind == "video":
        passed.append("no embedded subtitles")
    if callable(speech):
        spoken = speech(source.path)
        if spoken.segments:
            return replace(spoken, notes=(*notes, *spoken.notes))
        notes.extend(note for note in spoken.notes if note != NO_SOUND)
        passed.append("no sound" if NO_SOUND in spoken.notes else "no speech in its sound")
    else:
        passed.append(f"no speech to text{f' ({speech})' if speech else ''}")
    notes.append(f"no transcript: {', '.join(passed)}")
    return Transcript(notes=tuple(notes))
