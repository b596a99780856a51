"""Other ways in which a video may be seen, for training: a part of the frame, moved clips.

A view is drawn once, and holds for the whole video, so that what moves in it still moves as it did.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["MIN_AREA", "PLAIN", "View", "Views"]

MIN_AREA = 0.5
"""The smallest part of a frame, by area, that `Views` draws."""


@dataclass(frozen=True)
class View:
    """How a video is seen; by default as it is.

    Args:
        shift: of a clip's length, by which clips begin later, from -0.5 to 0.5; the first clip
            begins with the video all the same, and is longer or shorter for it.
        phase: where in its share of a clip each frame is taken, above 0 and below 1.
        area: of the frame that is seen, above 0, at most 1; its aspect is the frame's.
        left, top: where that part lies, of the way that there is, from 0 to 1.
        mirrored: whether left and right change places.

    Raises:
        ValueError: a number is out of range.
    """

    shift: float = 0.0
    phase: float = 0.5
    area: float = 1.0
    left: float = 0.5
    top: float = 0.5
    mirrored: bool = False

    def __post_init__(self) -> None:
        for name, fine in (
            ("shift", -0.5 <= self.shift <= 0.5), ("phase", 0 < self.phase < 1),
            ("area", 0 < self.area <= 1), ("left", 0 <= self.left <= 1),
            ("top", 0 <= self.top <= 1),
        ):
            if not fine:
                raise ValueError(f"a view's {name} cannot be {getattr(self, name)}")

    @property
    def key(self) -> str:
        """Tells views apart in names of files; empty where a video is seen as it is."""
        if self == PLAIN:
            return ""
        text = json.dumps(asdict(self), sort_keys=True)
        return "-" + hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def decoded_height(self, height: int) -> int:
        """Short side (px) of a frame whose seen part has a short side of `height`."""
        return round(height / self.area**0.5)

    def crop(self, frames: np.ndarray) -> np.ndarray:
        """What is seen of frames: (N, H, W, 3) -> (N, h, w, 3), a view of the same memory."""
        rows, columns = (self._span(size, place) for size, place in (
            (frames.shape[1], self.top), (frames.shape[2], self.left)))
        part = frames[:, rows, columns]
        return part[:, :, ::-1] if self.mirrored else part

    def _span(self, size: int, place: float) -> slice:
        length = max(1, round(size * self.area**0.5))
        first = round(place * (size - length))
        return slice(first, first + length)


PLAIN = View()
"""A video as it is."""


@dataclass(frozen=True)
class Views:
    """Which views of each video are drawn; by default none.

    Args:
        count: of each video.
        seed: all of them follow from it, and from the video's content.
        mirror: whether every second one, at random, is mirrored.

    Raises:
        ValueError: `count` is negative.
    """

    count: int = 0
    seed: int = 0
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"there cannot be {self.count} views")

    def of(self, content_id: str) -> list[View]:
        """The views of the content with a hash; those of a smaller `count` come first.

        A part of the frame of `MIN_AREA` to 1 of its area, as in Szegedy et al., CVPR 2015, but in
        the frame's own aspect; clips, and the frames in them, moved in time.
        """
        return [self._draw(content_id, number) for number in range(self.count)]

    def _draw(self, content_id: str, number: int) -> View:
        name = f"{self.seed} {content_id} {number}".encode()
        digest = hashlib.blake2b(name, digest_size=16).digest()
        random = np.random.default_rng(int.from_bytes(digest, "little"))
        shift, phase, area, left, top, side = random.random(6).tolist()
        return View(
            shift=round(shift - 0.5, 3), phase=round(0.001 + 0.998 * phase, 3),
            area=round(MIN_AREA + (1 - MIN_AREA) * area, 3), left=round(left, 3),
            top=round(top, 3), mirrored=self.mirror and side < 0.5)
