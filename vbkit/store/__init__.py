"""The results folder: tables as Parquet, one small file per video and table, replaced atomically.

Importing this package imports neither pandas nor pyarrow nor DuckDB.
"""

from __future__ import annotations

from vbkit.store.reading import list_tables, load_table
from vbkit.store.sql import query
from vbkit.store.writing import ResultStore

__all__ = ["ResultStore", "list_tables", "load_table", "query"]
