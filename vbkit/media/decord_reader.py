"""Read video with decord."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vbkit.errors import MediaError
from vbkit.media.index import VideoIndex, read_index
from vbkit.media.pyav_reader import gather, has_open_groups, video_info
from vbkit.media.sizes import decode_size, frames_per_batch
from vbkit.media.types import FrameBatch

__all__ = ["DecordReader"]


class DecordReader:
    """A `VideoReader` on decord.

    decord's timestamps are wrong for some files (H.264 in AVI), and it returned wrong frames for
    others (WMV, edit lists that hide frames, open groups of pictures). So times come from the
    container's packets, only MP4 and Matroska are read, and a file on whose frames decord and its
    packets do not agree is refused. decord shows frames that were concealed
    after damage as if they were whole: `damaged` counts those only that it failed on.

    Args:
        path: the file.
        options: `height`, `threads` and `tick`, as for `PyAVReader`.
        index: the file's index, where it was read before.

    Raises:
        MediaError: decord cannot read the file, or not exactly.
        ImportError: decord is not installed.
    """

    def __init__(
        self, path: Path, options: Mapping[str, Any] | None = None, index: VideoIndex | None = None
    ) -> None:
        import decord

        options = options or {}
        self._path = Path(path)
        self._index = index or read_index(self._path, options.get("tick") or (lambda: None))
        if self._index.rotation:
            raise MediaError(f"{path}: decord does not turn pictures")
        if not self._index.exact_seeks or has_open_groups(self._index):
            raise MediaError(f"{path}: decord does not find the frames of this file exactly")
        self._size = decode_size(self._index.width, self._index.height, options.get("height"))
        self._errors = (decord.DECORDError, RuntimeError)
        self._damaged = 0
        decord.logging.set_level(decord.logging.QUIET)
        try:
            self._reader = decord.VideoReader(
                str(path), width=self._size[0], height=self._size[1],
                num_threads=max(1, int(options.get("threads") or 1)),
            )
            theirs = self._reader.get_frame_timestamp(range(len(self._reader)))[:, 0]
        except (*self._errors, AssertionError) as error:
            raise MediaError(f"{path}: decord cannot read it ({type(error).__name__})") from None
        if not _knows(self._index, theirs.astype(np.float64)):
            raise MediaError(f"{path}: decord does not know the times of its frames")
        self.info = video_info(self._index, "decord")

    @property
    def damaged(self) -> int:
        return self._damaged

    def close(self) -> None:
        """Release the decoder."""
        self._reader = None

    def frames_at(self, times: Sequence[float]) -> Iterator[FrameBatch]:
        """The frames shown at `times`; see `VideoReader.frames_at`.

        Raises:
            ValueError: the times decrease.
            MediaError: no frame of the video can be decoded.
        """
        wanted = np.asarray(times, np.float64)
        if np.any(np.diff(wanted) < 0):
            raise ValueError("times must not decrease")
        frames = self._index.at(wanted)
        return gather(self._index, frames, self._decode(np.unique(frames)), self._size,
                      self._count_damaged, self._path)

    def _count_damaged(self, count: int) -> None:
        self._damaged += count

    def _decode(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray | None]]:
        step = frames_per_batch(*self._size)
        for start in range(0, len(wanted), step):
            chunk = wanted[start : start + step]
            try:
                pictures = self._reader.get_batch(chunk).asnumpy()
                yield from zip(chunk.tolist(), pictures, strict=True)
            except self._errors:
                for number in chunk.tolist():
                    try:
                        yield number, self._reader[number].asnumpy()
                    except (*self._errors, StopIteration):
                        yield number, None


def _knows(index: VideoIndex, theirs: np.ndarray) -> bool:
    """Whether decord numbers the frames as `index` does and knows when each is shown."""
    if len(theirs) != len(index.times):
        return False
    return any(  # decord counts from one or the other
        np.abs(theirs - index.times - shift).max() <= 5e-4
        for shift in (index.start_offset_s, 0.0)
    )
