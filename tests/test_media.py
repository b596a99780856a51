"""Readers and the frame index: the frame returned for a time is the one shown then."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import media_files
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from media_files import flip_bits, has_encoder, make_sound, make_video, read_number, truncate
from PIL import Image

from vbkit.errors import MediaError
from vbkit.media import VideoReader, audio_duration, content_id, has_audio, open_video, raw_frames
from vbkit.media.open import READERS
from vbkit.media.sizes import clip_grid, clip_sample_times, decode_size

VFR_MS = [0, 40, 80, 500, 520, 540, 1500, 1540, 1580, 3000]

FORMATS = {
    "h264.mp4": {},
    "b_frames.mp4": {"options": {"bf": "3", "g": "20"}},
    "open_gop.mkv": {"n": 100, "options": {"bf": "3", "g": "12", "x264-params": "open-gop=1"}},
    "h264.ts": {"options": {"g": "20"}},
    "h264.avi": {"options": {"g": "20", "bf": "3"}},
    "raw.h264": {"options": {"g": "20"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"bf": "2"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "hevc10.mp4": {"codec": "libx265", "pix_fmt": "yuv420p10le",
                   "options": {"x265-params": "log-level=none"}},
    "av1.mp4": {"codec": "libsvtav1", "options": {"preset": "10", "crf": "10"}},
    "vp8.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "10"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "wmv2.wmv": {"codec": "wmv2"},
    "animated.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "vfr.mp4": {"times_ms": VFR_MS},
    "vfr.mkv": {"times_ms": VFR_MS},
    "offset.mkv": {"times_ms": list(range(2000, 3200, 40))},
    "one_frame.mp4": {"n": 1},
}


EXACT_IN_DECORD = {"h264.mp4", "b_frames.mp4", "hevc10.mp4", "av1.mp4", "vp8.webm", "vp9.webm",
                   "vfr.mp4", "vfr.mkv", "offset.mkv", "one_frame.mp4"}


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory):
    """Make each format once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("media")

    def make(name: str) -> Path:
        settings = FORMATS[name]
        codec = settings.get("codec", "libx264")
        if not has_encoder(codec):
            pytest.skip(f"PyAV has no encoder {codec}")
        path = folder / name
        if not path.exists():
            make_video(path, **settings)
        return path

    return make


def numbers_at(reader: VideoReader, times) -> list[int]:
    return [read_number(frame) for batch in reader.frames_at(times) for frame in batch.data]


def frame_times(name: str) -> np.ndarray:
    """When each frame was told to be shown, s from the first."""
    settings = FORMATS[name]
    if "times_ms" in settings:
        return (np.array(settings["times_ms"]) - settings["times_ms"][0]) / 1000
    return np.arange(settings.get("n", 60)) / 25


