"""A corpus: clip features and tokenized texts of many videos, as files that training streams.

    corpus.json             what made it, and what is in it
    shard-00000.safetensors the tensors of some items, end to end
    shard-00000.parquet     a row for each of these items: its id, and where its rows are

A shard is there once its `.parquet` is; both are renamed into place. A corpus that was cut short is
gone on with by writing it again: items that are in it are not written twice. Tensors are mapped
into memory, so that a corpus may be larger than it.

Tensors of a shard, with Dv features a clip: `clip_features` (R, Dv) float16, `clip_times` (C, 2)
float64 in s, `segment_ids` and `caption_ids` int32, cut at `segment_offsets` (S + 1,) and
`caption_offsets` int64, `segment_times` (S, 2) float64 in s, NaN where unknown, and `segment_clips`
(S, 2) int32, the clips `[first, last)` that overlap each segment. An item seen in several views (a
mirrored picture, say) has one row a view and clip in `clip_features`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vbkit.errors import CorpusError
from vbkit.files import renamed
from vbkit.store.lock import FolderLock

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Corpus",
    "CorpusInfo",
    "CorpusItem",
    "CorpusWriter",
    "Skipped",
    "Split",
    "split_of",
    "tokenizer_key",
    "write_corpus",
]

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
FORMAT = 1
"""To be raised when older code could not read the files."""

Text = str | Sequence[int]
_COLUMNS = ("feature_row", "views", "clip_row", "clips", "segment_row", "segments", "caption_row",
            "captions")
_LISTED = 20
_FLUSH_SECONDS = 300.0  # of work are lost, at most, when a run is killed


@dataclass(frozen=True)
class CorpusItem:
    """A video, with what is said in it or of it.

    Args:
        id: unique in its corpus.
        clip_features: (C, Dv), or (views, C, Dv) where the same clips were seen in several ways;
            None for text alone.
        clip_times: (C, 2) in s; None for clips of the corpus's `clip_seconds`, one after another.
        segments: its transcript, in order: texts, or ids of word pieces without special tokens.
        segment_times: (S, 2) in s; None, or NaN, where they are unknown.
        captions: texts of the whole video, given like segments.
        split: "train" or "val"; None to let the id decide.
        group: items of one group show the same video and share a split; the id by default.
        problem: why there is no such item, in one line: it is skipped, and counted.
    """

    id: str
    clip_features: ArrayLike | None = None
    clip_times: ArrayLike | None = None
    segments: Sequence[Text] = ()
    segment_times: ArrayLike | None = None
    captions: Sequence[Text] = ()
    split: str | None = None
    group: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Skipped:
    """An item that is not in the corpus, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class CorpusInfo:
    """What `corpus.json` says.

    Args:
        backbone: key of what made the clip features; "" where there are none.
        precision: the backbone's.
        feature_size: Dv; 0 where no item has clips.
        tokenizer: key of what made the word pieces (`tokenizer_key`).
        clip_seconds: length of a clip in s.
        items, clips, segments, captions, word_pieces: how many there are.
        unaligned: items none of whose timed segments overlaps their clips.
        skipped: how many items were left out.
        skipped_examples: the first of these.
        complete: whether all was written.
        format: version of the files.
    """

    backbone: str = ""
    precision: str = "float32"
    feature_size: int = 0
    tokenizer: str = ""
    clip_seconds: float = 1.5
    items: int = 0
    clips: int = 0
    segments: int = 0
    captions: int = 0
    word_pieces: int = 0
    unaligned: int = 0
    skipped: int = 0
    skipped_examples: tuple[Skipped, ...] = ()
    complete: bool = False
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> CorpusInfo:
        """`corpus.json` of `folder`.

        Raises:
            CorpusError: there is none, or it is of another version.
        """
        path = folder / "corpus.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            raise CorpusError(f"{folder} is no corpus: it has no corpus.json") from None
        except (OSError, ValueError) as error:
            raise CorpusError(f"{path}: cannot be read ({error})") from error
        version = values.get("format") if isinstance(values, dict) else None
        if version != FORMAT:
            raise CorpusError(f"{folder}: a corpus of format {version}, but this vbkit reads "
                              f"{FORMAT}; make it again")
        try:
            skipped = tuple(Skipped(**row) for row in values.pop("skipped_examples"))
            return cls(skipped_examples=skipped, **values)
        except (KeyError, TypeError) as error:
            raise CorpusError(f"{path}: not as vbkit writes it ({error})") from error


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Names what decides how texts become word pieces."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        settings = json.loads(backend.to_str())
        for name in ("truncation", "padding"):  # how it was last called, not what it is
            settings.pop(name, None)
    else:
        settings = tokenizer.get_vocab()
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def split_of(name: str, val_share: float) -> Split:
    """"val" for a share of all names, always the same ones."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") < val_share * 2.0**64 else "train"


# --- writing ----------------------------------------------------------------------------------


def write_corpus(
    items: Iterable[CorpusItem],
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    backbone: str = "",
    precision: str = "float32",
    clip_seconds: float = 1.5,
    val_share: float = 0.05,
    shard_bytes: int = 256 << 20,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Write a corpus, or what is missing of one.

    An item whose features are of another width than those before it or not finite, or that holds
    neither clips nor text, is skipped and counted. Texts are tokenized here.

    Args:
        items: read one by one. Those whose id is in the corpus already are passed over.
        out: the corpus's folder.
        tokenizer: of the model that will be trained.
        backbone: key of what made the features; needed where there are any.
        precision: the backbone's.
        clip_seconds: length of a clip in s.
        val_share: how many of the items that name no split are kept for validation.
        shard_bytes: about how large a file is.
        progress: called with the number of items written and skipped so far.

    Raises:
        CorpusError: `out` holds a corpus of another backbone or tokenizer, cannot be written, or
            more than half of the items had to be skipped.
        StoreLockedError: another run is writing it.
    """
    with FolderLock(Path(out)).hold():
        writer = CorpusWriter(out, tokenizer=tokenizer, backbone=backbone, precision=precision,
                              clip_seconds=clip_seconds, val_share=val_share,
                              shard_bytes=shard_bytes)
        for item in items:
            writer.add(item)
            if progress is not None:
                progress(writer.items, len(writer.skipped))
        writer.close()
    return Corpus.open(out)


