"""Speech to text in a process of its own (`vbkit.media.speech_worker`).

A transcriber that crashes or hangs costs one transcript, its libraries do not meet torch's, and
decoding and encoding go on meanwhile.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Mapping
from math import nan
from pathlib import Path
from typing import Any

from vbkit.errors import TranscriptError
from vbkit.media.types import Segment, Transcript, Word
from vbkit.media.wire import Message, WorkerProcess

__all__ = ["SpeechToText", "transcript_from_json", "transcript_json"]

_START_S = 120.0
_SILENCE_S = 1800.0  # a large model on a small machine says nothing for minutes


class SpeechToText:
    """A transcriber that is started when it is first needed.

    Args:
        name: the transcriber's name.
        factory: `"module:callable"` (`TranscriberSpec.factory`).
        options_type: `"module:class"` of its options.
        options: their JSON (`vbkit.options.options_json`).
        device: `"cpu"`, `"cuda"`, …
        identity: what `Transcriber.prepare` gave.
        timeout_s: a process that says nothing for so long is stopped.
    """

    def __init__(
        self,
        name: str,
        factory: str,
        options_type: str,
        options: str,
        device: str,
        identity: str = "",
        timeout_s: float = _SILENCE_S,
    ) -> None:
        self.name = name
        self.identity = identity
        self.timeout_s = timeout_s
        self._settings = json.dumps({"factory": factory, "options_type": options_type,
                                     "options": options, "device": device})
        self._process: WorkerProcess | None = None
        self._closed = threading.Event()

    def transcribe(self, path: Path) -> Transcript:
        """What is said in a file.

        Raises:
            TranscriptError: it could not be found out.
        """
        if self._process is None or not self._process.alive:
            self._start()
        assert self._process is not None
        try:
            self._process.send({"path": str(path)})
        except OSError:
            raise TranscriptError(f"{path}: speech to text ({self.name}) {self._stop()}") from None
        while True:
            header, _ = self._next(self.timeout_s, str(path))
            if header["type"] == "error":
                raise TranscriptError(header["message"])
            if header["type"] == "end":
                return transcript_from_json(header["transcript"])

    def open(self) -> None:
        """Allow it to listen again after `close`."""
        self._closed.clear()

    def close(self) -> None:
        """End the process, and give up what it is listening to and what comes until `open`."""
        self._closed.set()
        self._stop()

    def _start(self) -> None:
        self._stop()
        if self._closed.is_set():
            raise TranscriptError("speech to text was given up")
        self._process = WorkerProcess("vbkit.media.speech_worker", self._settings, {})
        self._next(_START_S, f"speech to text ({self.name})")

    def _next(self, timeout_s: float, about: str) -> Message:
        process = self._process
        until = time.monotonic() + timeout_s
        while process is not None and not self._closed.is_set():
            try:
                message = process.inbox.get(timeout=0.5)
            except queue.Empty:
                if time.monotonic() < until:
                    continue
                self._stop()
                raise TranscriptError(f"{about}: speech to text ({self.name}) hung: nothing came "
                                      f"for {timeout_s:g} s, so it was stopped") from None
            if message is None:
                if self._closed.is_set():
                    break
                raise TranscriptError(f"{about}: speech to text ({self.name}) {self._stop()}; "
                                      "VBKIT_DEBUG=1 shows what it prints")
            return message
        raise TranscriptError(f"{about}: speech to text was given up")

    def _stop(self) -> str:
        process, self._process = self._process, None
        return process.stop() if process is not None else "was stopped"


def transcript_json(transcript: Transcript) -> dict[str, Any]:
    """A transcript as plain data; `transcript_from_json` makes it again."""
    return {
        "segments": [
            {"text": s.text, "span": [s.start_s, s.end_s] if s.timed else None,
             "language": s.language,
             "words": [[w.text, w.start_s, w.end_s, w.probability] for w in s.words]}
            for s in transcript.segments
        ],
        "source": transcript.source, "language": transcript.language,
        "notes": list(transcript.notes),
    }


def transcript_from_json(value: Mapping[str, Any]) -> Transcript:
    """The transcript that `transcript_json` made plain.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    segments = []
    for item in value["segments"]:
        start_s, end_s = item["span"] or (nan, nan)
        words = tuple(Word(*word) for word in item["words"])
        segments.append(Segment(item["text"], start_s, end_s, words, item["language"]))
    return Transcript(tuple(segments), value["source"], value["language"], tuple(value["notes"]))
