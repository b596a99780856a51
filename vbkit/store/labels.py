"""Results as a manifest of labels, for a person to correct and `vbkit finetune` to learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbkit.errors import UsageError
from vbkit.store.reading import list_tables, load_table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LABELLED_TABLES", "label_manifest"]

LABELLED_TABLES = {
    "moderation": "moderation", "moderation_videos": "moderation",
    "sentiment": "sentiment", "sentiment_videos": "sentiment",
    "classification": "classification",
}
"""Tables that say something of a whole video that can be corrected, and the task of each."""


def label_manifest(out: str | Path, table: str) -> pd.DataFrame:
    """A row for each video: what it is, and what the task said of it.

    Args:
        out: the results folder.
        table: one of `LABELLED_TABLES`.

    Returns:
        `id`, `video` (where the input was read from, NULL for text alone), `text` (the transcript
        as JSON, NULL where there is none) and `label` (where there may be several, as JSON).

    Raises:
        UsageError: the table says nothing of a whole video.
        StoreError: the folder or the table cannot be read.
    """
    import pandas as pd

    if table not in LABELLED_TABLES:
        raise UsageError(f"{table} is no table of labels; as a manifest go "
                         f"{', '.join(LABELLED_TABLES)}")
    task = LABELLED_TABLES[table]
    labels = {"moderation": _moderation, "sentiment": _sentiment,
              "classification": _classification}[task](out)
    videos = load_table(out, "videos", ["video_id", "path", "n_clips"])
    texts = _texts(out)
    rows: list[dict[str, Any]] = []
    for video_id, path, n_clips in videos.itertuples(index=False):
        if video_id not in labels:
            continue
        shown = not pd.isna(path) and not pd.isna(n_clips) and n_clips > 0
        rows.append({
            "id": video_id, "video": str(Path(path).absolute()) if shown else None,
            "text": json.dumps(texts[video_id], ensure_ascii=False) if video_id in texts else None,
            "label": labels[video_id]})
    return pd.DataFrame(rows, columns=["id", "video", "text", "label"], dtype="string")


def _moderation(out: str | Path) -> dict[str, str]:
    """`none`, or the categories that were flagged."""
    judged = load_table(out, "moderation_videos", ["video_id", "decision"])
    flagged = load_table(out, "moderation", ["video_id", "category"]) if (
        "moderation" in list_tables(out)) else judged.iloc[:0]
    found: dict[str, set[str]] = {}
    for video_id, category in flagged.itertuples(index=False):
        found.setdefault(video_id, set()).add(category)
    judged = judged[judged["decision"].notna()]
    return {video_id: json.dumps(sorted(found[video_id])) if len(found.get(video_id, ())) > 1
            else next(iter(found.get(video_id, ())), "none") for video_id in judged["video_id"]}


def _sentiment(out: str | Path) -> dict[str, str]:
    table = load_table(out, "sentiment_videos", ["video_id", "label"]).dropna()
    return dict(zip(table["video_id"], table["label"], strict=True))


def _classification(out: str | Path) -> dict[str, str]:
    """The likeliest label; where scores are no shares of 1, all that are likely."""
    table = load_table(out, "classification", ["video_id", "label", "score", "rank"]).dropna()
    found: dict[str, str] = {}
    for video_id, rows in table.groupby("video_id", sort=False):
        if abs(float(rows["score"].sum()) - 1) < 1e-3:
            found[str(video_id)] = str(rows.sort_values("rank")["label"].iloc[0])
        else:
            likely = rows.loc[rows["score"] >= 0.5, "label"]
            found[str(video_id)] = json.dumps(sorted(map(str, likely)), ensure_ascii=False)
    return found


def _texts(out: str | Path) -> dict[str, list[dict[str, Any]]]:
    """The transcripts, segment by segment, as manifests have them."""
    if "segments" not in list_tables(out):
        return {}
    table = load_table(out, "segments", ["video_id", "start_s", "end_s", "text"])
    found: dict[str, list[dict[str, Any]]] = {}
    for video_id, start, end, text in table.itertuples(index=False):
        timed = {} if start != start or end != end or start is None else {
            "start": float(start), "end": float(end)}
        found.setdefault(video_id, []).append({"text": text, **timed})
    return found
