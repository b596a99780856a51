"""Decode videos in processes of their own, ahead of who consumes them.

::

    with DecodePool() as pool:
        for path in paths:
            pool.submit(DecodeJob(key=str(path), path=path))
        for video in pool.results():            # in the order of submission
            try:
                video.open()                    # info and clip_times are known from here on
                for batch in video.clips():     # ClipBatch: frames (N, F, H, W, 3) uint8
                    ...
            except MediaError as error:
                ...                             # costs this video only

A worker that says nothing for `timeout_s`, or dies, is replaced; its video raises `MediaError`.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from vbkit.errors import MediaError
from vbkit.media.types import Segment, Transcript, VideoInfo
from vbkit.media.views import PLAIN, View
from vbkit.media.wire import WorkerProcess

__all__ = ["ClipBatch", "DecodeJob", "DecodePool", "DecodedVideo"]

_QUEUED_BATCHES = 4  # of a video, each of about 8 MB
_AHEAD_BYTES = 64 << 20  # decoded and not yet consumed, of videos after the one being consumed
_START_S = 60.0


@dataclass(frozen=True)
class DecodeJob:
    """A video to decode into clips.

    Args:
        key: the caller's own name for it; not interpreted.
        path: the file.
        kind: `"video"` or `"image"`; the reader is chosen by the file itself.
        clip_s: length of a clip (s).
        frames_per_clip: frames of a clip, evenly spaced in it.
        grey_clips: only these clips, by rising index, in small grey squares (`vbkit.media.grey`);
            None for all clips, as they are.
        grey_size: side of a square (px).
        height: the frames' short side (px); the long side keeps the aspect up to 4:1.
        keyframes: whether to make a JPEG picture of clips.
        max_keyframes: at most so many a video, spread evenly.
        keyframe_width: px, at most.
        embedded_transcript: whether to read subtitles inside the file, too.
        reader: one of `vbkit.media.open.READERS`, or None for what suits the file.
        decode: False to open the file only, for its info and subtitles; there are no clips then.
        view: how the video is seen; its clips and their times are the view's.
    """

    key: str
    path: Path
    kind: Literal["video", "image"] = "video"
    clip_s: float = 1.5
    frames_per_clip: int = 4
    grey_clips: tuple[int, ...] | None = None
    grey_size: int = 112
    height: int = 224
    keyframes: bool = True
    max_keyframes: int = 240
    keyframe_width: int = 320
    embedded_transcript: bool = False
    reader: str | None = None
    decode: bool = True
    view: View = PLAIN

    def __post_init__(self) -> None:
        if self.clip_s <= 0:
            raise ValueError(f"clip_s must be positive, got {self.clip_s}")
        for name in ("frames_per_clip", "grey_size", "height", "max_keyframes", "keyframe_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.grey_clips is not None:
            if self.keyframes:
                raise ValueError("there are no keyframes of grey_clips")
            if list(self.grey_clips) != sorted({*self.grey_clips}) or min(self.grey_clips,
                                                                          default=0) < 0:
                raise ValueError("grey_clips must be rising indices of clips")


@dataclass(frozen=True)
class ClipBatch:
    """Some consecutive clips of a video.

    Args:
        first: index of the first of them.
        frames: (N, F, H, W, 3) uint8, RGB; (N, F, S, S), grey, where the job names `grey_clips`,
            of which `first` is then an index.
    """

    first: int
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


class DecodedVideo:
    """A video that is being decoded.

    Attributes:
        job: what was submitted.
        keyframes: (time in s, JPEG) pairs, filled while the clips are consumed.
        damaged: frames that could not be decoded; known once the clips are consumed.
    """

    def __init__(self, job: DecodeJob, pool: DecodePool) -> None:
        self.job = job
        self.keyframes: list[tuple[float, bytes]] = []
        self.damaged = 0
        self._pool = pool
        self._messages: queue.Queue[tuple[dict[str, Any], bytearray]] = queue.Queue(_QUEUED_BATCHES)
        self._info: VideoInfo | None = None
        self._clip_times: np.ndarray | None = None
        self._transcript: Transcript | None = None
        self._error: MediaError | None = None
        self._ended = False
        self._abandoned = threading.Event()

    @property
    def info(self) -> VideoInfo:
        """What the container says; waits for it."""
        self.open()
        assert self._info is not None
        return self._info

    @property
    def clip_times(self) -> np.ndarray:
        """(C, 2) float64, s: start and end of each clip; waits for them."""
        self.open()
        assert self._clip_times is not None
        return self._clip_times

    @property
    def embedded_transcript(self) -> Transcript | None:
        """Subtitles inside the file, where the job asked for them; waits for them."""
        self.open()
        return self._transcript

    def open(self) -> VideoInfo:
        """Wait until the file is opened.

        Raises:
            MediaError: it cannot be.
        """
        if self._info is None:
            header, payload = self._next()
            self._info = VideoInfo(**header["info"])
            if header["transcript"] is not None:
                found = header["transcript"]
                segments = tuple(Segment(*segment) for segment in found["segments"])
                self._transcript = Transcript(
                    segments, "embedded", found["language"], tuple(found["notes"])
                )
            self._clip_times = np.frombuffer(payload, np.float64).reshape(-1, 2)
        return self._info

    def clips(self) -> Iterator[ClipBatch]:
        """The clips, in order, in batches of bounded size; to be consumed once.

        Raises:
            MediaError: the rest cannot be decoded.
        """
        self.open()
        while not self._ended:
            header, payload = self._next()
            if header["type"] == "end":
                self.damaged = header["damaged"]
                self._ended = True
                return
            shape = tuple(header["shape"])
            size = int(np.prod(shape))
            offset = size
            for moment, length in header["keyframes"]:
                self.keyframes.append((moment, bytes(payload[offset : offset + length])))
                offset += length
            frames = np.frombuffer(payload, np.uint8, size).reshape(shape)
            yield ClipBatch(header["first"], frames)

    def _next(self) -> tuple[dict[str, Any], bytearray]:
        if self._error is not None:
            raise self._error
        if self._abandoned.is_set():
            raise MediaError(f"{self.job.path}: its decoding was given up")
        while True:
            try:
                header, payload = self._messages.get(timeout=0.5)
                break
            except queue.Empty:
                if self._abandoned.is_set():
                    raise MediaError(f"{self.job.path}: its decoding was given up") from None
        self._pool._consumed(len(payload))
        if header["type"] == "error":
            self._error = MediaError(header["message"])
            raise self._error
        return header, payload

    def _put(self, header: dict[str, Any], payload: bytearray) -> bool:
        """Hand a message over, when there is room; False where nobody wants it any more."""
        while not self._abandoned.is_set():
            try:
                self._messages.put((header, payload), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


class DecodePool:
    """Decodes videos in processes of their own, in the order of submission.

    Args:
        workers: processes, each decoding one video at a time.
        timeout_s: a worker that says nothing for so long is killed.
        threads: decoder threads of each worker; 0 chooses: one where cores are few, because
            decoding on several threads costs more in all.
        plugin_openers: whether the workers ask plugins (`vbkit_open_video`), or a sequence of
            `"module:function"` to ask instead. Loading plugins costs start-up time, so pass False
            where none has the hook.
    """

    def __init__(
        self,
        workers: int = 1,
        timeout_s: float = 60.0,
        threads: int = 0,
        plugin_openers: bool | Sequence[str] = True,
    ) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._timeout_s = timeout_s
        self._threads = threads or max(1, min(4, (os.cpu_count() or 1) // (4 * workers)))
        openers = plugin_openers if isinstance(plugin_openers, bool) else list(plugin_openers)
        self._settings = json.dumps({"plugin_openers": openers})
        self._lock = threading.Condition()
        self._waiting: deque[DecodedVideo] = deque()  # not yet given to a worker
        self._unyielded: deque[DecodedVideo] = deque()
        self._current: DecodedVideo | None = None
        self._ahead = 0  # bytes decoded and not consumed
        self._closed = False
        self._lanes = [_Lane(self) for _ in range(workers)]

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, job: DecodeJob) -> None:
        """Queue a job. Decoding starts at once, bounded in memory, and ahead of `results`."""
        video = DecodedVideo(job, self)
        with self._lock:
            if self._closed:
                raise ValueError("the pool is closed")
            self._waiting.append(video)
            self._unyielded.append(video)
            self._lock.notify_all()

    def results(self) -> Iterator[DecodedVideo]:
        """The submitted videos, in order, until none is left; more may be submitted meanwhile.

        A video whose clips are not consumed before the next is asked for is given up.
        """
        while True:
            with self._lock:
                if self._current is not None:
                    self._give_up(self._current)
                    self._current = None
                if not self._unyielded or self._closed:
                    return
                video = self._current = self._unyielded.popleft()
                self._lock.notify_all()
            yield video

    def decode(self, job: DecodeJob) -> DecodedVideo:
        """Decode one video, where nothing else is submitted."""
        self.submit(job)
        for video in self.results():
            if video.job is job:
                return video
        raise ValueError("the pool is closed")

    def close(self) -> None:
        """End the workers. Videos that are not consumed are given up."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for video in (*self._unyielded, *([self._current] if self._current else [])):
                self._give_up(video)
            self._waiting.clear()
            self._lock.notify_all()
        for lane in self._lanes:
            lane.kill()
        for lane in self._lanes:
            lane.join()

    def _give_up(self, video: DecodedVideo) -> None:
        if not video._ended and video._error is None:
            video._abandoned.set()
        while True:
            try:
                _, payload = video._messages.get_nowait()
            except queue.Empty:
                break
            self._ahead -= len(payload)

    def _consumed(self, size: int) -> None:
        with self._lock:
            self._ahead -= size
            self._lock.notify_all()

    def _take(self) -> DecodedVideo | None:
        """The next video to decode, once there is one and memory for it; None when closed."""
        with self._lock:
            while not self._closed:
                if self._waiting:
                    video = self._waiting[0]
                    if video._abandoned.is_set():  # `_unyielded` may hold nothing any more
                        self._waiting.popleft()
                        continue
                    next_up = video is self._current or (
                        self._current is None and video is self._unyielded[0]
                    )
                    if next_up or self._ahead < _AHEAD_BYTES:
                        self._waiting.popleft()
                        return video
                self._lock.wait()
            return None

    def _deliver(self, video: DecodedVideo, header: dict[str, Any], payload: bytearray) -> bool:
        with self._lock:
            self._ahead += len(payload)
        if video._put(header, payload):
            return True
        self._consumed(len(payload))
        return False


