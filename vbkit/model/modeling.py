"""VideoBERT: one Transformer encoder over words and clips (Sun et al., ICCV 2019).

The encoder and what it is pretrained by; the decoder is in `decoder.py`. Shapes: B sequences, L
word pieces, V clips, H hidden size, Dv backbone features, D shared space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

from vbkit.model.configuration import VideoBertConfig
from vbkit.model.decoder import Decoder

__all__ = [
    "VideoBertForPreTraining",
    "VideoBertForPreTrainingOutput",
    "VideoBertModel",
    "VideoBertOutput",
    "bert_to_videobert",
]


@dataclass
class VideoBertOutput(ModelOutput):
    """Outputs of the encoder.

    Args:
        last_hidden_state: (B, L + V + 1, H): text, clips and the closing `[SEP]`; (B, L, H) for
            text alone.
        text_hidden: (B, L, H), its text part.
        visual_hidden: (B, V, H), its clips; None for text alone.
        attention_mask: (B, L + V + 1) bool, which positions are not padding.
        hidden_states: the input embeddings and every layer's output, where asked for.
        attentions: every layer's attention weights, (B, heads, N, N), where asked for.
    """

    last_hidden_state: Tensor | None = None
    text_hidden: Tensor | None = None
    visual_hidden: Tensor | None = None
    attention_mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class VideoBertForPreTrainingOutput(ModelOutput):
    """Outputs with the pretraining heads.

    Args:
        loss: weighted sum of the losses whose labels were given.
        losses: each of them by name, not weighted.
        word_logits: (B, L, vocabulary); with labels (N, vocabulary), at the N labelled positions.
        visual_word_logits: (B, V, visual vocabulary), or with labels (N, visual vocabulary); None
            where there is none.
        alignment_logits: (B,), above 0 where text and video belong together; None without clips.
        last_hidden_state: as in `VideoBertOutput`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    word_logits: Tensor | None = None
    visual_word_logits: Tensor | None = None
    alignment_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None


class SelfAttention(nn.Module):
    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, x: Tensor, mask: Tensor | None, weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`mask` is boolean, or what is added to the scores; it broadcasts to (B, heads, N, N)."""
        batch, length, hidden = x.shape
        shape = (batch, length, self.heads, hidden // self.heads)
        query, key, value = (
            layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attention = None
        if weights:  # the fused kernel does not give them
            scores = query @ key.transpose(2, 3) / math.sqrt(shape[-1])
            if mask is not None and mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            elif mask is not None:
                scores = scores + mask
            attention = scores.softmax(-1)
            out = F.dropout(attention, dropout) @ value
        else:
            out = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        return self.output(out.transpose(1, 2).reshape(batch, length, hidden)), attention


class ZeroLinear(nn.Linear):
    """A linear map that begins at 0."""


class Adapter(nn.Module):
    """A bottleneck beside a sublayer, adding 0 before it is trained (He et al., ICLR 2022).

    With `config.adapter_context_size` it also sees what the sequence's clips come to.
    """

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.hidden_size, config.adapter_size)
        self.up = ZeroLinear(config.adapter_size, config.hidden_size)
        size = config.adapter_context_size
        self.context = ZeroLinear(size, config.adapter_size, bias=False) if size else None

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        inner = self.down(x)
        if self.context is not None and context is not None:
            inner = inner + self.context(context)[:, None]
        return self.up(F.gelu(inner))


class EncoderLayer(nn.Module):
    """Post-norm Transformer layer, as in BERT (Devlin et al., 2019), with adapters or without."""

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp_in = nn.Linear(config.hidden_size, config.intermediate_size)
        self.mlp_out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention_adapter = Adapter(config) if config.adapter_size else None
        self.mlp_adapter = Adapter(config) if config.adapter_size else None

    def forward(
        self, x: Tensor, mask: Tensor | None, weights: bool, adapted: bool = True,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """`context` (B, adapter_context_size): what each sequence's clips come to."""
        attended, attention = self.attention(x, mask, weights)
        if adapted and self.attention_adapter is not None:
            attended = attended + self.attention_adapter(x, context)
        x = self.attention_norm(x + self.dropout(attended))
        out = self.mlp_out(self.activation(self.mlp_in(x)))
        if adapted and self.mlp_adapter is not None:
            out = out + self.mlp_adapter(x, context)
        return self.mlp_norm(x + self.dropout(out)), attention


