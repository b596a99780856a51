"""Make the clip that `vbkit.testing` brings out of the sample clip.

    python tests/data/make_clip.py

4.5 s around the cut between the two scenes: one clip of the meadow, two of the street.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av

HERE = Path(__file__).parent
CLIP = HERE.parents[1] / "vbkit" / "testing" / "data" / "clip.mp4"
START_S, END_S = 3.8, 8.3
WIDTH, HEIGHT, RATE = 240, 102, 12


def main() -> None:
    CLIP.parent.mkdir(exist_ok=True)
    with av.open(str(HERE / "sample.mp4")) as source, av.open(str(CLIP), "w") as target:
        stream = target.add_stream("libx264", rate=RATE, options={"crf": "28", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        wanted = 0
        for frame in source.decode(video=0):
            if frame.time < START_S + wanted / RATE or frame.time >= END_S:
                continue
            small = frame.reformat(WIDTH, HEIGHT, "yuv420p", interpolation="AREA")
            small.pts, small.time_base = wanted, Fraction(1, RATE)
            target.mux(stream.encode(small))
            wanted += 1
        target.mux(stream.encode(None))


if __name__ == "__main__":
    main()
