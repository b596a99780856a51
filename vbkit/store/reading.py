"""Reading tables: many small Parquet files as one pandas DataFrame."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vbkit._conform import utf8
from vbkit.errors import StoreError, UsageError
from vbkit.store.layout import (
    TableFile,
    read_footer,
    read_whole,
    table_paths,
    tables_folder,
)
from vbkit.store.pushdown import Bound, pinned, row_groups
from vbkit.tables import VIDEO_ID

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

__all__ = [
    "StoredTable",
    "Where",
    "attributes",
    "from_arrow",
    "head",
    "list_tables",
    "load_table",
    "retry",
    "rows",
    "scan",
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
    *,
    categorical: bool | Sequence[str] = False,
) -> pd.DataFrame:
    """A table of a results folder, of all its videos.

    Only the columns that are asked for, or that `where` tests, are read. What `where` says of
    single columns is pushed down to Parquet: a video's file is not opened where its `video_id` is
    not wanted, and its rows are not read where their statistics (least and greatest value of each
    column) rule them out.

    Args:
        out: the results folder.
        name: the table.
        columns: names of the columns wanted, in this order; `video_id`, where it is one of them,
            comes first. None for all.
        where: which rows: a condition in SQL, such as `"score > 0.5 AND category = 'fight'"`, or a
            mapping from column to a value or a list of values (None for NULL), all of which must
            hold.
        categorical: names of string columns to give as categories, which take less memory and are
            grouped faster where values repeat; True for every string column whose rows hold at
            most half as many different values.

    Returns:
        Rows by `video_id`, then as they were written. dtypes: string, float64 with NaN for NULL,
        int64 and bool (Int64 and boolean where NULL may occur), datetime64[us, UTC], and category
        (of string, sorted) where that was asked for.
        `attrs` has `table`, `doc`, and `units` and `docs` by column.

    Raises:
        StoreError: `out` is no results folder, it has no such table, or a file is damaged.
        UsageError: `columns`, `where` or `categorical` names an unknown column, or `where` is no
            condition.
    """

    def read() -> pd.DataFrame:
        table, data = rows(out, name, columns, where)
        frame = to_pandas(data, table.schema, table.categories(data, categorical))
        frame.attrs.update(table.attributes(data.column_names))
        return frame

    return retry(out, read)


def rows(
    out: str | Path, name: str, columns: Sequence[str] | None = None, where: Where = None
) -> tuple[StoredTable, pa.Table]:
    """The rows of a table for which `where` holds, in its order; raises as `load_table`.

    Also raises FileNotFoundError where a file went away meanwhile: see `retry`.
    """
    tested: Collection[str] | None = ()
    bounds: Sequence[Bound] = ()
    sql = isinstance(where, str) and bool(where.strip())
    if sql:
        from vbkit.store.sql import condition

        tested, bounds = condition(str(where), name)
    elif where and isinstance(where, Mapping):
        tested, bounds = list(where), [_bound(column, wanted) for column, wanted in where.items()]
    wanted = None if columns is None or isinstance(columns, str) else {*columns}

    def read(bounds: Sequence[Bound]) -> tuple[StoredTable, pa.Table]:
        table, data = scan(out, name, wanted, tested, bounds)
        chosen = table.choose(columns)
        if sql:
            from vbkit.store.sql import select

            return table, select(table, data, chosen, str(where))
        if where and isinstance(where, Mapping):
            data = data.filter(table.condition(where))
        return table, data.select(chosen)

    try:
        return read(bounds)
    except UsageError:  # for a column, perhaps, that only files have which were not opened
        if not any(bound.column == VIDEO_ID.name for bound in bounds):
            raise
        return read([bound for bound in bounds if bound.column != VIDEO_ID.name])


def head(
    out: str | Path, name: str, columns: Sequence[str] | None, where: Where, limit: int | None
) -> tuple[StoredTable, pa.Table, int]:
    """The first rows of a table for which `where` holds, at most `limit`, and how many there are.

    Raises as `rows`.
    """
    import pyarrow as pa

    if limit is None or (where is not None and len(where)):
        table, data = rows(out, name, columns, where)
        return table, data.slice(0, limit), len(data)
    table = StoredTable.open(out, name)
    chosen = table.choose(columns)
    schema = pa.schema([table.schema.field(column) for column in chosen])
    parts, missing = [schema.empty_table()], limit
    for file in table.files:
        if missing > 0 and file.n_rows:
            parts.append(_align(read_whole(file.path, chosen)[1], schema).slice(0, missing))
            missing -= len(parts[-1])
    return table, pa.concat_tables(parts), table.n_rows


def scan(
    out: str | Path,
    name: str,
    columns: Collection[str] | None,
    tested: Collection[str] | None = (),
    bounds: Sequence[Bound] = (),
) -> tuple[StoredTable, pa.Table]:
    """A table, and what `bounds` lets through of it, each file opened once.

    Args:
        out: the results folder.
        name: the table.
        columns: the columns wanted; None for all.
        tested: those needed besides, in any case of letters; None for all.
        bounds: what wanted rows have. Not every row that comes back has it.

    Raises:
        StoreError: `out` is no results folder, it has no such table, or a file is damaged.
        FileNotFoundError: a file went away meanwhile; try again.
    """
    import pyarrow as pa

    paths = _paths(out, name)
    some = pinned(paths, bounds)
    needed = None
    if columns is not None and tested is not None:
        needed = {*columns, *tested} or {VIDEO_ID.name}
    group = None if not bounds else lambda footer: row_groups(footer, bounds)
    parts: dict[Path, pa.Table] = {}
    files = []
    for path in some:
        file, parts[path] = read_whole(path, needed, group)
        files.append(file)
    if len(some) < len(paths):
        files += [read_footer(path) for path in _typical(paths) if path not in parts]
    table = StoredTable._of(name, files)
    kept = [field for field in table.schema if needed is None or field.name in needed]
    # A table without columns would have no rows.
    schema = pa.schema(kept or [table.schema.field(0)])
    if not kept:
        parts = {path: read_whole(path, schema.names, group)[1] for path in parts}
    tables = [_align(parts[file.path], schema) for file in table.files if file.path in parts]
    return table, pa.concat_tables(tables or [schema.empty_table()]).combine_chunks()


def _typical(paths: Sequence[Path]) -> list[Path]:
    """The newest and the oldest file, which together are likely to have every column.

    To look into all files would take longer than to read the few rows that are wanted.
    """
    by_age = sorted(paths, key=lambda path: path.stat().st_mtime_ns)
    return list(dict.fromkeys((by_age[-1], by_age[0])))


def _bound(column: str, wanted: Any) -> Bound:
    """What a mapping's value says of its column."""
    values, null = _wanted(wanted)
    return Bound(column, tuple(utf8(v) if isinstance(v, str) else v for v in values), null=null)


