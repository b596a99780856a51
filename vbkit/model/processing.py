"""`VideoBertProcessor`: texts and clip features into the tensors that VideoBERT takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

__all__ = ["VIDEO_TOKEN", "VideoBertProcessor", "joined", "pad_clips"]

VIDEO_TOKEN = "[>]"
"""Stands between text and video in the input sequence (Sun et al., ICCV 2019, section 3.2)."""


class VideoBertProcessor(ProcessorMixin):
    """Tokenizes texts, and lays out `[CLS] text [>] video [SEP]`.

    Args:
        tokenizer: a BERT tokenizer that knows the token `[>]`.
        max_text_length: word pieces of a text by itself, special tokens included.
    """

    attributes = ["tokenizer"]  # noqa: RUF012
    tokenizer_class = "AutoTokenizer"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_text_length: int = 256,
                 **kwargs: Any) -> None:
        super().__init__(tokenizer, **kwargs)
        self.max_text_length = max_text_length
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        if self.video_token_id in (None, tokenizer.unk_token_id):
            raise ValueError(f"the tokenizer has no token {VIDEO_TOKEN}")

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        clip_features: Sequence[Tensor] | None = None,
        max_length: int | None = None,
    ) -> BatchFeature:
        """Build a batch.

        Args:
            text: B texts; None for video alone.
            clip_features: B tensors (V, Dv); None for text alone.
            max_length: word pieces at most, special tokens included; longer texts are cut.

        Returns:
            `input_ids` (B, L), `attention_mask` (B, L) and, with clips, `visual_features`
            (B, V, Dv) and `visual_mask` (B, V).

        Raises:
            ValueError: neither is given, or their numbers differ.
        """
        if text is None and clip_features is None:
            raise ValueError("give text, clip_features, or both")
        texts = [text] if isinstance(text, str) else text
        count = len(texts) if texts is not None else len(clip_features or ())
        if clip_features is not None and len(clip_features) != count:
            raise ValueError(f"{count} texts, but clip features of {len(clip_features)} videos")
        ids = self.tokenize(texts) if texts is not None else [[] for _ in range(count)]
        limit = (max_length or self.max_text_length) - 2
        end = self.tokenizer.sep_token_id if clip_features is None else self.video_token_id
        rows = [[self.tokenizer.cls_token_id, *row[:limit], end] for row in ids]
        data = dict(zip(("input_ids", "attention_mask"), self.pad(rows), strict=True))
        if clip_features is not None:
            data["visual_features"], data["visual_mask"] = pad_clips(clip_features)
        return BatchFeature(data)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Word piece ids of each text, without special tokens, not cut."""
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def written(self, ids: Tensor) -> list[str]:
        """Texts of (B, K) word piece ids that a decoder wrote, special tokens left out.

        Words that BERT's pieces part, as in `t - shirt`, `man ' s` and `grass .`, are joined.
        """
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [joined(text.strip()) for text in texts]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(B, L) int64 ids and their mask, padded at the end."""
        length = max(map(len, rows), default=0)
        ids = torch.full((len(rows), length), int(self.tokenizer.pad_token_id or 0))
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return ids, mask


_APART = re.compile(
    r"(?<=\w) (['’]) (?=(?:s|t|m|d|re|ve|ll)\b)"
    r"|(?<=\w) (-) (?=\w)"
    r"|(?<=\d) ([.,:/]) (?=\d)"
    r"| ([.,!?;:])(?=\s|$)"
)


def joined(text: str) -> str:
    """Words as people write them, of a text in which BERT's pieces stand apart."""
    return _APART.sub(lambda match: next(group for group in match.groups() if group), text)


def pad_clips(clips: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, V, Dv) clip features and their (B, V) mask, padded at the end."""
    width = max((len(rows) for rows in clips), default=0)
    features = clips[0].new_zeros(len(clips), width, clips[0].shape[-1])
    mask = torch.zeros(len(clips), width, dtype=torch.long, device=clips[0].device)
    for index, rows in enumerate(clips):
        features[index, : len(rows)] = rows
        mask[index, : len(rows)] = 1
    return features, mask
