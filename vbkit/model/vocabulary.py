"""Visual words: the leaves of a tree of k-means centroids (Sun et al., ICCV 2019, section 4.2).

The root's children are the centroids of all features, and each further level clusters the features
that fall on one centroid of the level above. The paper's tree has depth 4 and branching 12, which
makes 20,736 words.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vbkit.errors import ModelError
from vbkit.model.kmeans import (
    LloydState,
    cluster_sums,
    fit,
    half_norms,
    nearest,
    squared_norms,
)
from vbkit.model.stored_tensors import read_tensors, write_tensors

__all__ = ["VOCABULARY_FILE", "BuildProgress", "VisualVocabulary", "VocabularyQuality",
           "build_vocabulary"]

VOCABULARY_FILE = "vocabulary.safetensors"

Space = Literal["features", "embeddings"]
Batches = Callable[[], Iterable[Tensor | np.ndarray]]

_FORMAT = "vbkit.visual_vocabulary"
_CHECKPOINT_FORMAT = "vbkit.visual_vocabulary.checkpoint"
_VERSION = "1"
_SPACES = ("features", "embeddings")
_GATHER_ELEMENTS = 1 << 24  # of children's centroids gathered at a time
_SAMPLE_PER_WORD = 512  # features; fewer cost distortion, more bring next to none
_ENOUGH_PER_WORD = 256


@dataclass(frozen=True)
class VocabularyQuality:
    """How well a vocabulary stands for features.

    Args:
        features: how many were looked at.
        words: in the vocabulary.
        used: words that at least one feature falls on.
        distortion: mean squared distance of a feature from its word's centroid.
        variance: mean squared distance of a feature from the mean of all.
        entropy: of the words' use, bits; log2(words) if all are used alike.
    """

    features: int
    words: int
    used: int
    distortion: float
    variance: float
    entropy: float

    @property
    def explained(self) -> float:
        """Share of the variance that the words explain: 1 - distortion / variance."""
        return 1 - self.distortion / self.variance if self.variance > 0 else math.nan

    @property
    def perplexity(self) -> float:
        """2 to the entropy: the number of words that would be used alike."""
        return 2.0 ** self.entropy


@dataclass(frozen=True)
class BuildProgress:
    """What `build_vocabulary` has just done.

    Args:
        stage: "read" (features looked at), "cluster" (nodes of a level), or "refine" (passes over
            all features).
        level: 1 for the root's children; 0 while reading.
        done, total: of the stage; total is 0 where it is not known.
        distortion: mean squared distance at this level so far, or None.
    """

    stage: Literal["read", "cluster", "refine"]
    level: int
    done: int
    total: int
    distortion: float | None = None


class VisualVocabulary:
    """A tree of centroids. Its leaves, numbered from 0 without gaps, are the visual words.

    Args:
        levels: for each level, from the root's children down: (K, D) centroids, ordered by their
            parent, and how many children each parent has, (K of the level above,).
        branching: children of a node, at most.
        space: what the words are made of: "features" (the clip features that the model reads,
            `VideoBertModel.standardise(clip_features)`) or "embeddings" (`clip_embeddings`).
        backbone: key of what makes the features; "" where it is not known.
        device: where assignment is computed.

    Raises:
        ModelError: the levels do not fit together.
    """

    def __init__(
        self,
        levels: Sequence[tuple[Tensor, Tensor]],
        *,
        branching: int,
        space: str = "features",
        backbone: str = "",
        device: torch.device | str = "cpu",
    ) -> None:
        _check_levels(levels, branching)
        if space not in _SPACES:
            raise ModelError(f"space {space!r} is none of {', '.join(_SPACES)}")
        self.depth = len(levels)
        self.branching = branching
        self.space = space
        self.backbone = backbone
        self.feature_size = levels[0][0].shape[1]
        self._tree = _Tree([(c.float().to(device), n.to(device)) for c, n in levels])

    def __len__(self) -> int:
        return len(self.centroids)

    def __repr__(self) -> str:
        return (f"VisualVocabulary({len(self)} words, depth {self.depth}, branching "
                f"{self.branching}, {self.feature_size} {self.space})")

    @property
    def centroids(self) -> Tensor:
        """(words, D) float32: the centroid of each word."""
        return self._tree.levels[-1][0]

    @property
    def device(self) -> torch.device:
        return self.centroids.device

    def to(self, device: torch.device | str) -> VisualVocabulary:
        """This vocabulary on another device."""
        if torch.device(device) == self.device:
            return self
        return VisualVocabulary(self._tree.levels, branching=self.branching, space=self.space,
                                backbone=self.backbone, device=device)

    def assign(self, features: Tensor) -> Tensor:
        """The visual word of each feature: the nearest child at each level, down to a leaf.

        Args:
            features: (..., D), finite, of the vocabulary's `space`.

        Returns:
            (...,) int64 in 0 .. len - 1, on the device of `features`.

        Raises:
            ModelError: the features are of another width or not finite.
        """
        flat = self._flat(features)
        _check_finite(flat)
        return self._tree.assign(flat)[0].view(features.shape[:-1]).to(features.device)

    def distortion(self, features: Tensor) -> float:
        """Mean squared distance of (..., D) features from their word's centroid."""
        return self.quality(lambda: [features]).distortion

    def quality(self, batches: Batches) -> VocabularyQuality:
        """Quality on features, which are read once.

        Args:
            batches: gives (..., D) features, batch by batch.

        Raises:
            ModelError: there are no features, or they are of another width or not finite.
        """
        counts = torch.zeros(len(self), dtype=torch.int64)
        total = torch.zeros(self.feature_size, dtype=torch.float64)
        squares = error = 0.0
        for batch in batches():
            flat = self._flat(batch)
            _check_finite(flat)
            for part in flat.split(_block(self.feature_size)):
                ids, distances = self._tree.assign(part)
                counts += torch.bincount(ids, minlength=len(self)).cpu()
                error += float(distances.cpu().double().sum())
                part = part - self._tree.shift
                total += part.sum(0).cpu().double()
                squares += float(squared_norms(part).cpu().double().sum())
        n = int(counts.sum())
        if not n:
            raise ModelError("there are no features to measure the vocabulary on")
        share = counts[counts > 0].double() / n
        variance = squares / n - float((total / n).square().sum())
        if variance < 1e-6 * squares / n:  # rounding
            variance = 0.0
        return VocabularyQuality(n, len(self), int((counts > 0).sum()), error / n, variance,
                                 max(0.0, -float((share * share.log2()).sum())))

    def check(self, *, feature_size: int | None = None, backbone: str | None = None,
              space: str | None = None) -> None:
        """Raise where this vocabulary does not belong to a model.

        Args:
            feature_size: width of the model's features.
            backbone: key of the model's backbone.
            space: what the model takes words of.

        Raises:
            ModelError: it does not fit.
        """
        if space is not None and space != self.space:
            raise ModelError(f"the visual vocabulary is one of {self.space}, but {space} are asked "
                             f"for; build another with `vbkit vocab --space {space}`")
        if feature_size is not None and feature_size != self.feature_size:
            raise ModelError(f"the visual vocabulary is one of {self.feature_size} {self.space}, "
                             f"but the model has {feature_size}; build one for this model with "
                             "`vbkit vocab`")
        if backbone is not None and self.backbone and backbone != self.backbone:
            raise ModelError(f"the visual vocabulary was built on features of another backbone "
                             f"({self.backbone}; the model's is {backbone}): its words mean "
                             "nothing here; build one for this model with `vbkit vocab`")

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> Path:
        """Write `vocabulary.safetensors` into a folder; the file is whole or absent.

        Args:
            folder: where to.
            dtype: of the centroids; in float16 a feature that lies between two may change its word.

        Returns:
            The file.

        Raises:
            ModelError: it cannot be written.
        """
        path = Path(folder) / VOCABULARY_FILE
        tensors = {}
        for number, (centroids, children) in enumerate(self._tree.levels, 1):
            tensors[f"centroids_{number}"] = centroids.to(dtype)
            tensors[f"children_{number}"] = children.to(torch.int32)
        write_tensors(path, tensors, {
            "format": _FORMAT, "version": _VERSION, "depth": str(self.depth),
            "branching": str(self.branching), "words": str(len(self)), "space": self.space,
            "feature_size": str(self.feature_size), "backbone": self.backbone,
        })
        return path

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: torch.device | str = "cpu",
        feature_size: int | None = None,
        backbone: str | None = None,
        space: str | None = None,
    ) -> VisualVocabulary:
        """Read `vocabulary.safetensors` from a folder.

        Args:
            folder: the folder, or the file itself.
            device: where assignment is to be computed.
            feature_size, backbone, space: what it has to fit, as in `check`.

        Raises:
            ModelError: the file is missing, damaged, of a newer version, or does not fit.
        """
        path = Path(folder)
        path = path / VOCABULARY_FILE if path.is_dir() or not path.suffix else path
        tensors, metadata = _load(path, _FORMAT)
        try:
            levels = [(tensors[f"centroids_{number}"].float(), tensors[f"children_{number}"])
                      for number in range(1, int(metadata["depth"]) + 1)]
            vocabulary = cls(levels, branching=int(metadata["branching"]), device=device,
                             space=metadata["space"], backbone=metadata["backbone"])
            if (str(len(vocabulary)), str(vocabulary.feature_size)) != (
                    metadata["words"], metadata["feature_size"]):
                raise ModelError(f"it has {len(vocabulary)} words of {vocabulary.feature_size} "
                                 f"features, but its header says {metadata['words']} of "
                                 f"{metadata['feature_size']}")
            vocabulary.check(feature_size=feature_size, backbone=backbone, space=space)
        except (KeyError, ValueError) as error:
            raise ModelError(f"{path}: is no whole vocabulary ({error})") from error
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        return vocabulary

    def _flat(self, features: Tensor | np.ndarray) -> Tensor:
        features = torch.as_tensor(features)
        if features.ndim < 1 or features.shape[-1] != self.feature_size:
            raise ModelError(f"features of shape {tuple(features.shape)} do not fit the visual "
                             f"vocabulary, which is one of {self.feature_size} {self.space}")
        return features.reshape(-1, self.feature_size).to(self.device, torch.float32)


