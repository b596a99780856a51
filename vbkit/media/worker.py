"""The decoding process: `python -m vbkit.media.worker`.

It reads jobs from stdin and writes frames to stdout (`vbkit.media.wire`), one job at a time, and
ends when stdin closes, so it does not outlive its parent. What a file does to a decoder stays in
here: a hang or a crash costs one process, and one video. It imports no torch.

Messages out: `ready`; then for each job `tick` (still alive), `info` (payload: clip times,
float64), `clips` (payload: frames, motion pictures, then JPEG keyframes), and at last `end` or
`error`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vbkit.errors import MediaError, VbkitError
from vbkit.media.grey import grey_squares
from vbkit.media.open import Opener, open_video
from vbkit.media.sizes import clip_grid, clip_sample_times, clips_per_batch
from vbkit.media.types import VideoReader
from vbkit.media.wire import serve, write_message
from vbkit.specs import load_object

__all__ = ["keyframe_clips", "main"]

_TICK_S = 1.0


def keyframe_clips(n_clips: int, most: int) -> np.ndarray:
    """Which clips a keyframe is saved of: all, or `most` of them spread evenly."""
    if n_clips <= most:
        return np.arange(n_clips)
    return np.unique(np.round(np.linspace(0, n_clips - 1, max(1, most))).astype(int))


class _Output:
    """Writes messages, and ticks at most once a second."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._last = 0.0

    def send(self, header: dict[str, Any], parts: Sequence[Any] = ()) -> None:
        write_message(self._stream, header, parts)
        self._last = time.monotonic()

    def tick(self) -> None:
        if time.monotonic() - self._last > _TICK_S:
            self.send({"type": "tick"})


def _jpeg(frame: np.ndarray, width: int) -> bytes:
    from PIL import Image

    picture = Image.fromarray(frame)
    if picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _embedded(path: Path, start_offset_s: float) -> dict[str, Any] | None:
    from vbkit.media.transcripts import embedded_transcript

    try:
        found = embedded_transcript(path, start_offset_s)
    except MediaError:
        return None  # what a plugin alone can open
    if found is None:
        return None
    return {
        "segments": [(s.text, *((s.start_s, s.end_s) if s.timed else ())) for s in found.segments],
        "language": found.language, "notes": found.notes,
    }


def _decode(job: dict[str, Any], openers: Sequence[Opener], out: _Output) -> None:
    options = {"height": job["height"], "threads": job["threads"], "reader": job["reader"],
               "tick": out.tick}
    reader = open_video(Path(job["path"]), options, openers)
    with contextlib.closing(reader):
        info = reader.info
        clip_times = clip_grid(info.duration_s, job["clip_s"])
        subtitles = None
        if job["embedded_transcript"]:
            subtitles = _embedded(Path(job["path"]), info.start_offset_s)
        out.send(
            {"type": "info", "transcript": subtitles, "info": dataclasses.asdict(info)},
            [clip_times],
        )
        if not job["decode"]:
            out.send({"type": "end", "damaged": 0})
            return
        key_clips = set()
        if job["keyframes"]:
            key_clips = set(keyframe_clips(len(clip_times), job["max_keyframes"]).tolist())
        first = 0
        for clips in _clips(job, reader, clip_times, out):
            clips.send(out, first, key_clips, job["keyframe_width"])
            first += len(clips.frames)
        if first != len(clip_times):
            raise MediaError(f"{job['path']}: the reader {info.reader or type(reader).__name__} "
                             f"gave frames for {first} of {len(clip_times)} clips")
        out.send({"type": "end", "damaged": reader.damaged})


