"""The task `qa`: schema and edge cases on made-up features, behaviour on small transcripts."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vbkit.errors import ModelError, OptionError
from vbkit.features import Features
from vbkit.heads import HeadContext
from vbkit_qa import QA_TABLE, QaOptions
from vbkit_qa.calibration import Logistic
from vbkit_qa.head import QaHead
from vbkit_qa.reader import Reader, choose, overlap, spans_of
from vbkit_qa.text import content_words, lexical_features, stem, words
from vbkit_qa.visual import find_moments, prompt_of, time_phrase

DIM = 384

TALK = [
    "Welcome to this short introduction to keeping bees in your garden.",
    "I have kept bees for more than ten years now.",
    "Let's start with the hive and where it should stand.",
    "The hive should stand in a sunny place, away from the wind.",
    "Turn the entrance of the hive to the south east.",
    "Next, let's talk about the clothes that you need.",
    "You need a veil, thick gloves and a white suit.",
    "Without the veil, bees may sting your face.",
    "Now let's see how to harvest the honey.",
    "To harvest honey, take the frames out and cut the wax with a warm knife.",
    "Then put the frames into the extractor and spin them until the honey runs out.",
    "Finally, pour the honey into clean glass jars.",
    "In winter, feed the bees with sugar syrup.",
    "Thank you for watching, and see you next time.",
]


def embed(texts: Sequence[str]) -> torch.Tensor:
    """Bags of words in a random space: enough of a meaning to test with, and the same each time."""
    rows = []
    for text in texts:
        total = torch.full((DIM,), 1e-3)
        for word in content_words(text):
            seed = int.from_bytes(hashlib.sha256(stem(word).encode()).digest()[:4], "big")
            total = total + torch.randn(DIM, generator=torch.Generator().manual_seed(seed))
        rows.append(torch.nn.functional.normalize(total, dim=0))
    return torch.stack(rows) if rows else torch.zeros(0, DIM)


def features_of(
    texts: Sequence[str], questions: Sequence[str], *, clips: torch.Tensor | None = None,
    timed: bool = True, language: str | None = None,
) -> Features:
    pictures = torch.zeros(0, DIM) if clips is None else clips
    times = np.array([[3.0 * i, 3.0 * i + 2.5] for i in range(len(texts))]).reshape(-1, 2)
    return Features("v", {
        "segments": list(texts),
        "segment_times": times if timed else np.full((len(texts), 2), np.nan),
        "segment_embeddings": embed(texts), "clip_embeddings": pictures,
        "clip_times": np.array([[1.5 * i, 1.5 * i + 1.5] for i in range(len(pictures))],
                               dtype=float).reshape(-1, 2),
        "encode_text": embed,
    }, questions=questions, language=language)


def head_with(**options: object) -> QaHead:
    head = QaHead()
    head.setup(HeadContext(options=QaOptions(**options)))
    return head


@pytest.fixture(scope="module")
def head() -> QaHead:
    return head_with()


def answers(head: QaHead, features: Features) -> pd.DataFrame:
    with torch.no_grad():
        table = head.predict(features)["qa"]
    pd.testing.assert_frame_equal(table, QA_TABLE.conform(table))
    return table


def noise(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, DIM, generator=generator), dim=-1)


def test_declaring_the_task_imports_no_torch() -> None:
    code = "import sys, vbkit_qa; list(vbkit_qa.vbkit_tasks()); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_question_gives_an_empty_table_with_all_columns(head: QaHead) -> None:
    table = answers(head, features_of(TALK, []))
    assert table.empty
    assert tuple(table.columns) == QA_TABLE.column_names


@pytest.mark.parametrize("n_segments", [0, 1, 2, 14, 200])
@pytest.mark.parametrize("n_clips", [0, 1, 90])
def test_every_question_has_ranks_from_one(head: QaHead, n_segments: int, n_clips: int) -> None:
    texts = [f"{TALK[i % len(TALK)]} {i}" for i in range(n_segments)]
    questions = ["How do I harvest honey?", "When does a dog run?", "  ", "¿?"]
    table = answers(head, features_of(texts, questions, clips=noise(n_clips)))
    assert list(dict.fromkeys(table.question)) == questions
    for _, rows in table.groupby("question", sort=False):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        assert 1 <= len(rows) <= 3
        assert rows.score.is_monotonic_decreasing
        assert rows.score.between(0, 1).all()
        assert rows.no_answer.nunique() == 1
    spans = table[table.modality == "text"]
    assert (spans.first_segment <= spans.best_segment).all()
    assert (spans.best_segment <= spans.last_segment).all()
    assert (spans.last_segment < max(1, n_segments)).all()
    assert (table.start_s.isna() | (table.start_s < table.end_s)).all()


def test_nothing_to_read_says_so(head: QaHead) -> None:
    table = answers(head, features_of([], ["Who is speaking?"]))
    assert len(table) == 1
    row = table.iloc[0]
    assert row.no_answer
    assert row.score == 0
    assert pd.isna(row.answer)
    assert pd.isna(row.modality)


@pytest.mark.parametrize(("question", "inside"), [
    ("How do I harvest the honey?", range(8, 12)),
    ("Where should the hive stand?", range(2, 5)),
    ("What clothes do I need, gloves or a veil?", range(5, 8)),
])
def test_the_passage_that_answers_is_found(head: QaHead, question: str, inside: range) -> None:
    best = answers(head, features_of(TALK, [question])).iloc[0]
    assert best.modality == "text"
    assert best.best_segment in inside
    assert best.answer == " ".join(TALK[best.first_segment: best.last_segment + 1])
    assert best.start_s == pytest.approx(3.0 * best.first_segment)
    assert best.end_s == pytest.approx(3.0 * best.last_segment + 2.5)


def test_a_question_of_another_subject_scores_lower(head: QaHead) -> None:
    table = answers(head, features_of(TALK, [
        "How do I harvest the honey?", "How can I change the password of my router?"]))
    best = table[table["rank"] == 1].set_index("question")
    right, wrong = best.iloc[0], best.iloc[1]
    assert right.score > 2 * wrong.score
    assert wrong.no_answer
    assert not pd.isna(wrong.answer)


def test_untimed_text_has_no_times(head: QaHead) -> None:
    table = answers(head, features_of(TALK, ["How do I harvest the honey?"], timed=False))
    assert table.start_s.isna().all()
    assert table.first_segment.notna().all()


def test_transcripts_in_other_languages_are_not_read(
    head: QaHead, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="vbkit"):
        table = answers(head, features_of(TALK, ["Wo steht der Bienenstock?"], language="de"))
    assert table.no_answer.all()
    assert table.score.max() == 0
    assert "text in language de was not read" in caplog.text


def test_a_moment_in_the_picture_is_found(head: QaHead) -> None:
    clips = noise(20)
    clips[7:9] = embed(["a man ride a bicycle"])
    table = answers(head, features_of([], ["When does a man ride a bicycle?"], clips=clips))
    best = table.iloc[0]
    assert best.modality == "visual"
    assert (best.start_s, best.end_s) == (10.5, 13.5)
    assert best.answer == "shown at 10.5–13.5 s"
    assert not best.no_answer
    assert pd.isna(best.first_segment)
    assert table.score.iloc[0] > table.score.iloc[1]


def test_the_picture_can_be_left_out() -> None:
    head = head_with(visual=False)
    table = answers(head, features_of([], ["When does a dog run?"], clips=noise(5)))
    assert table.answer.isna().all()


def test_top_k_bounds_the_answers() -> None:
    features = features_of(TALK, ["How do I harvest the honey?"])
    assert len(answers(head_with(top_k=1), features)) == 1
    assert len(answers(head_with(top_k=2), features)) == 2


def test_the_answer_does_not_depend_on_other_questions(head: QaHead) -> None:
    question = "Where should the hive stand?"
    alone = answers(head, features_of(TALK, [question]))
    among = answers(head, features_of(TALK, ["Why?", question, "What is wax?"]))
    among = among[among.question == question].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, among, atol=1e-4)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"answerable": 1.5}, {"max_moment_s": 0.0}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"qa.{next(iter(options))}"):
        head_with(**options)


def test_another_models_head_is_refused() -> None:
    with pytest.raises(ModelError, match="mini"):
        QaHead().setup(HeadContext(options=QaOptions(), model_name="other"))


def test_a_saved_head_answers_alike(head: QaHead, tmp_path: Path) -> None:
    head.save_pretrained(tmp_path / "head")
    again = QaHead()
    again.setup(HeadContext(options=QaOptions(), head_path=tmp_path / "head"))
    features = features_of(TALK, ["How do I harvest the honey?"])
    pd.testing.assert_frame_equal(answers(head, features), answers(again, features))


@pytest.mark.parametrize(("question", "prompt"), [
    ("When does a man ride a bicycle?", "a man ride a bicycle"),
    ("Is there a dog in the video?", "a dog"),
    ("Who is riding the skateboard?", "someone riding the skateboard"),
    ("a dog on a beach", "a dog on a beach"),
    ("Show me the part where a cake is cut", "a cake is cut"),
    ("At what time is the ball thrown?", "a ball thrown"),
    ("What is the man doing?", "a man"),
    ("Where is the dog?", "a dog"),
    ("What is shown?", None),
    ("How do I add a gradient?", None),
    ("Why is the sky blue?", None),
    ("What does the speaker recommend?", None),
    ("", None),
])
def test_prompts(question: str, prompt: str | None) -> None:
    assert prompt_of(question) == prompt


@given(st.text(max_size=80))
def test_any_text_is_a_question(text: str) -> None:
    prompt = prompt_of(text)
    assert prompt is None or prompt.strip()
    assert all(stem(word) for word in words(text))
    assert np.isfinite(lexical_features([text], ["one segment", text])).all()


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12))
def test_spans_are_all_there(n: int, longest: int) -> None:
    spans = spans_of(n, longest)
    pairs = set(zip(spans.first.tolist(), spans.last.tolist(), strict=True))
    assert pairs == {(i, j) for i in range(n) for j in range(i, min(n, i + longest))}
    assert len(pairs) == len(spans)


def test_choose_prefers_the_span_that_most_probability_agrees_with() -> None:
    spans = spans_of(12, 6)
    scores = torch.full((len(spans),), -20.0)
    for first, last, p in ((2, 5, 0.3), (2, 4, 0.25), (2, 6, 0.1), (9, 10, 0.35)):
        at = ((spans.first == first) & (spans.last == last)).nonzero()[0]
        scores[at] = float(np.log(p))
    best, second = choose(scores, spans, 2)
    assert best[:2] == (2, 5)
    assert second[:2] == (9, 10)
    assert best[2] > second[2]


def test_overlap_of_inclusive_spans() -> None:
    a = torch.tensor([0, 0, 5]), torch.tensor([3, 3, 9])
    b = torch.tensor([2, 4, 5]), torch.tensor([5, 6, 9])
    assert overlap(*a, *b).tolist() == pytest.approx([2 / 6, 0, 1])


def test_spans_score_what_their_parts_say() -> None:
    reader = Reader().eval()
    spans = spans_of(7, 4)
    evidence = torch.randn(1, 7, 3)
    with torch.no_grad():
        scores = reader.score_spans(evidence, spans)[0]
        start, inside, end = evidence[0].unbind(-1)
        by_hand = start[2] + end[4] + inside[2:5].sum() + reader.length[2]
    at = int(((spans.first == 2) & (spans.last == 4)).nonzero()[0])
    assert float(scores[at]) == pytest.approx(float(by_hand), abs=1e-5)


def test_moments_do_not_touch_and_stay_within_the_limit() -> None:
    z = torch.tensor([0.0, 3.0, 2.8, 2.9, 0.0, 0.1, 2.5, 0.0])
    moments = find_moments(z / 10, z, limit=2, k=3)
    assert (moments[0].first, moments[0].last) == (1, 2)
    assert all(moment.last - moment.first < 2 for moment in moments)
    assert moments[1].best == 6


def test_times_read_well() -> None:
    assert time_phrase(4.5, 7.5) == "4.5–7.5 s"
    assert time_phrase(0.0, 14.1808) == "0–14.2 s"
    assert time_phrase(64.0, 72.2) == "1:04–1:12"
    assert time_phrase(3600.0, 3725.0) == "1:00:00–1:02:05"


def test_logistic_keeps_within_bounds() -> None:
    model = Logistic((1.0, -2.0), 0.5)
    assert model([0.0, 0.25]) == pytest.approx(0.5)
    assert model([1e9, 0.0]) == pytest.approx(1.0)
    assert Logistic.from_settings(model.to_settings()) == model


@pytest.mark.slow
def test_the_sample_answers(engine, sample: Path) -> None:
    rabbit, printer = "When does the rabbit crawl out?", "How do I install the printer driver?"
    table = engine.run([sample], tasks=["qa"], questions=[rabbit, printer]).tables["qa"]
    best = table[table["rank"] == 1].set_index("question")
    assert set(best.index) == {rabbit, printer}
    assert best.modality[rabbit] == "text"
    assert best.best_segment[rabbit] == 0
    assert "rabbit" in best.answer[rabbit]
    assert not best.no_answer[rabbit]
    assert best.no_answer[printer]
    assert best.score[rabbit] > best.score[printer]
