"""A Transformer decoder that writes text from VideoBERT's hidden states.

Shapes: B sequences, K written word pieces, N encoder positions, H hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EncoderDecoderCache
from transformers.activations import ACT2FN

from vbkit.model.configuration import VideoBertConfig

__all__ = ["Decoder"]


class Attention(nn.Module):
    """Attention of written words to themselves (causal) or to the encoder's hidden states."""

    def __init__(self, config: VideoBertConfig, layer: int, cross: bool) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.layer = layer
        self.cross = cross
        self.dropout = config.attention_probs_dropout_prob
        size = config.hidden_size
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.output = nn.Linear(size, size)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None,
                cache: EncoderDecoderCache | None) -> Tensor:
        batch, length, hidden = x.shape

        def split(rows: Tensor) -> Tensor:
            return rows.view(batch, -1, self.heads, hidden // self.heads).transpose(1, 2)

        query = split(self.query(x))
        if cache is not None and self.cross and cache.is_updated.get(self.layer):
            kept = cache.cross_attention_cache.layers[self.layer]
            key, value = kept.keys, kept.values
        else:
            key, value = split(self.key(source)), split(self.value(source))
            if cache is not None:
                part = cache.cross_attention_cache if self.cross else cache.self_attention_cache
                key, value = part.update(key, value, self.layer)
                if self.cross:
                    cache.is_updated[self.layer] = True
        out = F.scaled_dot_product_attention(query, key, value, mask,
                                             self.dropout if self.training else 0.0)
        return self.output(out.transpose(1, 2).reshape(batch, length, hidden))


class DecoderLayer(nn.Module):
    """Pre-norm Transformer decoder layer (Vaswani et al., 2017; norms as in Xiong et al., 2020)."""

    def __init__(self, config: VideoBertConfig, layer: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.self_norm = nn.LayerNorm(size, eps=eps)
        self.self_attention = Attention(config, layer, cross=False)
        self.cross_norm = nn.LayerNorm(size, eps=eps)
        self.cross_attention = Attention(config, layer, cross=True)
        self.mlp_norm = nn.LayerNorm(size, eps=eps)
        self.mlp_in = nn.Linear(size, config.decoder_intermediate_size)
        self.mlp_out = nn.Linear(config.decoder_intermediate_size, size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, causal: Tensor, memory: Tensor, memory_mask: Tensor | None,
                cache: EncoderDecoderCache | None) -> Tensor:
        normed = self.self_norm(x)
        x = x + self.dropout(self.self_attention(normed, normed, causal, cache))
        x = x + self.dropout(
            self.cross_attention(self.cross_norm(x), memory, memory_mask, cache))
        return x + self.dropout(self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x)))))


class Decoder(nn.Module):
    """Causal layers over the words written so far, each attending to the encoder.

    It shares the encoder's word embeddings, as input and as output (Press and Wolf, 2017). With a
    shortlist (`config.decoder_shortlist_size`) it scores only the word pieces on it.
    """

    shortlist: Tensor

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.config = config
        size = config.decoder_shortlist_size
        self.positions = nn.Embedding(config.max_decoder_positions, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_decoder_layers)
        )
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.bias = nn.Parameter(torch.zeros(size or config.vocab_size))
        # Until it is set, the first word pieces of the vocabulary: a valid, useless shortlist.
        self.register_buffer("shortlist", torch.arange(size or 0))

    def set_shortlist(self, ids: Tensor) -> None:
        """Write only these word pieces from now on.

        Args:
            ids: (`config.decoder_shortlist_size`,) int64, in ascending order, among them `[SEP]`.

        Raises:
            ValueError: `ids` has another length, is not ascending, or lacks `[SEP]`.
        """
        if len(ids) != len(self.shortlist) or bool((ids.diff() <= 0).any()):
            raise ValueError(f"a shortlist of this model is {len(self.shortlist)} ascending word "
                             f"pieces, got {len(ids)}")
        if self.config.sep_token_id not in ids:
            raise ValueError("a shortlist needs [SEP], which ends a text")
        self.shortlist.copy_(ids)

    def forward(self, words: nn.Embedding, ids: Tensor, memory: Tensor,
                memory_mask: Tensor | None = None,
                cache: EncoderDecoderCache | None = None) -> Tensor:
        """Hidden states of written words.

        Args:
            words: the encoder's word embeddings.
            ids: (B, K) word pieces; with a cache, those that it does not have yet.
            memory: (B, N, H) the encoder's hidden states.
            memory_mask: (B, N) bool, which of them are not padding.

        Returns:
            (B, K, H).

        Raises:
            ValueError: the text is longer than `config.max_decoder_positions`.
        """
        past = cache.get_seq_length() if cache is not None else 0
        total = past + ids.shape[1]
        if total > self.config.max_decoder_positions:
            raise ValueError(f"{total} word pieces, but the decoder writes at most "
                             f"{self.config.max_decoder_positions}")
        position = torch.arange(past, total, device=ids.device)
        x = self.dropout(self.norm(words(ids) + self.positions(position)))
        causal = position[:, None] >= torch.arange(total, device=ids.device)
        mask = None if memory_mask is None else memory_mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, causal, memory, mask, cache)
        return self.final_norm(x)

    def scores(self, words: nn.Embedding, hidden: Tensor) -> Tensor:
        """(..., H) hidden states -> (..., shortlist or vocabulary) logits."""
        weight = words.weight[self.shortlist] if len(self.shortlist) else words.weight
        return F.linear(self.dense(hidden), weight, self.bias)

    def logits(self, words: nn.Embedding, hidden: Tensor) -> Tensor:
        """(..., H) hidden states -> (..., vocabulary) logits; -inf off the shortlist."""
        scores = self.scores(words, hidden)
        if not len(self.shortlist):
            return scores
        full = scores.new_full((*scores.shape[:-1], self.config.vocab_size), -torch.inf)
        full[..., self.shortlist] = scores
        return full

    def loss(self, words: nn.Embedding, ids: Tensor, memory: Tensor, memory_mask: Tensor | None,
             weights: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of each word piece after those before it; padding does not count.

        Args:
            words, memory, memory_mask: as in `forward`.
            ids: (B * S, K) `[CLS] text [SEP]`, padded; S texts for each of the B sequences.
            weights: (B * S,) what each text's part of the mean is multiplied by; 1 by default.

        Raises:
            ValueError: a text has a word piece that is not on the shortlist.
        """
        several = len(ids) // max(1, len(memory))
        if several > 1:
            memory = memory.repeat_interleave(several, 0)
            memory_mask = (None if memory_mask is None
                           else memory_mask.repeat_interleave(several, 0))
        hidden = self(words, ids[:, :-1], memory, memory_mask)
        chosen = ids[:, 1:] != self.config.pad_token_id
        targets = ids[:, 1:][chosen]
        if len(self.shortlist):
            place = torch.searchsorted(self.shortlist, targets).clamp(max=len(self.shortlist) - 1)
            if bool((self.shortlist[place] != targets).any()):
                raise ValueError("a caption has word pieces that are not on the decoder's "
                                 "shortlist; drop them, or make the shortlist longer")
            targets = place
        scores = self.scores(words, hidden[chosen]).float()
        if weights is None:
            return F.cross_entropy(scores, targets)
        each = F.cross_entropy(scores, targets, reduction="none")
        return (each * weights[:, None].expand(chosen.shape)[chosen]).mean()

    def extra_repr(self) -> str:
        return f"shortlist={len(self.shortlist)}"

