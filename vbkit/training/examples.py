"""A corpus into batches: the paper's three regimes, the contrast, and captions.

A batch is a function of the seed and its number alone, so that a resumed run sees what it would
have seen, and loading processes do not matter. Every kind of batch walks through its own units (a
sentence, a stretch of video, a caption) in an order that is drawn anew each epoch.

| kind | `input_ids` | what is asked |
|---|---|---|
| joint | `[CLS] text [>]` and clips | hidden words, hidden clips' visual words, alignment |
| text | `[CLS] text [SEP]` | hidden words |
| video | `[CLS] [>]` and clips | hidden clips' visual words |
| contrast | none; `text_ids` and clips | which text is of which video |
| caption | `[CLS] [>]` and clips | the caption, word by word |
| reward | `[CLS] [>]` and clips | captions near to all true ones, whatever their words |

Sentences, neighbours joined at random, and clips subsampled by a random step are Sun et al., ICCV
2019, sections 3.2 and 4.2; masking is Devlin et al., 2019, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vbkit.errors import CorpusError, UsageError
from vbkit.training.config import KINDS, ExampleOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vbkit.training.corpus import Corpus, Split

__all__ = ["KINDS", "Batch", "BatchStream", "ExampleOptions", "Kind", "SpecialTokens", "Units"]

Kind = str
"""One of `KINDS`."""
Batch = dict[str, Any]
"""Tensors by the names of `VideoBertForPreTraining.forward`'s arguments; also its `kind`, the `ids`
of the items that it was made of, and `counts`, how many predictions each loss is the mean of. A
reward batch has `references`, the word pieces of every true caption of each video."""

NOTHING = -100
_POOL = 16  # batches that are drawn together and sorted by length, so that little is padding


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that examples are put together with.

    Args:
        cls, sep, mask, pad, video: the special tokens.
        words: (N,) ids that a hidden word may be replaced by: all but special and unused ones.
        special: ids that are never hidden.
        size: number of ids.
    """

    cls: int
    sep: int
    mask: int
    pad: int
    video: int
    words: np.ndarray
    special: np.ndarray
    size: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, video_token_id: int) -> SpecialTokens:
        special = sorted({*tokenizer.all_special_ids, video_token_id})
        unused = {index for token, index in tokenizer.get_vocab().items()
                  if token.startswith("[unused")}
        words = np.setdiff1d(np.arange(len(tokenizer)), [*special, *unused])
        return cls(tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id,
                   tokenizer.pad_token_id or 0, video_token_id, words.astype(np.int32),
                   np.array(special, np.int32), len(tokenizer))


@dataclass(frozen=True)
class Units:
    """What batches of one kind are drawn from: one row each.

    Args:
        item: (N,) of the corpus.
        captions: (N,) bool: whether `number` is a caption's, not a segment's (or a clip's).
        number: (N,) a segment, a caption, or the clip that a stretch of video begins with.
        length: (N,) about how long its sequence is.
    """

    item: np.ndarray
    captions: np.ndarray
    number: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.item)

    def chosen(self, which: np.ndarray) -> Units:
        return Units(*(column[which] for column in (
            self.item, self.captions, self.number, self.length)))


@dataclass
class _Example:
    item: int
    text: np.ndarray  # word pieces, masked where they are
    clips: np.ndarray  # numbers of clips
    view: int = 0
    labels: np.ndarray | None = None
    visual_masked: np.ndarray | None = None
    aligned: bool | None = None

    @property
    def length(self) -> int:
        return len(self.text) + len(self.clips)


