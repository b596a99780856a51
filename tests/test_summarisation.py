"""The task `summarisation`: schemas and edge cases on made-up features, and its parts."""

from __future__ import annotations

import hashlib
import logging
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from contexts import context
from hypothesis import given
from hypothesis import strategies as st

from vbkit.errors import ModelError, OptionError
from vbkit.features import Features
from vbkit.media.types import VideoInfo
from vbkit_summarisation import (
    CHAPTERS_TABLE,
    SEGMENTS_TABLE,
    SUMMARY_TABLE,
    SummarisationOptions,
)
from vbkit_summarisation.chapters import boundaries, title_of
from vbkit_summarisation.head import NOTHING_SAID, SummarisationHead, sentence_units
from vbkit_summarisation.text import rarities, stem, text_features, words
from vbkit_summarisation.visual import load_phrases, pick_clips, scenes, time_phrase

DIM = 384
TABLES = {"summarisation": SUMMARY_TABLE, "summarisation_segments": SEGMENTS_TABLE,
          "chapters": CHAPTERS_TABLE}

LECTURE = [
    "Okay, so, good morning.",
    "Today we look at photosynthesis, the process by which plants turn light into chemical energy.",
    "Um, can everybody hear me?",
    "Photosynthesis takes place in the chloroplasts, which contain the green pigment chlorophyll.",
    "You know, it's like a kitchen.",
    "In the light reactions, water is split, and oxygen is released into the air.",
    "The Calvin cycle then uses carbon dioxide to build sugar molecules.",
    "Right, so, that was that.",
    "The rate of photosynthesis depends on light intensity, temperature and carbon dioxide.",
    "Any questions?",
]


def noise(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, DIM, generator=generator), dim=-1)


def embed(texts: Sequence[str]) -> torch.Tensor:
    rows = []
    for text in texts:
        total = torch.full((DIM,), 1e-3)
        for word in words(text):
            seed = int.from_bytes(hashlib.sha256(stem(word).encode()).digest()[:4], "big")
            total = total + torch.randn(DIM, generator=torch.Generator().manual_seed(seed))
        rows.append(torch.nn.functional.normalize(total, dim=0))
    return torch.stack(rows) if rows else torch.zeros(0, DIM)


def features_of(
    texts: Sequence[str], clips: torch.Tensor | None = None, *, timed: bool = True,
    language: str | None = None, step_s: float = 4.0, keyframes: Sequence[float] = (),
    codec: str = "h264",
) -> Features:
    pictures = torch.zeros(0, DIM) if clips is None else clips
    n = len(pictures)
    times = np.array([[step_s * i, step_s * i + 0.9 * step_s] for i in range(len(texts))])
    return Features("v", {
        "segments": list(texts), "segment_embeddings": embed(texts),
        "segment_times": times.reshape(-1, 2) if timed else np.full((len(texts), 2), np.nan),
        "clip_embeddings": pictures,
        "clip_times": np.array([[1.5 * i, 1.5 * i + 1.5] for i in range(n)]).reshape(-1, 2),
    }, language=language, keyframe_times=keyframes,
        info=VideoInfo(max(0.1, 1.5 * n), 320, 240, max(1, n), codec=codec) if n else None)


def head_with(**options: object) -> SummarisationHead:
    head = SummarisationHead()
    head.setup(context(options=SummarisationOptions(**options)))
    return head


@pytest.fixture(scope="module")
def head() -> SummarisationHead:
    return head_with()


def tables_of(head: SummarisationHead, features: Features) -> dict[str, pd.DataFrame]:
    with torch.no_grad():
        tables = head.predict(features)
    assert set(tables) == set(TABLES)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, TABLES[name].conform(table))
    return tables


