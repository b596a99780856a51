"""Explanations: weights, hiding, the table, the command; and whether what is named is evidence."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import vbkit
from vbkit import Column, Features, TableSchema, TaskSpec
from vbkit.cli import cli
from vbkit.errors import FeatureError, PluginError, SchemaError, StoreError, UsageError
from vbkit.explanations import (
    EXPLANATIONS,
    Attribution,
    Explanation,
    Piece,
    attribute,
    check_explanations,
    clip_pieces,
    clips_within,
    explain_pieces,
    explain_text,
    explanations_frame,
    hide,
    part,
    segment_pieces,
    word_pieces,
    word_spans,
)
from vbkit.store import ResultStore
from vbkit.store.explained import forget_explanations, keep_explanations


def encode(texts: Sequence[str]) -> torch.Tensor:
    """A text encoder that counts letters."""
    return torch.tensor([[float(text.count(letter)) for letter in "abcd"] for text in texts])


def video(segments: Sequence[str] = ("a b", "c", "", "d a"), clips: int = 4,
          **more: Any) -> Features:
    starts = np.arange(clips) * 1.5
    times = np.arange(len(segments)) * 2.0
    return Features("v", {
        "segments": list(segments), "segment_times": np.stack([times, times + 2], 1),
        "segment_embeddings": encode(segments), "encode_text": encode,
        "clip_times": np.stack([starts, starts + 1.5], 1), "clip_features": torch.eye(clips),
        **more}, language="en")


# Weights


@given(st.lists(st.floats(-5, 5), max_size=9), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_sum_is_explained_by_its_terms(terms: list[float], seed: int) -> None:
    values = torch.tensor(terms, dtype=torch.float64)
    found = attribute(lambda shown: shown.double() @ values + 1, len(terms), seed=seed)
    assert found.weights == pytest.approx(terms, abs=1e-5)
    assert found.score_hidden == pytest.approx(1)
    assert sum(found.weights) == pytest.approx(found.score - found.score_hidden, abs=1e-4)


def test_pieces_that_say_the_same_share_what_ablation_misses() -> None:
    def score(shown: torch.Tensor) -> torch.Tensor:
        return (shown[:, 0] | shown[:, 1]).double()

    assert attribute(score, 4).weights == pytest.approx((0.5, 0.5, 0, 0), abs=1e-6)
    assert attribute(score, 4, method="ablation").weights == pytest.approx((0, 0, 0, 0))


def test_sampled_weights_are_near_the_exact_ones_and_repeatable() -> None:
    def score(shown: torch.Tensor) -> torch.Tensor:
        return (shown[:, 0] & shown[:, 1]).double() + 0.5 * (shown[:, 2] | shown[:, 3]).double()

    state = torch.get_rng_state()
    first, second = attribute(score, 8), attribute(score, 8)
    assert first == second
    assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are its own
    assert first.weights == pytest.approx((0.5, 0.5, 0.25, 0.25, 0, 0, 0, 0), abs=0.15)
    assert sum(first.weights) == pytest.approx(1.5, abs=1e-5)


def test_no_combination_is_scored_twice() -> None:
    seen: list[tuple[bool, ...]] = []

    def score(shown: torch.Tensor) -> list[float]:
        seen.extend(tuple(row) for row in shown.tolist())
        return [float(sum(row)) for row in shown.tolist()]

    attribute(score, 7)
    assert len(seen) == len(set(seen)) <= 2**7


@pytest.mark.parametrize(("score", "error"), [
    (lambda shown: [math.nan] * len(shown), FeatureError),
    (lambda shown: [1.0], FeatureError),
])
def test_a_score_that_is_none_is_an_error(score: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        attribute(score, 3)


def test_an_unknown_method_is_an_error() -> None:
    with pytest.raises(ValueError, match="guess"):
        attribute(lambda shown: [0.0] * len(shown), 2, method="guess")


def test_the_word_that_matters_is_named() -> None:
    text = "this was not a bad film, I think"
    spans, found = explain_text(lambda texts: ["bad" in each for each in texts], text)
    words = [text[start:end] for start, end in spans]
    assert words == text.split()
    assert dict(zip(words, found.weights, strict=True))["bad"] == pytest.approx(1)
    assert sum(map(abs, found.weights)) == pytest.approx(1)


# Pieces


@given(st.text(max_size=60), st.integers(1, 12))
def test_words_cover_all_that_is_no_blank_once(text: str, most: int) -> None:
    spans = word_spans(text, most)
    assert len(spans) <= most
    assert all(start < end for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    covered = {at for start, end in spans for at in range(start, end)}
    assert all(char.isspace() for at, char in enumerate(text) if at not in covered)


def test_where_there_are_no_blanks_a_character_is_a_word() -> None:
    assert word_spans("我爱你 ok") == [(0, 1), (1, 2), (2, 3), (4, 6)]


@given(st.sets(st.integers(0, 40)), st.integers(1, 10))
def test_pieces_cover_what_was_named_and_nothing_else(clips: set[int], most: int) -> None:
    pieces = clip_pieces(video(clips=41), clips, most)
    covered = [index for piece in pieces for index in piece.indices]
    assert covered == sorted(clips)
    gaps = sum(after - before > 1 for before, after in pairwise(sorted(clips)))
    assert len(pieces) <= most + gaps


def test_silent_segments_are_no_evidence() -> None:
    assert [piece.first for piece in segment_pieces(video())] == [0, 1, 3]
    assert [piece.first for piece in word_pieces(video(), range(4))] == [0, 0, 1, 3, 3]
    assert len(word_pieces(video(("a " * 30, "b " * 10)), [0, 1], most=8)) == 8


@pytest.mark.parametrize("wrong", [
    ("sound", 0, 0), ("clip", 2, 1), ("clip", -1, 0), ("word", 0, 0), ("word", 0, 1, 0, 2),
    ("segment", 0, 0, 1, 2), ("word", 0, 0, 2, 2),
])
def test_what_is_no_piece_is_refused(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):
        Piece(*wrong)


# Hiding


def test_a_hidden_segment_keeps_its_place_and_says_nothing() -> None:
    features = video()
    seen = hide(features, [Piece("segment", 0, 0), Piece("word", 3, 3, 2, 3)])
    assert seen.segments == ["", "c", "", "d"]
    assert seen.segment_embeddings.tolist() == [[0] * 4, [0, 0, 1, 0], [0] * 4, [0, 0, 0, 1]]
    assert seen.segment_times.tolist() == features.segment_times.tolist()
    assert features.segments[0] == "a b"
    assert features.segment_embeddings[0].tolist() == [1, 1, 0, 0]


def test_a_segment_without_words_is_a_hidden_segment() -> None:
    features = video()
    one, other = (hide(features, pieces) for pieces in (
        word_pieces(features, [0]), [Piece("segment", 0, 0)]))
    assert one.segments == other.segments
    assert torch.equal(one.segment_embeddings, other.segment_embeddings)


def test_hidden_clips_are_gone_and_the_others_keep_their_times() -> None:
    seen = hide(video(), [Piece("clip", 1, 2)])
    assert seen.clip_times[:, 0].tolist() == [0, 4.5]
    assert seen.clip_features.argmax(1).tolist() == [0, 3]
    assert clips_within(seen, 4.0, 6.0) == [1]
    assert len(hide(video(), clip_pieces(video())).clip_times) == 0


def test_what_the_joint_encoder_mixed_cannot_be_read() -> None:
    features = video(pooled=torch.ones(3), clip_hidden=torch.eye(4),
                     segment_hidden=torch.ones(4, 2))
    seen = hide(features, [Piece("clip", 0, 0), Piece("segment", 1, 1)])
    assert seen.clip_hidden.shape == (3, 4)
    assert seen.segment_hidden[1].tolist() == [0, 0]
    with pytest.raises(FeatureError, match="hidden"):
        _ = seen.pooled
    with pytest.raises(FeatureError, match="segment_hidden"):
        hide(features, [Piece("word", 0, 0, 0, 1)])


def test_words_cannot_be_hidden_without_an_encoder() -> None:
    features = video()
    with pytest.raises(FeatureError, match="explain_needs"):
        hide(features.restrict(features.available - {"encode_text"}),
             word_pieces(features, [0])[:1])


def test_a_part_is_counted_anew() -> None:
    whole = video()
    some = part(whole, segments=[1, 3], clips=[2])
    assert some.segments == ["c", "d a"]
    assert some.clip_times.tolist() == [[3, 4.5]]
    assert some.language == "en"
    assert [piece.moved([1, 3]) for piece in word_pieces(some, [1])] == word_pieces(whole, [3])


def test_clips_words_and_segments_are_weighed_together() -> None:
    features = video()

    def score(variants: Sequence[Features]) -> list[float]:
        return [float(each.segment_embeddings[:, 0].sum()) + 10 * len(each.clip_times)
                for each in variants]

    pieces = [*word_pieces(features, [0]), *segment_pieces(features, [1, 3]),
              *clip_pieces(features, [0, 1], most=1)]
    found = explain_pieces(score, features, pieces)
    assert found.weights == pytest.approx((1, 0, 0, 1, 20), abs=1e-6)
    table = explanations_frame(features, "t", [Explanation(3, "score", pieces, found)])
    assert table["weight"].is_monotonic_decreasing
    first = table.iloc[0]
    assert (first["kind"], first["rank"], first["first_clip"], first["last_clip"]) == (
        "clip", 1, 0, 1)
    assert (first["start_s"], first["end_s"]) == (0, 3)
    word = table[(table["kind"] == "word") & (table["rank"] == 1)].iloc[0]
    assert (word["text"], word["start_char"], word["end_char"], word["of_row"]) == ("a", 0, 1, 3)
    assert table.loc[table["text"] == "d a", "start_s"].tolist() == [6.0]


# The table


def rows_of(table: str = "t", index: Sequence[int] = (0,)) -> pd.DataFrame:
    rows = pd.DataFrame({"score": [0.5] * len(index)}, index=list(index))
    rows.attrs["table"] = table
    return rows


def test_what_a_head_returns_is_checked() -> None:
    features = video()
    good = explanations_frame(features, "t", [Explanation(
        0, "score", clip_pieces(features, [0]), Attribution((0.5,), 0.5, 0.0))])
    assert check_explanations(good, rows_of()).equals(good)
    assert len(check_explanations(EXPLANATIONS.empty(), rows_of())) == 0
    for frame, rows, why in (
        (good, rows_of("other"), "of_table"), (good, rows_of(index=[1]), "of_row"),
        (good.assign(kind="sound"), rows_of(), "kind"), (good.assign(weight=math.inf), rows_of(),
                                                         "weight"),
        (good.drop(columns="rank"), rows_of(), "rank"),
    ):
        with pytest.raises(SchemaError, match=why):
            check_explanations(frame, rows)


def test_a_task_says_what_it_explains() -> None:
    tables = tuple(TableSchema(name, (Column("score", "float64"),)) for name in ("t", "t_videos"))
    declared: dict[str, Any] = {"name": "t", "summary": "a task", "head": "t:Head",
                                "needs": frozenset(), "tables": tables}
    assert TaskSpec(**declared).explained == ()
    able = {**declared, "capabilities": {"explain"}}
    assert TaskSpec(**able).explained == ("t", "t_videos")
    assert TaskSpec(**able, explain_tables=("t",)).explained == ("t",)
    assert TaskSpec(**able, explain_needs={"encode_text"}).explain_needs == {"encode_text"}
    for wrong in ({**able, "explain_tables": ("u",)}, {**able, "explain_needs": {"smell"}},
                  {**declared, "explain_tables": ("t",)}):
        with pytest.raises(PluginError):
            TaskSpec(**wrong)


def test_kept_explanations_replace_those_of_the_same_rows(tmp_path: Path) -> None:
    features, store = video(), ResultStore(tmp_path)

    def about(table: str, row: int, weight: float) -> pd.DataFrame:
        return explanations_frame(features, table, [Explanation(
            row, "score", clip_pieces(features, [0]), Attribution((weight,), weight, 0.0))])

    for table, row, weight in (("t", 0, 1.0), ("t", 1, 2.0), ("u", 0, 3.0), ("t", 0, 4.0)):
        keep_explanations(store, "v", table, [row], about(table, row, weight))
    assert vbkit.load_table(tmp_path, "explanations")["weight"].tolist() == [2, 3, 4]
    keep_explanations(store, "v", "t", [1], EXPLANATIONS.empty())
    assert vbkit.load_table(tmp_path, "explanations")["weight"].tolist() == [3, 4]
    forget_explanations(store, "v", {"t"})
    assert vbkit.load_table(tmp_path, "explanations")["weight"].tolist() == [3]
    forget_explanations(store, "v", {"u"})
    assert vbkit.list_tables(tmp_path) == []


# A results folder


TASKS = ["moderation", "sentiment", "qa", "summarisation", "classification"]
LABELS = {"classification": {"labels": "a cartoon animal, traffic in a street", "clips": True}}
INSULT = "You are a stupid worthless idiot, shut up."


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, engine: vbkit.Engine, sample: Path) -> Path:
    """All tasks on the sample clip and on a text."""
    folder = tmp_path_factory.mktemp("explain")
    shutil.copy(sample, folder / "talk.mp4")
    shutil.copy(sample.with_suffix(".srt"), folder / "talk.srt")
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, (
        {"id": "talk", "video": "talk.mp4"},
        {"id": "text", "text": ["Good morning, and welcome back.", INSULT,
                                "The train leaves at nine from platform four.",
                                "I love this wonderful park."]}))))
    result = engine.run([folder / "m.jsonl"], TASKS, out=folder / "results", options=LABELS,
                        questions=["When does the train leave?", "When does a bicycle appear?"])
    assert not result.report.failures
    return folder / "results"


def number(out: Path, table: str, **values: Any) -> int:
    """Of the first row with these values."""
    frame = vbkit.load_table(out, table)
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return int(frame.index[0])


@pytest.mark.parametrize("table", [
    "moderation", "moderation_videos", "sentiment", "sentiment_videos", "qa",
    "summarisation_segments", "classification", "classification_clips"])
def test_every_row_with_a_score_is_explained(engine: vbkit.Engine, out: Path, table: str) -> None:
    whole = vbkit.load_table(out, table)
    picked = whole.groupby("video_id").tail(1)
    found = engine.explain(out, table, list(picked.index))
    assert set(found["of_table"]) == {table}
    scores = ["p_negative", "p_neutral", "p_positive"] if table.startswith("sentiment") else [
        "score"]
    place = whole.groupby("video_id").cumcount()
    for index, row in picked.iterrows():
        own = found[(found["video_id"] == row["video_id"]) & (found["of_row"] == place[index])]
        if row[scores].isna().all():
            assert not len(own)
            continue
        # The score that is explained is that of the row.
        assert own["score"].nunique() == 1
        assert np.isclose(row[scores].to_numpy(float), own["score"].iloc[0], atol=2e-3).any()
        assert sorted(own.loc[own["kind"] == own["kind"].iloc[0], "rank"]) == list(
            range(1, 1 + (own["kind"] == own["kind"].iloc[0]).sum()))


def test_the_insult_is_what_makes_the_row(engine: vbkit.Engine, out: Path) -> None:
    found = engine.explain(out, "moderation", number(out, "moderation", video_id="text"))
    assert set(found["kind"]) == {"word"}
    assert found["first_segment"].tolist() == [1] * len(found)
    assert {"stupid", "idiot,", "worthless"} & set(found["text"][:3])
    assert found["weight"].sum() == pytest.approx(
        found["score"].iloc[0] - found["score_hidden"].iloc[0], abs=1e-4)
    for _, row in found.iterrows():
        assert INSULT[row["start_char"]:row["end_char"]] == row["text"]


def test_the_violence_is_what_makes_a_threat(engine: vbkit.Engine, tmp_path: Path) -> None:
    said = "Tomorrow I will come over and kill you."
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "a", "text": [said, "The park is open."]}))
    engine.run([tmp_path / "m.jsonl"], ["moderation"], out=tmp_path / "results")
    row = number(tmp_path / "results", "moderation", category="threat")
    found = engine.explain(tmp_path / "results", "moderation", row)
    assert "kill" in set(found.sort_values("rank")["text"][:2])
    assert found["score_hidden"].iloc[0] < found["score"].iloc[0] / 2


def test_the_answer_is_made_by_its_segment(engine: vbkit.Engine, out: Path) -> None:
    row = number(out, "qa", video_id="text", question="When does the train leave?", rank=1)
    found = engine.explain(out, "qa", row)
    best = found[found["rank"] == 1].set_index("kind")
    assert best.at["segment", "first_segment"] == 2
    words = found[found["kind"] == "word"]
    assert {"train", "leaves"} & set(words["text"][:3])


def test_labels_are_explained_by_the_scene_that_shows_them(engine: vbkit.Engine,
                                                           out: Path) -> None:
    row = number(out, "classification", video_id="talk", label="traffic in a street")
    found = engine.explain(out, "classification", row)
    clips = vbkit.load_table(out, "classification_clips")
    shown = clips[(clips["video_id"] == "talk") & (clips["label"] == "traffic in a street")]
    likely = set(shown.loc[shown["score"] > 0.5, "clip"])
    strongest = set(found["first_clip"][: len(likely)])
    assert len(strongest & likely) >= 0.7 * len(likely)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["explain", *arguments])


@pytest.fixture
def loaded(engine: vbkit.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vbkit.engine.engine.Bundle", lambda *arguments: engine.bundle)


@pytest.mark.usefixtures("loaded")
def test_the_command_prints_saves_and_forgets(engine: vbkit.Engine, out: Path,
                                              tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "results")
    results = str(tmp_path / "results")
    row = str(number(out, "moderation", video_id="text", category="offensive"))
    printed = command(results, "moderation", row, "-n", "3")
    assert printed.exit_code == 0, printed.output
    assert f"moderation {row}, text: category " in printed.stdout
    assert "the first 3 of" in printed.stdout
    assert any(word in printed.stdout for word in ("stupid", "idiot"))
    assert "explanations" not in vbkit.list_tables(results)

    saved = command(results, "moderation", row, "--save", "--json")
    assert saved.exit_code == 0, saved.output
    told = json.loads(saved.stdout)
    kept = vbkit.load_table(results, "explanations")
    assert [piece["text"] for piece in told] == kept["text"].tolist()
    assert kept.attrs["units"]["weight"] == "of score"
    again = command(results, "moderation", row, "--save")
    assert again.exit_code == 0
    assert len(vbkit.load_table(results, "explanations")) == len(kept)

    manifest = out.parent / "m.jsonl"
    engine.run([manifest], ["moderation"], out=results)  # all is up to date
    assert len(vbkit.load_table(results, "explanations")) == len(kept)
    engine.run([manifest], ["moderation"], out=results,
               options={"moderation": {"gap_s": 5.0}})
    assert "explanations" not in vbkit.list_tables(results)


@pytest.mark.usefixtures("loaded")
def test_rows_can_be_named_by_what_they_hold(out: Path) -> None:
    row = number(out, "sentiment", video_id="text", segment=3)
    printed = command(str(out), "sentiment", "--where", "text LIKE '%wonderful park%'", "--json")
    assert printed.exit_code == 0, printed.output
    told = json.loads(printed.stdout)
    place = row - number(out, "sentiment", video_id="text")
    assert {(each["video_id"], each["of_row"]) for each in told} == {("text", place)}


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(("arguments", "status", "why"), [
    (("nothing", "0"), 1, "has no table 'nothing'; there are"),
    (("moderation", "999"), 2, "has no row 999: its rows are 0 to"),
    (("videos", "0"), 2, "only rows of a task can be explained"),
    (("summarisation", "0"), 2, "does not explain rows of summarisation"),
    (("moderation",), 2, "name rows of the table by their numbers, or by --where"),
    (("moderation", "0", "--where", "true"), 2, "or by --where"),
    (("moderation", "--where", "score > 2"), 2, "has no rows for which that holds"),
    (("moderation", "--where", "size > 2"), 2, "size"),
    (("chapters", "0"), 2, "has no row 0: it has no rows"),
])
def test_wrong_rows_cost_no_model(out: Path, arguments: tuple[str, ...], status: int,
                                  why: str) -> None:
    found = command(str(out), *arguments)
    assert found.exit_code == status
    assert why in found.output
    assert "Traceback" not in found.output


def test_without_its_cache_a_video_cannot_be_explained(engine: vbkit.Engine, out: Path,
                                                       tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "results", ignore=lambda folder, names: [
        name for name in names if name == "cache"])
    runs = tmp_path / "results" / "tables" / "runs"
    (file,) = runs.iterdir()
    frame = vbkit.load_table(out, "runs").assign(cache=pd.array([str(tmp_path / "gone")],
                                                                dtype="string"))
    file.unlink()
    ResultStore(tmp_path / "results").write_run(frame.iloc[0].to_dict())
    row = number(out, "classification", video_id="talk")
    with pytest.raises(StoreError, match="no longer in the feature cache"):
        engine.explain(tmp_path / "results", "classification", row)
    # What is only text is encoded again.
    row = number(out, "moderation", video_id="text")
    assert len(engine.explain(tmp_path / "results", "moderation", row))


def test_a_task_that_does_not_explain_says_so(engine: vbkit.Engine, out: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    declared = engine.manager.get_task("qa")
    dumb = replace(declared, spec=replace(declared.spec, capabilities=frozenset()))
    monkeypatch.setattr(type(engine.manager), "get_task", lambda self, name: dumb)
    with pytest.raises(UsageError, match="does not explain rows of qa; what can be"):
        engine.explain(out, "qa", 0)


# Whether it is evidence


SAID = """
I hated this boring film.
What a wonderful day.
The service was terrible.
This is the best present.
I am so disappointed.
It was a lovely evening.
The room was dirty.
I love the light here.
He ruined the party.
She sings beautifully.
I feel miserable today.
The camera is amazing.
They lied, I am furious.
We had great fun.
What a waste of money.
Congratulations, fantastic job.
It is sad and lonely.
The soup tastes delicious.
I regret buying this.
The crowd was thrilled.
The traffic was horrible.
The staff were friendly.
This update is a disaster.
The garden looks gorgeous.
The wait was very annoying.
I am happy for you.
The food was cold and awful.
Thank you, this is great.
This broken phone is useless.
Such a beautiful song.
You stupid worthless idiot.
Shut up, you pathetic loser.
They are disgusting pigs.
Get lost, you ugly rat.
That bitch should shut up.
You dumb piece of trash.
Go to hell, you bastard.
They are animals and scum.
Only idiots believe this crap.
He is a total asshole.
Shut the fuck up, clown.
You make me sick, moron.
""".strip().splitlines()


@pytest.mark.slow
def test_hiding_the_named_evidence_lowers_the_score_more_than_hiding_other_evidence(
    engine: vbkit.Engine, out: Path, tmp_path: Path,
) -> None:
    manifest = tmp_path / "said.jsonl"
    manifest.write_text("\n".join(json.dumps({"id": f"said-{i}", "text": [text]})
                                  for i, text in enumerate(SAID)))
    said = tmp_path / "results"
    assert not engine.run([manifest], ["sentiment", "moderation"], out=said).report.failures
    generator = random.Random(0)
    named, others = [], []
    for folder, table in ((said, "sentiment"), (said, "moderation"), (out, "classification")):
        whole = vbkit.load_table(folder, table)
        found = engine.explain(folder, table, list(whole.index))
        for rescore, evidence in rescored(engine, folder, table, found):
            pieces = [Piece(row["kind"], *(int(row[f"{end}_{unit}"]) for end in ("first", "last")),
                            *((int(row["start_char"]), int(row["end_char"]))
                              if row["kind"] == "word" else ()))
                      for row in evidence.to_dict("records")
                      for unit in ["clip" if row["kind"] == "clip" else "segment"]]
            count = max(1, len(pieces) // 4)
            full = rescore([])
            named.append(full - rescore(pieces[:count]))
            others.append(full - np.mean([
                rescore(generator.sample(pieces, count)) for _ in range(6)]))
    drops, baseline = np.array(named), np.array(others)
    assert len(drops) >= 50
    assert drops.mean() > 2 * baseline.mean() + 0.05, (drops.mean(), baseline.mean())
    assert (drops > baseline).mean() > 0.85


def rescored(engine: vbkit.Engine, out: Path, table: str, found: pd.DataFrame) -> Any:
    """For each explained row, its score with some evidence hidden, by `predict` alone."""
    from vbkit.engine.library import Library

    task = engine.manager.get_task(table)
    (runner,) = engine.heads([table], {k: v for k, v in LABELS.items() if k == table})
    needs = task.spec.needs | task.spec.explain_needs
    features = {each.video_id: each for each in Library(engine, out).features(needs)}
    for (video_id, place), evidence in found.groupby(["video_id", "of_row"], sort=False):
        target = evidence["target"].iloc[0]
        head = runner.ready()

        def rescore(pieces: list[Piece], video_id: Any = video_id, place: Any = place,
                    target: str = target, head: Any = head) -> float:
            seen = hide(features[video_id], pieces)
            if table == "moderation":
                return float(head.greatest(seen).get(target.removeprefix("score of "), 0.0))
            made = head.predict(seen)[table].iloc[place]
            value = made[target] if table == "sentiment" else made["score"]
            return 1 / 3 if pd.isna(value) else float(value)

        yield rescore, evidence