class TextEmbeddings(nn.Module):
    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.hidden_size,
                                  padding_idx=config.pad_token_id)
        self.positions = _position_table(config, config.max_position_embeddings)
        self.type_embedding = nn.Parameter(torch.zeros(config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        x = self.words(input_ids) + self.type_embedding
        if self.positions is not None:
            x = x + self.positions(position_ids)
        return self.dropout(self.norm(x))


class VisualEmbeddings(nn.Module):
    """A clip's input vector: its projected features, its visual word, or both (config value)."""

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        if config.visual_input != "words":
            self.features = nn.Linear(
                config.visual_reduction_size or config.visual_feature_size, hidden)
        if config.visual_input != "features":
            self.words = nn.Embedding(config.visual_vocab_size + 1, hidden)  # the last is [MASK]
        self.visual_input = config.visual_input
        self.positions = _position_table(config, config.max_visual_positions)
        self.type_embedding = nn.Parameter(torch.zeros(hidden))
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor | None, words: Tensor | None, positions: Tensor,
                masked: Tensor | None = None) -> Tensor:
        x = self.type_embedding
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.visual_input != "words":
            if features is None:
                raise ValueError(f"visual_input {self.visual_input!r} needs visual_features")
            if masked is not None:  # the mean picture: 0 is the mean of standardised features
                features = features.masked_fill(masked[..., None], 0.0)
            x = x + self.features(features)
        if self.visual_input != "features":
            if words is None:
                raise ValueError(f"visual_input {self.visual_input!r} needs visual_words")
            if masked is not None:
                words = words.masked_fill(masked, self.words.num_embeddings - 1)
            x = x + self.words(words)
        return self.dropout(self.norm(x))


class ClipProjection(nn.Module):
    """Clip features into the shared space: a linear map plus a hidden layer beside it."""

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        size = config.visual_reduction_size or config.visual_feature_size
        self.linear = nn.Linear(size, config.shared_size)
        width = config.projection_hidden_size
        self.mlp_in = nn.Linear(size, width) if width else None
        self.mlp_out = nn.Linear(width, config.shared_size) if width else None
        self.dropout = nn.Dropout(config.projection_dropout)

    def forward(self, features: Tensor) -> Tensor:
        x = self.linear(features)
        if self.mlp_in is not None and self.mlp_out is not None:
            x = x + self.mlp_out(self.dropout(F.gelu(self.mlp_in(features))))
        return F.normalize(x, dim=-1)


class RelativeBias(nn.Module):
    """What each head adds to a score by the distance of its two positions.

    Distances within a modality fall into buckets, exact when small and logarithmic further on
    (Raffel et al., 2020, section 2.1); from text to video and back there is one bias each.
    """

    buckets = 32
    max_distance = 128

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__()
        self.bias = nn.Embedding(self.buckets + 2, config.num_attention_heads)

    def forward(self, positions: Tensor, is_video: Tensor) -> Tensor:
        """(B, N) positions within their modality, and which are clips -> (B, heads, N, N)."""
        distance = positions[:, None, :] - positions[:, :, None]
        half = self.buckets // 2
        exact = half // 2
        size = distance.abs()
        ratio = (size.clamp(min=1) / exact).log() / math.log(self.max_distance / exact)
        far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
        bucket = torch.where(size < exact, size, far) + half * (distance > 0)
        crossing = is_video[:, None, :] != is_video[:, :, None]
        bucket = torch.where(crossing, self.buckets + is_video[:, :, None].long(), bucket)
        return self.bias(bucket).permute(0, 3, 1, 2)


def _masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """(B, N, H) and (B, N) -> (B, H): the mean of the rows that count; 0 where none does."""
    weight = mask[..., None].to(rows.dtype)
    return (rows * weight).sum(1) / weight.sum(1).clamp(min=1)


def _content_size(config: VideoBertConfig) -> int:
    """Width of what the adapters' context is the mean of: clip features, else visual words."""
    if config.visual_input == "words":
        return config.hidden_size
    return config.visual_reduction_size or config.visual_feature_size


def _position_table(config: VideoBertConfig, length: int) -> nn.Embedding | None:
    if config.position_encoding == "relative":
        return None
    table = nn.Embedding(length, config.hidden_size)
    if config.position_encoding == "sinusoidal":
        table.weight.requires_grad_(False)
    return table


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) sinusoidal position encodings (Vaswani et al., 2017, section 3.5)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2).float() / width)
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: width // 2])
    return table