class _Tree:
    """Levels of centroids, ready to descend.

    Args:
        levels: as in `VisualVocabulary`.
        shift: (D,) offset taken out before distances are computed; by default the mean of the
            first level.
    """

    def __init__(self, levels: Sequence[tuple[Tensor, Tensor]],
                 shift: Tensor | None = None) -> None:
        self.levels = list(levels)
        self.shift = levels[0][0].mean(0) if shift is None else shift
        self._tables = []
        for centroids, children in self.levels:
            first = torch.cat((children.new_zeros(1), children.cumsum(0)[:-1])).long()
            width = int(children.max())
            columns = torch.arange(width, device=centroids.device)
            missing = columns >= children[:, None]
            # The row behind the last stands for a child that is not there: infinitely far.
            table = torch.where(missing, len(centroids), first[:, None] + columns)
            shifted = F.pad(centroids - self.shift, (0, 0, 0, 1))
            half = half_norms(shifted)
            half[-1] = math.inf
            self._tables.append((shifted, half, table, first.tolist(), children.tolist()))

    def assign(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, D) features to (n,) nodes of the last level and (n,) squared distances from them."""
        ids = torch.empty(len(x), dtype=torch.int64, device=x.device)
        distances = torch.empty(len(x), device=x.device)
        rows = _block(x.shape[1])
        for start in range(0, len(x), rows):
            part = x[start : start + rows] - self.shift
            node = torch.zeros(len(part), dtype=torch.int64, device=x.device)
            scores = part.new_zeros(len(part))
            for level in range(len(self.levels)):
                node, scores = self._descend(part, node, level)
            ids[start : start + rows] = node
            distances[start : start + rows] = (squared_norms(part) + 2 * scores).clamp_(min=0)
        return ids, distances

    def _descend(self, x: Tensor, node: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """From nodes of one level (0 is the root) to their nearest children."""
        shifted, half, table, _, _ = self._tables[level]
        if len(table) == 1:
            return nearest(x, shifted[:-1], half[:-1])
        if x.device.type == "cpu" and len(x) >= 4 * len(table):
            return self._descend_grouped(x, node, level)
        ids, scores = torch.empty_like(node), torch.empty(len(x), device=x.device)
        rows = max(1, _GATHER_ELEMENTS // (table.shape[1] * x.shape[1]))
        for start in range(0, len(x), rows):
            below = table[node[start : start + rows]]
            products = torch.bmm(shifted[below], x[start : start + rows, :, None])[..., 0]
            best, column = (half[below] - products).min(1)
            scores[start : start + rows] = best
            ids[start : start + rows] = below.gather(1, column[:, None])[:, 0]
        return ids, scores

    def _descend_grouped(self, x: Tensor, node: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """The same, a node at a time: a processor multiplies matrices faster than it gathers."""
        shifted, half, _, first, children = self._tables[level]
        ids, scores = torch.empty_like(node), torch.empty(len(x), device=x.device)
        order = node.argsort(stable=True)
        sizes = torch.bincount(node, minlength=len(first)).tolist()
        for parent, rows in enumerate(order.split(sizes)):
            if not len(rows):
                continue
            own = slice(first[parent], first[parent] + children[parent])
            best, score = nearest(x[rows], shifted[own], half[own])
            ids[rows] = best + first[parent]
            scores[rows] = score
        return ids, scores


# --- building ---------------------------------------------------------------------------------


def build_vocabulary(
    batches: Batches,
    *,
    depth: int = 3,
    branching: int = 12,
    seed: int = 0,
    device: torch.device | str = "cpu",
    batch_size: int = 16384,
    iterations: int = 30,
    checkpoint: Path | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    space: str = "features",
    backbone: str = "",
    memory: int = 4 << 30,
    passes: int = 2,
    checkpoint_seconds: float = 30.0,
) -> VisualVocabulary:
    """Build a visual vocabulary by hierarchical k-means.

    One pass over the features draws a uniform sample of up to 512 for each word (all of them, where
    there are fewer), as far as `memory` allows; each node is clustered on its part of the sample by
    Lloyd's algorithm from greedy k-means++ centroids. A sample that large costs less than half a
    percent of distortion. Where memory cut it by more than half, the level's centroids are then
    moved to the means of all features, in passes over batches of them. A node with fewer distinct
    features than `branching` has fewer children, so every word is used by some feature of the
    sample, save where such passes took its last one.

    Equal seeds and features give equal vocabularies on one machine and number of threads.

    Args:
        batches: gives the features, (n, D) floats, batch by batch, and in the same order each time
            that it is called. It is called once, and once for each further pass.
        depth: levels of the tree.
        branching: children of each node; branching ** depth words at most.
        seed: of all chance.
        device: where to compute.
        batch_size: features handled at a time.
        iterations: of Lloyd's algorithm, at most, for each node and sample size.
        checkpoint: a file that keeps what is done. A build that was interrupted goes on from it,
            if features and arguments are the same. It is deleted at the end.
        progress: called as the build goes on.
        space, backbone: what the features are, as in `VisualVocabulary`.
        memory: bytes that features in memory may take.
        passes: over all features, at most, for each level that needs them.
        checkpoint_seconds: the checkpoint is written after each level, and so often in between.

    Raises:
        ModelError: there are no features, or they are not finite or differ in width, or the
            checkpoint is another build's or cannot be written.
    """
    for name, value in (("depth", depth), ("branching", branching), ("batch_size", batch_size),
                        ("iterations", iterations), ("passes", passes)):
        if value < 1:
            raise ModelError(f"{name} is {value}, but must be at least 1")
    if space not in _SPACES:
        raise ModelError(f"space {space!r} is none of {', '.join(_SPACES)}")
    device = torch.device(device)
    if device.type == "mps":  # sums are float64
        device = torch.device("cpu")
    builder = _Builder(batches, depth, branching, seed, device, batch_size, iterations,
                       progress or (lambda _: None), memory, passes)
    with torch.no_grad():
        builder.read()
        saved = _Checkpoint(checkpoint, checkpoint_seconds, {
            "depth": depth, "branching": branching, "seed": seed, "iterations": iterations,
            "passes": passes, "memory": memory, "space": space, "backbone": backbone,
            "features": builder.count,
            "feature_size": builder.sample.shape[1], "sample": builder.digest(),
        })
        levels = builder.build(saved)
    vocabulary = VisualVocabulary(levels, branching=branching, space=space, backbone=backbone,
                                  device=device)
    saved.remove()
    return vocabulary


class _Builder:
    def __init__(self, batches: Batches, depth: int, branching: int, seed: int,
                 device: torch.device, batch_size: int, iterations: int,
                 progress: Callable[[BuildProgress], None], memory: int, passes: int) -> None:
        self.batches = batches
        self.depth = depth
        self.branching = branching
        self.seed = seed
        self.device = device
        self.batch_size = batch_size
        self.iterations = iterations
        self.progress = progress
        self.memory = memory
        self.passes = passes
        self.count = 0
        self.sample = torch.empty(0, 0)
        self.shift = torch.empty(0)

    def stream(self) -> Iterator[Tensor]:
        """All features as (n, D) float32 on the CPU or where they are, checked."""
        width = self.sample.shape[1] or None
        position = 0
        for batch in self.batches():
            batch = torch.as_tensor(batch).detach()
            if batch.ndim != 2 or batch.shape[1] != (width or batch.shape[1]):
                wanted = "(n, D)" if width is None else f"(n, {width})"
                raise ModelError(f"features must be {wanted}, but a batch is "
                                 f"{tuple(batch.shape)}: are they all of one backbone?")
            width = batch.shape[1]
            if not width:
                raise ModelError("the features are 0 wide")
            for part in batch.split(self.batch_size):
                part = part.float()
                _check_finite(part, position)
                position += len(part)
                yield part

    def read(self) -> None:
        """Draw the sample: Algorithm R (Vitter, 1985), a batch at a time."""
        rng = np.random.default_rng([self.seed, 0])
        sample = torch.empty(0, 0)
        for part in self.stream():
            if not len(sample):
                words = self.branching ** self.depth
                fitting = self.memory // 2 // (4 * part.shape[1])
                # The system gives the memory only as it is filled.
                sample = torch.empty(max(1, min(_SAMPLE_PER_WORD * words, fitting)), part.shape[1],
                                     device=self.device)
            fresh = part[: max(0, len(sample) - self.count)]
            sample[self.count : self.count + len(fresh)] = fresh
            rest = part[len(fresh) :]
            if len(rest):
                seen = np.arange(self.count + len(fresh), self.count + len(part))
                slots = (rng.random(len(rest)) * (seen + 1.0)).astype(np.int64)
                # Of several rows for one place the last stays, as if they came one by one.
                places, last = np.unique(slots[::-1], return_index=True)
                rows = len(rest) - 1 - last[places < len(sample)]
                places = places[places < len(sample)]
                sample[torch.from_numpy(places).to(self.device)] = (
                    rest[torch.from_numpy(rows).to(rest.device)].to(self.device))
            self.count += len(part)
            self.progress(BuildProgress("read", 0, self.count, 0))
        if not self.count:
            raise ModelError("there are no features to build a visual vocabulary of")
        self.sample = sample[: self.count]
        total = torch.zeros(self.sample.shape[1], dtype=torch.float64, device=self.device)
        for part in self.sample.split(self.batch_size):
            total += part.sum(0)
        self.shift = (total / len(self.sample)).float()
        self.sample -= self.shift

    def digest(self) -> str:
        """Of the sample, so that a checkpoint can tell other features."""
        rows = torch.linspace(0, len(self.sample) - 1, 256).long()
        values = self.sample[rows.to(self.device)].cpu().contiguous().numpy()
        return hashlib.blake2b(values.tobytes(), digest_size=8).hexdigest()

    def build(self, saved: _Checkpoint) -> list[tuple[Tensor, Tensor]]:
        levels = [(c.to(self.device), n.to(self.device)) for c, n in saved.levels]
        nodes = self._nodes(levels)
        while True:
            if levels and self.count > len(self.sample) < _ENOUGH_PER_WORD * len(levels[-1][0]):
                levels[-1] = self._refine(levels, saved)
                nodes = self._nodes(levels)
            if len(levels) == self.depth:
                return [(centroids + self.shift, children) for centroids, children in levels]
            centroids, children, nodes = self._level(levels, nodes, saved)
            levels.append((centroids, children))
            saved.level_done(levels)

    def _nodes(self, levels: list[tuple[Tensor, Tensor]]) -> Tensor:
        """(sample,) int64: where in the tree each feature of the sample is."""
        if not levels:
            return torch.zeros(len(self.sample), dtype=torch.int64, device=self.device)
        return _Tree(levels, torch.zeros_like(self.shift)).assign(self.sample)[0]

    def _level(self, levels: list[tuple[Tensor, Tensor]], nodes: Tensor,
               saved: _Checkpoint) -> tuple[Tensor, Tensor, Tensor]:
        """Cluster the sample of each node: centroids, children, and the sample's new nodes."""
        level = len(levels) + 1
        above = levels[-1][0] if levels else torch.zeros(1, len(self.shift), device=self.device)
        order = nodes.argsort(stable=True)
        sizes = torch.bincount(nodes, minlength=len(above)).tolist()
        found = [part.to(self.device) for part in saved.nodes]
        inertia = saved.inertia
        below = torch.empty_like(nodes)
        words = 0
        for node, rows in enumerate(order.split(sizes)):
            # The node's own centroid is taken out, which keeps digits where clusters are tight.
            own = self.sample if len(above) == 1 else self.sample[rows] - above[node]
            if node < len(found):
                ids = nearest(own, found[node])[0]
            elif not len(own):  # its features are all outside the sample
                found.append(torch.zeros(1, own.shape[1], device=self.device))
                ids = rows
            else:
                before = inertia

                def on_iteration(state: LloydState, before: float = before) -> None:
                    saved.nodes_done(found, before, state)

                clusters = fit(own, self.branching, np.random.default_rng([self.seed, level, node]),
                               iterations=self.iterations, state=saved.take_state(self.device),
                               on_iteration=on_iteration)
                found.append(clusters.centroids)
                ids = clusters.ids
                inertia += clusters.inertia
                saved.nodes_done(found, inertia)
                self.progress(BuildProgress("cluster", level, node + 1, len(above),
                                            inertia / len(self.sample)))
            below[rows] = ids + words
            words += len(found[node])
        children = torch.tensor([len(part) for part in found], device=self.device)
        centroids = torch.cat(found) + above.repeat_interleave(children, 0)
        return centroids, children, below

    def _refine(self, levels: list[tuple[Tensor, Tensor]],
                saved: _Checkpoint) -> tuple[Tensor, Tensor]:
        """Move the last level's centroids to the means of all their features, in passes."""
        centroids, children = levels[-1]
        while saved.passes < self.passes:
            tree = _Tree([*levels[:-1], (centroids, children)], torch.zeros_like(self.shift))
            sums = torch.zeros(centroids.shape, dtype=torch.float64, device=self.device)
            counts = torch.zeros(len(centroids), dtype=torch.int64, device=self.device)
            inertia = 0.0
            for part in self.stream():
                part = part.to(self.device) - self.shift
                ids, distances = tree.assign(part)
                more, sizes = cluster_sums(part, ids, len(centroids))
                sums += more
                counts += sizes
                inertia += float(distances.sum(dtype=torch.float64))
            centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None],
                                    centroids).float()
            distortion = inertia / self.count
            self.progress(BuildProgress("refine", len(levels), saved.passes + 1, self.passes,
                                        distortion))
            done = saved.distortion - distortion < 1e-3 * saved.distortion < math.inf
            saved.pass_done([*levels[:-1], (centroids, children)],
                            self.passes if done else saved.passes + 1, distortion)
        return centroids, children


