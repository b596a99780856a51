"""Table schemas: what the columns of a result table are called, mean, and hold.

Importing this module imports neither pandas nor pyarrow, so that a plugin can declare its tables
for free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbkit.errors import SchemaError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["CORE_TABLES", "DTYPES", "VIDEO_ID", "Column", "TableSchema"]

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")

DTYPES: dict[str, str] = {
    # vbkit's name -> pandas dtype of a column that may hold NULLs
    "string": "string",
    "float64": "float64",  # NaN is NULL
    "int64": "Int64",
    "bool": "boolean",
    "timestamp": "datetime64[us, UTC]",
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: `[a-z][a-z0-9_]*`.
        dtype: one of `DTYPES`.
        unit: unit of the values, such as `"s"`; empty for none.
        nullable: whether NULL (unknown) may occur.
        doc: one sentence that an analyst understands.
    """

    name: str
    dtype: str
    unit: str = ""
    nullable: bool = False
    doc: str = ""

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise SchemaError(f"column name {self.name!r}: use [a-z][a-z0-9_]*")
        if self.dtype not in DTYPES:
            raise SchemaError(
                f"column {self.name}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}"
            )

    def pandas_dtype(self) -> str:
        """The pandas dtype: numpy's where NULL cannot occur, pandas' nullable one elsewhere."""
        if self.nullable or self.dtype in ("string", "timestamp"):
            return DTYPES[self.dtype]
        return self.dtype

    def arrow_field(self) -> pa.Field:
        """The Arrow field, with unit and meaning as field metadata."""
        import pyarrow as pa

        types = {
            "string": pa.string(),
            "float64": pa.float64(),
            "int64": pa.int64(),
            "bool": pa.bool_(),
            "timestamp": pa.timestamp("us", tz="UTC"),
        }
        metadata = {"unit": self.unit, "doc": self.doc}
        return pa.field(self.name, types[self.dtype], nullable=self.nullable, metadata=metadata)


VIDEO_ID = Column("video_id", "string", doc="the input's id, unique in a results folder")


