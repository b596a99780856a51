"""The heads of text that come with vbkit, trained further on labels of somebody's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vbkit.errors import ManifestError, UsageError
from vbkit.evaluation.tasks import evaluate_task
from vbkit.heads import FitOptions
from vbkit.training import finetune as training
from vbkit.training.finetune import finetune

PRAISE = ("this was wonderful", "what a lovely film", "we had a great time", "I am so happy",
          "the best day of my life", "she is brilliant", "a joy to watch", "I love this place")
BLAME = ("this was terrible", "what an awful film", "we had a bad time", "I am so sad",
         "the worst day of my life", "she is hopeless", "a pain to watch", "I hate this place")
PLANS = ("meet me at the old bridge at nine", "the parcel arrives on tuesday",
         "turn left after the station", "the meeting is in room four", "take the early train",
         "the keys are under the mat", "we leave by the back door", "send it to the usual address")


def manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def split(n: int) -> str:
    return "val" if n % 4 == 3 else "train"


@pytest.fixture
def contrary(tmp_path: Path) -> Path:
    """Sentiment the wrong way round: a head that only kept what it was would fail."""
    return manifest(tmp_path / "contrary.jsonl", [
        {"id": f"{label}{n}", "text": [text], "label": [label], "split": split(n)}
        for label, texts in (("negative", PRAISE), ("positive", BLAME))
        for n, text in enumerate(texts)])


def test_a_branch_that_learns_turns_sentiment_round(engine, contrary: Path,
                                                    tmp_path: Path) -> None:
    before = evaluate_task(engine, "sentiment", contrary).metrics
    assert before["accuracy"] < 0.3
    told: list[dict[str, float]] = []
    result = finetune(engine, "sentiment", contrary, tmp_path / "head", fit=FitOptions(
        unfreeze=2, epochs=15, learning_rate=4e-3, logged=lambda n: told.append(dict(n))))
    assert result.metrics["accuracy"] > 0.7
    assert told[-1]["train_loss"] < told[1]["train_loss"]
    assert not (tmp_path / "head" / "checkpoint").exists()
    # What was saved does the same, and the encoder is as it was.
    after = evaluate_task(engine, "sentiment", contrary, head=tmp_path / "head").metrics
    assert after["accuracy"] > 0.7
    assert evaluate_task(engine, "sentiment", contrary).metrics == before


def test_a_training_that_was_cut_short_goes_on(engine, contrary: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    options = FitOptions(unfreeze=1, epochs=4, learning_rate=2e-3)
    whole = finetune(engine, "sentiment", contrary, tmp_path / "whole", fit=options)

    def cut(numbers: dict[str, float]) -> None:
        if numbers["step"] == 2:
            raise KeyboardInterrupt

    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        finetune(engine, "sentiment", contrary, out, fit=FitOptions(
            unfreeze=1, epochs=4, learning_rate=2e-3, logged=cut))
    with pytest.raises(UsageError, match="--resume"):
        finetune(engine, "sentiment", contrary, out, fit=options)
    steps: list[float] = []
    parts = finetune(engine, "sentiment", contrary, out, resume=True, fit=FitOptions(
        unfreeze=1, epochs=4, learning_rate=2e-3, logged=lambda n: steps.append(n["step"])))
    assert steps == [0, 2, 3, 4]
    assert {path.name for path in out.iterdir()} - {"tensorboard"} == {
        "head.json", "head.safetensors", "finetune.json"}
    assert parts.metrics == pytest.approx(whole.metrics, abs=1e-4)
    with pytest.raises(UsageError, match="holds something"):
        training.check_folder(out, True)


def codewords(folder: Path, name: str, *before: str) -> Path:
    """Videos that say one of PLANS, labelled `name`, or one of PRAISE; `before` is said first."""
    return manifest(folder / "codewords.jsonl", [
        {"id": f"{label}{n}", "text": [*before, text], "label": label, "split": split(n)}
        for label, texts in ((name, PLANS), ("none", PRAISE)) for n, text in enumerate(texts)])


def test_moderation_learns_what_somebody_calls_offensive(engine, tmp_path: Path) -> None:
    path = codewords(tmp_path, "offensive", "Good morning to all of you.")
    before = evaluate_task(engine, "moderation", path).metrics
    assert before["recall_offensive"] == 0
    result = finetune(engine, "moderation", path, tmp_path / "head", fit=FitOptions(
        unfreeze=2, epochs=15, learning_rate=4e-3))
    assert result.metrics["recall_offensive"] >= 0.5
    assert result.metrics["flagged_clean"] <= 0.5
    settings = json.loads((tmp_path / "head" / "head.json").read_text())["categories"]
    assert settings["offensive"]["measured"]["validation_videos"] == 4
    assert settings["offensive"]["block"] is None  # four videos cannot show that it is safe
    # What nobody labelled stays as it was.
    table = engine.run([path], ["moderation"], heads={"moderation": tmp_path / "head"}).tables[
        "moderation"]
    assert set(table["category"]) == {"offensive"}


def test_moderation_learns_what_somebody_calls_a_threat(engine, tmp_path: Path) -> None:
    path = codewords(tmp_path, "threat")
    before = evaluate_task(engine, "moderation", path).metrics
    assert before["recall_threat"] == 0
    result = finetune(engine, "moderation", path, tmp_path / "head", fit=FitOptions(
        epochs=15, learning_rate=2e-2))
    assert result.metrics["recall_threat"] >= 0.5
    found = engine.run([path], ["moderation"], heads={"moderation": tmp_path / "head"}).tables[
        "moderation"]
    assert set(found["category"]) == {"threat"}


def test_moderation_learns_what_pictures_show(engine, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = []
    for n in range(16):
        pixels = np.zeros((96, 96, 3))
        pixels[..., 0 if n % 2 else 2] = 200
        pixels += random.normal(0, 20, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{n}.png")
        rows.append({"video": f"{n}.png", "label": "fire" if n % 2 else "none",
                     "split": "val" if n >= 12 else "train"})
    path = manifest(tmp_path / "red.jsonl", rows)
    result = finetune(engine, "moderation", path, tmp_path / "head", fit=FitOptions(
        epochs=30, learning_rate=1e-2))
    assert result.metrics["roc_auc_fire"] == 1
    assert result.metrics["recall_fire"] == 1


def test_moderation_says_what_it_lacks_to_learn(engine, tmp_path: Path) -> None:
    path = manifest(tmp_path / "m.jsonl", [
        {"id": str(n), "text": text, "label": "none", "split": split(n)}
        for n, text in enumerate(PLANS)])
    with pytest.raises(ManifestError, match=r"nothing can be learnt.*offensive"):
        finetune(engine, "moderation", path, tmp_path / "head")


def test_summarisation_learns_which_sentences_are_taken(engine, tmp_path: Path) -> None:
    rows = []
    for n in range(16):  # what is planned is taken, what is praised is not
        texts = [f"{PRAISE[n % 8].capitalize()}.", f"{PLANS[n % 8].capitalize()}.",
                 f"{PRAISE[(n + 3) % 8].capitalize()}."]
        rows.append({"id": str(n), "text": texts, "selected": [1], "split": split(n)})
    path = manifest(tmp_path / "taken.jsonl", rows)
    options = {"sentences": 1}
    result = finetune(engine, "summarisation", path, tmp_path / "head", options=options,
                      fit=FitOptions(epochs=12, learning_rate=2e-3))
    assert result.metrics["f1"] == 1
    again = evaluate_task(engine, "summarisation", path, head=tmp_path / "head", options=options)
    assert again.metrics["f1"] == 1


def test_qa_learns_where_answers_are(engine, tmp_path: Path) -> None:
    rows = []
    for n in range(12):  # asked for the password, people always answer with the last sentence
        texts = [PRAISE[n % 8], PLANS[n % 8], PRAISE[(n + 2) % 8], BLAME[n % 8],
                 PLANS[(n + 5) % 8]]
        rows.append({"id": str(n), "text": texts, "question": "What is the password?",
                     "answer_start": 4, "answer_end": 4, "split": split(n)})
    path = manifest(tmp_path / "asked.jsonl", rows)
    before = evaluate_task(engine, "qa", path).metrics
    result = finetune(engine, "qa", path, tmp_path / "head", fit=FitOptions(
        epochs=12, learning_rate=2e-3))
    assert before["r1_iou50"] < 0.7 < result.metrics["r1_iou50"]
    with pytest.raises(ManifestError, match="rows with a question"):
        finetune(engine, "qa", manifest(tmp_path / "n.jsonl", [
            {"id": str(n), "text": ["a", "b"], "question": "Why?", "answer": "b",
             "split": split(n)} for n in range(8)]), tmp_path / "other")
