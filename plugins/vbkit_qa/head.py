"""The head of the task `qa`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vbkit.errors import ManifestError
from vbkit.evaluation.classification import calibration_error
from vbkit.evaluation.spans import Span, overlap, span_scores
from vbkit.heads import Example, FitOptions, Head, HeadContext, load_head, save_head
from vbkit_qa import QA_TABLE, QaOptions
from vbkit_qa.calibration import Logistic, log_odds
from vbkit_qa.explain import explain_rows
from vbkit_qa.reader import (
    Reader,
    ReaderConfig,
    choose,
    evidence_of,
    longest_answer,
    span_evidence,
    spans_of,
)
from vbkit_qa.text import content_words, lexical_features, segment_features, words
from vbkit_qa.training import Answered, Asked, fit_reader, recalibrated
from vbkit_qa.visual import (
    find_moments,
    names_somebody,
    prompt_of,
    standardise,
    time_phrase,
    visual_evidence,
)

if TYPE_CHECKING:
    from vbkit.features import Features

__all__ = ["QaHead"]

WEIGHTS = Path(__file__).parent / "weights"

LEAST_SCORE = 0.05
"""Answers after the first are given from this score on."""

_REMEMBERED = 4096


class QaHead(Head):
    """Answers from the transcript by a trained reader, from the picture zero-shot."""

    def setup(self, context: HeadContext) -> None:
        """Load the reader and its calibration.

        Raises:
            ModelError: the head is missing, or was trained on another model.
        """
        super().setup(context)
        options = context.options if isinstance(context.options, QaOptions) else QaOptions()
        self.options = options
        tensors, settings = load_head(
            context.head_path or WEIGHTS, model_name=context.model_name,
            model_fingerprint=context.model_fingerprint)
        self.settings = settings
        self.tensors = tensors
        config = ReaderConfig(**settings["reader"])
        self.readers = []
        for member in range(int(settings["members"])):
            reader = Reader(config)
            prefix = f"reader.{member}."
            reader.load_state_dict({name.removeprefix(prefix): value
                                    for name, value in tensors.items() if name.startswith(prefix)})
            self.readers.append(reader.eval().to(context.device))
        self.config = config
        self.background = tensors["visual.background"].to(context.device)
        self.right = Logistic.from_settings(settings["right"])
        self.found = Logistic.from_settings(settings["found"])
        self.score = Logistic.from_settings(settings["score"])
        self.shown = Logistic.from_settings(settings["shown"])
        self.language = settings.get("language", "en")
        self._encoded: dict[str, Tensor] = {}

    def predict(self, features: Features) -> dict[str, pd.DataFrame]:
        """Rows of the table `qa` for one video: for each question up to `top_k`, at least one."""
        questions = list(features.questions)
        if not questions:
            return {"qa": QA_TABLE.empty()}
        if note := features.unread_note({self.language}):
            self.context.logger.info("%s: %s by qa", features.video_id, note)
        asked = list(dict.fromkeys(questions))
        found: dict[str, list[dict[str, Any]]] = {question: [] for question in asked}
        sure: dict[str, float] = dict.fromkeys(asked, 0.0)
        for part in (self._read, self._look):
            for question, (rows, chance) in part(asked, features).items():
                if found[question] and names_somebody(question) and (
                        sure[question] >= self.options.answerable):
                    _rank_below(rows, found[question])
                found[question] += rows
                sure[question] = max(sure[question], chance)
        out: list[dict[str, Any]] = []
        for question in asked:
            rows = sorted(found[question], key=lambda row: -row["score"])[: self.options.top_k]
            rows = rows[:1] + [row for row in rows[1:] if row["score"] >= LEAST_SCORE]
            rows = rows or [_nothing()]
            no_answer = rows[0]["answer"] is None or sure[question] < self.options.answerable
            out += [{"question": question, "rank": rank, "no_answer": no_answer, "note": note,
                     **row}
                    for rank, row in enumerate(rows, 1)]
        return {"qa": QA_TABLE.frame(out)}

    def fit(self, train: Sequence[Example], val: Sequence[Example], options: FitOptions) -> None:
        """Go on training the readers of transcripts; what finds moments in the picture stays.

        A row asks one question and says where its answer is: `answer_start` and `answer_end`
        (segments), or `answer_start_s` and `answer_end_s`. The pass with the least validation loss
        is kept. Scores are calibrated on the validation questions where there are enough of them.
        """
        learning, held = self._answered(train), self._answered(val)
        if not learning or not held:
            raise ManifestError(
                "qa learns from questions to transcripts: there must be rows with a question and "
                "answer_start and answer_end (or answer_start_s and answer_end_s) to learn from, "
                "and some to validate with")
        for member, reader in enumerate(self.readers):
            apart = replace(options, seed=options.seed + member, checkpoint=(
                None if options.checkpoint is None else options.checkpoint / f"reader{member}"))
            fit_reader(reader, learning, held, apart)
            self.tensors |= {f"reader.{member}.{name}": value
                             for name, value in reader.state_dict().items()}
        odds, right = [], []
        with torch.no_grad():
            for item in held:
                given = item.given
                scores = torch.stack([
                    reader.score_spans(reader(given.asked, given.segments, given.evidence),
                                       given.spans).log_softmax(1)
                    for reader in self.readers]).mean(0).float().cpu()
                for q, row in enumerate(scores):
                    ((first, last, mass),) = choose(row, given.spans, 1)
                    seen = span_evidence(first, last, mass, row, given.spans, given.asked[q],
                                         given.segments, given.lexical[q])
                    odds.append(log_odds(self.right(seen.span) * self.found(seen.subject)))
                    right.append(item.is_right(q, first, last))
        self.score = recalibrated(self.score, odds, right)
        self.settings = {**self.settings, "score": self.score.to_settings(), "validation": {}}

    def _answered(self, examples: Sequence[Example]) -> list[Answered]:
        """The questions of each transcript that it answers, with where."""
        found = []
        for example in examples:
            features = example.features
            questions, spans = [], []
            place = np.flatnonzero(features.in_languages({self.language})).tolist()
            for row in example.rows:
                asked = row.get("question") or []
                wanted = _answer_of(row, features.segment_times)
                if wanted is None or len(asked) != 1:
                    continue
                inside = [k for k, segment in enumerate(place)
                          if wanted[0] <= segment <= wanted[1]]
                if inside:
                    questions.append(asked[0])
                    spans.append((inside[0], inside[-1]))
            given = self._asked(questions, features) if questions else None
            if given is not None:
                found.append(Answered(given, torch.tensor(spans)))
        return found

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics of the first answers.

        Returns:
            those of `span_scores`, of segments or of seconds; `calibration_error` of the score, an
            answer counting as right from half an overlap on; `n_questions`. With `answer` alone,
            `token_f1` and `contains_answer` of the text.
        """
        spans: list[tuple[Span | None, Span, float | None, float]] = []
        texts: list[tuple[str, str]] = []
        for example in examples:
            table = self.predict(example.features)["qa"]
            first = table[table["rank"] == 1].set_index("question")
            for row in example.rows:
                asked = row.get("question") or []
                if len(asked) != 1:
                    raise ManifestError(f"{example.video_id}: a row has an answer, but "
                                        f"{'several questions' if asked else 'no question'}")
                found = first.loc[asked[0]]
                if row.get("answer_start") is not None:
                    spans.append((*_segments_of(found, row), float(found["score"])))
                elif row.get("answer_start_s") is not None:
                    spans.append((*_seconds_of(found, row), float(found["score"])))
                elif row.get("answer") is not None:
                    said = found["answer"]
                    texts.append(("" if pd.isna(said) else str(said), str(row["answer"])))
        metrics: dict[str, Any] = {"n_questions": len(spans) + len(texts)}
        if spans:
            predicted, true, best, scores = zip(*spans, strict=True)
            metrics |= span_scores(predicted, true, best)
            right = [span is not None and overlap(span, wanted) >= 0.5
                     for span, wanted in zip(predicted, true, strict=True)]
            metrics["calibration_error"] = calibration_error(np.array(right), np.array(scores))
        if texts:
            metrics["token_f1"] = float(np.mean([_token_f1(*pair) for pair in texts]))
            metrics["contains_answer"] = float(np.mean([
                f" {' '.join(words(true))} " in f" {' '.join(words(said))} "
                for said, true in texts]))
        return metrics

    def search_texts(self, question: str) -> list[str]:
        """The question's words that carry something, and what a picture of the answer shows."""
        phrase = prompt_of(question)
        return [" ".join(content_words(question)), *([phrase] if phrase is not None else [])]

    def found_in(self, modality: str, question: str, features: Features) -> list[dict[str, Any]]:
        """Answers from the transcript (text) or the picture (visual), as rows, in no order."""
        part = self._read if modality == "text" else self._look
        return part([question], features).get(question, ([], 0.0))[0]

    def explain(self, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
        """The segments, words or clips that made answers."""
        return explain_rows(self, features, rows)

    def save_pretrained(self, path: Path) -> None:
        """Write the head's weights and settings into the folder `path`."""
        save_head(path, self.tensors, self.settings)

    def _encode(self, texts: list[str], features: Features) -> Tensor:
        """Texts in the shared space (N, D); a question to many videos is encoded once."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._encoded]
        if missing:
            if len(self._encoded) + len(missing) > _REMEMBERED:
                self._encoded.clear()
                missing = list(dict.fromkeys(texts))
            self._encoded |= dict(zip(missing, features.encode_text(missing), strict=True))
        return torch.stack([self._encoded[text] for text in texts])

    # From the transcript

    def _asked(self, questions: Sequence[str], features: Features) -> Asked | None:
        """What the reader sees of questions to a transcript; None where nothing is said in it."""
        # What is in another language is left out, and the rest is read as if it were all.
        place = np.flatnonzero(features.in_languages({self.language}))
        texts = [features.segments[i] for i in place]
        if not any(words(text) for text in texts):
            return None
        segments = features.segment_embeddings[torch.from_numpy(place)]
        keywords = [" ".join(content_words(question)) for question in questions]
        encoded = self._encode([*questions, *keywords], features).to(segments)
        asked, keys = encoded[: len(questions)], encoded[len(questions):]
        lexical = torch.from_numpy(lexical_features(questions, texts)).to(segments)
        structure = torch.from_numpy(segment_features(texts)).to(segments)
        return Asked(place, asked, segments, lexical,
                     evidence_of(asked, keys, segments, lexical, structure),
                     spans_of(len(texts), longest_answer(len(texts), self.config.max_span)))

    def _read(self, questions: list[str],
              features: Features) -> dict[str, tuple[list[dict[str, Any]], float]]:
        """Rows from the transcript, and the probability that it answers, by question."""
        given = self._asked(questions, features)
        if given is None:
            return {}
        place, asked, segments, lexical = given.place, given.asked, given.segments, given.lexical
        texts = [features.segments[i] for i in place]
        times = features.segment_times[place]
        spans = given.spans
        scores = torch.stack([
            reader.score_spans(reader(asked, segments, given.evidence), spans).log_softmax(1)
            for reader in self.readers]).mean(0).float().cpu()
        out: dict[str, tuple[list[dict[str, Any]], float]] = {}
        for q, question in enumerate(questions):
            rows: list[dict[str, Any]] = []
            chance = 0.0
            for first, last, mass in choose(scores[q], spans, self.options.top_k):
                seen = span_evidence(first, last, mass, scores[q], spans, asked[q], segments,
                                     lexical[q])
                able = self.found(seen.subject)
                rows.append({
                    "answer": " ".join(text.strip() for text in texts[first: last + 1]),
                    "score": self.score([log_odds(self.right(seen.span) * able)]),
                    "modality": "text",
                    "start_s": _time(times[first: last + 1, 0].min()),
                    "end_s": _time(times[first: last + 1, 1].max()),
                    "first_segment": int(place[first]), "last_segment": int(place[last]),
                    "best_segment": int(place[seen.best]),
                })
                chance = max(chance, able)
            out[question] = rows, chance
        return out

    # From the picture

    def _look(self, questions: list[str],
              features: Features) -> dict[str, tuple[list[dict[str, Any]], float]]:
        """Rows from the picture, and the probability that it shows the answer, by question."""
        clips, times = features.clip_embeddings, features.clip_times
        prompts = {question: prompt_of(question) for question in questions}
        wanted = {question: prompt for question, prompt in prompts.items() if prompt is not None}
        if not len(times) or not wanted or not self.options.visual:
            return {}
        phrases = self._encode(list(wanted.values()), features).to(clips)
        step = max(1e-3, float(np.median(times[:, 1] - times[:, 0])))
        limit = max(1, int(self.options.max_moment_s / step + 1e-6))
        picture = features.info is not None and features.info.codec == "image"
        out: dict[str, tuple[list[dict[str, Any]], float]] = {}
        for question, phrase in zip(wanted, phrases, strict=True):
            similarity = (clips @ phrase).float().cpu()
            z = standardise(similarity, (self.background @ phrase).float().cpu())
            rows: list[dict[str, Any]] = []
            for moment in find_moments(similarity, z, limit, self.options.top_k):
                start, end = float(times[moment.first, 0]), float(times[moment.last, 1])
                rows.append({
                    "answer": "shown in the picture" if picture
                    else f"shown at {time_phrase(start, end)}",
                    "score": self.shown(visual_evidence(moment, len(times))),
                    "modality": "visual", "start_s": start, "end_s": end,
                    "first_segment": None, "last_segment": None, "best_segment": None,
                })
            out[question] = rows, max((row["score"] for row in rows), default=0.0)
        return out


def _segments_of(found: pd.Series[Any], row: Mapping[str, Any]) -> tuple[Span | None, Span, Any]:
    """Spans of segments, the end one past the last, and the middle of the best segment."""
    try:
        true = (int(row["answer_start"]), int(row.get("answer_end", row["answer_start"])) + 1)
    except (TypeError, ValueError):
        raise ManifestError("answer_start and answer_end are numbers of segments, got "
                            f"{row['answer_start']!r} and {row.get('answer_end')!r}") from None
    if pd.isna(found["first_segment"]):
        return None, true, None
    span = (int(found["first_segment"]), int(found["last_segment"]) + 1)
    return span, true, float(found["best_segment"]) + 0.5


def _seconds_of(found: pd.Series[Any], row: Mapping[str, Any]) -> tuple[Span | None, Span, Any]:
    """Spans of seconds, and the middle of the answer."""
    try:
        true = (float(row["answer_start_s"]), float(row.get("answer_end_s",
                                                            row["answer_start_s"])))
    except (TypeError, ValueError):
        raise ManifestError("answer_start_s and answer_end_s are seconds, got "
                            f"{row['answer_start_s']!r} and {row.get('answer_end_s')!r}") from None
    if pd.isna(found["start_s"]):
        return None, true, None
    span = (float(found["start_s"]), float(found["end_s"]))
    return span, true, sum(span) / 2


def _answer_of(row: Mapping[str, Any], times: np.ndarray) -> tuple[int, int] | None:
    """The segments, first and last, that a row says the answer is in; None where it says none."""
    if row.get("answer_start") is not None:
        _, (start, end), _ = _segments_of(pd.Series({"first_segment": pd.NA}), row)
        return int(start), int(end) - 1
    if row.get("answer_start_s") is None:
        return None
    _, (start, end), _ = _seconds_of(pd.Series({"start_s": pd.NA}), row)
    length = np.maximum(times[:, 1] - times[:, 0], 1e-6)
    common = np.minimum(times[:, 1], end) - np.maximum(times[:, 0], start)
    inside = np.flatnonzero(common >= 0.5 * np.minimum(length, max(end - start, 1e-6)))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _token_f1(said: str, true: str) -> float:
    """F1 of words, as SQuAD counts them (Rajpurkar et al., EMNLP 2016, section 6.1)."""
    one, other = Counter(words(said)), Counter(words(true))
    common = (one & other).total()
    return 2 * common / (one.total() + other.total()) if common else 0.0


def _rank_below(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Lower scores where need be: a moment shows somebody, but words say who it is."""
    limit = 0.99 * max(row["score"] for row in others)
    for row in rows:
        row["score"] = min(row["score"], limit)


def _time(value: Any) -> float | None:
    return None if math.isnan(float(value)) else float(value)


def _nothing() -> dict[str, Any]:
    """The row of a question to a video that has neither a picture nor a transcript to read."""
    return {"answer": None, "score": 0.0, "start_s": None, "end_s": None, "first_segment": None,
            "last_segment": None, "best_segment": None, "modality": None}