@pytest.mark.parametrize("reader_name", READERS)
@pytest.mark.parametrize("name", FORMATS)
def test_the_frame_at_a_time_is_the_one_shown_then(files, name: str, reader_name: str) -> None:
    path = files(name)
    if reader_name == "decord" and name not in EXACT_IN_DECORD:
        with pytest.raises(MediaError, match="decord"):
            open_video(path, {"reader": reader_name})
        return
    reader = open_video(path, {"height": 64, "reader": reader_name})
    truth = frame_times(name)
    assert isinstance(reader, VideoReader)
    assert reader.info.n_frames == len(truth)
    last = reader.info.duration_s - truth[-1]
    assert 0 < last < 0.1
    expected = list(range(len(truth)))
    assert numbers_at(reader, truth) == expected
    middles = truth + np.diff(truth, append=truth[-1] + last) / 2
    assert numbers_at(reader, middles) == expected
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, reader.info.duration_s, 20))
    shown = np.searchsorted(truth, times, "right") - 1
    assert numbers_at(reader, times) == shown.tolist()
    for sparse in (middles[::9], middles[-1:], middles[len(middles) // 2 :: 5]):
        wanted = np.searchsorted(truth, sparse, "right") - 1
        assert numbers_at(reader, sparse) == wanted.tolist()
    assert reader.damaged == 0


def test_batches_carry_the_times_of_their_frames(files) -> None:
    reader = open_video(files("vfr.mp4"), {"height": 64})
    batches = list(reader.frames_at([0.0, 0.3, 0.3, 0.51, 2.9, 50.0]))
    times = np.concatenate([batch.pts_seconds for batch in batches])
    assert times == pytest.approx([0, 0.08, 0.08, 0.5, 1.58, 3.0], abs=1e-6)
    durations = np.concatenate([batch.duration_seconds for batch in batches])
    assert durations[:5] == pytest.approx([0.04, 0.42, 0.42, 0.02, 1.42], abs=1e-6)


def test_start_offset_is_kept_and_times_start_at_zero(files) -> None:
    info = open_video(files("offset.mkv")).info
    assert info.start_offset_s == pytest.approx(2.0)
    assert info.duration_s == pytest.approx(1.2)


def test_frames_hidden_by_an_edit_list_are_not_presented(tmp_path: Path) -> None:
    path = make_video(tmp_path / "whole.mp4", n=50, options={"bf": "2", "g": "25"})
    data = bytearray(path.read_bytes())
    at = data.find(b"elst")  # version, flags, count, then duration, media time, rate
    assert at > 0
    start = int.from_bytes(data[at + 16 : at + 20], "big")
    with av.open(str(path)) as container:
        ticks = round(0.4 / container.streams.video[0].time_base)
    data[at + 16 : at + 20] = (start + ticks).to_bytes(4, "big")  # 10 frames of 25 a second
    path.write_bytes(bytes(data))
    reader = open_video(path, {"height": 64})
    assert reader.info.n_frames == 40
    assert numbers_at(reader, [0.0, 0.2, 1.0, 1.58]) == [10, 15, 35, 49]
    with pytest.raises(MediaError, match="decord"):  # it would return 20, 25, ...
        open_video(path, {"reader": "decord"})


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    path = make_video(tmp_path / "turned.mp4", n=10, rotation=degrees)
    reader = open_video(path, {"height": 128})
    size = (128, 320) if degrees % 180 else (320, 128)
    assert (reader.info.width, reader.info.height) == size
    frame = next(iter(reader.frames_at([0.2]))).data[0]
    assert frame.shape[:2] == size[::-1]
    assert read_number(np.rot90(frame, -degrees // 90)) == 5
    assert reader.info.rotation == -degrees % 360


def test_pixel_aspect_is_applied(tmp_path: Path) -> None:
    path = make_video(tmp_path / "anamorphic.mp4", n=5, size=(160, 128), sar=Fraction(2, 1))
    reader = open_video(path, {"height": 64})
    assert (reader.info.width, reader.info.height) == (320, 128)
    assert next(iter(reader.frames_at([0.0]))).data.shape == (1, 64, 160, 3)


def test_4k_is_decoded_small_in_bounded_batches(tmp_path: Path) -> None:
    path = make_video(tmp_path / "4k.mp4", n=8, size=(3840, 2160), options={"preset": "ultrafast"})
    reader = open_video(path, {"height": 224})
    assert numbers_at(reader, np.arange(8) / 25) == list(range(8))
    assert next(iter(reader.frames_at([0.0]))).data.shape == (1, 224, 398, 3)
    assert max(len(batch) for batch in open_video(path).frames_at(np.arange(8) / 25)) == 1


def test_decoder_threads_do_not_change_the_frames(files) -> None:
    times = np.arange(0.02, 2.4, 0.1)
    one, three = (
        np.concatenate([b.data for b in open_video(
            files("b_frames.mp4"), {"height": 64, "threads": n}).frames_at(times)])
        for n in (1, 3)
    )
    assert np.array_equal(one, three)


def test_the_picture_of_a_frame_does_not_depend_on_the_others_asked_for(files) -> None:
    reader = open_video(files("b_frames.mp4"), {"height": 64})
    together = np.concatenate([b.data for b in reader.frames_at(np.arange(60) / 25)])
    for number in (0, 7, 31, 59):
        assert np.array_equal(next(iter(reader.frames_at([number / 25]))).data[0], together[number])


def test_sound_beside_the_picture_is_told(tmp_path: Path) -> None:
    path = make_video(tmp_path / "loud.mp4", n=30, audio=True)
    assert open_video(path).info.has_audio
    assert has_audio(path)
    assert audio_duration(path) == pytest.approx(1.2, abs=0.1)


# What is no video, or a broken one


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    good = make_video(folder / "good.mp4", n=20)
    text = folder / "text.mp4"
    text.write_text("this is not a video at all\n" * 50)
    empty = folder / "empty.mp4"
    empty.touch()
    noise = folder / "noise.mkv"
    noise.write_bytes(random.Random(0).randbytes(20000))
    head = folder / "head.mp4"
    head.write_bytes(good.read_bytes()[:40])
    no_frames = folder / "no_frames.avi"
    with av.open(str(no_frames), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        container.start_encoding()
    folder_path = folder / "folder.mp4"
    folder_path.mkdir()
    return {
        "missing": (folder / "missing.mp4", "no such file"),
        "empty": (empty, "empty"),
        "text": (text, "not a video"),
        "noise": (noise, "not a video"),
        "no index": (truncate(good, folder / "no_moov.mp4", 0.5), "not a video"),
        "head": (head, "not a video"),
        "folder": (folder_path, "folder"),
        "sound": (make_sound(folder / "tone.wav"), "no picture"),
        "no frames": (no_frames, "no"),
    }


def test_what_is_no_video_is_one_clear_line(tmp_path: Path) -> None:
    for name, (path, words) in bad_files(tmp_path).items():
        with pytest.raises(MediaError) as caught:
            open_video(path)
        message = str(caught.value)
        assert words in message, name
        assert str(path) in message, name
        assert "\n" not in message, name


def test_a_truncated_video_plays_up_to_its_end(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mkv", n=100, options={"g": "10"})
    reader = open_video(truncate(whole, tmp_path / "cut.mkv", 0.6), {"height": 64})
    assert 20 < reader.info.n_frames < 90
    numbers = numbers_at(reader, np.arange(reader.info.n_frames - 1) / 25)
    assert numbers == list(range(reader.info.n_frames - 1))
    list(reader.frames_at([99.0]))
    assert reader.damaged <= 1


@pytest.mark.parametrize("seed", range(4))
def test_damaged_frames_are_replaced_by_good_ones_and_counted(tmp_path: Path, seed: int) -> None:
    whole = make_video(tmp_path / "whole.mp4", n=60, codec="mpeg4" if seed % 2 else "libx264",
                       options={"g": "10"})
    path = flip_bits(whole, tmp_path / "flipped.mp4", 40, seed)
    reader = open_video(path, {"height": 64})
    frames = np.concatenate([b.data for b in reader.frames_at(np.arange(60) / 25)])
    assert frames.shape == (60, 64, 160, 3)
    assert 0 < reader.damaged < 60


def test_a_video_without_one_good_frame_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "whole.mp4", n=5)
    data = path.read_bytes()
    start, end = data.find(b"mdat") + 4, data.find(b"moov") - 4
    assert 0 < start < end
    path.write_bytes(data[:start] + bytes(end - start) + data[end:])
    with pytest.raises(MediaError, match="no frame"):
        open_video(path)


def test_times_that_decrease_are_refused(files) -> None:
    with pytest.raises(ValueError, match="decrease"):
        open_video(files("h264.mp4")).frames_at([1.0, 0.5])


# Pictures


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    Image.fromarray(media_files.numbered_frame(321)).save(path)
    reader = open_video(path, {"height": 64})
    assert (reader.info.duration_s, reader.info.n_frames) == (0.0, 1)
    assert (reader.info.width, reader.info.height) == (320, 128)
    assert numbers_at(reader, [0.0, 0.0]) == [321, 321]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"photo{suffix}"
    upright = Image.fromarray(media_files.numbered_frame(77, 640, 256))
    undo = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
            8: Image.Transpose.ROTATE_270}[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif)
    reader = open_video(path, {"height": 64})
    assert (reader.info.width, reader.info.height) == (640, 256)
    assert numbers_at(reader, [0.0]) == [77]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_pictures_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(media_files.numbered_frame(5)).convert("L")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    elif mode in "IF":
        picture = Image.fromarray(np.asarray(grey, np.int32 if mode == "I" else np.float32))
    else:
        picture = grey.convert("RGB").convert(mode)
    path = tmp_path / "picture.tiff"
    picture.save(path)
    assert numbers_at(open_video(path, {"height": 128}), [0.0]) == [5]


def test_a_broken_picture_is_one_clear_line(tmp_path: Path) -> None:
    good = tmp_path / "good.jpg"
    Image.fromarray(media_files.numbered_frame(1)).save(good)
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    for path in (truncate(good, tmp_path / "cut.jpg", 0.4), text, tmp_path / "missing.png"):
        with pytest.raises(MediaError) as caught:
            open_video(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


# Opening, and frames for heads


class Blank:
    """The least that a plugin's reader can be."""

    def __init__(self, path: Path) -> None:
        self.path = path


def test_hook_openers_come_first_and_may_decline_or_fail(files) -> None:
    asked = []

    def declines(path, options):
        asked.append(options["height"])

    def fails(path, options):
        raise RuntimeError("broken plugin")

    def refuses(path, options):
        raise MediaError(f"{path}: encrypted")

    path = files("h264.mp4")
    assert open_video(path, {"height": 32}, [declines, fails]).info.reader == "pyav"
    assert asked == [32]
    blank = open_video(path, {}, [lambda path, options: Blank(path)])
    assert isinstance(blank, Blank)
    with pytest.raises(MediaError, match="encrypted"):
        open_video(path, {}, [refuses])


def test_raw_frames(files) -> None:
    path = files("h264.mp4")
    frames = [f for batch in raw_frames(path, fps=5, height=64) for f in batch.data]
    assert [read_number(frame) for frame in frames] == list(range(2, 60, 5))
    assert next(raw_frames(path, times=[0.0])).data.shape == (1, 128, 320, 3)
    with pytest.raises(ValueError, match="either"):
        next(raw_frames(path))


def test_media_does_not_import_torch(files) -> None:
    code = ("import sys, vbkit.media, vbkit.sources, vbkit.media.worker, vbkit.media.decode\n"
            "list(vbkit.media.open_video(sys.argv[1]).frames_at([0]))\n"
            "assert 'torch' not in sys.modules and 'decord' not in sys.modules\n")
    subprocess.run([sys.executable, "-c", code, str(files("h264.mp4"))], check=True)


# Sizes and clips


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 512))
def test_decode_size(width: int, height: int, short: int) -> None:
    w, h = decode_size(width, height, short)
    assert min(w, h) == short
    assert max(w, h) <= 4 * short
    assert (w >= h) == (width >= height) or w == h
    if max(width, height) <= 4 * min(width, height):
        assert max(w, h) / short == pytest.approx(
            max(width, height) / min(width, height), abs=0.51 / short)


@given(st.floats(0, 20000), st.floats(0.1, 30))
def test_clip_grid(duration: float, clip_s: float) -> None:
    clips = clip_grid(duration, clip_s)
    assert clips.dtype == np.float64
    assert clips[0, 0] == 0
    assert clips[-1, 1] == duration
    assert np.array_equal(clips[1:, 0], clips[:-1, 1])
    lengths = clips[:, 1] - clips[:, 0]
    assert np.allclose(lengths[:-1], clip_s)
    if len(clips) > 1:
        assert clip_s / 2 - 1e-6 <= lengths[-1] <= 1.5 * clip_s + 1e-6


def test_clip_grid_examples() -> None:
    assert clip_grid(0, 1.5).tolist() == [[0, 0]]
    assert clip_grid(0.2, 1.5).tolist() == [[0, 0.2]]
    assert clip_grid(3.7, 1.5).tolist() == [[0, 1.5], [1.5, 3.7]]
    assert clip_grid(3.8, 1.5).tolist() == [[0, 1.5], [1.5, 3.0], [3.0, 3.8]]
    assert clip_sample_times(np.array([[0, 2.0], [2.0, 3.0]]), 2).tolist() == [
        [0.5, 1.5], [2.25, 2.75]]


# Content


def test_content_id(tmp_path: Path) -> None:
    first, second = tmp_path / "a.bin", tmp_path / "b.bin"
    first.write_bytes(b"x" * 3_000_000)
    second.write_bytes(b"x" * 3_000_000)
    memo = tmp_path / "memo"
    assert content_id(first) == content_id(second) == content_id(first, memo)
    assert content_id(first, memo) == content_id(first)
    first.write_bytes(b"x" * 2_999_999 + b"y")
    assert content_id(first, memo) == content_id(first) != content_id(second)
    with pytest.raises(MediaError, match="No such file"):
        content_id(tmp_path / "missing", memo)


def test_content_id_uses_its_memo_and_survives_a_broken_one(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"content")
    memo = tmp_path / "memo"
    known = content_id(path, memo)
    with monkeypatch.context() as patch:
        patch.setattr("vbkit.media.content._hash", lambda path: "read again")
        assert content_id(path, memo) == known
        assert content_id(path) == "read again"
    (memo / "content_ids.sqlite").write_bytes(b"this is no database" * 100)
    assert content_id(path, memo) == known


def test_audio_duration(tmp_path: Path) -> None:
    assert audio_duration(make_sound(tmp_path / "a.wav", 1.5)) == pytest.approx(1.5, abs=0.05)
    with pytest.raises(MediaError, match="no sound"):
        audio_duration(make_video(tmp_path / "mute.mp4", n=3))
    assert math.isfinite(audio_duration(make_sound(tmp_path / "b.mp3", 1.0, "libmp3lame")))