class VideoBertPreTrainedModel(PreTrainedModel):
    config_class = VideoBertConfig
    base_model_prefix = "videobert"
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.0 if isinstance(module, ZeroLinear) else std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, TextEmbeddings | VisualEmbeddings):
            nn.init.zeros_(module.type_embedding)
            if self.config.position_encoding == "sinusoidal" and module.positions is not None:
                module.positions.weight.copy_(sinusoids(*module.positions.weight.shape))
        elif isinstance(module, VideoBertModel):
            nn.init.zeros_(module.feature_mean)
            nn.init.ones_(module.feature_std)


class VideoBertModel(VideoBertPreTrainedModel):
    """The joint encoder, and the two maps into the space that video and text share.

    The input sequence is `[CLS] text [>] video [SEP]` for video and text, `[CLS] [>] video [SEP]`
    for video alone and `[CLS] text [SEP]` for text alone, the paper's three regimes.
    """

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__(config)
        self.text_embeddings = TextEmbeddings(config)
        self.visual_embeddings = VisualEmbeddings(config)
        self.layers = nn.ModuleList(
            EncoderLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.relative_bias = (
            RelativeBias(config) if config.position_encoding == "relative" else None
        )
        self.reduction = (
            nn.Linear(config.visual_feature_size, config.visual_reduction_size, bias=False)
            if config.visual_reduction_size else None
        )
        self.context = (
            nn.Linear(_content_size(config), config.adapter_context_size, bias=False)
            if config.adapter_context_size else None
        )
        self.clip_projection = ClipProjection(config)
        self.register_buffer("feature_mean", torch.zeros(config.visual_feature_size))
        self.register_buffer("feature_std", torch.ones(config.visual_feature_size))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.text_embeddings.words

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.text_embeddings.words = value

    def standardise(self, clip_features: Tensor) -> Tensor:
        """The features that the model reads, with the training data's mean and deviation taken out.

        (..., Dv) to (..., visual_feature_size).

        Raises:
            ValueError: the features are narrower than `config.visual_feature_size`.
        """
        size = self.config.visual_feature_size
        if clip_features.shape[-1] < size:
            raise ValueError(f"clip features are {clip_features.shape[-1]} wide, but the model "
                             f"reads {size}: they come from another backbone")
        return (clip_features[..., :size] - self.feature_mean) / self.feature_std

    def reduce(self, clip_features: Tensor) -> Tensor:
        """`standardise`, then the shared linear map, where the model has one.

        (..., Dv) to (..., visual_reduction_size or visual_feature_size).
        """
        features = self.standardise(clip_features)
        return features if self.reduction is None else self.reduction(features)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        visual_words: Tensor | None = None,
        visual_mask: Tensor | None = None,
        visual_masked: Tensor | None = None,
        adapted: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
    ) -> VideoBertOutput | tuple[Any, ...]:
        """Encode a batch of sequences.

        Args:
            input_ids: (B, L) int64, padded at the end. With a video: `[CLS] text [>]`, and the
                closing `[SEP]` is added here, after the clips; else `[CLS] text [SEP]`.
            attention_mask: (B, L), 1 where there is a word piece.
            visual_features: (B, V, Dv) clip features as the backbone gives them.
            visual_words: (B, V) int64 ids in the visual vocabulary.
            visual_mask: (B, V), 1 where there is a clip.
            visual_masked: (B, V) bool, the clips whose content is hidden from the model.
            adapted: whether the adapters take part, where the model has them.

        Raises:
            ValueError: the sequence is longer than the model's position encodings, or an input
                that `config.visual_input` needs is missing.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask.bool()
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(f"{input_ids.shape[1]} word pieces, but the model takes at most "
                             f"{self.config.max_position_embeddings}")
        device = input_ids.device
        # Positions count what is not padding, so that padding never moves anything.
        position_ids = (mask.long().cumsum(1) - 1).clamp_(min=0)
        x = self.text_embeddings(input_ids, position_ids)
        length = input_ids.shape[1]
        clips = context = None
        is_video = torch.zeros_like(mask)
        given = visual_features if visual_features is not None else visual_words
        if given is not None:
            batch, clips = given.shape[:2]
            if clips > self.config.max_visual_positions:
                raise ValueError(f"{clips} clips, but the model takes at most "
                                 f"{self.config.max_visual_positions}")
            if visual_mask is None:
                visual_mask = torch.ones(batch, clips, device=device)
            visual_mask = visual_mask.bool()
            if visual_features is not None:
                visual_features = F.dropout(self.reduce(visual_features),
                                            self.config.visual_dropout_prob, self.training)
            if self.context is not None:
                content = (self.visual_embeddings.words(visual_words) if visual_features is None
                           or self.config.visual_input == "words" else visual_features)
                shown = visual_mask if visual_masked is None else visual_mask & ~visual_masked
                context = self.context(_masked_mean(content, shown))
            positions = torch.arange(clips, device=device).expand(batch, clips)
            video = self.visual_embeddings(visual_features, visual_words, positions,
                                           visual_masked)
            sep_ids = torch.full((batch, 1), self.config.sep_token_id, device=device)
            last = mask.sum(1, keepdim=True).clamp(max=self.config.max_position_embeddings - 1)
            x = torch.cat([x, video, self.text_embeddings(sep_ids, last)], 1)
            mask = torch.cat([mask, visual_mask, mask.new_ones(batch, 1)], 1)
            position_ids = torch.cat([position_ids, positions, last], 1)
            is_video = F.pad(torch.cat([is_video, torch.ones_like(visual_mask)], 1), (0, 1))
        attention = mask[:, None, None, :] if not bool(mask.all()) else None
        if self.relative_bias is not None:
            bias = self.relative_bias(position_ids, is_video)
            attention = bias if attention is None else bias.masked_fill(
                ~attention, torch.finfo(bias.dtype).min)
        hidden_states: list[Tensor] = [x]
        attentions: list[Tensor | None] = []
        for layer in self.layers:
            x, weights = layer(x, attention, output_attentions, adapted, context)
            hidden_states.append(x)
            attentions.append(weights)
        output = VideoBertOutput(
            last_hidden_state=x,
            text_hidden=x[:, :length],
            visual_hidden=None if clips is None else x[:, length : length + clips],
            attention_mask=mask,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,  # type: ignore[arg-type]
        )
        return output if return_dict else output.to_tuple()

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Texts `[CLS] text [SEP]` (B, L) into the shared space: (B, D) unit vectors."""
        hidden = self(input_ids, attention_mask, adapted=False).last_hidden_state
        if self.config.text_pooling == "cls":
            return F.normalize(hidden[:, 0], dim=-1)
        return F.normalize(_masked_mean(hidden, attention_mask), dim=-1)

    def in_space(self, clip_features: Tensor, space: str) -> Tensor:
        """What visual words are made of: clip features (..., Dv) in a vocabulary's space.

        Args:
            space: "features", as the model reads them, or "embeddings", in the shared space.
        """
        if space == "embeddings":
            return self.embed_clips(clip_features)
        return self.standardise(clip_features)

    def embed_clips(self, clip_features: Tensor) -> Tensor:
        """Clip features (..., Dv) into the shared space: (..., D) unit vectors."""
        return self.clip_projection(self.reduce(clip_features))


