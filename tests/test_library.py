"""Questions to a results folder: its index of embeddings, and what is read for an answer."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import vbkit
from vbkit.engine.index import EmbeddingIndex, IndexedVideo, index_path
from vbkit.engine.library import Library, _in_turn
from vbkit.errors import StoreError, UsageError

SUBJECTS = ["bees and their honey", "the engine of a car", "a loaf of bread", "the moons of Saturn",
            "a wooden chair", "the history of Rome", "a violin concerto", "the tides of the sea"]
SAY = ["Welcome back, today we talk about {}.", "Most people know little about {}.",
       "Here is what matters most: {}, and how it all began.", "Thank you for listening."]
ASKED = "What do people know about the moons of Saturn?"


def write_manifest(path, sample, subjects=SUBJECTS) -> None:
    rows = [{"id": f"talk {i}", "text": [
        {"text": text.format(subject), "start": 4.0 * k, "end": 4.0 * k + 3}
        for k, text in enumerate(SAY)]} for i, subject in enumerate(subjects)]
    rows[0]["video"] = str(sample)
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def made(engine, sample, tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    write_manifest(folder / "talks.jsonl", sample)
    result = engine.run([folder / "talks.jsonl"], ["qa"], out=folder / "out")
    assert result.report.n_ok == len(SUBJECTS)
    return folder / "out"


@pytest.fixture
def out(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def written(out) -> int:
    return index_path(out).stat().st_mtime_ns


def test_a_run_leaves_an_index_that_is_used_as_it_is(engine, made) -> None:
    before = written(made)
    library = Library(engine, made)
    found = library.search("planets and their moons", 3)
    assert written(made) == before
    assert library.missing == []
    best = found[found["modality"] == "text"].iloc[0]
    assert (best["video_id"], "Saturn" in best["text"]) == ("talk 3", True)


def test_search_finds_what_a_look_at_every_vector_finds(engine, made) -> None:
    library = Library(engine, made)
    query = engine.encode_text(["cars on a road"])[0]
    every = {"text": [], "visual": []}
    for features in library.features(frozenset({"clip_embeddings", "segment_embeddings"})):
        every["text"] += (features.segment_embeddings @ query).tolist()
        every["visual"] += (features.clip_embeddings @ query).tolist()
    found = library.search("cars on a road", 12)
    for modality, scores in every.items():
        ours = found.loc[found["modality"] == modality, "score"]
        assert ours.iloc[0] == pytest.approx(max(scores), abs=1e-3)
    text = found.loc[found["modality"] == "text", "score"].to_numpy()
    assert text == pytest.approx(sorted(every["text"], reverse=True)[: len(text)], abs=1e-3)


def test_only_the_nearest_videos_are_read(engine, made, monkeypatch) -> None:
    from vbkit_qa.head import QaHead

    read = []
    predict = QaHead.predict
    monkeypatch.setattr(QaHead, "predict",
                        lambda self, features: read.append(features.video_id)
                        or predict(self, features))
    library = Library(engine, made)
    few = library.ask(ASKED, most=3)
    assert "talk 3" in read
    assert len(read) == 3
    read.clear()
    whole = library.ask(ASKED)
    assert len(read) == len(SUBJECTS)
    assert few.iloc[0].to_dict() == whole.iloc[0].to_dict()
    assert few.iloc[0]["video_id"] == "talk 3"


def test_several_questions_are_encoded_once_and_answered_in_turn(engine, made, monkeypatch) -> None:
    encoded = []
    embed = type(engine.encoder)._embed
    monkeypatch.setattr(type(engine.encoder), "_embed",
                        lambda self, texts: encoded.extend(texts) or embed(self, texts))
    other = "How is a wooden chair built, and how did it begin?"
    answers = Library(engine, made).ask([ASKED, other, ASKED], 2)
    assert answers["question"].tolist() == [ASKED] * 2 + [other] * 2
    assert answers["rank"].tolist() == [1, 2, 1, 2]
    assert answers["video_id"].tolist()[::2] == ["talk 3", "talk 4"]
    assert len(encoded) == len(set(encoded))
    alone = Library(engine, made).ask(other, 2)
    assert alone["answer"].tolist() == answers["answer"].tolist()[2:]
    assert alone["score"].tolist() == pytest.approx(answers["score"].tolist()[2:])


def test_the_index_follows_the_results(engine, out, tmp_path, sample) -> None:
    write_manifest(tmp_path / "talks.jsonl", sample, [*SUBJECTS[:3], "the rings of Jupiter",
                                                      *SUBJECTS[4:], "a recipe for goulash"])
    engine.run([tmp_path / "talks.jsonl"], ["qa"], out=out)
    index = Library(engine, out).index()
    assert len(index) == len(SUBJECTS) + 1
    found = Library(engine, out).search("goulash and Jupiter", 30)
    texts = " ".join(found["text"].dropna())
    assert "goulash" in texts
    assert "Jupiter" in texts
    assert "Saturn" not in texts


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_lost_index_is_made_anew(engine, out, damage) -> None:
    wanted = Library(engine, out).search("bread").drop(columns="text")
    path = index_path(out)
    if damage == "gone":
        shutil.rmtree(path.parent)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.write_text("nothing of the kind")
    assert Library(engine, out).search("bread").drop(columns="text").equals(wanted)
    assert EmbeddingIndex.load(out, Library(engine, out).index().key) is not None


def test_a_folder_that_cannot_be_written_is_searched_all_the_same(engine, out) -> None:
    shutil.rmtree(index_path(out).parent)
    index_path(out).parent.write_text("a file where the folder should be")
    assert len(Library(engine, out).search("bread"))


def test_videos_without_features_are_named_until_they_are_back(engine, out, monkeypatch) -> None:
    monkeypatch.setattr(engine, "cache", out / "cache")  # the copy
    (visual,) = (out / "cache").rglob("visual-*.safetensors")
    kept = visual.read_bytes()
    visual.unlink()
    shutil.rmtree(index_path(out).parent)
    library = Library(engine, out)
    answers = library.ask(ASKED)
    assert library.missing == ["talk 0"]
    assert "talk 0" not in set(answers["video_id"])
    visual.write_bytes(kept)
    library = Library(engine, out)
    assert (library.search("a traffic jam")["modality"] == "visual").any()
    assert library.missing == []


def test_texts_that_no_task_read_are_indexed_when_they_are_asked_for(engine, sample,
                                                                    tmp_path) -> None:
    write_manifest(tmp_path / "talks.jsonl", sample, SUBJECTS[:2])
    engine.run([tmp_path / "talks.jsonl"], ["classification"], out=tmp_path / "out",
               options={"classification": {"labels": "cooking,sport"}})
    assert len(Library(engine, tmp_path / "out").search("honey")) > 1


def test_of_empty_questions_the_caller_is_told(engine, made) -> None:
    for question in ("", " ", [], ["a", ""]):
        with pytest.raises(UsageError, match="question"):
            Library(engine, made).ask(question)
    with pytest.raises(StoreError):
        vbkit.load_table(made, "nothing")


def test_nearest_is_the_greatest_cosine_of_each_video() -> None:
    generator = torch.Generator().manual_seed(0)

    def video(place: int, clips: int, segments: int) -> IndexedVideo:
        rows = [torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1).half()
                for n in (clips, segments)]
        return IndexedVideo({"video_id": str(place)}, "", True, *rows,
                            *(torch.zeros(n, 2, dtype=torch.float64) for n in (clips, segments)))

    videos = [video(0, 3, 0), video(1, 0, 0), video(2, 40000, 2), video(3, 1, 1)]
    index = EmbeddingIndex.of("key", videos, 8)
    queries = torch.nn.functional.normalize(torch.randn(2, 8, generator=generator), dim=1)
    for name in ("clip", "segment"):
        best = index.nearest(queries, name)
        for place, each in enumerate(videos):
            vectors = getattr(each, f"{name}_embeddings").float()
            wanted = ((queries @ vectors.T).amax(1) if len(vectors)
                      else torch.full((2,), -np.inf))
            assert torch.allclose(best[:, place], wanted)
            assert getattr(index.video(place), f"{name}_embeddings").equal(
                getattr(each, f"{name}_embeddings"))


def test_rankings_are_read_in_turn() -> None:
    assert _in_turn([[1, 2, 3], [2, 4], []], 4) == [1, 2, 4, 3]
    assert _in_turn([[1, 2, 3], [2, 4]], 2) == [1, 2]
