"""The head of the task `summarisation`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from vbkit.errors import ManifestError, ModelError
from vbkit.evaluation.captions import rouge_l, tokenize
from vbkit.evaluation.summaries import selection_scores, top_k_scores
from vbkit.heads import Example, FitOptions, Head, HeadContext, load_head, save_head
from vbkit.model.branch import BranchConfig, TextBranch
from vbkit.model.fitting import platt
from vbkit_summarisation import CHAPTERS_TABLE, SEGMENTS_TABLE, SUMMARY_TABLE, SummarisationOptions
from vbkit_summarisation.chapters import boundaries, title_of
from vbkit_summarisation.explain import explain_rows
from vbkit_summarisation.selector import Selector, SelectorConfig, score_sentences
from vbkit_summarisation.text import words
from vbkit_summarisation.training import Summarised, fit_selector
from vbkit_summarisation.visual import Concepts, pick_clips, scenes, time_phrase

if TYPE_CHECKING:
    from vbkit.features import Features

__all__ = ["SummarisationHead", "describe", "sentence_units"]

WEIGHTS = Path(__file__).parent / "weights"

NOTHING_SAID = "No speech; nothing recognised with confidence."
SURE = 0.8
"""Below this probability, what is shown is said to be so probably."""

LITTLE_SPEECH_WORDS = 15
"""A transcript of fewer words says too little to be the summary alone."""

_SPEAKER = re.compile(r"^(?:>>+|[-–—])\s*(?=\S)")
"""Marks of a new speaker in subtitles."""

_CLOSED = (".", "!", "?", "…", '."', '!"', '?"')


def _selected_of(example: Example, rows: pd.DataFrame) -> np.ndarray:
    """(R,) bool: which rows the label selects."""
    given = example.label("selected")
    target = np.zeros(len(rows), dtype=bool)
    wrong = ManifestError(f"{example.video_id}: selected is a list of numbers of segments, or of "
                          f"[start_s, end_s], got {given!r}")
    if not isinstance(given, list):
        raise wrong
    starts, ends = (rows[name].to_numpy(float, na_value=np.nan) for name in ("start_s", "end_s"))
    for item in given:
        if isinstance(item, list) and len(item) == 2:
            common = np.minimum(ends, item[1]) - np.maximum(starts, item[0])
            target |= common >= 0.5 * (ends - starts)
        elif isinstance(item, int) and 0 <= item < len(rows):
            target[item] = True
        else:
            raise wrong
    return target


@dataclass(frozen=True)
class _Item:
    """A segment or a clip that the summary may use. `rank` counts from 1."""

    start_s: float
    end_s: float
    segment: int | None
    score: float | None
    rank: int | None
    selected: bool
    text: str | None


class SummarisationHead(Head):
    """Selects sentences by a trained model, and key clips by how well they stand for the rest."""

    def setup(self, context: HeadContext) -> None:
        """Load the selector, its calibration and the vocabulary of what may be shown.

        Raises:
            ModelError: the head is missing, or was trained on another model.
        """
        super().setup(context)
        given = context.options
        options = given if isinstance(given, SummarisationOptions) else SummarisationOptions()
        self.options = options
        self.tensors, self.settings = load_head(
            context.head_path or WEIGHTS, model_name=context.model_name,
            model_fingerprint=context.model_fingerprint)
        settings, tensors = self.settings, self.tensors
        try:
            self.selector = Selector(SelectorConfig(**settings["selector"]))
            self.selector.load_state_dict(_named(tensors, "selector."))
            config = BranchConfig(**settings["branch"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise ModelError(f"these weights are no summarisation head: {error}") from error
        self.selector.eval().requires_grad_(False).to(context.device)
        self.branch = self._branch(config)
        self.branch.merge()
        self.rarity = dict(zip(settings["stems"], tensors["rarity"].tolist(), strict=True))
        self.slope, self.bias = map(float, settings["calibration"])
        device = context.device
        self.concepts = Concepts(
            settings["concepts"], tensors["concepts.embeddings"].to(device),
            tensors["concepts.slope"].to(device), tensors["concepts.bias"].to(device))
        self.language = settings.get("language", "en")

    def predict(self, features: Features) -> dict[str, pd.DataFrame]:
        """The tables `summarisation`, `summarisation_segments` and `chapters` of one video."""
        texts = features.segments
        known = self._known(features)
        note = features.unread_note({self.language})
        if note is not None:
            self.context.logger.info("%s: %s by summarisation", features.video_id, note)
        spoken = sum(len(words(texts[s])) for s in known)
        readable = spoken > 0
        said = self._said(features, known) if readable else _unscored(features)
        silent = self._silent(features) if self.options.visual else []
        little = not readable or spoken < LITTLE_SPEECH_WORDS
        # Clips join the summary only where speech cannot carry it.
        taken = len({item.rank for item in said if item.selected})
        shown = self._shown(features, silent if texts else list(range(len(features.clip_times))),
                            select=little, taken=taken)
        sentences, clips = (said, shown) if not little else (shown, said)
        items = _ranked([*sentences, *clips])
        summary = self._summary(features, said, shown if little else [], readable)
        chosen = sum(len(words(texts[item.segment])) for item in said
                     if item.selected and item.segment is not None)
        rows = [{
            "start_s": _time(item.start_s), "end_s": _time(item.end_s), "segment": item.segment,
            "rank": item.rank, "score": item.score, "selected": item.selected, "text": item.text,
            "keyframe_s": _keyframe(item, features),
        } for item in sorted(items, key=_in_time)]
        return {
            "summarisation": SUMMARY_TABLE.frame([{
                "summary": summary, "n_selected": sum(item.selected for item in items),
                "compression": chosen / spoken if readable else None, "note": note,
            }]),
            "summarisation_segments": SEGMENTS_TABLE.frame(rows),
            "chapters": CHAPTERS_TABLE.frame(self._chapters(features, said, readable)),
        }

    def evaluate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics of what is selected, and of the summary's text.

        Returns:
            with `selected` (indices of segments, or `[start_s, end_s]` stretches of at least one
            segment), `top3_…`, `top5_…` and `precision`, `recall`, `f1`, `n_selections`; with
            `summary`, `rouge_l` and `n_summaries`. A video of which nothing is selected is not
            counted.
        """
        ranks, chosen, true, written = [], [], [], []
        for example in examples:
            tables = self.predict(example.features)
            rows = tables["summarisation_segments"]
            if example.label("selected") is not None:
                spoken = rows[rows["segment"].notna()] if example.features.segments else rows
                spoken = spoken.sort_values("segment" if example.features.segments else "start_s")
                target = _selected_of(example, spoken)
                if target.any():
                    true.append(target)
                    ranks.append(-spoken["rank"].to_numpy(float, na_value=np.inf))
                    chosen.append(spoken["selected"].to_numpy(bool))
            if example.label("summary") is not None:
                said = tables["summarisation"]["summary"].iloc[0]
                written.append(("" if pd.isna(said) else str(said), example.label("summary")))
        metrics: dict[str, Any] = {}
        if true:
            metrics |= top_k_scores(ranks, true, 3) | top_k_scores(ranks, true, 5)
            metrics |= {**selection_scores(chosen, true), "n_selections": len(true)}
        if written:
            metrics["rouge_l"] = rouge_l(
                [tokenize(said) for said, _ in written],
                [[tokenize(str(text)) for text in (texts if isinstance(texts, list) else [texts])]
                 for _, texts in written])
            metrics["n_summaries"] = len(written)
        if not metrics:
            raise ManifestError("nothing is selected in any video, so there is nothing to compare "
                                "with")
        return metrics

    def _branch(self, config: BranchConfig) -> TextBranch:
        if self.context.text_branch is None:
            raise ModelError("there is no branch of the encoder to read transcripts with")
        branch = self.context.text_branch(config)
        branch.load(_named(self.tensors, "branch."))
        return branch.eval()

    def fit(self, train: Sequence[Example], val: Sequence[Example], options: FitOptions) -> None:
        """Go on training what selects sentences, on videos whose label is `selected`.

        The pass with the least validation loss is kept, and calibrated on the same videos.
        """
        learning, held = self._summarised(train), self._summarised(val)
        if not learning or not held:
            raise ManifestError("summaries are learnt from what is selected of a transcript: there "
                                "must be videos with a transcript and a column selected to learn "
                                "from, and some to validate with")
        branch = self._branch(self.branch.config)
        fit_selector(self.selector, branch, self.rarity, learning, held, options)
        self.branch = branch
        logits = torch.cat([score_sentences(self.selector, branch, item.texts, self.rarity)
                            for item in held])
        selected = torch.from_numpy(np.concatenate([item.selected for item in held]))
        self.slope, self.bias = platt(logits, selected)
        self.tensors |= {f"selector.{name}": value
                         for name, value in self.selector.state_dict().items()}
        self.tensors |= {f"branch.{name}": value for name, value in branch.state().items()}
        self.settings = {**self.settings, "calibration": [self.slope, self.bias],
                         "validation": {}}

    def _summarised(self, examples: Sequence[Example]) -> list[Summarised]:
        """The sentences of transcripts of which something is selected."""
        found = []
        for example in examples:
            features = example.features
            known = np.flatnonzero(features.in_languages({self.language}))
            if example.label("selected") is None or not len(known):
                continue
            times = features.segment_times
            rows = pd.DataFrame({"start_s": times[:, 0], "end_s": times[:, 1]})
            target = _selected_of(example, rows)[known]
            texts = [features.segments[s] for s in known]
            units = sentence_units(texts, times[known])
            selected = np.array([target[first:last].any() for first, last in units])
            if selected.any():
                found.append(Summarised([" ".join(" ".join(texts[first:last]).split())
                                         for first, last in units], selected))
        return found

    def explain(self, features: Features, rows: pd.DataFrame) -> pd.DataFrame:
        """The words, segments and clips for which segments and clips are selected."""
        return explain_rows(self, features, rows)

    def save_pretrained(self, path: Path) -> None:
        """Write the head's weights and settings into the folder `path`."""
        save_head(path, self.tensors, self.settings)

    # What is said

    def _said(self, features: Features, known: list[int]) -> list[_Item]:
        """Every segment; of those in `known`, with its score.

        Sentences that a transcript broke up count as one.
        """
        items = _unscored(features)
        texts = [features.segments[s] for s in known]
        embeddings = features.segment_embeddings[known]
        units = sentence_units(texts, features.segment_times[known])
        joined = [" ".join(" ".join(texts[first:last]).split()) for first, last in units]
        vectors = F.normalize(torch.stack(
            [embeddings[first:last].mean(0) for first, last in units]), dim=-1)
        logits = score_sentences(self.selector, self.branch, joined, self.rarity)
        p = torch.sigmoid(logits * self.slope + self.bias)
        count = self._count(len(units), [len(words(text)) for text in joined])
        order = _diverse(p, vectors, self.options.diversity)
        place = {unit: k for k, unit in enumerate(order)}
        for u, (first, last) in enumerate(units):
            for s in known[first:last]:
                items[s] = replace(items[s], score=float(p[u]), rank=place[u],
                                   selected=place[u] < count and bool(words(joined[u])))
        return items

    def _count(self, n: int, lengths: Sequence[int]) -> int:
        """How many of `n` sentences to select."""
        if self.options.ratio > 0:
            return max(1, round(self.options.ratio * n))
        if self.options.sentences > 0:
            return min(n, self.options.sentences)
        full = sum(length >= 4 for length in lengths)
        return max(1, min(n, 12, round(1.5 * math.sqrt(max(1, full) / 6) + 0.5)))

    def _known(self, features: Features) -> list[int]:
        """The segments that are not in another language."""
        known: list[int] = np.flatnonzero(features.in_languages({self.language})).tolist()
        return known

    def sentences(self, features: Features) -> list[list[int]]:
        """Segments that are scored as one; those in another language are in none."""
        known = self._known(features)
        units = sentence_units([features.segments[s] for s in known],
                               features.segment_times[known])
        return [known[first:last] for first, last in units]

    def segment_scores(self, features: Features) -> list[float | None]:
        """S probabilities of belonging in a summary; None where there is none."""
        return [item.score for item in self._said(features, self._known(features))]

    # What is shown

    def clips_shown(self, features: Features) -> list[int]:
        """The clips that have a row of their own."""
        if features.segments:
            return self._silent(features)
        return list(range(len(features.clip_times)))

    def _silent(self, features: Features) -> list[int]:
        """Clips in which nobody speaks, where the transcript is timed."""
        times = features.segment_times
        timed = times[~np.isnan(times[:, 0])] if len(times) else times
        if len(timed) < len(times):
            return []
        clips = features.clip_times
        return [i for i, (start, end) in enumerate(clips)
                if not ((timed[:, 0] < end - 0.25) & (timed[:, 1] > start + 0.25)).any()]

    def _shown(self, features: Features, clips: list[int], select: bool,
               taken: int) -> list[_Item]:
        """The named clips with their scores and, where the evidence is strong, what they show.

        Of as many sentences as were asked for, `taken` are what is said; clips are the rest.
        """
        if not clips or not self.options.visual:
            return []
        times, vectors = features.clip_times[clips], features.clip_embeddings[clips]
        n = len(clips)
        if self.options.sentences > 0 and not self.options.ratio:
            count = max(0, min(n, self.options.sentences - taken))
        elif self.options.ratio:
            count = max(1, round(self.options.ratio * n))
        else:
            count = max(1, min(n, 8, len(scenes(vectors)), round(1 + math.sqrt(n / 10))))
        picked, scores = pick_clips(vectors, n if n <= 50 else max(50, count))
        rest = sorted(set(range(n)) - set(picked), key=lambda i: -float(scores[i]))
        place = {clip: k for k, clip in enumerate([*picked, *rest])}
        items = []
        for i in range(n):
            names = self.concepts.name(vectors[i: i + 1], self.options.min_probability)
            items.append(_Item(
                float(times[i, 0]), float(times[i, 1]), None, float(scores[i]), place[i],
                select and place[i] < count,
                "; ".join(name.phrase for name in names) or None))
        return items

    def _summary(self, features: Features, said: list[_Item], shown: list[_Item],
                 readable: bool) -> str | None:
        parts = []
        if readable:
            parts.append(_joined([item for item in said if item.selected]))
        if shown:
            clips = features.clip_embeddings
            picture = features.info is not None and features.info.codec == "image"
            told = describe(self.concepts, clips, features.clip_times,
                            self.options.min_probability, still=picture)
            if told:
                parts.append(told)
            elif not features.segments:
                parts.append(NOTHING_SAID)
        parts = [part for part in parts if part]
        for k, part in enumerate(parts[:-1]):
            parts[k] = part if part.endswith(_CLOSED) else part + "."
        return " ".join(parts) or None

    # Chapters

    def _chapters(self, features: Features, said: list[_Item],
                  readable: bool) -> list[dict[str, Any]]:
        clips, texts, times = features.clip_times, features.segments, features.segment_times
        timed = len(times) > 0 and not np.isnan(times).any()
        end_s = max([float(clips[-1, 1])] if len(clips) else [0.0],
                    [float(np.max(times[:, 1]))] if timed else [0.0])[0]
        if end_s <= self.options.chapters_after_s:
            return []
        spoken = readable and timed and len(texts) >= 20
        if spoken:
            vectors, stretch = features.segment_embeddings, times
        elif len(clips):
            vectors, stretch = features.clip_embeddings, clips
        else:
            return []
        starts = boundaries(vectors, stretch, self.options.min_chapter_s)
        if len(starts) < 2:
            return []
        rows = []
        for k, first in enumerate(starts):
            last = starts[k + 1] if k + 1 < len(starts) else len(stretch)
            title = f"Part {k + 1}"
            if spoken:
                title = title_of(texts[first:last], vectors[first:last],
                                 [item.score or 0.0 for item in said[first:last]]) or title
            else:
                names = self.concepts.name(vectors[first:last], self.options.min_probability)
                title = "; ".join(name.phrase for name in names) or title
            rows.append({
                "start_s": 0.0 if k == 0 else float(stretch[first, 0]),
                "end_s": float(stretch[starts[k + 1], 0]) if k + 1 < len(starts) else end_s,
                "title": title[:1].upper() + title[1:],
            })
        return rows


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items()
            if name.startswith(prefix)}


