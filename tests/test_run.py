"""Runs from end to end, with the real model and small heads made here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from media_files import flip_bits, has_encoder, make_sound, make_video, truncate

import vbkit
from vbkit import Column, Head, NoOptions, TableSchema, TaskSpec, hookimpl, option
from vbkit.errors import UsageError
from vbkit.plugins import PluginManager


@dataclass(frozen=True)
class CountOptions:
    offset: int = option(0, "added to the count")


class Count(Head):
    """Counts clips and segments, and how often it was called."""

    calls: list[tuple[str, tuple[str, ...]]] = []  # noqa: RUF012

    def predict(self, features):
        type(self).calls.append((features.video_id, features.questions))
        row = {"clips": len(features.clip_times) + self.context.options.offset,
               "segments": len(features.segments)}
        return {"count": pd.DataFrame([row])}


class Echo(Head):
    """A row for each question, like `qa`."""

    def predict(self, features):
        rows = [{"question": q, "score": float(features.clip_embeddings[0, 0])}
                for q in features.questions]
        return {"echo": pd.DataFrame(rows, columns=["question", "score"])}


class Picky(Head):
    """Answers like `Echo`, but not every question."""

    def predict(self, features):
        if "Fail?" in features.questions:
            raise ValueError("no answer to this")
        return {"picky": pd.DataFrame([{"question": q} for q in features.questions])}


class Broken(Head):
    def predict(self, features):
        if features.video_id.startswith("bad"):
            raise ValueError("cannot do this one")
        return {}


class Greedy(Head):
    def predict(self, features):
        return {"greedy": pd.DataFrame([{"n": len(features.clip_embeddings)}])}


def spec(name: str, head: type, columns: tuple[Column, ...], needs: set[str],
         options: type = NoOptions) -> TaskSpec:
    return TaskSpec(name, f"The task {name}.", f"{__name__}:{head.__name__}", frozenset(needs),
                    (TableSchema(name, columns),), options)


class Plugin:
    seen: list[str] = []  # noqa: RUF012

    @hookimpl
    def vbkit_tasks(self):
        yield spec("count", Count, (Column("clips", "int64"), Column("segments", "int64")),
                   {"clip_times", "segments"}, CountOptions)
        yield spec("echo", Echo, (Column("question", "string"), Column("score", "float64")),
                   {"clip_embeddings"})
        yield spec("picky", Picky, (Column("question", "string"),), set())
        yield spec("broken", Broken, (Column("n", "int64"),), set())
        yield spec("greedy", Greedy, (Column("n", "int64"),), {"clip_times"})

    @hookimpl
    def vbkit_after_video(self, video, tables):
        self.seen.append(video)
        tables["count"]["clips"] = -1
        raise RuntimeError("an observer that breaks")


@pytest.fixture(scope="module")
def own(engine):
    """An engine that shares the loaded model, with the tasks above."""
    manager = PluginManager()
    manager.register(Plugin(), "test")
    return vbkit.Engine(model="mini", device="cpu", manager=manager)


@pytest.fixture
def folder(tmp_path: Path, sample: Path) -> Path:
    """Two good videos, one of them silent, and what is none."""
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(sample, videos / "a.mp4")
    shutil.copy(sample.with_suffix(".srt"), videos / "a.srt")
    make_video(videos / "b.mp4", codec="libx264", n=30)
    (videos / "empty.mp4").touch()
    (videos / "text.mp4").write_text("this is no video\n" * 50)
    return videos


def test_good_videos_finish_beside_bad_ones(own, folder, tmp_path) -> None:
    Plugin.seen.clear()
    result = own.run([folder], ["count"], out=tmp_path / "out")
    assert (result.report.n_ok, result.report.n_failed) == (2, 2)
    videos = result.tables["videos"].set_index("video_id")
    assert videos["status"].to_dict() == {
        "a.mp4": "ok", "b.mp4": "ok", "empty.mp4": "failed", "text.mp4": "failed"}
    assert videos.loc["a.mp4", ["width", "height", "n_clips", "n_segments"]].tolist() == [
        640, 272, 10, 5]
    assert videos.loc["a.mp4", "transcript_source"] == "sidecar"
    assert videos.loc["a.mp4", "language"] == "en"
    errors = result.tables["errors"].set_index("video_id")
    assert errors.loc["empty.mp4", "stage"] == "open"
    assert "empty" in errors.loc["empty.mp4", "message"]
    count = result.tables["count"].set_index("video_id")
    assert count["clips"].to_dict() == {"a.mp4": 10, "b.mp4": 1}
    assert set(Plugin.seen) == {"a.mp4", "b.mp4", "empty.mp4", "text.mp4"}
    clips = result.tables["clips"]
    pictures = clips[clips["video_id"] == "a.mp4"]["keyframe"]
    assert pictures.notna().all()
    assert all((tmp_path / "out" / name).read_bytes()[:2] == b"\xff\xd8" for name in pictures)


def test_a_second_run_does_the_rest_and_no_more(own, folder, tmp_path) -> None:
    out = tmp_path / "out"
    own.run([folder], ["count"], out=out)
    Count.calls.clear()
    again = own.run([folder], ["count"], out=out)
    assert Count.calls == []
    assert (again.report.n_skipped, again.report.n_failed) == (2, 2)
    shutil.copy(folder / "b.mp4", folder / "c.mp4")
    more = own.run([folder], ["count"], out=out)
    assert [video for video, _ in Count.calls] == ["c.mp4"]
    assert more.report.seconds.get("backbone", 0.0) == 0.0  # equal files are encoded once
    Count.calls.clear()
    changed = own.run([folder / "a.mp4"], ["count"], out=out, options={"count": {"offset": 5}})
    assert Count.calls == [("a.mp4", ())]
    rows = changed.tables["count"].set_index("video_id")["clips"]
    assert rows.to_dict() == {"a.mp4": 15, "b.mp4": 1, "c.mp4": 1}
    own.run([folder / "a.mp4"], ["count"], out=out, options={"count": {"offset": 5}}, fresh=True)
    assert len(Count.calls) == 2


def test_a_changed_transcript_is_read_again(own, folder, tmp_path) -> None:
    own.run([folder / "a.mp4"], ["count"], out=tmp_path / "out")
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nOnly this.\n")
    result = own.run([folder / "a.mp4"], ["count"], out=tmp_path / "out")
    assert result.tables["count"]["segments"].tolist() == [1]
    assert result.tables["segments"]["text"].tolist() == ["Only this."]
    assert "decode" not in result.report.seconds


def test_each_question_counts_by_itself(own, folder, tmp_path) -> None:
    def ask(*questions):
        return own.run([folder / "a.mp4"], ["echo"], out=tmp_path / "out", questions=questions)

    assert ask("Who?").tables["echo"]["question"].tolist() == ["Who?"]
    assert ask("Who?").report.n_skipped == 1
    both = ask("Who?", "Where?")
    assert sorted(both.tables["echo"]["question"]) == ["Where?", "Who?"]
    assert ask("Where?").report.n_skipped == 1


def test_questions_of_two_tasks_do_not_mix(own, folder, tmp_path) -> None:
    def ask(tasks, *questions):
        return own.run([folder / "a.mp4"], tasks, out=tmp_path / "out", questions=questions).tables

    ask(["picky"], "One?")
    tables = ask(["echo", "picky"], "One?", "Two?")
    assert sorted(tables["echo"]["question"]) == ["One?", "Two?"]
    assert sorted(tables["picky"]["question"]) == ["One?", "Two?"]


def test_a_question_that_fails_costs_no_older_answer(own, folder, tmp_path) -> None:
    def ask(*questions):
        return own.run([folder / "a.mp4"], ["picky"], out=tmp_path / "out", questions=questions)

    ask("One?")
    failed = ask("Fail?")
    assert failed.report.n_partial == 1
    assert failed.tables["picky"]["question"].tolist() == ["One?"]
    assert sorted(ask("Two?").tables["picky"]["question"]) == ["One?", "Two?"]


def test_rows_of_another_transcript_do_not_stay(own, folder, tmp_path) -> None:
    own.run([folder / "a.mp4"], ["count", "echo"], out=tmp_path / "out", questions=["Who?"])
    (folder / "a.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nOther words.\n")
    tables = own.run([folder / "a.mp4"], ["count"], out=tmp_path / "out").tables
    assert len(tables["count"]) == 1
    assert "echo" not in tables or len(tables["echo"]) == 0


def test_features_can_be_trained_on(engine, sample) -> None:
    import torch

    features = next(iter(engine.encode([sample], {"clip_embeddings", "clip_hidden",
                                                  "segment_embeddings"})))
    for vectors in (features.clip_embeddings, features.clip_hidden, features.segment_embeddings):
        torch.nn.Linear(384, 1)(vectors).sum().backward()


def test_a_head_that_raises_costs_its_rows_only(own, folder, tmp_path, monkeypatch) -> None:
    shutil.copy(folder / "b.mp4", folder / "bad.mp4")
    result = own.run([folder / "b.mp4", folder / "bad.mp4"], ["broken", "count"],
                     out=tmp_path / "out")
    assert (result.report.n_ok, result.report.n_partial) == (1, 1)
    errors = result.tables["errors"]
    assert errors[["video_id", "stage", "task", "error_type"]].iloc[0].tolist() == [
        "bad.mp4", "head", "broken", "ValueError"]
    assert len(result.tables["count"]) == 2
    monkeypatch.setenv("VBKIT_STRICT", "1")
    with pytest.raises(ValueError, match="cannot do this one"):
        own.run([folder / "bad.mp4"], ["broken"])


def test_a_head_gets_what_it_declared_and_nothing_else(own, folder) -> None:
    result = own.run([folder / "b.mp4"], ["greedy"])
    assert "clip_embeddings" in result.report.failures[0].message
    assert result.report.failures[0].error_type == "FeatureError"


def test_tables_in_memory_equal_those_on_disk(own, folder, tmp_path) -> None:
    memory = own.run([folder], ["count"]).tables
    disk = own.run([folder], ["count"], out=tmp_path / "out").tables
    for name in ("count", "videos", "segments", "errors"):
        pd.testing.assert_frame_equal(
            memory[name].sort_values(["video_id", *memory[name].columns[1:2]], ignore_index=True),
            disk[name].sort_values(["video_id", *disk[name].columns[1:2]], ignore_index=True),
            check_dtype=False)


def test_wrong_use_says_what_to_do(own, folder) -> None:
    with pytest.raises(UsageError, match="count"):
        own.run([folder], ["coutn"])
    with pytest.raises(UsageError, match="offset"):
        own.run([folder], ["count"], options={"count": {"ofset": 1}})
    with pytest.raises(UsageError, match="not among the tasks"):
        own.run([folder], ["count"], options={"echo": {"x": 1}})
    with pytest.raises(UsageError, match="at least one task"):
        own.run([folder], [])
    notes = own.run([folder / "b.mp4"], ["count"], questions=["Who?"]).report.notes
    assert any("questions" in note for note in notes)


def test_an_empty_folder_is_no_error(own, tmp_path) -> None:
    result = own.run([tmp_path], ["count"], out=tmp_path / "out")
    assert result.report.n_failed == 0
    assert any(str(tmp_path) in note for note in result.report.notes)


def test_sound_and_text_are_inputs_too(own, tmp_path) -> None:
    make_sound(tmp_path / "talk.wav", seconds=2.0)
    (tmp_path / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello there.\n")
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text(json.dumps({"id": "words", "text": ["One.", "", "Three."]}) + "\n")
    result = own.run([tmp_path / "talk.wav", manifest], ["count"])
    videos = result.tables["videos"].set_index("video_id")
    assert videos["status"].tolist() == ["ok", "ok"]
    assert videos.loc["talk.wav", "duration_s"] == pytest.approx(2.0, abs=0.05)
    words = next(name for name in videos.index if "words" in name)
    segments = result.tables["segments"]
    assert segments[segments["video_id"] == words]["text"].tolist() == ["One.", "", "Three."]


def test_a_truncated_video_is_done_in_part(own, tmp_path, sample) -> None:
    short = make_video(tmp_path / "whole.mkv", codec="libx264", n=200)
    truncate(short, tmp_path / "cut.mkv", 0.5)
    result = own.run([tmp_path / "cut.mkv"], ["count"])
    assert result.tables["videos"]["status"].tolist()[0] in ("ok", "partial")
    assert 0 < result.tables["count"]["clips"].tolist()[0] <= 6


def test_features_are_the_same_alone_and_among_others(engine, tmp_path, sample) -> None:
    paths = [sample, *(make_video(tmp_path / f"{index}.mp4", n=40 + 30 * index)
                       for index in range(3))]
    needs = {"clip_features", "clip_embeddings", "clip_hidden", "segment_hidden", "pooled",
             "segment_embeddings"}
    together = list(engine.encode(paths, needs))
    for path, among in zip(paths, together, strict=True):
        alone = next(iter(engine.encode([path], needs)))
        for name in needs:
            difference = (getattr(alone, name) - getattr(among, name)).abs()
            assert float(difference.max() if difference.numel() else 0) < 1e-4, name


def test_a_picture_has_the_features_of_a_video_that_stands_still(engine, tmp_path) -> None:
    from PIL import Image

    picture = Image.linear_gradient("L").resize((320, 224)).convert("RGB")
    picture.save(tmp_path / "still.png")
    still = next(iter(engine.encode([tmp_path / "still.png"], {"clip_features", "clip_times"})))
    frames = np.array(picture.resize((320, 224)))[None, None].repeat(4, 1)
    import torch

    backbone = engine.bundle.backbone
    with torch.inference_mode():
        four = backbone(torch.from_numpy(frames)).half().float()
    assert still.clip_times.tolist() == [[0.0, 0.0]]
    cosine = torch.nn.functional.cosine_similarity(still.clip_features, four)
    assert float(cosine) > 0.999


def test_features_come_from_the_cache_unchanged(tmp_path, sample) -> None:
    first = vbkit.Engine(device="cpu", cache=tmp_path / "cache")
    needs = {"clip_features", "clip_hidden", "segment_embeddings", "clip_times"}
    fresh = next(iter(first.encode([sample], needs)))
    cached = next(iter(first.encode([sample], needs)))
    for name in needs - {"clip_times"}:
        assert (getattr(fresh, name) == getattr(cached, name)).all(), name
    assert np.array_equal(fresh.clip_times, cached.clip_times)
    for entry in (tmp_path / "cache").rglob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:100])  # a disk that lost something
    again = next(iter(first.encode([sample], needs)))
    assert (again.clip_features == fresh.clip_features).all()


def test_bfloat16_agrees_with_float32(sample) -> None:
    import torch

    needs = {"clip_features", "clip_embeddings"}
    one = next(iter(vbkit.Engine(device="cpu", precision="float32").encode([sample], needs)))
    other = next(iter(vbkit.Engine(device="cpu", precision="bfloat16").encode([sample], needs)))
    cosine = torch.nn.functional.cosine_similarity
    assert float(cosine(one.clip_features, other.clip_features).min()) > 0.995
    assert float(cosine(one.clip_embeddings, other.clip_embeddings).min()) > 0.98


def test_frames_are_decoded_for_heads_that_bring_their_own_model(engine, sample) -> None:
    features = next(iter(engine.encode([sample], {"frames", "clip_times"})))
    batches = list(features.frames)
    assert sum(map(len, batches)) == 4 * len(features.clip_times)
    assert batches[0].data.shape[1:] == (272, 640, 3)
    times = np.concatenate([batch.pts_seconds for batch in batches])
    assert (np.diff(times) > 0).all()


def test_text_and_pictures_share_a_space(engine, sample) -> None:
    features = next(iter(engine.encode([sample], {"clip_embeddings", "clip_times"})))
    texts = ["a cartoon rabbit on a meadow", "cars in the traffic of a city"]
    scores = features.clip_embeddings @ engine.encode_text(texts).T
    rabbit = features.clip_times[:, 1] <= 5.3
    street = features.clip_times[:, 0] >= 5.3
    assert scores[rabbit, 0].mean() > scores[rabbit, 1].mean()
    assert scores[street, 1].mean() > scores[street, 0].mean()


def test_the_joint_encoder_reads_chosen_clips_and_segments(engine, sample) -> None:
    features = next(iter(engine.encode([sample], {"joint", "segments", "clip_times"})))
    out = features.joint(["Who passes the cars?", "What?"], [[3, 4], []], [[5, 6], [0]])
    assert out.pooled.shape == (2, 384)
    assert [tuple(h.shape) for h in out.segment_hidden] == [(2, 384), (0, 384)]
    assert [tuple(h.shape) for h in out.clip_hidden] == [(2, 384), (1, 384)]
    with pytest.raises(vbkit.VbkitError, match="out of range"):
        features.joint(["Who?"], [[99]], [[]])


def test_a_folder_of_every_kind_of_input(own, tmp_path) -> None:
    """Each works or gives one clear line; none keeps another from being done."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    whole = make_video(zoo / "good.mp4", n=50)
    works = {"good.mp4"}
    for name, settings in {
        "one_frame.mp4": {"n": 1}, "rotated.mp4": {"rotation": 90},
        "variable.mp4": {"times_ms": [0, 40, 500, 520, 1900, 2000]},
        "4k.mp4": {"size": (3840, 2160), "n": 6, "options": {"preset": "ultrafast"}},
        "subtitles.mkv": {"subtitles": [(0.2, 1.0, "Hello <i>there</i>.")]},
        "loop.gif": {"codec": "gif", "pix_fmt": "rgb8", "n": 10},
        "old.avi": {"codec": "mpeg4"}, "old.mpg": {"codec": "mpeg2video"},
        "hevc10.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le", "n": 10},
        "av1.mkv": {"codec": "libsvtav1", "n": 10}, "vp9.webm": {"codec": "libvpx-vp9", "n": 10},
    }.items():
        if has_encoder(settings.get("codec", "libx264")):
            make_video(zoo / name, **settings)
            works.add(name)
    truncate(whole, zoo / "truncated.mp4", 0.6)  # its index is at the end, and lost
    flip_bits(whole, zoo / "flipped.mp4", 40)
    make_sound(zoo / "sound_only.mp4", codec="aac")
    (zoo / "empty.mp4").touch()
    (zoo / "text.mp4").write_text("no video")
    latin = "1\n00:00:02,000 --> 00:00:01,000\nDéjà vu.\n\n2\n00:00:00,500 --> 00:00:09,000\nA.\n"
    (zoo / "good.srt").write_bytes(latin.encode("latin-1"))
    result = own.run([zoo, tmp_path / "missing.mp4"], ["count"], out=tmp_path / "out")
    videos = result.tables["videos"].set_index("video_id")["status"]
    videos.index = [name.rpartition("/")[2] for name in videos.index]
    assert set(videos.index) == {path.name for path in zoo.iterdir()
                                 if path.suffix != ".srt"} | {"missing.mp4"}
    assert {name for name in works if videos[name] != "ok"} == set()
    assert all(videos[name] == "failed" for name in ("empty.mp4", "text.mp4", "missing.mp4",
                                                     "truncated.mp4", "sound_only.mp4"))
    errors = result.tables["errors"]
    assert set(errors["video_id"].str.rpartition("/")[2]) >= {
        name for name, status in videos.items() if status != "ok"}
    assert not errors["message"].str.contains("\n").any()
    segments = result.tables["segments"]
    spoken = {name.rpartition("/")[2]: rows["text"].tolist()
              for name, rows in segments.groupby("video_id")}
    assert spoken["subtitles.mkv"] == ["Hello there."]
    assert sorted(spoken["good.mp4"]) == ["A.", "Déjà vu."]


def test_a_killed_run_resumes_and_leaves_nothing_half_there(tmp_path, sample) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for index in range(12):
        make_video(videos / f"{index:02}.mp4", codec="libx264", n=50 + index)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vbkit", "run", str(videos), "--task", "sentiment",
               "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    done = out / "tables" / "videos"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if done.is_dir() and len(list(done.glob("*.parquet"))) >= 3:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path.name: path.stat().st_mtime_ns for path in done.glob("*.parquet")}
    assert before
    for path in (out / "tables").rglob("*.parquet"):
        pd.read_parquet(path)
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert len(vbkit.load_table(out, "videos")) == 12
    after = {path.name: path.stat().st_mtime_ns for path in done.glob("*.parquet")}
    assert all(after[name] == when for name, when in before.items())