class _Lane:
    """One worker process and the thread that feeds it."""

    def __init__(self, pool: DecodePool) -> None:
        self._pool = pool
        self._process: WorkerProcess | None = None
        self._thread = threading.Thread(target=self._run, name="vbkit-decode", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(timeout=5)

    def kill(self) -> None:
        """End the process, now."""
        process = self._process
        if process is not None:
            process.kill()

    def _run(self) -> None:
        while (video := self._pool._take()) is not None:
            job = video.job
            try:
                message = self._decode(video)
            except Exception as error:  # the lane must live: the next video needs it
                message = f"{job.path}: decoding failed ({type(error).__name__}: {error})"
            if message is not None:
                self._pool._deliver(video, {"type": "error", "message": message}, bytearray())
        self._stop()

    def _decode(self, video: DecodedVideo) -> str | None:
        """Decode a video; what was wrong where its worker cannot say so itself."""
        job = video.job
        if self._process is None or not self._process.alive:
            failure = self._start()
            if failure is not None:
                return f"{job.path}: {failure}"
        process = self._process
        assert process is not None
        try:
            process.send({
                "path": str(job.path), "clip_s": job.clip_s,
                "frames_per_clip": job.frames_per_clip, "height": job.height,
                "grey_clips": job.grey_clips, "grey_size": job.grey_size,
                "keyframes": job.keyframes, "max_keyframes": job.max_keyframes,
                "keyframe_width": job.keyframe_width,
                "embedded_transcript": job.embedded_transcript, "reader": job.reader,
                "decode": job.decode, "view": asdict(job.view), "threads": self._pool._threads,
            })
        except OSError:
            return f"{job.path}: the decoder {self._stop()}"
        while True:
            try:
                message = process.inbox.get(timeout=self._pool._timeout_s)
            except queue.Empty:
                self._stop()
                return (f"{job.path}: the decoder hung: nothing came for "
                        f"{self._pool._timeout_s:g} s, so it was stopped")
            if message is None:
                return f"{job.path}: the decoder {self._stop()}"
            header, payload = message
            if header["type"] == "tick":
                continue
            if not self._pool._deliver(video, header, payload):
                if header["type"] not in ("end", "error"):
                    self._stop()  # given up: a new process is cheaper than decoding the rest
                return None
            if header["type"] in ("end", "error"):
                return None

    def _start(self) -> str | None:
        """Start the process; what was wrong where it does not come up."""
        self._stop()
        process = self._process = WorkerProcess(
            "vbkit.media.worker", self._pool._settings,
            {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
        if self._pool._closed:
            self._stop()
            return "the pool was closed"
        try:
            message = process.inbox.get(timeout=max(_START_S, self._pool._timeout_s))
        except queue.Empty:
            self._stop()
            return "the decoding process did not start; VBKIT_DEBUG=1 shows what it prints"
        if message is None:
            return (f"the decoding process did not start: the decoder {self._stop()}; "
                    "VBKIT_DEBUG=1 shows what it prints")
        return None

    def _stop(self) -> str:
        """End the process, if there is one; in words, how it ended."""
        process, self._process = self._process, None
        return process.stop() if process is not None else "was stopped"