def sentence_units(texts: Sequence[str], times: np.ndarray) -> list[tuple[int, int]]:
    """Runs of segments (first, past the last) that are one sentence.

    Subtitles and speech recognisers break sentences. A segment that ends without a full stop goes
    with the next one, unless there is a pause of a second, or the run grows past 40 words. Where a
    transcript has hardly any full stops, each segment stands for itself.
    """
    closed = [text.rstrip(" \"'”’)").endswith((".", "!", "?", "…", ":")) for text in texts]
    if sum(closed) < 0.2 * len(texts):
        return [(i, i + 1) for i in range(len(texts))]
    units, first, length = [], 0, 0
    for i, text in enumerate(texts):
        length += len(text.split())
        gap = times[i + 1, 0] - times[i, 1] if i + 1 < len(texts) else math.inf
        if closed[i] or gap > 1 or length > 40:
            units.append((first, i + 1))
            first, length = i + 1, 0
    return units


def describe(concepts: Concepts, clips: Tensor, times: np.ndarray, least: float,
             still: bool = False, most: int = 6) -> str | None:
    """What is shown, scene by scene, in words; None where nothing is sure enough.

    Args:
        concepts: the vocabulary.
        clips: (C, D) unit vectors.
        times: (C, 2), s.
        least: smallest probability of what is named.
        still: a single picture, which has no times.
        most: at most so many scenes.
    """
    told: list[tuple[float, float, str]] = []
    for first, last in scenes(clips, most=2 * most):
        # A single clip of a longer video has to be surer: nothing around it bears it out.
        passing = last - first == 1 and len(clips) > 4
        names = concepts.name(clips[first:last], max(least, SURE) if passing else least)
        if not names:
            continue
        start, end = float(times[first, 0]), float(times[last - 1, 1])
        text = " and ".join(name.phrase for name in names)
        if min(name.probability for name in names) < SURE:
            text = f"probably {text}"
        if told and told[-1][2] == text and start - told[-1][1] < 0.1:
            told[-1] = (told[-1][0], end, text)
        else:
            told.append((start, end, text))
    if not told:
        return None
    longest = sorted(sorted(told, key=lambda row: row[0] - row[1])[:most])
    if still:
        return f"Shows {longest[0][2]}."
    return "Shows " + "; ".join(
        f"{text} ({time_phrase(start, end)})" for start, end, text in longest) + "."


