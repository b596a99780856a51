"""Whether explanations name evidence: how far a score falls without it, and without other evidence.

    python recipes/heads/measure_explanations.py RESULTS TABLE [--limit 100]

RESULTS is a results folder of `vbkit run` with its feature cache, TABLE moderation, sentiment,
classification or qa. Of each row's evidence of a kind, the share that weighs most is hidden, and
as many pieces drawn at random, ten times; the row is scored anew by the head's own `predict`, which
knows nothing of explanations. Printed are the mean falls with 95 % intervals (bootstrap over rows),
as `docs/explanations.md` has them.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import numpy as np
import pandas as pd

import vbkit
from vbkit.engine.explain import choose_rows, explain_rows
from vbkit.engine.library import Library
from vbkit.explanations import Piece, clips_within, hide

DRAWS = 10


def piece_of(row: dict[str, Any]) -> Piece:
    """The piece of evidence that a row of `explanations` is about."""
    unit = "clip" if row["kind"] == "clip" else "segment"
    characters = (int(row["start_char"]), int(row["end_char"])) if row["kind"] == "word" else ()
    return Piece(row["kind"], int(row[f"first_{unit}"]), int(row[f"last_{unit}"]), *characters)


def score_of(head: Any, table: str, row: pd.Series[Any], features: Any) -> float:
    """What a head says now of what a row is about; what it says of nothing, where that is gone."""
    if table == "moderation":
        values = head.scores_of(features, row["modality"], row["category"])
        if row["modality"] == "visual":
            values = values[clips_within(features, row["start_s"], row["end_s"])]
        else:
            values = values[int(row["first_segment"]) : int(row["last_segment"]) + 1]
        return float(np.nanmax(values, initial=0.0))
    if table == "qa":
        found = head.predict(features.restrict(features.available, [row["question"]]))["qa"]
        if row["modality"] == "text":
            same = (found["first_segment"] <= row["last_segment"]) & (
                found["last_segment"] >= row["first_segment"])
        else:
            same = (found["start_s"] < row["end_s"]) & (found["end_s"] > row["start_s"])
        same &= found["modality"] == row["modality"]
        return float(found.loc[same.fillna(False), "score"].max()) if same.any() else 0.0
    found = head.predict(features)[table]
    if table == "classification":
        value = found.loc[found["label"] == row["label"], "score"].iloc[0]
        return head.guess if pd.isna(value) else float(value)
    place = found["segment"] == row["segment"] if pd.notna(row["segment"]) else (
        found["start_s"] == row["start_s"])
    values = found.loc[place, f"p_{row['label']}"]
    return 1 / 3 if not len(values) or pd.isna(values.iloc[0]) else float(values.iloc[0])


def measure(out: str, table: str, limit: int, share: float) -> pd.DataFrame:
    """A row for each explained row and kind: the falls of its score, and seconds to explain it."""
    whole = vbkit.load_table(out, table)
    wanted = whole[whole["label"].notna()] if table == "sentiment" else whole
    if table == "qa":
        wanted = wanted[(wanted["rank"] == 1) & wanted["modality"].notna()]
    if table == "classification":
        wanted = wanted[wanted["rank"] == 1]
    picked = sorted(random.Random(0).sample(list(wanted.index), min(limit, len(wanted))))
    engine = vbkit.Engine()
    chosen = choose_rows(engine.manager, out, table, picked)
    library, generator, rows = Library(engine, out), random.Random(0), []
    for each in chosen:
        began = time.perf_counter()
        found = explain_rows(engine, out, [each])
        seconds = (time.perf_counter() - began) / len(each.rows)
        (runner,) = engine.heads([each.spec.name], {each.spec.name: json.loads(
            each.written["options"])})
        (features,) = library.features(
            each.spec.needs | each.spec.explain_needs, (), [each.video_id])

        def score(hidden: list[Piece], place: int, runner: Any = runner, each: Any = each,
                  features: Any = features) -> float:
            return score_of(runner.ready(), table, each.rows.loc[place], hide(features, hidden))

        for (place, kind), evidence in found.groupby(["of_row", "kind"]):
            pieces = [piece_of(row) for row in evidence.sort_values("rank").to_dict("records")]
            if len(pieces) < 2:
                continue
            count = max(1, round(share * len(pieces)))
            full = score([], place)
            rows.append({
                "kind": kind, "score": full, "named": full - score(pieces[:count], place),
                "other": full - np.mean([score(generator.sample(pieces, count), place)
                                         for _ in range(DRAWS)]),
                "pieces": len(pieces), "seconds": seconds})
    return pd.DataFrame(rows)


def interval(values: np.ndarray) -> str:
    generator = np.random.default_rng(0)
    means = [generator.choice(values, len(values)).mean() for _ in range(1000)]
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.2f} ({low:.2f}–{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("table", choices=["moderation", "sentiment", "classification", "qa"])
    parser.add_argument("--limit", type=int, default=100, help="so many rows, drawn at random")
    parser.add_argument("--share", type=float, default=0.25, help="of the pieces to hide")
    options = parser.parse_args()
    found = measure(options.results, options.table, options.limit, options.share)
    print("| rows of | evidence | rows | mean score | fall, named hidden | fall, others hidden "
          "| named is more | s |\n|---|---|---|---|---|---|---|---|")
    for kind, group in found.groupby("kind"):
        named, other = group["named"].to_numpy(), group["other"].to_numpy()
        print(f"| {options.table} | {kind}s | {len(group)} | {group['score'].mean():.2f} "
              f"| {interval(named)} | {interval(other)} | {(named > other).mean():.0%} "
              f"| {group['seconds'].median():.1f} |")


if __name__ == "__main__":
    main()
