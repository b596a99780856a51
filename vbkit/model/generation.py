"""`VideoBertForConditionalGeneration`: text written from video, words, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import EncoderDecoderCache, GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from vbkit.model.configuration import VideoBertConfig
from vbkit.model.decoder import Decoder
from vbkit.model.modeling import VideoBertModel, VideoBertOutput, VideoBertPreTrainedModel

__all__ = ["VideoBertForConditionalGeneration", "VideoBertForConditionalGenerationOutput"]


@dataclass
class VideoBertForConditionalGenerationOutput(ModelOutput):
    """Outputs of the decoder.

    Args:
        loss: cross-entropy of `labels`, where they were given.
        logits: (B, K, vocabulary) of the next word piece.
        encoder_last_hidden_state: (B, N, H).
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None


class VideoBertForConditionalGeneration(VideoBertPreTrainedModel, GenerationMixin):
    """VideoBERT with a decoder, and transformers' own `generate` (greedy, beam, sampling).

    A text starts with `[CLS]` and ends with `[SEP]`. Weights have the names that they have in
    `VideoBertForPreTraining`, so either loads what the other saved.
    """

    def __init__(self, config: VideoBertConfig) -> None:
        if not config.num_decoder_layers:
            raise ValueError("this configuration has no decoder: num_decoder_layers is 0")
        config.is_encoder_decoder = True  # what generation goes by
        super().__init__(config)
        self.videobert = VideoBertModel(config)
        self.decoder = Decoder(config)
        self.generation_config = GenerationConfig(
            decoder_start_token_id=config.cls_token_id, bos_token_id=config.cls_token_id,
            eos_token_id=config.sep_token_id, pad_token_id=config.pad_token_id,
            max_new_tokens=min(32, config.max_decoder_positions - 1))
        self.post_init()

    def get_encoder(self, modality: str | None = None) -> VideoBertModel:
        return self.videobert

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        visual_words: Tensor | None = None,
        visual_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: VideoBertOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> VideoBertForConditionalGenerationOutput | tuple[Any, ...]:
        """Score the next word piece after each one written.

        Args:
            input_ids, attention_mask, visual_features, visual_words, visual_mask: as in
                `VideoBertModel.forward`; not needed with `encoder_outputs`.
            decoder_input_ids: (B, K), from `[CLS]` on; with a cache, what it does not have yet.
            labels: (B, K) `[CLS] text [SEP]`, padded; then `decoder_input_ids` is not needed.

        Raises:
            ValueError: neither `labels` nor `decoder_input_ids` is given.
        """
        if encoder_outputs is None:
            encoder_outputs = self.videobert(input_ids, attention_mask, visual_features,
                                             visual_words, visual_mask)
        memory, mask = encoder_outputs.last_hidden_state, encoder_outputs.attention_mask
        assert memory is not None
        words = self.videobert.text_embeddings.words
        loss = None
        if labels is not None:
            loss = self.decoder.loss(words, labels, memory, mask)
            decoder_input_ids = labels if decoder_input_ids is None else decoder_input_ids
        if decoder_input_ids is None:
            raise ValueError("give decoder_input_ids or labels, or call generate")
        hidden = self.decoder(words, decoder_input_ids, memory, mask, cache)
        output = VideoBertForConditionalGenerationOutput(
            loss=loss, logits=self.decoder.logits(words, hidden),
            encoder_last_hidden_state=memory)
        return output if return_dict else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        encoder_outputs: VideoBertOutput | None = None,
        cache: EncoderDecoderCache | None = None,
        past_key_values: EncoderDecoderCache | None = None,  # its older name in transformers
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        cache = (cache or past_key_values) if use_cache else None
        past = cache.get_seq_length() if cache is not None else 0
        return {"decoder_input_ids": input_ids[:, past:], "encoder_outputs": encoder_outputs,
                "cache": cache}
