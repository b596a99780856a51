"""Reading tables: many small Parquet files as one pandas DataFrame."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vbkit._conform import utf8
from vbkit.errors import StoreError, UsageError
from vbkit.store.layout import (
    TableFile,
    damaged,
    file_name,
    read_footer,
    read_whole,
    table_paths,
    tables_folder,
)
from vbkit.tables import VIDEO_ID

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.dataset as ds

__all__ = [
    "StoredTable",
    "Where",
    "attributes",
    "from_arrow",
    "list_tables",
    "load_table",
    "retry",
    "to_pandas",
]

T = TypeVar("T")
Where = str | Mapping[str, Any] | None

_TRIES = 10


def list_tables(out: str | Path) -> list[str]:
    """The names of the tables in a results folder, sorted.

    Raises:
        StoreError: `out` is no results folder.
    """
    out = Path(out)
    folder = tables_folder(out)
    try:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        if not out.exists():
            raise StoreError(f"{out}: there is no such folder") from None
        if not out.is_dir():
            raise StoreError(f"{out} is a file, not a results folder") from None
        raise StoreError(
            f"{out} is no results folder: it has no tables yet; `vbkit run --out {out}` writes some"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror or error}") from error
    return [name for name in names if table_paths(out, name)]


def load_table(
    out: str | Path,
    name: str,
    columns: Sequence[str] | None = None,
    where: Where = None,
) -> pd.DataFrame:
    """A table of a results folder, of all its videos.

    Only the columns and rows that are asked for leave the disk.

    Args:
        out: the results folder.
        name: the table.
        columns: names of the columns wanted, in this order; `video_id`, where it is one of them,
            comes first. None for all.
        where: which rows: a condition in SQL, such as `"score > 0.5 AND category = 'fight'"`, or a
            mapping from column to a value or a list of values (None for NULL), all of which must
            hold.

    Returns:
        Rows by `video_id`, then as they were written. dtypes: string, float64 with NaN for NULL,
        int64 and bool (Int64 and boolean where NULL may occur), datetime64[us, UTC].
        `attrs` has `table`, `doc`, and `units` and `docs` by column.

    Raises:
        StoreError: `out` is no results folder, it has no such table, or a file is damaged.
        UsageError: `columns` or `where` names an unknown column, or `where` is no condition.
    """

    if where is None or not len(where):
        return retry(out, lambda: _load_whole(out, name, columns))

    def read(table: StoredTable) -> pd.DataFrame:
        chosen = table.choose(columns)
        frame = to_pandas(table.select(chosen, where), table.schema)
        frame.attrs.update(table.attributes(chosen))
        return frame

    return StoredTable.read(out, name, read)


def _load_whole(out: str | Path, name: str, columns: Sequence[str] | None) -> pd.DataFrame:
    """All rows; each file is opened once."""
    import pyarrow as pa

    parts: dict[Path, pa.Table] = {}
    files = []
    for path in _paths(out, name):
        file, parts[path] = read_whole(path, columns)
        files.append(file)
    table = StoredTable._of(name, files)
    chosen = table.choose(columns)
    schema = pa.schema([table.schema.field(column) for column in chosen])
    data = pa.concat_tables([_align(parts[file.path], schema) for file in table.files])
    frame = to_pandas(data, schema)
    frame.attrs.update(table.attributes(chosen))
    return frame


def _align(data: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, NULL where `data` has none."""
    import pyarrow as pa

    return pa.table(
        [
            data.column(field.name).cast(field.type)
            if field.name in data.column_names
            else pa.nulls(data.num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )


def _paths(out: str | Path, name: str) -> list[Path]:
    """The files of a table, at least one."""
    names = list_tables(out)
    if name not in names:
        there = ", ".join(names) or "no tables yet"
        raise StoreError(f"{out} has no table {name!r}; there are: {there}")
    paths = table_paths(Path(out), name)
    if not paths:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return paths


@dataclass(frozen=True)
class StoredTable:
    """A table on disk: its files in the order of their rows, and the union of their columns.

    Args:
        name: the table.
        files: its files, at least one.
        schema: the columns; unit and meaning are those of the newest schema version.
    """

    name: str
    files: tuple[TableFile, ...]
    schema: pa.Schema

    @classmethod
    def open(cls, out: str | Path, name: str) -> StoredTable:
        """Read the footers of a table's files.

        Raises:
            StoreError: `out` is no results folder, it has no such table, or a file is damaged.
            FileNotFoundError: a file went away meanwhile; try again.
        """
        return cls._of(name, [read_footer(path) for path in _paths(out, name)])

    @classmethod
    def _of(cls, name: str, files: Iterable[TableFile]) -> StoredTable:
        files = sorted(files, key=lambda file: file.order)
        return cls(name, tuple(files), _union(files))

    @classmethod
    def read(cls, out: str | Path, name: str, read: Callable[[StoredTable], T]) -> T:
        """Open the table and call `read`; again where a run removed a file in between."""
        return retry(out, lambda: read(cls.open(out, name)))

    @property
    def column_names(self) -> list[str]:
        return list(self.schema.names)

    @property
    def n_rows(self) -> int:
        return sum(file.n_rows for file in self.files)

    @property
    def doc(self) -> str:
        return max(self.files, key=lambda file: file.version).get("doc")

    def attributes(self, columns: Iterable[str] | None = None) -> dict[str, Any]:
        """`attrs` of a frame of these columns."""
        return {**attributes(self.name, self.schema, columns), "doc": self.doc}

    def choose(self, columns: Sequence[str] | None) -> list[str]:
        """The columns asked for, `video_id` first.

        Raises:
            UsageError: one is unknown, or there are none.
        """
        if columns is None:
            return self.column_names
        if isinstance(columns, str):
            raise UsageError(f"columns must be a list of names, got the string {columns!r}")
        chosen = list(dict.fromkeys(columns))
        for column in chosen:
            self._check(column)
        if not chosen:
            raise UsageError(f"table {self.name}: no columns asked for; {self._columns()}")
        return sorted(chosen, key=lambda column: column != VIDEO_ID.name)

    def dataset(self, files: Sequence[TableFile] | None = None) -> ds.Dataset:
        """The rows, unread. Make one for each use: it remembers footers; a run replaces files."""
        import pyarrow as pa
        import pyarrow.dataset as ds
        import pyarrow.fs

        return ds.dataset(
            [str(file.path) for file in (self.files if files is None else files)],
            schema=pa.schema(list(self.schema)),
            format="parquet",
            filesystem=pa.fs.LocalFileSystem(),
        )

    def select(
        self, columns: Sequence[str], where: Where = None, limit: int | None = None
    ) -> pa.Table:
        """The rows for which `where` holds, at most `limit` of them, in the table's order.

        Raises:
            UsageError: `where` names an unknown column or is no condition.
            StoreError: a file is damaged.
        """
        import pyarrow as pa

        names = list(columns)
        if isinstance(where, str) and where.strip():
            from vbkit.store.sql import select

            return select(self, names, where, limit)
        try:
            files, condition = self._condition(where if isinstance(where, Mapping) else {})
            data = self.dataset(files)
            if limit is not None:
                return data.head(limit, columns=names, filter=condition)
            return data.to_table(columns=names, filter=condition)
        except (OSError, pa.ArrowException) as error:
            if _vanished(error):
                raise
            raise self._damaged(error) from error

    def count(self, where: Where = None) -> int:
        """How many rows `where` holds for. Raises as `select`."""
        import pyarrow as pa

        if isinstance(where, str) and where.strip():
            from vbkit.store.sql import count

            return count(self, where)
        if not where:
            return self.n_rows
        try:
            files, condition = self._condition(where if isinstance(where, Mapping) else {})
            return int(self.dataset(files).count_rows(filter=condition))
        except (OSError, pa.ArrowException) as error:
            if _vanished(error):
                raise
            raise self._damaged(error) from error

    def _condition(self, where: Mapping[str, Any]) -> tuple[list[TableFile], ds.Expression | None]:
        """The files that may hold rows with these values, and the condition on the rows."""
        import pyarrow.compute as pc

        files = list(self.files)
        condition: ds.Expression | None = None
        for column, wanted in where.items():
            self._check(column)
            values, null = self._values(column, wanted)
            test = pc.field(column).isin(values)
            if null:
                test = test | pc.field(column).is_null()
            condition = test if condition is None else condition & test
            if column == VIDEO_ID.name:
                names = {file_name(value) for value in values.to_pylist()}
                files = [file for file in files if file.path.name in names]
        return files, condition

    def _values(self, column: str, wanted: Any) -> tuple[pa.Array, bool]:
        """The wanted values as an array of the column's type, and whether NULL is one of them."""
        import pandas as pd
        import pyarrow as pa

        scalar = isinstance(wanted, (str, bytes)) or not isinstance(wanted, Iterable)
        values = [wanted] if scalar else list(wanted)
        present = [value for value in values if not (pd.api.types.is_scalar(value)
                                                     and pd.isna(value))]
        dtype = self.schema.field(column).type
        if pa.types.is_string(dtype):
            present = [utf8(value) if isinstance(value, str) else value for value in present]
        try:
            array = pa.array(present, type=dtype)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"where: column {column} of table {self.name} is {dtype}, "
                f"and {wanted!r} does not fit it"
            ) from error
        return array, len(present) < len(values)

    def _check(self, column: str) -> None:
        if column not in self.schema.names:
            raise UsageError(f"table {self.name} has no column {column!r}; {self._columns()}")

    def _columns(self) -> str:
        return f"its columns are {', '.join(self.schema.names)}"

    def damage(self) -> StoreError | None:
        """An error that names the first file that cannot be read; None where all can."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for file in self.files:
            try:
                pq.ParquetFile(file.path).read()
            except FileNotFoundError:
                continue
            except (OSError, ValueError, pa.ArrowException) as error:
                return damaged(file.path, error)
        return None

    def _damaged(self, error: Exception) -> StoreError:
        return self.damage() or StoreError(f"table {self.name} cannot be read: {error}")


def retry(out: str | Path, read: Callable[[], T]) -> T:
    """Call `read`; again, a few times, where a file that it had listed was removed meanwhile.

    Raises:
        StoreError: that happens every time.
    """
    for _ in range(_TRIES):
        try:
            return read()
        except Exception as error:
            if not _vanished(error):
                raise
    raise StoreError(f"{out} changes all the time; try again in a moment")


def _vanished(error: BaseException) -> bool:
    """Whether a file that is not there is behind an error, perhaps one that DuckDB passed on."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FileNotFoundError) or os.strerror(errno.ENOENT) in str(cause):
            return True
        cause = cause.__cause__
    return False


def attributes(
    table: str, schema: pa.Schema, columns: Iterable[str] | None = None
) -> dict[str, Any]:
    """Units and meanings of columns, for `DataFrame.attrs`."""
    units: dict[str, str] = {}
    docs: dict[str, str] = {}
    for column in schema.names if columns is None else columns:
        metadata = schema.field(column).metadata or {}
        for key, kept in ((b"unit", units), (b"doc", docs)):
            if metadata.get(key):
                kept[column] = metadata[key].decode("utf-8", "replace")
    return {"table": table, "units": units, "docs": docs}


def to_pandas(data: pa.Table, schema: pa.Schema) -> pd.DataFrame:
    """Convert to the dtypes of `vbkit.tables.DTYPES`; `schema` says where NULL may occur."""
    import pandas as pd
    import pyarrow as pa

    columns: dict[str, pd.Series] = {}
    for name in data.column_names:
        field = schema.field(name)
        values = data.column(name)
        if values.type != field.type:
            values = values.cast(field.type)
        series: pd.Series
        if pa.types.is_string(field.type):
            series = from_arrow("string", values)
        elif pa.types.is_int64(field.type) and (field.nullable or values.null_count):
            series = from_arrow("Int64", values)
        elif pa.types.is_boolean(field.type) and (field.nullable or values.null_count):
            series = from_arrow("boolean", values)
        else:
            series = values.to_pandas()
            if pa.types.is_timestamp(field.type):
                series = series.astype("datetime64[us, UTC]")
        columns[name] = series
    return pd.DataFrame(columns, index=range(data.num_rows))


def from_arrow(dtype: str, values: pa.ChunkedArray) -> pd.Series:
    """A series of one of pandas' own dtypes."""
    import pandas as pd

    extension: Any = pd.api.types.pandas_dtype(dtype)
    return pd.Series(extension.__from_arrow__(values))


def _union(files: Sequence[TableFile]) -> pa.Schema:
    """The columns of all files by name; the newest version's first, then those only older had."""
    import pyarrow as pa

    distinct: list[TableFile] = []
    for file in files:
        if not any(
            file.version == other.version and file.schema.equals(other.schema)
            for other in distinct
        ):
            distinct.append(file)
    distinct.sort(key=lambda file: (file.version, file.modified_ns), reverse=True)
    fields: dict[str, pa.Field] = {}
    for file in distinct:
        for field in file.schema:
            known = fields.get(field.name)
            if known is None:
                fields[field.name] = field
                continue
            dtype = known.type if known.type == field.type else _common(known, field)
            nullable = known.nullable or field.nullable
            fields[field.name] = known.with_type(dtype).with_nullable(nullable)
    for name, field in fields.items():
        if any(name not in file.schema.names for file in distinct):
            fields[name] = field.with_nullable(True)
    return pa.schema(list(fields.values()))


def _common(first: pa.Field, second: pa.Field) -> pa.DataType:
    """The type that can hold both; text where there is no other."""
    import pyarrow as pa

    numbers = {pa.int64(), pa.float64()}
    return pa.float64() if {first.type, second.type} == numbers else pa.string()