@dataclass
class _Clips:
    """Whole clips: (N, F, H, W, 3) frames at (N, F) times, (N, T, S, S) motion pictures."""

    frames: np.ndarray
    times: np.ndarray
    motion: np.ndarray | None

    def send(self, out: _Output, first: int, key_clips: Collection[int], width: int) -> None:
        """Send them, with keyframes of those clips among them that are `key_clips`."""
        middle = self.frames.shape[1] // 2
        keyframes = [(float(self.times[i, middle]), _jpeg(clip[middle], width))
                     for i, clip in enumerate(self.frames) if first + i in key_clips]
        header = {"type": "clips", "first": first, "shape": self.frames.shape,
                  "motion": self.motion.shape if self.motion is not None else None,
                  "keyframes": [(moment, len(jpeg)) for moment, jpeg in keyframes]}
        arrays = [self.frames] if self.motion is None else [self.frames, self.motion]
        out.send(header, [*map(np.ascontiguousarray, arrays), *(jpeg for _, jpeg in keyframes)])


class _Rows:
    """Pictures that wait until their clips are whole."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self.count = 0

    def add(self, pictures: np.ndarray) -> None:
        self._parts.append(pictures)
        self.count += len(pictures)

    def take(self, count: int) -> np.ndarray:
        rows = np.concatenate(self._parts) if len(self._parts) > 1 else self._parts[0]
        self._parts = [rows[count:]]
        self.count -= count
        return rows[:count]


def _clips(job: dict[str, Any], reader: VideoReader, clip_times: np.ndarray,
           out: _Output) -> Iterator[_Clips]:
    """The clips of a job, some at a time, all out of one pass through the video.

    The frames of a clip and the pictures of its motion are asked for together, in the order of
    their times.
    """
    per_clip, moving, size = job["frames_per_clip"], job["motion_frames"], job["motion_size"]
    frame_times = clip_sample_times(clip_times, per_clip)
    times = np.concatenate([frame_times, clip_sample_times(clip_times, moving)], axis=1)
    order = np.argsort(times, axis=1, kind="stable")
    times, is_motion = np.take_along_axis(times, order, 1).ravel(), (order >= per_clip).ravel()
    frames, motion = _Rows(), _Rows()
    seen = first = 0
    shape: tuple[int, ...] = ()

    def take(count: int) -> _Clips:
        nonlocal first
        whole = _Clips(
            frames.take(count * per_clip).reshape(count, per_clip, *shape),
            frame_times[first : first + count],
            motion.take(count * moving).reshape(count, moving, size, size) if moving else None)
        first += count
        return whole

    for batch in reader.frames_at(times.tolist()):
        out.tick()
        shape = batch.data.shape[1:]
        chosen = is_motion[seen : seen + len(batch)]
        seen += len(batch)
        if seen > len(times):
            raise MediaError(f"{job['path']}: the reader {type(reader).__name__} gave more frames "
                             "than it was asked for")
        frames.add(batch.data[~chosen] if moving else batch.data)
        if moving:
            motion.add(grey_squares(batch.data[chosen], size))
        whole = min(rows.count // each for rows, each in ((frames, per_clip), (motion, moving))
                    if each)
        if whole >= clips_per_batch(shape[1], shape[0], per_clip, moving * size * size):
            yield take(whole)
    whole = seen // (per_clip + moving) - first
    if whole:
        yield take(whole)


def _plugin_openers(targets: bool | Sequence[str]) -> list[Opener]:
    """The `vbkit_open_video` hooks of installed plugins, or the functions that targets name."""
    if targets is True:
        from vbkit.plugins import default_manager

        return [default_manager().open_video]
    return [load_object(target) for target in targets or ()]


def main() -> None:
    """Serve jobs until stdin closes."""
    jobs, stream = serve()
    settings = json.loads(sys.argv[1])
    out = _Output(io.BufferedWriter(stream, 1 << 16))
    openers = _plugin_openers(settings["plugin_openers"])
    out.send({"type": "ready"})
    while True:
        job = jobs.get()
        try:
            _decode(job, openers, out)
        except VbkitError as error:
            out.send({"type": "error", "message": str(error)})
        except BrokenPipeError:
            os._exit(0)
        except MemoryError:
            out.send({"type": "error", "message": f"{job['path']}: out of memory while decoding"})
        except Exception as error:
            message = f"{job['path']}: decoding failed ({type(error).__name__}: {error})"
            out.send({"type": "error", "message": " ".join(message.split())})


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
