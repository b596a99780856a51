"""Branches of the text encoder, and how a head's parts are trained."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vbkit import Engine
from vbkit.errors import ModelError, TrainingError
from vbkit.heads import FitOptions
from vbkit.model.branch import BranchConfig, TextBranch, token_windows
from vbkit.model.fitting import dropped, fit, platt, runs

TEXTS = ["A dog runs on the beach.", "It is happy.", "", "Nobody said that it would rain today."]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("mini", device="cpu", cache=None)


def branch_of(engine: Engine, config: BranchConfig | None = None) -> TextBranch:
    return engine.bundle.text_branch(config or BranchConfig()).eval()


def changed(branch: TextBranch) -> TextBranch:
    torch.manual_seed(0)
    with torch.no_grad():
        for change in branch.changes.values():
            change.up.normal_(std=0.05)
    return branch


def test_a_new_branch_reads_as_the_encoder_does(engine: Engine) -> None:
    branch = branch_of(engine)
    read = branch.read(branch.tokenize(TEXTS))
    assert read.shape == (4, 384)
    assert not read[2].any()  # it has no word pieces
    # The shared space also counts the special tokens, so the two are alike, not equal.
    likeness = torch.cosine_similarity(read, engine.encode_text(TEXTS))
    assert likeness[[0, 1, 3]].min() > 0.9


def test_changes_leave_the_encoder_as_it_is(engine: Engine) -> None:
    before = engine.encode_text([TEXTS[3] + " "]).clone()
    branch = changed(branch_of(engine))
    fresh = branch_of(engine)
    ids = branch.tokenize(TEXTS)
    assert not torch.allclose(branch.read(ids), fresh.read(ids), atol=1e-2)
    assert torch.equal(engine.encode_text([TEXTS[3] + " "]), before)
    assert all(not p.requires_grad for p in engine.bundle.model.parameters())


def test_merged_and_loaded_branches_read_alike(engine: Engine) -> None:
    config = BranchConfig(layers=2, rank=3, window=32, segment_length=20)
    branch = changed(branch_of(engine, config))
    ids = branch.tokenize(TEXTS)
    read = branch.read(ids)
    again = branch_of(engine, config)
    again.load(branch.state())
    torch.testing.assert_close(again.read(ids), read)
    torch.testing.assert_close(again.merge().read(ids), read, atol=1e-4, rtol=1e-4)


def test_a_segment_does_not_depend_on_what_shares_its_batch(engine: Engine) -> None:
    branch = changed(branch_of(engine))
    ids = branch.tokenize([*TEXTS, "word " * 100])
    alone = torch.cat([branch.read([row]) for row in ids])
    torch.testing.assert_close(branch.read(ids), alone, atol=1e-4, rtol=1e-4)


def test_in_a_window_segments_are_read_with_their_neighbours(engine: Engine) -> None:
    branch = changed(branch_of(engine, BranchConfig(window=64, segment_length=30)))
    (alone,) = branch.read(branch.tokenize(["It is happy."]))
    (_, together) = branch.read(branch.tokenize(["A dog runs.", "It is happy."]))
    assert not torch.allclose(alone, together, atol=1e-2)


@pytest.mark.parametrize(("config", "message"), [
    (BranchConfig(layers=7), "cannot change 7"),
    (BranchConfig(window=1024, segment_length=600), "512 word pieces"),
])
def test_a_branch_that_the_model_is_too_small_for(engine: Engine, config: BranchConfig,
                                                  message: str) -> None:
    with pytest.raises(ModelError, match=message):
        engine.bundle.text_branch(config)


def test_changes_of_another_rank_are_refused(engine: Engine) -> None:
    state = branch_of(engine, BranchConfig(rank=2)).state()
    with pytest.raises(ModelError, match="rank 8"):
        branch_of(engine).load(state)


def test_only_the_uppermost_layers_learn(engine: Engine) -> None:
    branch = branch_of(engine, BranchConfig(layers=3, rank=2))
    assert len(branch.unfreeze(1)) == 12
    ids, mask = branch.processor.pad([[101, 2, 102]])
    branch.train()(ids, mask).sum().backward()
    learning = {name.partition("_")[0] for name, change in branch.changes.items()
                if change.down.grad is not None}
    assert learning == {"2"}
    with pytest.raises(ModelError, match="3 layers"):
        branch.unfreeze(4)


@given(lengths=st.lists(st.integers(1, 40), max_size=60), room=st.integers(1, 100))
def test_windows_hold_every_segment_and_fit(lengths: list[int], room: int) -> None:
    found = token_windows(lengths, room)
    covered = {i for first, last in found for i in range(first, last)}
    assert covered == set(range(len(lengths)))
    for first, last in found:
        assert last == first + 1 or sum(lengths[first:last]) <= room
    assert all(a[0] < b[0] and a[1] <= b[1]
               for a, b in itertools.pairwise(found))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=50), room=st.integers(1, 200))
def test_batches_hold_every_row_once(lengths: list[int], room: int) -> None:
    found = runs(lengths, room)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= room
               for batch in found)


@given(ids=st.lists(st.integers(0, 9), max_size=30), share=st.floats(0, 1))
def test_word_dropout_keeps_order_and_a_word(ids: list[int], share: float) -> None:
    kept = dropped(ids, share, np.random.default_rng(1))
    assert bool(kept) == bool(ids)
    rest = iter(ids)
    assert all(piece in rest for piece in kept)


class Line:
    """A regression whose validation loss rises again when it learns the training data's noise."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = nn.Linear(20, 1)
        nn.init.zeros_(self.model.weight)
        truth = torch.randn(20)
        x = torch.randn(60, 20)
        y = x @ truth + 4 * torch.randn(60)
        self.train, self.val = (x[:24], y[:24]), (x[24:], y[24:])

    def loss(self, part: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return ((self.model(part[0])[:, 0] - part[1]) ** 2).mean()

    def fit(self, options: FitOptions, epochs: int = 60) -> int:
        def steps(random: np.random.Generator):  # type: ignore[no-untyped-def]
            for rows in np.array_split(random.permutation(24), 3):
                yield lambda rows=rows: self.loss((self.train[0][rows], self.train[1][rows]))

        return fit(dict(self.model.named_parameters()), steps,
                   lambda: float(self.loss(self.val).detach()), options, epochs=epochs,
                   rates=lambda name: 0.1, patience=8)


def test_training_ends_with_the_best_pass() -> None:
    told: list[dict[str, float]] = []
    line = Line()
    best = line.fit(FitOptions(logged=lambda numbers: told.append(dict(numbers))))
    losses = [numbers["val_loss"] for numbers in told]
    assert 0 < best < len(losses) - 1 < 60  # it stopped early, and not at the best pass
    assert losses[best] == min(losses)
    assert math.isclose(float(line.loss(line.val).detach()), min(losses), rel_tol=1e-5)


def test_a_training_that_was_cut_short_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, parts = Line(), Line()
    options = FitOptions(seed=3)
    whole.fit(replace(options, epochs=7))
    parts.fit(replace(options, epochs=3, checkpoint=tmp_path))
    again = Line()
    again.fit(replace(options, epochs=7, checkpoint=tmp_path))
    for one, other in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    Line().fit(FitOptions(epochs=1, checkpoint=tmp_path))
    other = nn.Linear(3, 1)
    with pytest.raises(TrainingError, match="no checkpoint of this training"):
        fit(dict(other.named_parameters()), lambda random: [], lambda: 1.0,
            FitOptions(epochs=2, checkpoint=tmp_path), epochs=2, rates=lambda name: 0.1)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(TrainingError, match="not finite"):
        fit({"weight": weight}, lambda random: [lambda: weight.sum() / 0], lambda: 1.0,
            FitOptions(), epochs=1, rates=lambda name: 0.1)


def test_platt_finds_how_often_labels_are_one() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(20_000)
    labels = torch.rand(20_000) < torch.sigmoid(0.5 * logits - 1)
    assert platt(logits, labels) == pytest.approx((0.5, -1), abs=0.05)


def test_platt_keeps_to_what_was_where_few_labels_tell() -> None:
    assert platt(torch.tensor([1.0]), torch.tensor([1.0]), (2.0, -1.0), 50) == pytest.approx(
        (2.0, -1.0), abs=0.02)
    assert platt(torch.zeros(0), torch.zeros(0), (2.0, -1.0)) == (2.0, -1.0)