@dataclass
class BatchStream:
    """Batches, by number.

    Args:
        corpus: what they are made of.
        tokens: special tokens of the corpus's tokenizer.
        mixture: how often each kind is, relative to the others.
        batch_sizes: examples of a batch of each kind.
        options: how examples are made.
        seed: everything drawn at random follows from it.
        split: "train", or "val", where clips are always seen in their first view.
        visual_words: for each shard of the corpus, (R,) the visual word of each row of its
            `clip_features`; None where the model has none.
        feed_words: whether batches hold `visual_words` as input.
        caption_words: (vocabulary,) bool, the word pieces that captions are written with; captions
            with others are left out. None for all.
        rank, world: of this process among those that train together.

    Raises:
        UsageError: the mixture names an unknown kind, or none.
        CorpusError: the corpus has nothing of a kind that the mixture names.
    """

    corpus: Corpus
    tokens: SpecialTokens
    mixture: Mapping[str, float]
    batch_sizes: Mapping[str, int]
    options: ExampleOptions = field(default_factory=ExampleOptions)
    seed: int = 0
    split: Split = "train"
    visual_words: Sequence[np.ndarray] | None = None
    feed_words: bool = False
    caption_words: np.ndarray | None = None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        unknown = sorted(set(self.mixture) - set(KINDS))
        if unknown:
            raise UsageError(f"{unknown[0]!r} is no kind of batch: {', '.join(KINDS)}")
        if any(not 0 <= weight < float("inf") for weight in self.mixture.values()):
            raise UsageError("the mixture's numbers must not be negative")
        self.kinds = [kind for kind in KINDS if self.mixture.get(kind, 0) > 0]
        if not self.kinds:
            raise UsageError("the mixture names no kind of batch")
        self._schedule: list[int] = []
        self._earlier: list[int] = []  # batches of the same kind before each
        self._done = [0] * len(self.kinds)
        self._credit = [0.0] * len(self.kinds)
        self._orders: dict[tuple[str, int], np.ndarray] = {}
        self._pools: dict[str, Any] = {}
        self._special = np.zeros(self.tokens.size, bool)
        self._special[self.tokens.special] = True
        for kind in self.kinds:
            if not len(self.units(kind)):
                raise CorpusError(f"the corpus has nothing for batches of kind {kind!r} in its "
                                  f"{self.split} split; leave it out of the mixture")

    # --- what there is ------------------------------------------------------------------------

    def units(self, kind: Kind) -> Units:
        return self._units[kind]

    @cached_property
    def _units(self) -> dict[Kind, Units]:
        return make_units(self.corpus, self.split, self.options, self.kinds, self.caption_words)

    # --- which batch --------------------------------------------------------------------------

    def kind(self, step: int) -> Kind:
        """The kind of a batch; every stretch of batches holds the kinds in their shares."""
        self._extend(step)
        return self.kinds[self._schedule[step]]

    def _extend(self, step: int) -> None:
        # smooth weighted round robin: the kind that is most overdue comes next
        weights = [float(self.mixture[kind]) for kind in self.kinds]
        while len(self._schedule) <= step:
            self._credit = [c + w for c, w in zip(self._credit, weights, strict=True)]
            chosen = max(range(len(weights)), key=self._credit.__getitem__)
            self._credit[chosen] -= sum(weights)
            self._schedule.append(chosen)
            self._earlier.append(self._done[chosen])
            self._done[chosen] += 1

    def batch(self, step: int) -> Batch:
        """The batch of a step (a micro-step, where gradients are accumulated)."""
        kind = self.kind(step)
        return self.batch_of(kind, self._earlier[step] * self.world + self.rank)

    def batches_per_epoch(self, kind: Kind) -> int:
        return max(1, len(self._order(kind, 0)) // self.batch_sizes[kind])

    def batch_of(self, kind: Kind, number: int) -> Batch:
        """The batch of a kind, by its number among those."""
        epoch, place = divmod(number, self.batches_per_epoch(kind))
        units = self.units(kind)
        rng = self._rng(kind, epoch, 1, place)
        make = getattr(self, f"_{kind}")
        chosen, lengths = self._chosen(kind, epoch, place)
        return self._collate(kind, [make(units, int(unit), int(length), rng)
                                    for unit, length in zip(chosen, lengths, strict=True)])

    def _rng(self, kind: Kind, *parts: int) -> np.random.Generator:
        split = 0 if self.split == "train" else 1
        return np.random.default_rng([self.seed, split, KINDS.index(kind), *parts])

    def _order(self, kind: Kind, epoch: int) -> np.ndarray:
        """The units of an epoch, in their order; for the contrast, one of each group."""
        key = (kind, epoch)
        if key not in self._orders:
            units = self.units(kind)
            order = self._rng(kind, epoch, 0).permutation(len(units))
            if kind == "contrast":
                groups = self.corpus.groups[units.item[order]]
                order = order[np.sort(np.unique(groups, return_index=True)[1])]
            self._orders = {k: v for k, v in self._orders.items() if k[0] != kind}
            self._orders[key] = order
        return self._orders[key]

    def _chosen(self, kind: Kind, epoch: int, place: int) -> tuple[np.ndarray, np.ndarray]:
        """The units of a batch, and how many word pieces neighbours may fill in each.

        Units of about one length come together, so that little is padding. For the contrast they
        do not: texts of one length would be easier told from others than from each other.
        """
        size = self.batch_sizes[kind]
        pool = 1 if kind == "contrast" else _POOL
        first = place // pool * pool
        key = (kind, epoch, first)
        if self._pools.get(kind, (None,))[0] != key:
            rng = self._rng(kind, epoch, 2, first)
            batches = min(pool, self.batches_per_epoch(kind) - first)
            units = self._order(kind, epoch)[first * size : (first + batches) * size]
            found = self.units(kind)
            room = self.options.max_text_tokens - 2
            wanted = rng.integers(1, room + 1, len(units))
            alone = (rng.random(len(units)) >= self.options.join) | found.captions[units]
            wanted[alone if kind in ("joint", "text") else slice(None)] = 0
            if batches > 1:
                order = np.argsort(np.maximum(found.length[units], wanted), kind="stable")
                units, wanted = units[order], wanted[order]
            self._pools[kind] = key, units, wanted, rng.permutation(batches)
        _, units, wanted, order = self._pools[kind]
        start = int(order[place - first]) * size
        return units[start : start + size], wanted[start : start + size]

    # --- examples -----------------------------------------------------------------------------

    def _joint(self, units: Units, unit: int, length: int,
               rng: np.random.Generator) -> _Example:
        item = int(units.item[unit])
        options = self.options
        text, first, last = self._passage(units, unit, length, rng, paired=True)
        clips = self._subsample(first, last, rng)
        aligned = True
        if options.negative_share and rng.random() < options.negative_share:
            other = self._other_text(units, unit, length, first, last, rng)
            if other is not None:
                text, aligned = other, False
        example = self._masked(item, text, rng, self.tokens.video)
        example.clips, example.view = clips, self._view(item, rng)
        example.aligned = aligned if options.negative_share else None
        if self.visual_words is not None:
            rate = rng.uniform(*options.visual_mask_rate)
            example.visual_masked = rng.random(len(clips)) < rate
        if not aligned and example.labels is not None:
            example.labels[:] = NOTHING  # the clips say nothing of another's words
        return example

    def _text(self, units: Units, unit: int, length: int,
              rng: np.random.Generator) -> _Example:
        text, _, _ = self._passage(units, unit, length, rng, paired=False)
        return self._masked(int(units.item[unit]), text, rng, self.tokens.sep)

    def _video(self, units: Units, unit: int, length: int,
               rng: np.random.Generator) -> _Example:
        item, start = int(units.item[unit]), int(units.number[unit])
        count = self.corpus.row(item, "clips")
        start = min(start, count - 2)  # one clip alone says nothing of a hidden one
        step = min(int(rng.integers(1, self.options.max_step + 1)), count - 1 - start)
        clips = np.arange(start, count, step)[: self.options.max_clips]
        hidden = rng.random(len(clips)) < rng.uniform(*self.options.visual_mask_rate)
        if not hidden.any():
            hidden[rng.integers(len(clips))] = True
        elif hidden.all():
            hidden[rng.integers(len(clips))] = False
        text = np.array([self.tokens.cls, self.tokens.video], np.int32)
        return _Example(item, text, clips, self._view(item, rng), visual_masked=hidden)

    def _contrast(self, units: Units, unit: int, length: int,
                  rng: np.random.Generator) -> _Example:
        return self._whole(units, unit, rng)

    def _caption(self, units: Units, unit: int, length: int,
                 rng: np.random.Generator) -> _Example:
        return self._whole(units, unit, rng)

    def _reward(self, units: Units, unit: int, length: int,
                rng: np.random.Generator) -> _Example:
        return self._whole(units, unit, rng)

    def _whole(self, units: Units, unit: int, rng: np.random.Generator) -> _Example:
        """A text as it is, with its clips."""
        item, number = int(units.item[unit]), int(units.number[unit])
        room = self.options.max_text_tokens - 2
        if units.captions[unit]:
            ids = self.corpus.text(item, "caption", number)
            first, last = 0, self.corpus.row(item, "clips")
        else:
            ids = self.corpus.text(item, "segment", number)
            first, last = map(int, self.corpus.segment_clips(item)[number])
        text = np.concatenate([[self.tokens.cls], ids[:room], [self.tokens.sep]]).astype(np.int32)
        return _Example(item, text, self._subsample(first, last, rng), self._view(item, rng))

    def _passage(self, units: Units, unit: int, length: int, rng: np.random.Generator,
                 paired: bool) -> tuple[np.ndarray, int, int]:
        """Word pieces of a caption, or of a segment and neighbours up to a length, and the clips
        `[first, last)` that go with them."""
        item, number = int(units.item[unit]), int(units.number[unit])
        room = self.options.max_text_tokens - 2
        if units.captions[unit]:
            ids = self.corpus.text(item, "caption", number)
            return _cut(ids, room, rng), 0, self.corpus.row(item, "clips")
        pieces = [self.corpus.text(item, "segment", number)]
        spans = self.corpus.segment_clips(item)
        first, last = map(int, spans[number])
        total = len(pieces[0])
        for index in range(number + 1, len(spans) if total < length else 0):
            ids = self.corpus.text(item, "segment", index)
            total += len(ids)
            if total > length:
                break
            if paired:
                begin, end = min(first, int(spans[index, 0])), max(last, int(spans[index, 1]))
                if spans[index, 1] <= spans[index, 0] or end - begin > self.options.max_clips:
                    break
                first, last = begin, end
            pieces.append(ids)
        return _cut(np.concatenate(pieces), room, rng), first, last

    def _other_text(self, units: Units, unit: int, length: int, first: int, last: int,
                    rng: np.random.Generator) -> np.ndarray | None:
        """A passage of another video, or from elsewhere in this one; None where there is none."""
        item = int(units.item[unit])
        if not units.captions[unit] and rng.random() < self.options.near_share:
            spans, times = self.corpus.segment_clips(item), self.corpus.clip_times(item)
            begin = times[first, 0] - self.options.near_seconds
            end = times[last - 1, 1] + self.options.near_seconds
            segment_times = self.corpus.segment_times(item)
            far = np.flatnonzero((self.corpus.segment_lengths(item) > 0)
                                 & (spans[:, 1] > spans[:, 0])
                                 & ((segment_times[:, 1] < begin) | (segment_times[:, 0] > end)))
            if len(far):
                ids = self.corpus.text(item, "segment", int(rng.choice(far)))
                return _cut(ids, self.options.max_text_tokens - 2, rng)
        group = self.corpus.groups[item]
        for _ in range(20):
            other = int(rng.integers(len(units)))
            if self.corpus.groups[units.item[other]] != group:
                return self._passage(units, other, length, rng, paired=True)[0]
        return None

    def _subsample(self, first: int, last: int, rng: np.random.Generator) -> np.ndarray:
        """Numbers of clips over `[first, last)`, at a step of 1 to `max_step`, or at one so large
        that they are no more than `max_clips`."""
        count = last - first
        step = min(int(rng.integers(1, self.options.max_step + 1)), count)
        step = max(step, -(-count // self.options.max_clips))
        return np.arange(first + int(rng.integers(min(step, count))), last, step)

    def _view(self, item: int, rng: np.random.Generator) -> int:
        views = self.corpus.row(item, "views")
        return int(rng.integers(views)) if views > 1 and self.split == "train" else 0

    def _masked(self, item: int, ids: np.ndarray, rng: np.random.Generator, end: int) -> _Example:
        """`[CLS] ids end` with words hidden."""
        options = self.options
        text = np.concatenate([[self.tokens.cls], ids, [end]]).astype(np.int32)
        labels = np.full(len(text), NOTHING, np.int64)
        places = 1 + np.flatnonzero(~self._special[ids])
        count = round(len(places) * rng.uniform(*options.mask_rate))
        if options.mask_rate[1] > 0:
            count = max(1, count)
        chosen = rng.permutation(places)[:count]
        labels[chosen] = text[chosen]
        how = rng.random(len(chosen))
        text[chosen[how < options.mask_token_share]] = self.tokens.mask
        random = chosen[(how >= options.mask_token_share)
                        & (how < options.mask_token_share + options.mask_random_share)]
        text[random] = self.tokens.words[rng.integers(len(self.tokens.words), size=len(random))]
        return _Example(item, text, np.zeros(0, np.int64), labels=labels)

    # --- tensors ------------------------------------------------------------------------------

    def _collate(self, kind: Kind, examples: list[_Example]) -> Batch:
        batch: Batch = {"kind": kind, "ids": [str(self.corpus.ids[e.item]) for e in examples]}
        ids, mask = _padded([example.text for example in examples], self.tokens.pad)
        if kind == "contrast":
            batch |= {"text_ids": ids, "text_mask": mask}
        elif kind in ("caption", "reward"):
            if kind == "caption":
                batch["caption_ids"] = ids
            else:
                batch["references"] = [self.references(e.item) for e in examples]
            start = torch.tensor([self.tokens.cls, self.tokens.video])
            batch["input_ids"] = start.expand(len(examples), 2).clone()
            batch["attention_mask"] = torch.ones(len(examples), 2, dtype=torch.long)
        else:
            batch |= {"input_ids": ids, "attention_mask": mask}
        if kind != "text":
            batch |= self._visual(examples)
        if kind in ("joint", "text"):
            batch["labels"], _ = _padded([e.labels for e in examples if e.labels is not None],
                                         NOTHING)
        if kind == "joint" and self.options.negative_share:
            batch["alignment_labels"] = torch.tensor([int(bool(e.aligned)) for e in examples])
        batch["counts"] = {loss: count(batch[name]) for loss, name, count in _COUNTS
                           if name in batch}
        return batch

    def references(self, item: int) -> list[list[int]]:
        """Word pieces of all captions of an item, each with the `[SEP]` that ends it."""
        return [[*self.corpus.text(item, "caption", number).tolist(), self.tokens.sep]
                for number in range(self.corpus.row(item, "captions"))]

    def _visual(self, examples: list[_Example]) -> Batch:
        width = max(len(example.clips) for example in examples)
        shape = (len(examples), width)
        features = np.zeros((*shape, self.corpus.info.feature_size), np.float32)
        mask = np.zeros(shape, np.int64)
        for row, example in enumerate(examples):
            count = len(example.clips)
            features[row, :count] = self.corpus.clip_features(
                example.item, example.clips, example.view)
            mask[row, :count] = 1
        batch: Batch = {"visual_features": torch.from_numpy(features),
                        "visual_mask": torch.from_numpy(mask)}
        if self.visual_words is None:
            return batch
        words = np.zeros(shape, np.int64)
        hidden = np.zeros(shape, bool)
        labels = np.full(shape, NOTHING, np.int64)
        for row, example in enumerate(examples):
            count = len(example.clips)
            words[row, :count] = self._words(example)
            if example.visual_masked is not None:
                hidden[row, :count] = example.visual_masked
                if example.aligned is not False:
                    labels[row, :count] = np.where(example.visual_masked, words[row, :count],
                                                   NOTHING)
        if self.feed_words:
            batch["visual_words"] = torch.from_numpy(words)
        if examples[0].visual_masked is not None:
            batch["visual_masked"] = torch.from_numpy(hidden)
            batch["visual_labels"] = torch.from_numpy(labels)
        return batch

    def _words(self, example: _Example) -> np.ndarray:
        assert self.visual_words is not None
        start = self.corpus.row(example.item, "feature_row")
        start += example.view * self.corpus.row(example.item, "clips")
        return self.visual_words[int(self.corpus.shard[example.item])][start + example.clips]


def _labelled(labels: torch.Tensor) -> int:
    return int((labels != NOTHING).sum())


_COUNTS = (("words", "labels", _labelled), ("visual_words", "visual_labels", _labelled),
           ("alignment", "alignment_labels", len), ("contrast", "text_ids", len),
           ("caption", "caption_ids", len), ("reward", "references", len))


def make_units(corpus: Corpus, split: str, options: ExampleOptions,
               kinds: Sequence[Kind] = KINDS,
               caption_words: np.ndarray | None = None) -> dict[Kind, Units]:
    """What there is of each kind in a split.

    A segment goes with the clips that it overlaps; one without times with all clips, where these
    fit into one sequence. A caption goes with all clips. A stretch of video begins every
    `max_clips` clips. Captions to be written fit into `max_caption_tokens`, and have no other word
    pieces than `caption_words` says. A reward's unit is a video with captions.
    """
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {kind: [] for kind in KINDS}
    columns = corpus.columns
    for shard in range(len(corpus.shards)):
        items = np.flatnonzero((corpus.shard == shard) & (corpus.splits == split))
        if not len(items):
            continue
        tensors = corpus.tensors(shard)
        clips = columns["clips"][items]
        for name in ("segment", "caption"):
            counts = columns[f"{name}s"][items]
            owner = np.repeat(items, counts)
            number = _ranges(counts)
            rows = np.repeat(columns[f"{name}_row"][items], counts) + number
            offsets = np.asarray(tensors[f"{name}_offsets"])
            length = offsets[rows + 1] - offsets[rows]
            shown = np.repeat(clips, counts)
            caption = np.full(len(owner), name == "caption")
            if name == "segment":
                spans = np.asarray(tensors["segment_clips"])[rows]
                untimed = np.isnan(np.asarray(tensors["segment_times"])[rows]).any(1)
                shown = np.where(untimed & (shown > options.max_clips), 0,
                                 spans[:, 1] - spans[:, 0])
            said = length > 0
            paired = said & (shown > 0)
            written = paired & caption & (length <= options.max_caption_tokens - 2)
            whole = length + np.minimum(shown, options.max_clips)
            rewarded = paired & caption & (number == 0)
            for kind, chosen in (("text", said), ("joint", paired), ("contrast", paired),
                                 ("caption", written), ("reward", rewarded)):
                parts[kind].append((owner[chosen], caption[chosen], number[chosen],
                                    (length if kind == "text" else whole)[chosen]))
        several = clips > 1
        stretches = -(-clips[several] // options.max_clips)
        owner = np.repeat(items[several], stretches)
        number = _ranges(stretches) * options.max_clips
        length = np.minimum(np.repeat(clips[several], stretches) - number, options.max_clips)
        parts["video"].append((owner, np.zeros(len(owner), bool), number, length))
    units = {
        kind: Units(*(np.concatenate(column) for column in zip(*parts[kind], strict=True)))
        if parts[kind] else Units(*(np.zeros(0, np.int64) for _ in range(4)))
        for kind in kinds
    }
    if caption_words is not None and "caption" in units:
        found = units["caption"]
        units["caption"] = found.chosen(np.array([
            bool(caption_words[corpus.text(int(item), "caption", int(number))].all())
            for item, number in zip(found.item, found.number, strict=True)], bool))
    return units


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0 … n-1 for each n, end to end."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _cut(ids: np.ndarray, room: int, rng: np.random.Generator) -> np.ndarray:
    spare = len(ids) - room
    start = int(rng.integers(spare + 1)) if spare > 0 else 0
    return ids[start : start + room]


def _padded(rows: Sequence[np.ndarray], value: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L) int64 and their mask."""
    ids = np.full((len(rows), max(map(len, rows))), value, np.int64)
    mask = np.zeros(ids.shape, np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
