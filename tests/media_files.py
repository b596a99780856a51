"""Small real video files whose frames carry their own number.

Each frame shows its number as `BITS` black or white bars, most significant first, in the upper
half and inverted in the lower half, so that a test can tell which frame it was given.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 10
WIDTH, HEIGHT = 320, 128


def numbered_frame(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(height, width, 3) uint8: the bars of `number`."""
    bits = np.array([(number >> (BITS - 1 - i)) & 1 for i in range(BITS)], np.uint8)
    row = np.repeat(bits * 200 + 28, -(-width // BITS))[:width]
    half = height // 2
    grey = np.concatenate([np.tile(row, (half, 1)), np.tile(255 - row, (height - half, 1))])
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


def read_number(frame: np.ndarray) -> int:
    """The number that a decoded frame (H, W, 3) shows; -1 where the two halves disagree."""
    grey = frame.astype(float).mean(axis=2)
    height, width = grey.shape
    found = []
    for top, bottom in ((0.15, 0.35), (0.65, 0.85)):
        rows = grey[int(top * height) : max(int(top * height) + 1, int(bottom * height))]
        edges = np.arange(BITS + 1) * width / BITS
        bars = [
            rows[:, int(a + (b - a) * 0.3) : max(int(a + (b - a) * 0.3) + 1,
                                                 int(a + (b - a) * 0.7))].mean()
            for a, b in pairwise(edges)
        ]
        found.append(int("".join("1" if bar > 128 else "0" for bar in bars), 2))
    return found[0] if found[0] ^ found[1] == (1 << BITS) - 1 else -1


def has_encoder(codec: str) -> bool:
    try:
        av.Codec(codec, "w")
    except (ValueError, av.FFmpegError):
        return False
    return True


def make_video(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    n: int = 60,
    rate: int = 25,
    times_ms: Sequence[int] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
    rotation: int = 0,
    sar: Fraction | None = None,
    audio: bool = False,
    subtitles: Sequence[tuple[float, float, str]] = (),
    format_options: dict[str, str] | None = None,
    **stream_settings: Any,
) -> Path:
    """Write a video of `n` numbered frames at `rate`, or at `times_ms` where given.

    Args:
        rotation: degrees counterclockwise, written as a display matrix.
        subtitles: (start s, end s, text) of an embedded stream.
        stream_settings: attributes of the codec context, e.g. `max_b_frames`.
    """
    width, height = size
    with av.open(str(path), "w", options=format_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if sar is not None:
            stream.codec_context.sample_aspect_ratio = sar
        for name, value in stream_settings.items():
            setattr(stream.codec_context, name, value)
        time_base = Fraction(1, 1000) if times_ms is not None else Fraction(1, rate)
        if times_ms is not None:
            stream.codec_context.time_base = time_base
            n = len(times_ms)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac" if path.suffix != ".mkv" else "libmp3lame",
                                     rate=44100) if audio else None
        mov_text = path.suffix == ".mp4"
        texts = None
        if subtitles:
            texts = container.add_mux_stream("mov_text" if mov_text else "subrip")
            texts.time_base = Fraction(1, 1000)
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(numbered_frame(i, width, height), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts = times_ms[i] if times_ms is not None else i
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            write_tone(container, sound, (times_ms[-1] / 1000 if times_ms else n / rate))
        if texts is not None:
            for start, end, text in subtitles:
                data = text.encode()
                packet = av.Packet((len(data).to_bytes(2, "big") if mov_text else b"") + data)
                packet.stream = texts
                packet.time_base = Fraction(1, 1000)
                packet.pts = packet.dts = round(start * 1000)
                packet.duration = round((end - start) * 1000)
                container.mux(packet)
    return path


def write_tone(container: Any, stream: Any, seconds: float) -> None:
    """Encode a 440 Hz tone into `stream`."""
    rate = stream.rate
    wave = np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate).astype(np.float32) * 0.3
    for start in range(0, len(wave), 1024):
        piece = wave[start : start + 1024]
        frame = av.AudioFrame.from_ndarray(piece[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def make_sound(path: Path, seconds: float = 1.0, codec: str = "pcm_s16le") -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=44100, layout="mono")
        write_tone(container, stream, seconds)
    return path


def truncate(source: Path, path: Path, fraction: float) -> Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def flip_bits(source: Path, path: Path, n: int, seed: int = 0, keep: int = 64) -> Path:
    """Flip `n` bits in the media data (`mdat`), sparing its first `keep` bytes."""
    data = bytearray(source.read_bytes())
    start = data.find(b"mdat") + keep
    end = data.find(b"moov", start)
    end = end - 4 if end > 0 else len(data)
    generator = random.Random(seed)
    for _ in range(n):
        data[generator.randrange(start, end)] ^= 1 << generator.randrange(8)
    path.write_bytes(bytes(data))
    return path
