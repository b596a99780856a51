"""Keyframes for the page: which, how large, and as what bytes, within a limit for all of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["Picture", "PictureShelf", "choose"]

_POSTER = (144, 108)  # px, the picture in the list of videos, at twice its size for sharp screens
_SMALL = (176, 132)  # px, pictures of a video where the limit is short
_SMALL_BYTES = 4_500  # about what one of those takes
_QUALITY = 70
_POSTER_BYTES = 4_000


@dataclass(frozen=True)
class Picture:
    """A JPEG of the moment `time_s`."""

    time_s: float
    jpeg: bytes
    width: int
    height: int

    @property
    def base64(self) -> str:
        return base64.b64encode(self.jpeg).decode("ascii")


class PictureShelf:
    """Gives each video its pictures, and sees to it that all together stay within a limit.

    What one video does not use, the next ones may.

    Args:
        out: the results folder that the pictures lie in.
        limit: bytes of all pictures together; 0 for none at all.
        n_videos: how many videos there are.
    """

    def __init__(self, out: Path, limit: int, n_videos: int) -> None:
        self.out = out.resolve()
        self.limit = limit
        self.waiting = n_videos
        self.used = 0
        self.shown = 0
        self.saved = 0

    def take(self, keyframes: Sequence[tuple[float, str]], wanted: Collection[float] = (),
             poster_s: float | None = None) -> tuple[Picture | None, list[Picture]]:
        """The poster of the next video and its pictures, in order of time.

        Args:
            keyframes: (time in s, path relative to the results folder).
            wanted: moments (s) that should have a picture first, such as those of evidence.
            poster_s: the moment of the poster; None for the middle.
        """
        allowance = max(0, self.limit - self.used) // max(1, self.waiting)
        self.waiting -= 1
        self.saved += len(keyframes)
        if not keyframes or not self.limit:
            return None, []
        times = [moment for moment, _ in keyframes]
        middle = times[len(times) // 2] if poster_s is None else poster_s
        at = min(range(len(times)), key=lambda i: abs(times[i] - middle))
        poster = self._picture(*keyframes[at], _POSTER)
        allowance -= _POSTER_BYTES
        sizes = [self._size(path) for _, path in keyframes]
        if sum(sizes) <= allowance:
            chosen, box = list(range(len(keyframes))), None
        else:
            mean = max(1.0, sum(sizes) / len(sizes))
            few = int(allowance // mean)
            box = None if few >= 24 else _SMALL
            count = few if box is None else int(allowance // min(mean, _SMALL_BYTES))
            chosen = choose(times, wanted, max(1, count))
        made = [self._picture(*keyframes[i], box) for i in chosen]
        pictures = [picture for picture in made if picture is not None]
        self.shown += len(pictures)
        self.used += sum(len(picture.jpeg) for picture in pictures)
        self.used += len(poster.jpeg) if poster is not None else 0
        return poster, pictures

    def _path(self, name: str) -> Path | None:
        """A keyframe's file; None for a name that leads out of the results folder."""
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            return None
        path = self.out.joinpath(*relative.parts)
        try:
            return path if path.resolve().is_relative_to(self.out) else None
        except OSError:
            return None

    def _size(self, name: str) -> int:
        path = self._path(name)
        try:
            return path.stat().st_size if path is not None else 0
        except OSError:
            return 0

    def _picture(self, moment: float, name: str, box: tuple[int, int] | None) -> Picture | None:
        """Read a keyframe and make it fit `box` (px); None where it is gone or no picture."""
        from PIL import Image

        path = self._path(name)
        if path is None:
            return None
        try:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                if box is not None and (image.width > box[0] or image.height > box[1]):
                    scale = min(box[0] / image.width, box[1] / image.height)
                    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
                    image.draft("RGB", size)  # decodes at a half or a quarter where that will do
                    image.thumbnail(size)
                    file = io.BytesIO()
                    image.convert("RGB").save(file, "JPEG", quality=_QUALITY, optimize=True)
                    data = file.getvalue()
                return Picture(moment, data, image.width, image.height)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None


def choose(times: Sequence[float], wanted: Collection[float], count: int) -> list[int]:
    """Indices of `count` moments: the nearest to each of `wanted`, the others spread evenly.

    Args:
        times: moments (s), increasing.
        wanted: moments (s), in order of their importance.
        count: how many; all where there are fewer.
    """
    if count >= len(times):
        return list(range(len(times)))
    nearest = [min(range(len(times)), key=lambda i: abs(times[i] - moment)) for moment in wanted]
    # Half of the places at most, so that evidence in one place does not hide the rest.
    chosen = set(list(dict.fromkeys(nearest))[: (count + 1) // 2])
    order = sorted(range(len(times)), key=lambda i: _spread(i, len(times)))
    for index in order:
        if len(chosen) >= count:
            break
        chosen.add(index)
    return sorted(chosen)


def _spread(index: int, count: int) -> float:
    """A key in whose order any first few of `count` indices are spread evenly (van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    return int(f"{index:0{bits}b}"[::-1], 2)
