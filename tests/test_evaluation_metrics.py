"""Metrics equal what is known of them: by hand, from scikit-learn, from coco-caption's programs."""

from __future__ import annotations

import builtins
import math
import subprocess
import sys

import numpy as np
import pytest

from vbkit.evaluation.captions import (
    bleu,
    caption_scores,
    cider,
    meteor,
    rouge_l,
    tokenize,
)
from vbkit.evaluation.classification import (
    bootstrap_interval,
    calibration_error,
    classification_scores,
    multilabel_scores,
)
from vbkit.evaluation.retrieval import retrieval_ranks, retrieval_scores, text_to_text_scores

WRITTEN = [
    "A brown dog runs across the wet sand.",
    "Two kids don't sit on the old man's bench",
    "A woman in a T-shirt (red) rides a horse, smiling!",
    "a cat",
]
TRUE = [
    ["A dog is running across wet sand.", "The brown dog runs along a beach.", "A wet dog"],
    ["Two children sit on a bench", "Two kids aren't sitting on the man's bench.",
     "kids on an old bench"],
    ["A smiling woman rides a brown horse.", "A woman wearing a red T-shirt is riding a horse."],
    ["A cat sleeps on a sofa.", "The black cat is asleep, on the couch"],
]
# of these sentences, by pycocoevalcap 1.2 with Stanford's tokenizer
PUBLISHED = {"bleu_1": 0.8787878787346192, "bleu_2": 0.6030226891177204,
             "bleu_3": 0.30755238391138967, "rouge_l": 0.627374758931678,
             "cider": 1.6335538105767948}


# --- captions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "words"), [
    ("A dog , and a CAT .", "a dog and a cat"),
    ("The man's dogs' toys don't break.", "the man 's dogs toys do n't break"),
    ("They're 2:43 late; we'll pay $1,000!", "they 're 2:43 late we 'll pay $ 1,000"),
    ("a T-shirt -- snow-covered ... \"quoted\" 'so'", "a t-shirt snow-covered quoted so"),
    ("three boys (one in red) at 3 o'clock", "three boys -lrb- one in red -rrb- at 3 o'clock"),
    ("Mr. Smith cannot see the U.S. flag.", "mr. smith can not see the u.s. flag"),
    ("the girl/toddler eats 1/2 a jalapeño", "the girl/toddler eats 1/2 a jalapeño"),
    ("visit statefarm.com #7 & more", "visit statefarm.com # 7 & more"),
    ("", ""),
    (" . , - ", ""),
])
def test_captions_are_tokenized_as_the_penn_treebank(text: str, words: str) -> None:
    assert " ".join(tokenize(text)) == words


def test_caption_scores_equal_coco_captions() -> None:
    scores = caption_scores(WRITTEN, TRUE)
    for name, value in PUBLISHED.items():
        assert scores[name] == pytest.approx(value, abs=1e-9), name
    # there is no common 4-gram; coco-caption adds a little to every count, and gives 3e-5
    assert scores["bleu_4"] == 0
    assert set(scores) == {*PUBLISHED, "bleu_4"}


def test_the_same_captions_score_full_marks() -> None:
    texts = ["a dog runs over the wet sand", "two children sit on a long bench",
             "the cat sleeps under a red car"]
    scores = caption_scores(texts, [[text, "something else"] for text in texts])
    assert scores["bleu_4"] == pytest.approx(1)
    assert scores["rouge_l"] == pytest.approx(1)
    alone = caption_scores(texts, [[text] for text in texts])
    assert alone["cider"] == pytest.approx(10)
    assert scores["cider"] == pytest.approx(5)  # the mean over two references


def test_bleu_by_hand() -> None:
    # 4 of 5 words, 2 of 4 pairs, 1 of 3 triples; as long as the closest reference
    scores = bleu([["a", "dog", "runs", "on", "it"]],
                  [[["a", "dog", "runs", "in", "it"], ["one", "dog"]]])
    assert scores[0] == pytest.approx(4 / 5)
    assert scores[1] == pytest.approx(math.sqrt(4 / 5 * 2 / 4))
    assert scores[2] == pytest.approx((4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3))
    assert scores[3] == 0
    short = bleu([["a", "dog"]], [[["a", "dog", "runs", "away"]]])
    assert short[0] == pytest.approx(math.exp(1 - 4 / 2))


