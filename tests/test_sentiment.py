"""The task sentiment: rows for speech and silence, tables, and what the shipped head says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contexts import context
from hypothesis import given
from hypothesis import strategies as st

import vbkit_sentiment
from vbkit.errors import ModelError
from vbkit.features import Features
from vbkit_sentiment import SENTIMENT, SENTIMENT_VIDEOS, SentimentOptions
from vbkit_sentiment.head import SentimentHead
from vbkit_sentiment.rows import silent_clips, speech_mask, video_row

P = ["p_negative", "p_neutral", "p_positive"]


def clip_times(count: int) -> np.ndarray:
    starts = np.arange(count) * 1.5
    return np.stack([starts, starts + 1.5], 1)


def features(
    clips: int = 0, segments: Sequence[str] = (), times: Any = None, seed: int = 0,
    language: str | None = "en",
) -> Features:
    generator = torch.Generator().manual_seed(seed)
    if times is None:
        starts = np.arange(len(segments)) * 2.0
        times = np.stack([starts, starts + 1.9], 1)
    return Features(
        "a.mp4",
        {
            "clip_times": clip_times(clips),
            "clip_features": torch.rand(clips, 2560, generator=generator),
            "segments": list(segments),
            "segment_times": np.asarray(times, dtype=float).reshape(len(segments), 2),
        },
        language=language,
    )


def head(**options: Any) -> SentimentHead:
    result = SentimentHead()
    result.setup(context(options=SentimentOptions(**options)))
    return result


@pytest.fixture(scope="module")
def shipped() -> SentimentHead:
    return head()


@pytest.mark.parametrize("clips", [0, 1, 40])
@pytest.mark.parametrize("segments", [0, 1, 7])
def test_tables_keep_their_schemas(shipped: SentimentHead, clips: int, segments: int) -> None:
    tables = shipped.predict(features(clips, [f"words {i}" for i in range(segments)]))
    rows, videos = tables["sentiment"], tables["sentiment_videos"]
    assert tuple(rows.columns) == SENTIMENT.column_names
    assert tuple(videos.columns) == SENTIMENT_VIDEOS.column_names
    assert len(videos) == 1
    assert rows["segment"].dropna().tolist() == list(range(segments))
    if len(rows):
        assert np.allclose(rows[P].sum(axis=1), 1)
        assert np.allclose(rows["score"], rows["p_positive"] - rows["p_negative"])
        assert (rows["label"] == rows[P].idxmax(axis=1).str.removeprefix("p_")).all()
    else:
        assert videos["label"].isna().all()


def test_silent_video_has_a_row_for_each_clip(shipped: SentimentHead) -> None:
    rows = shipped.predict(features(5))["sentiment"]
    assert rows["clip"].tolist() == [0, 1, 2, 3, 4]
    assert set(rows["modality"]) == {"visual"}
    assert rows["text"].isna().all()


def test_clips_are_written_only_for_silence(shipped: SentimentHead) -> None:
    rows = shipped.predict(features(6, ["hello there"], [(2.0, 4.0)]))["sentiment"]
    assert rows["clip"].dropna().tolist() == [0, 3, 4, 5]
    assert rows["start_s"].is_monotonic_increasing
    assert len(shipped.predict(features(6, ["hello there"], [(0.0, 9.0)]))["sentiment"]) == 1


def test_untimed_text_gives_no_clip_rows(shipped: SentimentHead) -> None:
    rows = shipped.predict(features(6, ["hello", "there"], np.full((2, 2), np.nan)))["sentiment"]
    assert rows["segment"].tolist() == [0, 1]
    assert rows["start_s"].isna().all()


def test_marks_are_no_speech(shipped: SentimentHead) -> None:
    segments = ["[Music]", "♪ la la ♪", "...", "(applause)", "I love it", "", "123"]
    assert speech_mask(segments).tolist() == [False, False, False, False, True, False, False]
    rows = shipped.predict(features(2, ["[Music]"], [(0.0, 3.0)]))["sentiment"]
    assert rows["label"].isna().tolist() == [True, False, False]
    assert rows["text"].tolist()[0] == "[Music]"


def test_marks_do_not_come_between_neighbours(shipped: SentimentHead) -> None:
    with_mark = features(0, ["one thing", "[Music]", "another thing"])
    without = Features("b.mp4", {
        "clip_times": clip_times(0), "clip_features": torch.zeros(0, 2560),
        "segments": ["one thing", "another thing"],
        "segment_times": with_mark.segment_times[[0, 2]],
    }, language="en")
    a = shipped.predict(with_mark)["sentiment"]["score"].dropna().to_numpy(float)
    b = shipped.predict(without)["sentiment"]["score"].to_numpy(float)
    assert np.allclose(a, b, atol=1e-6)


def test_other_languages_keep_rows_and_are_not_scored(shipped: SentimentHead) -> None:
    tables = shipped.predict(features(0, ["guten Tag", "gut"], language="de"))
    assert len(tables["sentiment"]) == 2
    assert tables["sentiment"][["label", "score", *P]].isna().all(axis=None)
    assert tables["sentiment_videos"]["label"].isna().all()
    assert tables["sentiment_videos"]["n_rows"][0] == 0


def test_options_switch_context_and_silence_off() -> None:
    given_ = features(6, ["a thing", "b thing"], [(0.0, 1.0), (1.0, 2.0)])
    rows = head(silence=False).predict(given_)["sentiment"]
    assert rows["segment"].tolist() == [0, 1]
    alone = head(context=False, silence=False).predict(given_)["sentiment"]
    assert not np.allclose(rows["score"], alone["score"])
    single = head().predict(features(0, ["a thing"], [(0.0, 1.0)]))["sentiment"]
    assert np.isclose(single["score"][0], alone["score"][0], atol=1e-6)


def test_video_is_weighted_by_duration() -> None:
    def row(p: tuple[float, float, float], start: float, end: float) -> dict[str, Any]:
        return {"label": "x", "start_s": start, "end_s": end, "text": None,
                **dict(zip(P, p, strict=True))}

    video = video_row([row((0.9, 0.1, 0.0), 0, 1), row((0.0, 0.2, 0.8), 1, 10)])
    assert video["label"] == "positive"
    assert np.isclose(video["score"], 0.1 * -0.9 + 0.9 * 0.8)
    assert video["n_rows"] == 2
    assert video_row([row((0.0, 1.0, 0.0), 3, 3)])["label"] == "neutral"


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 10)), max_size=20), st.integers(0, 30))
def test_silent_clips_overlap_no_segment(spans: list[tuple[float, float]], count: int) -> None:
    times = np.array([(a, a + d) for a, d in spans]).reshape(-1, 2)
    clips = clip_times(count)
    silent = set(silent_clips(clips, times, np.ones(len(times), dtype=bool)).tolist())
    for index, (start, end) in enumerate(clips):
        overlap = max((min(end, b) - max(start, a) for a, b in times), default=0.0)
        if overlap > 0.06:
            assert index not in silent
        if overlap < 0.04 and all(b - a > 0.2 or b < start or a > end for a, b in times):
            assert index in silent


def test_head_can_be_saved_and_loaded(tmp_path: Path, shipped: SentimentHead) -> None:
    shipped.save_pretrained(tmp_path)
    again = SentimentHead()
    again.setup(context(options=SentimentOptions(), head_path=tmp_path))
    given_ = features(3, ["x y", "z"])
    assert shipped.predict(given_)["sentiment"].equals(again.predict(given_)["sentiment"])


def test_missing_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no head: head\.json is missing"):
        SentimentHead().setup(context(options=SentimentOptions(), head_path=tmp_path))
    with pytest.raises(ModelError, match="was trained on model 'mini', not on 'large'"):
        SentimentHead().setup(context(options=SentimentOptions(), model_name="large"))


def test_declaring_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = ("import sys, vbkit_sentiment as s; list(s.vbkit_tasks()); "
            "assert not {'torch', 'pandas'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert next(iter(vbkit_sentiment.vbkit_tasks())).name == "sentiment"