class VideoBertForPreTraining(VideoBertPreTrainedModel):
    """VideoBERT with all that it is pretrained by.

    Masked words, masked visual words and text-video alignment (Sun et al., ICCV 2019, section
    3.3), a contrast of whole texts and videos in the shared space (symmetric InfoNCE, Radford et
    al., 2021, section 2.3), and, where the configuration has decoder layers, captions.
    """

    _tied_weights_keys: Mapping[str, str] = {
        "word_head.decoder.weight": "videobert.text_embeddings.words.weight"
    }

    def __init__(self, config: VideoBertConfig) -> None:
        super().__init__(config)
        self.videobert = VideoBertModel(config)
        self.word_head = PredictionHead(config, config.vocab_size)
        self.visual_word_head = (
            PredictionHead(config, config.visual_vocab_size) if config.visual_vocab_size else None
        )
        self.alignment_head = nn.Linear(config.hidden_size, 1)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))
        self.decoder = Decoder(config) if config.num_decoder_layers else None
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.word_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.word_head.decoder = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        visual_words: Tensor | None = None,
        visual_mask: Tensor | None = None,
        visual_masked: Tensor | None = None,
        labels: Tensor | None = None,
        visual_labels: Tensor | None = None,
        alignment_labels: Tensor | None = None,
        text_ids: Tensor | None = None,
        text_mask: Tensor | None = None,
        caption_ids: Tensor | None = None,
        caption_weights: Tensor | None = None,
        loss_weights: Mapping[str, float] | None = None,
        return_dict: bool = True,
    ) -> VideoBertForPreTrainingOutput | tuple[Any, ...]:
        """Predict what is masked, what belongs together, and captions.

        Args:
            input_ids: as `VideoBertModel.forward`'s; None for the contrast alone.
            labels: (B, L) int64 word ids, -100 where nothing is predicted.
            visual_labels: (B, V) int64 visual word ids, -100 where nothing is predicted.
            alignment_labels: (B,), 1 where text and video belong together.
            text_ids, text_mask: (B, T), whole texts `[CLS] text [SEP]`, to be told apart by this
                batch's videos, and the videos by them.
            caption_ids: (B, K) `[CLS] caption [SEP]`, padded, to be written from this batch's
                videos; or (B * S, K), S captions for each video in turn.
            caption_weights: what each caption's part of the loss is multiplied by.
            loss_weights: of "words", "visual_words", "alignment", "contrast" and "caption"; 1
                where it says nothing.
            The other arguments are `VideoBertModel.forward`'s.

        Raises:
            ValueError: an input is missing that a loss needs, or a caption has a word piece that
                is not on the decoder's shortlist.
        """
        losses: dict[str, Tensor] = {}
        encoded = word_logits = visual_logits = alignment = None
        if input_ids is not None:
            encoded = self.videobert(input_ids, attention_mask, visual_features, visual_words,
                                     visual_mask, visual_masked)
            # Logits only where a word is predicted: the vocabulary is the dear part.
            if labels is not None or caption_ids is None:
                word_logits, loss = self.word_head.predict(encoded.text_hidden, labels)
                losses |= {"words": loss} if loss is not None else {}
            if self.visual_word_head is not None and encoded.visual_hidden is not None and (
                    visual_labels is not None or caption_ids is None):
                visual_logits, loss = self.visual_word_head.predict(encoded.visual_hidden,
                                                                    visual_labels)
                losses |= {"visual_words": loss} if loss is not None else {}
            if encoded.visual_hidden is not None:
                alignment = self._alignment(encoded)
            if alignment_labels is not None:
                if alignment is None:
                    raise ValueError("the alignment of texts and videos needs clips")
                losses["alignment"] = F.binary_cross_entropy_with_logits(
                    alignment.float(), alignment_labels.float())
        if text_ids is not None:
            if visual_features is None:
                raise ValueError("the contrast of texts and videos needs visual_features")
            losses["contrast"] = self._contrast(text_ids, text_mask, visual_features, visual_mask)
        if caption_ids is not None:
            if self.decoder is None or encoded is None:
                raise ValueError("captions need input_ids and a decoder (num_decoder_layers)")
            losses["caption"] = self.decoder.loss(
                self.videobert.text_embeddings.words, caption_ids, encoded.last_hidden_state,
                encoded.attention_mask, caption_weights)
        weights = loss_weights or {}
        output = VideoBertForPreTrainingOutput(
            loss=torch.stack([weights.get(name, 1.0) * value for name, value in losses.items()]
                             ).sum() if losses else None,
            losses=losses or None,
            word_logits=word_logits,
            visual_word_logits=visual_logits,
            alignment_logits=alignment,
            last_hidden_state=None if encoded is None else encoded.last_hidden_state,
        )
        return output if return_dict else output.to_tuple()

    def _alignment(self, encoded: VideoBertOutput) -> Tensor:
        """(B,) logits from the product of what the words and what the clips came to.

        Sun et al. read `[CLS]`; the product (as in ViLBERT, Lu et al., NeurIPS 2019, section 3.1)
        is learnt from far fewer pairs.
        """
        text, video = encoded.text_hidden, encoded.visual_hidden
        assert text is not None
        assert video is not None
        assert encoded.attention_mask is not None
        length = text.shape[1]
        words = _masked_mean(text, encoded.attention_mask[:, :length])
        clips = _masked_mean(video, encoded.attention_mask[:, length:-1])
        return self.alignment_head(words * clips).squeeze(-1)

    def _contrast(self, text_ids: Tensor, text_mask: Tensor | None, features: Tensor,
                  visual_mask: Tensor | None) -> Tensor:
        if text_mask is None:
            text_mask = torch.ones_like(text_ids)
        texts = self.videobert.embed_text(text_ids, text_mask)
        clips = self.videobert.embed_clips(features)
        weight = clips.new_ones(clips.shape[:2]) if visual_mask is None else visual_mask.to(clips)
        videos = F.normalize((clips * weight[..., None]).sum(1), dim=-1)
        logits = self.logit_scale.clamp(max=math.log(100.0)).exp() * videos @ texts.T
        same = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits.float(), same) + F.cross_entropy(logits.T.float(), same)) / 2


