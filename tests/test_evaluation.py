"""`vbkit evaluate` on a model that has learnt four things, and on input that is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import vbkit
from vbkit.cli import cli
from vbkit.engine.windows import spread
from vbkit.errors import ManifestError, ModelError, UsageError
from vbkit.evaluation.alignment import derangement
from vbkit.evaluation.clips import ClipSequence, load_clip_features
from vbkit.evaluation.cloze import ClozeTask, _gap_scores, _resolve, load_cloze, zero_shot_cloze
from vbkit.evaluation.evaluate import evaluate
from vbkit.evaluation.examples import read_captioned
from vbkit.evaluation.heads import pretraining_model

NOUNS, VERBS = ("dog", "cat", "man", "car"), ("running", "sleeping", "singing", "turning")
PIECES = ("[PAD]", "[>]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NOUNS, *VERBS, "a", "the", "is",
          "there", ".", "horse", "cow", "very", "eating", "reading", "two", "not", ",", "!",
          "dogs", "man", "##ate", "##e")
WIDTH = 16


def video(kind: int, seed: int, clips: int = 1) -> torch.Tensor:
    """Clip features of one of four things, with noise."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.eye(4, WIDTH)[kind] + 0.1 * torch.randn(clips, WIDTH, generator=generator)


def captions(kind: int) -> list[str]:
    return [f"A {NOUNS[kind]} is {VERBS[kind]} .", f"The {NOUNS[kind]} is there ."]