class CorpusWriter:
    """What `write_corpus` writes with; its arguments are the same."""

    def __init__(self, out: str | Path, *, tokenizer: PreTrainedTokenizerBase, backbone: str = "",
                 precision: str = "float32", clip_seconds: float = 1.5, val_share: float = 0.05,
                 shard_bytes: int = 256 << 20) -> None:
        if not 0 <= val_share < 1:
            raise CorpusError(f"val_share is {val_share}, but must be at least 0 and below 1")
        self.out = Path(out)
        self.tokenizer = tokenizer
        self.val_share = val_share
        self.shard_bytes = shard_bytes
        self.skipped: list[Skipped] = []
        self.counts: Counter[str] = Counter()
        self.groups: dict[str, str] = {}  # group -> split
        self.done: set[str] = set()
        self.info = CorpusInfo(backbone=backbone, precision=precision, clip_seconds=clip_seconds,
                               tokenizer=tokenizer_key(tokenizer))
        self.shards = 0
        self._begin()
        self._clear()

    @property
    def items(self) -> int:
        """How many items are in the corpus."""
        return self.counts["items"]

    def _begin(self) -> None:
        """Take up what is there, or start."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CorpusError(f"{self.out}: cannot be made ({error.strerror})") from error
        if (self.out / "corpus.json").exists():
            found = CorpusInfo.read(self.out)
            check_same(found, self.info, str(self.out), "what is being written")
            self.info = _replaced(self.info, feature_size=found.feature_size)
        while (self.out / f"shard-{self.shards:05d}.parquet").exists():
            rows = _read_index(self.out / f"shard-{self.shards:05d}.parquet")
            self.done.update(rows["id"])
            self.groups.update(zip(rows["group"], rows["split"], strict=True))
            tensors = _open_shard(self.out / f"shard-{self.shards:05d}.safetensors")
            self._count(rows, tensors)
            self.shards += 1
        self._write_info(complete=False)

    def _count(self, rows: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        self.counts["items"] += len(rows["id"])
        for name in ("clips", "segments", "captions"):
            self.counts[name] += int(np.sum(rows[name]))
        self.counts["word_pieces"] += len(tensors["segment_ids"]) + len(tensors["caption_ids"])
        self.counts["unaligned"] += int(np.sum(rows["unaligned"]))

    def _clear(self) -> None:
        self.rows: dict[str, list[Any]] = {name: [] for name in (
            "id", "group", "split", "unaligned", *_COLUMNS)}
        self.arrays: dict[str, list[np.ndarray]] = {name: [] for name in (
            "clip_features", "clip_times", "segment_ids", "segment_times", "segment_clips",
            "caption_ids")}
        self.lengths: dict[str, list[int]] = {"segment": [], "caption": []}
        self.sizes: Counter[str] = Counter()
        self.bytes = 0
        self.since = time.monotonic()

    def add(self, item: CorpusItem) -> None:
        """Write an item, or count why it cannot be.

        Raises:
            CorpusError: the corpus cannot be written, or features came without a backbone's key.
        """
        if item.id in self.done:
            return
        if item.problem is not None:
            self.skipped.append(Skipped(item.id, item.problem))
            return
        try:
            features, times = self._clips(item)
            segments, captions = self._tokenize(item.segments), self._tokenize(item.captions)
            segment_times = _times(item.segment_times, len(segments), "segment_times", unknown=True)
            if item.split not in (None, *SPLITS):
                raise ValueError(f"split {item.split!r} is neither train nor val")
            if not len(times) and not any(map(len, segments)) and not any(map(len, captions)):
                raise ValueError("neither clips nor text")
        except (ValueError, TypeError) as error:
            self.skipped.append(Skipped(item.id, str(error)))
            return
        if features.size and not self.info.feature_size:
            self.info = _replaced(self.info, feature_size=features.shape[-1])
        group = item.group or item.id
        split = self.groups.setdefault(
            group, item.split or split_of(group, self.val_share))
        clips = overlapping(times, segment_times)
        timed = ~np.isnan(segment_times).any(1)
        unaligned = bool(len(times) and timed.any() and not (
            clips[timed, 1] > clips[timed, 0]).any())
        row: dict[str, Any] = {
            "id": item.id, "group": group, "split": split, "unaligned": unaligned,
            "feature_row": self.sizes["features"], "views": len(features) if len(times) else 0,
            "clip_row": self.sizes["clips"], "clips": len(times),
            "segment_row": len(self.lengths["segment"]), "segments": len(segments),
            "caption_row": len(self.lengths["caption"]), "captions": len(captions),
        }
        for name, value in row.items():
            self.rows[name].append(value)
        self.done.add(item.id)
        self.sizes["clips"] += len(times)
        if len(times):
            self.sizes["features"] += features.shape[0] * features.shape[1]
            self.arrays["clip_features"].append(features.reshape(-1, features.shape[-1]))
            self.arrays["clip_times"].append(times)
        self.arrays["segment_times"].append(segment_times)
        self.arrays["segment_clips"].append(clips)
        for name, texts in (("segment", segments), ("caption", captions)):
            self.arrays[f"{name}_ids"] += texts
            self.lengths[name] += map(len, texts)
        self.counts["items"] += 1
        self.counts["unaligned"] += unaligned
        for name in ("clips", "segments", "captions"):
            self.counts[name] += row[name]
        pieces = sum(map(len, segments)) + sum(map(len, captions))
        self.counts["word_pieces"] += pieces
        self.bytes += features.nbytes + 4 * pieces
        if self.bytes >= self.shard_bytes or time.monotonic() - self.since > _FLUSH_SECONDS:
            self._flush()

    def _clips(self, item: CorpusItem) -> tuple[np.ndarray, np.ndarray]:
        """Its (views, C, Dv) float16 features and (C, 2) times."""
        features = np.zeros((1, 0, 0), np.float16)
        if item.clip_features is not None:
            given = np.asarray(item.clip_features)
            if given.dtype.kind not in "fiu" or given.ndim not in (2, 3):
                raise ValueError(f"clip_features are {given.dtype} of shape {given.shape}, not "
                                 "numbers of shape (clips, features) or (views, clips, features)")
            features = given if given.ndim == 3 else given[None]
            if not np.isfinite(features).all():
                raise ValueError("clip_features are not finite")
            if (features.dtype != np.float16 and features.size
                    and np.abs(features).max() > np.finfo(np.float16).max):
                raise ValueError("clip_features are too large for float16")
            features = features.astype(np.float16)
        if not features.size:
            return np.zeros((1, 0, 0), np.float16), np.zeros((0, 2))
        wanted = self.info.feature_size
        if wanted and features.shape[-1] != wanted:
            raise ValueError(f"clip_features are {features.shape[-1]} wide, but those before "
                             f"them are {wanted}")
        if not self.info.backbone:
            raise CorpusError(f"{item.id} has clip features: say what made them (backbone)")
        count = features.shape[1]
        if item.clip_times is None:
            starts = np.arange(count) * self.info.clip_seconds
            return features, np.stack([starts, starts + self.info.clip_seconds], 1)
        times = _times(item.clip_times, count, "clip_times")
        if (np.diff(times[:, 0]) < 0).any():
            raise ValueError("clip_times are not in order")
        return features, times

    def _tokenize(self, texts: Sequence[Text]) -> list[np.ndarray]:
        if isinstance(texts, str):
            raise TypeError("texts are a list, not a string")
        if not len(texts):
            return []
        written = [text for text in texts if isinstance(text, str)]
        ids = iter(self.tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"]
                   if written else ())
        out = [np.asarray(next(ids) if isinstance(text, str) else text, np.int32).reshape(-1)
               for text in texts]
        size = len(self.tokenizer)
        for row in out:
            if row.size and not 0 <= int(row.min()) <= int(row.max()) < size:
                raise ValueError(f"word pieces are outside the tokenizer's 0 to {size - 1}")
        return out

    def _flush(self) -> None:
        from safetensors.numpy import save_file

        if not self.rows["id"]:
            return
        empty = {
            "clip_features": np.zeros((0, self.info.feature_size), np.float16),
            "clip_times": np.zeros((0, 2)), "segment_times": np.zeros((0, 2)),
            "segment_clips": np.zeros((0, 2), np.int32), "segment_ids": np.zeros(0, np.int32),
            "caption_ids": np.zeros(0, np.int32),
        }
        tensors = {name: np.concatenate([empty[name], *parts])
                   for name, parts in self.arrays.items()}
        for name, lengths in self.lengths.items():
            tensors[f"{name}_offsets"] = np.cumsum([0, *lengths], dtype=np.int64)
        stem = f"shard-{self.shards:05d}"
        with _said(self.out), renamed(self.out / f"{stem}.safetensors") as path:
            save_file(tensors, path, metadata={"format": "np"})
        self._write_index(self.out / f"{stem}.parquet")
        self.shards += 1
        self._clear()
        self._write_info(complete=False)

    def _write_index(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: pa.array(values) for name, values in self.rows.items()})
        with _said(self.out), renamed(path) as temporary:
            pq.write_table(table, temporary)

    def _write_info(self, complete: bool) -> None:
        self.info = _replaced(
            self.info, complete=complete, skipped=len(self.skipped),
            skipped_examples=tuple(self.skipped[:_LISTED]),
            **{name: self.counts[name] for name in (
                "items", "clips", "segments", "captions", "word_pieces", "unaligned")})
        with _said(self.out), renamed(self.out / "corpus.json") as path:
            path.write_text(json.dumps(asdict(self.info), indent=2) + "\n")

    def close(self) -> None:
        """Finish the corpus.

        Raises:
            CorpusError: more than half of the items were skipped, or there is none.
        """
        self._flush()
        if len(self.skipped) > self.items:
            reasons = Counter(skipped.reason for skipped in self.skipped).most_common(1)
            raise CorpusError(
                f"{len(self.skipped)} of {len(self.skipped) + self.items} items cannot be used, "
                f"more than half; most often: {reasons[0][0]}")
        if not self.items:
            raise CorpusError("there is nothing to train on: no item was given")
        self._write_info(complete=True)


def overlapping(clip_times: np.ndarray, segment_times: np.ndarray) -> np.ndarray:
    """(S, 2) int32: the clips `[first, last)` that overlap each segment; all where it has no times.

    Args:
        clip_times: (C, 2) in s, in order.
        segment_times: (S, 2) in s.
    """
    instant = 1e-3  # a picture and a segment without duration still have a place
    starts, ends = segment_times[:, 0], np.maximum(segment_times[:, 1],
                                                   segment_times[:, 0] + instant)
    clip_ends = np.maximum.accumulate(np.maximum(clip_times[:, 1], clip_times[:, 0] + instant))
    first = np.searchsorted(clip_ends, starts, side="right")
    last = np.searchsorted(clip_times[:, 0], ends, side="left")
    untimed = np.isnan(segment_times).any(1)
    first[untimed], last[untimed] = 0, len(clip_times)
    return np.stack([first, np.maximum(first, last)], 1).astype(np.int32)


def _times(given: ArrayLike | None, count: int, name: str, unknown: bool = False) -> np.ndarray:
    if given is None:
        return np.full((count, 2), np.nan)
    times = np.asarray(given, np.float64).reshape(-1, 2)
    if len(times) != count:
        raise ValueError(f"{name} are {len(times)}, but there are {count}")
    if not unknown and not np.isfinite(times).all():
        raise ValueError(f"{name} are not finite")
    return times


def _replaced(info: CorpusInfo, **changes: Any) -> CorpusInfo:
    import dataclasses

    return dataclasses.replace(info, **changes)


@contextlib.contextmanager
def _said(out: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CorpusError(f"cannot write the corpus {out}: {error}; free some space and run the "
                          "same command again: it goes on where it stopped") from error


# --- reading ----------------------------------------------------------------------------------


def check_same(one: CorpusInfo, other: CorpusInfo, one_name: str, other_name: str) -> None:
    """That two corpora may be one.

    Raises:
        CorpusError: their clip features or word pieces were made by different things.
    """
    if one.tokenizer != other.tokenizer:
        raise CorpusError(f"{one_name} was tokenized by {one.tokenizer}, {other_name} by "
                          f"{other.tokenizer}: they cannot be mixed; make a corpus for each")
    if one.backbone and other.backbone and one.backbone != other.backbone:
        raise CorpusError(f"the clip features of {one_name} were made by backbone {one.backbone}, "
                          f"those of {other_name} by {other.backbone}: they cannot be mixed; make "
                          "a corpus for each")
    if one.feature_size and other.feature_size and one.feature_size != other.feature_size:
        raise CorpusError(f"the clip features of {one_name} are {one.feature_size} wide, those of "
                          f"{other_name} {other.feature_size}")


@dataclass
class Corpus:
    """One corpus, or several as one, for reading.

    Args:
        info: what is in it, added up.
        shards: the `.safetensors` files.
        ids, splits: (N,) of each item.
        groups: (N,) int64, the same where items show the same video.
        shard: (N,) the number of the file that each item is in.
        columns: (N,) each: `feature_row`, `views`, `clip_row`, `clips`, `segment_row`, `segments`,
            `caption_row`, `captions`: where an item's rows begin, and how many there are.
    """

    info: CorpusInfo
    shards: list[Path]
    ids: np.ndarray
    groups: np.ndarray
    splits: np.ndarray
    shard: np.ndarray
    columns: dict[str, np.ndarray]
    _open: dict[int, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, *folders: str | Path) -> Corpus:
        """Open corpora that were written to the end.

        Raises:
            CorpusError: a folder is none, was not finished, is damaged, or does not go with the
                others.
        """
        if not folders:
            raise CorpusError("name a corpus")
        paths = [Path(folder) for folder in folders]
        infos = [CorpusInfo.read(path) for path in paths]
        info = infos[0]
        for path, other in zip(paths[1:], infos[1:], strict=True):
            check_same(info, other, str(paths[0]), str(path))
            counts = {name: getattr(info, name) + getattr(other, name) for name in (
                "items", "clips", "segments", "captions", "word_pieces", "unaligned", "skipped")}
            info = _replaced(info, **counts, backbone=info.backbone or other.backbone,
                             precision=info.precision if info.backbone else other.precision,
                             feature_size=info.feature_size or other.feature_size)
        shards, rows = [], []
        for path, each in zip(paths, infos, strict=True):
            if not each.complete:
                raise CorpusError(f"{path}: writing this corpus was cut short; run the command "
                                  "that made it again, it goes on where it stopped")
            for index in sorted(path.glob("shard-*.parquet")):
                rows.append(_read_index(index))
                shards.append(index.with_suffix(".safetensors"))
        ids = np.array([name for row in rows for name in row["id"]], object)
        if len(ids) != info.items:
            raise CorpusError(f"{', '.join(map(str, paths))}: {len(ids)} items, but corpus.json "
                              f"says {info.items}; make it again")
        codes: dict[tuple[Path, str], int] = {}
        groups = np.array([codes.setdefault((shard.parent, name), len(codes))
                           for shard, row in zip(shards, rows, strict=True)
                           for name in row["group"]], np.int64)
        columns = {name: np.concatenate([np.asarray(row[name]) for row in rows])
                   for name in ("split", *_COLUMNS)}
        return cls(info, shards, ids, groups, columns.pop("split"),
                   np.repeat(np.arange(len(rows)), [len(row["id"]) for row in rows]), columns)

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process maps the files for itself

    def tensors(self, shard: int) -> dict[str, np.ndarray]:
        """The tensors of a shard, mapped into memory."""
        if shard not in self._open:
            self._open[shard] = _open_shard(self.shards[shard])
        return self._open[shard]

    def feature_batches(self, split: Split = "train", size: int = 4096) -> Iterator[np.ndarray]:
        """All clip features of a split, every view, (n, Dv) float16 with n up to about `size`."""
        for shard in range(len(self.shards)):
            features = self.tensors(shard)["clip_features"]
            rows = []
            for item in np.flatnonzero((self.shard == shard) & (self.splits == split)):
                start = self.row(int(item), "feature_row")
                count = self.row(int(item), "views") * self.row(int(item), "clips")
                rows.append(features[start : start + count])
                if sum(map(len, rows)) >= size:
                    yield np.concatenate(rows)
                    rows = []
            if any(map(len, rows)):
                yield np.concatenate(rows)

    def row(self, item: int, name: str) -> int:
        return int(self.columns[name][item])

    def clip_features(self, item: int, clips: np.ndarray, view: int = 0) -> np.ndarray:
        """(len(clips), Dv) float16 features of chosen clips."""
        start = self.row(item, "feature_row") + view * self.row(item, "clips")
        return self.tensors(int(self.shard[item]))["clip_features"][start + clips]

    def clip_times(self, item: int) -> np.ndarray:
        """(C, 2) in s."""
        start = self.row(item, "clip_row")
        return self.tensors(int(self.shard[item]))["clip_times"][
            start : start + self.row(item, "clips")]

    def text(self, item: int, name: Literal["segment", "caption"], number: int) -> np.ndarray:
        """int32 word pieces of a segment or caption."""
        tensors = self.tensors(int(self.shard[item]))
        start = self.row(item, f"{name}_row") + number
        first, last = tensors[f"{name}_offsets"][start : start + 2]
        return tensors[f"{name}_ids"][first:last]

    def segment_lengths(self, item: int) -> np.ndarray:
        """(S,) word pieces of each segment."""
        start = self.row(item, "segment_row")
        offsets = self.tensors(int(self.shard[item]))["segment_offsets"]
        return np.diff(offsets[start : start + self.row(item, "segments") + 1])

    def segment_clips(self, item: int) -> np.ndarray:
        """(S, 2) the clips `[first, last)` that overlap each segment."""
        start = self.row(item, "segment_row")
        return self.tensors(int(self.shard[item]))["segment_clips"][
            start : start + self.row(item, "segments")]

    def segment_times(self, item: int) -> np.ndarray:
        """(S, 2) in s, NaN where unknown."""
        start = self.row(item, "segment_row")
        return self.tensors(int(self.shard[item]))["segment_times"][
            start : start + self.row(item, "segments")]


def _read_index(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        return {name: (column.to_pylist() if pa.types.is_string(column.type)
                       else column.to_numpy())
                for name, column in zip(table.column_names, table.columns, strict=True)}
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error


def _open_shard(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        # torch's tensors are views of the mapped file; numpy's would be copies
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CorpusError(f"{path}: cannot be read ({error}); make the corpus again") from error
