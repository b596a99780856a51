"""Read video with PyAV, decoding only what the wanted frames need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vbkit.errors import MediaError
from vbkit.media.index import (
    VideoIndex,
    decode_packets,
    open_container,
    packets,
    read_index,
    stream_at,
)
from vbkit.media.sizes import decode_size, frames_per_batch
from vbkit.media.types import FrameBatch, VideoInfo

__all__ = ["PyAVReader"]

_SKIPPING = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})
# decoders that obey `skip_frame` packet by packet; libdav1d takes it once and for all

_MIN_SKIP = 100  # packets; a shorter stretch costs less to decode than to jump over


class PyAVReader:
    """A `VideoReader` on PyAV.

    Frames that nobody asked for are never scaled, and not decoded either where no other frame
    refers to them. Memory is bounded by one batch.

    Args:
        path: the file.
        options: `height`, the short side of the frames in pixels (None: as they are); `threads`,
            decoder threads (1); `tick`, called now and then while a file is indexed.
        index: the file's index, where it was read before.

    Raises:
        MediaError: the file has no picture that can be decoded.
    """

    def __init__(
        self, path: Path, options: Mapping[str, Any] | None = None, index: VideoIndex | None = None
    ) -> None:
        options = options or {}
        self._path = Path(path)
        self._tick = options.get("tick") or (lambda: None)
        self._index = index or read_index(self._path, self._tick)
        self._threads = max(1, int(options.get("threads") or 1))
        self._size = decode_size(self._index.width, self._index.height, options.get("height"))
        self._damaged = 0
        self.info = video_info(self._index, "pyav")

    @property
    def damaged(self) -> int:
        return self._damaged

    def close(self) -> None:
        """Nothing stays open between calls of `frames_at`."""

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
        """(index, picture) of the wanted frames in order; a damaged one is None or left out."""
        from av.video.reformatter import VideoReformatter

        scaler = VideoReformatter()
        wanted_set = set(wanted.tolist())
        for number, frame in self._decoded(wanted):
            if number not in wanted_set:
                continue
            if frame.is_corrupt:
                yield number, None
            else:
                yield number, self._picture(scaler, frame)
            if number == wanted[-1]:
                return

    def _decoded(self, wanted: np.ndarray) -> Iterator[tuple[int, Any]]:
        """(index, decoded frame), in order of presentation: at least all that can be of `wanted`.
        """
        index = self._index
        with open_container(self._path) as container:
            stream = stream_at(container, index.stream, self._path)
            stream.thread_type = "FRAME" if self._threads > 1 else "SLICE"
            stream.codec_context.thread_count = self._threads
            if index.pts is None:
                # The packets carry no timestamps: frames are counted.
                yield from enumerate(
                    frame for frames in decode_packets(container, stream) for frame in frames
                )
                return
            pts = index.pts
            for frames in self._selected(container, stream, pts[wanted]):
                for frame in frames:
                    if frame.pts is None:
                        continue
                    number = int(np.searchsorted(pts, frame.pts))
                    if number < len(pts) and pts[number] == frame.pts:
                        yield number, frame

    def _selected(self, container: Any, stream: Any, wanted: np.ndarray) -> Iterator[list[Any]]:
        """Decode the packets that the frames with timestamps `wanted` need.

        Frames that no other frame refers to and that are not wanted are skipped by the decoder
        (`skip_frame`); long stretches up to the next key frame are not given to it at all.
        """
        import av

        context = stream.codec_context
        index = self._index
        needed = needed_packets(index, wanted)
        targets = set(wanted.tolist())
        may_skip = index.codec in _SKIPPING
        skipping, jumped = False, False
        number = -1
        for packet in packets(container, stream):
            self._tick()
            try:
                if not packet.size:
                    yield context.decode(None)
                    return
                number += 1
                if number < len(needed) and not needed[number]:
                    if not jumped:
                        jumped = True
                        yield context.decode(None)
                    continue
                if jumped:
                    context.flush_buffers()
                    jumped = False
                if may_skip and skipping == (packet.pts in targets):
                    skipping = not skipping
                    context.skip_frame = "NONREF" if skipping else "DEFAULT"
                yield context.decode(packet)
            except av.FFmpegError:
                yield []

    def _picture(self, scaler: Any, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8, RGB, turned and scaled."""
        width, height = self._size
        turns = self._index.rotation // 90
        if turns % 2:
            width, height = height, width
        enlarged = width > frame.width or height > frame.height
        picture = scaler.reformat(
            frame, width, height, "rgb24", interpolation="BICUBIC" if enlarged else "AREA"
        ).to_ndarray()
        return np.ascontiguousarray(np.rot90(picture, -turns)) if turns else picture


