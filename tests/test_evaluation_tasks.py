"""Metrics of the tasks' heads, and `evaluate` of the shipped ones on inputs that one can judge."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbkit.errors import ManifestError, UsageError
from vbkit.evaluation.spans import overlap, span_scores
from vbkit.evaluation.summaries import rank_agreement, selection_scores, top_k_scores
from vbkit.evaluation.tasks import evaluate_task

spans = st.tuples(st.floats(0, 100), st.floats(0, 100)).map(lambda ends: (min(ends), max(ends)))


def manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- spans ------------------------------------------------------------------------------------


@given(spans, spans)
def test_overlap_is_symmetric_and_bounded(one, other) -> None:
    assert overlap(one, other) == overlap(other, one)
    assert 0 <= overlap(one, other) <= 1
    assert overlap(one, one) == 1


def test_span_scores_of_known_answers() -> None:
    found = span_scores([(0, 4), (2, 3), None, (5, 9)], [(0, 4), (0, 3), (1, 2), (7, 9)],
                        [1.5, 2.5, None, 5.5])
    assert found == {
        "r1_iou30": 0.75, "r1_iou50": 0.5, "r1_iou70": 0.25,
        "mean_iou": pytest.approx((1 + 1 / 3 + 0 + 0.5) / 4), "best_segment_inside": 0.5}
    with pytest.raises(ValueError, match="at least one"):
        span_scores([], [])


# --- summaries --------------------------------------------------------------------------------


def test_top_k_is_counted_by_passage() -> None:
    scores = [np.array([0.9, 0.1, 0.8, 0.2]), np.array([0.5, 0.5])]
    selected = [np.array([1, 1, 0, 0]), np.array([0, 1])]
    # one of two found in the first passage, one of one in the second, of three places each
    found = top_k_scores(scores, selected, 3)
    assert found["top3_precision"] == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert found["top3_recall"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["top3_f1"] == pytest.approx(2 * (1 / 3) * 0.75 / (1 / 3 + 0.75))
    assert top_k_scores(scores, selected, 1)["top1_recall"] == pytest.approx(0.25)


def test_selection_over_all_passages() -> None:
    found = selection_scores([np.array([1, 0, 1]), np.array([0, 0])],
                             [np.array([1, 1, 0]), np.array([0, 1])])
    assert found == {"precision": 0.5, "recall": pytest.approx(1 / 3), "f1": pytest.approx(0.4)}


def test_rank_agreement_leaves_constant_scores_out() -> None:
    found = rank_agreement([np.arange(4), np.ones(3)], [np.array([1, 2, 4, 3]), np.arange(3)])
    assert found["kendall"] == pytest.approx(4 / 6)
    assert found["spearman"] == pytest.approx(0.8)
    assert rank_agreement([np.ones(3)], [np.arange(3)]) == {"kendall": None, "spearman": None}


# --- shipped heads ----------------------------------------------------------------------------


def test_sentiment_of_plain_words(engine, tmp_path: Path) -> None:
    rows = manifest(tmp_path / "m.jsonl", [
        {"text": "I love this, it is wonderful!", "label": "positive"},
        {"text": "What a great and happy day.", "score": 0.9},
        {"text": "This is terrible, I hate it.", "label": "negative"},
        {"text": "It was an awful waste of money.", "score": -0.7},
        {"text": "The meeting is on Tuesday.", "label": "neutral"}])
    found = evaluate_task(engine, "sentiment", rows).metrics
    assert found["accuracy"] >= 0.8
    assert found["accuracy_binary"] == 1
    assert found["mean_absolute_error"] < 0.6
    by_segment = manifest(tmp_path / "s.jsonl", [
        {"text": ["I love it!", "I hate it."], "label": ["positive", "negative"]}])
    assert evaluate_task(engine, "sentiment", by_segment).metrics["accuracy"] == 1


def test_moderation_counts_what_its_policy_flags(engine, tmp_path: Path) -> None:
    rows = manifest(tmp_path / "m.jsonl", [
        {"text": "you are a stupid disgusting idiot, shut up", "label": "offensive"},
        {"text": "what a worthless pathetic moron you are", "label": ["abuse"]},
        {"text": "I will find you and kill you", "label": "threat"},
        {"text": "add the flour and stir", "label": "none"},
        {"text": "the lecture begins at nine", "label": "none"}])
    found = evaluate_task(engine, "moderation", rows).metrics
    assert found["roc_auc_threat"] == 1
    assert found["recall_threat"] == 1
    assert found["n_clean"] == 2
    assert found["flagged_clean"] == 0
    assert found["roc_auc_abuse"] == 1
    assert 0 <= found["accuracy"] <= 1
    never = evaluate_task(engine, "moderation", rows, options={
        "policy": "{abuse: {review: never, block: never}, hate: {enabled: false}}"}).metrics
    assert never["recall_offensive"] == 0
    assert never["recall_threat"] == 0
    assert never["accuracy"] == 0.4
    assert never["roc_auc_abuse"] == found["roc_auc_abuse"]


def test_qa_finds_a_passage(engine, tmp_path: Path) -> None:
    texts = ["Hello and welcome to the workshop.", "First, we sharpen the pencil.",
             "The glue has to dry for two hours.", "Then paint the wood in green.",
             "Thank you for watching, goodbye."]
    rows = manifest(tmp_path / "m.jsonl", [
        {"id": "v", "text": texts, "question": "How long does the glue have to dry?",
         "answer_start": 2, "answer_end": 2},
        {"id": "v", "text": texts, "question": "Which colour is the wood painted in?",
         "answer": "green"}])
    found = evaluate_task(engine, "qa", rows).metrics
    assert found["n_questions"] == 2
    assert found["best_segment_inside"] == 1
    assert found["contains_answer"] == 1
    timed = manifest(tmp_path / "t.jsonl", [
        {"text": [{"text": text, "start": 4 * n, "end": 4 * n + 4}
                  for n, text in enumerate(texts)],
         "question": "How long does the glue have to dry?", "answer_start_s": 8,
         "answer_end_s": 12}])
    assert evaluate_task(engine, "qa", timed).metrics["mean_iou"] > 0.3


def test_summaries_are_compared_by_segment_and_by_time(engine, tmp_path: Path) -> None:
    texts = ["Today we discuss how vaccines train the immune system against a virus.",
             "Okay, so.", "Right.",
             "Antibodies recognise the protein of the virus and mark it for destruction.", "Um."]
    timed = [{"text": text, "start": 5 * n, "end": 5 * n + 5} for n, text in enumerate(texts)]
    by_number = manifest(tmp_path / "n.jsonl", [{"text": texts, "selected": [0, 3]}])
    by_time = manifest(tmp_path / "t.jsonl", [{"text": timed, "selected": [[0, 5], [15, 20]]}])
    one, other = (evaluate_task(engine, "summarisation", path).metrics
                  for path in (by_number, by_time))
    assert one == other
    assert one["top3_recall"] == 1
    assert one["f1"] > 0.6
    written = manifest(tmp_path / "w.jsonl", [{"text": texts, "summary": f"{texts[0]} {texts[3]}"}])
    assert evaluate_task(engine, "summarisation", written).metrics["rouge_l"] > 0.6


@pytest.mark.parametrize(("task", "row", "message"), [
    ("sentiment", {"text": "hm", "label": "angry"}, "'angry' is none of negative"),
    ("sentiment", {"text": ["a b", "c d"], "label": ["neutral"]}, "2 segments, but 1 labels"),
    ("moderation", {"text": "hm", "label": "spam"}, "'spam' is none of none"),
    ("qa", {"text": ["hm"], "answer_start": 0}, "a row has an answer, but no question"),
    ("qa", {"text": ["hm"], "question": "What?", "answer_start": "x"}, "numbers of segments"),
    ("summarisation", {"text": ["hm"], "selected": [4]}, "list of numbers of segments"),
    ("summarisation", {"text": ["hm"], "selected": []}, "nothing is selected"),
])
def test_a_wrong_label_is_named(engine, tmp_path: Path, task, row, message) -> None:
    with pytest.raises(ManifestError, match=message):
        evaluate_task(engine, task, manifest(tmp_path / "m.jsonl", [row]))


def test_a_task_that_cannot_be_evaluated_says_so(tmp_path: Path) -> None:
    import vbkit
    from vbkit.evaluation.tasks import check_capability

    schema = vbkit.TableSchema("plain", (vbkit.Column("x", "int64"),))
    spec = vbkit.TaskSpec("plain", "nothing", "m:H", frozenset(), (schema,))
    with pytest.raises(UsageError, match="cannot be evaluated: its TaskSpec does not name"):
        check_capability(spec, "evaluate")
