"""Corpora: what is in them is what was put in, and what cannot be used is counted."""

from __future__ import annotations

import copy
import json
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from training_files import SENTENCES, WIDTH, items, make_bundle, make_corpus, tokenizer

from vbkit.errors import CorpusError
from vbkit.training.build import build_corpus
from vbkit.training.corpus import Corpus, CorpusInfo, CorpusItem, overlapping, split_of


def words(corpus: Corpus, item: int, name: str, number: int) -> str:
    return tokenizer().decode(corpus.text(item, name, number).tolist())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    given_items = list(items())
    assert corpus.ids.tolist() == [item.id for item in given_items]
    for index in (0, 39, 40, 45, 46, 55):
        item = given_items[index]
        for view in range(corpus.row(index, "views")):
            wanted = np.asarray(item.clip_features)
            wanted = wanted[view] if wanted.ndim == 3 else wanted
            found = corpus.clip_features(index, np.arange(len(wanted)), view)
            assert found.dtype == np.float16
            assert np.array_equal(found, wanted.astype(np.float16))
        assert [words(corpus, index, "segment", n) for n in range(corpus.row(index, "segments"))
                ] == list(item.segments)
        assert [words(corpus, index, "caption", n) for n in range(corpus.row(index, "captions"))
                ] == list(item.captions)
    assert np.array_equal(corpus.segment_times(40), np.asarray(given_items[40].segment_times))
    assert np.allclose(corpus.clip_times(40)[3], [4.5, 6.0])
    assert corpus.info.items == 56
    assert corpus.info.clips == 40 + 6 * 40
    assert 2 <= (corpus.splits == "val").sum() <= 25


def test_the_split_is_the_manifests_else_the_ids_and_a_groups(tmp_path: Path) -> None:
    found = [CorpusItem(f"i{n}", segments=["a dog"], group=f"g{n // 2}") for n in range(400)]
    found.append(CorpusItem("held", segments=["a dog"], split="val"))
    corpus = make_corpus(tmp_path / "corpus", iter(found), val_share=0.3)
    assert corpus.splits[-1] == "val"
    assert (corpus.splits[:400:2] == corpus.splits[1:400:2]).all()
    assert (corpus.groups[:400:2] == corpus.groups[1:400:2]).all()
    assert 0.2 < (corpus.splits == "val").mean() < 0.4
    assert split_of("g7", 0.0) == "train"


