"""What a head trains on: outputs of the encoder, through vbkit's public API, cached in a folder.

The training scripts beside this file see texts, pictures and videos only as `Encoder` gives them,
so a head is trained on exactly what it reads when it runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

import vbkit

__all__ = ["MEANS", "Encoder"]

MEANS = 1280
"""How many of `mini`'s clip features, from the first, are means over frames and their area; as
many, from the last, are deviations over the frames."""


class Encoder:
    """Embeddings of texts and features of pictures and videos, each computed once.

    Args:
        cache: folder of the cache, made if need be.
        model: name of the model.
    """

    def __init__(self, cache: Path, model: str = "mini") -> None:
        self.cache = Path(cache)
        self.model_name = model
        self._engine: vbkit.Engine | None = None

    @property
    def engine(self) -> vbkit.Engine:
        """The engine, loaded when it is first needed."""
        if self._engine is None:
            self._engine = vbkit.Engine(model=self.model_name)
        return self._engine

    def fingerprint(self, task: str) -> str:
        """Of what a task's head reads of the model, which its settings record."""
        needs = self.engine.manager.get_task(task).spec.needs
        return self.engine.bundle.fingerprint_of(needs)

    def text_embeddings(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 unit vectors of N texts."""

        def compute(missing: list[str]) -> Iterable[np.ndarray]:
            for start in range(0, len(missing), 4096):
                yield from self.engine.encode_text(missing[start : start + 4096]).cpu().numpy()

        rows = self._cached("text", list(texts), _text_key, compute)
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)

    def image_features(self, paths: Sequence[Path | str]) -> np.ndarray:
        """(N, Dv) float32 `clip_features` of N pictures, each a clip of its own."""
        return self.video_features(paths)[0]

    def video_features(self, paths: Sequence[Path | str]) -> tuple[np.ndarray, np.ndarray]:
        """`clip_features` of videos.

        Returns:
            features (C, Dv) float32 of all clips, and (C,) int64, which of `paths` each is of.
        """
        def compute(missing: list[str]) -> Iterable[np.ndarray]:
            for features in self.engine.encode(missing, needs={"clip_features"}):
                if features.error is not None:
                    raise features.error
                yield features.clip_features.cpu().numpy()

        rows = self._cached("clip_features", [str(path) for path in paths], _file_key, compute)
        index = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return (np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)), index

    def clip_embeddings(self, paths: Sequence[Path | str]) -> tuple[np.ndarray, np.ndarray]:
        """`clip_embeddings` of videos and pictures: as `video_features`, but (C, D)."""
        features, index = self.video_features(paths)
        placed = torch.from_numpy(features).to(self.engine.device)
        return self.engine.encoder.embed_clips(placed).cpu().numpy(), index

    def _cached(
        self,
        kind: str,
        items: list[str],
        key_of: Callable[[str], str],
        compute: Callable[[list[str]], Iterable[np.ndarray]],
    ) -> list[np.ndarray]:
        """Arrays of `items` from the cache file of this kind; what is missing is added to it."""
        output = "segment_embeddings" if kind == "text" else kind
        path = self.cache / f"{kind}-{self.engine.bundle.fingerprint_of({output})[:12]}.npz"
        known: dict[str, np.ndarray] = {}
        if path.exists():
            with np.load(path) as stored:
                ends = np.cumsum(stored["lengths"])
                parts = np.split(stored["rows"], ends[:-1])
                known = dict(zip(stored["keys"].tolist(), parts, strict=True))
        keys = [key_of(item) for item in items]
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        if missing:
            for key, row in zip(missing, compute(list(missing.values())), strict=True):
                known[key] = np.atleast_2d(row).astype(np.float16)
            self.cache.mkdir(parents=True, exist_ok=True)
            np.savez(path, keys=np.array(list(known)), rows=np.concatenate(list(known.values())),
                     lengths=np.array([len(row) for row in known.values()]))
        arrays = [known[key].astype(np.float32) for key in keys]
        return [array[0] for array in arrays] if kind == "text" else arrays


def _text_key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _file_key(path: str) -> str:
    file = Path(path)
    return hashlib.sha256(f"{file.name}:{file.stat().st_size}".encode()).hexdigest()[:24]
