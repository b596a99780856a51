"""Pretraining: it learns, it resumes to the same losses, and what it leaves is a model."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from training_files import (
    MINI,
    SENTENCES,
    WIDTH,
    items,
    make_bert,
    make_bundle,
    make_corpus,
)

from vbkit.cli import cli
from vbkit.engine.bundle import Bundle
from vbkit.errors import CorpusError, ModelError, TrainingError, UsageError
from vbkit.model import VideoBertConfig
from vbkit.model.modeling import VideoBertForPreTraining
from vbkit.model.vocabulary import VisualVocabulary, build_vocabulary
from vbkit.plugins import default_manager
from vbkit.training.config import ExampleOptions, PretrainConfig, merged
from vbkit.training.corpus import Corpus, CorpusItem
from vbkit.training.pretraining import make_plan, parameter_groups, pretrain, videobert_tokenizer


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return folder, make_bert(folder)


@pytest.fixture(scope="module")
def words(bert):
    """A tokenizer of few words."""
    return videobert_tokenizer(str(bert[0]))[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, words) -> Path:
    """A model with a decoder, a corpus, and a vocabulary of its features."""
    folder = tmp_path_factory.mktemp("training")
    make_bundle(folder / "model", words=words, num_decoder_layers=1, decoder_shortlist_size=25)
    corpus = make_corpus(folder / "corpus", tokenizer=words)
    features = torch.cat([torch.from_numpy(batch).float() for batch in corpus.feature_batches()])
    vocabulary = build_vocabulary(lambda: [features], depth=1, branching=5, seed=0, device="cpu",
                                  batch_size=64, iterations=5, checkpoint=None, progress=None)
    (folder / "vocabulary").mkdir()
    vocabulary.save(folder / "vocabulary")
    return folder


def configured(folder: Path, **changes) -> PretrainConfig:
    values = {
        "corpus": [str(folder / "corpus")], "model": str(folder / "model"),
        "vocabulary": str(folder / "vocabulary"), "batch_size": 4, "steps": 8,
        "learning_rate": 1e-3, "log_every": 1, "eval_every": 4, "save_every": 3,
        "eval_batches": 2, **changes}
    return PretrainConfig.from_dict(values)


def losses(out: Path) -> dict:
    """What was logged, by step, without what depends on the clock."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    clock = ("epoch", "tokens_per_second")
    return {(row["step"], "eval_loss" in row): {
        name: value for name, value in row.items() if name not in clock}
        for row in rows if "train_runtime" not in row}