BAD = {
    "neither clips nor text": CorpusItem("bad"),
    "not finite": CorpusItem("bad", np.full((2, WIDTH), np.nan)),
    "7 wide, but those before them are 6": CorpusItem("bad", np.zeros((2, WIDTH + 1))),
    "too large": CorpusItem("bad", np.full((2, WIDTH), 1e6)),
    "numbers of shape": CorpusItem("bad", np.zeros(WIDTH)),
    "not in order": CorpusItem("bad", np.zeros((2, WIDTH)), [[3, 4], [1, 2]]),
    "clip_times are 1, but there are 2": CorpusItem("bad", np.zeros((2, WIDTH)), [[0, 1]]),
    "segment_times are 2": CorpusItem("bad", segments=["a"], segment_times=[[0, 1], [1, 2]]),
    "neither train nor val": CorpusItem("bad", segments=["a"], split="dev"),
    "outside the tokenizer's": CorpusItem("bad", segments=[[5, 999_999]]),
    "a list, not a string": CorpusItem("bad", segments="a dog"),
    "no such file": CorpusItem("bad", problem="x.mp4: no such file"),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_cannot_be_used_is_skipped_and_counted(tmp_path: Path, reason: str) -> None:
    found = [*items(3, 0, 0), BAD[reason], CorpusItem("good", segments=["a dog"])]
    corpus = make_corpus(tmp_path / "corpus", iter(found))
    assert "bad" not in corpus.ids
    assert corpus.info.items == 4
    assert corpus.info.skipped == 1
    assert reason in corpus.info.skipped_examples[0].reason


def test_more_than_half_bad_is_an_error_that_says_why(tmp_path: Path) -> None:
    bad = [CorpusItem(f"b{n}", problem="x.mp4: no such file") for n in range(4)]
    with pytest.raises(CorpusError, match=r"4 of 7 items .* no such file"):
        make_corpus(tmp_path / "corpus", iter([*items(3, 0, 0), *bad]))
    with pytest.raises(CorpusError, match="nothing to train on"):
        make_corpus(tmp_path / "empty", iter([]))
    with pytest.raises(CorpusError, match="cut short"):
        Corpus.open(tmp_path / "empty")


def test_a_run_that_was_killed_goes_on_and_writes_the_same(tmp_path: Path) -> None:
    whole = make_corpus(tmp_path / "whole", shard_bytes=1500)
    assert len(whole.shards) > 3

    def killed():
        for number, item in enumerate(items()):
            if number == 30:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        make_corpus(tmp_path / "cut", killed(), shard_bytes=1500)
    with pytest.raises(CorpusError, match="goes on where it stopped"):
        Corpus.open(tmp_path / "cut")
    corpus = make_corpus(tmp_path / "cut", shard_bytes=1500)
    assert corpus.ids.tolist() == whole.ids.tolist()
    assert corpus.info == whole.info
    for item in range(len(whole)):
        clips = np.arange(whole.row(item, "clips"))
        if len(clips):
            assert np.array_equal(corpus.clip_features(item, clips),
                                  whole.clip_features(item, clips))
        assert all(np.array_equal(corpus.text(item, "segment", n), whole.text(item, "segment", n))
                   for n in range(whole.row(item, "segments")))


def test_a_full_disk_is_said_and_loses_nothing_before_it(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = [*items(2, 0, 0), CorpusItem("big", np.zeros((4000, WIDTH)))]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
        with pytest.raises(CorpusError, match="free some space and run the same command again"):
            make_corpus(tmp_path / "corpus", iter(big), shard_bytes=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in (tmp_path / "corpus").iterdir() if path.suffix == ".tmp"]
    assert make_corpus(tmp_path / "corpus", iter(big)).ids.tolist() == [
        "picture-0", "picture-1", "big"]


def test_corpora_of_different_makers_are_not_mixed(tmp_path: Path) -> None:
    one = make_corpus(tmp_path / "one", items(3, 1, 0))
    make_corpus(tmp_path / "text", items(0, 0, 3), backbone="")
    joined = Corpus.open(tmp_path / "text", tmp_path / "one")
    assert len(joined) == 7
    assert joined.info.backbone == "test"
    assert np.array_equal(joined.clip_features(3, np.arange(1)), one.clip_features(0, np.arange(1)))

    make_corpus(tmp_path / "other", items(3, 1, 0), backbone="else")
    with pytest.raises(CorpusError, match=r"backbone test, those of .*other by else"):
        Corpus.open(tmp_path / "one", tmp_path / "other")
    with pytest.raises(CorpusError, match="cannot be mixed"):
        make_corpus(tmp_path / "one", items(), backbone="else")
    changed = copy.deepcopy(tokenizer())
    changed.add_tokens(["videobert"])
    with pytest.raises(CorpusError, match="was tokenized by"):
        make_corpus(tmp_path / "one", items(), tokenizer=changed)


def test_files_of_another_version_or_damaged_are_refused(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", items(3, 0, 0))
    path = tmp_path / "corpus" / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(CorpusError, match="format 99"):
        Corpus.open(tmp_path / "corpus")
    with pytest.raises(CorpusError, match="is no corpus"):
        Corpus.open(tmp_path)
    good = make_corpus(tmp_path / "second", items(3, 0, 0))
    good.shards[0].write_bytes(good.shards[0].read_bytes()[:100])
    with pytest.raises(CorpusError, match="make the corpus again"):
        Corpus.open(tmp_path / "second").tensors(0)


times = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 5)), max_size=12)


@given(times, times)
@settings(max_examples=60, deadline=None)
def test_overlapping_clips_are_those_that_share_time(clips, segments) -> None:
    clip_times = np.array(sorted((s, s + d) for s, d in clips)).reshape(-1, 2)
    clip_times[:, 1] = np.maximum.accumulate(clip_times[:, 1]) if len(clips) else clip_times[:, 1]
    segment_times = np.array([(s, s + d) for s, d in segments]).reshape(-1, 2)
    for (first, last), (start, end) in zip(overlapping(clip_times, segment_times), segment_times,
                                           strict=True):
        inside = {n for n, (a, b) in enumerate(clip_times) if a < end and b > start}
        assert inside <= set(range(first, last))
        assert len(set(range(first, last)) - inside) <= sum(
            b - a < 2e-3 or end - start < 2e-3 for a, b in clip_times)


