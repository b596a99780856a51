"""Metrics of extractive summaries. No torch here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["rank_agreement", "selection_scores", "top_k_scores"]


def top_k_scores(scores: Sequence[np.ndarray], selected: Sequence[np.ndarray],
                 k: int) -> dict[str, float]:
    """How many of the k best sentences belong to the summary, as VT-SSum counts it.

    Precision (of k, also where a passage has fewer sentences) and recall are means over passages;
    F1 is made of these means (Lv et al., "VT-SSum", 2021).

    Args:
        scores: for each passage, (S,) the higher the likelier; ties go to the earlier sentence.
        selected: for each, (S,) bool, at least one True.
        k: how many are taken.

    Returns:
        `top3_precision`, `top3_recall` and `top3_f1`, for k of 3.

    Raises:
        ValueError: a passage has no selected sentence, or the lists do not fit.
    """
    precision, recall = [], []
    for score, target in zip(scores, selected, strict=True):
        target = np.asarray(target, dtype=bool)
        if not target.any() or len(score) != len(target):
            raise ValueError("every passage needs a score for each sentence, and a selected one")
        hits = int(target[np.argsort(-np.asarray(score), kind="stable")[:k]].sum())
        precision.append(hits / k)
        recall.append(hits / int(target.sum()))
    p, r = float(np.mean(precision)), float(np.mean(recall))
    return {f"top{k}_precision": p, f"top{k}_recall": r,
            f"top{k}_f1": 2 * p * r / (p + r) if p + r else 0.0}


def selection_scores(chosen: Sequence[np.ndarray],
                     selected: Sequence[np.ndarray]) -> dict[str, float | None]:
    """`precision`, `recall` and `f1` of the sentences that summaries took, over all passages.

    Args:
        chosen, selected: for each passage, (S,) bool.
    """
    took = np.concatenate([np.asarray(rows, dtype=bool) for rows in chosen])
    right = np.concatenate([np.asarray(rows, dtype=bool) for rows in selected])
    hits = int((took & right).sum())
    known = bool(took.any() or right.any())
    return {"precision": hits / int(took.sum()) if took.any() else None,
            "recall": hits / int(right.sum()) if right.any() else None,
            "f1": 2 * hits / int(took.sum() + right.sum()) if known else None}


def rank_agreement(one: Sequence[np.ndarray],
                   other: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Kendall's tau-b and Spearman's rho between two scorings, mean over videos.

    As Otani et al., CVPR 2019, compare importance scores. A video in which one of the
    two is constant has no correlation and is left out.

    Args:
        one, other: for each video, (S,).

    Returns:
        `kendall` and `spearman`, None where no video has one.
    """
    from scipy.stats import kendalltau, spearmanr

    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in zip(one, other, strict=True)]
    pairs = [(a, b) for a, b in pairs if len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0]
    if not pairs:
        return {"kendall": None, "spearman": None}
    return {"kendall": float(np.mean([kendalltau(a, b).statistic for a, b in pairs])),
            "spearman": float(np.mean([spearmanr(a, b).statistic for a, b in pairs]))}
