"""A pretraining step beside that of transformers' BERT, of one size and on the same batches."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH_SIZE = 32
STEPS = 12


def measure(folder: Path) -> Iterator[tuple[Any, ...]]:
    """Rates of text-only batches (word pieces a second, padding included).

    Both models have the size of `mini`, start at random, and take forward pass, backward pass and
    one AdamW step on the same masked batches, in turns, so that both meet the machine in the same
    state.

    Yields:
        What was measured, the number, its unit, and the limit and its kind where there is one.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from vbkit.model import VideoBertConfig
    from vbkit.model.modeling import VideoBertForPreTraining

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as temporary:
        stream = text_stream(Path(temporary) / "corpus")
        batches = [stream.batch(step) for step in range(STEPS + 2)]
    torch.manual_seed(0)
    ours = VideoBertForPreTraining(VideoBertConfig()).to(device).train()
    size = ours.config
    theirs = BertForMaskedLM(BertConfig(
        vocab_size=size.vocab_size, hidden_size=size.hidden_size,
        num_hidden_layers=size.num_hidden_layers, num_attention_heads=size.num_attention_heads,
        intermediate_size=size.intermediate_size)).to(device).train()
    steps = [stepper(ours, device), stepper(theirs, device)]
    rates: list[list[float]] = [[], []]
    for number, batch in enumerate(batches):
        names = ("input_ids", "attention_mask", "labels")
        inputs = {name: batch[name].to(device) for name in names}
        for which in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            steps[which](inputs)
            if device == "cuda":
                torch.cuda.synchronize()
            if number >= 2:  # the first two warm up
                rates[which].append(inputs["input_ids"].numel() / (time.perf_counter() - began))
    medians = [statistics.median(rate) for rate in rates]
    yield "pretraining step, VideoBERT, text-only batches", medians[0], "tokens/s"
    yield "pretraining step, transformers' BertForMaskedLM", medians[1], "tokens/s"
    ratio = statistics.median(a / b for a, b in zip(*rates, strict=True))
    yield "pretraining step, VideoBERT over BertForMaskedLM", ratio, "×", 0.9, True


def stepper(model: Any, device: str) -> Callable[[dict[str, Any]], None]:
    """One training step of a model: forward, backward, clip, AdamW."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device in ("cpu", "cuda"))

    def step(inputs: dict[str, Any]) -> None:
        model(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def text_stream(folder: Path) -> Any:
    """Text-only batches of `vbkit pretrain`, of sentences made of `mini`'s word pieces."""
    import numpy as np

    import vbkit
    from vbkit.training.config import ExampleOptions
    from vbkit.training.corpus import CorpusItem, write_corpus
    from vbkit.training.examples import BatchStream, SpecialTokens

    bundle = vbkit.Engine(device="cpu").bundle
    tokenizer = bundle.processor.tokenizer
    rng = np.random.default_rng(0)
    items = (CorpusItem(f"talk-{number}", segments=[
        rng.integers(2000, 30000, rng.integers(5, 40)).tolist() for _ in range(40)])
        for number in range(100))
    corpus = write_corpus(items, folder, tokenizer=tokenizer, val_share=0)
    return BatchStream(corpus, SpecialTokens.of(tokenizer, bundle.config.video_token_id),
                       {"text": 1}, {"text": BATCH_SIZE}, ExampleOptions())