def test_text_without_times_goes_with_all_clips() -> None:
    clips = np.array([[0, 1.5], [1.5, 3], [3, 4.5]])
    found = overlapping(clips, np.array([[np.nan, np.nan], [1.6, 1.7], [90, 91]]))
    assert found[:2].tolist() == [[0, 3], [1, 2]]
    assert found[2, 0] == found[2, 1]


# --- from a manifest --------------------------------------------------------------------------


def test_a_manifest_becomes_a_corpus(tmp_path: Path, sample: Path, engine) -> None:
    width = engine.bundle.backbone.dim
    np.save(tmp_path / "still.npy", np.ones((2, 1, width), np.float32))
    save_file({"clip_features": np.ones((3, width), np.float32),
               "clip_times": np.array([[0, 2], [2, 4], [4, 6.0]])}, tmp_path / "f.safetensors")
    np.save(tmp_path / "narrow.npy", np.ones((2, 100), np.float32))
    rows = [
        {"id": "talk", "video": str(sample), "caption": ["cars wait", "a street"]},
        {"id": "talk", "video": str(sample), "caption": "cars wait"},
        {"id": "late", "video": str(sample), "caption": "a street again",
         "text": [{"text": "long after", "start": 900, "end": 901}]},
        {"id": "still", "features": "still.npy", "caption": "a picture"},
        {"id": "f", "video": "gone.mp4", "features": "f.safetensors",
         "text": [{"text": "three clips", "start": 0.5, "end": 3}]},
        {"id": "words", "text": "Only words."},
        {"id": "captioned", "caption": "only a caption", "split": "val"},
        {"id": "gone", "video": "gone.mp4"},
        {"id": "narrow", "features": "narrow.npy", "caption": "too narrow"},
        {"id": "nothing", "features": "nothing.npy", "caption": "no file"},
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    seen = []
    corpus = build_corpus(manifest, tmp_path / "corpus", engine=engine, val_share=0.0,
                          progress=lambda *counts: seen.append(counts))
    index = {str(name): n for n, name in enumerate(corpus.ids)}
    assert list(index) == ["talk", "late", "still", "f", "words", "captioned"]
    assert seen[-1] == (6, 3, 9)
    reasons = {skipped.id: skipped.reason for skipped in corpus.info.skipped_examples}
    assert "no such file" in reasons["gone"]
    assert f"100 wide, but those before them are {width}" in reasons["narrow"]
    assert "no such file" in reasons["nothing"]

    talk = index["talk"]
    assert corpus.row(talk, "clips") == 10
    assert corpus.row(talk, "segments") > 0
    assert [words(corpus, talk, "caption", n) for n in range(2)] == ["cars wait", "a street"]
    features = next(iter(engine.encode([sample], {"clip_features"}))).clip_features
    assert np.allclose(corpus.clip_features(talk, np.arange(10)), features.numpy(), atol=1e-3)
    assert corpus.groups[talk] == corpus.groups[index["late"]]
    assert corpus.info.unaligned == 1
    assert corpus.row(index["still"], "views") == 2
    assert corpus.segment_clips(index["f"]).tolist() == [[0, 2]]
    assert corpus.row(index["words"], "clips") == 0
    assert corpus.splits[index["captioned"]] == "val"
    assert corpus.info.backbone == engine.bundle.visual_key
    assert corpus.info.precision == engine.bundle.precision


def test_a_manifests_videos_are_not_seen_twice(tmp_path: Path, sample: Path, engine,
                                               monkeypatch) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"id": "talk", "video": str(sample)}))
    build_corpus(manifest, tmp_path / "corpus", engine=engine)
    monkeypatch.setattr(type(engine.bundle.backbone), "forward",
                        lambda *_: pytest.fail("the backbone was asked again"))
    assert len(build_corpus(manifest, tmp_path / "corpus", engine=engine)) == 1


def test_two_missing_files_in_a_thousand_cost_two_rows(tmp_path: Path) -> None:
    from vbkit.engine import Engine

    rows = [{"id": f"t{n}", "text": SENTENCES[n % 5]} for n in range(998)]
    rows += [{"id": f"gone{n}", "video": f"gone{n}.mp4"} for n in range(2)]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    engine = Engine(str(make_bundle(tmp_path / "model")), "cpu")
    info = build_corpus(manifest, tmp_path / "corpus", engine=engine).info
    assert (info.items, info.skipped) == (998, 2)
    assert CorpusInfo.read(tmp_path / "corpus") == info