def word_pieces():
    """A BERT tokenizer of a few words."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(PIECES))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", additional_special_tokens=["[>]"])


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A bundle whose tiny VideoBERT was trained for a moment on captions of four things."""
    from vbkit.model import VideoBertConfig, VideoBertForPreTraining, VideoBertProcessor

    folder = tmp_path_factory.mktemp("evaluation") / "model"
    torch.manual_seed(0)
    tokenizer = word_pieces()
    config = VideoBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, visual_feature_size=WIDTH,
        max_visual_positions=8, shared_size=32, projection_hidden_size=0, max_text_length=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_decoder_layers=1,
        decoder_intermediate_size=64, max_decoder_positions=16, pad_token_id=0, video_token_id=1,
        cls_token_id=3, sep_token_id=4, mask_token_id=5)
    model = VideoBertForPreTraining(config).train()
    processor = VideoBertProcessor(tokenizer, max_text_length=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    cls, gap, end, sep = 3, 5, 1, 4
    kinds = [0, 1, 2, 3] * 4
    texts = processor.tokenize([captions(k)[i // 4 % 2] for i, k in enumerate(kinds)])
    whole, whole_mask = processor.pad([[cls, *row, sep] for row in texts])
    ids, mask = processor.pad([[cls, *row, end] for row in texts])
    aligned = torch.tensor([1] * 8 + [0] * 8)
    for step in range(80):
        features = torch.stack([video(k, 1000 + 16 * step + i, clips=1 + step % 3)
                                for i, k in enumerate(kinds)])
        # nouns and verbs rather than the rest, and often both
        hidden = torch.rand(ids.shape) < torch.where((ids > 5) & (ids < 14), 0.8, 0.2 * (ids > 5))
        seen = features.clone()
        seen[8:] = features[8:].roll(1 + step // 3 % 3, 0)  # another thing than the text says
        for batch in (
            {"input_ids": torch.where(hidden, gap, ids), "attention_mask": mask,
             "visual_features": seen, "alignment_labels": aligned,
             "labels": torch.where(hidden & aligned[:, None].bool(), ids, -100)},
            {"input_ids": torch.where(hidden, gap, whole), "attention_mask": whole_mask,
             "labels": torch.where(hidden, whole, -100)},
            *({"input_ids": torch.tensor([[cls, end]] * 4), "visual_features": features[i : i + 4],
               "text_ids": whole[i : i + 4], "text_mask": whole_mask[i : i + 4],
               "caption_ids": whole[i : i + 4]} for i in (4 * (step // 3 % 2),)),
        ):
            model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "cloze.json").write_text(json.dumps({
        "template": "a [NOUN] is [VERB] .", "nouns": [*NOUNS[1:], ["dog", "dogs"], "horse", "cow"],
        "verbs": [*VERBS, "eating", "reading"]}))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Sixteen videos of the four things, as precomputed features with two captions each."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(16):
        features = video(i % 4, i, clips=1 + i % 3)
        if i % 2:
            np.save(folder / f"{i}.npy", features.numpy())
        else:
            save_file({"clip_features": features}, folder / f"{i}.safetensors")
        name = f"{i}.npy" if i % 2 else f"{i}.safetensors"
        rows += [{"features": name, "caption": caption} for caption in captions(i % 4)]
    pd.DataFrame(rows).to_csv(folder / "list.csv", index=False)
    return folder


def run(*arguments: object):
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments), "--device", "cpu"])


def numbers(*arguments: object, status: int = 0) -> dict:
    result = run(*arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


# --- the four tasks ---------------------------------------------------------------------------


def test_cloze_is_answered_from_the_video_and_not_from_the_text(model_folder, data, tmp_path
                                                               ) -> None:
    found = numbers("--task", "cloze", "--manifest", data / "list.csv", "--model", model_folder,
                    "--predictions", tmp_path / "said.csv", "--out", tmp_path / "found.json")
    assert (found["n_videos"], found["n_captions"], found["n_failed"]) == (16, 32, 0)
    assert found["noun_at_1"] == found["verb_at_1"] == 1
    assert found["n_noun_videos"] == found["n_verb_videos"] == 16
    assert found["text_only_noun_at_1"] == 0.25  # one word for all
    assert found["text_only_noun_at_5"] == 1
    assert 1 <= found["word_perplexity"] < found["text_only_word_perplexity"]
    assert found["word_accuracy"] > found["text_only_word_accuracy"]
    assert json.loads((tmp_path / "found.json").read_text()) == found
    said = pd.read_csv(tmp_path / "said.csv")
    assert [words.split()[0] for words in said["nouns"]] == [NOUNS[i % 4] for i in range(16)]
    assert said["noun_right"].all()


def test_cloze_is_asked_where_there_is_an_answer(model_folder, tmp_path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", video(i, i).numpy())
    pd.DataFrame([
        {"features": "0.npy", "caption": "Two dogs !"},  # another form; no verb
        {"features": "1.npy", "caption": "a dog, not a cat"},  # two right answers
        {"features": "2.npy", "caption": "a manatee is sleeping"},  # no candidate is its noun
    ]).to_csv(tmp_path / "list.csv", index=False)
    found = numbers("--task", "cloze", "--manifest", tmp_path / "list.csv",
                    "--model", model_folder)
    assert (found["n_noun_videos"], found["noun_at_1"]) == (2, 1)
    assert (found["n_verb_videos"], found["verb_at_1"]) == (1, 0)
    assert found["verb_at_5"] in (0, 1)
    (tmp_path / "words.json").write_text(json.dumps({"nouns": ["cat", "cow"]}))
    found = numbers("--task", "cloze", "--manifest", tmp_path / "list.csv", "--model",
                    model_folder, "--words", tmp_path / "words.json", "--template",
                    "The [NOUN] is [MASK] .")
    assert (found["n_noun_videos"], found["noun_at_1"]) == (1, 1)
    assert (found["n_verb_videos"], found["verb_at_1"]) == (0, None)


def test_retrieval(model_folder, data) -> None:
    found = numbers("--task", "retrieval", "--manifest", data / "list.csv", "--limit", "4",
                    "--model", model_folder)
    assert found["n_videos"] == 4
    assert found["video_to_text_r1"] == found["text_to_video_r1"] == 1
    assert found["video_to_text_median_rank"] == 1
    assert found["text_to_text_r1"] == 1
    assert found["n_text_to_text"] == 4
    # of 16 videos, four look and read the same
    found = numbers("--task", "retrieval", "--manifest", data / "list.csv", "--model",
                    model_folder)
    assert found["text_to_video_r1"] <= 0.5
    assert found["text_to_video_r5"] > 0.9
    assert found["text_to_text_r1"] == 0  # four equal captions each: a tie is no find


def test_captions_are_written_and_scored(model_folder, data, tmp_path) -> None:
    found = numbers("--task", "caption", "--manifest", data / "list.csv", "--model", model_folder,
                    "--predictions", tmp_path / "said.csv", "--beams", "2")
    said = pd.read_csv(tmp_path / "said.csv").set_index("video_id")["caption"]
    assert said["0.safetensors"] in ("a dog is running.", "the dog is there.")
    assert found["bleu_4"] > 0.9
    assert found["rouge_l"] > 0.9
    assert found["cider"] > 3
    if found["meteor"] is None:
        assert "METEOR" in found["notes"][0]
    short = numbers("--task", "caption", "--manifest", data / "list.csv", "--model", model_folder,
                    "--limit", "4", "--beams", "1", "--max-pieces", "2")
    assert short["bleu_4"] == 0
    result = run("--task", "caption", "--manifest", data / "list.csv", "--model", model_folder,
                 "--max-pieces", "99")
    assert result.exit_code == 2
    assert "15 word pieces" in result.stderr


def test_alignment(model_folder, data, tmp_path) -> None:
    found = numbers("--task", "alignment", "--manifest", data / "list.csv", "--limit", "4",
                    "--model", model_folder, "--predictions", tmp_path / "pairs.csv")
    assert found["accuracy"] > 0.8
    assert found["roc_auc"] > 0.85
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    assert pairs["aligned"].sum() == len(pairs) / 2 == 8
    own = {f"{i}.npy" if i % 2 else f"{i}.safetensors": captions(i) for i in range(4)}
    assert all((row.text in own[row.video_id]) == row.aligned for row in pairs.itertuples())


def test_alignment_needs_two_videos(model_folder, data) -> None:
    result = run("--task", "alignment", "--manifest", data / "list.csv", "--limit", "1",
                 "--model", model_folder)
    assert result.exit_code == 2
    assert "two videos" in result.stderr


def test_a_batch_does_not_change_its_members(model_folder, data) -> None:
    """Videos of other lengths in the batch, and so padding, change nothing."""
    engine = vbkit.Engine(model=str(model_folder), device="cpu")
    together = evaluate(engine, "alignment", data / "list.csv", limit=6)
    from vbkit.evaluation import alignment as module

    size, module._BATCH = module._BATCH, 1
    try:
        alone = evaluate(engine, "alignment", data / "list.csv", limit=6)
    finally:
        module._BATCH = size
    np.testing.assert_allclose([row["score"] for row in together.predictions],
                               [row["score"] for row in alone.predictions], atol=1e-4)


# --- manifests --------------------------------------------------------------------------------


def test_rows_of_one_video_are_put_together(tmp_path) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    rows = [{"id": "a#0", "video": "a.jpg", "caption": "one"},
            {"id": "b", "video": "b.jpg", "caption": ["three", "four "]},
            {"id": "a#1", "video": "a.jpg", "caption": "two"},
            {"id": "b", "video": "b.jpg", "caption": "five"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_captioned(tmp_path / "m.jsonl").examples
    assert [(e.video_id, e.captions) for e in found] == [
        ("a#0", ("one", "two")), ("b", ("three", "four", "five"))]
    frame = pd.DataFrame({"video": ["a.jpg", "b.jpg"], "caption": [["one", "two"], ["it's 3"]]})
    frame.to_csv(tmp_path / "m.csv", index=False)
    frame.to_parquet(tmp_path / "m.parquet")
    for name in ("m.csv", "m.parquet"):
        assert [e.captions for e in read_captioned(tmp_path / name).examples] == [
            ("one", "two"), ("it's 3",)]
    assert len(read_captioned(tmp_path / "m.csv", limit=1).examples) == 1


def test_rows_that_cannot_be_used_cost_themselves(model_folder, data, tmp_path) -> None:
    good = [json.dumps({"features": str(data / f"{i}.npy"), "caption": captions(i % 4)})
            for i in (1, 3, 5)]
    np.save(tmp_path / "narrow.npy", np.zeros((2, WIDTH - 1), np.float32))
    np.save(tmp_path / "nan.npy", np.full((2, WIDTH), np.nan))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    bad = [{"features": "narrow.npy"}, {"features": "nan.npy"}, {"features": "gone.npy"},
           {"features": "broken.npy"}, {"video": "gone.mp4"}, {"text": "no picture"}]
    lines = [*good, *(json.dumps({**row, "caption": "x"}) for row in bad),
             json.dumps({"features": str(data / "0.safetensors")})]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    result = run("--task", "retrieval", "--manifest", tmp_path / "m.jsonl", "--model",
                 model_folder)
    assert result.exit_code == 1, repr(result.output)
    assert result.stdout, result.output
    found = json.loads(result.stdout)
    assert (found["n_videos"], found["n_failed"]) == (3, 7)
    for words in ("narrow.npy: clip features are 15 wide", "nan.npy: ", "gone.npy: no such file",
                  "broken.npy: ", "gone.mp4: no such file", "has no caption",
                  "neither video nor features"):
        assert words in result.stderr, words
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("name", "content", "words"), [
    ("m.csv", "features\n0.npy\n", "no row has a caption"),
    ("m.csv", "features,caption\n0.npy,\n", "no row has a caption"),
    ("m.csv", "image,caption\na.jpg,x\n", "a column video"),
    ("m.jsonl", '{"features": "0.npy", "caption": 3}', "not a string"),
    ("m.txt", "", "no manifest"),
    ("m.csv", None, "no such file"),
])
def test_wrong_manifests_are_wrong_usage(tmp_path, name, content, words) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=words):
        read_captioned(tmp_path / name)


def test_nothing_that_can_be_read_is_an_error(model_folder, tmp_path) -> None:
    (tmp_path / "m.csv").write_text("video,caption\ngone.mp4,a dog\n")
    result = run("--task", "retrieval", "--manifest", tmp_path / "m.csv", "--model", model_folder)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "gone.mp4" in result.stderr


# --- models and usage -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_folder(model_folder, tmp_path_factory) -> Path:
    """The model without any head, without a decoder, without words for the cloze."""
    folder = tmp_path_factory.mktemp("bare") / "model"
    shutil.copytree(model_folder, folder)
    (folder / "cloze.json").unlink()
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if name.startswith("videobert.")},
              folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_decoder_layers": 0}))
    return folder


@pytest.mark.parametrize(("task", "words"), [
    ("cloze", "no word head"), ("caption", "no decoder"), ("alignment", "no alignment head")])
def test_a_missing_part_is_named(bare_folder, model_folder, data, task, words) -> None:
    result = run("--task", task, "--manifest", data / "list.csv", "--model", bare_folder,
                 *(["--words", model_folder / "cloze.json"] if task == "cloze" else []))
    assert result.exit_code == 1
    assert words in result.stderr
    assert "vbkit pretrain" in result.stderr
    assert result.stdout == ""


def test_a_bare_model_still_retrieves(bare_folder, data) -> None:
    found = numbers("--task", "retrieval", "--manifest", data / "list.csv", "--limit", "4",
                    "--model", bare_folder)
    assert found["text_to_video_r1"] == 1


@pytest.mark.parametrize(("arguments", "words"), [
    (["--task", "sentiment"], "needs a column label"),
    (["--task", "cloze", "--head", "x"], "are for tasks"),
    (["--task", "clozes"], "no evaluation 'clozes'"),
    (["--task", "cloze", "--words", "gone.json"], "no such file"),
    (["--task", "cloze", "--template", "no gap"], "[NOUN]"),
    (["--task", "retrieval", "--out", "gone/x.json"], "no folder"),
    (["--task", "retrieval", "--limit", "0"], "limit"),
])
def test_wrong_usage(model_folder, data, arguments, words) -> None:
    result = run(*arguments, "--manifest", data / "list.csv", "--model", model_folder)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stdout == ""


def test_several_gaps_ask_for_a_word_in_any_of_them(model_folder, data) -> None:
    """The sequence is the same, whichever of its gaps is asked for."""
    engine = vbkit.Engine(model=str(model_folder), device="cpu")
    nouns = (("dog",), ("cat",), ("man", "men"))
    videos = [ClipSequence(str(kind), tuple(captions(kind)), video(kind, kind))
              for kind in range(3)]
    encoder = engine.encoder

    def gaps(template: str) -> torch.Tensor:
        task = ClozeTask(template, nouns)
        pieces, slots, ids = _resolve(encoder.bundle, task)
        model = pretraining_model(encoder.bundle, "word_head")
        return _gap_scores(encoder, model, pieces, slots, ids, videos)["noun"]

    first = gaps("the [NOUN] is [MASK] .").softmax(-1)
    second = gaps("the [MASK] is [NOUN] .").softmax(-1)
    both = gaps("the [NOUN] is [NOUN] .")
    assert torch.allclose(both, 1 - (1 - first) * (1 - second), atol=1e-5)
    found = zero_shot_cloze(encoder, videos, ClozeTask("the [NOUN] is [NOUN] .", nouns))
    assert found.metrics["n_noun_videos"] == 3


def test_no_words_for_the_cloze(bare_folder, data) -> None:
    result = run("--task", "cloze", "--manifest", data / "list.csv", "--model", bare_folder)
    assert result.exit_code == 2
    assert "--words" in result.stderr


@pytest.mark.parametrize(("cloze", "words"), [
    ({"template": "a [NOUN]", "nouns": ["dog", "jack-o-lantern", "xylophonist"]},
     "not one word piece"),
    ({"template": "a [NOUN]", "nouns": ["ice cream"]}, "not one word"),
    ({"template": "a [NOUN]", "nouns": ["Dog"]}, "lower case"),
    ({"template": "a [NOUN]", "nouns": ["dog", ["dog", "dogs"]]}, "twice"),
    ({"template": "a [NOUN] [VERB]", "nouns": ["dog"]}, "no verbs"),
    ({"template": "no gap at all", "nouns": ["dog"]}, "write [NOUN]"),
    ({"template": "a [NOUN]", "nouns": "dog"}, "list of words"),
    ({"template": "a [NOUN]", "nouns": [[]]}, "not one word"),
    ({"nouns": ["dog"]}, "no template"),
    ({"template": "a [NOUN]" + " very" * 40, "nouns": ["dog"]}, "word pieces long"),
    ([], "an object"),
])
def test_wrong_words_for_the_cloze(model_folder, data, tmp_path, cloze, words) -> None:
    (tmp_path / "words.json").write_text(json.dumps(cloze))
    result = run("--task", "cloze", "--manifest", data / "list.csv", "--model", model_folder,
                 "--words", tmp_path / "words.json")
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_candidates_that_are_no_word_pieces_are_named(model_folder) -> None:
    engine = vbkit.Engine(model=str(model_folder), device="cpu")
    task = ClozeTask("a [NOUN]", (("dog",), ("xylophonist",), ("skateboarder",)))
    from vbkit.evaluation.cloze import check_cloze

    with pytest.raises(UsageError, match="xylophonist, skateboarder"):
        check_cloze(engine.bundle, task)
    assert load_cloze(engine.bundle).nouns[3] == ("dog", "dogs")


def test_a_model_that_gives_nan_is_an_error(model_folder, data, tmp_path) -> None:
    folder = tmp_path / "nan"
    shutil.copytree(model_folder, folder)
    state = load_file(folder / "model.safetensors")
    for name in ("word_head.dense.weight", "alignment_head.weight",
                 "videobert.clip_projection.linear.weight"):
        state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    engine = vbkit.Engine(model=str(folder), device="cpu")
    for task in ("cloze", "alignment", "retrieval"):
        with pytest.raises(ModelError, match="not finite"):
            evaluate(engine, task, data / "list.csv")


# --- parts ------------------------------------------------------------------------------------


def test_a_derangement_leaves_nothing_in_place() -> None:
    for count in (2, 3, 10, 101):
        for seed in range(5):
            order = derangement(count, seed)
            assert sorted(order) == list(range(count))
            assert (order != np.arange(count)).all()
    assert (derangement(50, 3) == derangement(50, 3)).all()
    assert (derangement(50, 3) != derangement(50, 4)).any()


def test_long_videos_are_thinned_evenly() -> None:
    clips = torch.arange(100.0)[:, None]
    assert spread(clips, 4).flatten().tolist() == [0, 33, 66, 99]
    assert spread(clips, 100) is clips


def test_features_of_one_clip_may_be_a_vector(tmp_path) -> None:
    np.save(tmp_path / "one.npy", np.arange(WIDTH, dtype=np.float16))
    assert load_clip_features(tmp_path / "one.npy").shape == (1, WIDTH)


@pytest.mark.parametrize(("apart", "together"), [
    ("a man ' s t - shirt, isn ' t it.", "a man's t-shirt, isn't it."),
    ("two dogs ' ball on the grass .", "two dogs ' ball on the grass."),
    ("black - and - white at 2 : 30", "black-and-white at 2:30"),
])
def test_what_the_decoder_writes_is_joined_to_words(apart, together) -> None:
    from vbkit.model.processing import joined

    assert joined(apart) == together


# --- videos -----------------------------------------------------------------------------------


def test_a_picture_and_its_features_give_the_same(engine, tmp_path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (features,) = engine.encode([tmp_path / "a.png"], {"clip_features"})
    np.save(tmp_path / "a.npy", features.clip_features.numpy())
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    path, text = tmp_path / "m.jsonl", ["coloured noise", "a television"]
    scores = []
    for row in ({"video": "a.png"}, {"video": "moved.png", "features": "a.npy"}):
        path.write_text("\n".join(json.dumps({**r, "caption": text})
                                  for r in ({"video": "broken.mp4"}, row)))
        found = evaluate(engine, "retrieval", path)
        assert (found.n_videos, found.n_captions) == (1, 2)
        assert [failure.video_id for failure in found.failures] == ["broken.mp4"]
        scores.append(found.metrics)
    assert scores[0] == scores[1]
    assert scores[0]["text_to_video_r1"] == 1  # the only one
    assert scores[0]["text_to_text_r1"] is None
