"""Videos to measure on, made from the sample clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "sample.mp4"


def upscaled(folder: Path) -> Path:
    """The sample clip in 854×480, H.264 with B-frames, as videos on the web are."""
    target = folder / "480p.mp4"
    if target.exists():
        return target
    temporary = folder / "480p.part.mp4"
    with av.open(str(SAMPLE)) as source, av.open(str(temporary), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 854, 480, "yuv420p"
        stream.options = {"crf": "23", "preset": "medium"}
        for index, frame in enumerate(source.decode(video=0)):
            picture = frame.reformat(854, 480, "yuv420p")
            picture.pts, picture.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(picture))
        out.mux(stream.encode())
    temporary.rename(target)
    return target


def looped(source: Path, target: Path, seconds: float) -> Path:
    """`source` again and again, its packets copied, until `seconds`."""
    if target.exists():
        return target
    temporary = target.with_suffix(".part.mp4")
    with av.open(str(temporary), "w") as out:
        stream, offset, end, base = None, 0, 0, Fraction(0)
        while stream is None or offset * base < seconds:
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                base = video.time_base
                if stream is None:
                    stream = out.add_stream_from_template(video)
                for packet in container.demux(video):
                    if packet.dts is None:
                        continue
                    if (packet.pts + offset) * base >= seconds:
                        break
                    end = max(end, packet.pts + packet.duration)
                    packet.pts += offset
                    packet.dts += offset
                    packet.stream = stream
                    out.mux(packet)
            offset += end
    temporary.rename(target)
    return target
