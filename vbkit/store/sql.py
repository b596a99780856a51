"""SQL over the tables of a results folder, by DuckDB, shut off from everything else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vbkit.errors import StoreError, UsageError
from vbkit.store.reading import StoredTable, from_arrow, list_tables, retry

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

__all__ = ["count", "query", "select"]

_ALLOWED = ("SELECT", "EXPLAIN", "MULTI")  # MULTI: what PIVOT becomes
_KIND = re.compile(r"^[A-Z][\w ]+ (Error|Exception): ")
_UNKNOWN_COLUMN = re.compile(r'Referenced column "(.+?)" not found')
_UNKNOWN_TABLE = re.compile(r"Table with name (\S+) does not exist")


def connect(tables: Iterable[StoredTable]) -> duckdb.DuckDBPyConnection:
    """An in-memory database with a view of each table, and no way out.

    DuckDB itself may open no file and load no extension, and that can no longer be changed: the
    views read through Arrow. Results keep the order of the rows.
    """
    import duckdb

    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "temp_directory": "",
            "preserve_insertion_order": "true",
        },
    )
    for table in tables:
        connection.register(table.name, table.dataset())
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(out: str | Path, sql: str) -> pd.DataFrame:
    """The result of one SELECT over the tables of a results folder.

    Args:
        out: the results folder.
        sql: one statement in DuckDB's SQL; each table is a view of its name.

    Returns:
        The rows. Text is string, whole numbers int64 (Int64 with NULL), numbers float64. A column
        name that occurs twice gets a suffix.

    Raises:
        StoreError: `out` is no results folder, or a file is damaged.
        UsageError: the statement is wrong, is not one SELECT, or reaches for anything but tables.
    """
    import duckdb

    names = list_tables(out)
    words = set(re.findall(r"\w+", sql.lower()))
    used = [name for name in names if name in words] or names

    def run() -> pd.DataFrame:
        tables = [StoredTable.open(out, name) for name in used]
        try:
            with connect(tables) as connection:
                _check_statement(connection, sql)
                return _result(_arrow(connection, sql))
        except duckdb.Error as error:
            _explain(error, "query", tables, names)

    return retry(out, run)


def select(
    table: StoredTable, columns: Sequence[str], where: str, limit: int | None = None
) -> pa.Table:
    """The columns of the rows for which `where` holds, in the table's order."""
    chosen = ", ".join(_quote(column) for column in columns)
    tail = "" if limit is None else f" LIMIT {int(limit)}"
    return _filter(table, chosen, where, tail)


def count(table: StoredTable, where: str) -> int:
    """How many rows `where` holds for."""
    return int(_filter(table, "count(*)", where, "").column(0)[0].as_py())


def _filter(table: StoredTable, columns: str, where: str, tail: str) -> pa.Table:
    import duckdb

    try:
        with connect([table]) as connection:
            # The line break ends a comment in `where`.
            sql = f"SELECT {columns} FROM {_quote(table.name)} WHERE (\n{where}\n){tail}"
            _check_statement(connection, sql)
            return _arrow(connection, sql)
    except duckdb.Error as error:
        _explain(error, "where", [table], [table.name])


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _check_statement(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    statements = connection.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if kinds == ["CREATE", "SELECT"] and re.match(r"\s*(pivot|from|with)\b", sql, re.IGNORECASE):
        return  # PIVOT in older versions of DuckDB
    if len(kinds) != 1 or kinds[0] not in _ALLOWED:
        raise UsageError("only one SELECT statement can be run here: results are read, not changed")


def _arrow(connection: duckdb.DuckDBPyConnection, sql: str) -> pa.Table:
    relation: Any = connection.sql(sql)
    fetch = getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table
    return fetch()


def _explain(
    error: duckdb.Error, what: str, tables: Sequence[StoredTable], names: Sequence[str]
) -> NoReturn:
    import duckdb

    text = str(error)
    first = _KIND.sub("", text.splitlines()[0] if text else "it failed")
    columns = "; ".join(f"{table.name}: {', '.join(table.column_names)}" for table in tables)
    unknown = _UNKNOWN_COLUMN.search(text)
    if unknown:
        raise UsageError(
            f"{what}: there is no column {unknown[1]!r} "
            f"(text is put in single quotes); columns are {columns}"
        ) from error
    missing = _UNKNOWN_TABLE.search(text)
    if missing:
        raise UsageError(
            f"{what}: there is no table {missing[1]!r}; tables are {', '.join(names)}"
        ) from error
    if "disabled" in first:
        raise UsageError(f"{what}: only the tables can be read here, no files: {first}") from error
    if isinstance(error, (duckdb.ParserException, duckdb.BinderException)):
        raise UsageError(f"{what}: {first}") from error
    for table in tables:
        damage = table.damage()
        if damage is not None:
            raise damage from error
    if isinstance(error, (duckdb.ProgrammingError, duckdb.DataError, duckdb.NotSupportedError)):
        raise UsageError(f"{what}: {first}") from error
    raise StoreError(f"{what}: {first}") from error


def _result(data: pa.Table) -> pd.DataFrame:
    """As pandas, in vbkit's dtypes where there is one; DuckDB's sums of integers are decimals."""
    import pandas as pd
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name, values in zip(data.column_names, data.columns, strict=True):
        unique, number = name, 1
        while unique in columns:
            unique, number = f"{name}_{number}", number + 1
        if pa.types.is_decimal(values.type):
            try:
                values = values.cast(pa.int64() if values.type.scale == 0 else pa.float64())
            except pa.ArrowInvalid:
                values = values.cast(pa.float64())
        if pa.types.is_integer(values.type) and values.null_count:
            values = values.cast(pa.int64())
            columns[unique] = from_arrow("Int64", values)
        elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            values = values.cast(pa.string())
            columns[unique] = from_arrow("string", values)
        elif pa.types.is_boolean(values.type) and values.null_count:
            columns[unique] = from_arrow("boolean", values)
        else:
            columns[unique] = values.to_pandas()
    return pd.DataFrame(columns, index=range(data.num_rows))
