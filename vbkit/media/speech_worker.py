"""The process that listens: `python -m vbkit.media.speech_worker`.

It reads jobs from stdin and writes transcripts to stdout (`vbkit.media.wire`), one job at a time,
and ends when stdin closes. Messages out: `ready`; then for each job `tick` (still alive), and at
last `end` or `error`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from vbkit.errors import MediaError, VbkitError
from vbkit.media.audio import FileSound, has_audio
from vbkit.media.speech import transcript_json
from vbkit.media.transcripts import NO_SOUND, finish_transcript
from vbkit.media.types import Transcriber, Transcript
from vbkit.media.wire import serve, write_message
from vbkit.options import parse_options
from vbkit.specs import load_object

__all__ = ["main"]

_TICK_S = 5.0


class _Ticker:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last > _TICK_S:
            self._last = time.monotonic()
            write_message(self._out, {"type": "tick"})


def _transcriber(settings: dict[str, Any]) -> Transcriber:
    options: Any = parse_options(load_object(settings["options_type"]),
                                 json.loads(settings["options"]))
    return load_object(settings["factory"])(options, settings["device"])


def _transcribe(transcriber: Transcriber, path: Path, tick: _Ticker) -> Transcript:
    if not has_audio(path):
        return Transcript(source="speech", notes=(NO_SOUND,))
    made = transcriber.transcribe(FileSound(path, tick))
    if not isinstance(made, Transcript):
        raise TypeError(f"transcribe must return a Transcript, got {type(made).__name__}")
    return finish_transcript(made, "speech")


def main() -> None:
    """Serve jobs until stdin closes."""
    jobs, stream = serve()
    out: Any = io.BufferedWriter(stream, 1 << 16)
    settings = json.loads(sys.argv[1])
    write_message(out, {"type": "ready"})
    transcriber: Transcriber | None = None
    while True:
        path = Path(jobs.get()["path"])
        answer: dict[str, Any]
        try:
            if transcriber is None:
                transcriber = _transcriber(settings)
            made = _transcribe(transcriber, path, _Ticker(out))
            answer = {"type": "end", "transcript": transcript_json(made)}
        except MediaError as error:
            answer = {"type": "error", "message": str(error)}
        except VbkitError as error:
            answer = {"type": "error", "message": f"{path}: {error}"}
        except MemoryError:
            answer = {"type": "error", "message": f"{path}: out of memory during speech to text"}
        except Exception as error:
            text = f"{path}: speech to text failed ({type(error).__name__}: {error})"
            answer = {"type": "error", "message": " ".join(text.split())}
        write_message(out, answer)


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(0)
