"""Where things lie in a results folder, and what the footer of a table's file says.

    OUT/tables/NAME/HASH.parquet   the rows of one video (of one run, for `runs`)
    OUT/.tmp/                      files being written; never inside a table's folder
    OUT/.lock*                     the lock, its owner, and the guard of both
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vbkit._conform import utf8
from vbkit.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

__all__ = [
    "PREFIX",
    "TableFile",
    "damaged",
    "file_name",
    "read_footer",
    "read_whole",
    "table_folder",
    "table_paths",
    "tables_folder",
    "temp_folder",
]

PREFIX = "vbkit."
"""Prefix of vbkit's keys in the metadata of a Parquet file."""

_SMALL = 1 << 20


def tables_folder(out: Path) -> Path:
    return out / "tables"


def table_folder(out: Path, table: str) -> Path:
    return out / "tables" / table


def temp_folder(out: Path) -> Path:
    return out / ".tmp"


def file_name(key: str) -> str:
    """Name of the file that holds the rows of `key`, a video_id or a run_id.

    An id may hold any characters and be of any length, so its hash stands for it.
    """
    return hashlib.sha256(utf8(key).encode("utf-8")).hexdigest()[:32] + ".parquet"


def table_paths(out: Path, table: str) -> list[Path]:
    """The files of a table, in no order; empty where there is no such table."""
    folder = table_folder(out, table)
    try:
        return [path for path in folder.iterdir() if path.suffix == ".parquet"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror or error}") from error


@dataclass(frozen=True)
class TableFile:
    """What the footer of a file says, without a look at its rows.

    Args:
        path: the file.
        n_rows: its rows.
        raw: its metadata as stored.
        schema: its columns.
    """

    path: Path
    n_rows: int
    raw: Mapping[bytes, bytes]
    schema: pa.Schema

    def get(self, key: str, default: str = "") -> str:
        """A value of vbkit's own metadata, the key without its prefix."""
        value = self.raw.get((PREFIX + key).encode())
        return default if value is None else value.decode("utf-8", "replace")

    @property
    def metadata(self) -> dict[str, str]:
        """All of vbkit's own metadata, without the prefix of the keys."""
        own = [key.decode("utf-8", "replace") for key in self.raw]
        names = [key.removeprefix(PREFIX) for key in own if key.startswith(PREFIX)]
        return {name: self.get(name) for name in names}

    @property
    def video_id(self) -> str:
        return self.get("video_id")

    @property
    def order(self) -> tuple[str, str]:
        """Where its rows belong among those of other files."""
        return (self.get("order") or self.video_id, self.path.name)

    @property
    def version(self) -> int:
        text = self.get("schema_version")
        return int(text) if text.isdecimal() else 0

    @property
    def modified_ns(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0


def read_footer(path: Path) -> TableFile:
    """Read the footer of a table's file.

    Raises:
        FileNotFoundError: there is no such file.
        StoreError: it is no whole Parquet file, or cannot be read.
    """
    import pyarrow.parquet as pq

    with _naming(path):
        footer = pq.read_metadata(path)
        schema = footer.schema.to_arrow_schema()
        return TableFile(path, footer.num_rows, footer.metadata or {}, schema)


def read_whole(
    path: Path,
    columns: Collection[str] | None = None,
    row_groups: Callable[[pq.FileMetaData], list[int] | None] | None = None,
) -> tuple[TableFile, pa.Table]:
    """Read a table's file, opening it once: its footer, and those of `columns` that it has.

    Args:
        path: the file.
        columns: names; those that it has not are left out. None for all.
        row_groups: says by the footer which row groups to read; None for all.

    Raises: as `read_footer`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _naming(path):
        # Small files, which most are, are read fastest from memory.
        small = path.stat().st_size <= _SMALL
        with pq.ParquetFile(pa.BufferReader(path.read_bytes()) if small else path) as file:
            schema = file.schema_arrow
            footer = file.metadata
            names = [name for name in schema.names if columns is None or name in columns]
            groups = None if row_groups is None else row_groups(footer)
            if groups is None:
                data = file.read(names, use_threads=not small)
            elif groups:
                data = file.read_row_groups(groups, names, use_threads=not small)
            else:
                data = pa.schema([schema.field(name) for name in names]).empty_table()
            return TableFile(path, footer.num_rows, footer.metadata or {}, schema), data


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it was that could not be read."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> StoreError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return StoreError(
        f"{path} cannot be read as a table ({reason}); delete it and run again to have it redone"
    )
