"""The head of the task `sentiment`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vbkit.errors import ModelError
from vbkit.heads import Head, HeadContext, load_head, save_head
from vbkit_sentiment import SENTIMENT, SENTIMENT_VIDEOS, SentimentOptions
from vbkit_sentiment.model import PictureSentiment, TextSentiment, neighbours, trusted
from vbkit_sentiment.rows import clip_rows, segment_rows, silent_clips, speech_mask, video_row

if TYPE_CHECKING:
    import pandas as pd

    from vbkit.features import Features

__all__ = ["SHIPPED", "SentimentHead"]

SHIPPED = Path(__file__).parent / "weights"
"""Folder of the weights that the plugin ships."""

LANGUAGES = frozenset({"en"})
"""Languages that the text model was trained on."""


class SentimentHead(Head):
    """Sentiment of segments, of clips where nobody speaks, and of the video."""

    def setup(self, context: HeadContext) -> None:
        """Load the weights.

        Raises:
            ModelError: the weights are missing, damaged, or of another model.
        """
        super().setup(context)
        options = context.options
        self.options = options if isinstance(options, SentimentOptions) else SentimentOptions()
        tensors, self.settings = load_head(
            context.head_path or SHIPPED,
            model_name=context.model_name,
            model_fingerprint=context.model_fingerprint,
        )
        self.text, self.picture = models_of(tensors, self.settings)
        self.text.to(context.device).requires_grad_(False)
        self.picture.to(context.device).requires_grad_(False)

    def predict(self, features: Features) -> dict[str, pd.DataFrame]:
        """Tables `sentiment` and `sentiment_videos` of one video."""
        speech = speech_mask(features.segments)
        rows = segment_rows(
            features.segments, features.segment_times, self._of_segments(features, speech)
        )
        if self.options.silence:
            clips = silent_clips(features.clip_times, features.segment_times, speech)
            rows += clip_rows(clips, features.clip_times, self._of_clips(features, clips))
            if clips.size and features.segments:
                rows.sort(key=lambda row: row["start_s"])
        return {
            SENTIMENT.name: SENTIMENT.frame(rows),
            SENTIMENT_VIDEOS.name: SENTIMENT_VIDEOS.frame([video_row(rows)]),
        }

    def text_logits(self, embeddings: Tensor) -> Tensor:
        """Calibrated logits (S, 3) of the segments of one video, (S, D) in order."""
        inputs = neighbours(embeddings)
        if not self.options.context:
            inputs[:, 1:] = 0
        logits: Tensor = self.text(inputs) / self.settings["text"]["temperature"]
        return logits

    def picture_logits(self, clip_features: Tensor) -> Tensor:
        """Calibrated logits (C, 3) of clips, (C, Dv)."""
        settings = self.settings["picture"]
        logits = self.picture(clip_features) / settings["temperature"]
        return trusted(logits, settings["prior"], settings["trust"])

    def save_pretrained(self, path: Path) -> None:
        """Write weights and settings into the folder `path`."""
        tensors = {
            f"{part}.{name}": value
            for part, module in (("text", self.text), ("picture", self.picture))
            for name, value in module.state_dict().items()
        }
        save_head(path, tensors, self.settings)

    def _of_segments(self, features: Features, speech: np.ndarray) -> np.ndarray:
        probabilities = np.full((len(features.segments), 3), np.nan)
        if not speech.any():
            return probabilities
        if features.language is not None and features.language not in LANGUAGES:
            self.context.logger.info(
                "%s: sentiment of text in language %r is not known; its rows are NULL",
                features.video_id, features.language,
            )
            return probabilities
        # A mark such as [Music] is no neighbour: what is said before and after it is.
        embeddings = features.segment_embeddings[torch.as_tensor(np.flatnonzero(speech))]
        probabilities[speech] = self.text_logits(embeddings).softmax(1).cpu().numpy()
        return probabilities

    def _of_clips(self, features: Features, clips: np.ndarray) -> np.ndarray:
        if not clips.size:
            return np.zeros((0, 3))
        rows = features.clip_features[torch.as_tensor(clips)]
        return self.picture_logits(rows).softmax(1).cpu().numpy()


def models_of(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[TextSentiment, PictureSentiment]:
    """The two models with their weights, in evaluation mode.

    Raises:
        ModelError: the tensors are not those of this head.
    """
    try:
        text = TextSentiment(settings["text"]["width"], settings["text"]["hidden"])
        picture = PictureSentiment(settings["picture"]["width"])
        for prefix, module in (("text.", text), ("picture.", picture)):
            module.load_state_dict(
                {
                    name.removeprefix(prefix): value
                    for name, value in tensors.items()
                    if name.startswith(prefix)
                }
            )
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"these weights are no sentiment head: {error}") from error
    return text.eval(), picture.eval()
