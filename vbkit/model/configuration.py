"""Configuration of VideoBERT."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

POSITIONS = ("learned", "sinusoidal", "relative")
VISUAL_INPUTS = ("features", "words", "both")


class VideoBertConfig(PretrainedConfig):
    """Shape of a VideoBERT and of the bundle around it.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads: as in
            `transformers.BertConfig`, like the next two lines.
        intermediate_size, hidden_act, max_position_embeddings: as there.
        hidden_dropout_prob, attention_probs_dropout_prob, initializer_range, layer_norm_eps: too.
        position_encoding: "learned" (as BERT), "sinusoidal" (Vaswani et al., 2017, section 3.5) or
            "relative" (a learned bias of each head's scores by distance, shared by all layers:
            Raffel et al., 2020, section 2.1; between text and video one bias a direction).
        visual_feature_size: how many of a clip's Dv pooled backbone features the model reads, from
            the first. With mean-and-deviation pooling the deviations over time come last, and a
            model trained on still pictures leaves them to the heads.
        visual_reduction_size: width of a linear map that those features go through first, shared by
            the clip projection and the encoder's visual input; 0 for none.
        visual_dropout_prob: of those (reduced) features where the joint encoder reads them, in
            training: pictures are fewer than sentences, and are learnt by heart sooner.
        visual_vocab_size: number of visual words; 0 for none.
        visual_input: what a clip's input vector is made of: "features" (projected), "words"
            (the visual word's embedding, as in Sun et al., ICCV 2019) or "both" (their sum).
        max_visual_positions: clips in one input sequence, at most.
        adapter_size: width of the adapters beside each layer's attention and feed-forward part (He
            et al., ICLR 2022, section 3: parallel adapters); 0 for none. They belong to the joint
            encoder, in all three regimes; a text embedded by itself passes them by, so that the
            text tower stays what it was before the adapters were trained.
        adapter_context_size: width of a linear map of the mean of the sequence's clips (their
            features, or the embeddings of their visual words) that the adapters see too, so that
            every layer can read the picture without attention having learnt to find it; 0 for none.
        shared_size: D, width of the space that video and text share.
        projection_hidden_size: width of the clip projection's hidden layer; 0 for a linear one.
        projection_dropout: of the clip projection's hidden layer, in training.
        num_decoder_layers: layers of the decoder that writes text; 0 for no decoder.
        decoder_intermediate_size: width of the decoder's feed-forward layers.
        max_decoder_positions: word pieces that the decoder writes, at most.
        decoder_shortlist_size: how many word pieces the decoder chooses from (those that its
            training data has; Jean et al., 2015, section 3); 0 for the whole vocabulary.
        text_pooling: how word pieces become one text vector: "mean" or "cls".
        max_text_length: word pieces of a text embedded by itself, special tokens included.
        cls_token_id, sep_token_id, mask_token_id, video_token_id, pad_token_id: special tokens;
            `video_token_id` is `[>]`, which stands between text and video.
        backbone: the visual backbone: `{"name", "weights", ...}`, where `weights` is a path
            relative to the bundle and further keys go to the backbone's factory.
        text_tower: None where this encoder embeds text itself; else path or hub id of a
            sentence-transformers model that does.
        clip_seconds: length of a clip in seconds.

    Raises:
        ValueError: a value is out of its range.
    """

    model_type = "videobert"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 12,
        intermediate_size: int = 1536,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        position_encoding: str = "learned",
        visual_feature_size: int = 1280,
        visual_reduction_size: int = 0,
        visual_dropout_prob: float = 0.0,
        visual_vocab_size: int = 0,
        visual_input: str = "features",
        max_visual_positions: int = 64,
        adapter_size: int = 0,
        adapter_context_size: int = 0,
        shared_size: int = 384,
        projection_hidden_size: int = 1024,
        projection_dropout: float = 0.0,
        num_decoder_layers: int = 0,
        decoder_intermediate_size: int = 1536,
        max_decoder_positions: int = 64,
        decoder_shortlist_size: int = 0,
        text_pooling: str = "mean",
        max_text_length: int = 256,
        pad_token_id: int = 0,
        video_token_id: int = 1,
        cls_token_id: int = 101,
        sep_token_id: int = 102,
        mask_token_id: int = 103,
        backbone: dict[str, Any] | None = None,
        text_tower: str | None = None,
        clip_seconds: float = 1.5,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.position_encoding = position_encoding
        self.visual_feature_size = visual_feature_size
        self.visual_reduction_size = visual_reduction_size
        self.visual_dropout_prob = visual_dropout_prob
        self.visual_vocab_size = visual_vocab_size
        self.visual_input = visual_input
        self.max_visual_positions = max_visual_positions
        self.adapter_size = adapter_size
        self.adapter_context_size = adapter_context_size
        self.shared_size = shared_size
        self.projection_hidden_size = projection_hidden_size
        self.projection_dropout = projection_dropout
        self.num_decoder_layers = num_decoder_layers
        self.decoder_intermediate_size = decoder_intermediate_size
        self.max_decoder_positions = max_decoder_positions
        self.decoder_shortlist_size = decoder_shortlist_size
        self.text_pooling = text_pooling
        self.max_text_length = max_text_length
        self.video_token_id = video_token_id
        self.cls_token_id = cls_token_id
        self.mask_token_id = mask_token_id
        self.backbone = backbone
        self.text_tower = text_tower
        self.clip_seconds = clip_seconds
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(pad_token_id=pad_token_id, sep_token_id=sep_token_id, **kwargs)
        self.sep_token_id = sep_token_id
        self._check()

    def space_size(self, space: str) -> int:
        """Width of what visual words are made of: of "features", or of "embeddings"."""
        return self.shared_size if space == "embeddings" else self.visual_feature_size

    def _check(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        for name, known in (
            ("position_encoding", POSITIONS),
            ("visual_input", VISUAL_INPUTS),
            ("text_pooling", ("mean", "cls")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        if self.visual_input != "features" and self.visual_vocab_size < 1:
            raise ValueError(f"visual_input {self.visual_input!r} needs a visual_vocab_size")
        if self.adapter_context_size and not self.adapter_size:
            raise ValueError("adapter_context_size needs an adapter_size")
        if not self.clip_seconds > 0:
            raise ValueError(f"clip_seconds {self.clip_seconds} is not positive")
        if self.text_tower is None and self.shared_size != self.hidden_size:
            raise ValueError("without a text_tower, shared_size must equal hidden_size: "
                             "the encoder's own text vectors span the shared space")
