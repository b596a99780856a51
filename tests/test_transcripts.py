"""Transcript files, inline text, embedded subtitles, and which of them a source gets."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_files import make_sound, make_video

from vbkit.errors import TranscriptError
from vbkit.media import (
    Transcript,
    detect_language,
    embedded_transcript,
    find_sidecar,
    load_transcript,
    parse_text,
    resolve_transcript,
)
from vbkit.media.transcripts import note_times_past, sidecars
from vbkit.media.types import Segment
from vbkit.sources import Source

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Hello</i> <font color="#fff">there</font>,
{\\an8}how are you &amp; yours?

2
00:00:03,000 --> 00:00:04,000
1984

3
00:00:05,000 --> 00:00:06,000
- What?

- Nothing.
"""

VTT = """WEBVTT - a title

NOTE this is no
caption

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start position:0%
<v Fred>Hello <c.loud>there</c>,
how are you?

00:03.000 --> 00:04.000
5 &lt; 6

NOTE the end
"""

ROLLING = """WEBVTT
Kind: captions

00:00:00.000 --> 00:00:02.000 align:start position:0%
\x20
hello<00:00:00.500><c> and</c><00:00:01.000><c> welcome</c>

00:00:02.000 --> 00:00:02.010 align:start position:0%
hello and welcome
\x20

00:00:02.010 --> 00:00:04.000 align:start position:0%
hello and welcome
to<00:00:02.500><c> the</c><00:00:03.000><c> show</c>
"""


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def rows(transcript: Transcript) -> list[tuple[str, float, float]]:
    return [(s.text, s.start_s, s.end_s) for s in transcript.segments]


def test_srt(tmp_path: Path) -> None:
    for newline in ("\n", "\r\n", "\r"):
        found = load_transcript(write(tmp_path / "a.srt", SRT.replace("\n", newline)))
        assert rows(found) == [
            ("Hello there, how are you & yours?", 1.0, 2.5),
            ("1984", 3.0, 4.0),
            ("- What? - Nothing.", 5.0, 6.0),
        ]
        assert found.source == "sidecar"
        assert found.notes == ()


def test_vtt(tmp_path: Path) -> None:
    found = load_transcript(write(tmp_path / "a.vtt", VTT))
    assert rows(found) == [("Hello there, how are you?", 1.0, 2.5), ("5 < 6", 3.0, 4.0)]


def test_captions_that_roll_up_are_not_repeated(tmp_path: Path) -> None:
    found = load_transcript(write(tmp_path / "a.vtt", ROLLING))
    assert rows(found) == [("hello and welcome", 0.0, 2.0), ("to the show", 2.01, 4.0)]


def test_json_and_jsonl(tmp_path: Path) -> None:
    segments = [{"start": 0.0, "end": 1.5, "text": " Hello there.", "tokens": [1, 2]},
                {"start": 1.5, "end": 2.0, "text": " Bye."}]
    expected = [("Hello there.", 0.0, 1.5), ("Bye.", 1.5, 2.0)]
    whole = {"text": "Hello there. Bye.", "segments": segments, "language": "en"}
    found = load_transcript(write(tmp_path / "a.json", json.dumps(whole)))
    assert rows(found) == expected
    assert found.language == "en"
    assert rows(load_transcript(write(tmp_path / "b.json", json.dumps(segments)))) == expected
    lines = "\n".join(map(json.dumps, segments)) + "\n\n"
    assert rows(load_transcript(write(tmp_path / "a.jsonl", lines))) == expected
    with_duration = [{"text": "a b", "start": 1.0, "duration": 0.5}]
    assert rows(load_transcript(write(tmp_path / "c.json", json.dumps(with_duration)))) == [
        ("a b", 1.0, 1.5)]


def test_txt_has_untimed_segments_and_long_lines_become_sentences(tmp_path: Path) -> None:
    long = "This is a sentence that goes on for a while. " * 10
    found = load_transcript(write(tmp_path / "a.txt", f"Short. Two of them.\n\n{long}\n"))
    texts = [s.text for s in found.segments]
    assert texts == ["Short. Two of them.",
                     *["This is a sentence that goes on for a while."] * 10]
    assert not any(s.timed for s in found.segments)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"]
)
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\nDéjà vu, señor Müller\n"
    found = load_transcript(write(tmp_path / "a.srt", text, encoding))
    assert found.segments[0].text == "Déjà vu, señor Müller"


