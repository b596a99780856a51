"""The decoding process: `python -m vbkit.media.worker`.

It reads jobs from stdin and writes frames to stdout (`vbkit.media.wire`), one job at a time, and
ends when stdin closes, so it does not outlive its parent. What a file does to a decoder stays in
here: a hang or a crash costs one process, and one video. It imports no torch.

Messages out: `ready`; then for each job `tick` (still alive), `info` (payload: clip times,
float64), `clips` (payload: frames, then JPEG keyframes), and at last `end` or `error`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vbkit.errors import MediaError, VbkitError
from vbkit.media.grey import grey_squares
from vbkit.media.open import Opener, open_video
from vbkit.media.sizes import clip_grid, clip_sample_times, frames_per_batch
from vbkit.media.views import View
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
    view = View(**job["view"])
    options = {"height": view.decoded_height(job["height"]), "threads": job["threads"],
               "reader": job["reader"], "tick": out.tick}
    reader = open_video(Path(job["path"]), options, openers)
    with contextlib.closing(reader):
        info = reader.info
        clip_times = clip_grid(info.duration_s, job["clip_s"], view.shift)
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
        grey = job["grey_clips"] is not None
        if grey:
            clip_times = clip_times[job["grey_clips"]]
        per_clip = job["frames_per_clip"]
        key_clips = set()
        if job["keyframes"]:
            key_clips = set(keyframe_clips(len(clip_times), job["max_keyframes"]).tolist())
        times = clip_sample_times(clip_times, per_clip, view.phase).ravel()
        pending: list[np.ndarray] = []
        n_pending, first = 0, 0

        def flush(frames: np.ndarray) -> None:
            nonlocal first
            clips = frames.reshape(-1, per_clip, *frames.shape[1:])
            keyframes = [
                (float(times[(first + i) * per_clip + per_clip // 2]),
                 _jpeg(clip[per_clip // 2], job["keyframe_width"]))
                for i, clip in enumerate(clips) if first + i in key_clips
            ]
            header = {"type": "clips", "first": first, "shape": clips.shape,
                      "keyframes": [(moment, len(jpeg)) for moment, jpeg in keyframes]}
            out.send(header, [np.ascontiguousarray(clips), *(jpeg for _, jpeg in keyframes)])
            first += len(clips)

        for batch in reader.frames_at(times.tolist()):
            seen = view.crop(batch.data)
            pending.append(grey_squares(seen, job["grey_size"]) if grey else seen)
            n_pending += len(batch)
            out.tick()
            height, width = pending[-1].shape[1:3]
            if n_pending >= max(per_clip, frames_per_batch(width, height)):
                frames = np.concatenate(pending) if len(pending) > 1 else pending[0]
                whole = n_pending // per_clip * per_clip
                flush(frames[:whole])
                pending = [frames[whole:]] if whole < n_pending else []
                n_pending -= whole
        if n_pending:
            flush(np.concatenate(pending))
        if first != len(clip_times):
            raise MediaError(f"{job['path']}: the reader {info.reader or type(reader).__name__} "
                             f"gave frames for {first} of {len(clip_times)} clips")
        out.send({"type": "end", "damaged": reader.damaged})


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