def test_declaring_the_task_imports_no_torch() -> None:
    code = ("import sys, vbkit_summarisation as s; list(s.vbkit_tasks());"
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("n_segments", [0, 1, 2, 10, 300])
@pytest.mark.parametrize("n_clips", [0, 1, 40, 700])
def test_every_segment_has_a_row(head: SummarisationHead, n_segments: int, n_clips: int) -> None:
    texts = [f"{LECTURE[i % len(LECTURE)]} {i}" for i in range(n_segments)]
    tables = tables_of(head, features_of(texts, noise(n_clips)))
    rows = tables["summarisation_segments"]
    spoken = rows[rows.segment.notna()]
    assert spoken.segment.tolist() == list(range(n_segments))
    assert spoken.text.tolist() == texts
    assert rows["rank"].sort_values().tolist() == list(range(1, len(rows) + 1))
    assert rows.score.between(0, 1).all()
    assert rows.selected.sum() == tables["summarisation"].n_selected[0]
    assert rows.start_s.is_monotonic_increasing
    if n_segments == 0:
        assert len(rows) == n_clips
    else:
        last = 4.0 * (n_segments - 1) + 3.6
        silent = [i for i in range(n_clips) if 1.5 * i + 0.25 >= last]
        assert rows.segment.isna().sum() >= len(silent)
    assert rows.keyframe_s.notna().all() == (n_clips > 0) or rows.empty


def test_selected_rows_come_first_and_are_the_summary(head: SummarisationHead) -> None:
    tables = tables_of(head, features_of(LECTURE))
    rows, row = tables["summarisation_segments"], tables["summarisation"].iloc[0]
    chosen = rows[rows.selected]
    assert sorted(chosen["rank"]) == list(range(1, len(chosen) + 1))
    assert row.summary == " ".join(chosen.text)
    said = sum(len(words(text)) for text in LECTURE)
    assert row.compression == pytest.approx(sum(len(words(t)) for t in chosen.text) / said)


def test_what_is_told_is_preferred_to_small_talk(head: SummarisationHead) -> None:
    rows = tables_of(head, features_of(LECTURE))["summarisation_segments"]
    telling = rows.segment.isin([1, 3, 5, 6, 8])
    assert rows[telling].score.mean() > 2 * rows[~telling].score.mean()
    assert set(rows[rows.selected].segment) <= {1, 3, 5, 6, 8}


@pytest.mark.parametrize("count", [1, 3, 50])
def test_the_number_of_sentences_is_an_option(count: int) -> None:
    tables = tables_of(head_with(sentences=count), features_of(LECTURE))
    assert tables["summarisation"].n_selected[0] == min(count, len(LECTURE))


def test_the_ratio_is_an_option() -> None:
    tables = tables_of(head_with(ratio=0.5), features_of(LECTURE))
    assert tables["summarisation"].n_selected[0] == 5


def test_repetition_is_not_selected_twice() -> None:
    texts = [*LECTURE, LECTURE[3], LECTURE[3], LECTURE[1]]
    rows = tables_of(head_with(sentences=5), features_of(texts))["summarisation_segments"]
    chosen = rows[rows.selected].text
    assert chosen.is_unique


def test_sentences_that_subtitles_broke_stay_whole(head: SummarisationHead) -> None:
    broken = []
    for text in LECTURE:
        parts = text.split()
        middle = len(parts) // 2
        broken += [" ".join(parts[:middle]), " ".join(parts[middle:])]
    assert len(sentence_units(broken, np.full((len(broken), 2), np.nan))) == len(LECTURE)
    tables = tables_of(head, features_of(broken, step_s=1.0))
    rows = tables["summarisation_segments"].set_index("segment")
    for i in range(len(LECTURE)):
        assert rows.selected[2 * i] == rows.selected[2 * i + 1]
        assert rows.score[2 * i] == pytest.approx(rows.score[2 * i + 1])
    assert tables["summarisation"].summary[0].endswith(".")


def test_without_speech_or_certainty_it_says_so(head: SummarisationHead) -> None:
    tables = tables_of(head, features_of([], noise(30)))
    assert tables["summarisation"].summary[0] == NOTHING_SAID
    assert pd.isna(tables["summarisation"].compression[0])
    rows = tables["summarisation_segments"]
    assert rows.text.isna().all()
    assert rows.selected.any()


def test_what_is_shown_is_named_by_scene(head: SummarisationHead) -> None:
    """The vocabulary's own embeddings, as clips, are as sure as evidence gets."""
    names = dict(zip(head.concepts.phrases, head.concepts.embeddings, strict=True))
    clips = torch.stack([names["a dog in snow"]] * 4 + [names["a person riding a bicycle"]] * 3)
    summary = tables_of(head, features_of([], clips))["summarisation"].summary[0]
    first, second = summary.split("; ")
    assert summary.startswith("Shows ")
    assert "dog" in first
    assert "(0–6 s)" in first
    assert "bicycle" in second
    assert "(6–10.5 s)" in second
    still = tables_of(head, features_of([], clips[:1], codec="image"))["summarisation"].summary[0]
    assert "dog" in still
    assert " s)" not in still


def test_a_few_words_are_joined_by_what_is_shown(head: SummarisationHead) -> None:
    clips = head.concepts.embeddings[[head.concepts.phrases.index("a dog in snow")]].repeat(8, 1)
    tables = tables_of(head, features_of(["look at him go"], clips))
    assert tables["summarisation"].summary[0].startswith("look at him go. Shows ")
    rows = tables["summarisation_segments"]
    assert set(rows[rows.selected].segment.isna()) == {True, False}


def test_the_picture_can_be_left_out() -> None:
    tables = tables_of(head_with(visual=False), features_of([], noise(5)))
    assert tables["summarisation_segments"].empty
    assert pd.isna(tables["summarisation"].summary[0])
    assert tables["summarisation"].n_selected[0] == 0


def test_transcripts_in_other_languages_have_no_score(
    head: SummarisationHead, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="vbkit"):
        tables = tables_of(head, features_of(LECTURE, language="de"))
    rows = tables["summarisation_segments"]
    assert len(rows) == len(LECTURE)
    assert rows.score.isna().all()
    assert rows["rank"].isna().all()
    assert not rows.selected.any()
    assert pd.isna(tables["summarisation"].compression[0])
    assert "text in language de was not read" in caplog.text


def test_untimed_text_is_summarised_without_times(head: SummarisationHead) -> None:
    rows = tables_of(head, features_of(LECTURE, timed=False))["summarisation_segments"]
    assert rows.start_s.isna().all()
    assert rows.keyframe_s.isna().all()
    assert rows.selected.any()


def test_keyframes_are_the_nearest_saved_ones(head: SummarisationHead) -> None:
    tables = tables_of(head, features_of(LECTURE, noise(30), keyframes=(0.75, 20.25, 39.75)))
    rows = tables["summarisation_segments"]
    assert set(rows.keyframe_s) <= {0.75, 20.25, 39.75}
    middle = (rows.start_s + rows.end_s) / 2
    assert (rows.keyframe_s - middle).abs().max() <= 10.5


def test_a_long_talk_has_chapters() -> None:
    subjects = [["hive", "bees", "honey", "wax"], ["engine", "piston", "valve", "oil"],
                ["violin", "bow", "string", "music"]]
    texts = [f"Now the {subject[i % 4]} and the {subject[(i + 1) % 4]} meet the {subject[i % 3]}."
             for subject in subjects for i in range(40)]
    chapters = tables_of(head_with(), features_of(texts, step_s=5.0))["chapters"]
    assert chapters.start_s.tolist() == pytest.approx([0, 200, 400], abs=15)
    assert chapters.end_s.tolist()[:-1] == chapters.start_s.tolist()[1:]
    for title, subject in zip(chapters.title, subjects, strict=True):
        assert set(words(title)) & set(subject)
    short = tables_of(head_with(chapters_after_s=900.0), features_of(texts, step_s=5.0))
    assert short["chapters"].empty


def test_a_long_silent_video_has_chapters(head: SummarisationHead) -> None:
    centres = noise(3, seed=5)
    clips = torch.nn.functional.normalize(
        centres.repeat_interleave(100, 0) + 0.3 * noise(300), dim=-1)
    chapters = tables_of(head, features_of([], clips))["chapters"]
    assert chapters.start_s.tolist() == pytest.approx([0, 150, 300], abs=12)
    assert chapters.title.tolist() == ["Part 1", "Part 2", "Part 3"]


@pytest.mark.parametrize("options", [
    {"ratio": 1.5}, {"diversity": -0.1}, {"min_probability": 2.0}, {"sentences": -1},
    {"chapters_after_s": -1.0}, {"min_chapter_s": -5.0},
])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"summarisation.{next(iter(options))}"):
        head_with(**options)


