"""`vbkit.load_features`: from the cache, as arrays, without a video."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vbkit
from vbkit.engine.stored import ARRAYS
from vbkit.errors import FeatureError, StoreError, UsageError


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, engine: vbkit.Engine, sample: Path) -> Path:
    """Results of a video, a text and a file that is no video; the inputs are deleted then."""
    folder = tmp_path_factory.mktemp("features")
    inputs = folder / "in"
    inputs.mkdir()
    shutil.copy(sample, inputs / "talk.mp4")
    shutil.copy(sample.with_suffix(".srt"), inputs / "talk.srt")
    (inputs / "note.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nHello there.\n")
    (inputs / "broken.mp4").write_bytes(b"no video")
    engine.run([inputs / "talk.mp4", inputs / "note.srt", inputs / "broken.mp4"], ["sentiment"],
               out=folder / "out")
    shutil.rmtree(inputs)
    return folder / "out"


def test_features_of_all_videos(results: Path, engine: vbkit.Engine) -> None:
    found = vbkit.load_features(results, needs=ARRAYS, engine=engine)
    assert set(found) == {"talk.mp4", "note.srt"}
    talk, note = found["talk.mp4"], found["note.srt"]
    clips = len(vbkit.load_table(results, "clips", where={"video_id": "talk.mp4"}))
    segments = len(vbkit.load_table(results, "segments", where={"video_id": "talk.mp4"}))
    assert talk.clip_embeddings.shape == (clips, 384)
    assert talk.clip_embeddings.dtype == np.float32
    assert np.allclose(np.linalg.norm(talk.clip_embeddings, axis=1), 1, atol=1e-4)
    assert talk.clip_times.dtype == np.float64
    assert talk.segment_embeddings.shape == (segments, 384)
    assert len(talk.segments) == len(talk.tokens) == len(talk.token_hidden) == segments
    assert all(isinstance(each, np.ndarray) for each in talk.token_hidden)
    assert talk.visual_words.dtype == np.int64
    assert talk.language == "en"
    assert note.clip_embeddings.shape == (0, 384)
    assert note.segments == ["Hello there."]
    with pytest.raises(ValueError, match="read-only"):
        talk.clip_embeddings[0] = 0
    assert "clip_times=" in repr(talk)


def test_features_of_one_video_are_those_of_the_engine(
    results: Path, engine: vbkit.Engine, sample: Path
) -> None:
    talk = vbkit.load_features(results, "talk.mp4", {"clip_embeddings"}, engine=engine)
    (fresh,) = engine.encode(sample, {"clip_embeddings"})
    np.testing.assert_allclose(talk.clip_embeddings, fresh.clip_embeddings.numpy(), atol=1e-6)
    with pytest.raises(FeatureError, match="clip_times was not asked for"):
        _ = talk.clip_times
    with pytest.raises(AttributeError):
        _ = talk.nonsense
    assert list(vbkit.load_features(results, ["note.srt"], engine=engine)) == ["note.srt"]


def test_what_cannot_be_had(results: Path, engine: vbkit.Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no video 'broken.mp4' that was encoded"):
        vbkit.load_features(results, "broken.mp4", engine=engine)
    for needs in ({"frames"}, {"encode_text"}, {"clip_embedding"}):
        with pytest.raises(UsageError, match="needs may name clip_embeddings"):
            vbkit.load_features(results, needs=needs, engine=engine)
    with pytest.raises(UsageError, match="set of names"):
        vbkit.load_features(results, needs="clip_times", engine=engine)
    with pytest.raises(StoreError, match=r"does not hold 1 of 2 videos \(talk.mp4\): run them"):
        vbkit.load_features(results, cache=tmp_path, engine=engine)
    with pytest.raises(StoreError, match="does not hold 1 of 1"):
        vbkit.load_features(results, "talk.mp4", cache=tmp_path, engine=engine, missing="skip")
    left = vbkit.load_features(results, cache=tmp_path, engine=engine, missing="skip")
    assert list(left) == ["note.srt"]
    with pytest.raises(StoreError, match="no such folder"):
        vbkit.load_features(tmp_path / "nowhere", engine=engine)


def test_the_name_alone_imports_no_torch() -> None:
    code = ("import vbkit, sys; assert 'load_features' in dir(vbkit); "
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
