"""The head of the task `sentiment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vbkit.errors import ManifestError, ModelError
from vbkit.evaluation.classification import classification_scores
from vbkit.heads import Example, FitOptions, Head, HeadContext, load_head, save_head
from vbkit.model.branch import BranchConfig
from vbkit.model.segments import Passage, SegmentClassifier
from vbkit_sentiment import LABELS, SENTIMENT, SENTIMENT_VIDEOS, SentimentOptions
from vbkit_sentiment.explain import explain_rows
from vbkit_sentiment.model import PictureSentiment, trusted
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
        self.picture = picture_of(tensors, self.settings)
        self.picture.to(context.device).requires_grad_(False)
        self.text = SegmentClassifier(
            context.text_branch, BranchConfig(**self.settings["text"]["branch"]), len(LABELS),
        ).load(tensors, "text.")

    def predict(self, features: Features) -> dict[str, pd.DataFrame]:
        """Tables `sentiment` and `sentiment_videos` of one video."""
        speech = speech_mask(features.segments)
        read = features.in_languages(LANGUAGES)
        notes = [None if known or not said else f"text in language {language} was not read"
                 for known, said, language in zip(read, speech, features.segment_languages,
                                                  strict=True)]
        if note := features.unread_note(LANGUAGES):
            self.context.logger.info("%s: %s by sentiment", features.video_id, note)
        rows = segment_rows(
            features.segments, features.segment_times, self._of_segments(features, speech & read),
            notes,
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

    def text_logits(self, texts: Sequence[str]) -> Tensor:
        """Calibrated logits (S, 3) of the segments of one video, in their order."""
        if self.options.context:
            return self._calibrated(self.text(texts))
        branch = self.text.branch
        alone = branch.read_all([[ids] for ids in branch.tokenize(texts)])
        return self._calibrated(self.text.output(torch.cat(alone)))

    def _calibrated(self, logits: Tensor) -> Tensor:
        return logits / float(self.settings["text"]["temperature"])

    def picture_logits(self, clip_features: Tensor) -> Tensor:
        """Calibrated logits (C, 3) of clips, (C, Dv)."""
        settings = self.settings["picture"]
        logits = self.picture(clip_features) / settings["temperature"]
        return trusted(logits, settings["prior"], settings["trust"])

    def fit(self, train: Sequence[Example], val: Sequence[Example], options: FitOptions) -> None:
        """Go on training what reads text; what reads pictures stays as it is.

        A video's label is that of each of its segments, unless it is a list of them. Rare labels
        count more, by the root of how rare they are. The pass with the least validation loss is
        kept, and calibrated on the same videos.
        """
        learning, held = self._passages(train), self._passages(val)
        if not learning or not held:
            raise ManifestError("sentiment is learnt from text: there must be labelled videos with "
                                "a transcript or text to learn from, and some to validate with")
        labels = torch.cat([passage.target for passage in learning])
        share = torch.bincount(labels, minlength=3).float() / len(labels)
        weights = share.clamp(min=0.01).rsqrt()
        self.text.fit(learning, held, lambda logits, target: F.cross_entropy(
            logits, target, weight=weights.to(logits)), options)
        with torch.no_grad():
            logits = torch.cat([self.text(passage.texts) for passage in held]).cpu()
        known = torch.cat([passage.target for passage in held])
        temperatures = torch.logspace(-0.5, 0.7, 97)
        losses = torch.stack([F.cross_entropy(logits / t, known) for t in temperatures])
        self.settings = {**self.settings, "text": {
            **self.settings["text"], "temperature": float(temperatures[int(losses.argmin())]),
            "measured": {}}}

    def _passages(self, examples: Sequence[Example]) -> list[Passage]:
        """Every segment that says something and has a label, by video."""
        passages = []
        for example in examples:
            features = example.features
            speech = np.flatnonzero(self.read(features))
            if not len(speech):
                continue
            given = example.label("label")
            given = example.label("score") if given is None else given
            values = given if isinstance(given, list) else [given] * len(features.segments)
            if len(values) != len(features.segments):
                raise ManifestError(f"{example.video_id} has {len(features.segments)} segments, "
                                    f"but {len(values)} labels")
            labels = [LABELS.index(_label_of(values[place], example.video_id)[0])
                      for place in speech]
            passages.append(Passage([features.segments[place] for place in speech],
                                    torch.tensor(labels)))
        return passages

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics over videos, or over segments where `label` or `score` is a list of them.

        Returns:
            with `label`, those of `classification_scores`, and `accuracy_binary`: of what is
            negative or positive, the share whose score has the right sign; with `score`, also
            `mean_absolute_error` and `pearson`.
        """
        rows = [row for example in examples for row in self._judged(example)]
        if not rows:
            raise ManifestError("there is no text or picture to judge")
        labels = [label for label, _, _ in rows]
        p = np.array([values for _, _, values in rows])
        found: dict[str, Any] = dict(classification_scores(labels, p, LABELS))
        signs = np.array([LABELS.index(label) - 1 for label in labels])
        said = p[:, 2] - p[:, 0]
        polar = signs != 0
        found["accuracy_binary"] = (float((np.sign(said[polar]) == signs[polar]).mean())
                                    if polar.any() else None)
        true = np.array([np.nan if score is None else score for _, score, _ in rows])
        known = ~np.isnan(true)
        if known.any():
            found["mean_absolute_error"] = float(np.abs(said[known] - true[known]).mean())
            varied = known.sum() > 1 and np.ptp(true[known]) > 0 and np.ptp(said[known]) > 0
            found["pearson"] = (float(np.corrcoef(said[known], true[known])[0, 1])
                                if varied else None)
        return found

    def _judged(self, example: Example) -> list[tuple[str, float | None, np.ndarray]]:
        """(label, score, probabilities) of a video, or of each of its segments."""
        tables = self.predict(example.features)
        given = example.label("label")
        given = example.label("score") if given is None else given
        by_segment = isinstance(given, list)
        table = tables[SENTIMENT.name if by_segment else SENTIMENT_VIDEOS.name]
        if by_segment:
            table = table[table["segment"].notna()].sort_values("segment")
            if len(given) != len(table):
                raise ManifestError(f"{example.video_id} has {len(table)} segments, but "
                                    f"{len(given)} labels")
        p = table[[f"p_{label}" for label in LABELS]].to_numpy(float, na_value=np.nan)
        p = np.where(np.isnan(p), 1 / 3, p)  # what was not judged counts as a guess
        return [(*_label_of(value, example.video_id), row)
                for value, row in zip(given if by_segment else [given], p, strict=True)]

    def explain(self, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
        """The words, segments and clips that made rows."""
        return explain_rows(self, features, rows)

    def save_pretrained(self, path: Path) -> None:
        """Write weights and settings into the folder `path`."""
        tensors = {f"picture.{name}": value
                   for name, value in self.picture.state_dict().items()}
        tensors |= self.text.state("text.")
        save_head(path, tensors, self.settings, int8=["text.branch."])

    def segment_probabilities(self, features: Features) -> np.ndarray:
        """(S, 3) in the order of `LABELS`; NaN where a segment cannot be judged."""
        return self._of_segments(features, self.read(features))

    def read(self, features: Features) -> np.ndarray:
        """(S,) bool: which segments say something, in a language that is known."""
        return speech_mask(features.segments) & features.in_languages(LANGUAGES)

    def _of_segments(self, features: Features, speech: np.ndarray) -> np.ndarray:
        probabilities = np.full((len(features.segments), 3), np.nan)
        if not speech.any():
            return probabilities
        # A mark such as [Music] is no neighbour: what is said before and after it is.
        texts = [features.segments[place] for place in np.flatnonzero(speech)]
        probabilities[speech] = self.text_logits(texts).softmax(1).cpu().numpy()
        return probabilities

    def _of_clips(self, features: Features, clips: np.ndarray) -> np.ndarray:
        if not clips.size:
            return np.zeros((0, 3))
        rows = features.clip_features[torch.as_tensor(clips)]
        return self.picture_logits(rows).softmax(1).cpu().numpy()


def _label_of(value: Any, video_id: str) -> tuple[str, float | None]:
    """A label, and a score where one was given: below 0 is negative, 0 neutral."""
    if isinstance(value, str) and value.strip().lower() in LABELS:
        return value.strip().lower(), None
    try:
        score = float(value)
    except (TypeError, ValueError):
        raise ManifestError(f"{video_id}: sentiment {value!r} is none of {', '.join(LABELS)}, and "
                            "no score") from None
    return LABELS[int(np.sign(score)) + 1], score


def picture_of(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> PictureSentiment:
    """The picture model with its weights, in evaluation mode.

    Raises:
        ModelError: the tensors are not those of this head.
    """
    try:
        picture = PictureSentiment(settings["picture"]["width"])
        picture.load_state_dict({name.removeprefix("picture."): value
                                 for name, value in tensors.items()
                                 if name.startswith("picture.")})
    except (KeyError, RuntimeError) as error:
        raise ModelError(f"these weights are no sentiment head: {error}") from error
    return picture.eval()
