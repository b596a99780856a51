"""Read a still picture as a video of one frame."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vbkit.errors import MediaError
from vbkit.media.sizes import decode_size, frames_per_batch
from vbkit.media.types import FrameBatch, VideoInfo

__all__ = ["ImageReader"]

_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the picture by a quarter


class ImageReader:
    """A `VideoReader` of one frame at 0 s, turned as its EXIF data says, without transparency.

    Args:
        path: the file.
        options: `height`, the short side in pixels (None: as it is).

    Raises:
        MediaError: the file is missing, unreadable, or no picture that can be decoded.
    """

    def __init__(self, path: Path, options: Mapping[str, Any] | None = None) -> None:
        from PIL import Image, ImageOps

        height = (options or {}).get("height")
        try:
            if Path(path).stat().st_size == 0:
                raise MediaError(f"{path}: the file is empty")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(path) as opened:
                    full = None
                    if height is not None and opened.format == "JPEG":
                        # JPEG can be decoded at a fraction of its size.
                        turned = opened.getexif().get(_ORIENTATION, 1) >= 5
                        full = opened.size[::-1] if turned else opened.size
                        opened.draft("RGB", (2 * height, 2 * height))
                    picture = ImageOps.exif_transpose(_to_rgb(opened))
                    full = full or picture.size
        except FileNotFoundError:
            raise MediaError(f"{path}: no such file") from None
        except PermissionError:
            raise MediaError(f"{path}: no permission to read it") from None
        except MediaError:
            raise
        except Exception as error:  # Pillow's decoders raise anything, SyntaxError included
            cause = "not a picture that is known" if "cannot identify" in str(error) else error
            raise MediaError(f"{path}: the picture cannot be read ({cause})") from None
        self.info = VideoInfo(
            duration_s=0.0, width=full[0], height=full[1], n_frames=1, codec="image",
            reader="image",
        )
        size = decode_size(*full, height)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        self._picture = np.asarray(picture)

    @property
    def damaged(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is open."""

    def frames_at(self, times: Sequence[float]) -> Iterator[FrameBatch]:
        """The picture, once for each of `times`."""
        left = len(times)
        height, width = self._picture.shape[:2]
        while left:
            count = min(left, frames_per_batch(width, height))
            left -= count
            data = np.repeat(self._picture[None], count, axis=0)
            yield FrameBatch(data, np.zeros(count), np.zeros(count))


def _to_rgb(picture: Any) -> Any:
    """RGB, with transparency laid on black and 16-bit grey brought to 8 bits."""
    from PIL import Image

    exif = picture.getexif()
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        top = 65535.0 if picture.mode.startswith("I") and values.max() > 255 else 255.0
        converted = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).astype(np.uint8))
        converted = converted.convert("RGB")
    elif "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = picture.convert("RGBA")
        converted = Image.new("RGB", rgba.size)
        converted.paste(rgba, mask=rgba.getchannel("A"))
    else:
        converted = picture.convert("RGB")
    converted.info["exif"] = exif.tobytes()
    return converted