@dataclass(frozen=True)
class TableSchema:
    """A table's name and columns, without `video_id`, which the core puts first.

    Args:
        name: `[a-z][a-z0-9_]*`.
        columns: the columns, in order.
        per_video: whether a row belongs to a video; False only for the core's `runs`.
        doc: what a row is, in one short line; shown by `vbkit tables`.
        version: the author's number for this set of columns, kept in the Parquet metadata.

    Raises:
        SchemaError: a name is malformed, or a column occurs twice.
    """

    name: str
    columns: tuple[Column, ...]
    per_video: bool = True
    doc: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise SchemaError(f"table name {self.name!r}: use [a-z][a-z0-9_]*")
        object.__setattr__(self, "columns", tuple(self.columns))
        names = [column.name for column in self.columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise SchemaError(f"table {self.name}: column {twice[0]} is declared twice")
        if VIDEO_ID.name in names:
            raise SchemaError(f"table {self.name}: video_id is added by the core, leave it out")

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def empty(self) -> pd.DataFrame:
        """A table of no rows, with all columns and their dtypes (without `video_id`)."""
        return self.frame([])

    def frame(self, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """A table of `rows`, each a mapping from column name to value; checked as in `conform`.

        A row may leave out a nullable column, which is then NULL.
        """
        import pandas as pd

        rows = list(rows)
        for number, row in enumerate(rows):
            self._check_names(row, f" (row {number})")
            for column in self.columns:
                if column.name not in row and not column.nullable:
                    raise SchemaError(
                        f"table {self.name}, column {column.name}: missing in row {number}, "
                        "and the column is not nullable"
                    )
        # As objects, so that pandas does not turn integers beside NULLs into floats.
        return self._converted({
            name: pd.Series([row.get(name) for row in rows], dtype=object)
            for name in self.column_names
        }, len(rows))

    def conform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a new frame: the declared columns, in order, in the declared dtypes.

        A value that the dtype cannot hold exactly is an error and never changed: 1.7 does not
        become 1, nor 1 the text "1". The index is dropped; `frame` itself is left alone. In a
        frame of no rows, any dtype is accepted.

        Raises:
            SchemaError: a column is missing, undeclared, there twice or of another type, or holds
                NULL where the schema forbids it. The message names table, column and the first
                bad row, counted from 0.
        """
        names = list(frame.columns)
        if self._holds(frame):
            return frame.copy()
        self._check_names(names)
        missing = [name for name in self.column_names if name not in names]
        if missing:
            raise SchemaError(
                f"table {self.name}: column {missing[0]} is missing; "
                f"got {', '.join(map(str, names)) or 'no columns'}"
            )
        twice = [name for name in self.column_names if names.count(name) > 1]
        if twice:
            raise SchemaError(f"table {self.name}: column {twice[0]} is there twice")
        return self._converted({name: frame[name] for name in self.column_names}, len(frame))

    def _holds(self, frame: pd.DataFrame) -> bool:
        """Whether a frame certainly is as `conform` would make it, so that a copy will do."""
        import pandas as pd

        from vbkit._conform import is_converted

        return (list(frame.columns) == list(self.column_names)
                and isinstance(frame.index, pd.RangeIndex)
                and frame.index.equals(pd.RangeIndex(len(frame)))
                and all(is_converted(frame.dtypes.iloc[place], column.dtype, column.nullable)
                        and (column.nullable or not frame.iloc[:, place].hasnans)
                        for place, column in enumerate(self.columns)))

    def _converted(self, series: Mapping[str, pd.Series], n_rows: int) -> pd.DataFrame:
        """A frame of columns that are converted one by one."""
        import pandas as pd

        from vbkit._conform import BadValueError, convert

        out: dict[str, pd.Series] = {}
        for column in self.columns:
            try:
                out[column.name] = convert(series[column.name], column.dtype, column.nullable)
            except BadValueError as error:
                raise SchemaError(
                    f"table {self.name}, column {column.name} ({column.dtype}): {error}"
                ) from error
        return pd.DataFrame(out, columns=list(self.column_names), index=range(n_rows))

    def _check_names(self, names: Iterable[Any], where: str = "") -> None:
        undeclared = [str(name) for name in names if name not in self.column_names]
        if undeclared == [VIDEO_ID.name]:
            raise SchemaError(
                f"table {self.name}{where}: video_id is added by the core, leave it out"
            )
        if undeclared:
            raise SchemaError(
                f"table {self.name}{where}: column {undeclared[0]} is not declared; "
                "add it to the schema"
            )

    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema, `video_id` first where rows belong to videos."""
        import pyarrow as pa

        columns = (VIDEO_ID, *self.columns) if self.per_video else self.columns
        return pa.schema([column.arrow_field() for column in columns])


CORE_TABLES: dict[str, TableSchema] = {
    schema.name: schema
    for schema in (
        TableSchema(
            "videos",
            (
                Column("path", "string", nullable=True, doc="where the input was read from"),
                Column("content_id", "string", nullable=True, doc="hash of the content"),
                Column("status", "string", doc="ok, partial (some task or frames failed), failed"),
                Column("error", "string", nullable=True, doc="the first error, if any"),
                Column("duration_s", "float64", "s", True, "presented duration"),
                Column("start_offset_s", "float64", "s", True,
                       "the container's time of the first presented frame, which is t = 0 here"),
                Column("width", "int64", "px", True, "width as presented, after rotation"),
                Column("height", "int64", "px", True, "height as presented, after rotation"),
                Column("n_frames", "int64", "", True, "frames in the video stream"),
                Column("n_clips", "int64", doc="clips that were encoded"),
                Column("n_segments", "int64", doc="transcript segments"),
                Column("transcript_source", "string",
                       doc="sidecar, embedded, speech, text or none"),
                Column("language", "string", nullable=True, doc="ISO 639-1 code of the transcript"),
            ),
            doc="an input: what it is and how it went",
        ),
        TableSchema(
            "segments",
            (
                Column("segment", "int64", doc="index of the transcript segment, from 0"),
                Column("start_s", "float64", "s", True, "start; NULL for untimed text"),
                Column("end_s", "float64", "s", True, "end; NULL for untimed text"),
                Column("text", "string", doc="what is said"),
                Column("language", "string", nullable=True,
                       doc="ISO 639-1 code: as speech to text heard it, or as the text "
                           "tells, or the transcript's where it is too short; NULL where unknown"),
            ),
            doc="a segment of the transcript",
        ),
        TableSchema(
            "words",
            (
                Column("segment", "int64", doc="the transcript segment that it is in"),
                Column("word", "int64", doc="index of the word in its segment, from 0"),
                Column("start_s", "float64", "s", doc="start"),
                Column("end_s", "float64", "s", doc="end"),
                Column("text", "string", doc="the word, with its punctuation"),
                Column("probability", "float64", "", True,
                       "how sure the speech recognition is (0–1); NULL where it does not say"),
            ),
            doc="a word that was heard, where the times of words are known",
        ),
        TableSchema(
            "clips",
            (
                Column("clip", "int64", doc="index of the clip, from 0"),
                Column("start_s", "float64", "s", doc="start"),
                Column("end_s", "float64", "s", doc="end"),
                Column("caption", "string", nullable=True, doc="caption; NULL where not asked for"),
                Column("keyframe", "string", nullable=True,
                       doc="saved picture, relative to the results folder"),
            ),
            doc="a clip: a short stretch of the picture, encoded as one",
        ),
        TableSchema(
            "errors",
            (
                Column("stage", "string", doc="open, decode, transcript, encode, head or store"),
                Column("task", "string", nullable=True, doc="the task, for stage head"),
                Column("error_type", "string", doc="class of the error"),
                Column("message", "string", doc="what was wrong, and what to do"),
            ),
            doc="a failure: where, and what to do",
        ),
        TableSchema(
            "explanations",
            (
                Column("of_table", "string", doc="the table of the row that is explained"),
                Column("of_row", "int64",
                       doc="its place among the video's rows of that table, from 0"),
                Column("target", "string",
                       doc="the number that is explained, such as p_negative or score of gun"),
                Column("score", "float64", doc="that number, with all the evidence there"),
                Column("score_hidden", "float64",
                       doc="the same with all the evidence hidden; where method is shapley, the "
                           "weights that were found together add up to score - score_hidden"),
                Column("method", "string",
                       doc="shapley: a piece's mean share of the score, over many ways of hiding "
                           "other pieces, too; ablation: how much lower the score is without this "
                           "piece alone; other names are those of a task's own methods"),
                Column("kind", "string", doc="clip, segment or word"),
                Column("rank", "int64", doc="among the row's evidence of this kind; 1 is what "
                       "raises the score most"),
                Column("weight", "float64", "of score",
                       doc="how much it raises the score; negative where it lowers it"),
                Column("start_s", "float64", "s", True, "start; NULL for untimed text"),
                Column("end_s", "float64", "s", True, "end; NULL for untimed text"),
                Column("first_clip", "int64", "", True, "first clip; NULL for text"),
                Column("last_clip", "int64", "", True, "last clip, inclusive"),
                Column("first_segment", "int64", "", True,
                       "first transcript segment; NULL for clips"),
                Column("last_segment", "int64", "", True, "last transcript segment, inclusive"),
                Column("start_char", "int64", "", True,
                       "where a word begins in the text of its segment, in characters from 0; "
                       "NULL for clips and segments"),
                Column("end_char", "int64", "", True, "one past its last character"),
                Column("text", "string", nullable=True, doc="what is said there; NULL for clips"),
            ),
            doc="a piece of evidence for a row of another table",
        ),
        TableSchema(
            "runs",
            (
                Column("run_id", "string", doc="unique id of the run"),
                Column("started", "timestamp", doc="when it began (UTC)"),
                Column("finished", "timestamp", nullable=True, doc="when it ended (UTC)"),
                Column("command", "string", doc="the command line, or the Python call"),
                Column("versions", "string", doc="JSON: versions of vbkit, torch and the like"),
                Column("tasks", "string", doc="JSON: tasks, with their options"),
                Column("model", "string", doc="name and fingerprint of the model"),
                Column("device", "string", doc="device and precision"),
                Column("cache", "string", nullable=True, doc="folder of the feature cache"),
                Column("n_ok", "int64", doc="inputs done"),
                Column("n_partial", "int64", doc="inputs done in part"),
                Column("n_failed", "int64", doc="inputs that failed"),
                Column("n_skipped", "int64", doc="inputs that were already up to date"),
                Column("seconds", "string", nullable=True,
                       doc="JSON: wall time by stage (s) and total; NULL before its end"),
            ),
            per_video=False,
            doc="a run of vbkit",
            version=2,
        ),
    )
}
"""The tables that the core writes; their names are reserved."""