def _groups(index: VideoIndex) -> list[tuple[int, int]]:
    """The groups of pictures: (first packet, one after the last), in order of decoding."""
    starts = np.flatnonzero(index.packet_key).tolist()
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    return list(zip(starts, [*starts[1:], len(index.packet_pts)], strict=True))


def has_open_groups(index: VideoIndex) -> bool:
    """Whether frames shown before a key frame that they follow refer to the group before it."""
    pts = index.packet_pts
    return any((pts[start:end] < pts[start]).any() for start, end in _groups(index)[1:])


def needed_packets(index: VideoIndex, wanted: np.ndarray) -> np.ndarray:
    """(P,) bool: which packets, in order of decoding, the frames with timestamps `wanted` need."""
    pts = index.packet_pts
    is_wanted = np.isin(pts, wanted)
    if index.intra_only:
        return is_wanted
    needed = np.zeros(len(pts), bool)
    before = 0
    for start, end in _groups(index):
        inside = start + np.flatnonzero(is_wanted[start:end])
        if len(inside):
            needed[start : inside[-1] + 1] = True
            if (pts[inside] < pts[start]).any():  # an open group
                needed[before:start] = True
        before = start
    unneeded = np.flatnonzero(~needed)
    for run in np.split(unneeded, np.flatnonzero(np.diff(unneeded) > 1) + 1):
        if len(run) and run[-1] != len(pts) - 1 and len(run) < _MIN_SKIP:
            needed[run] = True
    return needed


def video_info(index: VideoIndex, reader: str) -> VideoInfo:
    """The `VideoInfo` of an indexed file."""
    return VideoInfo(
        duration_s=index.duration_s, width=index.width, height=index.height,
        n_frames=len(index.times), start_offset_s=index.start_offset_s, codec=index.codec,
        rotation=index.rotation, has_audio=index.has_audio, reader=reader,
    )


def gather(
    index: VideoIndex,
    frames: np.ndarray,
    pictures: Iterator[tuple[int, np.ndarray | None]],
    size: tuple[int, int],
    count_damaged: Callable[[int], None],
    path: Path,
) -> Iterator[FrameBatch]:
    """Batches of the frames numbered `frames` (not decreasing) out of a stream of pictures.

    Numbers that `pictures` leaves out, or gives no picture for, are damaged: the last good picture
    stands in for them, or the first good one where there is none before.
    """
    width, height = size
    per_batch = frames_per_batch(width, height)
    data = np.empty((0, height, width, 3), np.uint8)
    filled = 0
    good, good_number = None, -1
    last_damaged = -1
    ahead = next(pictures, None)
    for position, frame in enumerate(frames.tolist()):
        while ahead is not None and ahead[0] <= frame:
            if ahead[1] is not None:
                good_number, good = ahead
            ahead = next(pictures, None)
        if good_number != frame and frame != last_damaged:
            last_damaged = frame
            count_damaged(1)
        while good is None and ahead is not None and ahead[1] is None:
            ahead = next(pictures, None)
        picture = ahead[1] if good is None and ahead is not None else good
        if picture is None:
            raise MediaError(f"{path}: no frame of it could be decoded")
        if not len(data):
            data = np.empty((min(per_batch, len(frames) - position), height, width, 3), np.uint8)
        data[filled] = picture
        filled += 1
        if filled == len(data):
            shown = frames[position + 1 - filled : position + 1]
            yield FrameBatch(data, index.times[shown], index.durations[shown])
            data, filled = data[:0], 0
