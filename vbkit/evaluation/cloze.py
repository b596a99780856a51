"""Words from pictures: the zero-shot cloze of VideoBERT's paper, and masked words.

The cloze (Sun et al., ICCV 2019, section 4.3): a sentence with its noun and its verb masked, read
together with a video; the model fills the gaps. The same sentence without the video is the
language prior.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vbkit.errors import ManifestError, ModelError, UsageError
from vbkit.evaluation.captions import tokenize
from vbkit.evaluation.clips import ClipSequence, visual_inputs
from vbkit.evaluation.heads import pretraining_model

if TYPE_CHECKING:
    from vbkit.engine.bundle import Bundle
    from vbkit.engine.encoder import Encoder

__all__ = [
    "CLOZE_FILE",
    "ClozeScores",
    "ClozeTask",
    "check_cloze",
    "load_cloze",
    "masked_words",
    "zero_shot_cloze",
]

CLOZE_FILE = "cloze.json"
_SLOT = re.compile(r"(\[NOUN\]|\[VERB\]|\[MASK\])")
_BATCH = 64
_MASKED = 0.15


@dataclass(frozen=True)
class ClozeTask:
    """A sentence with gaps, and what may fill them.

    Args:
        template: a sentence with `[NOUN]`, `[VERB]` or both; `[MASK]` is a gap that nobody asks
            about. Of several gaps for a noun, it is asked which noun stands in any of them.
        nouns, verbs: candidates, each a tuple of forms: the first is what is predicted, and any
            of them in a caption makes it right.

    Raises:
        UsageError: the template has no gap, a gap has no candidates, or a form is no single word
            or stands twice.
    """

    template: str
    nouns: tuple[tuple[str, ...], ...] = ()
    verbs: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        slots = [slot for slot in _SLOT.findall(self.template) if slot != "[MASK]"]
        if not slots:
            raise UsageError(f"cloze template {self.template!r}: write [NOUN], [VERB] or both into "
                             "it")
        for kind, candidates in (("noun", self.nouns), ("verb", self.verbs)):
            if f"[{kind.upper()}]" not in slots:
                continue
            if not candidates:
                raise UsageError(f"the cloze template has a gap for a {kind}, but there are no "
                                 f"{kind}s to choose from")
            firsts = [forms[0] if forms else "" for forms in candidates]
            twice = sorted({word for word in firsts if firsts.count(word) > 1})
            if twice:
                raise UsageError(f"cloze {kind} {twice[0]!r} stands twice among the candidates")
            for form in (form for forms in candidates for form in forms or ("",)):
                if tokenize(form) != [form]:
                    raise UsageError(f"cloze {kind} {form!r} is not one word in lower case")

    def candidates(self, kind: str) -> tuple[tuple[str, ...], ...]:
        """Those of `"noun"` or `"verb"`; none where the template does not ask for it."""
        if f"[{kind.upper()}]" not in self.template:
            return ()
        return self.nouns if kind == "noun" else self.verbs


def load_cloze(bundle: Bundle, words: str | Path | None = None,
               template: str | None = None) -> ClozeTask:
    """The cloze of a file, or of the model's own folder.

    The file is JSON: `{"template": "a [NOUN] is [VERB] .", "nouns": ["dog", ["man", "men"]],
    "verbs": [["run", "runs", "running"]]}`.

    Args:
        bundle: the model; its folder's `cloze.json` is taken where `words` is None.
        words: the file.
        template: in place of the file's.

    Raises:
        UsageError: there is no file or template, or what they hold is wrong.
    """
    path = Path(words) if words is not None else bundle.path / CLOZE_FILE
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if words is not None:
            raise UsageError(f"{path}: no such file") from None
        raise UsageError(f"model {bundle.name} brings no {CLOZE_FILE}: name a file with the words "
                         "to choose from with --words") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    if not isinstance(given, dict):
        raise UsageError(f'{path}: want an object {{"template", "nouns", "verbs"}}')
    sentence = template if template is not None else given.get("template")
    if not isinstance(sentence, str):
        raise UsageError(f"{path}: has no template, a sentence with [NOUN] and [VERB]; give one "
                         "with --template")
    try:
        return ClozeTask(sentence, _forms(given, "nouns"), _forms(given, "verbs"))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _forms(given: dict[str, Any], key: str) -> tuple[tuple[str, ...], ...]:
    value = given.get(key, [])
    wrong = UsageError(f"{key} is a list of words, or of lists of forms of a word")
    if not isinstance(value, list):
        raise wrong
    rows: list[tuple[str, ...]] = []
    for item in value:
        forms = [item] if isinstance(item, str) else item
        if not isinstance(forms, list) or not all(isinstance(form, str) for form in forms):
            raise wrong
        rows.append(tuple(forms))
    return tuple(rows)


@dataclass(frozen=True)
class ClozeScores:
    """What the model put into the gaps.

    Args:
        metrics: `noun_at_1`, `noun_at_5`, `verb_at_1`, `verb_at_5` (0–1; None for a gap that the
            template does not have, or that no video answers), the same of the text alone with
            `text_only_` before them, and over how many videos: `n_noun_videos`, `n_verb_videos`.
        predictions: for every video, its five most likely nouns and verbs.
    """

    metrics: dict[str, float | None]
    predictions: list[dict[str, Any]]


@torch.no_grad()
def zero_shot_cloze(encoder: Encoder, videos: Sequence[ClipSequence],
                    task: ClozeTask) -> ClozeScores:
    """Fill the gaps of a sentence for every video; right if any of its captions has the word.

    A word counts where one of its forms is among a caption's `captions.tokenize` words. The
    model chooses among the candidates only. A video whose captions hold none of the nouns has no
    right answer and does not count for the noun; the same for the verb.

    Args:
        encoder: of a model with a word head.
        videos: N, at least one.
        task: the sentence and the candidates.

    Raises:
        ModelError: the model has no word head.
        UsageError: a candidate is not one word piece of the model, or the template is too long.
    """
    model = pretraining_model(encoder.bundle, "word_head")
    pieces, slots, ids = _resolve(encoder.bundle, task)
    parts = [_gap_scores(encoder, model, pieces, slots, ids, videos[start : start + _BATCH])
             for start in range(0, len(videos), _BATCH)]
    with_video = {kind: torch.cat([part[kind] for part in parts]) for kind in ids}
    text_alone = {kind: rows.expand(len(videos), -1) for kind, rows in
                  _gap_scores(encoder, model, pieces, slots, ids, None).items()}
    words = [{word for caption in video.captions for word in tokenize(caption)}
             for video in videos]
    metrics: dict[str, float | None] = {}
    predictions: list[dict[str, Any]] = [{"video_id": video.video_id} for video in videos]
    for prefix, scores in (("", with_video), ("text_only_", text_alone)):
        for kind in ("noun", "verb"):
            if kind not in scores:
                metrics |= {f"{prefix}{kind}_at_1": None, f"{prefix}{kind}_at_5": None}
                metrics[f"n_{kind}_videos"] = 0
                continue
            candidates = task.candidates(kind)
            # ties go to the candidate that is listed first, whatever the device
            order = scores[kind].sort(dim=-1, descending=True, stable=True).indices
            best = order[:, :5].tolist()
            forms = {form for candidate in candidates for form in candidate}
            right = [[bool(said & set(candidates[i])) for i in row] if said & forms else None
                     for said, row in zip(words, best, strict=True)]
            asked = [row for row in right if row is not None]
            metrics[f"{prefix}{kind}_at_1"] = _mean([row[0] for row in asked])
            metrics[f"{prefix}{kind}_at_5"] = _mean([any(row) for row in asked])
            if not prefix:
                metrics[f"n_{kind}_videos"] = len(asked)
                for row, chosen, hits in zip(predictions, best, right, strict=True):
                    row[f"{kind}s"] = " ".join(candidates[i][0] for i in chosen)
                    row[f"{kind}_right"] = None if hits is None else hits[0]
    return ClozeScores(metrics, predictions)


def _mean(right: Sequence[bool]) -> float | None:
    return float(np.mean(right)) if len(right) else None


def check_cloze(bundle: Bundle, task: ClozeTask) -> None:
    """Raise, as `zero_shot_cloze` would, where the model cannot do this cloze."""
    pretraining_model(bundle, "word_head")
    _resolve(bundle, task)


def _resolve(
    bundle: Bundle, task: ClozeTask
) -> tuple[list[int], list[str | None], dict[str, list[int]]]:
    """Word pieces of the template, what each gap is, and the candidates' word pieces."""
    pieces, slots = _template_ids(bundle, task)
    return pieces, slots, {kind: _candidate_ids(bundle, kind, task.candidates(kind))
                           for kind in slots if kind is not None}