def test_rouge_l_by_hand() -> None:
    # common subsequence "a runs here": 3 of 4 written words, 3 of 5 true ones
    precision, recall, square = 3 / 4, 3 / 5, 1.44
    score = rouge_l([["a", "cat", "runs", "here"]],
                    [[["a", "dog", "runs", "right", "here"], ["nothing"]]])
    assert score == pytest.approx((1 + square) * precision * recall
                                  / (recall + square * precision))
    assert rouge_l([[], ["x"]], [[["a"]], [["b"]]]) == 0


def test_cider_weighs_down_what_everybody_says() -> None:
    true = [[["a", "dog"]], [["a", "cat"]], [["a", "cow"]]]
    rare = cider([["dog"], ["cat"], ["cow"]], true)
    common = cider([["a"], ["a"], ["a"]], true)
    assert rare > 1
    assert common == 0
    assert cider([["a", "dog"]], true[:1]) == 0  # one alone: every idf is 0


def test_wrong_captions_are_refused() -> None:
    for written, true in ((["a"], []), ([], []), (["a"], [[]]), ("a", [["a"]]), (["a"], ["a"])):
        with pytest.raises(ValueError):
            caption_scores(written, true)  # type: ignore[arg-type]


def test_an_empty_caption_scores_nothing_and_hurts_nobody() -> None:
    scores = caption_scores([*WRITTEN, ""], [*TRUE, ["A bird"]])
    assert 0 < scores["cider"] < PUBLISHED["cider"]
    assert scores["rouge_l"] == pytest.approx(PUBLISHED["rouge_l"] * 4 / 5)


