"""Messages between a process and its decoding process: a JSON header and raw bytes.

A message is two unsigned 32-bit big-endian lengths, the header, then the payload. Nothing is
pickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

__all__ = ["read_message", "write_message"]

_LENGTHS = struct.Struct(">II")


def write_message(stream: BinaryIO, header: dict[str, Any], parts: Sequence[Any] = ()) -> None:
    """Write one message; `parts` are C-contiguous buffers that make up the payload."""
    views = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
    text = json.dumps(header, default=lambda value: value.item()).encode()  # numpy's numbers
    stream.write(_LENGTHS.pack(len(text), sum(view.nbytes for view in views)) + text)
    for view in views:
        stream.write(view)
    stream.flush()


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytearray] | None:
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
