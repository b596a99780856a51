"""The visual vocabulary's k-means beside scikit-learn's MiniBatchKMeans, on the same features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

WIDTH = 1280
CENTROIDS = 256
EQUAL = 1.002  # distortions that differ by less than this count as equal
_CHUNK = 16384


def measure(rows: int) -> Iterator[tuple[Any, ...]]:
    """Time to the centroids, and the mean squared distance of all features from the nearest.

    scikit-learn gets its defaults, and batches of 4096, with which it takes longer and ends lower;
    labels of the training features are not asked of it, since the vocabulary does not compute them
    either. Speed is compared with the faster of its runs that ends as low as ours, or, if none
    does, with the one that ends lowest.

    Yields:
        What was measured, the number, its unit, and the limit and its kind where there is one.
    """
    import torch
    from sklearn.cluster import MiniBatchKMeans

    from vbkit.model.vocabulary import build_vocabulary

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = mixture(rows)
    features = torch.from_numpy(x)

    def ours(n: int) -> np.ndarray:
        vocabulary = build_vocabulary(lambda: features[:n].split(_CHUNK), depth=1,
                                      branching=CENTROIDS, device=device)
        return vocabulary.centroids.cpu().numpy()

    def theirs(n: int, batch_size: int = 1024) -> np.ndarray:
        return MiniBatchKMeans(CENTROIDS, batch_size=batch_size, compute_labels=False,
                               random_state=0).fit(x[:n]).cluster_centers_

    small = min(rows, 8 * CENTROIDS)
    ours(small), theirs(small)  # what is loaded at first use is not measured
    what = f"k-means, {rows:,} × {WIDTH} features, {CENTROIDS} centroids"
    seconds, lowest = timed(lambda: ours(rows), features)
    yield f"{what}, vbkit", seconds, "s"
    runs = []
    for batch_size in (1024, 4096):
        runs.append(timed(lambda size=batch_size: theirs(rows, size), features))
        yield f"{what}, scikit-learn, batches of {batch_size}", runs[-1][0], "s"
        yield (f"distortion, vbkit over scikit-learn, batches of {batch_size}",
               lowest / runs[-1][1], "×", *((EQUAL,) if batch_size == 1024 else ()))
    equal = [run for run in runs if run[1] <= EQUAL * lowest]
    base = min(equal) if equal else min(runs, key=lambda run: run[1])
    yield ("k-means, scikit-learn's time to equal distortion over vbkit's", base[0] / seconds,
           "×", 2.0, True)


def mixture(rows: int) -> np.ndarray:
    """(rows, WIDTH) float32: 2,000 clusters of unlike size, with a spectrum that falls off."""
    rng = np.random.default_rng(0)
    scale = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    scale *= np.sqrt(WIDTH) / np.linalg.norm(scale)
    centres = rng.standard_normal((2000, WIDTH), dtype=np.float32) * scale
    weights = rng.dirichlet(np.ones(len(centres)))
    out = np.empty((rows, WIDTH), np.float32)
    for start in range(0, rows, _CHUNK):
        part = out[start : start + _CHUNK]
        rng.standard_normal(out=part, dtype=np.float32)
        part *= 0.7 * scale + 0.3
        part += centres[rng.choice(len(centres), len(part), p=weights)]
    return out


def timed(call: Callable[[], np.ndarray], features: Any) -> tuple[float, float]:
    """Wall time (s) of a call that gives centroids, and the distortion of all features by them."""
    import torch

    began = time.perf_counter()
    centroids = torch.from_numpy(np.asarray(call(), np.float32))
    seconds = time.perf_counter() - began
    half = centroids.square().sum(1) / 2
    total = 0.0
    for part in features.split(_CHUNK):
        scores = (half - part @ centroids.T).amin(1)
        total += float((part.square().sum(1) + 2 * scores).sum(dtype=torch.float64))
    return seconds, total / len(features)