def _template_ids(bundle: Bundle, task: ClozeTask) -> tuple[list[int], list[str | None]]:
    """Word pieces of the template, and what each of its gaps is: "noun", "verb", or None."""
    pieces: list[int] = []
    slots: list[str | None] = []
    for part in _SLOT.split(task.template):
        if _SLOT.fullmatch(part):
            pieces.append(bundle.config.mask_token_id)
            slots.append(None if part == "[MASK]" else part.strip("[]").lower())
        elif part.strip():
            pieces += bundle.processor.tokenize([part])[0]
    if len(pieces) > bundle.config.max_text_length - 2:
        raise UsageError(f"the cloze template is {len(pieces)} word pieces long; the model takes "
                         f"{bundle.config.max_text_length - 2}")
    return pieces, slots


def _candidate_ids(bundle: Bundle, kind: str,
                   candidates: Sequence[tuple[str, ...]]) -> list[int]:
    words = [forms[0] for forms in candidates]
    rows = bundle.processor.tokenize(words)
    unknown = bundle.processor.tokenizer.unk_token_id
    wrong = [word for word, row in zip(words, rows, strict=True)
             if len(row) != 1 or row[0] == unknown]
    if wrong:
        raise UsageError(f"cloze {kind}s that are not one word piece of model {bundle.name}: "
                         f"{', '.join(wrong)}; take them out")
    return [row[0] for row in rows]


