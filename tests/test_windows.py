"""Windows: everything is in one, limits hold, and the most central window is chosen."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vbkit.engine.windows import piece_times, plan_windows, spans


def grid(n: int) -> np.ndarray:
    return np.stack([np.arange(n) * 1.5, (np.arange(n) + 1) * 1.5], 1)


@given(st.integers(0, 400), st.integers(1, 64))
def test_spans_cover_all_and_overlap_by_half(count: int, width: int) -> None:
    cuts = spans(count, width)
    covered = np.zeros(count, bool)
    for start, stop in cuts:
        assert 0 <= start < stop <= count
        assert stop - start <= width
        covered[start:stop] = True
    assert covered.all()
    for (_, stop), (start, _) in itertools.pairwise(cuts):
        assert stop - start >= width // 2


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 200),
    st.lists(st.integers(0, 120), max_size=60),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_every_clip_and_piece_belongs_to_a_window_that_holds_it(n_clips, lengths, timed, random):
    times = np.full((len(lengths), 2), np.nan)
    if timed:
        starts = np.sort([random.uniform(0, 300) for _ in lengths])
        times = np.stack([starts, starts + [random.uniform(0, 9) for _ in lengths]], 1)
    plan = plan_windows(grid(n_clips), lengths, times)
    for index, window in enumerate(plan.windows):
        assert window.n_clips <= 64
        assert window.n_clips + len(window.pieces) + (3 if window.n_clips else 2) <= 512
        owned = np.flatnonzero(plan.clip_window == index)
        assert np.isin(owned, np.arange(*window.clips)).all()
        assert np.isin(np.flatnonzero(plan.piece_window == index), window.pieces).all()
    assert (plan.clip_window >= 0).all()
    assert len(plan.clip_window) == n_clips
    assert (plan.piece_window >= 0).all()
    assert len(plan.piece_window) == sum(lengths)


def test_what_fits_is_read_together() -> None:
    plan = plan_windows(grid(64), [100, 200], np.full((2, 2), np.nan))
    assert len(plan.windows) == 1
    assert plan.windows[0].n_clips == 64
    assert len(plan.windows[0].pieces) == 300


def test_a_clip_takes_its_output_from_the_window_in_which_it_is_most_central() -> None:
    plan = plan_windows(grid(96), [], np.zeros((0, 2)))
    assert [window.clips for window in plan.windows] == [(0, 64), (32, 96)]
    assert plan.clip_window.tolist() == [0] * 48 + [1] * 48


def test_timed_text_is_read_with_the_clips_of_its_time() -> None:
    times = np.array([[0.0, 3.0], [140.0, 143.0]])
    plan = plan_windows(grid(96), [5, 7], times)
    assert plan.piece_window.tolist() == [0] * 5 + [1] * 7
    assert plan.windows[1].pieces.tolist() == list(range(5, 12))


def test_untimed_text_of_a_long_video_is_read_by_itself() -> None:
    plan = plan_windows(grid(96), [600], np.full((1, 2), np.nan))
    assert [window.n_clips for window in plan.windows] == [64, 64, 0, 0]


def test_pieces_are_spread_over_their_segment() -> None:
    times = piece_times([2, 0, 1], np.array([[0.0, 4.0], [4.0, 5.0], [5.0, 6.0]]))
    assert times.tolist() == [1.0, 3.0, 5.5]
