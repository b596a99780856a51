"""Openers that misbehave, for tests of `DecodePool`: loaded in the decoding process by name."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vbkit.media.types import FrameBatch, VideoInfo


class Reader:
    """Grey frames, and trouble half-way where the file's name says so."""

    damaged = 3

    def __init__(self, path: Path, height: int) -> None:
        self.path, self.height = path, height
        seconds = 600.0 if "long" in path.name else 6.0
        self.info = VideoInfo(seconds, 64, 48, int(seconds * 25), reader="test")

    def frames_at(self, times: Any) -> Any:
        for i, moment in enumerate(times):
            if i == len(times) // 2:
                trouble(self.path.name, "midway")
            data = np.full((1, self.height, self.height, 3), i % 256, np.uint8)
            yield FrameBatch(data, np.array([float(moment)]), np.array([0.04]))

    def close(self) -> None:
        pass


def trouble(name: str, where: str) -> None:
    if where not in name:
        return
    if "hang" in name:
        time.sleep(1000)
    if "crash" in name:
        ctypes.string_at(0)
    if "exit" in name:
        os._exit(7)
    if "raise" in name:
        raise RuntimeError("it went wrong\nin two lines")


def opener(source: Path, options: Any) -> Any:
    """Open files of suffix .fake."""
    if source.suffix != ".fake":
        return None
    print("a plugin that prints")
    os.write(1, b"a C library that prints\n")
    sys.stdout.flush()
    trouble(source.name, "atopen")
    return Reader(source, options["height"])