def test_overlapping_and_backward_times_are_repaired_and_noted(tmp_path: Path) -> None:
    text = "".join(f"{i}\n{a} --> {b}\n{words}\n\n" for i, (a, b, words) in enumerate([
        ("00:00:05,000", "00:00:08,000", "second"),
        ("00:00:01,000", "00:00:06,000", "first"),
        ("00:00:09,000", "00:00:07,000", "backward"),
    ], 1))
    found = load_transcript(write(tmp_path / "a.srt", text))
    assert rows(found) == [("first", 1, 5), ("second", 5, 8), ("backward", 9, 9)]
    notes = " ".join(found.notes)
    for words in ("before they start", "not in order", "overlap"):
        assert words in notes


def test_segments_after_the_end_are_noted() -> None:
    transcript = Transcript((Segment("a", 1, 2), Segment("b", 30, 31)), "sidecar")
    assert "after the end" in note_times_past(transcript, 10.0).notes[0]
    assert note_times_past(transcript, 40.0).notes == ()


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.json", b'{"title": "a video", "formats": []}', "segments"),
    ("a.json", b"{", "not JSON"),
    ("a.json", b"[" * 100_000, "not JSON"),
    ("a.json", b'[{"start": 1}]', "segment 0"),
    ("a.jsonl", b'{"text": "a"}\nnot json', "line 2"),
    ("a.srt", b"just some words", "no subtitle"),
    ("a.vtt", b"just some words", "WEBVTT"),
    ("a.txt", bytes(range(256)) * 20, "not text"),
    ("a.doc", b"words", "no transcript"),
])
def test_what_is_no_transcript_is_one_clear_line(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TranscriptError) as caught:
        load_transcript(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_and_missing_files(tmp_path: Path) -> None:
    for name in ("a.srt", "a.vtt", "a.txt", "a.jsonl"):
        found = load_transcript(write(tmp_path / name, ""))
        assert found.segments == ()
        assert "no text" in found.notes[0]
    with pytest.raises(TranscriptError, match="no such file"):
        load_transcript(tmp_path / "missing.srt")


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]),
                max_size=60)


@given(st.lists(texts, max_size=20))
def test_a_list_is_kept_one_to_one(values: list[str]) -> None:
    found = parse_text(values)
    assert [s.text for s in found.segments] == values
    assert all(math.isnan(s.start_s) for s in found.segments)


@given(st.lists(st.fixed_dictionaries({"text": texts, "start": st.floats(0, 100),
                                       "end": st.floats(0, 100)}), max_size=10))
def test_a_list_with_times_is_kept_one_to_one(values: list[dict[str, object]]) -> None:
    assert rows(parse_text(values)) == [(v["text"], v["start"], v["end"]) for v in values]


def test_parse_text() -> None:
    assert [s.text for s in parse_text("one\n\n two. three \n").segments] == ["one", "two. three"]
    mixed = parse_text(["a", {"text": "b", "start": 1, "end": 2}, {"text": "c", "start": 1}])
    assert [s.timed for s in mixed.segments] == [False, True, False]
    assert parse_text([]).segments == ()
    with pytest.raises(TranscriptError, match=r"text\[1\]"):
        parse_text(["a", 3])
    with pytest.raises(TranscriptError, match="int"):
        parse_text(3)


words = st.text(st.sampled_from("abcdef ghij,.!?'é日本<>&-0123456789"), max_size=30)
moments = st.integers(0, 40_000_000)


def clock(ms: int, mark: str) -> str:
    return f"{ms // 3600000:02}:{ms // 60000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


@given(st.lists(st.tuples(moments, moments, words), max_size=15), st.booleans())
def test_subtitles_of_any_kind_give_ordered_finite_segments(tmp_path_factory, cues, vtt) -> None:
    mark = "." if vtt else ","
    body = "".join(f"{i}\n{clock(a, mark)} --> {clock(b, mark)}\n{text}\n\n"
                   for i, (a, b, text) in enumerate(cues, 1))
    path = tmp_path_factory.mktemp("cues") / ("a.vtt" if vtt else "a.srt")
    path.write_text(("WEBVTT\n\n" if vtt else "") + body)
    found = load_transcript(path)
    for segment in found.segments:
        assert segment.text == segment.text.strip() != ""
        assert 0 <= segment.start_s <= segment.end_s
    for one, after in pairwise(found.segments):
        assert one.start_s <= after.start_s
        assert one.end_s <= after.start_s or one.start_s == after.start_s
    starts = {a for a, _, _ in cues}
    assert {round(segment.start_s * 1000) for segment in found.segments} <= starts


@given(st.binary(max_size=400), st.sampled_from(["srt", "vtt", "json", "jsonl", "txt"]))
def test_any_bytes_are_a_transcript_or_a_transcript_error(tmp_path_factory, data, suffix) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"a.{suffix}"
    path.write_bytes(data)
    try:
        found = load_transcript(path)
    except TranscriptError:
        return
    assert all(isinstance(segment, Segment) for segment in found.segments)


# Sidecars and embedded streams


