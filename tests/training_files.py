"""Small things that the tests of training share: a model, corpora, a vocabulary."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import vbkit_mini
from vbkit.model import VideoBertConfig, VideoBertProcessor
from vbkit.model.modeling import VideoBertForPreTraining
from vbkit.training.corpus import Corpus, CorpusItem, write_corpus

MINI = Path(vbkit_mini.__file__).parent / "model"
WIDTH = 6
SENTENCES = ("a dog runs over the grass", "a man rides a bike", "two cats sleep",
             "the woman cooks rice in a pan", "someone plays a guitar on the stage")


@functools.cache
def tokenizer():
    """mini's; not to be changed."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MINI)


def make_bert(folder: Path):
    """A BERT of two narrow layers, at random, that knows only the words of `SENTENCES`."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    vocabulary = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    model = BertForMaskedLM(BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64)).eval()
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(folder)
    return model


def make_bundle(folder: Path, backbone: bool = False, words=None, **changes) -> Path:
    """A model of two narrow layers, at random, with mini's tokenizer or another."""
    words = words if words is not None else tokenizer()
    settings = {
        "vocab_size": len(words), "mask_token_id": words.mask_token_id,
        "cls_token_id": words.cls_token_id, "sep_token_id": words.sep_token_id,
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "visual_feature_size": WIDTH, "shared_size": 32,
        "projection_hidden_size": 16, "max_position_embeddings": 64, "max_text_length": 64,
        "max_visual_positions": 16, "decoder_intermediate_size": 48, **changes}
    if backbone:
        settings |= {"visual_feature_size": 1280,
                     "backbone": json.loads((MINI / "config.json").read_text())["backbone"]}
    torch.manual_seed(0)
    VideoBertForPreTraining(VideoBertConfig(**settings)).save_pretrained(folder)
    VideoBertProcessor(words, max_text_length=64).save_pretrained(folder)
    if backbone:
        shutil.copy(MINI / "backbone.safetensors", folder)
    return folder


def items(pictures: int = 40, videos: int = 6, texts: int = 10) -> Iterator[CorpusItem]:
    """Captioned pictures in two views, talks of 60 s, and texts alone."""
    rng = np.random.default_rng(0)
    for number in range(pictures):
        yield CorpusItem(f"picture-{number}", rng.normal(size=(2, 1, WIDTH)),
                         captions=[SENTENCES[number % 5], SENTENCES[(number + 1) % 5]])
    for number in range(videos):
        yield CorpusItem(
            f"video-{number}", rng.normal(size=(40, WIDTH)),
            segments=[SENTENCES[index % 5] for index in range(20)],
            segment_times=[[3 * index, 3 * index + 2.5] for index in range(20)])
    for number in range(texts):
        yield CorpusItem(f"text-{number}", segments=[SENTENCES[number % 5]])


def make_corpus(folder: Path, found: Iterator[CorpusItem] | None = None, **changes) -> Corpus:
    settings = {"tokenizer": tokenizer(), "backbone": "test", "val_share": 0.2, **changes}
    return write_corpus(found if found is not None else items(), folder, **settings)
