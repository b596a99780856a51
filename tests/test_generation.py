"""The decoder: generation by transformers' own code, its cache, its shortlist, its loss."""

from __future__ import annotations

import pytest
import torch
from small_models import SMALL

from vbkit.model import (
    VideoBertConfig,
    VideoBertForConditionalGeneration,
    VideoBertForPreTraining,
)

WRITER = {**SMALL, "num_decoder_layers": 2, "decoder_intermediate_size": 48,
          "max_decoder_positions": 16}
CLS, SEP, VIDEO = 101, 102, 1


def made(kind=VideoBertForConditionalGeneration, **changes):
    torch.manual_seed(0)
    return kind(VideoBertConfig(**{**WRITER, **changes})).eval()


def inputs(count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.tensor([[CLS, VIDEO]] * count),
        "attention_mask": torch.ones(count, 2, dtype=torch.long),
        "visual_features": torch.randn(count, 3, 6, generator=generator),
        "visual_mask": torch.tensor([[1, 1, 1], [1, 1, 0]][:count]),
    }


@pytest.mark.parametrize("how", [
    {"num_beams": 1}, {"num_beams": 4}, {"do_sample": True, "top_k": 20},
])
@pytest.mark.parametrize("position_encoding", ["learned", "relative"])
def test_the_cache_changes_no_word(how, position_encoding) -> None:
    model = made(position_encoding=position_encoding)
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        texts.append(model.generate(**inputs(), max_new_tokens=8, use_cache=use_cache, **how))
    assert torch.equal(*texts)
    assert (texts[0][:, 0] == CLS).all()
    assert texts[0].shape[1] > 1


def test_a_video_gets_the_same_words_alone_and_padded() -> None:
    model = made()
    together = model.generate(**inputs(), max_new_tokens=6, num_beams=3)
    whole = inputs()
    alone = model.generate(
        input_ids=whole["input_ids"][1:], visual_features=whole["visual_features"][1:, :2],
        max_new_tokens=6, num_beams=3)
    assert together[1][: alone.shape[1]].tolist() == alone[0].tolist()


def test_only_words_of_the_shortlist_are_written() -> None:
    model = made(decoder_shortlist_size=20)
    allowed = torch.tensor([SEP, *range(120, 139)])
    model.decoder.set_shortlist(allowed)
    text = model.generate(**inputs(), max_new_tokens=10, do_sample=True)
    assert set(text[:, 1:].flatten().tolist()) <= {*allowed.tolist(), 0}
    with pytest.raises(ValueError, match="not on the decoder's shortlist"):
        model(**inputs(), labels=torch.tensor([[CLS, 150, SEP], [CLS, 121, SEP]]))
    with pytest.raises(ValueError, match=r"needs \[SEP\]"):
        model.decoder.set_shortlist(torch.arange(120, 140))


def test_it_learns_to_say_what_it_was_shown() -> None:
    torch.manual_seed(0)
    model = made(kind=VideoBertForPreTraining)
    seen = inputs()
    said = torch.tensor([[CLS, 120, 121, 122, SEP, 0], [CLS, 130, 131, 132, 133, SEP]])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model(**seen, caption_ids=said).losses["caption"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2
    writer = made()
    missing, unexpected = writer.load_state_dict(model.state_dict(), strict=False)
    assert missing == []
    assert all(name.startswith(("word_head", "alignment_head", "logit_scale"))
               for name in unexpected)
    written = writer.generate(**seen, max_new_tokens=8)
    assert written.tolist() == said.tolist()


def test_what_cannot_be_written_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_decoder_layers"):
        made(num_decoder_layers=0)
    with pytest.raises(ValueError, match="at most 16"):
        made()(**inputs(), decoder_input_ids=torch.full((2, 17), 120))
    with pytest.raises(ValueError, match="captions need"):
        made(kind=VideoBertForPreTraining, num_decoder_layers=0)(
            **inputs(), caption_ids=torch.tensor([[CLS, SEP]] * 2))
    with pytest.raises(ValueError, match="labels, or call generate"):
        made()(**inputs())
