"""The decoder and the visual words of a model, through the engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vbkit
from vbkit.errors import FeatureError, MediaError, ModelError

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "frame.jpg"
    Image.new("RGB", (320, 240), (40, 120, 60)).save(path)
    return path


def test_captions_are_sentences_and_do_not_depend_on_company(engine, sample, picture) -> None:
    together = engine.caption([sample, picture])
    assert len(together) == 2
    assert all(len(text.split()) >= 3 and text[0].isalpha() for text in together)
    assert [engine.caption([path])[0] for path in (sample, picture)] == together


def test_what_cannot_be_described_is_an_error(engine, tmp_path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello.\n")
    with pytest.raises(MediaError, match="no picture"):
        engine.caption([tmp_path / "a.srt"])
    (tmp_path / "b.mp4").write_bytes(b"nothing")
    with pytest.raises(MediaError):
        engine.caption([tmp_path / "b.mp4"])


def test_clips_are_described_one_by_one_or_together(engine, sample) -> None:
    features = next(engine.encode([sample], {"generate", "clip_times", "visual_words"}))
    count = len(features.clip_times)
    texts = features.generate([[0], list(range(count)), [0]], num_beams=2)
    assert len(texts) == 3
    assert texts[0] == texts[2]
    for wrong in ([[]], [[count]], [[-1]]):
        with pytest.raises(FeatureError, match="generate"):
            features.generate(wrong)
    with pytest.raises(FeatureError, match="at most"):
        features.generate([[0]], max_new_tokens=1000)
    assert features.visual_words.dtype == torch.int64
    assert features.visual_words.shape == (count,)
    assert features.visual_words.max() < len(engine.bundle.vocabulary)


def test_captions_of_a_run_stay_when_another_run_does_not_ask(engine, sample, tmp_path) -> None:
    out = tmp_path / "results"
    engine.run([sample], ["sentiment"], out=out)
    assert vbkit.load_table(out, "clips")["caption"].isna().all()
    engine.run([sample], ["sentiment"], out=out, captions=True)
    written = vbkit.load_table(out, "clips")["caption"]
    assert written.notna().all()
    engine.run([sample], ["moderation"], out=out)
    assert vbkit.load_table(out, "clips")["caption"].tolist() == written.tolist()


def test_a_model_without_decoder_and_words_says_so(engine, sample, tmp_path) -> None:
    path = tmp_path / "bare"
    shutil.copytree(engine.bundle.path, path)
    (path / "vocabulary.safetensors").unlink()
    state = load_file(path / "model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if not name.startswith("decoder.")},
              path / "model.safetensors")
    bare = vbkit.Engine(str(path), device="cpu")
    with pytest.raises(ModelError, match="no decoder"):
        bare.caption([sample])
    with pytest.raises(ModelError, match="no decoder"):
        bare.run([sample], ["sentiment"], captions=True)
    with pytest.raises(ModelError, match="no visual vocabulary"):
        next(bare.encode([sample], {"visual_words"}))


def test_a_vocabulary_of_another_size_is_refused(engine, tmp_path) -> None:
    path = tmp_path / "other"
    shutil.copytree(engine.bundle.path, path)
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"visual_vocab_size": 7}))
    with pytest.raises(ModelError, match="512 words"):
        _ = vbkit.Engine(str(path), device="cpu").bundle.vocabulary


def test_heads_outlive_what_they_do_not_read(engine, tmp_path) -> None:
    path = tmp_path / "trained-on"
    shutil.copytree(engine.bundle.path, path)
    state = load_file(path / "model.safetensors")
    state["decoder.bias"] += 1
    save_file(state, path / "model.safetensors")
    other = vbkit.Engine(str(path), device="cpu").bundle
    assert other.fingerprint != engine.bundle.fingerprint
    for needs in ({"segment_embeddings"}, {"clip_embeddings", "clip_features"}):
        assert other.fingerprint_of(needs) == engine.bundle.fingerprint_of(needs)
    assert other.fingerprint_of({"generate"}) != engine.bundle.fingerprint_of({"generate"})
    state["videobert.text_embeddings.norm.bias"] += 1
    save_file(state, path / "model.safetensors")
    third = vbkit.Engine(str(path), device="cpu").bundle
    assert third.fingerprint_of({"encode_text"}) != engine.bundle.fingerprint_of({"encode_text"})
    assert third.fingerprint_of({"clip_features"}) == engine.bundle.fingerprint_of(
        {"clip_features"})