# --- the loop ---------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def test_a_killed_run_resumes_to_the_same_losses(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, accumulation=2, examples={"mask_rate": [0.15, 1.0]})
    pretrain(config, tmp_path / "whole", device="cpu")

    def kill(numbers) -> None:
        if numbers["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        pretrain(config, tmp_path / "cut", device="cpu", logged=kill)
    assert max(losses(tmp_path / "cut")) == (5, False)
    # a checkpoint that was being written when the run was killed
    (tmp_path / "cut" / "checkpoints" / "checkpoint-4").mkdir()
    result = pretrain(config, tmp_path / "cut", device="cpu", resume=True)
    assert result.steps == 8
    wanted, found = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert len(wanted) == 10
    assert found == wanted
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_kind_is_trained_and_measured_by_name(folder: Path, tmp_path: Path) -> None:
    seen = []
    result = pretrain(configured(folder, steps=16), tmp_path / "out", device="cpu",
                      planned=lambda plan: seen.append(plan))
    plan = seen[0]
    assert plan.train.kinds == ["joint", "text", "video", "contrast", "caption"]
    assert plan.units["contrast"] < plan.units["joint"] == len(plan.train.units("joint"))
    names = ("words", "visual_words", "alignment", "contrast", "caption")
    logged = set().union(*losses(tmp_path / "out").values())
    assert {f"{name}_loss" for name in names} <= logged
    assert {f"eval_{name}_loss" for name in names} <= result.metrics.keys()
    assert 0 <= result.metrics["eval_word_accuracy"] <= 1
    assert all(np.isfinite(value) for value in result.metrics.values())
    before = load_file(folder / "model" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    still = {name for name in before if torch.equal(before[name], after[name])
             and before[name].is_floating_point()}
    assert not {name for name in still if name.endswith("weight")}


def test_it_learns_what_the_sentences_are(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, mixture={"text": 1}, steps=80, batch_size=16, learning_rate=1e-2,
                        eval_every=80, save_every=0, vocabulary=None,
                        examples={"join": 0.0, "mask_rate": 0.3})
    result = pretrain(config, tmp_path / "out", device="cpu")
    assert losses(tmp_path / "out")[1, False]["words_loss"] > 2.9
    assert result.metrics["eval_words_loss"] < 1.6
    assert result.metrics["eval_word_accuracy"] > 0.5


def test_a_loss_that_is_not_finite_stops_the_run(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, learning_rate=1e30, max_grad_norm=0, warmup=0, save_every=1)
    with pytest.raises(TrainingError, match=r"\(kind \w+, step \d+\) is not finite.*items"):
        pretrain(config, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    runner = CliRunner()
    (tmp_path / "c.json").write_text(json.dumps(config.to_dict()))
    shown = runner.invoke(cli, ["pretrain", "--config", str(tmp_path / "c.json"), "--out",
                                str(tmp_path / "out2"), "--device", "cpu"])
    assert shown.exit_code == 1
    assert "is not finite" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_frozen_parts_stay_and_others_have_their_rates(folder: Path, tmp_path: Path) -> None:
    config = configured(
        folder, steps=2, eval_every=0, frozen=["videobert.layers.0", "videobert.clip_projection"],
        learning_rates={"videobert.layers": 3e-5, "videobert.layers.1.mlp_in": 7e-5,
                        "decoder": "5e-4"})
    pretrain(config, tmp_path / "out", device="cpu")
    before = load_file(folder / "model" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in before.items():
        if name.startswith(("videobert.layers.0", "videobert.clip_projection")):
            assert torch.equal(tensor, after[name])
    trained = "videobert.layers.1.attention.query.weight"
    assert not torch.equal(before[trained], after[trained])
    model = VideoBertForPreTraining(VideoBertConfig.from_pretrained(folder / "model"))
    rates = {id(parameter): (group["lr"], group["weight_decay"])
             for group in parameter_groups(model, config) for parameter in group["params"]}
    layer = model.videobert.layers[1]
    assert rates[id(layer.attention.query.weight)] == (3e-5, 0.01)
    assert rates[id(layer.mlp_in.weight)] == (7e-5, 0.01)
    assert rates[id(layer.mlp_in.bias)] == (7e-5, 0.0)
    assert rates[id(model.decoder.dense.weight)] == (5e-4, 0.01)
    assert rates[id(model.alignment_head.weight)] == (1e-3, 0.01)
    assert len(rates) == len(list(model.parameters()))
    for key in ("frozen", "learning_rates"):
        value = {"nothing": 1.0} if key == "learning_rates" else ["nothing"]
        with pytest.raises(UsageError, match="'nothing', which no parameter begins with"):
            pretrain(configured(folder, **{key: value}), tmp_path / key, device="cpu")


def test_tensorboard_gets_the_losses(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(configured(folder, steps=4, mixture={"text": 1}), tmp_path / "out", device="cpu")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/words_loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("eval/words_loss")] == [4]


def test_patience_ends_a_run_and_keeps_the_best(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, steps=40, eval_every=2, patience=2, learning_rate=0.0,
                        keep_checkpoints=1)
    result = pretrain(config, tmp_path / "out", device="cpu")
    assert result.stopped_early
    assert result.steps == 6  # the first evaluation is the best; two more bring nothing
    before = load_file(folder / "model" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(before["videobert.layers.0.mlp_in.weight"],
                       after["videobert.layers.0.mlp_in.weight"])


def test_a_disk_that_fills_is_said(folder: Path, tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        with pytest.raises(TrainingError, match="free some space, and go on with --resume"):
            pretrain(configured(folder, eval_every=0), tmp_path / "out", device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert pretrain(configured(folder, eval_every=0), tmp_path / "out", device="cpu",
                    resume=True).steps == 8


# --- what it starts from, what it leaves ------------------------------------------------------


def test_the_result_is_a_model_with_its_vocabulary(folder: Path, words, tmp_path: Path) -> None:
    config = configured(folder, steps=2, eval_every=0, save_dtype="float16")
    pretrain(config, tmp_path / "out", device="cpu")
    bundle = Bundle(default_manager(), str(tmp_path / "out"), "cpu")
    assert bundle.config.visual_vocab_size == 5
    assert bundle.processor.tokenize(["a dog"]) == words(
        ["a dog"], add_special_tokens=False)["input_ids"]
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {
        torch.float16}
    assert {"visual_word_head.dense.weight", "alignment_head.weight", "decoder.dense.weight",
            "logit_scale", "word_head.dense.weight"} <= state.keys()
    assert len(VisualVocabulary.load(tmp_path / "out")) == 5
    assert PretrainConfig.from_file(tmp_path / "out" / "pretrain.json") == config
    # and training can begin with it, with the vocabulary that it has
    again = make_plan(config.replace(model=str(tmp_path / "out"), vocabulary=None))
    assert len(again.vocabulary) == 5
    assert again.start.notes == []


def test_the_features_mean_is_learned_where_it_is_not_known(folder: Path) -> None:
    plan = make_plan(configured(folder, vocabulary=None))
    rows = np.concatenate([plan.corpus.tensors(0)["clip_features"]]).astype(np.float64)
    encoder = plan.start.model.videobert
    assert np.allclose(encoder.feature_mean, rows.mean(0), atol=1e-3)
    assert np.allclose(encoder.feature_std, rows.std(0), atol=1e-3)
    fixed = make_plan(configured(folder)).start.model.videobert  # visual words depend on it
    assert not fixed.feature_mean.any()


def test_the_shortlist_is_what_the_captions_are_written_with(folder: Path, words) -> None:
    plan = make_plan(configured(folder))
    shortlist = set(plan.start.model.decoder.shortlist.tolist())
    corpus = plan.corpus
    train = [item for item in range(len(corpus)) if corpus.splits[item] == "train"]
    used = {int(piece) for item in train for n in range(corpus.row(item, "captions"))
            for piece in corpus.text(item, "caption", n)}
    assert used < shortlist
    assert words.sep_token_id in shortlist
    small = make_plan(configured(folder, model_config={"decoder_shortlist_size": 12}))
    assert 0 < len(small.train.units("caption")) < len(plan.train.units("caption"))


def test_a_bert_checkpoint_is_a_start(bert, folder: Path, tmp_path: Path) -> None:
    source, theirs = bert
    words, video = videobert_tokenizer(str(source))
    assert video == 1
    assert words.convert_tokens_to_ids("[>]") == 1
    assert words.tokenize("a dog [>]") == ["a", "dog", "[>]"]
    make_corpus(tmp_path / "corpus", items(), tokenizer=words)
    config = configured(folder, corpus=[str(tmp_path / "corpus")], init_text=str(source),
                        backbone=str(folder / "model"), vocabulary=None, steps=2, eval_every=0)
    plan = make_plan(config)
    ours = plan.start.model.eval()
    ids = torch.tensor([[3, 7, 5, 9, 4]])
    labels = torch.tensor([[-100, -100, 8, -100, -100]])
    with torch.no_grad():
        wanted = theirs(ids)
        assert torch.allclose(ours(ids).word_logits, wanted.logits, atol=1e-5)
        assert torch.allclose(ours(ids, labels=labels).loss, theirs(ids, labels=labels).loss,
                              atol=1e-5)
    assert any("visual_embeddings" in note for note in plan.start.notes)
    assert not any("text_embeddings" in note or "word_head" in note for note in plan.start.notes)
    pretrain(config, tmp_path / "out", device="cpu")
    assert Bundle(default_manager(), str(tmp_path / "out"), "cpu").config.video_token_id == 1


def test_a_start_that_is_no_bert_is_refused(tmp_path: Path, folder: Path) -> None:
    for source, reason in ((MINI, "is a videobert model, not BERT"),
                           (tmp_path / "none", "cannot start from the BERT checkpoint")):
        with pytest.raises(ModelError, match=reason):
            make_plan(configured(folder, init_text=str(source)))


# --- what does not go together ----------------------------------------------------------------


def test_what_was_made_for_another_model_is_refused(folder: Path, words, tmp_path: Path) -> None:
    make_corpus(tmp_path / "tokens", items(3, 0, 3))  # in mini's words
    with pytest.raises(CorpusError, match="was tokenized for another model"):
        make_plan(configured(folder, corpus=[str(tmp_path / "tokens")]))
    make_bundle(tmp_path / "seeing", backbone=True, words=words)
    with pytest.raises(CorpusError, match="made by backbone test, but"):
        make_plan(configured(folder, model=str(tmp_path / "seeing")))
    make_corpus(tmp_path / "narrow", iter(
        [CorpusItem(f"p{n}", np.zeros((1, 3)), captions=["a dog"]) for n in range(9)]),
        tokenizer=words)
    with pytest.raises(CorpusError, match=f"3 wide, but the model reads {WIDTH}"):
        make_plan(configured(folder, corpus=[str(tmp_path / "narrow")]))
    vocabulary = VisualVocabulary.load(folder / "vocabulary")
    (tmp_path / "vocabulary").mkdir()
    VisualVocabulary(vocabulary._tree.levels, branching=5, space="embeddings").save(
        tmp_path / "vocabulary")
    with pytest.raises(ModelError, match="one of 6 embeddings"):
        make_plan(configured(folder, vocabulary=str(tmp_path / "vocabulary")))


def test_new_visual_words_begin_where_their_centroids_are(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, steps=1, eval_every=0, learning_rate=0.0,
                        model_config={"visual_input": "both", "visual_vocab_size": 5})
    model = make_plan(config).start.model
    centroids = VisualVocabulary.load(folder / "vocabulary").centroids
    words = model.videobert.visual_embeddings.words.weight.detach()[: len(centroids)]
    pairs = torch.triu_indices(len(words), len(words), 1)
    apart = [torch.cdist(rows, rows)[pairs[0], pairs[1]].numpy() for rows in (centroids, words)]
    assert np.corrcoef(*apart)[0, 1] > 0.5
    spread = model.videobert.text_embeddings.words.weight.std()
    assert float(words.std()) == pytest.approx(float(spread), rel=1e-3)
    # one that was trained is not placed anew
    trained = pretrain(config, tmp_path / "out", device="cpu").out
    weights = load_file(trained / "model.safetensors")
    name = "videobert.visual_embeddings.words.weight"
    weights[name] += 1
    save_file(weights, trained / "model.safetensors", metadata={"format": "pt"})
    again = make_plan(config.replace(model=str(trained), vocabulary=None)).start.model
    assert torch.equal(again.videobert.visual_embeddings.words.weight, weights[name])


def test_a_vocabulary_of_another_backbone_is_refused(folder: Path, words, tmp_path: Path) -> None:
    make_bundle(tmp_path / "seeing", backbone=True, words=words)
    key = Bundle(default_manager(), str(tmp_path / "seeing"), "cpu", "float32").visual_key
    pictures = [CorpusItem(f"p{n}", np.random.default_rng(n).normal(size=(1, 1280)),
                           captions=["a dog"]) for n in range(9)]
    make_corpus(tmp_path / "corpus", iter(pictures), tokenizer=words, backbone=key)
    levels = [(torch.randn(3, 1280), torch.tensor([3]))]
    for name, backbone in (("own", key), ("other", "0123456789abcdef")):
        (tmp_path / name).mkdir()
        VisualVocabulary(levels, branching=3, backbone=backbone).save(tmp_path / name)
    config = configured(folder, model=str(tmp_path / "seeing"),
                        corpus=[str(tmp_path / "corpus")], vocabulary=str(tmp_path / "own"))
    assert len(make_plan(config).vocabulary) == 3
    with pytest.raises(ModelError, match="another backbone"):
        make_plan(config.replace(vocabulary=str(tmp_path / "other")))


@pytest.mark.parametrize(("changes", "reason"), [
    ({"mixture": {"video": 1}, "vocabulary": None}, "needs a visual vocabulary"),
    ({"mixture": {"caption": 1}, "model_config": {"num_decoder_layers": 0}}, "has no decoder"),
    ({"model_config": {"visual_input": "words"}, "vocabulary": None}, "visual_input"),
    ({"model_config": {"hiden_size": 3}}, "did you mean 'hidden_size'"),
    ({"model_config": {"backbone": None}}, "cannot be set"),
    ({"model_config": {"num_attention_heads": 5}}, "model_config"),
    ({"corpus": []}, "name a corpus"),
])
def test_what_cannot_be_is_said_before_the_first_step(folder: Path, changes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        make_plan(configured(folder, **changes))


@pytest.mark.parametrize(("changes", "reason"), [
    ({"learning_rat": 1}, "did you mean 'learning_rate'"),
    ({"steps": 0}, "steps is 0"),
    ({"batch_size": 1.5}, "batch_size is 1.5, but must be a whole number"),
    ({"precision": "float8"}, "precision is 'float8'"),
    ({"mixture": {"jiont": 1}}, "did you mean 'joint'"),
    ({"mixture": {"joint": 0}}, "gives every kind"),
    ({"batch_sizes": {"joint": 0}}, "batch_sizes.joint"),
    ({"loss_weights": {"words": float("nan")}}, "loss_weights.words"),
    ({"examples": {"joint": 1}}, "examples.joint is no setting"),
    ({"learning_rate": "fast"}, "must be a number"),
    ({"frozen": "a"}, "list of strings"),
    ({"patience": 1, "eval_every": 0}, "patience needs evaluations"),
    ({"epochs": 0}, "epochs"),
])
def test_settings_out_of_range_are_refused(changes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        PretrainConfig.from_dict(changes)


def test_settings_survive_their_file(tmp_path: Path) -> None:
    config = PretrainConfig.from_dict({
        "corpus": "a", "learning_rates": {"decoder": "1e-4"}, "examples": {"mask_rate": 0.3},
        "mixture": {"joint": 2}, "learning_rate": "3e-4",
        "model_config": {"num_decoder_layers": 2}})
    config.save(tmp_path / "c.json")
    assert PretrainConfig.from_file(tmp_path / "c.json") == config
    (tmp_path / "c.yaml").write_text("corpus: [a]\nlearning_rate: 3e-4\nexamples:\n  join: 0.1\n")
    assert PretrainConfig.from_file(tmp_path / "c.yaml").examples.join == 0.1
    for text in ("- a", "a: [", "\x00"):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(UsageError, match="bad"):
            PretrainConfig.from_file(tmp_path / "bad")
    assert merged({"a": {"b": 1}}, "a.c", 2) == {"a": {"b": 1, "c": 2}}
    assert merged({}, "learning_rates.videobert.layers", 1) == {
        "learning_rates": {"videobert.layers": 1}}


def test_a_run_goes_on_only_as_it_began(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, steps=2, eval_every=0)
    pretrain(config, tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match="go on with it"):
        pretrain(config, tmp_path / "out", device="cpu")
    with pytest.raises(UsageError, match="began with another learning_rate, seed"):
        pretrain(config.replace(learning_rate=1.0, seed=3), tmp_path / "out", device="cpu",
                 resume=True)
    assert pretrain(config, tmp_path / "nothing", device="cpu", resume=True).steps == 2
    result = pretrain(config.replace(log_every=5), tmp_path / "out", device="cpu", resume=True)
    assert result.steps == 2


# --- the command ------------------------------------------------------------------------------


def test_the_command_makes_a_corpus_trains_and_goes_on(folder: Path, tmp_path: Path) -> None:
    rows = [{"id": f"t{n}", "text": SENTENCES[n % 5]} for n in range(30)]
    for n in range(12):
        np.save(tmp_path / f"{n}.npy", np.random.default_rng(n).normal(size=(3, WIDTH)))
        rows.append({"id": f"v{n}", "features": f"{n}.npy", "caption": SENTENCES[n % 5],
                     "split": "val" if n < 3 else "train"})
    rows.append({"id": "gone", "video": "gone.mp4"})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.yaml").write_text("learning_rate: 1e-3\nbatch_size: 16\nlog_every: 2\n")
    command = ["pretrain", "--out", str(tmp_path / "out"), "--device", "cpu"]
    runner = CliRunner()
    result = runner.invoke(cli, [
        *command, "--manifest", str(tmp_path / "m.jsonl"), "--model", str(folder / "model"),
        "--config", str(tmp_path / "c.yaml"), "--batch-size", "4", "--steps", "6", "--profile",
        "--set", "mixture.text=2", "--set", "mixture.contrast=1", "--set",
        "examples.mask_rate=[0.2, 0.4]", "--set", "eval_every=3", "--set", "save_every=3",
        "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["steps"], report["items"], report["skipped"]) == (6, 42, 1)
    assert report["metrics"]["eval_loss"] > 0
    for words in ("corpus: 42 items with 36 clips", "gone: ", "no such file", "67% text",
                  "33% contrast", "step 6 of 6: loss", "validation: step 6", "tokens/s"):
        assert words in result.stderr
    assert list((tmp_path / "out" / "profile").glob("*.json"))
    config = PretrainConfig.from_file(tmp_path / "out" / "pretrain.json")
    assert (config.batch_size, config.learning_rate, config.examples.mask_rate) == (
        4, 1e-3, (0.2, 0.4))

    again = runner.invoke(cli, [*command, "--resume"])
    assert again.exit_code == 0, again.stderr
    assert "vbkit run … --model" in again.stdout
    twice = runner.invoke(cli, [*command, "--corpus", str(tmp_path / "out" / "corpus")])
    assert twice.exit_code == 2
    assert "--resume" in twice.stderr


@pytest.mark.parametrize("arguments", [
    [], ["--corpus", "nothing"], ["--corpus-only", "--corpus", "x"], ["--set", "steps"],
    ["--config", "none.yaml"], ["--manifest", "none.csv", "--corpus", "a", "--corpus", "b"],
])
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, ["pretrain", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code in (1, 2)
    assert result.stderr.startswith("vbkit: error:")
    assert len(result.stderr.strip().splitlines()) == 1


def test_help_needs_no_torch() -> None:
    code = ("import sys\nfrom vbkit.cli import cli\n"
            "cli.main(['pretrain', '--help'], standalone_mode=False)\n"
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--init-text" in done.stdout


@pytest.mark.slow
def test_two_processes_train_as_one(folder: Path, tmp_path: Path) -> None:
    configured(folder, steps=4).save(tmp_path / "c.json")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vbkit",
         "pretrain", "--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "out"),
         "--device", "cpu", "--json"], capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 4
    assert Bundle(default_manager(), str(tmp_path / "out"), "cpu").config.visual_vocab_size == 5


# --- what the documentation says --------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "docs" / "pretraining.md").read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    for settings, heading in ((PretrainConfig, "## Settings"), (ExampleOptions, "### Examples")):
        part = PAGE.partition(heading)[2].partition("\n#")[0]
        rows = re.findall(r"^\| (`[^|]+) \|([^|]*)\|", part, re.MULTILINE)
        defaults: dict[str, str] = {}
        for names, values in rows:
            found = re.findall(r"`(\w+)`", names)
            given = values.strip().split(", ") if len(found) > 1 else [values.strip()]
            defaults |= dict(zip(found, given * len(found), strict=False))
        assert set(defaults) == {field.name for field in dataclasses.fields(settings)}
        for field in dataclasses.fields(settings):
            value = getattr(settings(), field.name)
            if isinstance(value, int | float):
                assert float(defaults[field.name]) == value, field.name


def test_the_documented_settings_are_valid() -> None:
    import yaml

    text = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
    assert PretrainConfig.from_dict(yaml.safe_load(text)).learning_rates["decoder"] == 5e-4


def test_the_documented_arrays_become_a_corpus(tmp_path: Path, monkeypatch, engine) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vbkit.engine.engine.Bundle", lambda *arguments: engine.bundle)
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], {"__name__": "example"})
    assert len(Corpus.open("corpus")) == 3