class _Checkpoint:
    """What of a build is done.

    That is whole levels, passes over all features for the last of them, nodes of the level that
    comes next, and iterations of the node that comes next.
    """

    def __init__(self, path: Path | None, seconds: float, build: dict[str, Any]) -> None:
        self.path = path
        self.seconds = seconds
        self.build = build
        self.levels: list[tuple[Tensor, Tensor]] = []
        self.passes, self.distortion = 0, math.inf
        self.nodes: list[Tensor] = []
        self.inertia = 0.0
        self._state: LloydState | None = None
        self._written = time.monotonic()
        if path is not None and path.exists():
            self._read(path)

    def take_state(self, device: torch.device) -> LloydState | None:
        """The state of the node that was being clustered; once."""
        state, self._state = self._state, None
        return state and dataclasses.replace(state, centroids=state.centroids.to(device))

    def nodes_done(self, nodes: list[Tensor], inertia: float,
                   state: LloydState | None = None) -> None:
        """Nodes of the next level are clustered, and one more as far as `state` says."""
        self.nodes, self.inertia = nodes, inertia
        if time.monotonic() - self._written >= self.seconds:
            self._write(state)

    def level_done(self, levels: list[tuple[Tensor, Tensor]]) -> None:
        self.pass_done(levels, 0, math.inf)

    def pass_done(self, levels: list[tuple[Tensor, Tensor]], passes: int,
                  distortion: float) -> None:
        self.levels, self.nodes, self.inertia = list(levels), [], 0.0
        self.passes, self.distortion = passes, distortion
        self._write(None)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, state: LloydState | None) -> None:
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {}
        for number, (centroids, children) in enumerate(self.levels, 1):
            tensors[f"centroids_{number}"], tensors[f"children_{number}"] = centroids, children
        if self.nodes:
            tensors["nodes"] = torch.cat(self.nodes)
            tensors["nodes_sizes"] = torch.tensor([len(part) for part in self.nodes])
        position: dict[str, Any] = {"levels": len(self.levels), "passes": self.passes,
                                    "distortion": self.distortion, "inertia": self.inertia}
        if state is not None:
            tensors["state"] = state.centroids
            position |= {"stage": state.stage, "iteration": state.iteration,
                         "state_inertia": state.inertia}
        write_tensors(self.path, tensors, {
            "format": _CHECKPOINT_FORMAT, "version": _VERSION,
            "build": json.dumps(self.build, sort_keys=True), "position": json.dumps(position)})
        self._written = time.monotonic()

    def _read(self, path: Path) -> None:
        tensors, metadata = _load(path, _CHECKPOINT_FORMAT)
        try:
            build, position = json.loads(metadata["build"]), json.loads(metadata["position"])
            other = [name for name, value in self.build.items() if build.get(name) != value]
            if other:
                what = ", ".join("features" if name == "sample" else name for name in other)
                raise ModelError(f"{path} is the checkpoint of another build ({what} differ): "
                                 "delete it to start anew (`vbkit vocab --fresh`)")
            self.levels = [(tensors[f"centroids_{number}"].float(), tensors[f"children_{number}"])
                           for number in range(1, position["levels"] + 1)]
            self.passes, self.distortion = position["passes"], position["distortion"]
            if "nodes" in tensors:
                self.nodes = list(tensors["nodes"].split(tensors["nodes_sizes"].tolist()))
            self.inertia = position["inertia"]
            if "state" in tensors:
                self._state = LloydState(position["stage"], position["iteration"],
                                         position["state_inertia"], tensors["state"])
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(f"{path} is no whole checkpoint ({error}): delete it to start anew "
                             "(`vbkit vocab --fresh`)") from error


