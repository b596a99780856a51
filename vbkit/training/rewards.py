"""Captions trained by what they are worth: self-critical sequence training.

The decoder draws captions of a video, each is scored against all true ones, and those that are
better than the others drawn for it become likelier (Rennie et al., CVPR 2017; the mean of the other
draws as the baseline is Luo, 2020, "A better variant of self-critical sequence training"). The
score is CIDEr-D over word pieces, `[SEP]` among them, so that a caption that stops short of its end
pays for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from vbkit.evaluation.captions import Cider

if TYPE_CHECKING:
    from vbkit.model.decoder import Decoder
    from vbkit.model.modeling import VideoBertForPreTraining

__all__ = ["caption_rewards", "draw_captions", "drawn_and_judged", "written_reward"]

_READ = ("input_ids", "attention_mask", "visual_features", "visual_words", "visual_mask")


@torch.no_grad()
def draw_captions(decoder: Decoder, words: nn.Embedding, memory: Tensor, mask: Tensor | None,
                  length: int, *, greedy: bool = False) -> Tensor:
    """Captions by the decoder, one for each sequence.

    Args:
        decoder, words: as `Decoder.forward` takes them; in evaluation mode.
        memory, mask: (B, N, H) and (B, N), of the encoder.
        length: word pieces at most, `[SEP]` included.
        greedy: take the likeliest word piece in place of drawing one.

    Returns:
        (B, 1 + at most `length`) int64, `[CLS] … [SEP]`, padded.
    """
    config = decoder.config
    ids = torch.full((len(memory), 1), config.cls_token_id, device=memory.device)
    rows, done = [ids], torch.zeros(len(memory), dtype=torch.bool, device=memory.device)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for _ in range(length):
        hidden = decoder(words, ids, memory, mask, cache)[:, -1]
        scores = decoder.scores(words, hidden).float()
        chosen = (scores.argmax(-1, keepdim=True) if greedy
                  else torch.multinomial(scores.softmax(-1), 1))
        ids = decoder.shortlist[chosen] if len(decoder.shortlist) else chosen
        ids = torch.where(done[:, None], config.pad_token_id, ids)
        rows.append(ids)
        done = done | (ids[:, 0] == config.sep_token_id)
        if bool(done.all()):
            break
    return torch.cat(rows, 1)


def caption_rewards(ids: Tensor, references: Sequence[Sequence[Sequence[int]]], scorer: Cider,
                    pad: int) -> Tensor:
    """What captions are worth: (B * S,) float32, 0–10, on the CPU.

    Args:
        ids: (B * S, K) from `draw_captions`, S for each video in turn.
        references: for each of B videos, the word pieces of its true captions.
        scorer: knows how rare n-grams are.
        pad: the word piece that is none.
    """
    rows = ids[:, 1:].tolist()
    each = len(rows) // len(references)
    out = []
    for video, texts in enumerate(references):
        true = scorer.prepare(texts)
        out += [scorer.score([piece for piece in row if piece != pad], true)
                for row in rows[video * each : (video + 1) * each]]
    return torch.tensor(out)


@torch.no_grad()
def encode_for_captions(model: VideoBertForPreTraining,
                        inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """What the decoder reads of a batch: (B, N, H) hidden states and their (B, N) mask."""
    encoded = model.videobert(**{name: inputs[name] for name in _READ if name in inputs})
    return encoded.last_hidden_state, encoded.attention_mask


def drawn_and_judged(model: VideoBertForPreTraining, inputs: Mapping[str, Tensor],
                     references: Sequence[Sequence[Sequence[int]]], scorer: Cider, *,
                     samples: int, length: int) -> tuple[Tensor, Tensor, float]:
    """Captions to learn from.

    Args:
        model: has a decoder; left in the mode that it came in.
        inputs: of B videos, as `VideoBertForPreTraining.forward` takes them.
        references: for each video, the word pieces of its true captions.
        scorer: knows how rare n-grams are.
        samples: captions drawn for each video, at least 2.
        length: word pieces at most.

    Returns:
        (B * S, K) captions; (B * S,) float32, how much better each is than the others of its
        video; and the mean reward.
    """
    training = model.training
    model.eval()
    memory, mask = encode_for_captions(model, inputs)
    memory = memory.repeat_interleave(samples, 0)
    mask = None if mask is None else mask.repeat_interleave(samples, 0)
    assert model.decoder is not None
    ids = draw_captions(model.decoder, model.videobert.text_embeddings.words, memory, mask, length)
    model.train(training)
    rewards = caption_rewards(ids, references, scorer, model.config.pad_token_id)
    grouped = rewards.view(-1, samples)
    others = (grouped.sum(1, keepdim=True) - grouped) / (samples - 1)
    return ids, (grouped - others).flatten().to(ids.device), float(rewards.mean())


def written_reward(model: VideoBertForPreTraining, inputs: Mapping[str, Tensor],
                   references: Sequence[Sequence[Sequence[int]]], scorer: Cider,
                   length: int) -> float:
    """Mean reward, 0–10, of the captions that the decoder writes greedily."""
    memory, mask = encode_for_captions(model, inputs)
    assert model.decoder is not None
    ids = draw_captions(model.decoder, model.videobert.text_embeddings.words, memory, mask, length,
                        greedy=True)
    return float(caption_rewards(ids, references, scorer, model.config.pad_token_id).mean())