def _gap_scores(
    encoder: Encoder,
    model: Any,
    pieces: Sequence[int],
    slots: Sequence[str | None],
    candidates: dict[str, list[int]],
    videos: Sequence[ClipSequence] | None,
) -> dict[str, Tensor]:
    """For each kind of gap the candidates' scores: (B, candidates), or (1, …) without videos.

    Of one gap these are the logits. Of several they are the probabilities that a candidate, chosen
    for each gap by itself, stands in any of them.
    """
    bundle, config = encoder.bundle, encoder.config
    count = 1 if videos is None else len(videos)
    end = config.sep_token_id if videos is None else config.video_token_id
    row = [config.cls_token_id, *pieces, end]
    ids, mask = (x.to(bundle.device) for x in bundle.processor.pad([row] * count))
    visual = {} if videos is None else visual_inputs(encoder, videos)
    # labels say where logits are wanted; which word they name does not matter
    labels = torch.where(ids == config.mask_token_id, ids, -100)
    logits = model(ids, mask, labels=labels, **visual).word_logits.float()
    logits = logits.view(count, len(slots), -1)
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"model {bundle.name} gives word scores that are not finite")
    scores = {}
    for kind, chosen in candidates.items():
        places = [place for place, slot in enumerate(slots) if slot == kind]
        rows = logits[:, places][:, :, chosen].cpu()  # (B, gaps, candidates)
        scores[kind] = rows[:, 0] if len(places) == 1 else 1 - (1 - rows.softmax(-1)).prod(1)
    return scores


@torch.no_grad()
def masked_words(encoder: Encoder, videos: Sequence[ClipSequence], *,
                 seed: int = 0) -> dict[str, float]:
    """Masked words of the captions, with and without the picture.

    Of each caption 15 % of the word pieces, at least one, are hidden behind `[MASK]`, the same
    ones with and without the picture.

    Args:
        encoder: of a model with a word head.
        videos: at least one.
        seed: of the choice.

    Returns:
        `word_perplexity` (at least 1) and `word_accuracy` (0–1), over all hidden word pieces, and
        the same of the text alone with `text_only_` before them.

    Raises:
        ModelError: the model has no word head, or gives values that are not finite.
        ManifestError: no caption has a word piece.
    """
    bundle = encoder.bundle
    model = pretraining_model(bundle, "word_head")
    config, processor = bundle.config, bundle.processor
    generator = np.random.default_rng(seed)
    rows: list[tuple[list[int], list[int], ClipSequence]] = []  # word pieces, which are hidden
    for video in videos:
        for pieces in processor.tokenize(video.captions):
            pieces = pieces[: config.max_text_length - 2]
            if pieces:
                count = max(1, round(_MASKED * len(pieces)))
                hidden = generator.choice(len(pieces), count, replace=False)
                rows.append((pieces, hidden.tolist(), video))
    if not rows:
        raise ManifestError("no caption has a word")
    rows.sort(key=lambda row: len(row[0]))  # so that little is padded
    out: dict[str, float] = {}
    for prefix, seen in (("", True), ("text_only_", False)):
        end = config.video_token_id if seen else config.sep_token_id
        total, right, count = 0.0, 0, 0
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            ids, mask = processor.pad([[config.cls_token_id, *pieces, end]
                                       for pieces, _, _ in batch])
            labels = torch.full_like(ids, -100)
            for i, (pieces, places, _) in enumerate(batch):
                for at in places:
                    labels[i, at + 1], ids[i, at + 1] = pieces[at], config.mask_token_id
            visual = visual_inputs(encoder, [video for _, _, video in batch]) if seen else {}
            ids, mask, labels = (x.to(bundle.device) for x in (ids, mask, labels))
            logits = model(ids, mask, labels=labels, **visual).word_logits.float()
            targets = labels[labels != -100]
            total += float(F.cross_entropy(logits, targets, reduction="sum"))
            right += int((logits.argmax(-1) == targets).sum())
            count += len(targets)
        if not np.isfinite(total):
            raise ModelError(f"model {bundle.name} gives word scores that are not finite")
        out[f"{prefix}word_perplexity"] = float(np.exp(total / count))
        out[f"{prefix}word_accuracy"] = right / count
    return out