def _wanted(wanted: Any) -> tuple[list[Any], bool]:
    """The values that are wanted, and whether NULL is one of them."""
    import pandas as pd

    scalar = isinstance(wanted, (str, bytes)) or not isinstance(wanted, Iterable)
    values = [wanted] if scalar else list(wanted)
    present = [value for value in values if not (pd.api.types.is_scalar(value) and pd.isna(value))]
    return present, len(present) < len(values)


def _align(data: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, NULL where `data` has none."""
    import pyarrow as pa

    if data.schema.equals(schema):
        return data
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

    def categories(self, data: pa.Table, wanted: bool | Sequence[str]) -> list[str]:
        """The columns of `data` to give as categories; raises UsageError as `load_table`."""
        import pyarrow as pa
        import pyarrow.compute as pc

        text = [name for name in data.column_names
                if pa.types.is_string(self.schema.field(name).type)]
        if isinstance(wanted, bool):
            return [name for name in text
                    if wanted and 2 * pc.count_distinct(data.column(name)).as_py() <= len(data)]
        if isinstance(wanted, str):
            raise UsageError(f"categorical must be a list of names, got the string {wanted!r}")
        for name in wanted:
            self._check(name)
            if not pa.types.is_string(self.schema.field(name).type):
                raise UsageError(f"categorical: column {name} of table {self.name} is no text")
        return [name for name in text if name in wanted]

    def condition(self, where: Mapping[str, Any]) -> pc.Expression:
        """The condition that a mapping stands for.

        Raises:
            UsageError: it names an unknown column, or a value does not fit its column.
        """
        import pyarrow.compute as pc

        tests = []
        for column, wanted in where.items():
            self._check(column)
            values, null = self._values(column, wanted)
            test = pc.field(column).isin(values)
            tests.append(test | pc.field(column).is_null() if null else test)
        return reduce(and_, tests)

    def _values(self, column: str, wanted: Any) -> tuple[pa.Array, bool]:
        """The wanted values as an array of the column's type, and whether NULL is one of them."""
        import pyarrow as pa

        present, null = _wanted(wanted)
        dtype = self.schema.field(column).type
        if pa.types.is_string(dtype):
            present = [utf8(value) if isinstance(value, str) else value for value in present]
        try:
            return pa.array(present, type=dtype), null
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise UsageError(
                f"where: column {column} of table {self.name} is {dtype}, "
                f"and {wanted!r} does not fit it"
            ) from error

    def _check(self, column: str) -> None:
        if column not in self.schema.names:
            raise UsageError(f"table {self.name} has no column {column!r}; {self._columns()}")

    def _columns(self) -> str:
        return f"its columns are {', '.join(self.schema.names)}"


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


def to_pandas(
    data: pa.Table, schema: pa.Schema, categories: Collection[str] = ()
) -> pd.DataFrame:
    """Convert to the dtypes of `vbkit.tables.DTYPES`; `schema` says where NULL may occur.

    `categories` names string columns to give as categories of sorted strings.
    """
    import pandas as pd
    import pyarrow as pa

    columns: dict[str, pd.Series] = {}
    for name in data.column_names:
        field = schema.field(name)
        values = data.column(name)
        if values.type != field.type:
            values = values.cast(field.type)
        series: pd.Series
        if name in categories:
            series = _categorical(values)
        elif pa.types.is_string(field.type):
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


def _categorical(values: pa.ChunkedArray) -> pd.Series:
    """Strings as categories, sorted, of the dtype string."""
    import pandas as pd
    import pyarrow.compute as pc

    different = pc.unique(values.drop_null())
    different = different.take(pc.sort_indices(different))
    codes = pc.fill_null(pc.index_in(values, different), -1).to_numpy()
    names = pd.array(different.to_pylist(), dtype="string")
    return pd.Series(pd.Categorical.from_codes(codes, categories=pd.Index(names)))


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

