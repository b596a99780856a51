"""The embeddings of a results folder in one file, so that a question need not open a thousand.

    OUT/index/embeddings.safetensors   of all videos, mapped into memory

It repeats what the feature cache holds and can be deleted at any time. A video's part is made anew
when its row in `videos` was written anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vbkit.errors import StoreError
from vbkit.files import renamed
from vbkit.store.layout import table_folder

__all__ = ["MODALITIES", "EmbeddingIndex", "IndexedVideo", "index_path", "stamps"]

_VERSION = 1
_CHUNK = 1 << 15
MODALITIES = ("clip", "segment")
"""Kinds of embeddings, by the beginning of their names."""


@dataclass(frozen=True)
class IndexedVideo:
    """A video's part of the index.

    Args:
        row: what `videos` says of it, as far as it is needed to find its features.
        stamp: of the file of that row.
        complete: False where its embeddings were not at hand.
        clip_embeddings, segment_embeddings: (C, D) and (S, D) float16 unit vectors.
        clip_times, segment_times: (C, 2) and (S, 2) float64, s.
    """

    row: Mapping[str, Any]
    stamp: str
    complete: bool
    clip_embeddings: Tensor
    segment_embeddings: Tensor
    clip_times: Tensor
    segment_times: Tensor

    @property
    def video_id(self) -> str:
        return str(self.row["video_id"])


class EmbeddingIndex:
    """The embeddings of many videos, one after the other.

    Args:
        key: names the model that they are of.
        about: for each video its row, its stamp and whether it is complete.
        tensors: `clip_embeddings` (C, D), `clip_times` (C, 2) and `clip_offsets` (N + 1) of all N
            videos, and the same of segments.
    """

    def __init__(self, key: str, about: Sequence[Mapping[str, Any]],
                 tensors: Mapping[str, Tensor]) -> None:
        self.key = key
        self.about = list(about)
        self.tensors = dict(tensors)
        self.offsets = {name: tensors[f"{name}_offsets"].tolist() for name in MODALITIES}
        self.places = {str(each["row"]["video_id"]): i for i, each in enumerate(self.about)}

    def __len__(self) -> int:
        return len(self.about)

    @classmethod
    def of(cls, key: str, videos: Sequence[IndexedVideo], width: int) -> EmbeddingIndex:
        """An index of these videos, in this order; embeddings are (…, width)."""
        tensors: dict[str, Tensor] = {}
        for name in MODALITIES:
            vectors = [getattr(video, f"{name}_embeddings") for video in videos]
            times = [getattr(video, f"{name}_times") for video in videos]
            tensors[f"{name}_embeddings"] = torch.cat(
                [torch.zeros(0, width, dtype=torch.float16), *vectors])
            tensors[f"{name}_times"] = torch.cat([torch.zeros(0, 2, dtype=torch.float64), *times])
            lengths = torch.tensor([0, *map(len, vectors)], dtype=torch.int64)
            tensors[f"{name}_offsets"] = lengths.cumsum(0)
        return cls(key, [{"row": dict(video.row), "stamp": video.stamp,
                          "complete": video.complete} for video in videos], tensors)

    @classmethod
    def load(cls, out: Path, key: str) -> EmbeddingIndex | None:
        """The index of a results folder; None where there is none of this key."""
        try:
            with safe_open(index_path(out), framework="pt") as file:
                told = json.loads((file.metadata() or {}).get("vbkit", "{}"))
                if told.get("version") != _VERSION or told.get("key") != key:
                    return None
                return cls(key, told["videos"],
                           {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, ValueError, KeyError):
            return None

    def save(self, out: Path) -> None:
        """Write the file.

        Raises:
            StoreError: the folder cannot be written.
        """
        told = {"version": _VERSION, "key": self.key, "videos": self.about}
        try:
            with renamed(index_path(out)) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()},
                          temporary, metadata={"vbkit": json.dumps(told)})
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot write {index_path(out)}: {error}") from error

    def video(self, place: int) -> IndexedVideo:
        """The part of the video at `place`."""
        about, parts = self.about[place], {}
        for name in MODALITIES:
            first, last = self.offsets[name][place : place + 2]
            for what in ("embeddings", "times"):
                parts[f"{name}_{what}"] = self.tensors[f"{name}_{what}"][first:last]
        return IndexedVideo(about["row"], about["stamp"], bool(about["complete"]), **parts)

    def nearest(self, queries: Tensor, name: str) -> Tensor:
        """Of each video, how near its nearest clip or segment comes to each query.

        Args:
            queries: (Q, D) unit vectors.
            name: `clip` or `segment`.

        Returns:
            (Q, N) cosines, -inf where a video has none.
        """
        vectors, count = self.tensors[f"{name}_embeddings"], len(self)
        best = torch.full((len(queries), count), -torch.inf, device=queries.device)
        owner = torch.repeat_interleave(
            torch.arange(count), self.tensors[f"{name}_offsets"].diff()).to(queries.device)
        for start in range(0, len(vectors), _CHUNK):
            chunk = vectors[start : start + _CHUNK].to(queries.device).float()
            at = owner[start : start + _CHUNK].expand(len(queries), -1)
            best.scatter_reduce_(1, at, queries.float() @ chunk.T, "amax")
        return best


def index_path(out: Path) -> Path:
    """Where a results folder keeps the index."""
    return out / "index" / "embeddings.safetensors"


def stamps(out: Path) -> dict[str, str]:
    """Of each file of the table `videos`, by its name: what changes when it is written anew."""
    found: dict[str, str] = {}
    try:
        with os.scandir(table_folder(out, "videos")) as entries:
            for entry in entries:
                if entry.name.endswith(".parquet"):
                    stat = entry.stat()
                    found[entry.name] = f"{stat.st_size} {stat.st_mtime_ns}"
    except OSError as error:
        raise StoreError(f"cannot read {table_folder(out, 'videos')}: "
                         f"{error.strerror or error}") from error
    return found
