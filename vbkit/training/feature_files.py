"""Clip features in files: those that a user has, and those that are spilled to disk.

A feature file is `.npy` with one array, (N, D) or (views, N, D), or `.safetensors` with such a
tensor. Nothing is unpickled, and a large file is not read into memory as a whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vbkit.errors import StoreError, UsageError
from vbkit.media.kinds import media_kind

__all__ = ["FEATURE_SUFFIXES", "FeatureFile", "FeatureSpill", "find_feature_files"]

FEATURE_SUFFIXES = frozenset({".npy", ".safetensors"})

_TYPES = frozenset({"F16", "BF16", "F32", "F64"})
_SHARD_BYTES = 64 << 20


def find_feature_files(path: Path) -> list[Path] | None:
    """The feature files that an input names: itself, or those of a folder, sorted.

    None where it is something else; a folder with videos, pictures or sound is.
    """
    if path.suffix.lower() in FEATURE_SUFFIXES and not path.is_dir():
        return [path]
    found: list[Path] = []
    for top, folders, names in os.walk(path) if path.is_dir() else ():
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if media_kind(Path(name)) in ("video", "image", "audio"):
                return None
            if Path(name).suffix.lower() in FEATURE_SUFFIXES and not name.startswith("."):
                found.append(Path(top, name))
    return found or None


@dataclass(frozen=True)
class FeatureFile:
    """A file of features.

    Args:
        path: the file.
        tensor: name of the tensor in it; "" for `.npy`.
        shape: of the array; the last number is D.
    """

    path: Path
    tensor: str
    shape: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Features in it, of all views."""
        return math.prod(self.shape[:-1])

    @property
    def width(self) -> int:
        return self.shape[-1]

    @classmethod
    def open(cls, path: Path, wanted: str) -> FeatureFile:
        """Look at a file.

        Args:
            path: the file.
            wanted: name of the tensor to take from a `.safetensors` file with several.

        Raises:
            UsageError: it is missing, damaged, or holds no such array of numbers.
        """
        try:
            if path.suffix.lower() == ".npy":
                array = np.load(path, mmap_mode="r", allow_pickle=False)
                tensor, shape = "", array.shape
                if array.dtype.kind != "f":
                    raise UsageError(f"{path}: the array is {array.dtype}; features are floats")
            else:
                tensor, shape = _tensor_of(path, wanted)
        except (OSError, ValueError, EOFError) as error:
            raise UsageError(f"{path}: cannot be read ({error})") from error
        if len(shape) not in (2, 3) or not shape[-1]:
            raise UsageError(f"{path}: features must be of shape (N, D) or (views, N, D), not "
                             f"{tuple(shape)}")
        return cls(path, tensor, tuple(shape))

    def batches(self, size: int = 16384) -> Iterator[np.ndarray]:
        """Its rows in order, (n, D) float32.

        Raises:
            UsageError: it cannot be read any more.
        """
        step = max(1, size * self.shape[0] // max(1, self.rows))
        try:
            if not self.tensor:
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
                for start in range(0, self.shape[0], step):
                    rows = np.array(array[start : start + step], np.float32)
                    yield rows.reshape(-1, self.width)
                return
            from safetensors import safe_open

            with safe_open(self.path, framework="pt") as file:
                slices = file.get_slice(self.tensor)
                for start in range(0, self.shape[0], step):
                    yield slices[start : start + step].float().reshape(-1, self.width).numpy()
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path}: cannot be read ({error})") from error


def _tensor_of(path: Path, wanted: str) -> tuple[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            floats = {name: tuple(found.get_shape()) for name, found in slices.items()
                      if found.get_dtype() in _TYPES}
    except SafetensorError as error:
        raise UsageError(f"{path}: no whole safetensors file ({error})") from error
    if wanted in floats:
        return wanted, floats[wanted]
    tables = {name: shape for name, shape in floats.items() if len(shape) in (2, 3)}
    if len(tables) == 1:
        return next(iter(tables.items()))
    raise UsageError(f"{path}: holds no tensor {wanted}, and "
                     f"{'several' if tables else 'no'} others of shape (N, D)")


class FeatureSpill:
    """Features on disk, written once in order and then read as often as needed.

    Args:
        folder: for the files; must be empty or absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0
        self._shards: list[Path] = []
        self._parts: list[np.ndarray] = []
        self._bytes = 0

    def add(self, rows: np.ndarray) -> None:
        """Append (n, D) float32 rows.

        Raises:
            StoreError: the disk is full, or the folder cannot be written.
        """
        if not len(rows):
            return
        self._parts.append(np.ascontiguousarray(rows, np.float32))
        self._bytes += rows.nbytes
        self.rows += len(rows)
        if self._bytes >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what was added so far.

        Raises:
            StoreError: the disk is full, or the folder cannot be written.
        """
        if not self._parts:
            return
        path = self.folder / f"features-{len(self._shards):05}.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                np.save(file, np.concatenate(self._parts))
        except OSError as error:
            raise StoreError(f"cannot write features to {self.folder}: {error}; free some space, "
                             "or name another folder") from error
        self._shards.append(path)
        self._parts, self._bytes = [], 0

    def batches(self) -> Iterator[np.ndarray]:
        """All rows in order, (n, D) float32.

        Raises:
            StoreError: the files cannot be read.
        """
        self.flush()
        for path in self._shards:
            try:
                yield np.load(path)
            except (OSError, ValueError) as error:
                raise StoreError(f"{path}: cannot be read ({error})") from error
