"""k-means on features that are in memory, on the CPU or a GPU.

Shapes: n points, k centroids, D features. All float32. A distance is squared Euclidean, and is
computed as |x|² + 2·(|c|²/2 - x·c): one matrix product, to which |x|² is added only where the
distance itself is wanted. That form loses digits where points lie far from the origin compared to
their spread, so callers take a common offset out first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Clusters", "LloydState", "cluster_sums", "fit", "half_norms", "kmeans_plus_plus",
           "nearest", "principal_axes", "squared_norms"]

_CPU_BLOCK = 1 << 18  # scores in one block, which then stay in the cache
_GPU_BLOCK = 1 << 26
_LEAST_ROWS = 1024  # of a block: fewer do not make a matrix product worth its start
_SUM_ROWS = 1 << 16  # rows summed in float32 before float64 takes over
_SEED_POINTS = 16  # points a centroid that k-means++ looks at
_GREEDY_UP_TO = 4096  # centroids
_STARTS = 4
_STARTS_TOLERANCE = 1e-3
_STAGES = (64, 256)  # points a centroid of the first stages
_REDUCE_FROM = 32  # centroids from which distances in few dimensions pay
_REDUCED_SIZE = 128
_REDUCED_TOLERANCE = 3e-4  # an iteration costs little there
_REFINED_TOLERANCE = 3e-3  # and little is left to gain by an exact one after it
_AXES_POINTS = 8192
_SAME = 1e-6  # squared distances below this share of |a|² + |b|² are rounding


@dataclass(frozen=True)
class Clusters:
    """What `fit` found.

    Args:
        centroids: (k, D); fewer than were asked for where there are fewer distinct points.
        ids: (n,) int64, the nearest centroid of each point; every centroid has a point.
        inertia: sum of squared distances.
    """

    centroids: Tensor
    ids: Tensor
    inertia: float


@dataclass(frozen=True)
class LloydState:
    """Where a fit is, so that it can go on from there.

    Args:
        stage: index of the sample size.
        iteration: iterations done in it.
        inertia: of the last iteration; infinite before the first.
        centroids: (k, D).
    """

    stage: int
    iteration: int
    inertia: float
    centroids: Tensor


def half_norms(centroids: Tensor) -> Tensor:
    """(k,): |c|²/2."""
    return centroids.square().sum(-1).mul_(0.5)


def squared_norms(x: Tensor) -> Tensor:
    """(n,): |x|², without a copy of `x`."""
    return torch.linalg.vector_norm(x, dim=1).square_()


def nearest(x: Tensor, centroids: Tensor, half: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point; of equally near ones, any.

    Args:
        x: (n, D).
        centroids: (k, D).
        half: (k,) `half_norms(centroids)`, where it is known.

    Returns:
        (n,) int64 indices, and (n,) scores |c|²/2 - x·c: half the distance less |x|²/2.
    """
    half = half_norms(centroids) if half is None else half
    ids = torch.empty(len(x), dtype=torch.int64, device=x.device)
    scores = torch.empty(len(x), device=x.device)
    block = _CPU_BLOCK if x.device.type == "cpu" else _GPU_BLOCK
    rows = max(_LEAST_ROWS, block // max(1, len(centroids)))
    columns = centroids.T
    for start in range(0, len(x), rows):
        end = start + rows
        torch.min(torch.addmm(half, x[start:end], columns, alpha=-1), 1,
                  out=(scores[start:end], ids[start:end]))
    return ids, scores


def cluster_sums(x: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sums and sizes of clusters, the same on every run.

    Returns:
        (k, D) float64 and (k,) int64.
    """
    sums = torch.zeros(k, x.shape[1], dtype=torch.float64, device=x.device)
    for start in range(0, len(x), _SUM_ROWS):
        part = ids[start : start + _SUM_ROWS]
        offsets = torch.bincount(part, minlength=k).cumsum(0)
        offsets = torch.cat((offsets.new_zeros(1), offsets[:-1]))
        # Rows in the order of their cluster, a bag a cluster: no atomics, so no chance.
        sums += F.embedding_bag(part.argsort(stable=True), x[start : start + _SUM_ROWS], offsets,
                                mode="sum")
    return sums, torch.bincount(ids, minlength=k)


def kmeans_plus_plus(x: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """First centroids: greedy k-means++ (Arthur & Vassilvitskii, SODA 2007, and its section 5).

    Each next centroid is the best of 2 + ln k points drawn with probability proportional to the
    distance from the centroids so far; of more than 4096 centroids, it is one such point.

    Returns:
        (k, D); fewer where there are fewer distinct points.
    """
    norms = squared_norms(x)
    trials = 2 + int(math.log(k)) if k <= _GREEDY_UP_TO else 1
    chosen = [int(rng.integers(len(x)))]
    closest = _distances(x, norms, torch.tensor(chosen, device=x.device))[0]
    while len(chosen) < k:
        cumulated = closest.double().cumsum(0)
        draws = torch.from_numpy(rng.random(trials)).to(x.device) * cumulated[-1]
        if not float(cumulated[-1]) > 0:
            break
        candidates = torch.searchsorted(cumulated, draws, right=True).clamp_(max=len(x) - 1)
        distances = torch.minimum(_distances(x, norms, candidates), closest)
        best = distances.sum(1).argmin()
        closest = distances[best]
        chosen.append(int(candidates[best]))
    return x[torch.tensor(chosen, device=x.device)]


def _distances(x: Tensor, norms: Tensor, rows: Tensor) -> Tensor:
    """(r, n) distances of all points from the points `rows`; rounding made 0."""
    scale = norms[rows, None] + norms
    distances = torch.addmm(scale, x[rows], x.T, alpha=-2)
    return torch.where(distances > _SAME * scale, distances, 0)


def fit(
    x: Tensor,
    k: int,
    rng: np.random.Generator,
    *,
    iterations: int = 30,
    tolerance: float = 3e-4,
    state: LloydState | None = None,
    on_iteration: Callable[[LloydState], None] | None = None,
) -> Clusters:
    """Cluster points by Lloyd's algorithm, first on few of them, and in few dimensions.

    Centroids found on 64 points each are nearly right, so most iterations are spent there, fewer
    on 256 each, and two or three on all points. Where many centroids make distances dear, those
    first stages see the points' 128 principal components only, which keeps the distortion of
    clusterings nearly as it is (Cohen et al., STOC 2015); the last stage is exact. An empty cluster
    is seeded anew from the point that is farthest from its centroid.

    Args:
        x: (n, D), n at least 1, around the origin.
        k: number of centroids.
        rng: where chance comes from.
        iterations: at most, on each number of points.
        tolerance: iterations end when one lowers the inertia by less than this share; another one
            holds where dimensions are reduced.
        state: go on from here. `rng` must be as it was when the fit began.
        on_iteration: called after each iteration.
    """
    order = rng.permutation(len(x)) if len(x) > _STAGES[0] * k else np.arange(len(x))
    sizes = [size * k for size in _STAGES if 2 * size * k <= len(x)]
    stages = [(size, False) for size in (*sizes, len(x))]
    axes = None
    if k >= _REDUCE_FROM and x.shape[1] >= 2 * _REDUCED_SIZE and len(x) > _STAGES[0] * k:
        axes = principal_axes(x[_rows(order[:_AXES_POINTS], x)], _REDUCED_SIZE, rng)
        if len(x) < 2 * _STAGES[-1] * k:
            sizes.append(len(x))
        stages = [*((size, True) for size in sizes), (len(x), False)]

    def points(stage: int) -> Tensor:
        size, reduced = stages[stage]
        part = x if size == len(x) else x[_rows(order[:size], x)]
        return part @ axes if reduced and axes is not None else part

    if state is None:
        few = x[_rows(order[: _STAGES[0] * k], x)]
        if k >= _REDUCE_FROM:
            seeds = few[: (_SEED_POINTS if k <= _GREEDY_UP_TO else _SEED_POINTS // 4) * k]
            state = LloydState(0, 0, math.inf, kmeans_plus_plus(
                seeds if axes is None else seeds @ axes, k, rng))
        else:  # few centroids are placed badly by bad luck, and placed again at little cost
            starts = (LloydState(0, 0, math.inf, kmeans_plus_plus(few, k, rng))
                      for _ in range(_STARTS))
            ends = [_lloyd(few, start, iterations, _STARTS_TOLERANCE, None)[0] for start in starts]
            best = min(ends, key=lambda end: end.inertia)
            state = LloydState(0, 0, math.inf, best.centroids)
    ids = torch.empty(0, dtype=torch.int64)
    for stage in range(state.stage, len(stages)):
        reduced = stages[stage][1]
        if stage > state.stage:
            centroids, inertia = state.centroids, math.inf
            if axes is not None and not reduced:
                size = stages[stage - 1][0]
                part = x if size == len(x) else x[_rows(order[:size], x)]
                sums, counts = cluster_sums(part, ids, len(centroids))
                means = sums / counts.clamp(min=1)[:, None]
                if size == len(x):
                    inertia = float(squared_norms(x).sum(dtype=torch.float64)
                                    - (means.square().sum(1) * counts).sum())
                centroids = torch.where(counts[:, None] > 0, means, centroids @ axes.T).float()
            state = LloydState(stage, 0, inertia, centroids)
        if axes is not None:
            tolerance = _REDUCED_TOLERANCE if reduced else _REFINED_TOLERANCE
        state, ids = _lloyd(points(stage), state, iterations, tolerance, on_iteration)
    used, ids = torch.unique(ids, return_inverse=True)
    return Clusters(state.centroids[used], ids, state.inertia)


def principal_axes(x: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """(D, size) orthonormal axes of most variance, about.

    By subspace iteration (Halko, Martinsson & Tropp, SIAM Review 2011, algorithm 4.4).
    """
    axes = torch.from_numpy(rng.standard_normal((x.shape[1], size + 16), dtype=np.float32))
    axes = axes.to(x.device)
    for _ in range(2):
        axes = torch.linalg.qr(x.T @ (x @ axes))[0]
    reduced = x @ axes
    _, rotation = torch.linalg.eigh(reduced.T @ reduced)
    return axes @ rotation.flip(1)[:, :size]


def _rows(order: np.ndarray, x: Tensor) -> Tensor:
    return torch.from_numpy(order).to(x.device)


def _lloyd(
    x: Tensor,
    state: LloydState,
    iterations: int,
    tolerance: float,
    on_iteration: Callable[[LloydState], None] | None,
) -> tuple[LloydState, Tensor]:
    """Iterate to the end of a stage; its ids are those of the centroids in the state."""
    centroids, previous = state.centroids, state.inertia
    norms = squared_norms(x)
    total = float(norms.sum(dtype=torch.float64))
    for iteration in range(state.iteration, iterations + 1):
        ids, scores = nearest(x, centroids)
        inertia = max(0.0, total + 2 * float(scores.sum(dtype=torch.float64)))
        empty = (torch.bincount(ids, minlength=len(centroids)) == 0).nonzero().flatten()
        converged = previous - inertia <= tolerance * previous if previous < math.inf else False
        if iteration == iterations or (converged and not len(empty)):
            break
        sums, counts = cluster_sums(x, ids, len(centroids))
        updated = (sums / counts.clamp(min=1)[:, None]).float()
        if len(empty):
            distances = norms + 2 * scores
            far = distances.topk(min(len(empty), len(x)))
            apart = far.values > _SAME * norms[far.indices]
            seeds = far.indices[apart]
            if converged and not len(seeds):  # every point lies on a centroid
                break
            updated[empty[: len(seeds)]] = x[seeds]
            updated[empty[len(seeds) :]] = centroids[empty[len(seeds) :]]
        centroids, previous = updated, inertia
        state = LloydState(state.stage, iteration + 1, inertia, centroids)
        if on_iteration is not None:
            on_iteration(state)
    return LloydState(state.stage, iteration, inertia, centroids), ids
