"""A hash of a file's content, which keys the feature cache."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path

from vbkit.errors import MediaError

__all__ = ["content_id", "text_content_id"]

_CHUNK = 1 << 20
_DIGEST_BYTES = 20


def content_id(path: str | Path, memo_dir: str | Path | None = None) -> str:
    """The BLAKE2b hash (40 hexadecimal digits) of a file's content, read in pieces.

    Args:
        path: the file.
        memo_dir: a folder in which hashes are remembered by real path, size and time of change,
            so that a file is not read again while it stays as it is. Safe to share between
            processes; where it cannot be used, the file is read.

    Raises:
        MediaError: the file cannot be read.
    """
    path = Path(path)
    try:
        real = path.resolve()
        stat = real.stat()
        key = (str(real).encode("utf-8", "surrogateescape"), stat.st_size, stat.st_mtime_ns)
        if memo_dir is None:
            return _hash(real)
        found = _recall(Path(memo_dir), key)
        if found is None:
            found = _hash(real)
            after = real.stat()
            if (after.st_size, after.st_mtime_ns) == key[1:]:  # it did not change meanwhile
                _remember(Path(memo_dir), key, found)
        return found
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror or error})") from None


def text_content_id(text: str) -> str:
    """The same kind of hash for a string."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"),
                           digest_size=_DIGEST_BYTES).hexdigest()


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _connect(folder: Path) -> sqlite3.Connection:
    folder.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(folder / "content_ids.sqlite", timeout=5.0)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS content_ids (path BLOB PRIMARY KEY, size INTEGER, "
        "mtime_ns INTEGER, content_id TEXT) WITHOUT ROWID"
    )
    return connection


def _recall(folder: Path, key: tuple[bytes, int, int]) -> str | None:
    try:
        with contextlib.closing(_connect(folder)) as connection:
            row = connection.execute(
                "SELECT content_id FROM content_ids WHERE path = ? AND size = ? AND mtime_ns = ?",
                key,
            ).fetchone()
    except (sqlite3.Error, OSError):
        return None
    return row[0] if row else None


def _remember(folder: Path, key: tuple[bytes, int, int], value: str) -> None:
    with (
        contextlib.suppress(sqlite3.Error, OSError),
        contextlib.closing(_connect(folder)) as connection,
        connection,
    ):
        connection.execute("INSERT OR REPLACE INTO content_ids VALUES (?, ?, ?, ?)", (*key, value))
