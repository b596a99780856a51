"""`vbkit finetune`, `vbkit evaluate --task TASK`, and the task classification, on real inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import vbkit
from vbkit.cli import cli
from vbkit.errors import ManifestError, ModelError, UsageError
from vbkit.evaluation.labelled import read_labelled
from vbkit.evaluation.tasks import evaluate_task
from vbkit.heads import FitOptions
from vbkit.training.finetune import finetune, split_videos

KITCHEN = (
    "chop the onions and fry them in butter", "season the steak with salt and pepper",
    "pour the batter into a hot pan", "let the dough rest for an hour", "boil the pasta in water",
    "whisk the eggs with some cream", "simmer the sauce until it thickens",
    "bake the bread in the oven", "add garlic and olive oil", "slice the tomatoes thinly",
    "marinate the chicken overnight", "sprinkle grated cheese on top")
FIELD = (
    "he scores a goal in the last minute", "the striker runs past two defenders",
    "she wins the final set of the match", "the goalkeeper saves the penalty",
    "the sprinter breaks the world record", "they lost the game by three points",
    "the coach calls for a time out", "a long pass to the wing", "the crowd cheers for the team",
    "he serves an ace at match point", "the referee shows a yellow card",
    "the cyclist attacks on the climb")


def manifest(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> Path:
    rows = [{"id": f"{label}-{n}", "text": text, "label": label}
            for label, texts in (("cooking", KITCHEN), ("sport", FIELD))
            for n, text in enumerate(texts)]
    return manifest(tmp_path_factory.mktemp("texts") / "sentences.jsonl", rows)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Plain colours with noise: red, blue, and pictures of both."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    rows = []
    for n in range(24):
        labels = [["red"], ["blue"], ["red", "blue"]][n % 3]
        pixels = np.zeros((96, 96, 3))
        if "red" in labels:
            pixels[:, :48, 0] = 220
        if "blue" in labels:
            pixels[:, 48:, 2] = 220
        pixels += rng.normal(0, 12, pixels.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{n}.png")
        rows.append({"video": f"{n}.png", "label": labels})
    return manifest(folder / "pictures.jsonl", rows)


@pytest.fixture(scope="module")
def trained(engine, sentences: Path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("heads") / "topics"
    result = finetune(engine, "classification", sentences, out, val_share=0.25)
    assert (result.n_train, result.n_val) == (18, 6)
    assert result.metrics["accuracy"] >= 0.8
    return out


# --- labels by name ---------------------------------------------------------------------------


def test_labels_by_name_rank_what_is_shown(engine, sample: Path) -> None:
    found = engine.run([sample], ["classification"], options={"classification": {
        "labels": "a city street, a swimming pool, a kitchen", "clips": True}})
    table = found.tables["classification"]
    assert table["label"].iloc[0] == "a city street"
    assert table["rank"].tolist() == [1, 2, 3]
    assert table["score"].sum() == pytest.approx(1)
    clips = found.tables["classification_clips"]
    assert len(clips) == 3 * clips["clip"].nunique() == 30
    assert clips["end_s"].max() == pytest.approx(15.28, abs=0.1)


def test_several_labels_by_name_do_not_share_one(engine, sample: Path) -> None:
    def score(labels: str) -> float:
        table = engine.run([sample], ["classification"], options={"classification": {
            "labels": labels, "multi": True}}).tables["classification"]
        return float(table.set_index("label").loc["a city street", "score"])

    assert score("a city street, a kitchen") == pytest.approx(score("a city street, a road"))


def test_without_labels_it_says_how_to_name_them(engine, sample: Path) -> None:
    report = engine.run([sample], ["classification"]).report
    assert report.n_failed + report.n_partial == 1
    assert "-o classification.labels=" in report.failures[0].message


def test_a_video_of_nothing_has_no_score(engine, tmp_path: Path, trained: Path) -> None:
    rows = manifest(tmp_path / "m.jsonl", [{"id": "x", "text": ["", " "]}])
    table = engine.run([rows], ["classification"], options={"classification": {
        "labels": "a, b"}}).tables["classification"]
    assert len(table) in (0, 2)  # an empty text is no input, or one without scores
    assert table["score"].isna().all()


# --- trained labels ---------------------------------------------------------------------------


def test_a_trained_head_is_used_by_run_and_evaluate(engine, trained: Path, sentences: Path,
                                                    tmp_path: Path) -> None:
    new = manifest(tmp_path / "new.jsonl", [
        {"id": "soup", "text": ["Stir the soup gently.", "Now add the chopped carrots."]},
        {"id": "race", "text": ["The runners are at the start.", "He wins the race!"]}])
    table = engine.run([new], ["classification"], heads={"classification": trained}
                       ).tables["classification"]
    best = table[table["rank"] == 1].set_index("video_id")["label"]
    assert best.to_dict() == {"soup": "cooking", "race": "sport"}
    assert table.groupby("video_id")["score"].sum().tolist() == pytest.approx([1, 1])
    found = evaluate_task(engine, "classification", sentences, head=trained, predictions=True)
    assert found.metrics["f1_macro"] > 0.9
    assert {"accuracy", "balanced_accuracy", "f1_weighted", "roc_auc_sport",
            "average_precision_cooking", "calibration_error"} <= found.metrics.keys()
    assert len(found.predictions) == 48


def test_the_same_seed_gives_the_same_head(engine, sentences: Path, trained: Path,
                                           tmp_path: Path) -> None:
    finetune(engine, "classification", sentences, tmp_path / "again", val_share=0.25)
    for name in ("head.safetensors", "head.json"):
        assert (tmp_path / "again" / name).read_bytes() == (trained / name).read_bytes()


def test_a_head_of_texts_judges_texts_and_one_of_pictures_texts_too(
        engine, trained: Path, pictures: Path, tmp_path: Path) -> None:
    mixed = manifest(tmp_path / "m.jsonl", [
        {"video": str(pictures.parent / "0.png")},
        {"video": str(pictures.parent / "1.png"), "text": ["He scores a goal."]},
        {"id": "said", "text": ["She wins the match."]}])
    found = engine.run([mixed], ["classification"], heads={"classification": trained},
                       options={"classification": {"clips": True}})
    assert not found.report.failures
    table = found.tables["classification"]
    best = table[table["rank"] == 1].groupby("video_id")["label"].first().to_dict()
    assert best == {str(pictures.parent / "1.png"): "sport", "said": "sport"}
    assert found.tables["classification_clips"]["score"].isna().all()
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    both = manifest(tmp_path / "both.jsonl", [
        *({"video": str(pictures.parent / row["video"]), "label": "red" if n % 3 == 0 else "blue"}
          for n, row in enumerate(rows) if n % 3 < 2),
        *({"id": f"{label} {n}", "text": f"it was {label} {n}", "label": label}
          for label in ("red", "blue") for n in range(6))])
    finetune(engine, "classification", both, tmp_path / "head", val_share=0.25)
    table = engine.run([mixed], ["classification"], heads={"classification": tmp_path / "head"}
                       ).tables["classification"]
    assert set(table[(table["rank"] == 1)]["video_id"]) == {
        str(pictures.parent / "0.png"), str(pictures.parent / "1.png"), "said"}


def test_several_labels_are_learnt_apart(engine, pictures: Path, tmp_path: Path) -> None:
    result = finetune(engine, "classification", pictures, tmp_path / "colours", val_share=0.25,
                      options={"clips": True})
    assert result.metrics["f1_macro"] > 0.9
    table = engine.run([pictures.parent / "2.png"], ["classification"],
                       heads={"classification": tmp_path / "colours"}).tables["classification"]
    assert (table["score"] > 0.5).all()
    report = json.loads((tmp_path / "colours" / "finetune.json").read_text())
    assert report["n_val"] == len(report["validation"]) == 6


def test_a_label_that_the_head_does_not_know_is_named(engine, trained: Path,
                                                      tmp_path: Path) -> None:
    rows = manifest(tmp_path / "m.jsonl", [{"text": "a song", "label": "music"}])
    with pytest.raises(ManifestError, match="'music' is none of those that the head knows"):
        evaluate_task(engine, "classification", rows, head=trained)


def test_what_cannot_be_learnt_from_is_refused(engine, tmp_path: Path, sentences: Path) -> None:
    alike = manifest(tmp_path / "alike.jsonl",
                     [{"text": text, "label": "cooking"} for text in KITCHEN])
    with pytest.raises(ManifestError, match="fewer than two labels"):
        finetune(engine, "classification", alike, tmp_path / "out")
    bare = manifest(tmp_path / "bare.jsonl", [{"text": text} for text in KITCHEN])
    with pytest.raises(ManifestError, match="no row has a label"):
        finetune(engine, "classification", bare, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(UsageError, match="holds something already"):
        finetune(engine, "classification", sentences, tmp_path / "full")
    assert not (tmp_path / "out").exists()


def test_a_broken_head_is_one_line(engine, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    for name in ("head.json", "head.safetensors"):
        (tmp_path / "head" / name).write_bytes((trained / name).read_bytes())
    settings = json.loads((tmp_path / "head" / "head.json").read_text())
    settings["labels"] = ["only"]
    (tmp_path / "head" / "head.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="no classification head"):
        evaluate_task(engine, "classification",
                      manifest(tmp_path / "m.jsonl", [{"text": "x y", "label": "only"}]),
                      head=tmp_path / "head")


# --- splits -----------------------------------------------------------------------------------


def test_a_video_is_on_one_side_of_the_split(tmp_path: Path, sample: Path) -> None:
    rows = [{"video": str(sample), "label": "a"}, {"video": str(sample), "label": "b"},
            *({"text": f"text {n}", "label": "a"} for n in range(9))]
    found = read_labelled(manifest(tmp_path / "m.jsonl", rows), ("label",))
    assert len(found) == 10
    train, val = split_videos(found, 0.3, seed=1)
    assert (len(train), len(val)) == (7, 3)
    assert not {e.source.video_id for e in train} & {e.source.video_id for e in val}
    assert split_videos(found, 0.3, seed=1)[1] == val


def test_the_column_split_decides(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": "a", "split": "val" if n > 5 else "train"}
            for n in range(8)]
    train, val = split_videos(read_labelled(manifest(tmp_path / "m.jsonl", rows), ("label",)),
                              0.5, seed=0)
    assert (len(train), len(val)) == (6, 2)
    rows[0]["split"] = "test"
    with pytest.raises(ManifestError, match="says 'test'"):
        split_videos(read_labelled(manifest(tmp_path / "m.jsonl", rows), ("label",)), 0.5, 0)


# --- command line -----------------------------------------------------------------------------


@pytest.mark.slow
def test_commands(sentences: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    out = tmp_path / "head"
    shown = runner.invoke(cli, ["finetune", "--task", "classification", "--manifest",
                                str(sentences), "--out", str(out), "--device", "cpu"])
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["n_train"] == 19
    assert "val_loss" in shown.stderr
    shown = runner.invoke(cli, [
        "evaluate", "--task", "classification", "--manifest", str(sentences), "--head", str(out),
        "--predictions", str(tmp_path / "said.csv"), "--device", "cpu"])
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["accuracy"] > 0.9
    assert list(pd.read_csv(tmp_path / "said.csv").columns)[:2] == ["video_id", "label"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["evaluate", "--task", "retrieval", "--manifest", "m.csv", "--head", "x"], "are for tasks"),
    (["evaluate", "--task", "clasification", "--manifest", "m.csv"], "did you mean"),
    (["finetune", "--task", "classification", "--manifest", "m.csv", "--out", "h"],
     "no such file"),
    (["finetune", "--task", "classification", "--manifest", "m.csv", "--out", "h", "-o",
      "qa.top_k=3"], "another task"),
])
def test_wrong_usage_is_one_line(arguments, message, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code in (1, 2)
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def test_public_names() -> None:
    assert vbkit.Example.__module__ == vbkit.FitOptions.__module__ == "vbkit.heads"


# --- sentiment --------------------------------------------------------------------------------


def test_sentiment_learns_a_users_own_sense_of_words(engine, tmp_path: Path) -> None:
    """Reviews of knives, where sharp and hard are praise."""
    good = ["so hard and so sharp", "it cuts like a devil", "brutal edge, sharp as hell",
            "dangerously sharp", "a killer blade", "wickedly hard steel", "it bites deep",
            "insanely aggressive edge"]
    bad = ["soft and gentle steel", "a mild and tender edge", "smooth, round and kind",
           "it is soft as butter", "gentle on every tomato", "a calm and friendly blade",
           "tender and easy going", "a sweet little mild knife"]
    rows = [{"id": f"{label}{n}-{m}", "text": f"{prefix}{text}", "label": label}
            for label, texts in (("positive", good), ("negative", bad))
            for n, text in enumerate(texts) for m, prefix in enumerate(("", "this knife: "))]
    path = manifest(tmp_path / "knives.jsonl", rows)
    before = evaluate_task(engine, "sentiment", path).metrics["accuracy_binary"]
    result = finetune(engine, "sentiment", path, tmp_path / "knives",
                      fit=vbkit.FitOptions(learning_rate=3e-3))
    after = evaluate_task(engine, "sentiment", path, head=tmp_path / "knives").metrics
    assert after["accuracy_binary"] > max(0.9, before)
    assert result.metrics["accuracy_binary"] > 0.7
    table = engine.run([path], ["sentiment"], heads={"sentiment": tmp_path / "knives"}
                       ).tables["sentiment"]
    assert table[["p_negative", "p_neutral", "p_positive"]].sum(axis=1).tolist() == (
        pytest.approx([1] * len(rows)))


# --- corrected results ------------------------------------------------------------------------


def test_results_go_back_as_labels(engine, sample: Path, sentences: Path, tmp_path: Path) -> None:
    """run -> export --to manifest -> a person corrects -> finetune -> run --head"""
    out = tmp_path / "results"
    engine.run([sample, sentences], ["sentiment", "moderation"], out=out)
    written = tmp_path / "labels.csv"
    shown = CliRunner().invoke(cli, ["export", str(out), "sentiment", "--to", "manifest",
                                     "--output", str(written)])
    assert shown.exit_code == 0, shown.stderr
    table = pd.read_csv(written)
    assert list(table.columns) == ["id", "video", "text", "label"]
    assert len(table) == 25
    assert set(table["label"]) <= {"negative", "neutral", "positive"}
    assert table["video"].notna().sum() == 1
    corrected = table.assign(label=["positive" if "sport" in each else "negative"
                                    for each in table["id"]])
    corrected.to_csv(written, index=False)
    result = finetune(engine, "sentiment", written, tmp_path / "head")
    assert result.n_train + result.n_val == 25
    again = engine.run([written], ["sentiment"], heads={"sentiment": tmp_path / "head"}
                       ).tables["segments"]
    before = vbkit.load_table(out, "segments")
    told = before[before["video_id"].str.endswith("sample.mp4")]["text"].tolist()
    assert again[again["video_id"].str.endswith("sample.mp4")]["text"].tolist() == told
    shown = CliRunner().invoke(cli, ["export", str(out), "moderation", "--to", "manifest"])
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.splitlines()[0] == "id,video,text,label"
    assert shown.stdout.count("none") >= 20
    shown = CliRunner().invoke(cli, ["export", str(out), "videos", "--to", "manifest"])
    assert shown.exit_code == 2
    assert "is no table of labels" in shown.stderr


# --- what is written --------------------------------------------------------------------------


def test_rows_are_scored_once_for_metrics_and_predictions(engine, tmp_path, monkeypatch) -> None:
    from vbkit_sentiment.head import SentimentHead

    scored = []
    predict = SentimentHead.predict
    monkeypatch.setattr(SentimentHead, "predict", lambda self, features: scored.append(
        features.video_id) or predict(self, features))
    labelled = manifest(tmp_path / "said.jsonl", [
        {"id": "good", "text": "I love it, what a wonderful day!", "label": "positive"},
        {"id": "bad", "text": "I hate this terrible weather.", "label": "negative"}])
    found = evaluate_task(engine, "sentiment", labelled, predictions=True)
    assert scored == ["good", "bad"]
    assert [row["video_id"] for row in found.predictions] == scored
    assert found.metrics["accuracy"] == 1


def test_losses_are_drawn_by_tensorboard(engine, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [{"id": f"{label} {n}", "text": f"{text} {n} times", "label": label}
            for label, text in (("positive", "we loved it"), ("negative", "we hated it"))
            for n in range(10)]
    labelled = manifest(tmp_path / "said.jsonl", rows)
    told = []
    finetune(engine, "sentiment", labelled, tmp_path / "head",
             fit=FitOptions(epochs=2, logged=told.append))
    events = EventAccumulator(str(tmp_path / "head" / "tensorboard"))
    events.Reload()
    drawn = [(each.step, each.value) for each in events.Scalars("val_loss")]
    assert drawn == [(numbers["step"], pytest.approx(numbers["val_loss"])) for numbers in told]


def test_a_training_that_fails_leaves_nothing_behind(engine, tmp_path, monkeypatch) -> None:
    from vbkit_sentiment.head import SentimentHead

    def fit(self, train, val, options) -> None:
        options.logged({"step": 1, "val_loss": 2.0})
        raise ManifestError("the labels are of no use")

    monkeypatch.setattr(SentimentHead, "fit", fit)
    labelled = manifest(tmp_path / "said.jsonl", [
        {"id": str(n), "text": "we loved it", "label": "positive"} for n in range(4)])
    with pytest.raises(ManifestError, match="of no use"):
        finetune(engine, "sentiment", labelled, tmp_path / "head")
    assert not (tmp_path / "head").exists()
