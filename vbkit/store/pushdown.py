"""What a condition says of single columns, so that files and row groups can be left unread."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbkit.store.layout import file_name
from vbkit.tables import VIDEO_ID

if TYPE_CHECKING:
    import pyarrow.parquet as pq

__all__ = ["Bound", "pinned", "row_groups"]


@dataclass(frozen=True)
class Bound:
    """What every wanted row has in a column: one of `values`, or a value from `low` to `high`.

    A bound may be wider than the condition that it comes from, never narrower: whoever reads by it
    still tests each row.

    Args:
        column: the column's name.
        values: what it may be; None for anything within the limits.
        low: the least it may be; None for no limit.
        high: the most it may be; None for no limit.
        null: whether NULL will do, too.
    """

    column: str
    values: tuple[Any, ...] | None = None
    low: Any = None
    high: Any = None
    null: bool = False

    def within(self, least: Any, most: Any) -> bool:
        """Whether a value from `least` to `most` may be wanted."""
        try:
            if self.values is not None:
                return any(least <= value <= most for value in self.values)
            return not ((self.low is not None and most < self.low)
                        or (self.high is not None and least > self.high))
        except (TypeError, ValueError):  # of another type: the test of the rows decides
            return True


def pinned(paths: Sequence[Path], bounds: Iterable[Bound]) -> list[Path]:
    """The files whose name allows them to hold wanted rows: it is a hash of the `video_id`."""
    kept = list(paths)
    for bound in bounds:
        if bound.column != VIDEO_ID.name or bound.values is None or bound.null:
            continue
        if all(isinstance(value, str) for value in bound.values):
            names = {file_name(value) for value in bound.values}
            kept = [path for path in kept if path.name in names]
    return kept


def row_groups(footer: pq.FileMetaData, bounds: Collection[Bound]) -> list[int]:
    """The row groups that may hold wanted rows, by their statistics."""
    if not bounds:
        return list(range(footer.num_row_groups))
    index = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
    known = [(bound, index[bound.column]) for bound in bounds if bound.column in index]
    return [number for number in range(footer.num_row_groups)
            if all(_in_group(footer.row_group(number).column(column), bound)
                   for bound, column in known)]


def _in_group(chunk: pq.ColumnChunkMetaData, bound: Bound) -> bool:
    statistics = chunk.statistics
    if statistics is None or not statistics.has_null_count:
        return True
    if bound.null and statistics.null_count:
        return True
    if not statistics.num_values:
        return False  # nothing but NULL
    return not statistics.has_min_max or bound.within(statistics.min, statistics.max)
