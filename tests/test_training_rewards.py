"""Rewarded captions: what is drawn, what it is worth, and that training makes it worth more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_generation import CLS, SEP, inputs, made
from training_files import SENTENCES, make_bert, make_bundle, make_corpus

from vbkit.errors import UsageError
from vbkit.evaluation.captions import Cider, cider
from vbkit.model import VideoBertForPreTraining
from vbkit.training.config import PretrainConfig
from vbkit.training.corpus import CorpusItem
from vbkit.training.pretraining import pretrain, videobert_tokenizer
from vbkit.training.rewards import (
    caption_rewards,
    draw_captions,
    drawn_and_judged,
    encode_for_captions,
)

DOG, CAT, RUNS, SLEEPS, FAST = range(200, 205)
TRUE = [[[DOG, RUNS, FAST, SEP], [DOG, RUNS, SEP]], [[CAT, SLEEPS, SEP], [CAT, FAST, SEP]]]


def test_greedy_captions_are_those_of_generate() -> None:
    writer, trainee = made(), made(VideoBertForPreTraining)
    trainee.load_state_dict(writer.state_dict(), strict=False)
    memory, mask = encode_for_captions(trainee, inputs())
    drawn = draw_captions(trainee.decoder, trainee.videobert.text_embeddings.words, memory, mask,
                          8, greedy=True)
    assert torch.equal(drawn, writer.generate(**inputs(), max_new_tokens=8))


def test_drawn_captions_end_once_and_stay_on_the_shortlist() -> None:
    model = made(VideoBertForPreTraining, decoder_shortlist_size=4)
    model.decoder.set_shortlist(torch.tensor([SEP, DOG, CAT, RUNS]))
    memory, mask = encode_for_captions(model, inputs())
    torch.manual_seed(0)
    drawn = draw_captions(model.decoder, model.videobert.text_embeddings.words,
                          memory.repeat_interleave(40, 0), mask.repeat_interleave(40, 0), 10)
    assert (drawn[:, 0] == CLS).all()
    assert len({tuple(row) for row in drawn.tolist()}) > 20
    for row in drawn[:, 1:].tolist():
        written = row[: row.index(SEP)] if SEP in row else row
        assert set(written) <= {DOG, CAT, RUNS}
        assert set(row[len(written) + 1 :]) <= {0}


def test_the_reward_is_cider_of_word_pieces() -> None:
    scorer = Cider(TRUE)
    ids = torch.tensor([[CLS, DOG, RUNS, SEP, 0], [CLS, CAT, RUNS, SEP, 0],
                        [CLS, CAT, SLEEPS, SEP, 0], [CLS, DOG, DOG, DOG, SEP]])
    found = caption_rewards(ids, TRUE, scorer, pad=0).tolist()
    words = [["d", "r", "."], ["c", "r", "."], ["c", "s", "."], ["d", "d", "d", "."]]
    true = [[["d", "r", "f", "."], ["d", "r", "."]], [["c", "s", "."], ["c", "f", "."]]]
    assert np.mean(found) == pytest.approx(
        cider([words[0], words[2]], true) / 2
        + (found[1] + found[3]) / 4)
    assert found[0] > found[1]
    assert found[2] > found[3]


def test_captions_are_judged_by_the_others_of_their_video() -> None:
    model = made(VideoBertForPreTraining).train()
    torch.manual_seed(3)
    references = [[[7, 8, SEP]], [[9, SEP]]]
    ids, advantage, mean = drawn_and_judged(model, inputs(), references, Cider(references),
                                            samples=3, length=6)
    assert ids.shape[0] == 6
    assert advantage.view(2, 3).sum(1).abs().max() < 1e-5
    assert mean >= 0
    assert model.training


def test_the_loss_of_weighted_captions_is_that_of_each() -> None:
    model = made(VideoBertForPreTraining)
    captions = torch.tensor([[CLS, DOG, SEP], [CLS, CAT, SEP], [CLS, RUNS, SEP], [CLS, FAST, SEP]])
    weights = torch.tensor([1.0, -1.0, 0.5, 2.0])
    together = model(**inputs(), caption_ids=captions, caption_weights=weights).losses["caption"]
    # the first two are of the first video
    apart = [model(**inputs(), caption_ids=captions[[n, 2 + n]],
                   caption_weights=weights[[n, 2 + n]]).losses["caption"] for n in range(2)]
    assert float(together) == pytest.approx(float(sum(apart)) / 2, abs=1e-5)
    plain = model(**inputs(), caption_ids=captions[::2]).losses["caption"]
    ones = model(**inputs(), caption_ids=captions[::2], caption_weights=torch.ones(2))
    assert float(plain) == pytest.approx(float(ones.losses["caption"]), abs=1e-6)


def test_a_decoder_learns_to_write_what_is_worth_more(tmp_path: Path) -> None:
    """Each picture shows one of five things; likely words alone would mix their captions up."""
    make_bert(tmp_path / "bert")
    words = videobert_tokenizer(str(tmp_path / "bert"))[0]
    make_bundle(tmp_path / "model", words=words, num_decoder_layers=1)
    rng = np.random.default_rng(0)

    def pictures():
        for number in range(60):
            yield CorpusItem(f"picture-{number}",
                             np.eye(6)[number % 5][None] * 3 + rng.normal(size=(1, 6)) * 0.1,
                             captions=[SENTENCES[number % 5]])

    make_corpus(tmp_path / "corpus", pictures(), tokenizer=words)
    common = {"corpus": [str(tmp_path / "corpus")], "learning_rate": 1e-2, "batch_size": 16,
              "eval_batches": 2, "log_every": 5, "save_every": 0,
              "examples": {"max_caption_tokens": 12}}
    pretrain(PretrainConfig(model=str(tmp_path / "model"), mixture={"caption": 1}, steps=30,
                            eval_every=0, **common), tmp_path / "likely", device="cpu")
    result = pretrain(
        PretrainConfig(model=str(tmp_path / "likely"), mixture={"reward": 1}, samples=8, steps=60,
                       eval_every=60, **common), tmp_path / "worth", device="cpu")
    log = [line for line in (tmp_path / "worth" / "log.jsonl").read_text().splitlines()
           if '"reward_loss"' in line]
    first, last = (float(line.split('"reward_loss": ')[1].split(",")[0])
                   for line in (log[0], log[-1]))
    assert last < first - 1.0  # CIDEr is 0 to 10, its negative the loss
    assert result.metrics["eval_reward_loss"] < -2


def test_the_weight_of_rewards_is_its_own(tmp_path: Path) -> None:
    make_bert(tmp_path / "bert")
    words = videobert_tokenizer(str(tmp_path / "bert"))[0]
    make_bundle(tmp_path / "model", words=words, num_decoder_layers=1)
    make_corpus(tmp_path / "corpus", tokenizer=words)

    def first_loss(name: str, **weights: float) -> float:
        seen: list[float] = []
        pretrain(PretrainConfig(
            corpus=(str(tmp_path / "corpus"),), model=str(tmp_path / "model"), steps=1,
            mixture={"reward": 1}, loss_weights=weights, log_every=1, eval_every=0, save_every=0,
            examples={"max_caption_tokens": 12}, batch_size=8), tmp_path / name, device="cpu",
            logged=lambda numbers: seen.append(numbers.get("loss", 0.0)))
        return seen[0]

    plain = first_loss("plain")
    assert plain != 0
    assert first_loss("doubled", reward=2) == pytest.approx(2 * plain, rel=1e-3)
    assert first_loss("captions", caption=5) == pytest.approx(plain, rel=1e-3)


def test_one_caption_a_video_cannot_be_judged() -> None:
    with pytest.raises(UsageError, match="samples is 1, but must be at least 2"):
        PretrainConfig(samples=1)
