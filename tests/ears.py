"""A transcriber for tests: it hears what its options say, and keeps a list of what it heard."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pandas as pd

from vbkit import Column, Head, TableSchema, TaskSpec, TranscriberSpec, hookimpl, option
from vbkit.errors import ModelError, TranscriptError
from vbkit.media import Segment, Sound, Transcript, Word


@dataclass(frozen=True)
class EarsOptions:
    log: str = option("", "a file that gets a line for each call")
    says: str = option("hello there", "what is heard; of a few words something happens instead")
    lacks: str = option("", "what is missing")


class Ears:
    def __init__(self, options: EarsOptions, device: str) -> None:
        self.options = options

    def missing(self) -> str | None:
        return self.options.lacks or None

    def prepare(self) -> str:
        if self.options.says == "no model":
            raise ModelError("there is no model; get one")
        return self.options.says

    def transcribe(self, sound: Sound) -> Transcript:
        if self.options.log:
            with open(self.options.log, "a") as file:
                file.write(f"{sound.path.name} {os.getpid()}\n")
        says = self.options.says
        if says == "die" and sound.path.name.startswith("bad"):
            os._exit(7)
        if says == "wait":
            time.sleep(60)
        if says == "last" and sound.path.suffix == ".wav":
            for _ in range(600):  # until something else is done
                if os.path.exists(f"{self.options.log}.done"):
                    break
                time.sleep(0.05)
            else:
                raise TranscriptError("nothing was done meanwhile")
        if says == "raise":
            raise ValueError("my ears hurt")
        if says == "refuse":
            raise TranscriptError("too loud")
        pieces = list(sound.pieces(16_000, 5.0))
        if says == "nothing":
            return Transcript(source="speech")
        start = pieces[0].start_s
        words = tuple(Word(text, start + i, start + i + 0.5, 0.5)
                      for i, text in enumerate(says.split()))
        # Out of order, one empty: the core puts it right.
        return Transcript((Segment("later", start + 3, start + 4),
                           Segment(" ", start, start + 1),
                           Segment(says, start, start + 2, words, "en")))


class Said(Head):
    """How many segments there are."""

    def predict(self, features):
        return {"said": pd.DataFrame([{"n": len(features.segments)}])}


class Plugin:
    @hookimpl
    def vbkit_tasks(self):
        yield TaskSpec("said", "Counts segments.", "ears:Said", frozenset({"segments"}),
                       (TableSchema("said", (Column("n", "int64"),)),))

    @hookimpl
    def vbkit_transcribers(self):
        yield TranscriberSpec("ears", "Hears what it is told.", "ears:Ears", EarsOptions)