def _diverse(p: Tensor, vectors: Tensor, diversity: float) -> list[int]:
    """Sentences in the order of selection: probable, and unlike those already taken (MMR)."""
    n = len(p)
    worth = torch.logit(p.clamp(1e-4, 1 - 1e-4))
    likeness = torch.zeros(n)
    near = (vectors @ vectors.T).float().cpu().clamp(min=0) if n <= 2000 else None
    free = torch.ones(n, dtype=torch.bool)
    order: list[int] = []
    for _ in range(n):
        if near is None and len(order) >= 50:
            rest = torch.where(free, worth, -torch.inf).argsort(descending=True)
            return order + [i for i in rest.tolist() if bool(free[i])]
        # Likeness of 1, a repetition, costs as much as 10 × diversity in log odds.
        best = int(torch.where(free, worth - 10 * diversity * likeness**2, -torch.inf).argmax())
        order.append(best)
        free[best] = False
        row = near[best] if near is not None else (
            (vectors @ vectors[best]).float().cpu().clamp(min=0))
        likeness = torch.maximum(likeness, row)
    return order


def _unscored(features: Features) -> list[_Item]:
    return [_Item(float(start), float(end), s, None, None, False, text)
            for s, (text, (start, end)) in
            enumerate(zip(features.segments, features.segment_times, strict=True))]