def test_another_models_head_is_refused() -> None:
    with pytest.raises(ModelError, match="mini"):
        SummarisationHead().setup(context(model_name="other"))


def test_a_saved_head_selects_alike(head: SummarisationHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path / "head")
    again = SummarisationHead()
    again.setup(context(options=SummarisationOptions(), head_path=tmp_path / "head"))
    for name, table in tables_of(head, features_of(LECTURE, noise(9))).items():
        pd.testing.assert_frame_equal(
            table, tables_of(again, features_of(LECTURE, noise(9)))[name])


@given(st.lists(st.text(max_size=60), min_size=1, max_size=12))
def test_any_text_has_finite_features(texts: list[str]) -> None:
    assert np.isfinite(text_features(texts, {"a": 1.0, "honey": 5.0})).all()
    units = sentence_units(texts, np.full((len(texts), 2), np.nan))
    assert [i for first, last in units for i in range(first, last)] == list(range(len(texts)))


def test_rare_words_weigh_more() -> None:
    weights = rarities([["the bee"], ["the dog"], ["the bee flies"]], least=1)
    assert weights["the"] == 0
    assert weights["dog"] == pytest.approx(math.log(3))


def test_scenes_split_where_the_picture_changes() -> None:
    a, b = noise(2)
    clips = torch.stack([a, a, a, b, b, a])
    assert scenes(clips) == [(0, 3), (3, 5), (5, 6)]
    assert len(scenes(clips, most=2)) == 2
    assert scenes(torch.zeros(0, DIM)) == []


