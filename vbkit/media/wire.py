"""Messages between a process and its worker processes: a JSON header and raw bytes.

A message is two unsigned 32-bit big-endian lengths, the header, then the payload. Nothing is
pickled.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

__all__ = ["Message", "WorkerProcess", "read_message", "serve", "write_message"]

Message = tuple[dict[str, Any], bytearray]

_LENGTHS = struct.Struct(">II")


def write_message(stream: BinaryIO, header: dict[str, Any], parts: Sequence[Any] = ()) -> None:
    """Write one message; `parts` are C-contiguous buffers that make up the payload."""
    views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
    text = json.dumps(header, default=lambda value: value.item()).encode()  # numpy's numbers
    stream.write(_LENGTHS.pack(len(text), sum(view.nbytes for view in views)) + text)
    for view in views:
        stream.write(view)
    stream.flush()


def read_message(stream: BinaryIO) -> Message | None:
    """The next message, or None at the end of the stream."""
    lengths = _read(stream, _LENGTHS.size)
    if lengths is None:
        return None
    header_size, payload_size = _LENGTHS.unpack(lengths)
    header = _read(stream, header_size)
    payload = _read(stream, payload_size)
    if header is None or payload is None:
        return None
    return json.loads(header), payload


def _read(stream: BinaryIO, size: int) -> bytearray | None:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            return None
        filled += count
    return data


class WorkerProcess:
    """A running `python -m MODULE ARGUMENT` that speaks these messages over its pipes.

    Attributes:
        inbox: what it says, message by message; None marks its end.

    Args:
        module: what to run.
        argument: its argument.
        environment: what differs from this process's environment.
    """

    def __init__(self, module: str, argument: str, environment: dict[str, str]) -> None:
        path = os.pathsep.join(dict.fromkeys(entry for entry in sys.path if entry))
        self.inbox: queue.Queue[Message | None] = queue.Queue(1)
        self._stopped = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, argument], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, bufsize=0,
            env={**os.environ, "PYTHONPATH": path, **environment})
        threading.Thread(target=self._pump, daemon=True).start()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, header: dict[str, Any]) -> None:
        """Give it a message; raises OSError where it is gone."""
        assert self._process.stdin is not None
        write_message(self._process.stdin, header)  # type: ignore[arg-type]

    def kill(self) -> None:
        """End it, now; its inbox says so."""
        if self.alive:
            self._process.kill()

    def stop(self) -> str:
        """End it and wait for that; in words, how it ended."""
        process = self._process
        self._stopped.set()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        deadline = time.monotonic() + 0.2
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            process.kill()
        process.wait()
        code = process.returncode
        if code >= 0:
            return f"ended early (exit status {code})"
        try:
            return f"crashed ({signal.Signals(-code).name})"
        except ValueError:
            return f"crashed (signal {-code})"

    def _pump(self) -> None:
        """Move messages into the inbox until it is stopped."""
        stdout = self._process.stdout
        assert stdout is not None
        with stdout:
            while not self._stopped.is_set():
                try:
                    message = read_message(stdout)  # type: ignore[arg-type]
                except (OSError, ValueError):
                    message = None
                while not self._stopped.is_set():
                    try:
                        self.inbox.put(message, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if message is None:
                    return


def serve() -> tuple[queue.SimpleQueue[dict[str, Any]], BinaryIO]:
    """Make this process a worker.

    It ends when its parent closes the pipe or goes away. Only messages go through the pipes: what
    a C library prints goes nowhere. Ctrl-C is left to the parent.

    Returns:
        The jobs that come in, and the stream to answer on.
    """
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    source = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    if not os.environ.get("VBKIT_DEBUG"):
        os.dup2(nowhere, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        while (message := read_message(source)) is not None:
            jobs.put(message[0])
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return jobs, out