def _ranked(items: Sequence[_Item]) -> list[_Item]:
    """The items with ranks from 1 without gaps: selected ones first, then in the order given."""
    group = {id(item): k for k, item in enumerate(items)}
    scored = [item for item in items if item.rank is not None]
    segments_first = bool(items) and items[0].segment is not None
    scored.sort(key=lambda item: (
        not item.selected, (item.segment is None) == segments_first, item.rank, group[id(item)]))
    place = {id(item): k for k, item in enumerate(scored, 1)}
    return [replace(item, rank=place.get(id(item))) for item in items]


def _in_time(item: _Item) -> tuple[bool, float, int]:
    segment = -1 if item.segment is None else item.segment
    if math.isnan(item.start_s):
        return (True, 0.0, segment)
    return (False, item.start_s, segment)


def _joined(items: Sequence[_Item]) -> str:
    """Sentences in the order of the video; an ellipsis where words between two are left out."""
    out = ""
    last: int | None = None
    for item in sorted(items, key=lambda item: item.segment or 0):
        text = _SPEAKER.sub("", " ".join((item.text or "").split()))
        if not text:
            continue
        if out:
            follows = item.segment is not None and last is not None and item.segment == last + 1
            ended = out.endswith(_CLOSED)
            out += " " if follows or ended else " … "
        out += text
        last = item.segment
    return out


def _time(value: float) -> float | None:
    return None if math.isnan(value) else value


def _keyframe(item: _Item, features: Features) -> float | None:
    """The saved picture nearest to the item's middle, else the middle of the nearest clip."""
    times = features.keyframe_times
    if not times and not len(features.clip_times):
        return None
    if math.isnan(item.start_s):
        return None
    at = np.asarray(times, float) if times else features.clip_times.mean(1)
    middle = (item.start_s + item.end_s) / 2
    return float(at[np.abs(at - middle).argmin()])