def test_picked_clips_stand_for_different_scenes() -> None:
    a, b, c = noise(3)
    clips = torch.stack([a] * 5 + [b] * 3 + [c] * 2)
    picked, scores = pick_clips(clips, 3)
    assert {0 if i < 5 else 1 if i < 8 else 2 for i in picked} == {0, 1, 2}
    assert picked[0] < 5
    assert scores[0] > scores[9]


def test_boundaries_of_nothing() -> None:
    assert boundaries(torch.zeros(0, DIM), np.zeros((0, 2)), 60) == []
    assert boundaries(noise(2), np.array([[0.0, 1], [1, 2]]), 60) == [0]


def test_titles_are_short() -> None:
    title = title_of(["word " * 60], noise(1), [0.5])
    assert len(title) <= 80
    assert title.endswith("…")


def test_the_vocabulary_is_well_formed() -> None:
    phrases = load_phrases()
    assert len({phrase for phrase, _ in phrases}) == len(phrases) > 100
    assert all(proof for _, proof in phrases)


def test_times_read_well() -> None:
    assert time_phrase(4.5, 7.5) == "4.5–7.5 s"
    assert time_phrase(58.5, 72.0) == "0:58–1:12"


@pytest.mark.slow
def test_the_sample_is_summarised(engine, sample: Path) -> None:
    tables = engine.run([sample], tasks=["summarisation"]).tables
    rows, row = tables["summarisation_segments"], tables["summarisation"].iloc[0]
    spoken = rows[rows.segment.notna()]
    chosen = spoken[spoken.selected]
    assert 0 < len(chosen) < len(spoken)
    assert all(text in row.summary for text in chosen.text)
    assert 0 < row.compression < 1
    assert rows.keyframe_s.between(0, 16).all()
    assert tables["chapters"].empty


@pytest.mark.parametrize(("options", "said", "clips"), [
    ({"sentences": 1}, 1, 0), ({"sentences": 3}, 2, 1), ({"sentences": 99}, 2, 7),
    ({"ratio": 1.0}, 2, 7), ({"ratio": 0.001}, 1, 1), ({"ratio": 0.3, "sentences": 99}, 1, 2),
])
def test_lengths_asked_for_hold_where_little_is_said(options, said, clips) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.nn.functional.normalize(torch.randn(12, DIM, generator=generator), dim=1)
    rows = tables_of(head_with(**options), features_of(["Hello there.", "Look at it."], pictures)
                     )["summarisation_segments"]
    assert rows["segment"].isna().sum() == 7  # clips in which nobody speaks
    selected = rows[rows["selected"]]
    assert (selected["segment"].notna().sum(), selected["segment"].isna().sum()) == (said, clips)


@pytest.mark.parametrize("options", [{"sentences": 5}, {"ratio": 1.0}, {"ratio": 0.01}])
def test_lengths_asked_for_of_nothing_are_nothing(options) -> None:
    tables = tables_of(head_with(**options), features_of([]))
    assert tables["summarisation"].n_selected.tolist() == [0]
    assert not len(tables["summarisation_segments"])
