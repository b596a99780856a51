"""SQL over the tables of a results folder, by DuckDB, shut off from everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vbkit.errors import StoreError, UsageError
from vbkit.store.pushdown import Bound
from vbkit.store.reading import StoredTable, from_arrow, list_tables, retry, scan

if TYPE_CHECKING:
    import duckdb
    import pandas as pd
    import pyarrow as pa

__all__ = ["condition", "query", "select"]

_ALLOWED = ("SELECT", "EXPLAIN", "MULTI")  # MULTI: what PIVOT becomes
_KIND = re.compile(r"^[A-Z][\w ]+ (Error|Exception): ")
_UNKNOWN_COLUMN = re.compile(r'Referenced column "(.+?)" not found')
_UNKNOWN_TABLE = re.compile(r"Table with name (\S+) does not exist")


def connect(tables: Mapping[str, pa.Table] | None = None) -> duckdb.DuckDBPyConnection:
    """An in-memory database with a view of each table, and no way out.

    DuckDB itself may open no file and load no extension, and that can no longer be changed: the
    views are of what has been read. Results keep the order of the rows.
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
    for name, data in (tables or {}).items():
        connection.register(name, data)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(out: str | Path, sql: str) -> pd.DataFrame:
    """The result of one SELECT over the tables of a results folder.

    Only the columns that occur in the statement are read. Where it selects from one table, rows
    are left unread as `load_table` does.

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

    def run(wanted: Wanted) -> pd.DataFrame:
        tables, rows = [], {}
        for name in used:
            table, rows[name] = scan(out, name, wanted.columns, (),
                                     wanted.bounds if wanted.table == name else ())
            tables.append(table)
        try:
            with connect(rows) as connection:
                _check_statement(connection, sql)
                return _result(_arrow(connection, sql))
        except duckdb.BinderException as error:
            if wanted.columns is None:
                _explain(error, "query", tables, names)
            return run(Wanted())  # in case it needs a column that it does not name
        except duckdb.Error as error:
            _explain(error, "query", tables, names)

    with connect() as connection:
        wanted = _wanted(connection, sql)
    return retry(out, lambda: run(wanted))


def condition(where: str, table: str) -> tuple[frozenset[str] | None, tuple[Bound, ...]]:
    """What a condition needs to be tested, and what it says of single columns.

    Returns:
        The names of columns that it may need, in lower case, None for all; and bounds that every
        row has for which it holds.
    """
    with connect() as connection:
        wanted = _wanted(connection, f"SELECT 1 FROM {_quote(table)} WHERE (\n{where}\n)")
    return wanted.columns, wanted.bounds


def select(
    table: StoredTable, data: pa.Table, columns: Sequence[str], where: str
) -> pa.Table:
    """The columns of the rows of `data` for which `where` holds, in their order."""
    import duckdb

    try:
        with connect({table.name: data}) as connection:
            chosen = ", ".join(_quote(column) for column in columns)
            # The line break ends a comment in `where`.
            sql = f"SELECT {chosen} FROM {_quote(table.name)} WHERE (\n{where}\n)"
            _check_statement(connection, sql)
            return _arrow(connection, sql)
    except duckdb.Error as error:
        _explain(error, "where", [table], [table.name])


# What a statement needs, by DuckDB's own parser

_PLAIN = {"BASE_TABLE", "JOIN", "SUBQUERY", "EMPTY", "EMPTY_FROM"}


@dataclass(frozen=True)
class Wanted:
    """What a statement needs to be answered.

    Args:
        columns: names of columns, in lower case; None for all.
        bounds: of the rows of `table`.
        table: the only table that it reads, in lower case, else empty.
    """

    columns: frozenset[str] | None = None
    bounds: tuple[Bound, ...] = ()
    table: str = ""


def _wanted(connection: duckdb.DuckDBPyConnection, sql: str) -> Wanted:
    """What a statement needs: too much, where its tree has something unknown, never too little."""
    import duckdb

    try:
        found = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()
        tree: dict[str, Any] = json.loads(found[0]) if found else {"error": True}
    except (duckdb.Error, ValueError, RecursionError):
        return Wanted()
    if tree.get("error") or len(tree["statements"]) != 1:
        return Wanted()
    nodes = list(_nodes(tree))
    sources = [node for node in nodes if "sample" in node and "alias" in node and "type" in node]
    tables = [str(node["table_name"]).lower() for node in nodes if node.get("table_name")]
    aliases = {str(node.get("alias", "")).lower() for node in sources}
    paths = [node["column_names"] for node in nodes if isinstance(node.get("column_names"), list)]
    columns: frozenset[str] | None = frozenset(
        text.lower() for node in nodes for value in node.values()
        for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
    if (
        any(node.get("class") in ("STAR", "LAMBDA") for node in nodes)
        or any(node["type"] not in _PLAIN for node in sources)
        or any(node.get("ref_type") == "NATURAL" for node in nodes)
        or any(names and str(names[-1]).lower() in aliases | set(tables) for names in paths)
    ):
        columns = None
    root = tree["statements"][0].get("node") or {}
    if len(tables) != 1 or len(sources) != 1 or root.get("type") != "SELECT_NODE":
        return Wanted(columns)
    names = aliases | set(tables)
    return Wanted(columns, tuple(_bounds(root.get("where_clause"), names)), tables[0])


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in the tree."""
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack += item.values()
        elif isinstance(item, list):
            stack += item


