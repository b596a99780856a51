"""Clip features and transcript segments of one video into the outputs that heads share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vbkit.engine.bundle import Bundle
from vbkit.engine.windows import Plan, plan_windows, spread
from vbkit.errors import FeatureError, ModelError
from vbkit.features import JointOutput
from vbkit.model.motion import MOTION_FILE
from vbkit.specs import FEATURE_OUTPUTS

__all__ = ["Encoder"]

JOINT_OUTPUTS = frozenset({"clip_hidden", "segment_hidden", "pooled", "token_hidden"})
_TEXT_BATCH = 64
_WINDOW_BATCH = 4
_DECODER_BATCH = 32
_TEXT_MEMORY = 4096


class Encoder:
    """VideoBERT at inference: texts alone, and the joint encoder over windows.

    Args:
        bundle: the loaded model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.model = bundle.model
        self.config = bundle.config
        self.device = bundle.device
        self._texts: OrderedDict[str, Tensor] = OrderedDict()

    def check_needs(self, needs: Iterable[str], task: str = "") -> None:
        """Raise where an output is unknown, or this model does not have it.

        Args:
            needs: names of outputs.
            task: who needs them, for the message.
        """
        for name in sorted(needs):
            if name not in FEATURE_OUTPUTS:
                raise FeatureError(f"{name!r} is no output of the encoder; known are "
                                   f"{', '.join(sorted(FEATURE_OUTPUTS))}")
            if name == "visual_words" and self.bundle.vocabulary is None:
                raise ModelError(f"model {self.bundle.name} has no visual vocabulary")
            if name == "generate" and self.bundle.generator is None:
                raise ModelError(f"model {self.bundle.name} has no decoder that could write text")
            if name == "motion" and self.bundle.motion is None:
                asker = f"task {task}" if task else "the output motion"
                raise ModelError(f"model {self.bundle.name} has no motion network ({MOTION_FILE}), "
                                 f"which {asker} needs; take a model that has one")

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts into the shared space: (N, D) float32 unit vectors on the engine's device."""
        if isinstance(texts, str):
            raise FeatureError("encode_text takes a list of strings, not one string")
        if not len(texts):
            return torch.zeros(0, self.config.shared_size, device=self.device)
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        fresh = dict(zip(missing, self._embed(missing), strict=True))
        found = torch.stack([fresh[text] if text in fresh else self._texts[text]
                             for text in texts])
        self._texts.update(fresh)
        while len(self._texts) > _TEXT_MEMORY:
            self._texts.popitem(last=False)
        return found

    def _embed(self, texts: Sequence[str]) -> Tensor:
        if not texts:
            return torch.zeros(0, self.config.shared_size, device=self.device)
        tower = self.bundle.text_tower
        if tower is not None:
            return tower.encode(list(texts), convert_to_tensor=True, normalize_embeddings=True,
                                show_progress_bar=False).float().to(self.device)
        processor = self.bundle.processor
        ids = [row[: self.config.max_text_length - 2] for row in processor.tokenize(texts)]
        # Sorted by length, so that little is padded.
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        out = torch.empty(len(ids), self.config.shared_size, device=self.device)
        for start in range(0, len(order), _TEXT_BATCH):
            chunk = order[start : start + _TEXT_BATCH]
            rows = [[self.config.cls_token_id, *ids[i], self.config.sep_token_id] for i in chunk]
            out[chunk] = self.model.embed_text(*(x.to(self.device) for x in processor.pad(rows)))
        return out

    @torch.no_grad()
    def embed_clips(self, clip_features: Tensor) -> Tensor:
        """(C, Dv) clip features into the shared space: (C, D) unit vectors."""
        return self.model.embed_clips(clip_features)

    @torch.no_grad()
    def visual_words(self, clip_features: Tensor) -> Tensor:
        """(..., Dv) clip features into visual words: (...) int64.

        Raises:
            ModelError: the model has no visual vocabulary.
        """
        vocabulary = self.bundle.vocabulary
        if vocabulary is None:
            raise ModelError(f"model {self.bundle.name} has no visual vocabulary")
        return vocabulary.assign(self.model.in_space(clip_features, vocabulary.space))

    def visual_inputs(self, clips: Sequence[Tensor]) -> dict[str, Tensor]:
        """Clip features of B sequences, (V, Dv) each, as `VideoBertModel.forward` takes them.

        Visual words are among them where the model reads them.
        """
        from vbkit.model.processing import pad_clips

        features, mask = pad_clips([rows.to(self.device) for rows in clips])
        inputs = {"visual_features": features, "visual_mask": mask}
        if self.config.visual_input != "features":
            inputs["visual_words"] = self.visual_words(features)
        return inputs

    @torch.no_grad()
    def generate(self, clip_features: Tensor, clips: Sequence[Sequence[int]], *,
                 num_beams: int = 4, max_new_tokens: int | None = None) -> list[str]:
        """Describe chosen clips of one video, by beam search in the decoder.

        Args:
            clip_features: (C, Dv) of the video.
            clips: for each sentence, indices of the clips that it is about.
            num_beams: 1 is greedy.
            max_new_tokens: word pieces at most; None for the model's own limit.

        Returns:
            One sentence for each element of `clips`.

        Raises:
            FeatureError: an element is empty, or has an index out of range.
            ModelError: the model has no decoder.
        """
        for chosen in clips:
            if not len(chosen) or any(not 0 <= i < len(clip_features) for i in chosen):
                raise FeatureError("generate: a list of clips is empty, or a clip's index is out "
                                   "of range")
        return self.describe([clip_features[list(chosen)] for chosen in clips],
                             num_beams=num_beams, max_new_tokens=max_new_tokens)

    @torch.no_grad()
    def describe(self, sequences: Sequence[Tensor], *, num_beams: int = 4,
                 max_new_tokens: int | None = None) -> list[str]:
        """A sentence for each sequence of clip features (V, Dv), V at least 1.

        Of a sequence with more clips than the model takes, evenly spaced ones are read.

        Raises:
            ModelError: the model has no decoder.
            FeatureError: `max_new_tokens` is more than the decoder can write.
        """
        generator = self.bundle.generator
        if generator is None:
            raise ModelError(f"model {self.bundle.name} has no decoder that could write text; "
                             "train one with vbkit pretrain, or take another model")
        most = self.config.max_decoder_positions - 1
        if max_new_tokens is not None and max_new_tokens > most:
            raise FeatureError(f"the decoder of model {self.bundle.name} writes at most {most} "
                               "word pieces")
        settings = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        shown = [spread(rows, self.config.max_visual_positions) for rows in sequences]
        # Sequences of like length together; equal ones need no padding.
        order = sorted(range(len(shown)), key=lambda index: len(shown[index]))
        written = [""] * len(shown)
        for start in range(0, len(order), _DECODER_BATCH):
            batch = order[start : start + _DECODER_BATCH]
            ids = torch.tensor([[self.config.cls_token_id, self.config.video_token_id]])
            ids = ids.expand(len(batch), 2).to(self.device)
            out = generator.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=num_beams,
                do_sample=False, **settings, **self.visual_inputs([shown[i] for i in batch]))
            for index, text in zip(batch, self.bundle.processor.written(out), strict=True):
                written[index] = text
        return written

    @torch.no_grad()
    def joint_outputs(
        self,
        clip_times: np.ndarray,
        clip_features: Tensor,
        segments: Sequence[str],
        segment_times: np.ndarray,
    ) -> dict[str, Any]:
        """Run the joint encoder over one video's windows.

        Returns:
            `clip_hidden` (C, H), `segment_hidden` (S, H), `pooled` (H,), `tokens` and
            `token_hidden`, as `FEATURE_OUTPUTS` describes them.
        """
        ids = self.bundle.processor.tokenize(segments)
        lengths = [len(row) for row in ids]
        flat = np.array([piece for row in ids for piece in row], dtype=np.int64)
        plan = plan_windows(clip_times, lengths, segment_times, self.config.max_visual_positions,
                            self.config.max_position_embeddings)
        clip_hidden, piece_hidden = self._run_windows(plan, clip_features, flat)
        token_hidden = list(piece_hidden.split(lengths)) if lengths else []
        width = self.config.hidden_size
        segment_hidden = torch.stack([
            rows.mean(0) if len(rows) else torch.zeros(width, device=self.device)
            for rows in token_hidden
        ]) if token_hidden else torch.zeros(0, width, device=self.device)
        tokenizer = self.bundle.processor.tokenizer
        return {
            "clip_hidden": clip_hidden,
            "segment_hidden": segment_hidden,
            "pooled": _pool(clip_hidden, clip_times, segment_hidden, segment_times, lengths),
            "tokens": [tokenizer.convert_ids_to_tokens(row) for row in ids],
            "token_hidden": token_hidden,
        }

    def _run_windows(self, plan: Plan, clip_features: Tensor,
                     pieces: np.ndarray) -> tuple[Tensor, Tensor]:
        width = self.config.hidden_size
        clip_hidden = torch.zeros(len(plan.clip_window), width, device=self.device)
        piece_hidden = torch.zeros(len(pieces), width, device=self.device)
        # Windows with clips and windows of text alone are different sequences.
        for with_clips in (True, False):
            chosen = [(i, w) for i, w in enumerate(plan.windows) if bool(w.n_clips) == with_clips]
            for start in range(0, len(chosen), _WINDOW_BATCH):
                batch = chosen[start : start + _WINDOW_BATCH]
                texts = [pieces[window.pieces].tolist() for _, window in batch]
                clips = [np.arange(*window.clips) for _, window in batch]
                text_out, clip_out = self._forward(
                    texts, [clip_features[c] for c in clips] if with_clips else None)
                for (index, window), text, clip, at in zip(batch, text_out, clip_out, clips,
                                                           strict=True):
                    mine = plan.piece_window[window.pieces] == index
                    piece_hidden[window.pieces[mine]] = text[torch.from_numpy(mine)]
                    if with_clips:
                        own = plan.clip_window[at] == index
                        clip_hidden[at[own]] = clip[torch.from_numpy(own)]
        return clip_hidden, piece_hidden

    def _forward(self, texts: Sequence[list[int]],
                 clips: Sequence[Tensor] | None) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden states at the given word pieces and clips, special tokens left out."""
        config, processor = self.config, self.bundle.processor
        last = config.sep_token_id if clips is None else config.video_token_id
        ids, mask = processor.pad([[config.cls_token_id, *text, last] for text in texts])
        visual = {} if clips is None else self.visual_inputs(clips)
        out = self.model(ids.to(self.device), mask.to(self.device), **visual)
        text_out = [row[1 : 1 + len(text)] for row, text in zip(out.text_hidden, texts,
                                                                strict=True)]
        if clips is None:
            return text_out, [out.text_hidden[0, :0]] * len(texts)
        return text_out, [row[: len(clip)] for row, clip in zip(out.visual_hidden, clips,
                                                                strict=True)]

    @torch.no_grad()
    def joint(
        self,
        clip_features: Tensor,
        segment_texts: Sequence[str],
        texts: Sequence[str],
        segments: Sequence[Sequence[int]],
        clips: Sequence[Sequence[int]],
    ) -> JointOutput:
        """Read each text together with chosen segments and clips of one video.

        The sequence is `[CLS] text [SEP] segments [>] clips [SEP]`.

        Args:
            clip_features: (C, Dv) of the video.
            segment_texts: its S segments.
            texts: N texts, for instance questions.
            segments: for each text, indices of the segments to read with it.
            clips: for each text, indices of the clips to read with it.

        Raises:
            FeatureError: the lists differ in length, an index is out of range, or a sequence is
                longer than the model takes.
        """
        if not len(texts) == len(segments) == len(clips):
            raise FeatureError(f"joint: {len(texts)} texts, {len(segments)} lists of segments and "
                               f"{len(clips)} lists of clips; give as many of each")
        text_ids = self.bundle.processor.tokenize(texts)
        ids = self.bundle.processor.tokenize(segment_texts)
        pooled, text_hidden, segment_hidden, clip_hidden = [], [], [], []
        for text, wanted, shown in zip(text_ids, segments, clips, strict=True):
            if any(not 0 <= i < len(ids) for i in wanted) or any(
                    not 0 <= i < len(clip_features) for i in shown):
                raise FeatureError("joint: a segment or clip index is out of range")
            row = [*text, self.config.sep_token_id, *(piece for i in wanted for piece in ids[i])]
            limit = self.config.max_position_embeddings - 3 - len(shown)
            if len(row) > limit or len(shown) > self.config.max_visual_positions:
                raise FeatureError(f"joint: {len(row)} word pieces and {len(shown)} clips do not "
                                   f"fit; the model takes {limit} beside those clips")
            text_out, clip_out = self._forward(
                [row], [clip_features[list(shown)]] if len(shown) else None)
            hidden = text_out[0]
            pooled.append(torch.cat([hidden, clip_out[0]]).mean(0))
            text_hidden.append(hidden[: len(text)])
            parts = hidden[len(text) + 1 :].split([len(ids[i]) for i in wanted])
            segment_hidden.append(torch.stack([
                part.mean(0) if len(part) else torch.zeros_like(hidden[0]) for part in parts
            ]) if parts else hidden[:0])
            clip_hidden.append(clip_out[0])
        width = self.config.hidden_size
        return JointOutput(
            torch.stack(pooled) if pooled else torch.zeros(0, width, device=self.device),
            text_hidden, segment_hidden, clip_hidden)


def _pool(
    clip_hidden: Tensor,
    clip_times: np.ndarray,
    segment_hidden: Tensor,
    segment_times: np.ndarray,
    lengths: Sequence[int],
) -> Tensor:
    """(H,): the mean of clips and the mean of segments, each weighted by duration, averaged."""
    means = []
    if len(clip_hidden):
        means.append(_weighted(clip_hidden, clip_times[:, 1] - clip_times[:, 0]))
    if sum(lengths):
        duration = segment_times[:, 1] - segment_times[:, 0]
        means.append(_weighted(segment_hidden, np.array(lengths, float)
                               if np.isnan(duration).any() else duration))
    if not means:
        return torch.zeros(clip_hidden.shape[-1], device=clip_hidden.device)
    return torch.stack(means).mean(0)


def _weighted(rows: Tensor, weight: np.ndarray) -> Tensor:
    if weight.sum() <= 0:  # a still picture, subtitles of no length
        return rows.mean(0)
    scale = torch.from_numpy(weight / weight.sum()).to(rows.device, rows.dtype)
    return (rows * scale[:, None]).sum(0)