def test_the_absence_of_meteor_is_said(monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("pycocoevalcap"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    score, note = meteor(WRITTEN, TRUE)
    assert score is None
    assert "Java" in note
    assert "vbkit[meteor]" in note


def test_meteor_where_it_is_installed() -> None:
    pytest.importorskip("pycocoevalcap")
    score, note = meteor(WRITTEN, TRUE)
    if score is None:
        assert "java" in note.lower()
    else:
        assert score == pytest.approx(0.378864239224008, abs=1e-6)  # as PUBLISHED


# --- retrieval --------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    video = np.eye(3)
    text = np.array([[1, 0, 0], [0, 1, 0.5], [0, 0.9, 1], [0.9, 1, 0]])
    owner = [0, 1, 2, 0]  # the last text speaks rather of video 1
    to_text, to_video = retrieval_ranks(video, text, owner)
    assert to_text.tolist() == [1, 1, 1]
    assert to_video.tolist() == [1, 1, 1, 2]
    scores = retrieval_scores(video, text, owner)
    assert scores["video_to_text_r1"] == 1
    assert scores["text_to_video_r1"] == 0.75
    assert scores["text_to_video_r5"] == 1
    assert scores["text_to_video_median_rank"] == 1


def test_constant_embeddings_score_nothing() -> None:
    rng = np.random.default_rng(0)
    same = np.tile(rng.normal(size=37), (300, 1))
    scores = retrieval_scores(same, np.repeat(same, 5, 0), np.repeat(np.arange(300), 5))
    assert scores["video_to_text_r10"] == 0
    assert scores["text_to_video_r10"] == 0
    assert scores["text_to_video_median_rank"] == 300
    assert scores["video_to_text_median_rank"] == 1 + 5 * 299


def test_ranks_equal_a_plain_sort_over_many_chunks() -> None:
    rng = np.random.default_rng(1)
    video = rng.normal(size=(1500, 8))
    owner = rng.permutation(np.concatenate([np.arange(1500), rng.integers(0, 1500, 1000)]))
    text = video[owner] + rng.normal(size=(2500, 8))
    to_text, to_video = retrieval_ranks(video, text, owner)
    cosine = (video / np.linalg.norm(video, axis=1, keepdims=True)) @ (
        text / np.linalg.norm(text, axis=1, keepdims=True)).T
    for i in (0, 1023, 1024, 1499):
        order = owner[np.argsort(-cosine[i])]
        # the texts of the video itself before its best one: none, by definition
        assert to_text[i] == 1 + list(order).index(i)
    for j in (0, 1024, 2499):
        assert to_video[j] == 1 + list(np.argsort(-cosine[:, j])).index(owner[j])


def test_text_to_text() -> None:
    queries = np.eye(4)
    answers = np.eye(4)[[0, 1, 3, 2]]
    assert text_to_text_scores(queries, answers)["text_to_text_r1"] == 0.5


def test_wrong_embeddings_are_refused() -> None:
    good = np.eye(3)
    for video, text, owner in (
        (good, good, [0, 1]), (good, good[:2], [0, 1]), (good, good, [0, 1, 3]),
        (good, np.full((3, 3), np.nan), [0, 1, 2]), (good, np.eye(4)[:3], [0, 1, 2]),
        (np.zeros((0, 3)), good, [0, 1, 2]),
    ):
        with pytest.raises(ValueError):
            retrieval_ranks(video, text, owner)


# --- classification ---------------------------------------------------------------------------


def test_classification_scores_by_hand() -> None:
    labels = ["a", "a", "a", "b"]
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.2, 0], [0.3, 0.7, 0], [0.4, 0.6, 0]])
    scores = classification_scores(labels, probabilities, ["a", "b", "c"])
    assert scores["accuracy"] == 0.75
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["precision_a"] == 1
    assert scores["recall_a"] == pytest.approx(2 / 3)
    assert scores["precision_b"] == 0.5
    assert scores["f1_macro"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores["f1_weighted"] == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert scores["roc_auc_b"] == pytest.approx(2 / 3)  # one of three a's is above it
    assert scores["average_precision_b"] == pytest.approx(0.5)
    # what does not occur has no score
    assert scores["recall_c"] is None
    assert scores["precision_c"] is None
    assert scores["roc_auc_c"] is None


def test_predictions_may_differ_from_the_largest_probability() -> None:
    scores = classification_scores(["a", "b"], np.array([[0.9, 0.1], [0.9, 0.1]]), ["a", "b"],
                                   predictions=["a", "b"])
    assert scores["accuracy"] == 1
    assert scores["roc_auc_a"] == 0.5
    # right with confidence 0.9, and right with confidence 0.1
    assert scores["calibration_error"] == pytest.approx(0.5)


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    scores = classification_scores(["a", "b"], np.array([[3.0, -1], [0, 2]]), ["a", "b"])
    assert scores["accuracy"] == 1
    assert scores["calibration_error"] is None


def test_calibration_error_by_hand() -> None:
    # bin 0.8-0.867 has accuracy 0.5 and confidence 0.85; bin 0.533-0.6 has 1 and 0.6
    assert calibration_error(np.array([True, False, True]),
                             np.array([0.85, 0.85, 0.6])) == pytest.approx(
        (2 * 0.35 + 1 * 0.4) / 3)
    assert calibration_error(np.array([True, False]), np.array([1.0, 0.0])) == 0


def test_multilabel_scores() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    probabilities = np.array([[0.9, 0.6], [0.4, 0.8], [0.1, 0.2]])
    scores = multilabel_scores(labels, probabilities, ["fight", "gun"])
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["recall_fight"] == 0.5
    assert scores["precision_gun"] == 0.5
    assert scores["roc_auc_gun"] == 1
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_wrong_labels_are_refused() -> None:
    table = np.array([[0.5, 0.5]])
    for labels, given, classes in (
        (["c"], table, ["a", "b"]), (["a", "b"], table, ["a", "b"]), ([], table, ["a", "b"]),
        (["a"], table, ["a", "a"]), (["a"], np.array([[np.nan, 1]]), ["a", "b"]),
    ):
        with pytest.raises(ValueError):
            classification_scores(labels, given, classes)


def test_the_bootstrap_resamples_groups() -> None:
    rng = np.random.default_rng(0)
    right = np.repeat(rng.integers(0, 2, 20), 50)  # the examples of a video agree with each other
    groups = np.repeat(np.arange(20), 50)
    wide = bootstrap_interval(lambda i: right[i].mean(), groups)
    narrow = bootstrap_interval(lambda i: right[i].mean(), range(1000))
    assert wide[0] < right.mean() < wide[1]
    assert wide[1] - wide[0] > 3 * (narrow[1] - narrow[0])
    assert bootstrap_interval(lambda i: right[i].mean(), groups) == wide  # seeded
    with pytest.raises(ValueError):
        bootstrap_interval(lambda i: float("nan"), groups, n_resamples=3)


def test_metrics_import_no_torch() -> None:
    code = ("import sys, vbkit.evaluation.captions, vbkit.evaluation.retrieval, "
            "vbkit.evaluation.classification, vbkit.evaluation.examples, vbkit.cli.evaluate\n"
            "from vbkit.evaluation.captions import caption_scores\n"
            "caption_scores(['a dog'], [['a dog']])\n"
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