def test_sidecars_in_order(tmp_path: Path) -> None:
    video = tmp_path / "talk.mp4"
    assert find_sidecar(video) is None
    for name in ("talk.txt", "talk.de.srt", "talk.en.srt", "talk.SRT", "talk.pt-BR.vtt",
                 "talk.info.json", "talk2.srt", "talk.part2.srt", "talk.json", "other.srt"):
        (tmp_path / name).touch()
    assert [path.name for path in sidecars(video)] == [
        "talk.SRT", "talk.en.srt", "talk.de.srt", "talk.pt-BR.vtt", "talk.json", "talk.txt"]
    assert find_sidecar(video) == tmp_path / "talk.SRT"


SUBTITLES = [(0.2, 0.9, "Hello <i>world</i> & all"), (1.0, 2.0, "Second line")]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_embedded_subtitles(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"a{suffix}", n=60, subtitles=SUBTITLES)
    found = embedded_transcript(path)
    assert [s.text for s in found.segments] == ["Hello world & all", "Second line"]
    assert [s.start_s for s in found.segments] == pytest.approx([0.2, 1.0])
    assert [s.end_s for s in found.segments] == pytest.approx([0.9, 2.0])
    assert found.source == "embedded"
    assert embedded_transcript(make_video(tmp_path / f"mute{suffix}", n=3)) is None


def test_embedded_times_count_from_the_first_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "late.mkv", times_ms=list(range(2000, 4000, 40)),
                      subtitles=[(2.5, 3.0, "half a second in")])
    for found in (embedded_transcript(path), embedded_transcript(path, 2.0)):
        assert rows(found) == [("half a second in", pytest.approx(0.5), pytest.approx(1.0))]


# Which transcript a source gets


def test_resolving(tmp_path: Path) -> None:
    path = make_video(tmp_path / "talk.mkv", n=50, subtitles=SUBTITLES)
    video = Source("talk", path)
    assert resolve_transcript(video).source == "embedded"
    assert resolve_transcript(video, "none") == Transcript(
        notes=("no transcript: --transcript none",))
    named = write(tmp_path / "named.srt", SRT)
    assert resolve_transcript(video, named).segments[0].text.startswith("Hello there")
    (tmp_path / "subs").mkdir()
    write(tmp_path / "subs" / "talk.srt", SRT)
    assert len(resolve_transcript(video, tmp_path / "subs").segments) == 3
    with_text = Source("talk", path, text=["", "b"])
    assert [s.text for s in resolve_transcript(with_text, "none").segments] == ["", "b"]
    with_file = Source("talk", path, transcript=named)
    assert resolve_transcript(with_file).source == "sidecar"
    write(tmp_path / "talk.json", '{"title": "metadata of the download"}')
    found = resolve_transcript(video)
    assert found.source == "embedded"
    assert "talk.json" in found.notes[0]
    write(tmp_path / "talk.srt", SRT)
    found = resolve_transcript(video, duration_s=3.0)
    assert found.source == "sidecar"
    assert "after the end" in found.notes[-1]
    with pytest.raises(TranscriptError, match="no such file"):
        resolve_transcript(video, tmp_path / "missing.srt")


def test_speech_comes_last_and_none_says_why(tmp_path: Path) -> None:
    sound = Source("tone", make_sound(tmp_path / "tone.wav"), "audio")
    found = resolve_transcript(sound)
    assert found.source == "none"
    assert found.notes == ("no transcript: no sidecar file, no speech to text",)
    spoken = Transcript((Segment("hi", 0, 1),), "speech")
    assert resolve_transcript(sound, speech=lambda path: spoken).source == "speech"
    write(tmp_path / "tone.txt", "words")
    assert resolve_transcript(sound, speech=lambda path: spoken).source == "sidecar"


# Language


@pytest.mark.parametrize(("text", "language"), [
    ("Hello and welcome to the show, today we will talk about cooking.", "en"),
    ("Guten Tag und herzlich willkommen, heute kochen wir zusammen eine Suppe.", "de"),
    ("Bonjour à tous, aujourd'hui nous allons préparer une soupe aux légumes.", "fr"),
    ("今日は天気がいいですね。散歩に行きましょう。", "ja"),
    ("", None), ("12 34", None), ("ok", None), ("yes no", None),
])
def test_language(text: str, language: str | None) -> None:
    assert detect_language([text]) == language


@pytest.mark.parametrize("text", [
    "bin blue at f two now", "bin red by k seven now", "set white with p two soon",
    "lay blue at x four now", "lay blue by c two again", "lay white by s zero again",
    "set blue in a one again", "set blue with e five now", "uh huh", "pizza mozzarella basil",
])
def test_short_english_is_never_taken_for_another_language(text: str) -> None:
    assert detect_language([text]) in ("en", None)
