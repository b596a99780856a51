"""Writing tables: whole files only, one per video and table."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from vbkit._conform import utf8
from vbkit.errors import StoreError
from vbkit.store.layout import (
    PREFIX,
    TableFile,
    file_name,
    read_footer,
    read_whole,
    table_folder,
    table_paths,
    temp_folder,
)
from vbkit.store.lock import FolderLock
from vbkit.store.reading import attributes, to_pandas
from vbkit.tables import CORE_TABLES, VIDEO_ID, TableSchema

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ResultStore", "write_atomically"]

_SMALL = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


def write_atomically(target: Path, temp: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write `temp` through `write`, then rename it to `target`; both on one file system.

    Another process sees the old file or the whole new one, never a part. Whatever goes wrong,
    `temp` is gone afterwards.

    Raises:
        StoreError: the disk is full, the folder is not writable, or the like.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temp.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, target)
    except OSError as error:
        advice = "choose another folder"
        if error.errno in _FULL:
            advice = "free some space and run again; what was written before is kept"
        elif error.errno in _FORBIDDEN:
            advice = "choose a folder that you may write to"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StoreError(f"cannot write {target}: {reason}; {advice}") from error
    finally:
        with suppress(OSError):
            temp.unlink(missing_ok=True)


class ResultStore:
    """The tables of a results folder, as a run writes them.

    Nothing is made on disk before the first lock or write. Methods may be called from several
    threads, for different videos or tables. A run holds `lock()` as long as it writes.

    Args:
        out: the results folder.
    """

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self._lock = FolderLock(self.out)

    def __repr__(self) -> str:
        return f"ResultStore({str(self.out)!r})"

    @contextmanager
    def lock(self, wait_s: float = 0.0) -> Iterator[ResultStore]:
        """Keep other runs out within a `with` block.

        The lock of a run that died is free at once. A second `lock()` of the same object is, too.

        Args:
            wait_s: how long to wait for another run (s); `math.inf` for ever.

        Raises:
            StoreLockedError: another run uses the folder; the message says which.
            StoreError: the folder cannot be made or written.
        """
        with self._lock.hold(wait_s):
            yield self

    def write(
        self,
        schema: TableSchema,
        video_id: str,
        frame: pd.DataFrame,
        *,
        fingerprint: str,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Replace all rows of a video in a table, in one step.

        An empty frame is written too, so that "done, and nothing found" is remembered.

        Args:
            schema: the table's schema, of a table with `per_video`.
            video_id: the video. Lone surrogates (from file names that are not UTF-8) are stored
                as backslash escapes.
            frame: its rows, without `video_id`; checked against `schema` and not changed.
            fingerprint: of all that the rows depend on; `fingerprint` gives it back.
            metadata: more to keep in the file, such as task, plugin, model, versions, options.

        Raises:
            SchemaError: `frame` does not match `schema`.
            StoreError: the file cannot be written; the old rows are then still there.
        """
        import pandas as pd

        if not schema.per_video:
            raise StoreError(f"table {schema.name} is not written by video")
        video_id = utf8(video_id)
        rows = schema.conform(frame)
        # In its dtype, which pandas.read_parquet then gives it back in.
        rows.insert(0, VIDEO_ID.name, pd.Series(video_id, rows.index, dtype="string"))
        extra = {"fingerprint": fingerprint, "video_id": video_id}
        self._write(schema, video_id, rows, {**(metadata or {}), **extra})

    def fingerprint(self, table: str, video_id: str) -> str | None:
        """The fingerprint that a video's rows were written with; None where there are none.

        Reads the file's footer only. A file that is not whole counts as absent.
        """
        file = self._file(table, video_id)
        return None if file is None else file.get("fingerprint") or None

    def metadata(self, table: str, video_id: str) -> dict[str, str] | None:
        """What `write` kept with a video's rows; None where there are none. Footer only."""
        file = self._file(table, video_id)
        return None if file is None else file.metadata

    def rows(self, table: str, video_id: str) -> pd.DataFrame | None:
        """A video's rows in a table, `video_id` first; None where none were written.

        dtypes and `attrs` as from `load_table`. A file that is not whole counts as absent.
        """
        try:
            _, data = read_whole(self._path(table, video_id))
        except (StoreError, FileNotFoundError):
            return None
        frame = to_pandas(data, data.schema)
        frame.attrs.update(attributes(table, data.schema))
        return frame

    def remove(self, table: str, video_id: str) -> None:
        """Forget a video's rows in a table; nothing happens where there are none.

        Raises:
            StoreError: the file cannot be removed.
        """
        path = self._path(table, video_id)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot remove {path}: {error.strerror or error}") from error

    def video_ids(self, table: str) -> list[str]:
        """The videos that a table has been written for, sorted; those without rows as well."""
        found = []
        for path in table_paths(self.out, table):
            with suppress(StoreError, FileNotFoundError):
                found.append(read_footer(path).video_id)
        return sorted(video_id for video_id in found if video_id)

    def write_run(self, row: Mapping[str, Any]) -> None:
        """Write a row of `runs`; a row of the same `run_id` is replaced.

        Raises:
            SchemaError: the row does not match the schema of `runs`.
            StoreError: the file cannot be written.
        """
        schema = CORE_TABLES["runs"]
        frame = schema.frame([row])
        run_id = str(frame["run_id"].iloc[0])
        order = frame["started"].iloc[0].isoformat(timespec="microseconds")
        self._write(schema, run_id, frame, {"run_id": run_id, "order": order})

    def write_file(self, name: str, data: bytes) -> Path:
        """Write a file beside the tables, such as a keyframe, in one step.

        Args:
            name: POSIX path relative to the results folder, without `..`.
            data: its content.

        Returns:
            The file's path.

        Raises:
            StoreError: `name` leaves the folder, or the file cannot be written.
        """
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise StoreError(f"{name!r} is no path inside a results folder")
        target = self.out.joinpath(*relative.parts)
        write_atomically(target, self._temp(), lambda file: file.write(data))
        return target

    def clean(self) -> None:
        """Remove what killed runs left half-written. Call it under the lock."""
        with suppress(OSError):
            for path in temp_folder(self.out).iterdir():
                with suppress(OSError):
                    path.unlink()

    def _path(self, table: str, key: str) -> Path:
        return table_folder(self.out, table) / file_name(key)

    def _temp(self) -> Path:
        return temp_folder(self.out) / f"{os.getpid()}-{uuid.uuid4().hex}"

    def _file(self, table: str, video_id: str) -> TableFile | None:
        try:
            return read_footer(self._path(table, video_id))
        except (StoreError, FileNotFoundError):
            return None

    def _write(
        self, schema: TableSchema, key: str, frame: pd.DataFrame, metadata: Mapping[str, str]
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        data = pa.Table.from_pandas(frame, schema=schema.arrow_schema(), preserve_index=False)
        own = {
            **metadata,
            "table": schema.name,
            "schema_version": str(schema.version),
            "doc": schema.doc,
        }
        # pandas' own metadata stays, so that pandas.read_parquet gives the same dtypes.
        kept = {
            **(data.schema.metadata or {}),
            **{PREFIX + name.removeprefix(PREFIX): utf8(text) for name, text in own.items()},
        }
        data = data.replace_schema_metadata(kept)
        # Small files, which most are, are hardly smaller with zstd, and take twice as long to read.
        compression = "snappy" if data.nbytes <= _SMALL else "zstd"
        write_atomically(
            self._path(schema.name, key),
            self._temp(),
            lambda file: pq.write_table(data, file, compression=compression),
        )
