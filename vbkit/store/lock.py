"""One run at a time in a results folder."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbkit.errors import StoreError, StoreLockedError

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = ["FolderLock"]

_GUARD_S = 5.0  # the guard is held for milliseconds
_POLL_S = 0.1


class FolderLock:
    """The lock of a results folder: the operating system's, so a killed process releases it.

    Beside the lock lies a note that says who holds it. Where the lock outlives its holder (a
    forked child still has it open, or the file system knows only lock files that stay behind), the
    note shows that the holder is dead, and the lock is replaced. A guard lock makes taking the
    lock and writing the note one step, so that two waiting runs never replace it at once.

    Reentrant: a second `hold` of the same object succeeds at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / ".lock"
        self._owner_path = folder / ".lock-owner.json"
        self._lock: BaseFileLock | None = None
        self._depth = 0

    @contextmanager
    def hold(self, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the lock within a `with` block.

        Args:
            wait_s: how long to wait for another run (s); `math.inf` for ever.

        Raises:
            StoreLockedError: another run holds it.
            StoreError: the folder cannot be made or written.
        """
        if self._depth == 0:
            self._lock = self._take(wait_s)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._lock is not None:
                with suppress(OSError):
                    self._owner_path.unlink(missing_ok=True)
                self._lock.release()
                self._lock = None

    def _take(self, wait_s: float) -> BaseFileLock:
        from filelock import FileLock, Timeout

        deadline = time.monotonic() + wait_s
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while True:
                guard = FileLock(self._folder / ".lock-guard", thread_local=False)
                with suppress(Timeout), guard.acquire(timeout=_GUARD_S):
                    lock = self._try()
                    if lock is None and self._owner_is_dead():
                        self._path.unlink(missing_ok=True)
                        lock = self._try()
                    if lock is not None:
                        try:
                            self._owner_path.write_text(json.dumps(_this_process()))
                        except OSError:
                            lock.release()
                            raise
                        return lock
                left = deadline - time.monotonic()
                if left <= 0:
                    raise StoreLockedError(self._message(wait_s))
                time.sleep(min(_POLL_S, left))
        except OSError as error:
            raise StoreError(
                f"cannot use {self._folder} as the results folder: {error.strerror or error}; "
                "choose another with --out"
            ) from error

    def _try(self) -> BaseFileLock | None:
        from filelock import FileLock, Timeout

        lock = FileLock(self._path, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        return lock

    def _owner(self) -> dict[str, Any]:
        try:
            owner = json.loads(self._owner_path.read_text())
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}

    def _owner_is_dead(self) -> bool:
        """Whether the noted holder certainly is dead: one on another machine never is."""
        import psutil

        owner = self._owner()
        if owner.get("host") != _host() or not isinstance(owner.get("pid"), int):
            return False
        try:
            process = psutil.Process(owner["pid"])
            started = process.create_time()
            status = process.status()
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False
        reused = abs(started - float(owner.get("started", started))) > 1.0
        return reused or status == psutil.STATUS_ZOMBIE

    def _message(self, wait_s: float) -> str:
        owner = self._owner()
        who = "another process"
        if owner.get("pid") == os.getpid() and owner.get("host") == _host():
            who = f"this process itself (pid {owner['pid']})"
        elif "pid" in owner:
            who = f"another run (pid {owner['pid']} on {owner.get('node', '?')}"
            who += f", since {owner['since']})" if "since" in owner else ")"
        waited = f" after {wait_s:g} s of waiting" if wait_s > 0 else ""
        return (
            f"{self._folder} is in use by {who}{waited}; "
            "wait for it to end, or choose another folder with --out"
        )


def _host() -> str:
    """This machine and, on Linux, the container's own list of processes."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{platform.node()} {namespace}".strip()


def _this_process() -> dict[str, Any]:
    import psutil

    return {
        "pid": os.getpid(),
        "host": _host(),
        "node": platform.node(),
        "started": psutil.Process().create_time(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