_FLIPPED = {"COMPARE_LESSTHAN": "COMPARE_GREATERTHAN",
            "COMPARE_LESSTHANOREQUALTO": "COMPARE_GREATERTHANOREQUALTO"}
_FLIPPED |= {after: before for before, after in _FLIPPED.items()}


def _bounds(node: Any, tables: set[str]) -> Iterator[Bound]:
    """What a condition says of single columns, as far as they are compared with constants."""
    if not isinstance(node, dict):
        return
    kind, children = node.get("type"), node.get("children") or []
    if kind == "CONJUNCTION_AND":
        for child in children:
            yield from _bounds(child, tables)
    elif kind == "COMPARE_IN" and children:
        column = _column(children[0], tables)
        limits = [_constant(child) for child in children[1:]]
        values = [limit[0] for limit in limits if limit and limit[0] == limit[1]]
        if column and len(values) == len(limits):
            yield Bound(column, tuple(values))
    elif kind == "COMPARE_BETWEEN":
        column = _column(node.get("input"), tables)
        least, most = _constant(node.get("lower")), _constant(node.get("upper"))
        if column and least and most:
            yield Bound(column, low=least[0], high=most[1])
    elif node.get("class") == "COMPARISON":
        column, value = _column(node.get("left"), tables), _constant(node.get("right"))
        if not column:
            column, value = _column(node.get("right"), tables), _constant(node.get("left"))
            kind = _FLIPPED.get(str(kind), kind)
        if not column or value is None:
            return
        low, high = value
        if kind == "COMPARE_EQUAL":
            yield Bound(column, (low,)) if low == high else Bound(column, low=low, high=high)
        elif kind in ("COMPARE_GREATERTHAN", "COMPARE_GREATERTHANOREQUALTO"):
            yield Bound(column, low=low)
        elif kind in ("COMPARE_LESSTHAN", "COMPARE_LESSTHANOREQUALTO"):
            yield Bound(column, high=high)


def _column(node: Any, tables: set[str]) -> str | None:
    if not isinstance(node, dict) or node.get("class") != "COLUMN_REF":
        return None
    *path, name = [str(part).lower() for part in node.get("column_names") or [""]]
    return name if not path or path[-1] in tables else None


def _constant(node: Any) -> tuple[Any, Any] | None:
    """A constant, as limits: a fraction may be rounded otherwise where it is compared."""
    if not isinstance(node, dict) or node.get("class") != "CONSTANT":
        return None
    literal = node.get("literal")
    if literal is None:  # DuckDB 1
        value = node.get("value") or {}
        kinds = {"VARCHAR": "STRING", "INTEGER": "INTEGER", "BIGINT": "INTEGER"}
        kind = kinds.get(str((value.get("type") or {}).get("id")))
        literal = {"kind": kind, "text": value.get("value")}
    kind, text = literal.get("kind"), literal.get("text")
    if text is None:
        return None
    try:
        if kind == "STRING":
            return str(text), str(text)
        if kind == "INTEGER":
            return int(text), int(text)
        if kind == "NUMERIC":
            number = float(text)
            return number - abs(number) * 1e-9, number + abs(number) * 1e-9
    except (ValueError, OverflowError):
        pass
    return None


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
