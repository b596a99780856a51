"""`motion`: clips decoded again as small grey pictures, and the network that sees them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import flip_bits, make_video, read_number, truncate
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import MOTION
from training_files import make_bundle

import vbkit
from vbkit import Column, Head, TableSchema, TaskSpec, hookimpl
from vbkit.engine.bundle import Bundle
from vbkit.errors import FeatureError, MediaError, ModelError
from vbkit.explanations import (
    Explanation,
    Piece,
    explain_pieces,
    explanations_frame,
    hide,
    part,
)
from vbkit.media import DecodeJob, DecodePool, open_video
from vbkit.media.grey import grey_squares
from vbkit.media.sizes import clip_grid, clip_sample_times
from vbkit.model.motion import MOTION_FILE, MotionConfig, MotionNetwork
from vbkit.plugins import PluginManager

# Pictures


def area_weights(pixels: int, size: int) -> np.ndarray:
    """(size, pixels): how much of each part each pixel covers, of 1 in all."""
    left = np.arange(size)[:, None] * pixels / size
    covered = np.minimum(left + pixels / size, np.arange(pixels) + 1) - np.maximum(
        left, np.arange(pixels))
    return np.clip(covered, 0, None) * size / pixels


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 40), width=st.integers(1, 60), size=st.integers(1, 24),
       seed=st.integers(0, 5))
def test_squares_are_means_over_areas(height: int, width: int, size: int, seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    made = grey_squares(frames, size)
    assert (made.shape, made.dtype) == ((2, size, size), np.uint8)
    grey = np.stack([np.asarray(Image.fromarray(frame).convert("L"), float) for frame in frames])
    wanted = area_weights(height, size) @ grey @ area_weights(width, size).T
    assert np.abs(made - wanted).max() <= 0.5 + 1e-6
    assert np.array_equal(grey_squares(frames[1:], size), made[1:])
    assert (grey_squares(np.full_like(frames, 93), size) == 93).all()


def test_black_and_white_keep_their_values_in_large_frames() -> None:
    frames = np.zeros((1, 1080, 1920, 3), np.uint8)
    frames[:, :, 960:] = 255
    made = grey_squares(frames, 112)
    assert (made[:, :, :56] == 0).all()
    assert (made[:, :, 56:] == 255).all()


# Decoding


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("motion") / "talk.mp4", n=160)


def squares(pool: DecodePool, path: Path, clips: Sequence[int], frames: int = 9, size: int = 40,
            **settings) -> np.ndarray:
    video = pool.decode(DecodeJob("", path, height=64, frames_per_clip=frames, grey_size=size,
                                  grey_clips=tuple(clips), keyframes=False, **settings))
    batches = list(video.clips())
    assert [batch.first for batch in batches] == list(np.cumsum(
        [0, *(len(batch) for batch in batches[:-1])]))
    return np.concatenate([batch.frames for batch in batches])


def test_pictures_come_of_the_right_times_of_the_clips_asked_for(video: Path) -> None:
    with DecodePool(plugin_openers=False) as pool:
        every = squares(pool, video, range(4))
        some = squares(pool, video, [0, 3])
    assert (every.shape, every.dtype) == ((4, 9, 40, 40), np.uint8)
    assert np.array_equal(some, every[[0, 3]])
    reader = open_video(video, {"height": 64})
    times = clip_sample_times(clip_grid(reader.info.duration_s, 1.5), 9).ravel()
    shown = np.concatenate([batch.data for batch in reader.frames_at(times.tolist())])
    assert [read_number(frame) for frame in shown] == [int(t * 25 + 1e-6) for t in times]
    assert np.array_equal(every.reshape(-1, 40, 40), grey_squares(shown, 40))


def test_times_are_those_of_presentation(tmp_path: Path) -> None:
    path = make_video(tmp_path / "uneven.mp4", times_ms=[0, 40, 500, 520, 900, 1400, 1460])
    with DecodePool(plugin_openers=False) as pool:
        (clip,) = squares(pool, path, [0], 15, 64)
    seen = [read_number(np.repeat(picture[..., None], 3, 2)) for picture in clip]
    duration = open_video(path).info.duration_s
    at = (np.arange(15) + 0.5) * duration / 15
    shown_from = np.array([0, 0.04, 0.5, 0.52, 0.9, 1.4, 1.46])
    assert seen == [int(np.searchsorted(shown_from, t, "right")) - 1 for t in at]


def test_both_readers_agree(video: Path) -> None:
    with DecodePool(plugin_openers=False) as pool:
        one, other = (squares(pool, video, [1, 3], 8, 32, reader=reader)
                      for reader in ("pyav", "decord"))
    difference = np.abs(one.astype(int) - other)
    assert difference.mean() < 2  # they scale the frames differently
    assert np.quantile(difference, 0.95) < 10
    apart = np.abs(one[:, 1:].astype(int) - other[:, :-1]).mean()  # were it the frame before
    assert apart > 5 * difference.mean()


def test_many_clips_come_in_messages_of_bounded_size() -> None:
    with DecodePool(plugin_openers=["media_openers:opener"]) as pool:
        video = pool.decode(DecodeJob("", Path("long.fake"), height=16, frames_per_clip=24,
                                      grey_clips=tuple(range(0, 100, 2)), keyframes=False))
        sizes = [batch.frames.nbytes for batch in video.clips()]
    assert len(sizes) > 10
    assert sum(sizes) == 50 * 24 * 112 * 112
    assert max(sizes) < 9 << 20


@pytest.mark.parametrize("wrong", [
    {"grey_clips": (1, 0), "keyframes": False}, {"grey_clips": (2, 2), "keyframes": False},
    {"grey_clips": (-1,), "keyframes": False}, {"grey_clips": (0,)}, {"grey_size": 0}])
def test_jobs_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValueError, match="grey"):
        DecodeJob("", Path("x.mp4"), **wrong)


# The network and its file


@pytest.fixture(scope="module")
def network() -> MotionNetwork:
    torch.manual_seed(3)
    made = MotionNetwork(MotionConfig(**MOTION))
    for module in made.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.nn.init.normal_(made.network.head.weight)
    return made.eval()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.randint(0, 256, (3, 6, 16, 16), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [
    (torch.float32, 0), (torch.float16, 5e-3), (torch.bfloat16, 3e-2), (torch.int8, 5e-2)])
def test_a_network_comes_back_from_its_file(
    network: MotionNetwork, pictures: torch.Tensor, tmp_path: Path, dtype: torch.dtype,
    tolerance: float,
) -> None:
    network.save(tmp_path, dtype)
    loaded = MotionNetwork.load(tmp_path)
    assert loaded.config == network.config
    with torch.no_grad():
        wanted = network(pictures)
        got = loaded(pictures)
        assert (wanted.shape, wanted.dtype) == ((3, 5), torch.float32)
        assert float(wanted.std(0).min()) > 1e-3  # it tells the clips apart
        assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())
        ready = loaded.prepare("cpu")
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in ready.modules())
        torch.testing.assert_close(ready(pictures), got, rtol=1e-4, atol=1e-4)
        rough = MotionNetwork.load(tmp_path).prepare("cpu", "bfloat16")(pictures)
        assert rough.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(rough, got).min()) > 0.99
        assert ready(pictures[:0]).shape == (0, 5)


def test_clips_and_neighbours(network: MotionNetwork, pictures: torch.Tensor) -> None:
    with torch.no_grad():
        wanted = network(pictures)
        for clip in range(3):
            torch.testing.assert_close(network(pictures[clip : clip + 1])[0], wanted[clip])
        backwards = network(pictures.flip(1))
        assert float((backwards - wanted).abs().max()) > 1e-3  # it sees the order of time


def test_what_it_gives_is_the_mean_over_two_corners(
        network: MotionNetwork, pictures: torch.Tensor, tmp_path: Path) -> None:
    size = network.config.size
    cutting = MotionNetwork(MotionConfig(**{**MOTION, "size": size + 7, "crop": size}))
    cutting.network.load_state_dict(network.network.state_dict())
    cutting.eval()
    larger = torch.nn.functional.pad(pictures, (3, 4, 5, 2), value=90)
    parts = [larger[:, :, y : y + size, x : x + size]
             for y, x in ((0, 7), (7, 0))]
    with torch.no_grad():
        wanted = torch.stack([network(part) for part in parts]).mean(0)
        assert torch.allclose(cutting(larger), wanted, atol=1e-5)
    assert not torch.allclose(wanted, network(parts[0]), atol=1e-3)
    cutting.save(tmp_path)
    assert MotionNetwork.load(tmp_path).config.crop == size


def test_a_small_file_for_int8(tmp_path: Path) -> None:
    sizes = [MotionNetwork().save(tmp_path, dtype).stat().st_size
             for dtype in (torch.int8, torch.float16)]
    assert sizes[0] < 0.6 * sizes[1] < 1.3e6


def test_files_that_are_damaged_or_do_not_fit(network: MotionNetwork, tmp_path: Path) -> None:
    path = network.save(tmp_path, torch.int8)
    # copies, since the file that they are mapped from is written over
    whole, tensors = path.read_bytes(), {k: v.clone() for k, v in load_file(path).items()}
    metadata = {"format": "vbkit.motion_network", "version": "1",
                "config": _json(network.config)}

    def refused(reason: str, changed: dict | None = None, **about: str) -> None:
        if changed is not None or about:
            save_file({**tensors, **(changed or {})} if changed is not None else tensors, path,
                      metadata={**metadata, **about})
        with pytest.raises(ModelError, match=reason) as caught:
            MotionNetwork.load(tmp_path)
        assert str(path) in str(caught.value)

    path.write_bytes(whole[:200])
    refused("no whole motion network")
    save_file(tensors, path, metadata={"format": "pt"})
    refused("is no motion network")
    refused("has version 2", version="2")
    refused("no whole motion network", config="{")
    refused("no table of settings", config="[]")
    refused("setting 'width' of the motion network is unknown", config='{"width": 3}')
    refused("outputs must be a whole number", config='{"outputs": 0.5}')
    refused("has shape", config=_json(MotionConfig(**{**MOTION, "outputs": 6})))
    refused("lacks tensor blocks.3.convolution.weight and", config=_json(
        MotionConfig(**{**MOTION, "depth": (1, 3)})))
    refused("holds the unknown tensor odd", {"odd": torch.zeros(1)})
    refused("head.bias is not finite", {"head.bias": torch.full((5,), torch.inf)})
    refused("head.weight.scale: scales have shape", {"head.weight.scale": torch.ones(4)})
    del tensors["head.weight.scale"]
    refused("lacks tensor head.weight.scale", {})
    path.unlink()
    refused("no such file")
    with pytest.raises(ModelError, match="cannot be stored as torch"):
        network.save(tmp_path, torch.int16)


def _json(config: MotionConfig) -> str:
    return json.dumps(config.to_dict())


@pytest.mark.parametrize(("wrong", "reason"), [
    ({"frames": 1}, "nothing moves in one picture"), ({"size": 0}, "size must be"),
    ({"channels": ()}, "at least one stage"), ({"channels": "wide"}, "list of numbers"),
    ({"channels": (8, True)}, "channels must be"), ({"depth": (1, 2, 2)}, "depth of 3"),
    ({"depth": (1, 2, 0, 2)}, "depth must be"), ({"outputs": "9"}, "outputs must be"),
    ({"size": 16, "crop": 17}, "crop must be")])
def test_configurations_that_cannot_be(wrong: dict, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        MotionConfig(**wrong)


def test_pictures_that_do_not_fit_are_refused(network: MotionNetwork) -> None:
    for frames in (torch.zeros(1, 5, 16, 16, dtype=torch.uint8), torch.zeros(1, 6, 16, 16)):
        with pytest.raises(ValueError, match=r"must be \(B, 6, 16, 16\) uint8"):
            network(frames)


# The engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, network: MotionNetwork) -> Path:
    """`plain`, a model without a motion network, and `moving`, the same with one."""
    folder = tmp_path_factory.mktemp("models")
    make_bundle(folder / "plain", backbone=True)
    shutil.copytree(folder / "plain", folder / "moving")
    network.save(folder / "moving", torch.float32)
    return folder


@pytest.fixture(scope="module")
def moving(models: Path) -> vbkit.Engine:
    return vbkit.Engine(str(models / "moving"), "cpu", precision="float32")


def cached(engine: vbkit.Engine, folder: Path) -> vbkit.Engine:
    """The same engine with a cache; its model is loaded already."""
    other = object.__new__(vbkit.Engine)
    vars(other).update(vars(engine), cache=folder)
    return other


def encode(engine: vbkit.Engine, *paths: Path, **settings) -> Iterator[vbkit.Features]:
    for features in engine.encode(list(paths), {"motion", "clip_times"}, transcript="none",
                                  **settings):
        assert features.error is None
        yield features


@contextmanager
def seen(engine: vbkit.Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple]]:
    """What is decoded again meanwhile: the clips of each job."""
    jobs, submit = [], DecodePool.submit

    def noted(pool: DecodePool, job: DecodeJob) -> None:
        if job.grey_clips is not None:
            jobs.append(job.grey_clips)
        submit(pool, job)

    with monkeypatch.context() as patch:
        patch.setattr(DecodePool, "submit", noted)
        yield jobs


def test_a_row_is_what_the_network_gives_for_the_pictures(
    moving: vbkit.Engine, network: MotionNetwork, video: Path
) -> None:
    (features,) = encode(moving, video)
    with DecodePool(plugin_openers=False) as pool:
        pictures = [batch.frames for batch in pool.decode(DecodeJob(
            "", video, frames_per_clip=6, grey_clips=(0, 1, 2, 3), grey_size=16, keyframes=False,
            height=moving.bundle.backbone.image_size)).clips()]
    with torch.no_grad():
        wanted = network(torch.tensor(np.concatenate(pictures)))
    rows = features.motion(range(4))
    assert (rows.shape, rows.dtype, rows.requires_grad) == ((4, 5), torch.float32, False)
    torch.testing.assert_close(rows, wanted, rtol=2e-3, atol=2e-3)
    assert torch.equal(rows, rows.half().float())
    assert torch.equal(features.motion([2, 0, 2]), rows[[2, 0, 2]])
    assert torch.equal(features.motion(torch.tensor([3])), rows[[3]])
    assert features.motion([]).shape == (0, 5)
    for wrong in (4, -1):
        with pytest.raises(FeatureError, match=f"talk.mp4 has no clip {wrong}; it has 4"):
            features.motion([0, wrong])


def test_a_row_depends_on_its_clip_alone(moving: vbkit.Engine, tmp_path: Path) -> None:
    long = make_video(tmp_path / "long.mp4", n=500, gop_size=30)
    clips = list(range(13))
    for features in encode(moving, long):
        whole = features.motion(clips)
    assert float(whole.std(0).min()) > 1e-4
    for chosen in ([7], [12, 1, 2], [0, 6, 7, 11], clips[::-1]):
        features.motion._rows.clear()  # as in another run
        assert torch.equal(features.motion(chosen), whole[chosen])


def test_one_process_serves_a_run_and_each_clip_is_decoded_once(
    moving: vbkit.Engine, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_video(tmp_path / "other.mp4", n=80)
    started, init = [], DecodePool.__init__

    def noted(pool: DecodePool, *args, **settings) -> None:
        started.append(pool)
        init(pool, *args, **settings)

    monkeypatch.setattr(DecodePool, "__init__", noted)
    with seen(moving, monkeypatch) as jobs:
        for features in encode(moving, video, other):
            once = features.motion([1, 0])
            assert torch.equal(features.restrict({"motion"}).motion([0, 1, 1]), once[[1, 0, 0]])
        features.motion([0])
    assert jobs == [(0, 1), (0, 1)]
    assert len(started) == 2  # one runs ahead, one decodes again
    assert all(pool._closed for pool in started)
    list(encode(moving, video, other))
    assert len(started) == 3  # who does not ask, pays nothing


def test_what_stands_still_is_zeros(
    moving: vbkit.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.linear_gradient("L").save(tmp_path / "still.png")
    make_video(tmp_path / "one.mp4", n=1)
    (tmp_path / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nWords.\n")
    with seen(moving, monkeypatch) as jobs:
        for features in encode(moving, tmp_path / "still.png", tmp_path / "one.mp4"):
            assert features.motion([0, 0]).tolist() == [[0.0] * 5] * 2
        (text,) = encode(moving, tmp_path / "talk.srt")
        assert text.motion([]).shape == (0, 5)
    assert jobs == []


def test_the_cache_is_extended_and_read_without_decoding(
    moving: vbkit.Engine, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = cached(moving, tmp_path / "cache")
    (plain,) = encode(moving, video)
    wanted = plain.motion(range(4))
    shutil.copy(video, tmp_path / "twin.mp4")
    with seen(engine, monkeypatch) as jobs:
        one, twin = encode(engine, video, tmp_path / "twin.mp4")
        assert torch.equal(one.motion([2]), wanted[[2]])
        assert torch.equal(twin.motion([3, 2, 1]), wanted[[3, 2, 1]])
        assert torch.equal(one.motion([1, 3]), wanted[[1, 3]])
        assert jobs == [(2,), (1, 3)]
        (later,) = encode(engine, video)
        assert torch.equal(later.motion([1, 2, 3]), wanted[1:])
        assert jobs == [(2,), (1, 3)]
        (path,) = (tmp_path / "cache").rglob("motion-*.safetensors")
        entry = load_file(path)
        assert (entry["clips"].dtype, entry["motion"].dtype) == (torch.int64, torch.float16)
        assert entry["clips"].tolist() == [1, 2, 3]
        assert torch.equal(entry["motion"].float(), wanted[1:])
        (fresh,) = encode(engine, video, fresh=True)
        assert torch.equal(fresh.motion([2]), wanted[[2]])
        assert jobs[2:] == [(2,)]
        path.write_bytes(path.read_bytes()[:100])
        (again,) = encode(engine, video)
        assert torch.equal(again.motion([0, 3]), wanted[[0, 3]])
        assert jobs[3:] == [(0, 3)]


def test_a_video_that_is_gone_or_changed(
    moving: vbkit.Engine, video: Path, tmp_path: Path
) -> None:
    engine = cached(moving, tmp_path / "cache")
    path = shutil.copy(video, tmp_path / "moved.mp4")
    (features,) = encode(engine, path)
    known = features.motion([1, 2])
    path.rename(tmp_path / "elsewhere.mp4")
    assert torch.equal(features.motion([2, 1]), known[[1, 0]])
    with pytest.raises(MediaError, match=r"moved.mp4: how things move in 1 of its clips is not in "
                                         r"the feature cache, and there is no video at .*moved"):
        features.motion([0, 1])
    make_video(path, n=80)
    with pytest.raises(MediaError, match=r"moved.mp4 has changed since it was read"):
        features.motion([0])


def test_of_a_video_that_breaks_off_the_whole_clips_move(
    moving: vbkit.Engine, tmp_path: Path
) -> None:
    whole = make_video(tmp_path / "whole.mkv", n=200)
    truncate(whole, tmp_path / "cut.mkv", 0.5)
    damaged = flip_bits(make_video(tmp_path / "good.mp4", n=60), tmp_path / "damaged.mp4", 40)
    for features in encode(moving, tmp_path / "cut.mkv", damaged):
        count = len(features.clip_times)
        assert count > 0
        assert features.motion(range(count)).isfinite().all()


def test_a_model_without_a_motion_network_says_so_before_anything_is_decoded(
    models: Path, manager: PluginManager, tmp_path: Path
) -> None:
    engine = vbkit.Engine(str(models / "plain"), "cpu", manager=manager)
    with pytest.raises(ModelError, match=r"plain has no motion network \(motion.safetensors\), "
                                         "which the output motion needs"):
        next(engine.encode([tmp_path / "x.mp4"], {"motion"}))
    with pytest.raises(ModelError, match="which task pace needs"):
        engine.run([tmp_path / "x.mp4"], ["pace"])


def test_what_depends_on_the_network(models: Path, network: MotionNetwork, tmp_path: Path) -> None:
    shutil.copytree(models / "moving", tmp_path / "other")
    torch.manual_seed(4)
    MotionNetwork(network.config).save(tmp_path / "other")
    plain, one, other = (Bundle(PluginManager(), str(path), "cpu", "float32") for path in (
        models / "plain", models / "moving", tmp_path / "other"))
    assert plain.motion is None
    for needs in ({"clip_features"}, {"clip_hidden"}, {"segment_embeddings", "pooled"}):
        assert len({each.fingerprint_of(needs) for each in (plain, one, other)}) == 1
    assert plain.fingerprint == one.fingerprint == other.fingerprint
    assert plain.visual_key == one.visual_key == other.visual_key
    assert one.motion_key != other.motion_key
    for needs in ({"motion"}, {"motion", "clip_times"}, {"motion", "pooled"}):
        assert one.fingerprint_of(needs) != other.fingerprint_of(needs)
    assert one.motion_key != Bundle(PluginManager(), str(models / "moving"), "cpu",
                                    "bfloat16").motion_key
    shutil.copytree(models / "moving", tmp_path / "damaged")
    (tmp_path / "damaged" / MOTION_FILE).write_bytes(b"not a file of weights")
    with pytest.raises(ModelError, match=r"damaged/motion.safetensors is no whole motion network"):
        _ = Bundle(PluginManager(), str(tmp_path / "damaged"), "cpu", "float32").motion


def test_training_carries_the_network_along(models: Path) -> None:
    from vbkit.training.pretraining import _extra_files

    assert _extra_files(models / "moving", {}) == {MOTION_FILE: models / "moving" / MOTION_FILE}
    assert _extra_files(models / "plain", {}) == {}


# Tasks


PACE = TableSchema("pace", (Column("clip", "int64"), Column("pace", "float64")))


class Pace(Head):
    """How much moves in every second clip."""

    def predict(self, features):
        clips = range(0, len(features.clip_times), 2)
        return {"pace": PACE.frame([
            {"clip": clip, "pace": float(row.norm())}
            for clip, row in zip(clips, features.motion(clips), strict=True)])}

    def explain(self, features, rows):
        found = []
        for label, row in rows.iterrows():
            alone = part(features, clips=[int(row["clip"])])
            piece = Piece("clip", 0, 0)
            weights = explain_pieces(
                lambda variants: [
                    float(each.motion(range(len(each.clip_times))).norm()) for each in variants],
                alone, [piece])
            found.append(Explanation(label, "pace", [piece.moved([int(row["clip"])])], weights))
        return explanations_frame(features, "pace", found)


LENGTH = TableSchema("length", (Column("clips", "int64"),))


class Length(Head):
    def predict(self, features):
        return {"length": LENGTH.frame([{"clips": len(features.clip_times)}])}


class Plugin:
    @hookimpl
    def vbkit_tasks(self):
        yield TaskSpec("pace", "How much moves.", f"{__name__}:Pace", {"motion", "clip_times"},
                       (PACE,), capabilities=frozenset({"explain"}))
        yield TaskSpec("length", "How many clips.", f"{__name__}:Length", {"clip_times"}, (LENGTH,))


@pytest.fixture(scope="module")
def manager() -> PluginManager:
    manager = PluginManager()
    manager.register(Plugin(), name="own")
    return manager


def test_a_task_is_redone_where_the_network_has_changed(
    models: Path, manager: PluginManager, video: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(models / "moving", tmp_path / "model")
    paces = []
    for n_ok in (1, 0, 1):
        engine = vbkit.Engine(str(tmp_path / "model"), "cpu", manager=manager, precision="float32")
        with seen(engine, monkeypatch) as jobs:
            result = engine.run([video], ["pace"], out=tmp_path / "out")
        assert not result.report.failures
        assert result.report.n_ok == n_ok
        assert jobs == [(0, 2)] * n_ok
        paces.append(result.tables["pace"]["pace"].tolist())
        if len(paces) == 2:
            torch.manual_seed(5)
            MotionNetwork(MotionConfig(**MOTION)).save(tmp_path / "model")
    assert len(paces[0]) == 2
    assert paces[0] == paces[1] != paces[2]


def test_explaining_reads_the_cache_or_the_video(
    models: Path, manager: PluginManager, video: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = shutil.copy(video, tmp_path / "talk.mp4")
    engine = vbkit.Engine(str(models / "moving"), "cpu", manager=manager, precision="float32")
    out = tmp_path / "out"
    rows = engine.run([path], ["pace"], out=out).tables["pace"]
    with seen(engine, monkeypatch) as jobs:
        found = engine.explain(out, "pace", [0, 1])
        assert found["first_clip"].tolist() == [0, 2]
        np.testing.assert_allclose(found["weight"], rows["pace"], rtol=1e-5)
        assert jobs == []
        for entry in (out / "cache").rglob("motion-*.safetensors"):
            entry.unlink()
        again = engine.explain(out, "pace", 1)
        assert again["weight"].tolist() == found["weight"].tolist()[1:]
        assert jobs == [(2,)]
    path.unlink()
    assert len(engine.explain(out, "pace", 1)) == 1
    with pytest.raises(MediaError, match=r"talk.mp4: how things move in 1 of its clips"):
        engine.explain(out, "pace", 0)


def test_only_the_head_that_asked_fails(
    models: Path, manager: PluginManager, video: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = shutil.copy(video, tmp_path / "gone.mp4")
    here = make_video(tmp_path / "here.mp4", n=80)
    predict = Length.predict

    def remove(head: Head, features: vbkit.Features) -> dict:
        gone.unlink(missing_ok=True)
        return predict(head, features)

    monkeypatch.setattr(Length, "predict", remove)
    engine = vbkit.Engine(str(models / "moving"), "cpu", manager=manager, precision="float32")
    result = engine.run([gone, here], ["length", "pace"], out=tmp_path / "out")
    (failure,) = result.report.failures
    assert (failure.video_id, failure.stage, failure.task) == ("gone.mp4", "head", "pace")
    errors = result.tables["errors"]
    assert errors[["task", "error_type"]].to_numpy().tolist() == [["pace", "MediaError"]]
    assert "no video at" in errors["message"][0]
    assert result.tables["length"]["clips"].tolist() == [4, 2]
    assert result.tables["pace"]["video_id"].tolist() == ["here.mp4"]


def test_made_up_and_hidden_motion() -> None:
    from vbkit.testing import ModelSizes, make_features

    features = make_features(clips=4, segments=0, needs={"motion", "clip_times"})
    rows = features.motion(range(4))
    assert rows.shape == (4, 128)
    assert torch.equal(features.motion([3, 1, 3]), rows[[3, 1, 3]])
    sized = make_features(clips=4, segments=0, sizes=ModelSizes(motion=7))
    assert sized.motion([1]).shape == (1, 7)
    assert sized.motion([]).shape == (0, 7)
    hidden = hide(features, [Piece("clip", 1, 2)])
    assert torch.equal(hidden.motion([1, 0]), rows[[3, 0]])
    alone = part(features, clips=[2, 1])
    assert torch.equal(alone.motion([0, 1, 1]), rows[[2, 1, 1]])
    assert torch.equal(hide(alone, [Piece("clip", 0, 0)]).motion([0]), rows[[1]])
    for each, wrong in ((features, 4), (hidden, 2), (hidden, -1), (alone, 2), (alone, -1)):
        with pytest.raises(FeatureError, match="motion"):
            each.motion([0, wrong])
    with pytest.raises(FeatureError, match="add clip_times"):
        hide(features.restrict({"motion"}), [Piece("clip", 0, 0)])
