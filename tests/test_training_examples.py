"""Examples: clips with their own words, nothing hidden that must not be, the same again."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from training_files import make_corpus, tokenizer

from vbkit.errors import CorpusError, UsageError
from vbkit.training.config import ExampleOptions
from vbkit.training.corpus import Corpus, CorpusItem
from vbkit.training.examples import KINDS, BatchStream, SpecialTokens
from vbkit.training.pretraining import _Batches, _only

TOKENS = SpecialTokens.of(tokenizer(), 1)
PLAIN = ExampleOptions(mask_rate=0.0, visual_mask_rate=0.0, negative_share=0.0, join=0.0)
BASE = 2000  # the first word piece that is an ordinary word


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def talks(tmp_path_factory) -> Corpus:
    """Three talks of 100 clips of 1 s. Clip n has the feature n; segment n, over the clips 2n and
    2n + 1, is the word pieces BASE + n, thrice."""
    def found():
        for number in range(3):
            clips = np.arange(100.0)
            features = np.stack([clips, np.full(100, number)], 1)
            segments = [[BASE + n] * 3 for n in range(50)]
            times = [[2 * n + 0.1, 2 * n + 1.9] for n in range(50)]
            yield CorpusItem(f"talk-{number}", features, np.stack([clips, clips + 1], 1),
                             segments, times)
    return make_corpus(tmp_path_factory.mktemp("talks"), found(), val_share=0.0)


def stream(corpus: Corpus, *kinds: str, size: int = 4, **settings) -> BatchStream:
    mixture = settings.pop("mixture", dict.fromkeys(kinds, 1))
    if "visual_words" not in settings and set(mixture) & {"video", "joint"}:
        settings["visual_words"] = [np.arange(len(corpus.tensors(n)["clip_features"])) % 7
                                    for n in range(len(corpus.shards))]
    return BatchStream(corpus, TOKENS, mixture, dict.fromkeys(KINDS, size), **settings)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) if isinstance(one[name], torch.Tensor)
        else one[name] == other[name] for name in one)


# --- the same again ---------------------------------------------------------------------------


def test_a_batch_is_a_function_of_its_number(corpus: Corpus) -> None:
    walked = stream(corpus, *KINDS, seed=3)
    batches = [walked.batch(step) for step in range(60)]
    for step in (59, 0, 17, 44):
        assert same(stream(corpus, *KINDS, seed=3).batch(step), batches[step])
    other = [stream(corpus, *KINDS, seed=4).batch(step) for step in range(5)]
    assert not any(map(same, other, batches))


def test_loading_processes_change_nothing(corpus: Corpus) -> None:
    source = stream(corpus, *KINDS)
    wanted = [source.batch(step) for step in range(7, 20)]
    found = list(DataLoader(_Batches(pickle.loads(pickle.dumps(source)), 7, 20), batch_size=1,
                            collate_fn=_only, num_workers=2))
    assert [batch.pop("step") for batch in found] == list(range(7, 20))
    assert all(map(same, found, wanted))


def test_ranks_share_the_kinds_and_none_of_the_examples(corpus: Corpus) -> None:
    ranks = [stream(corpus, "joint", "text", rank=rank, world=2) for rank in range(2)]
    single = stream(corpus, "joint", "text")
    for step in range(12):
        assert ranks[0].kind(step) == ranks[1].kind(step) == single.kind(step)
        assert not same(ranks[0].batch(step), ranks[1].batch(step))
    alone = [single.batch_of("text", number) for number in range(6)]
    apart = [ranks[n % 2].batch_of("text", n) for n in range(6)]
    assert all(map(same, alone, apart))


def test_every_stretch_holds_the_mixture(corpus: Corpus) -> None:
    mixture = {"joint": 2, "text": 1, "contrast": 0.5, "video": 0}
    kinds = [stream(corpus, mixture=mixture).kind(step) for step in range(70)]
    for start in range(0, 70, 7):
        assert Counter(kinds[start : start + 7]) == {"joint": 4, "text": 2, "contrast": 1}


def test_an_epoch_uses_everything_once(talks: Corpus) -> None:
    source = stream(talks, "text", size=5, options=PLAIN)
    assert source.batches_per_epoch("text") == 30
    for epoch in range(2):
        seen = Counter()
        for number in range(30):
            batch = source.batch_of("text", 30 * epoch + number)
            seen.update(zip(batch["ids"], batch["input_ids"][:, 1].tolist(), strict=True))
        assert len(seen) == 150
        assert set(seen.values()) == {1}


# --- which clips, which words -----------------------------------------------------------------


def test_sentences_come_with_the_clips_of_their_span(talks: Corpus) -> None:
    options = ExampleOptions(mask_rate=0.0, negative_share=0.0, join=0.7, max_step=1)
    source = stream(talks, "joint", options=options)
    joined = 0
    for number in range(30):
        batch = source.batch_of("joint", number)
        for ids, features, mask in zip(batch["input_ids"], batch["visual_features"],
                                       batch["visual_mask"], strict=True):
            segments = sorted(set((ids[ids >= BASE] - BASE).tolist()))
            assert segments == list(range(segments[0], segments[-1] + 1))
            clips = features[mask.bool(), 0].tolist()
            assert clips == list(range(2 * segments[0], 2 * segments[-1] + 2))
            joined += len(segments) > 1
    assert 40 < joined < 110  # of 120


def test_clips_are_subsampled_by_one_to_five(talks: Corpus) -> None:
    source = stream(talks, "joint", size=10, options=ExampleOptions(
        negative_share=0.0, join=1.0, max_clips=40))
    steps = Counter()
    for number in range(30):
        batch = source.batch_of("joint", number)
        for features, mask in zip(batch["visual_features"], batch["visual_mask"], strict=True):
            clips = features[mask.bool(), 0]
            assert 1 <= len(clips) <= 40
            found = set(clips.diff().tolist())
            assert len(found) <= 1
            steps.update(found)
    assert set(steps) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_sentences_longer_than_there_is_room_are_cut_to_it(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", iter([
        CorpusItem("long", segments=[list(range(BASE, BASE + 300))])]), val_share=0.0)
    source = stream(corpus, "text", options=ExampleOptions(max_text_tokens=20, mask_rate=0.0))
    starts = set()
    for number in range(40):
        ids = source.batch_of("text", number)["input_ids"][0]
        assert len(ids) == 20
        assert (ids[0], ids[-1]) == (TOKENS.cls, TOKENS.sep)
        assert ids[1:-1].diff().unique().tolist() == [1]
        starts.add(int(ids[1]))
    assert len(starts) > 20


def test_three_hours_of_speech_are_cut_and_all_used(tmp_path: Path) -> None:
    count = 3 * 3600 // 3
    features = np.stack([np.arange(7200), np.zeros(7200)], 1) % 2048
    item = CorpusItem("long", features, segments=[[BASE + n] * 12 for n in range(count)],
                      segment_times=[[3 * n, 3 * n + 3] for n in range(count)])
    corpus = make_corpus(tmp_path / "c", iter([item]), val_share=0.0)
    options = ExampleOptions(max_text_tokens=64, max_clips=16)
    source = stream(corpus, "joint", "text", "video", size=50, options=options)
    for kind in ("joint", "text", "video"):
        used: set[int] = set()
        for number in range(source.batches_per_epoch(kind)):
            batch = source.batch_of(kind, number)
            assert batch["input_ids"].shape[1] <= 64
            if kind != "text":
                assert batch["visual_mask"].shape[1] <= 16
            if kind == "text":
                ids = torch.where(batch["labels"] >= 0, batch["labels"], batch["input_ids"])
                used.update((ids[:, 1] - BASE).tolist())
        assert kind != "text" or len(used) == count
    assert len(source.units("joint")) == count
    assert len(source.units("video")) == 7200 // 16


def test_a_caption_goes_with_all_clips_and_the_views_are_drawn(corpus: Corpus, talks) -> None:
    source = stream(corpus, "caption", "joint", size=8)
    views = Counter()
    for number in range(12):
        batch = source.batch_of("caption", number)
        assert batch["input_ids"].tolist() == [[TOKENS.cls, TOKENS.video]] * 8
        assert (batch["caption_ids"][:, 0] == TOKENS.cls).all()
        for name, row in zip(batch["ids"], batch["visual_features"][:, 0], strict=True):
            item = corpus.ids.tolist().index(name)
            found = [np.array_equal(row.numpy(), corpus.clip_features(item, np.arange(1), view)[0])
                     for view in range(2)]
            assert sum(found) == 1
            views.update([found.index(True)])
    assert min(views.values()) > 20
    held = stream(corpus, "caption", split="val")
    for number in range(4):
        batch = held.batch_of("caption", number)
        for name, row in zip(batch["ids"], batch["visual_features"][:, 0], strict=True):
            item = corpus.ids.tolist().index(name)
            assert corpus.splits[item] == "val"
            assert np.array_equal(row.numpy(), corpus.clip_features(item, np.arange(1), 0)[0])


def test_a_long_captioned_video_is_seen_from_end_to_end(tmp_path: Path) -> None:
    features = np.stack([np.arange(1000), np.zeros(1000)], 1)
    corpus = make_corpus(tmp_path / "c", iter([
        CorpusItem("v", features, captions=["a long one"])]), val_share=0.0)
    batch = stream(corpus, "caption", options=ExampleOptions(max_clips=20)).batch(0)
    clips = batch["visual_features"][0, :, 0]
    assert 18 <= len(clips) <= 20
    assert clips[0] < 56
    assert clips[-1] >= 940


def test_captions_that_cannot_be_written_are_left_out(corpus: Corpus, tmp_path: Path) -> None:
    found = [CorpusItem(f"v{n}", np.zeros((1, 6)), captions=[[BASE + n] * (n + 1)])
             for n in range(20)]
    small = make_corpus(tmp_path / "c", iter(found), val_share=0.0)
    source = stream(small, "caption", options=ExampleOptions(max_caption_tokens=12))
    assert sorted(source.units("caption").length) == list(range(2, 12))  # with a clip each
    allowed = np.zeros(30522, bool)
    allowed[BASE : BASE + 5] = True
    source = stream(small, "caption", caption_words=allowed)
    assert set(small.ids[source.units("caption").item]) == {f"v{n}" for n in range(5)}


def test_a_contrast_holds_no_video_twice(corpus: Corpus, talks: Corpus) -> None:
    source = stream(corpus, "contrast", size=16)
    for number in range(9):
        batch = source.batch_of("contrast", number)
        assert len(set(batch["ids"])) == 16
        assert "input_ids" not in batch
        assert (batch["text_ids"][:, 0] == TOKENS.cls).all()
        assert (batch["text_ids"] * batch["text_mask"] == batch["text_ids"]).all()
    batch = stream(talks, "contrast", size=16).batch(0)
    assert sorted(batch["ids"]) == ["talk-0", "talk-1", "talk-2"]


def test_text_without_times_pairs_only_where_all_clips_fit(tmp_path: Path) -> None:
    found = [CorpusItem("short", np.zeros((5, 2)), segments=["a dog"]),
             CorpusItem("long", np.zeros((50, 2)), segments=["a cat"]),
             CorpusItem("elsewhere", np.zeros((5, 2)), segments=["a bird"],
                        segment_times=[[500, 501]])]
    corpus = make_corpus(tmp_path / "c", iter(found), val_share=0.0)
    source = stream(corpus, "joint", "text", options=ExampleOptions(max_clips=16))
    assert corpus.ids[source.units("joint").item].tolist() == ["short"]
    assert len(source.units("text")) == 3
    assert corpus.info.unaligned == 1
    with pytest.raises(CorpusError, match="nothing for batches of kind 'caption'"):
        stream(corpus, "caption")


# --- alignment and masks ----------------------------------------------------------------------


def test_half_of_the_pairs_do_not_belong_together(talks: Corpus) -> None:
    options = ExampleOptions(mask_rate=0.0, near_share=0.3, near_seconds=20, join=0.3, max_step=1)
    source = stream(talks, "joint", size=10, options=options)
    labels, near = [], 0
    for number in range(40):
        batch = source.batch_of("joint", number)
        rows = zip(batch["input_ids"], batch["visual_features"], batch["visual_mask"],
                   batch["alignment_labels"], strict=True)
        for ids, features, mask, label in rows:
            said = (ids[ids >= BASE] - BASE).unique()
            clips = features[mask.bool(), 0]
            inside = bool(((2 * said >= clips[0] - 1) & (2 * said <= clips[-1])).all())
            if label:
                assert inside
            else:
                distance = torch.minimum((2 * said[0] - clips[-1]).abs(),
                                         (clips[0] - 2 * said[-1]).abs())
                near += bool(distance > 18)
            labels.append(int(label))
    assert 0.4 < np.mean(labels) < 0.6
    assert near > 20


def test_where_text_is_anothers_nothing_is_predicted(corpus: Corpus) -> None:
    source = stream(corpus, "joint", size=8, options=ExampleOptions(
        mask_rate=0.5, visual_mask_rate=0.5))
    seen = Counter()
    for number in range(10):
        batch = source.batch_of("joint", number)
        wrong = batch["alignment_labels"] == 0
        assert (batch["labels"][wrong] == -100).all()
        assert (batch["visual_labels"][wrong] == -100).all()
        assert (batch["labels"][~wrong] != -100).any(1).all()
        assert (batch["input_ids"][wrong] == TOKENS.mask).any()  # a mask tells nothing
        seen.update(batch["alignment_labels"].tolist())
        assert batch["counts"]["words"] == int((batch["labels"] != -100).sum())
    assert min(seen.values()) > 20
    none = stream(corpus, "joint", options=ExampleOptions(negative_share=0.0)).batch(0)
    assert "alignment_labels" not in none


def test_special_tokens_are_never_hidden(tmp_path: Path) -> None:
    special = [TOKENS.video, TOKENS.mask, TOKENS.sep, TOKENS.cls]
    found = [CorpusItem(f"v{n}", np.zeros((2, 2)), captions=[[BASE + n, *special, BASE]])
             for n in range(8)]
    corpus = make_corpus(tmp_path / "c", iter(found), val_share=0.0)
    options = ExampleOptions(mask_rate=1.0, negative_share=0.0)
    source = stream(corpus, "joint", "text", options=options)
    for kind in ("joint", "text"):
        for number in range(8):
            batch = source.batch_of(kind, number)
            labels, mask = batch["labels"], batch["attention_mask"].bool()
            assert not torch.isin(labels, torch.tensor([*special, 0])).any()
            assert (labels[~mask] == -100).all()
            assert (labels >= BASE).sum(1).tolist() == [2] * 4
            end = TOKENS.video if kind == "joint" else TOKENS.sep
            assert (batch["input_ids"][:, 0] == TOKENS.cls).all()
            assert (batch["input_ids"].gather(1, mask.sum(1, keepdim=True) - 1) == end).all()


@pytest.mark.parametrize(("rate", "low", "high"), [(0.15, 0.14, 0.16), ((0.15, 1.0), 0.5, 0.65)])
def test_masks_are_berts(tmp_path: Path, rate, low: float, high: float) -> None:
    found = [CorpusItem(f"t{n}", segments=[[BASE + (n + i) % 500 for i in range(100)]])
             for n in range(200)]
    corpus = make_corpus(tmp_path / "c", iter(found), val_share=0.0)
    batch = stream(corpus, "text", size=200, options=ExampleOptions(
        mask_rate=rate, join=0.0)).batch(0)
    ids, labels = batch["input_ids"], batch["labels"]
    hidden = labels != -100
    assert low < hidden.sum() / (200 * 100) < high
    shares = hidden.sum(1) / 100
    assert (shares.std() > 0.2) == isinstance(rate, tuple)
    masked = (ids == TOKENS.mask)[hidden].float().mean()
    kept = (ids == labels)[hidden].float().mean()
    assert abs(masked - 0.8) < 0.03
    assert abs(kept - 0.1) < 0.03
    replaced = ids[hidden & (ids != TOKENS.mask) & (ids != labels)]
    assert not torch.isin(replaced, torch.from_numpy(TOKENS.special)).any()
    assert replaced.min() > 996  # no unused word
    assert (ids[~hidden & (ids >= BASE)] < BASE + 500).all()


def test_video_batches_hide_some_clips_but_never_all(talks: Corpus) -> None:
    for rate in (0.0, 0.15, 1.0):
        source = stream(talks, "video", options=ExampleOptions(visual_mask_rate=rate))
        for number in range(4):
            batch = source.batch_of("video", number)
            hidden, mask = batch["visual_masked"], batch["visual_mask"].bool()
            assert (hidden.sum(1) >= 1).all()
            assert (hidden.sum(1) < mask.sum(1)).all()
            assert not (hidden & ~mask).any()
            assert ((batch["visual_labels"] != -100) == hidden).all()
            clips = batch["visual_features"][..., 0].long()
            owner = batch["visual_features"][..., 1].long()
            words = (owner * 100 + clips) % 7
            assert (batch["visual_labels"][hidden] == words[hidden]).all()
            assert "visual_words" not in batch


def test_visual_words_are_fed_where_the_model_reads_them(talks: Corpus) -> None:
    batch = stream(talks, "caption", "joint", feed_words=True, mixture={"joint": 1}).batch(0)
    assert batch["visual_words"].shape == batch["visual_mask"].shape
    assert batch["visual_words"].max() <= 6


def test_lengths_within_a_batch_are_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = [CorpusItem(f"t{n}", segments=[[BASE] * int(rng.integers(1, 100))])
             for n in range(1000)]
    corpus = make_corpus(tmp_path / "c", iter(found), val_share=0.0)
    source = stream(corpus, "text", size=16, options=ExampleOptions(join=0.0))
    masks = [source.batch_of("text", n)["attention_mask"].float().mean() for n in range(60)]
    assert np.mean(masks) > 0.9
    lengths = [source.batch_of("text", n)["input_ids"].shape[1] for n in range(16)]
    assert lengths != sorted(lengths)  # but batches come in any order


@pytest.mark.parametrize("mixture", [{"speech": 1}, {}, {"text": 0}, {"text": -1}])
def test_a_mixture_of_nothing_is_refused(corpus: Corpus, mixture) -> None:
    with pytest.raises(UsageError):
        stream(corpus, mixture=mixture)


@pytest.mark.parametrize(("name", "value"), [
    ("max_text_tokens", 2), ("max_clips", 0), ("max_step", 0), ("join", 1.5), ("mask_rate", 2.0),
    ("mask_rate", (0.5, 0.2)), ("mask_rate", "much"), ("mask_token_share", 0.95),
    ("max_clips", 1.5), ("near_seconds", "far"),
])
def test_options_out_of_range_are_refused(name: str, value) -> None:
    with pytest.raises(UsageError, match=name):
        ExampleOptions(**{name: value})