class PredictionHead(nn.Module):
    """BERT's prediction head: dense, activation, norm, then one logit for each word."""

    def __init__(self, config: VideoBertConfig, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.activation = ACT2FN[config.hidden_act]
        self.decoder = nn.Linear(config.hidden_size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.activation(self.dense(x))))

    def predict(self, hidden: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits of (B, N, H) hidden states; with labels (B, N), those of labelled places alone,
        and their loss."""
        if labels is None:
            return self(hidden), None
        chosen = labels != -100
        logits = self(hidden[chosen])
        return logits, _cross_entropy(logits, labels[chosen])


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    # A batch in which nothing is masked gives 0, where the mean would be NaN.
    return F.cross_entropy(logits.float(), labels, reduction="sum") / max(1, len(labels))


_BERT_NAMES = (
    ("embeddings.word_embeddings.", "text_embeddings.words."),
    ("embeddings.position_embeddings.", "text_embeddings.positions."),
    ("embeddings.LayerNorm.", "text_embeddings.norm."),
    ("encoder.layer.", "layers."),
    (".attention.self.", ".attention."),
    (".attention.output.dense.", ".attention.output."),
    (".attention.output.LayerNorm.", ".attention_norm."),
    (".intermediate.dense.", ".mlp_in."),
    (".output.dense.", ".mlp_out."),
    (".output.LayerNorm.", ".mlp_norm."),
)


def bert_to_videobert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `transformers.BertModel` state dict under the names of `VideoBertModel`.

    BERT's segment type 0 becomes the text type; its type 1 and its pooler have no counterpart.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("bert.")
        if name == "embeddings.token_type_embeddings.weight":
            renamed["text_embeddings.type_embedding"] = tensor[0].clone()
            continue
        if not name.startswith(("embeddings.", "encoder.")) or name.endswith("_ids"):
            continue
        for old, new in _BERT_NAMES:
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed
