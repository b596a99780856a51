"""`vbkit finetune --augment`: views of training videos, on real small videos and the real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from media_files import make_video, read_number
from PIL import Image

from vbkit import Example, FitOptions, TaskSpec
from vbkit.cli import cli
from vbkit.engine import pipeline as pipelines
from vbkit.errors import PluginError, UsageError
from vbkit.evaluation.labelled import encode_labelled, read_labelled
from vbkit.media import DecodeJob, DecodePool
from vbkit.media.grey import grey_squares
from vbkit.media.sizes import clip_grid, clip_sample_times
from vbkit.media.views import MIN_AREA, PLAIN, View, Views
from vbkit.runs import Failure
from vbkit.testing import make_features
from vbkit.training.finetune import finetune
from vbkit_classification import head as classification
from vbkit_classification.head import ClassificationHead

# What a view is


@given(st.floats(0, 5000), st.floats(0.1, 30), st.floats(-0.5, 0.5))
def test_moved_clips_cover_the_video(duration: float, clip_s: float, shift: float) -> None:
    clips = clip_grid(duration, clip_s, shift)
    assert clips[0, 0] == 0
    assert clips[-1, 1] == duration
    assert np.array_equal(clips[1:, 0], clips[:-1, 1])
    lengths = clips[:, 1] - clips[:, 0]
    if len(clips) > 1:
        assert lengths[0] == pytest.approx((1 + shift) * clip_s)
        assert np.allclose(lengths[1:-1], clip_s)
        assert clip_s / 2 - 1e-6 <= lengths[-1] <= 1.5 * clip_s + 1e-6


def test_moved_clips_by_example() -> None:
    assert clip_grid(4.5, 1.5, 0.4).tolist() == pytest.approx(np.array(
        [[0, 2.1], [2.1, 3.6], [3.6, 4.5]]))
    assert clip_grid(2.0, 1.5, -0.4).tolist() == pytest.approx(np.array([[0, 0.9], [0.9, 2.0]]))
    assert clip_grid(0.0, 1.5, -0.5).tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="shift"):
        clip_grid(4.5, 1.5, 0.6)


@given(st.text(max_size=8), st.integers(0, 2**40), st.integers(0, 6))
def test_views_follow_from_seed_and_content(content: str, seed: int, count: int) -> None:
    views = Views(count, seed).of(content)
    assert views == Views(count, seed).of(content) == Views(9, seed).of(content)[:count]
    assert len({view.key for view in (*views, PLAIN)}) == count + 1
    assert all(MIN_AREA <= view.area <= 1 for view in views)
    others = (*Views(count, seed + 1).of(content), *Views(count, seed).of(content + "x"))
    assert not set(views) & {*others}
    assert not any(view.mirrored for view in Views(count, seed, mirror=False).of(content))


def test_views_are_as_varied_as_they_are_said_to_be() -> None:
    views = Views(400).of("a video")
    for name, low, high in (("shift", -0.5, 0.5), ("phase", 0, 1), ("area", 0.5, 1),
                            ("left", 0, 1), ("top", 0, 1), ("mirrored", 0, 1)):
        values = np.array([getattr(view, name) for view in views], float)
        assert low <= values.min() < low + 0.02
        assert high - 0.02 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.08)


@pytest.mark.parametrize("wrong", [{"shift": 0.7}, {"phase": 0.0}, {"area": 0.0}, {"area": 1.1},
                                   {"left": -0.1}, {"top": 1.5}])
def test_a_view_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} cannot be"):
        View(**wrong)


def test_a_part_of_the_frame_is_cut_out() -> None:
    frames = np.arange(2 * 100 * 200 * 3, dtype=np.uint32).reshape(2, 100, 200, 3)
    assert np.array_equal(PLAIN.crop(frames), frames)
    part = View(area=0.64, left=1, top=0).crop(frames)
    assert np.array_equal(part, frames[:, :80, 40:])
    assert np.array_equal(View(area=0.64, left=1, top=0, mirrored=True).crop(frames),
                          part[:, :, ::-1])
    assert View(area=0.64).decoded_height(80) == 100


# Decoding


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("views") / "talk.mp4", n=130)


def decoded(pool: DecodePool, path: Path, **settings) -> tuple[np.ndarray, np.ndarray]:
    video = pool.decode(DecodeJob("", path, keyframes=False, **settings))
    return video.clip_times, np.concatenate([batch.frames for batch in video.clips()])


def test_frames_are_of_the_times_that_a_view_says(numbered: Path) -> None:
    view = View(shift=0.3, phase=0.9)
    with DecodePool(plugin_openers=False) as pool:
        times, frames = decoded(pool, numbered, height=64, view=view)
        plain, as_it_is = decoded(pool, numbered, height=64)
    assert times.tolist() == clip_grid(5.2, 1.5, 0.3).tolist() != plain.tolist()
    shown = [[read_number(frame) for frame in clip] for clip in frames]
    wanted = clip_sample_times(times, 4, 0.9)
    assert shown == [[int(t * 25 + 1e-6) for t in clip] for clip in wanted]
    for (start, end), numbers in zip(times, shown, strict=True):
        assert all(start <= (number + 1) / 25 and number / 25 <= end for number in numbers)
    assert shown != [[read_number(frame) for frame in clip] for clip in as_it_is]


def test_a_part_is_decoded_as_finely_as_a_whole_frame(numbered: Path) -> None:
    view = View(area=0.64, left=0.25, top=1, mirrored=True)
    with DecodePool(plugin_openers=False) as pool:
        _, frames = decoded(pool, numbered, height=64, view=view)
        _, larger = decoded(pool, numbered, height=80)
        _, grey = decoded(pool, numbered, height=64, view=view, grey_clips=(1, 2), grey_size=32)
    assert frames.shape[2:] == (64, 160, 3)
    assert np.array_equal(frames, larger[:, :, 16:, 10:170][:, :, :, ::-1])
    assert np.array_equal(grey.reshape(-1, 32, 32),
                          grey_squares(frames[1:3].reshape(-1, *frames.shape[2:]), 32))


# Encoding


def manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise around a colour, a video, and texts; a quarter of each label validates."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    rows = []
    for n in range(8):
        pixels = rng.normal(90, 30, (96, 128, 3))
        pixels[..., 0 if n % 2 else 2] += 90
        pixels[:, :40] *= 0.3  # so that left and right differ
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{n}.png")
        rows.append({"video": f"{n}.png", "label": "red" if n % 2 else "blue",
                     "split": "val" if n >= 6 else "train"})
    make_video(folder / "talk.mp4", n=130)
    rows.append({"video": "talk.mp4", "text": ["A blue film."], "label": "blue", "split": "train"})
    rows.append({"id": "said", "text": "all of it was red", "label": "red", "split": "train"})
    return manifest(folder / "labelled.jsonl", rows)


@pytest.fixture
def cached(engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine, "cache", tmp_path / "cache")
    return engine


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Example], list[Example]]]:
    """What classification was given to learn from and to validate with, at each training."""
    found = []
    fit = ClassificationHead.fit
    monkeypatch.setattr(classification, "PENALTIES", (1.0,))

    def noted(self, train, val, options) -> None:
        found.append((list(train), list(val)))
        fit(self, train, val, options)

    monkeypatch.setattr(ClassificationHead, "fit", noted)
    return found


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[DecodeJob]:
    """What is decoded."""
    found = []

    class Noted(DecodePool):
        def submit(self, job: DecodeJob) -> None:
            if job.decode:
                found.append(job)
            super().submit(job)

    monkeypatch.setattr(pipelines, "DecodePool", Noted)
    return found


def test_training_videos_have_views_and_validation_videos_none(
        cached, clips: Path, tmp_path: Path, learnt, jobs) -> None:
    told: list[tuple[int, int]] = []
    result = finetune(cached, "classification", clips, tmp_path / "head", augment=2,
                      progress=lambda done, total, video_id, ok: told.append((done, total)))
    assert (result.n_train, result.n_val) == (8, 2)
    (train, val), = learnt
    assert [len(example.views) for example in train] == [2] * 7 + [0]
    assert [example.views for example in val] == [(), ()]
    assert {job.path.name for job in jobs if job.view != PLAIN} == {
        *(f"{n}.png" for n in range(6)), "talk.mp4"}
    assert told[-1][0] == told[-1][1] == 8 * 3 + 2
    assert all(a[0] < b[0] for a, b in pairwise(told))
    film = train[6]
    assert film.seen == (film.features, *film.views)
    for view in film.views:
        assert not np.array_equal(view.clip_times, film.features.clip_times)
        assert view.clip_times[0, 0] == 0
        assert view.clip_times[-1, 1] == film.features.clip_times[-1, 1] == pytest.approx(5.2)
        assert len(view.clip_features) == len(view.clip_times)
        assert view.segments == ["A blue film."]
        assert torch.equal(view.segment_embeddings, film.features.segment_embeddings)
        assert view.info == film.features.info
    for example in train[:7]:
        plain, *others = (each.clip_features.mean(0) for each in example.seen)
        nearness = [float(torch.cosine_similarity(plain, other, 0)) for other in others]
        assert all(0.5 < near < 0.999 for near in nearness)
    written = json.loads((tmp_path / "head" / "finetune.json").read_text())
    assert (written["augment"], written["mirror"]) == (2, True)


NEEDS = {"clip_times", "clip_features", "segments"}


def test_views_are_encoded_once_and_follow_from_the_seed(cached, clips: Path, jobs) -> None:
    rows = read_labelled(clips, ("label",))

    def read(views: Views) -> tuple[list[View], list[Example]]:
        jobs.clear()
        examples = encode_labelled(cached, rows, NEEDS, views=views)
        return [job.view for job in jobs if job.view != PLAIN], examples

    one, first = read(Views(1))
    two, both = read(Views(2))
    assert (len(one), len(two), len(jobs)) == (9, 9, 9)  # the first is there already
    none, again = read(Views(2))
    assert (none, jobs) == ([], [])
    for example, before, once in zip(again, both, first, strict=True):
        assert len(example.views) == len(before.views) == (0 if example.video_id == "said" else 2)
        for view, known in zip(example.seen, before.seen, strict=True):
            assert torch.equal(view.clip_features, known.clip_features)
            assert np.array_equal(view.clip_times, known.clip_times)
        if once.views:
            assert torch.equal(once.views[0].clip_features, example.views[0].clip_features)
            assert not torch.equal(example.views[0].clip_features, example.views[1].clip_features)
    assert len(read(Views(1, seed=1))[0]) == 9
    assert read(Views())[1][0].views == ()
    assert jobs == []  # a training without views, or a run, reads what it always did
    sides = [view for content in ("a", "b", "c") for view in Views(9, mirror=False).of(content)]
    assert not any(view.mirrored for view in sides)


def test_a_mirrored_view_is_that_of_a_mirrored_picture(cached, clips: Path, tmp_path: Path) -> None:
    picture = clips.parent / "1.png"
    Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "turned.png")
    rows = read_labelled(manifest(tmp_path / "m.jsonl", [
        {"video": str(picture), "label": "a"}, {"video": str(tmp_path / "turned.png"),
                                                "label": "a"}]), ("label",))

    class Mirrored(Views):
        def of(self, content_id: str) -> list[View]:
            return [View(mirrored=True)]

    example, turned = encode_labelled(cached, rows, {"clip_features"}, views=Mirrored(1))
    assert torch.equal(example.views[0].clip_features, turned.features.clip_features)
    assert not torch.equal(example.features.clip_features, turned.features.clip_features)


def test_motion_and_frames_are_of_the_view(cached, tmp_path: Path, sample: Path) -> None:
    rows = read_labelled(manifest(tmp_path / "m.jsonl", [{"video": str(sample), "label": "a"}]),
                         ("label",))
    (example,) = encode_labelled(cached, rows, {"clip_times", "frames", "motion"}, views=Views(1))
    (view,) = example.views
    assert not torch.equal(view.motion([7]), example.features.motion([7]))
    held = [path.name for path in (tmp_path / "cache").rglob("motion-*.safetensors")]
    assert len(held) == 2
    at = np.concatenate([batch.pts_seconds for batch in view.frames])
    (drawn,) = Views(1).of(next((tmp_path / "cache").rglob("motion-*.safetensors")).parent.name)
    assert at == pytest.approx(clip_sample_times(view.clip_times, 4, drawn.phase).ravel())


def test_a_view_that_cannot_be_read_costs_the_view_only(
        cached, clips: Path, tmp_path: Path, monkeypatch, caplog) -> None:
    submit = DecodePool.submit

    def broken(self, job: DecodeJob) -> None:
        gone = job.view != PLAIN and job.path.name == "2.png"
        submit(self, replace(job, path=tmp_path / "gone.png") if gone else job)

    monkeypatch.setattr(DecodePool, "submit", broken)
    failures: list[Failure] = []
    examples = encode_labelled(cached, read_labelled(clips, ("label",)), NEEDS, views=Views(1),
                               failed=failures.append)
    assert not failures
    assert {each.video_id: len(each.views) for each in examples} == {
        **{f"{n}.png": 1 for n in range(8)}, "2.png": 0, "talk.mp4": 1, "said": 0}
    assert "2.png: it could not be seen in another way" in caplog.text


# Learning


def signs(head: ClassificationHead, train: list[Example], val: list[Example]) -> float:
    with torch.enable_grad():
        head.fit(train, val, FitOptions())
    return head.evaluate(val)["accuracy"]


def made_up(label: str, seed: int, told: bool) -> Callable[[int], Example]:
    """An example whose clips tell its label, or are noise alone."""
    def features(number: int, told: bool):
        draw = torch.Generator().manual_seed(1000 * seed + number)
        shown = torch.randn(3, 5120, generator=draw)
        if told:
            shown[:, :400] += 2.0 if label == "a" else -2.0
        return make_features(3, 0, needs={
            "clip_times", "clip_features", "clip_embeddings", "segments", "segment_embeddings",
            "encode_text"}, outputs={"clip_features": shown}, seed=seed, video_id=f"{seed}")

    return lambda views: Example(features(0, told), ({"label": label},), tuple(
        features(number, True) for number in range(1, views + 1)))


def test_classification_learns_from_views(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the views of the training videos tell the labels; a head that ignores them guesses."""
    monkeypatch.setattr(classification, "PENALTIES", (0.1, 1.0))
    (runner,) = engine.heads(["classification"])
    head = runner.ready()
    labels = ["a", "b"] * 10
    train = [made_up(label, seed, told=False) for seed, label in enumerate(labels)]
    val = [made_up(label, 100 + seed, told=True)(0) for seed, label in enumerate(labels)]
    assert signs(head, [example(0) for example in train], val) < 0.9
    assert signs(head, [example(2) for example in train], val) == 1


def test_moderation_learns_from_views_in_pictures_alone(engine) -> None:
    """As above; what is said in a video is learnt from once, however often it is seen."""
    learnt = {}
    for views in (0, 2):
        (runner,) = engine.heads(["moderation"])
        head = runner.ready()
        before = head.visual.still.weight.clone()
        fire = head.settings["visual"]["categories"].index("fire")
        train = [moderated(seed, told=False, views=views) for seed in range(8)]
        val = [moderated(50 + seed, told=True) for seed in range(4)]
        torch.manual_seed(0)
        with torch.enable_grad():
            head.fit(train, val, FitOptions(epochs=5, learning_rate=1e-2))
        with torch.no_grad():
            logits = [float(head.visual(each.features.clip_features, torch.full(
                (3, head.visual.motion.in_features), torch.nan)).amax(0)[fire]) for each in val]
        learnt[views] = logits, head.visual.still.weight - before, head.text.state("text.")
    gaps = {views: logits[1] + logits[3] - logits[0] - logits[2]
            for views, (logits, _, _) in learnt.items()}
    assert gaps[2] > gaps[0] + 1
    assert learnt[2][1].abs().sum() > 0
    assert all(torch.equal(learnt[0][2][name], learnt[2][2][name]) for name in learnt[0][2])


def moderated(seed: int, told: bool, views: int = 0) -> Example:
    """Fire in every second video."""
    needs = {"segments", "segment_times", "segment_embeddings", "clip_times", "clip_features",
             "motion"}

    def features(number: int, told: bool):
        draw = torch.Generator().manual_seed(1000 * seed + number)
        shown = torch.rand(3, 5120, generator=draw)
        if told:
            shown[:, :400] += 1.0 if seed % 2 else -1.0
        return make_features(3, 0 if told else ["so it is"], needs=needs, seed=seed,
                             outputs={"clip_features": shown})

    return Example(features(0, told), ({"label": "fire" if seed % 2 else "none"},), tuple(
        features(number, True) for number in range(1, views + 1)))


# Who may ask for it


def test_a_task_that_learns_from_text_alone_says_so(engine, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sentiment cannot learn from further views"):
        finetune(engine, "sentiment", clips, tmp_path / "head", augment=2)
    assert not (tmp_path / "head").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--task", "qa", "--augment", "2"], "qa cannot learn from further views"),
    (["--task", "classification", "--augment", "-1"], "-1 is not in the range"),
    (["--task", "classification", "--augment", "some"], "not a valid integer"),
])
def test_wrong_usage_is_told_before_anything_is_loaded(arguments, message, clips: Path,
                                                       tmp_path: Path) -> None:
    shown = CliRunner().invoke(cli, ["finetune", *arguments, "--manifest", str(clips), "--out",
                                     str(tmp_path / "head")])
    assert shown.exit_code == 2
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def test_learning_from_views_is_of_no_use_without_learning() -> None:
    from vbkit import Column, TableSchema

    with pytest.raises(PluginError, match="'augment' is of no use without 'finetune'"):
        TaskSpec("x", "x", head="x.y:Z", needs={"clip_features"}, capabilities={"augment"},
                 tables=(TableSchema("x", (Column("score", "float64"),)),))
