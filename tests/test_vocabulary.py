"""The visual vocabulary: k-means, the tree, its file, and `vbkit vocab`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vbkit.cli import cli
from vbkit.errors import ModelError, StoreError, UsageError
from vbkit.model import kmeans
from vbkit.model.vocabulary import VOCABULARY_FILE, VisualVocabulary, build_vocabulary
from vbkit.training.feature_files import FeatureFile, FeatureSpill, find_feature_files


def blobs(n: int, centres: int, width: int = 8, seed: int = 0, spread: float = 0.5) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, width)) * 3
    points = middle[rng.integers(centres, size=n)] + spread * rng.standard_normal((n, width))
    return torch.from_numpy(points.astype(np.float32))


def build(x: torch.Tensor, size: int = 512, **arguments) -> VisualVocabulary:
    return build_vocabulary(lambda: x.split(size), **{"depth": 2, "branching": 4, **arguments})


def same(one: VisualVocabulary, other: VisualVocabulary) -> bool:
    return all(torch.equal(a, b) for level, level_ in zip(one._tree.levels, other._tree.levels,
                                                         strict=True)
               for a, b in zip(level, level_, strict=True))


def down_the_tree(vocabulary: VisualVocabulary, x: torch.Tensor) -> torch.Tensor:
    """Words by brute force, in float64, a point and a level at a time."""
    out = []
    for point in x.double():
        node = 0
        for centroids, children in vocabulary._tree.levels:
            first = int(children[:node].sum())
            own = centroids[first : first + int(children[node])].double()
            node = first + int((own - point).square().sum(1).argmin())
        out.append(node)
    return torch.tensor(out)


# --- k-means ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "width"), [(5, 8), (16, 20)])
def test_distortion_is_that_of_scikit_learn(k: int, width: int) -> None:
    from sklearn.cluster import KMeans

    x = blobs(3000, 40, width, spread=1.5)
    theirs = KMeans(k, n_init=5, random_state=0).fit(x.numpy()).inertia_ / len(x)
    ours = build(x, depth=1, branching=k).distortion(x)
    assert ours <= 1.03 * theirs


def test_many_centroids_of_wide_features_are_as_good_as_scikit_learns() -> None:
    """Here the first iterations see the principal components only."""
    from sklearn.cluster import KMeans

    k = kmeans._REDUCE_FROM
    x = blobs(70 * k, 60, 2 * kmeans._REDUCED_SIZE, spread=1.0)
    seen = []
    fitted = kmeans.fit(x - x.mean(0), k, np.random.default_rng(0),
                        on_iteration=lambda state: seen.append(state.centroids.shape[1]))
    assert seen[0] == kmeans._REDUCED_SIZE
    assert seen[-1] in (kmeans._REDUCED_SIZE, x.shape[1])
    theirs = KMeans(k, n_init=1, random_state=0).fit(x.numpy()).inertia_
    assert fitted.centroids.shape == (k, x.shape[1])
    assert fitted.inertia <= 1.03 * theirs


def test_nearest_and_sums_are_exact() -> None:
    x, centroids = blobs(5000, 30), blobs(37, 37, seed=1)
    distances = (x[:, None].double() - centroids.double()).square().sum(-1)
    ids, scores = kmeans.nearest(x, centroids)
    assert torch.equal(ids, distances.argmin(1))
    torch.testing.assert_close(kmeans.squared_norms(x) + 2 * scores, distances.amin(1).float(),
                               rtol=1e-4, atol=1e-4)
    sums, counts = kmeans.cluster_sums(x, ids, 40)
    assert torch.equal(counts, torch.bincount(ids, minlength=40))
    wanted = torch.zeros(40, x.shape[1], dtype=torch.float64).index_add_(0, ids, x.double())
    torch.testing.assert_close(sums, wanted, rtol=1e-5, atol=1e-4)


def test_an_empty_cluster_gets_the_farthest_point() -> None:
    x = torch.cat([blobs(200, 1, spread=0.1), torch.full((1, 8), 50.0)])
    far = torch.full((8,), 1000.0)
    start = kmeans.LloydState(0, 0, math.inf, torch.stack([x[0], far]))
    state, ids = kmeans._lloyd(x, start, 10, 1e-3, None)
    assert ids[-1] == 1
    assert torch.bincount(ids).tolist() == [200, 1]
    torch.testing.assert_close(state.centroids[1], x[-1])


def test_seeds_are_spread_over_far_groups() -> None:
    x = blobs(400, 6, spread=0.01)
    seeds = kmeans.kmeans_plus_plus(x, 6, np.random.default_rng(0))
    assert torch.cdist(seeds, seeds).fill_diagonal_(math.inf).min() > 0.5


# --- the tree ---------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 90), width=st.integers(1, 9), depth=st.integers(1, 3),
       branching=st.integers(1, 5), distinct=st.integers(1, 90), seed=st.integers(0, 5))
def test_every_word_is_used_and_assignment_is_exact(n, width, depth, branching, distinct,
                                                    seed) -> None:
    pool = torch.randn(distinct, width, generator=torch.Generator().manual_seed(seed)) * 4 + 20
    x = pool[torch.arange(n) % distinct]
    vocabulary = build(x, 7, depth=depth, branching=branching, seed=seed)
    ids = vocabulary.assign(x)
    assert len(vocabulary) <= min(n, distinct, branching ** depth)
    assert ids.unique().tolist() == list(range(len(vocabulary)))
    levels = vocabulary._tree.levels
    assert len(levels) == vocabulary.depth == depth
    assert all(1 <= c <= branching for _, children in levels for c in children.tolist())
    expected = down_the_tree(vocabulary, x)
    chosen, best = vocabulary.centroids[ids], vocabulary.centroids[expected]
    differing = ids != expected
    if differing.any():  # a tie, up to rounding
        torch.testing.assert_close((x - chosen).norm(dim=1), (x - best).norm(dim=1), atol=1e-3,
                                   rtol=1e-3)


def test_assignment_equals_brute_force_in_both_ways_of_computing_it() -> None:
    x = blobs(4000, 300, 16, spread=1.0) + 30
    vocabulary = build(x, depth=3, branching=6)
    assert len(vocabulary) == 216
    together = vocabulary.assign(x)  # grouped by node
    assert torch.equal(together[:300], down_the_tree(vocabulary, x[:300]))
    few = torch.cat([vocabulary.assign(part) for part in x[:60].split(7)])  # gathered
    assert torch.equal(few, together[:60])
    assert vocabulary.assign(x[:12].view(3, 4, 16)).tolist() == together[:12].view(3, 4).tolist()
    assert vocabulary.assign(x[:0]).shape == (0,)
    assert vocabulary.assign(x[0]).shape == ()


def test_fewer_distinct_features_than_words() -> None:
    x = torch.randn(5, 6)[torch.arange(500) % 5]
    vocabulary = build(x, depth=2, branching=4)
    assert len(vocabulary) == 5
    assert vocabulary.distortion(x) < 1e-5
    quality = vocabulary.quality(lambda: x.split(100))
    assert quality.used == 5
    assert quality.explained == pytest.approx(1)
    assert quality.perplexity == pytest.approx(5)


def test_quality_is_what_it_says() -> None:
    x = blobs(2000, 12)
    vocabulary = build(x)
    ids = vocabulary.assign(x)
    quality = vocabulary.quality(lambda: x.split(300))
    assert quality.features == 2000
    assert quality.used == len(ids.unique())
    assert quality.distortion == pytest.approx(
        float((x - vocabulary.centroids[ids]).square().sum(1).mean()), rel=1e-4)
    assert quality.variance == pytest.approx(float(x.var(0, correction=0).sum()), rel=1e-4)
    share = torch.bincount(ids).double() / len(x)
    assert quality.entropy == pytest.approx(-float((share * share.clamp(min=1e-12).log2()).sum()))
    alone = vocabulary.quality(lambda: [x[:1]])
    assert alone.variance == 0
    assert math.isnan(alone.explained)


def test_equal_seeds_give_equal_vocabularies_whatever_the_batches() -> None:
    x = blobs(3000, 50)
    assert same(build(x, 100, seed=3), build(x, 999, seed=3))
    assert not same(build(x, seed=3), build(x, seed=4))
    little = {"seed": 3, "memory": 2 * 4 * 8 * 1000}  # passes: their sums are rounded otherwise
    torch.testing.assert_close(build(x, 100, **little).centroids,
                               build(x, 999, batch_size=77, **little).centroids)


def test_more_features_than_memory_are_read_in_passes() -> None:
    x = blobs(6000, 60)
    steps = []
    whole = build(x, depth=2, branching=5)
    small = build(x, depth=2, branching=5, memory=2 * 4 * 8 * 400, progress=steps.append)
    assert {step.stage for step in steps} == {"read", "cluster", "refine"}
    assert len(small) == 25
    assert small.distortion(x) <= 1.06 * whole.distortion(x)
    passes = [step.distortion for step in steps if step.stage == "refine" and step.level == 2]
    assert passes == sorted(passes, reverse=True)  # each pass lowers what the last one measured
    means = torch.stack([x[small.assign(x) == word].mean(0) for word in range(len(small))])
    assert (small.centroids - means).norm() < 0.1 * (small.centroids - x.mean(0)).norm()


@pytest.mark.parametrize(("bad", "message"), [
    (lambda x: [x[:5], x[5:9, :3]], "are they all of one backbone"),
    (lambda x: [x[:5], torch.where(torch.arange(8) == 2, math.nan, x[5:9])], "row 5"),
    (lambda x: [x[:5], x[5:9] / 0], "NaN or infinite"),
    (lambda x: [], "no features"),
    (lambda x: [x[:0]], "no features"),
    (lambda x: [x[0]], "must be"),
])
def test_bad_features_are_refused(bad, message) -> None:
    with pytest.raises(ModelError, match=message):
        build_vocabulary(lambda: bad(blobs(20, 3)), depth=1, branching=2)


def test_large_finite_features_are_no_error() -> None:
    x = blobs(50, 3) * 1e17
    x[:, 0] = 3e38  # their sum is infinite
    build_vocabulary(lambda: [x[:, 1:]], depth=1, branching=2)
    with pytest.raises(ModelError, match="do not fit"):
        build(blobs(50, 3)).assign(torch.zeros(2, 9))


@pytest.mark.parametrize("argument", ["depth", "branching", "batch_size", "iterations", "passes"])
def test_arguments_are_positive(argument) -> None:
    with pytest.raises(ModelError, match=argument):
        build(blobs(20, 3), **{argument: 0})


# --- resumption -------------------------------------------------------------------------------


class KilledError(Exception):
    pass


@pytest.mark.parametrize("memory", [1 << 30, 2 * 4 * 8 * 300])
def test_an_interrupted_build_ends_as_an_unbroken_one(tmp_path, memory) -> None:
    x = blobs(1500, 60, spread=1.0)
    checkpoint = tmp_path / "checkpoint.safetensors"
    settings = {"depth": 3, "branching": 3, "memory": memory}
    unbroken = build(x, **settings)
    total = 0

    def count(step) -> None:
        nonlocal total
        total += 1

    build(x, progress=count, **settings)
    reads = math.ceil(len(x) / 512)
    for stop in (reads + 2, (reads + total) // 2 + 1, total - 1):
        seen = 0

        def stopping(step, stop=stop) -> None:
            nonlocal seen
            seen += 1
            if seen == stop:
                raise KilledError

        with pytest.raises(KilledError):
            build(x, progress=stopping, checkpoint=checkpoint, checkpoint_seconds=0, **settings)
        done = []
        again = build(x, progress=done.append, checkpoint=checkpoint, checkpoint_seconds=0,
                      **settings)
        assert same(again, unbroken)
        assert len(done) - reads <= total - stop + 1  # what was done is not done again
        assert not checkpoint.exists()


def test_a_node_is_resumed_in_the_middle() -> None:
    x = blobs(140 * 32, 60, 256, spread=1.0)
    states = []
    whole = kmeans.fit(x, 32, np.random.default_rng(0), on_iteration=states.append)
    assert len({state.stage for state in states}) > 1
    for state in states[::3]:
        resumed = kmeans.fit(x, 32, np.random.default_rng(0), state=state)
        assert torch.equal(resumed.centroids, whole.centroids)
        assert torch.equal(resumed.ids, whole.ids)


@pytest.mark.parametrize("change", [{"seed": 1}, {"branching": 3}, {"x": 1.0}, {"backbone": "b"}])
def test_a_checkpoint_of_another_build_is_refused(tmp_path, change) -> None:
    x = blobs(300, 9)
    checkpoint = tmp_path / "checkpoint.safetensors"

    def stop(step) -> None:
        if step.level == 2:
            raise KilledError

    with pytest.raises(KilledError):
        build(x, checkpoint=checkpoint, progress=stop)
    change = dict(change)
    with pytest.raises(ModelError, match="another build"):
        build(x + change.pop("x", 0.0), checkpoint=checkpoint, **change)


def test_a_damaged_checkpoint_and_a_full_disk_are_told(tmp_path, monkeypatch) -> None:
    x = blobs(300, 9)
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(b"\x00" * 40)
    with pytest.raises(ModelError, match="no whole checkpoint"):
        build(x, checkpoint=checkpoint)
    checkpoint.unlink()

    def full(*arguments, **keywords) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vbkit.model.stored_tensors.save_file", full)
    with pytest.raises(ModelError, match="No space left on device"):
        build(x, checkpoint=checkpoint)
    assert not list(tmp_path.iterdir())


# --- the file ---------------------------------------------------------------------------------


@pytest.fixture
def vocabulary() -> VisualVocabulary:
    return build(blobs(500, 20), space="embeddings", backbone="abc")


def test_saved_and_loaded_it_is_the_same(tmp_path, vocabulary) -> None:
    path = vocabulary.save(tmp_path / "model")
    assert path == tmp_path / "model" / VOCABULARY_FILE
    for place in (path, path.parent):
        loaded = VisualVocabulary.load(place, backbone="abc", feature_size=8, space="embeddings")
        assert same(loaded, vocabulary)
        assert (loaded.depth, loaded.branching, loaded.space, loaded.backbone, len(loaded)) == (
            2, 4, "embeddings", "abc", 16)
    x = blobs(200, 20, seed=5)
    assert torch.equal(loaded.assign(x), vocabulary.assign(x))


@pytest.mark.parametrize(("wanted", "message"), [
    ({"backbone": "other"}, "another backbone"),
    ({"feature_size": 1280}, "8 embeddings, but the model has 1280"),
    ({"space": "features"}, "embeddings, but features are asked for"),
])
def test_a_vocabulary_of_another_model_is_refused(tmp_path, vocabulary, wanted, message) -> None:
    vocabulary.save(tmp_path)
    with pytest.raises(ModelError, match=message):
        VisualVocabulary.load(tmp_path, **wanted)


def test_damaged_files_are_refused(tmp_path, vocabulary) -> None:
    with pytest.raises(ModelError, match="no such file"):
        VisualVocabulary.load(tmp_path)
    path = vocabulary.save(tmp_path)
    whole = path.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match="no whole visual vocabulary"):
            VisualVocabulary.load(tmp_path)
    path.write_bytes(whole)
    tensors = load_file(path)

    def written(metadata: dict[str, str], **changed: torch.Tensor) -> None:
        save_file({**tensors, **changed}, path, metadata=metadata)
        VisualVocabulary.load(tmp_path)

    good = {"format": "vbkit.visual_vocabulary", "version": "1", "depth": "2", "branching": "4",
            "words": "16", "space": "embeddings", "feature_size": "8", "backbone": "abc"}
    written(good)
    cases = [
        ({**good, "version": "2"}, {}, "version 2"),
        ({**good, "format": "other"}, {}, "is no visual vocabulary"),
        ({**good, "depth": "3"}, {}, "no whole vocabulary"),
        ({**good, "words": "17"}, {}, "header says 17"),
        (good, {"children_2": torch.tensor([4, 4, 4, 3], dtype=torch.int32)}, "not the children"),
        (good, {"children_2": torch.tensor([5, 4, 4, 3], dtype=torch.int32)}, "more than 4"),
        (good, {"centroids_2": tensors["centroids_2"] / 0}, "not finite"),
    ]
    for metadata, changed, message in cases:
        with pytest.raises(ModelError, match=message):
            written(metadata, **changed)


def test_levels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="at least one level"):
        VisualVocabulary([], branching=2)
    with pytest.raises(ModelError, match="space"):
        VisualVocabulary([(torch.zeros(2, 3), torch.tensor([2]))], branching=2, space="pixels")


# --- files of features ------------------------------------------------------------------------


def test_feature_files_are_found_and_read(tmp_path) -> None:
    x = blobs(50, 3)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "one.npy", x.numpy())
    save_file({"clip_features": x.half(), "clip_times": torch.zeros(50, 2)},
              tmp_path / "two.safetensors")
    save_file({"anything": x.bfloat16(), "ids": torch.zeros(50, 2, dtype=torch.int64)},
              tmp_path / "three.safetensors")
    found = find_feature_files(tmp_path)
    assert found is not None
    assert [path.name for path in found] == ["three.safetensors", "two.safetensors", "one.npy"]
    for path in found:
        rows = np.concatenate(list(FeatureFile.open(path, "clip_features").batches(7)))
        np.testing.assert_allclose(rows, x.numpy(), rtol=1e-2, atol=1e-2)
        assert rows.dtype == np.float32
    (tmp_path / "talk.mp4").touch()
    assert find_feature_files(tmp_path) is None


def test_feature_files_that_are_none_are_refused(tmp_path) -> None:
    def written(name: str, **tensors: torch.Tensor) -> Path:
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.zeros(5, np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((5, 2), np.int64))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "flat.npy").read_bytes()[:50])
    (tmp_path / "cut.safetensors").write_bytes(b"\x09")
    two = written("two.safetensors", a=torch.zeros(2, 2), b=torch.zeros(2, 2))
    none = written("none.safetensors", a=torch.zeros(2))
    cases = [(tmp_path / "objects.npy", "cannot be read"), (tmp_path / "flat.npy", "shape"),
             (tmp_path / "whole.npy", "int64"), (tmp_path / "cut.npy", "cannot be read"),
             (tmp_path / "cut.safetensors", "safetensors"), (two, "several"), (none, "no others"),
             (tmp_path / "missing.npy", "cannot be read")]
    for path, message in cases:
        with pytest.raises(UsageError, match=message):
            FeatureFile.open(path, "clip_features")


def test_spilled_features_come_back_in_order(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("vbkit.training.feature_files._SHARD_BYTES", 1000)
    spill = FeatureSpill(tmp_path / "spill")
    x = blobs(200, 3).numpy()
    for part in np.array_split(x, 13):
        spill.add(part)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(spill.batches())), x)
    assert spill.rows == 200
    assert len(list((tmp_path / "spill").iterdir())) > 3

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vbkit.training.feature_files.np.save", full)
    with pytest.raises(StoreError, match="No space left on device"):
        spill.add(x)


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def vocab(engine, monkeypatch):
    """`vbkit vocab` with a model that is loaded already."""
    monkeypatch.setattr("vbkit.engine.engine.Bundle", lambda *arguments: engine.bundle)

    def run(*arguments: object):
        return CliRunner().invoke(cli, ["vocab", *map(str, arguments)])

    return run


def test_a_video_becomes_a_small_tree_and_that_is_said(vocab, engine, sample, tmp_path) -> None:
    result = vocab(sample, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    loaded = VisualVocabulary.load(tmp_path, backbone=engine.bundle.visual_key,
                                   feature_size=engine.bundle.config.visual_feature_size,
                                   space="features")
    assert len(loaded) == report["words"] == report["train"]["used"]
    assert report["train"]["features"] + report["held_out"]["features"] == 10
    assert any("too few" in note for note in report["notes"])
    assert not (tmp_path / "features.part").exists()

    # From the cache; what cannot be read is counted, and the words are of the rest.
    both = vocab(sample, tmp_path / "nope.mp4", "--out", tmp_path, "--space", "embeddings",
                 "--branching", "2", "--depth", "1")
    assert both.exit_code == 1
    assert "nope.mp4: " in both.stderr
    assert "1 failed" in both.stdout
    assert "variance explained" in both.stdout
    features = next(engine.encode([sample], {"clip_embeddings"}, transcript="none"))
    words = VisualVocabulary.load(tmp_path, space="embeddings")
    assert sorted(words.assign(features.clip_embeddings).unique().tolist()) == [0, 1]


def test_precomputed_features_and_every_tenth_file_held_out(vocab, engine, tmp_path) -> None:
    width = engine.bundle.config.visual_feature_size
    folder = tmp_path / "features"
    folder.mkdir()
    x = blobs(2000, 30, width)
    for number, part in enumerate(x.split(100)):
        np.save(folder / f"{number:02}.npy", part.numpy())
    result = vocab(folder, "--out", tmp_path / "out", "--depth", "2", "--branching", "4", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["train"]["features"], report["held_out"]["features"]) == (1800, 200)
    assert report["words"] == 16
    loaded = VisualVocabulary.load(tmp_path / "out")
    held = engine.bundle.model.standardise(torch.cat([x[900:1000], x[1900:]]))
    assert loaded.distortion(held) == pytest.approx(report["held_out"]["distortion"], rel=1e-4)
    assert 0 < report["held_out"]["explained"] < 1


def test_a_corpus_and_a_manifest_with_features(vocab, engine, tmp_path) -> None:
    from training_files import tokenizer

    from vbkit.training.corpus import CorpusItem, write_corpus

    width = engine.bundle.config.visual_feature_size
    x = blobs(300, 20, width).numpy()
    items = [CorpusItem(str(i), x[10 * i : 10 * i + 10], split="val" if i == 4 else "train")
             for i in range(20)]
    for name, key in (("corpus", engine.bundle.visual_key), ("other", "0123")):
        write_corpus(items, tmp_path / name, tokenizer=tokenizer(), backbone=key)
    for number in range(10):
        np.save(tmp_path / f"{number}.npy", x[200 + 10 * number :][:10].reshape(2, 5, width))
    bad = x[:10].copy()
    bad[2] = np.inf
    np.save(tmp_path / "10.npy", bad)
    (tmp_path / "rows.csv").write_text("id,features\n" + "".join(
        f"{number},{number}.npy\n" for number in range(11)))
    result = vocab(tmp_path / "corpus", tmp_path / "rows.csv", "--out", tmp_path / "out",
                   "--depth", "2", "--branching", "3", "--json")
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout)
    assert (report["n_inputs"], report["n_failed"]) == (31, 1)
    assert "row 2 " in report["failures"][0]["message"]
    assert (report["train"]["features"], report["held_out"]["features"]) == (280, 20)
    refused = vocab(tmp_path / "other", "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "backbone 0123" in refused.stderr


def test_a_build_that_was_cut_short_goes_on_and_fresh_starts_anew(vocab, engine, tmp_path,
                                                                  monkeypatch) -> None:
    width = engine.bundle.config.visual_feature_size
    np.save(tmp_path / "x.npy", blobs(400, 30, width).numpy())
    arguments = [tmp_path / "x.npy", "--out", tmp_path / "out", "--depth", "2", "--branching", "3",
                 "--json"]
    assert vocab(*arguments).exit_code == 0
    whole = VisualVocabulary.load(tmp_path / "out")

    from vbkit.model import vocabulary as module

    real = module.fit
    calls = []

    def dies(*given, **keywords):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given, **keywords)

    monkeypatch.setattr(module, "fit", dies)
    assert vocab(*arguments).exit_code == 130
    assert (tmp_path / "out" / "vocabulary.checkpoint.safetensors").exists()
    assert not (tmp_path / "out" / "features.part").exists()
    calls[:] = [1] * 10
    assert vocab(*arguments).exit_code == 0
    assert len(calls) == 13  # the three nodes of the second level
    assert same(VisualVocabulary.load(tmp_path / "out"), whole)

    calls[:] = []
    assert vocab(*arguments).exit_code == 130
    other = vocab(*arguments, "--seed", "7")
    assert other.exit_code == 1
    assert "--fresh" in other.stderr
    calls[:] = [1] * 10
    assert vocab(*arguments, "--seed", "7", "--fresh").exit_code == 0


def test_bad_input_is_told_in_one_line(vocab, engine, tmp_path) -> None:
    width = engine.bundle.config.visual_feature_size
    nan = np.zeros((30, width), np.float32)
    nan[17, 3] = np.nan
    np.save(tmp_path / "nan.npy", nan)
    np.save(tmp_path / "wide.npy", np.zeros((30, width + 3), np.float32))
    np.save(tmp_path / "narrow.npy", np.zeros((30, 5), np.float32))
    (tmp_path / "empty").mkdir()
    cases = [
        ([tmp_path / "nan.npy"], 1, "row 17"),
        ([tmp_path / "wide.npy"], 1, "another backbone"),
        ([tmp_path / "narrow.npy"], 1, "another backbone"),
        ([tmp_path / "missing.npy"], 1, "missing.npy"),
        ([tmp_path / "empty"], 2, "no clips"),
        ([tmp_path / "nope.mp4"], 1, "none of 1 inputs"),
        ([tmp_path / "nan.npy", "--depth", "0"], 2, "--depth"),
    ]
    for arguments, status, message in cases:
        result = vocab(*arguments, "--out", tmp_path / "out")
        assert result.exit_code == status, result.output
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_a_full_disk_is_told(vocab, engine, tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "x.npy", blobs(30, 3, engine.bundle.config.visual_feature_size).numpy())

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vbkit.training.feature_files.np.save", full)
    result = vocab(tmp_path / "x.npy", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr
