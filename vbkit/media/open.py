"""Open a file with the reader that suits it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vbkit.errors import MediaError
from vbkit.media.index import read_index
from vbkit.media.kinds import media_kind
from vbkit.media.types import FrameBatch, VideoReader

__all__ = ["READERS", "Opener", "open_video", "raw_frames"]

Opener = Callable[[Path, Mapping[str, Any]], VideoReader | None]

READERS = ("pyav", "decord")
"""The built-in readers of video, in the order in which they are tried.

PyAV is first because decord was measured to be no faster on any H.264 file, and to take 1.4 times
as long where there are B-frames; because PyAV tells which frames are damaged; and because decord
returns wrong frames for edit lists, open groups of pictures and some containers.
"""

_log = logging.getLogger("vbkit")


def open_video(
    path: str | Path,
    options: Mapping[str, Any] | None = None,
    hook_openers: Sequence[Opener] = (),
) -> VideoReader:
    """Open a video or picture.

    Args:
        path: the file.
        options: `height`, the short side of the frames in pixels (None: as they are); `threads`,
            decoder threads; `reader`, one of `READERS`, to have no other.
        hook_openers: asked first, in order; each returns a reader, or None to decline. One that
            raises `MediaError` refuses the file, any other exception is logged.

    Raises:
        MediaError: nothing can read the file. The message is one line that names it.
    """
    path = Path(path)
    options = dict(options or {})
    for opener in hook_openers:
        try:
            reader = opener(path, options)
        except MediaError:
            raise
        except Exception as error:
            _log.warning("%s: a plugin could not open it (%s: %s)", path, type(error).__name__,
                         error)
            continue
        if reader is not None:
            return reader
    if media_kind(path) == "image":
        from vbkit.media.image_reader import ImageReader

        return ImageReader(path, options)
    index = read_index(path, options.get("tick") or (lambda: None))
    chosen = options.get("reader")
    if chosen is not None and chosen not in READERS:
        raise ValueError(f"reader {chosen!r} is none of {', '.join(READERS)}")
    failed: MediaError | None = None
    for name in (chosen,) if chosen else READERS:
        try:
            if name == "pyav":
                from vbkit.media.pyav_reader import PyAVReader

                return PyAVReader(path, options, index)
            from vbkit.media.decord_reader import DecordReader

            return DecordReader(path, options, index)
        except MediaError as error:
            failed = failed or error
        except (ImportError, OSError) as error:
            failed = failed or MediaError(f"{path}: decord cannot be loaded ({error})")
    assert failed is not None
    raise failed


def raw_frames(
    path: str | Path,
    *,
    times: Sequence[float] | None = None,
    fps: float | None = None,
    height: int | None = None,
    hook_openers: Sequence[Opener] = (),
) -> Iterator[FrameBatch]:
    """Decode frames in this process, lazily: for heads that bring their own model.

    Args:
        path: the file.
        times: s, not decreasing; or
        fps: frames per second, evenly spaced from half a step on.
        height: short side in pixels; None leaves frames as they are.
        hook_openers: as for `open_video`.

    Raises:
        MediaError: the file cannot be read.
        ValueError: neither or both of `times` and `fps` are given.
    """
    if (times is None) == (fps is None):
        raise ValueError("give either times or fps")
    reader = open_video(path, {"height": height}, hook_openers)
    try:
        if times is None:
            assert fps is not None
            count = max(1, round(reader.info.duration_s * fps))
            times = ((np.arange(count) + 0.5) / fps).tolist()
        yield from reader.frames_at(times)
    finally:
        reader.close()
