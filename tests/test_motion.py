"""`clip_motion`: small grey pictures out of the decoder's one pass, and the network that sees them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
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
from vbkit.engine.cache import FeatureCache
from vbkit.engine.pipeline import Request
from vbkit.errors import ModelError, StoreError
from vbkit.explanations import Piece, hide, part
from vbkit.media import DecodeJob, DecodePool, open_video
from vbkit.media.grey import grey_squares
from vbkit.media.sizes import clip_grid, clip_sample_times
from vbkit.model.motion import MOTION_FILE, MotionConfig, MotionNetwork
from vbkit.plugins import PluginManager
from vbkit.sources import expand_inputs

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


def decoded(pool: DecodePool, path: Path, **settings) -> tuple[np.ndarray, np.ndarray | None, list]:
    video = pool.decode(DecodeJob("", path, height=64, **settings))
    batches = list(video.clips())
    motion = [batch.motion for batch in batches]
    return (np.concatenate([batch.frames for batch in batches]),
            None if motion[0] is None else np.concatenate(motion), video.keyframes)


def test_motion_pictures_come_of_the_right_times_in_the_same_pass(video: Path) -> None:
    with DecodePool(plugin_openers=False) as pool:
        plain, none, keyframes = decoded(pool, video)
        frames, motion, others = decoded(pool, video, motion_frames=9, motion_size=40)
        alone, same, _ = decoded(pool, video, motion_frames=9, motion_size=40, frames_per_clip=0,
                                 keyframes=False)
    assert none is None
    assert np.array_equal(frames, plain)
    assert keyframes == others
    assert (motion.shape, motion.dtype) == ((4, 9, 40, 40), np.uint8)
    assert alone.shape == (4, 0, 64, 160, 3)
    assert np.array_equal(motion, same)
    reader = open_video(video, {"height": 64})
    times = clip_sample_times(clip_grid(reader.info.duration_s, 1.5), 9).ravel()
    shown = np.concatenate([batch.data for batch in reader.frames_at(times.tolist())])
    assert [read_number(frame) for frame in shown] == [int(t * 25 + 1e-6) for t in times]
    assert np.array_equal(motion.reshape(-1, 40, 40), grey_squares(shown, 40))


def test_times_are_those_of_presentation(tmp_path: Path) -> None:
    path = make_video(tmp_path / "uneven.mp4", times_ms=[0, 40, 500, 520, 900, 1400, 1460])
    with DecodePool(plugin_openers=False) as pool:
        _, motion, _ = decoded(pool, path, motion_frames=15, motion_size=64)
    (clip,) = motion
    seen = [read_number(np.repeat(picture[..., None], 3, 2)) for picture in clip]
    duration = open_video(path).info.duration_s
    at = (np.arange(15) + 0.5) * duration / 15
    shown_from = np.array([0, 0.04, 0.5, 0.52, 0.9, 1.4, 1.46])
    assert seen == [int(np.searchsorted(shown_from, t, "right")) - 1 for t in at]


def test_both_readers_agree(video: Path) -> None:
    with DecodePool(plugin_openers=False) as pool:
        one, other = (decoded(pool, video, motion_frames=8, motion_size=32, reader=reader)[1]
                      for reader in ("pyav", "decord"))
    difference = np.abs(one.astype(int) - other)
    assert difference.mean() < 2  # they scale the frames differently
    assert np.quantile(difference, 0.95) < 10
    apart = np.abs(one[:, 1:].astype(int) - other[:, :-1]).mean()  # were it the frame before
    assert apart > 5 * difference.mean()


def test_long_videos_come_in_messages_of_bounded_size() -> None:
    with DecodePool(plugin_openers=["media_openers:opener"]) as pool:
        for frames in (0, 4):
            video = pool.decode(DecodeJob("", Path("long.fake"), height=16, frames_per_clip=frames,
                                          motion_frames=24, motion_size=112, keyframes=False))
            sizes = [batch.frames.nbytes + batch.motion.nbytes for batch in video.clips()]
            assert len(sizes) > 10
            assert max(sizes) < 9 << 20


@pytest.mark.parametrize("wrong", [
    {"motion_frames": -1}, {"frames_per_clip": 0}, {"motion_size": 0},
    {"frames_per_clip": 0, "motion_frames": 4, "keyframes": True}])
def test_jobs_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        DecodeJob("", Path("x.mp4"), **wrong)


# The network and its file


@pytest.fixture(scope="module")
def network() -> MotionNetwork:
    torch.manual_seed(3)
    made = MotionNetwork(MotionConfig(**MOTION))
    for module in made.network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
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
        torch.testing.assert_close(ready(pictures), got, rtol=1e-4, atol=1e-4)
        rough = MotionNetwork.load(tmp_path).prepare("cpu", "bfloat16")(pictures)
        assert rough.dtype == torch.float32
        assert float(torch.nn.functional.cosine_similarity(rough, got).min()) > 0.99
        assert ready(pictures[:0]).shape == (0, 5)


def test_a_small_file_for_int8(tmp_path: Path) -> None:
    sizes = [MotionNetwork().save(tmp_path, dtype).stat().st_size
             for dtype in (torch.int8, torch.float16)]
    assert sizes[0] < 0.6 * sizes[1] < 1e6


def test_files_that_are_damaged_or_do_not_fit(network: MotionNetwork, tmp_path: Path) -> None:
    path = network.save(tmp_path, torch.int8)
    whole, tensors = path.read_bytes(), load_file(path)
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
    refused("lacks tensor stages.6.weight and", config=_json(
        MotionConfig(**{**MOTION, "channels": (4, 6, 8)})))
    refused("holds the unknown tensor odd", {"odd": torch.zeros(1)})
    refused("head.bias is not finite", {"head.bias": torch.full((5,), torch.inf)})
    refused("head.weight.scale has shape", {"head.weight.scale": torch.ones(4)})
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
    ({"channels": (8, True)}, "channels must be"), ({"outputs": "9"}, "outputs must be")])
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


def encode(engine: vbkit.Engine, *paths: Path, needs: frozenset | set = frozenset({"clip_motion"}),
           **settings) -> list[vbkit.Features]:
    found = list(engine.encode(list(paths), needs, transcript="none", **settings))
    assert [features.error for features in found] == [None] * len(paths)
    return found


@contextmanager
def runs(engine: vbkit.Engine) -> Iterator[dict[str, int]]:
    """How many batches the backbone and the motion network run meanwhile."""
    counts = {"backbone": 0, "motion": 0}

    def counter(name: str):
        def count(*_: object) -> None:
            counts[name] += 1
        return count

    hooks = [engine.bundle.backbone.register_forward_hook(counter("backbone")),
             engine.bundle.motion.register_forward_hook(counter("motion"))]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def test_a_row_is_what_the_network_gives_for_the_pictures(
    moving: vbkit.Engine, network: MotionNetwork, video: Path
) -> None:
    with runs(moving) as counts:
        (features,) = encode(moving, video, needs={"clip_motion", "clip_times"})
    assert counts == {"backbone": 0, "motion": 1}
    assert (features.clip_motion.shape, features.clip_motion.dtype) == ((4, 5), torch.float32)
    assert features.clip_times.shape == (4, 2)
    with DecodePool(plugin_openers=False) as pool:
        job = DecodeJob("", video, frames_per_clip=0, motion_frames=6, motion_size=16,
                        keyframes=False)
        (batch,) = pool.decode(job).clips()
    with torch.no_grad():
        wanted = network(torch.tensor(batch.motion))
    torch.testing.assert_close(features.clip_motion, wanted, rtol=2e-3, atol=2e-3)
    assert torch.equal(features.clip_motion, features.clip_motion.half().float())


def test_neighbours_and_other_outputs_change_nothing(
    moving: vbkit.Engine, video: Path, tmp_path: Path
) -> None:
    others = [make_video(tmp_path / f"{n}.mp4", n=n) for n in (700, 40)]  # more than a batch
    both = {"clip_motion", "clip_features"}
    together = encode(moving, *others, video, needs=both)
    for path, among in zip([*others, video], together, strict=True):
        (alone,) = encode(moving, path)
        assert torch.equal(alone.clip_motion, among.clip_motion)
        assert len(among.clip_motion) == len(among.clip_features)
    assert len(together[0].clip_motion) == 19
    (without,) = encode(moving, video, needs={"clip_features"})
    assert torch.equal(without.clip_features, together[2].clip_features)


def test_what_stands_still_is_zeros(moving: vbkit.Engine, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "still.png")
    make_video(tmp_path / "one.mp4", n=1)
    with runs(moving) as counts:
        found = encode(moving, tmp_path / "still.png", tmp_path / "one.mp4",
                       needs={"clip_motion", "clip_features"})
        found += encode(moving, tmp_path / "still.png", tmp_path / "one.mp4")
    assert counts["motion"] == 0
    assert [features.clip_motion.tolist() for features in found] == [[[0.0] * 5]] * 4


def test_text_alone_has_no_rows(moving: vbkit.Engine, tmp_path: Path) -> None:
    (tmp_path / "talk.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\nWords.\n")
    (features,) = moving.encode([tmp_path / "talk.srt"], {"clip_motion", "segments"})
    assert features.clip_motion.shape == (0, 5)
    assert features.segments == ["Words."]


def test_the_cache_gives_the_same_and_is_extended(
    moving: vbkit.Engine, video: Path, tmp_path: Path
) -> None:
    engine = cached(moving, tmp_path / "cache")
    both = {"clip_motion", "clip_features"}
    (plain,) = encode(moving, video, needs=both)
    shutil.copy(video, tmp_path / "twin.mp4")
    paths = [video, tmp_path / "twin.mp4"]
    with runs(engine) as counts:
        encode(engine, *paths, needs={"clip_features"})  # an entry as it was before
        assert counts == {"backbone": 1, "motion": 0}
        for _ in range(2):
            for features in encode(engine, *paths, needs=both):
                for name in both:
                    assert torch.equal(getattr(features, name), getattr(plain, name))
                assert len(features.keyframe_times) == 4
        assert counts == {"backbone": 1, "motion": 1}
        encode(engine, video, needs=both, fresh=True)
        assert counts == {"backbone": 2, "motion": 2}
    for entry in (tmp_path / "cache").rglob("motion-*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:100])
    assert torch.equal(encode(engine, *paths)[1].clip_motion, plain.clip_motion)
    other = cached(moving, tmp_path / "other")  # the other way round: motion first
    with runs(other) as counts:
        for needs in ({"clip_motion"}, both):
            (features,) = encode(other, video, needs=needs)
            assert torch.equal(features.clip_motion, plain.clip_motion)
        assert torch.equal(features.clip_features, plain.clip_features)
        assert counts == {"backbone": 1, "motion": 1}


def test_of_a_video_that_breaks_off_the_whole_clips_are_kept(
    moving: vbkit.Engine, tmp_path: Path
) -> None:
    whole = make_video(tmp_path / "whole.mkv", n=200)
    truncate(whole, tmp_path / "cut.mkv", 0.5)
    (features,) = encode(moving, tmp_path / "cut.mkv", needs={"clip_motion", "clip_features"})
    assert 0 < len(features.clip_motion) == len(features.clip_features) <= 6


def test_damage_is_told_once_however_it_comes_about(
    moving: vbkit.Engine, tmp_path: Path
) -> None:
    damaged = flip_bits(make_video(tmp_path / "whole.mp4", n=60), tmp_path / "damaged.mp4", 40)
    sources = expand_inputs([damaged]).sources

    def told(cache: str, needs: set[str]) -> list[str]:
        pipeline = moving.pipeline(FeatureCache(tmp_path / cache), "none")
        requests = (Request(prepared, frozenset(needs)) for prepared in pipeline.prepare(sources))
        (encoded,) = pipeline.encode(requests)
        assert encoded.complete
        return [failure.message for failure in encoded.failures]

    both = {"clip_features", "clip_motion"}
    (first,) = told("one", both)
    assert "frames cannot be decoded" in first
    assert told("one", both) == [first]
    (alone,) = told("two", {"clip_features"})
    later = told("two", both)
    assert later[0] == alone
    assert told("two", both) == later


def test_a_model_without_a_motion_network_says_so_before_anything_is_decoded(
    models: Path, manager: PluginManager, tmp_path: Path
) -> None:
    engine = vbkit.Engine(str(models / "plain"), "cpu", manager=manager)
    with pytest.raises(ModelError, match=r"plain has no motion network \(motion.safetensors\), "
                                         "which the output clip_motion needs"):
        next(engine.encode([tmp_path / "x.mp4"], {"clip_motion"}))
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
    for needs in ({"clip_motion"}, {"clip_motion", "clip_times"}, {"clip_motion", "pooled"}):
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
    def predict(self, features):
        return {"pace": PACE.frame([{"clip": clip, "pace": float(row.norm())}
                                    for clip, row in enumerate(features.clip_motion)])}


class Plugin:
    @hookimpl
    def vbkit_tasks(self):
        yield TaskSpec("pace", "How much moves.", f"{__name__}:Pace", {"clip_motion"}, (PACE,))


@pytest.fixture(scope="module")
def manager() -> PluginManager:
    manager = PluginManager()
    manager.register(Plugin(), name="own")
    return manager


def test_a_task_is_redone_where_the_network_has_changed(
    models: Path, manager: PluginManager, video: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "moving", tmp_path / "model")
    paces = []
    for n_ok in (1, 0, 1):
        engine = vbkit.Engine(str(tmp_path / "model"), "cpu", manager=manager, precision="float32")
        with runs(engine) as counts:
            result = engine.run([video], ["pace"], out=tmp_path / "out")
        assert not result.report.failures
        assert result.report.n_ok == n_ok
        assert counts == {"backbone": int(not paces), "motion": n_ok}
        paces.append(result.tables["pace"]["pace"].tolist())
        if len(paces) == 2:
            torch.manual_seed(5)
            MotionNetwork(MotionConfig(**MOTION)).save(tmp_path / "model")
    assert len(paces[0]) == 4
    assert paces[0] == paces[1] != paces[2]
    assert len(result.tables["clips"]["keyframe"].dropna()) == 4
    stored = vbkit.load_features(tmp_path / "out", video.name, {"clip_motion"}, engine=engine)
    np.testing.assert_allclose(np.linalg.norm(stored.clip_motion, axis=1), paces[2], rtol=1e-5)
    with runs(engine) as counts:
        memory = engine.run([video], ["pace"]).tables["pace"]["pace"].tolist()
    assert counts == {"backbone": 0, "motion": 1}  # nobody searches it
    assert memory == paces[2]
    for entry in (tmp_path / "out" / "cache").rglob("motion-*.safetensors"):
        entry.unlink()
    with pytest.raises(StoreError, match="does not hold 1 of 1"):
        vbkit.load_features(tmp_path / "out", video.name, {"clip_motion"}, engine=engine)
    assert vbkit.load_features(tmp_path / "out", video.name, {"clip_times"},
                               engine=engine).clip_times.shape == (4, 2)


def test_made_up_and_hidden_motion() -> None:
    from vbkit.testing import ModelSizes, make_features

    features = make_features(clips=4, segments=0, needs={"clip_motion"})
    assert features.clip_motion.shape == (4, 128)
    sized = make_features(clips=4, segments=0, sizes=ModelSizes(motion=7)).clip_motion
    assert sized.shape == (4, 7)
    hidden = hide(features, [Piece("clip", 1, 2)])
    assert torch.equal(hidden.clip_motion, features.clip_motion[[0, 3]])
    assert torch.equal(part(features, clips=[2]).clip_motion, features.clip_motion[[2]])