# --- small things -----------------------------------------------------------------------------


def _check_levels(levels: Sequence[tuple[Tensor, Tensor]], branching: int) -> None:
    if not levels:
        raise ModelError("a visual vocabulary has at least one level")
    above, width = 1, levels[0][0].shape[-1]
    for number, (centroids, children) in enumerate(levels, 1):
        if centroids.ndim != 2 or centroids.shape[1] != width or not width:
            raise ModelError(f"level {number} has centroids of shape {tuple(centroids.shape)}")
        if children.shape != (above,) or int(children.sum()) != len(centroids):
            raise ModelError(f"level {number} has {len(centroids)} centroids, which are not the "
                             f"children of the {above} nodes above")
        if not 1 <= int(children.min()) <= int(children.max()) <= branching:
            raise ModelError(f"level {number} has a node without children, or with more than "
                             f"{branching}")
        if not bool(torch.isfinite(centroids).all()):
            raise ModelError(f"level {number} has centroids that are not finite")
        above = len(centroids)


def _check_finite(x: Tensor, position: int = 0) -> None:
    # A sum is cheaper than a look at each value, and no finite one hides a NaN.
    if bool(torch.isfinite(x.sum())):
        return
    bad = (~torch.isfinite(x)).any(1).nonzero()
    if len(bad):
        raise ModelError(f"{len(bad)} features are NaN or infinite, the first in row "
                         f"{position + int(bad[0])}: leave them out, or mend what made them")


def _block(width: int) -> int:
    """Rows handled at a time where copies are made of them."""
    return min(1 << 16, max(1024, (1 << 25) // width))


def _load(path: Path, wanted: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    what = "visual vocabulary" if wanted == _FORMAT else "checkpoint of a visual vocabulary"
    return read_tensors(path, what, wanted, _VERSION, renew="build it anew",
                        missing="; `vbkit vocab` builds a visual vocabulary")
