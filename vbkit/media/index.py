"""What a container holds, read from its packets: which frames are presented, and when.

Reading packets decodes nothing and costs about a hundredth of decoding. Frame times come from here
for every reader, so that they agree whoever decodes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vbkit.errors import MediaError

__all__ = ["VideoIndex", "open_container", "read_index"]

_TIME_ERRORS = (OverflowError, ZeroDivisionError, ValueError)


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """The frames and packets of a file's main video stream.

    Args:
        stream: index of the stream in its container.
        times: (N,) float64, s, increasing: when each frame is presented; the first is 0.
        durations: (N,) float64, s.
        pts: (N,) int64, the frames' timestamps in the container, or None where the packets have
            none; then the n-th frame that is decoded is the n-th of `times`.
        packet_pts: (P,) int64 in the order of decoding; empty where `pts` is None.
        packet_key: (P,) bool, whether decoding can start at the packet.
        start_offset_s: the container's own time of the first presented frame.
        width, height: px, as presented.
        coded_width, coded_height: px, as decoded.
        rotation: degrees clockwise to turn a decoded frame by, a multiple of 90.
        codec: name of the codec.
        intra_only: whether every frame is decoded without any other.
        exact_seeks: whether the container has an index of its key frames.
        has_audio: whether there is a sound stream.
    """

    stream: int
    times: np.ndarray
    durations: np.ndarray
    pts: np.ndarray | None
    packet_pts: np.ndarray
    packet_key: np.ndarray
    start_offset_s: float
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation: int
    codec: str
    intra_only: bool
    exact_seeks: bool
    has_audio: bool

    @property
    def duration_s(self) -> float:
        return float(self.times[-1] + self.durations[-1])

    def at(self, times: np.ndarray) -> np.ndarray:
        """(M,) int64: the frame shown at each of `times` (s); the first and last beyond the ends.

        A microsecond of slack absorbs the rounding of times that were computed from frame times.
        """
        found = np.searchsorted(self.times, np.asarray(times, np.float64) + 1e-6, "right") - 1
        return np.clip(found, 0, len(self.times) - 1)


def _said(error: BaseException) -> str:
    """The short cause of an FFmpeg error, without path and number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def open_container(path: Path) -> Iterator[Any]:
    """An opened `av` container.

    Raises:
        MediaError: the file is missing, unreadable, empty or no media file.
    """
    import av

    av.logging.set_level(av.logging.PANIC)
    try:
        if path.stat().st_size == 0:
            raise MediaError(f"{path}: the file is empty")
        container = av.open(str(path), metadata_errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(f"{path}: no such file") from None
    except PermissionError:
        raise MediaError(f"{path}: no permission to read it") from None
    except IsADirectoryError:
        raise MediaError(f"{path}: is a folder, not a file") from None
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{path}: not a video that can be read ({_said(error)})") from None
    try:
        yield container
    finally:
        container.close()


def main_video_stream(container: Any) -> Any:
    """The stream that players show, or None; a cover picture of a sound file is no video."""
    from av.stream import Disposition

    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        return None
    return stream


def stream_at(container: Any, number: int, path: Path) -> Any:
    """The stream with a number that was found before.

    Raises:
        MediaError: it is not there this time, as happens with damaged files.
    """
    if number >= len(container.streams) or container.streams[number].type != "video":
        raise MediaError(f"{path}: damaged: its streams cannot be told apart")
    return container.streams[number]


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream up to its end or to where damage stops reading, then an empty one."""
    import av

    try:
        yield from container.demux(stream)
    except (av.FFmpegError, IndexError):  # IndexError: a stream that appears only now
        yield av.Packet()


def _first_frame(container: Any, stream: Any) -> Any:
    import av

    for packet in packets(container, stream):
        try:
            for frame in stream.codec_context.decode(packet if packet.size else None):
                return frame
        except av.FFmpegError:
            continue
    return None


def _pixel_aspect(stream: Any) -> float:
    for aspect in (stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio):
        try:
            if aspect and 0.125 <= float(aspect) <= 8:
                return float(aspect)
        except _TIME_ERRORS:
            continue
    return 1.0


def _scan_packets(
    path: Path, number: int, tick: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """pts, duration, keyframe and hidden of each packet, or None where a packet has no pts."""
    pts, durations = array("q"), array("q")  # not lists: hours of video have a million packets
    keys, hidden = bytearray(), bytearray()
    with open_container(path) as container:
        stream = stream_at(container, number, path)
        vp8 = stream.codec_context.name == "vp8"
        for packet in packets(container, stream):
            if not packet.size:
                continue
            if packet.pts is None:
                return None
            # VP8 keeps frames that are only referred to in packets of their own.
            pts.append(packet.pts)
            durations.append(packet.duration or 0)
            keys.append(packet.is_keyframe)
            hidden.append(packet.is_discard or (vp8 and not memoryview(packet)[0] & 0x10))
            if len(pts) % 512 == 0:
                tick()
    if not pts:
        return None
    flags = (np.frombuffer(keys, np.uint8) > 0, np.frombuffer(hidden, np.uint8) > 0)
    return (np.array(pts, np.int64), np.array(durations, np.int64), *flags)


def _scan_frames(
    path: Path, number: int, tick: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray]:
    """pts and duration of each frame, by decoding all: for containers whose packets have no pts."""
    rows: list[tuple[int | None, int]] = []
    with open_container(path) as container:
        stream = stream_at(container, number, path)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        step = max(1, round(1 / (rate * stream.time_base)))
        for frames in decode_packets(container, stream):
            rows += [(frame.pts, frame.duration or 0) for frame in frames]
            tick()
    # AVI stores the time of decoding: the times are right, but not in the order of the frames.
    known = sorted({row[0] for row in rows if row[0] is not None})
    if len(known) != len(rows):  # no timestamps: there is nothing but a rate
        first = known[0] if known else 0
        known = [first + i * step for i in range(len(rows))]
    return np.array(known, np.int64), np.array([row[1] for row in rows], np.int64)


def decode_packets(container: Any, stream: Any) -> Iterator[list[Any]]:
    """The decoded frames of each packet; a packet that cannot be decoded gives none."""
    import av

    for packet in packets(container, stream):
        try:
            yield stream.codec_context.decode(packet if packet.size else None)
        except av.FFmpegError:
            yield []


def read_index(path: Path, tick: Callable[[], None] = lambda: None) -> VideoIndex:
    """Index the main video stream of a file.

    Args:
        path: the file.
        tick: called now and then, to show that reading goes on.

    Raises:
        MediaError: the file is missing, unreadable or empty, or has no picture in it.
    """
    with open_container(path) as container:
        stream = main_video_stream(container)
        has_audio = bool(container.streams.audio)
        if stream is None:
            what = "there is sound in it, but no picture" if has_audio else "no video stream in it"
            raise MediaError(f"{path}: {what}")
        if stream.codec_context is None:
            raise MediaError(f"{path}: its video codec is not supported")
        number, time_base = stream.index, stream.time_base
        codec = stream.codec_context.name
        intra_only = bool(getattr(stream.codec_context.codec, "intra_only", False))
        rate = stream.average_rate or stream.guessed_rate
        in_decoding_order = container.format.name == "avi" and stream.codec_context.has_b_frames
        exact_seeks = "mp4" in container.format.name or "matroska" in container.format.name
        frame = _first_frame(container, stream)
        if frame is None:
            raise MediaError(f"{path}: no frame of it could be decoded")
        coded = frame.width, frame.height
        rotation = -round(frame.rotation / 90) * 90 % 360
        width, height = max(1, round(coded[0] * _pixel_aspect(stream))), coded[1]
    tick()
    scanned = None if in_decoding_order else _scan_packets(path, number, tick)
    pts: np.ndarray | None
    if scanned is not None:
        packet_pts, duration, packet_key, hidden = scanned
        if frame.pts is not None:  # a cut may begin with frames whose references are missing
            hidden |= packet_pts < frame.pts
        if hidden.all():
            hidden[:] = False
        pts, order = np.unique(packet_pts[~hidden], return_index=True)
        duration = duration[~hidden][order]
    else:
        pts, duration = _scan_frames(path, number, tick)
        packet_pts, packet_key = np.empty(0, np.int64), np.empty(0, bool)
    if not len(pts):
        raise MediaError(f"{path}: no frame of it could be decoded")
    seconds = float(time_base)
    times = (pts - pts[0]) * seconds
    gaps = np.diff(times)
    last = float(duration[-1]) * seconds
    usual = float(np.median(gaps)) if len(gaps) else (1 / float(rate) if rate else 0.04)
    if not 0 < last <= max(10.0, 100 * usual):  # containers that do not know write 0 or nonsense
        last = usual
    if rotation % 180:
        width, height = height, width
    return VideoIndex(
        stream=number, times=times, durations=np.append(gaps, last),
        pts=pts if scanned is not None else None, packet_pts=packet_pts, packet_key=packet_key,
        start_offset_s=float(pts[0]) * seconds, width=width, height=height,
        coded_width=coded[0], coded_height=coded[1], rotation=rotation, codec=codec,
        intra_only=intra_only, exact_seeks=exact_seeks, has_audio=has_audio,
    )
