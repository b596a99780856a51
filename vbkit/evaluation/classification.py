"""Metrics of classifiers from true labels and probabilities, with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = [
    "bootstrap_interval",
    "calibration_error",
    "classification_scores",
    "multilabel_scores",
]

_BINS = 15


def classification_scores(
    labels: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    predictions: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Scores where every example has one label.

    Args:
        labels: N true classes.
        probabilities: (N, K), or any scores of which the largest is the most likely;
            `calibration_error` is None where the rows do not sum to 1.
        classes: the K classes, in the order of the columns.
        predictions: N predicted classes; by default those with the largest probability.

    Returns:
        `accuracy`, `balanced_accuracy`, `precision_macro`, `recall_macro`, `f1_macro`,
        `f1_weighted`, `calibration_error`, and for every class C `precision_C`, `recall_C`,
        `f1_C`, `roc_auc_C` and `average_precision_C` (it against the rest). Means are over the
        classes that occur among labels or predictions, as scikit-learn's; what is undefined,
        because a class does not occur or nothing else does, is None.

    Raises:
        ValueError: shapes do not fit, a label is no class, or a probability is not finite.
    """
    from sklearn import metrics

    names, table = _checked(probabilities, classes, len(labels))
    true = _codes(labels, names)
    if predictions is not None and len(predictions) != len(labels):
        raise ValueError(f"{len(labels)} labels, but {len(predictions)} predictions")
    guess = table.argmax(1) if predictions is None else _codes(predictions, names)
    present = np.union1d(true, guess)
    out: dict[str, float | None] = {
        "accuracy": float(metrics.accuracy_score(true, guess)),
        # as balanced_accuracy_score, which warns where a class is predicted that does not occur
        "balanced_accuracy": float(metrics.recall_score(true, guess, labels=np.unique(true),
                                                        average="macro")),
    }
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = metrics.precision_recall_fscore_support(
            true, guess, labels=present, average=average, zero_division=0)
        if average == "macro":
            out["precision_macro"], out["recall_macro"] = float(precision), float(recall)
        out[f"f1_{average}"] = float(f1)
    # the confidence is that of the class that was chosen
    rows = np.arange(len(true))
    sums_to_one = bool(np.allclose(table.sum(1), 1, atol=1e-3)) and bool((table >= 0).all())
    out["calibration_error"] = (calibration_error(guess == true, table[rows, guess])
                                if sums_to_one else None)
    for code, name in enumerate(names):
        out |= _one_class(name, true == code, guess == code, table[:, code])
    return out


def multilabel_scores(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    threshold: float = 0.5,
) -> dict[str, float | None]:
    """Scores where an example may have any number of labels.

    Args:
        labels: (N, K) bool.
        probabilities: (N, K).
        classes: the K classes, in the order of the columns.
        threshold: from which probability on a class is predicted.

    Returns:
        `accuracy` (all K right), `f1_macro`, `f1_weighted`, and for every class C what
        `classification_scores` gives. A mean is over the classes that have an example.

    Raises:
        ValueError: shapes do not fit, or a probability is not finite.
    """
    labels = np.asarray(labels, dtype=bool)
    names, table = _checked(probabilities, classes, len(labels))
    if labels.shape != table.shape:
        raise ValueError(f"labels are {labels.shape}, but probabilities {table.shape}")
    guess = table >= threshold
    out: dict[str, float | None] = {"accuracy": float((guess == labels).all(1).mean())}
    by_class: dict[str, float | None] = {}
    for column, name in enumerate(names):
        by_class |= _one_class(name, labels[:, column], guess[:, column], table[:, column])
    support = labels.sum(0)
    f1 = np.array([by_class[f"f1_{name}"] or 0.0 for name in names])
    out["f1_macro"] = float(f1[support > 0].mean()) if support.any() else None
    out["f1_weighted"] = float((f1 * support).sum() / support.sum()) if support.any() else None
    return out | by_class


def _one_class(name: str, true: np.ndarray, guess: np.ndarray,
               scores: np.ndarray) -> dict[str, float | None]:
    from sklearn import metrics

    both = bool(true.any()) and not bool(true.all())
    hits = int((true & guess).sum())
    known = bool(true.any()) or bool(guess.any())
    return {
        f"precision_{name}": hits / int(guess.sum()) if guess.any() else None,
        f"recall_{name}": hits / int(true.sum()) if true.any() else None,
        f"f1_{name}": 2 * hits / int(true.sum() + guess.sum()) if known else None,
        f"roc_auc_{name}": float(metrics.roc_auc_score(true, scores)) if both else None,
        f"average_precision_{name}": float(metrics.average_precision_score(true, scores))
        if true.any() else None,
    }


def calibration_error(correct: np.ndarray, confidence: np.ndarray, bins: int = _BINS) -> float:
    """Expected calibration error (Guo et al., ICML 2017, section 2): 0 is best.

    Args:
        correct: (N,) bool, whether a prediction was right.
        confidence: (N,) its probability, 0–1.
        bins: of equal width.
    """
    correct = np.asarray(correct, dtype=bool)
    confidence = np.asarray(confidence, dtype=np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    gap = np.bincount(place, correct, bins) - np.bincount(place, confidence, bins)
    return float(np.abs(gap)[count > 0].sum() / len(correct))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[object],
    *,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic, resampling whole groups (Efron and Tibshirani, 1993).

    Examples of one video are not independent of each other: give their videos as `groups`.

    Args:
        statistic: (M,) indices of examples, with repeats -> its value; NaN values are left out.
        groups: N names, one an example.
        level: of the interval, between 0 and 1.
        n_resamples: how many.
        seed: of the resampling.

    Raises:
        ValueError: there are no examples, or the statistic was never defined.
    """
    members: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if not members:
        raise ValueError("there are no examples to resample")
    rows = [np.array(indices) for indices in members.values()]
    generator = np.random.default_rng(seed)
    values = np.array([
        statistic(np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))]))
        for _ in range(n_resamples)
    ])
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("the statistic is NaN for every resample")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(probabilities: np.ndarray, classes: Sequence[str],
             count: int) -> tuple[list[str], np.ndarray]:
    names = list(classes)
    table = np.asarray(probabilities, dtype=np.float64)
    if len(set(names)) != len(names):
        raise ValueError(f"a class is named twice: {', '.join(names)}")
    if not count or table.shape != (count, len(names)):
        raise ValueError(f"{count} labels and {len(names)} classes need probabilities "
                         f"({count}, {len(names)}), got {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError("a probability is not finite")
    return names, table


def _codes(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    place = {name: code for code, name in enumerate(names)}
    unknown = sorted({str(label) for label in labels if label not in place})
    if unknown:
        raise ValueError(f"label {unknown[0]!r} is none of the classes {', '.join(names)}")
    return np.array([place[label] for label in labels])
