"""Explanations beside the rows that they explain, for as long as those rows are there."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from vbkit.store.writing import ResultStore
from vbkit.tables import CORE_TABLES, VIDEO_ID

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["forget_explanations", "keep_explanations"]

_SCHEMA = CORE_TABLES["explanations"]


def keep_explanations(store: ResultStore, video_id: str, table: str, rows: Collection[int],
                      frame: pd.DataFrame) -> None:
    """Write explanations of some rows of a video; older ones of the same rows are replaced.

    Args:
        store: the results folder, locked.
        video_id: the video.
        table: the table of the rows.
        rows: their places among the video's rows, also of those that nothing explains.
        frame: of the schema `explanations`, without `video_id`.

    Raises:
        StoreError: the table cannot be written.
    """
    import pandas as pd

    old = store.rows(_SCHEMA.name, video_id)
    parts = [frame]
    if old is not None and len(old):
        same = (old["of_table"] == table) & old["of_row"].isin(list(rows))
        parts.insert(0, old[~same].drop(columns=VIDEO_ID.name))
    together = pd.concat([each for each in parts if len(each)] or [_SCHEMA.empty()],
                         ignore_index=True)
    store.write(_SCHEMA, video_id, together, fingerprint="")


def forget_explanations(store: ResultStore, video_id: str, tables: Collection[str]) -> None:
    """Drop the explanations of a video's rows in `tables`, which have been replaced.

    Raises:
        StoreError: the table cannot be written.
    """
    old = store.rows(_SCHEMA.name, video_id)
    if old is None:
        return
    stale = old["of_table"].isin(list(tables))
    if stale.all():
        store.remove(_SCHEMA.name, video_id)
    elif stale.any():
        store.write(_SCHEMA, video_id, old[~stale].drop(columns=VIDEO_ID.name), fingerprint="")
