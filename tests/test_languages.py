"""Languages are told segment by segment; what reads text leaves out what it does not know."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vbkit
from vbkit.features import Features
from vbkit.media import segment_languages

ENGLISH = ["Today I will show you how to bake a loaf of bread.",
           "First we mix the flour, the water and the yeast in a large bowl.",
           "Then the dough rests for an hour, until it is twice as large.",
           "I love this recipe, it is wonderful and so easy to make!"]
FOREIGN = {1: "Heute zeige ich euch, wie man ein schönes Brot backt.",
           3: "Ensuite, on laisse reposer la pâte pendant une heure.",
           5: "今天我教大家怎么做面包。"}
MIXED = [ENGLISH[0], FOREIGN[1], ENGLISH[1], FOREIGN[3], ENGLISH[2], FOREIGN[5], ENGLISH[3], "Ok."]
LANGUAGES = ["en", "de", "en", "fr", "en", "zh", "en", "en"]


@pytest.mark.parametrize(("text", "transcript", "language"), [
    ("Was machst du denn da?", "en", "de"), ("Que faites-vous dans cette maison ?", "en", "fr"),
    ("Я не знаю, где он живёт.", "en", "ru"), ("你在做什么?", "en", "zh"),
    ("I do not know what you are talking about.", "de", "en"),
    ("Ja.", "de", "de"), ("Ja.", "en", "en"), ("Ja.", None, None), ("", "de", "de"),
    ("[Music]", "fr", "fr"), ("12:30", None, None),
    ("Я не знаю.", "bg", "bg"),  # too little to tell the languages of a script apart
])
def test_segments_have_a_language_of_their_own_or_the_transcripts(text, transcript,
                                                                  language) -> None:
    assert segment_languages([text], transcript) == (language,)


@pytest.mark.parametrize("text", [
    "lol omg he is sooo dumb fr fr no cap", "@user y'all ain't finna believe dis #MAGA",
    "ain't nobody got time fo dat", "Arnold Schwarzenegger", "Ludwig van Beethoven",
    "Rio de Janeiro", "spaghetti alla carbonara", "kung pao chicken", "Uh huh. Yeah, yeah, yeah.",
    "Noooooooo!", "bruh smh tbh ngl", "place blue with t four please", "x equals y plus two",
    "Joey! Chandler! Monica!", "HAHAHAHAHA", "I gotta go, see ya then.",
])
def test_slang_names_and_short_utterances_stay_english(text) -> None:
    assert segment_languages([text], "en") == ("en",)
    assert segment_languages([text], None)[0] in ("en", None)


@given(st.lists(st.text(max_size=80), max_size=8), st.sampled_from(["en", "de", None]))
def test_any_text_has_one_language_a_segment(texts, language) -> None:
    found = segment_languages(texts, language)
    assert len(found) == len(texts)
    assert all(code is None or (len(code) == 2 and code.isalpha()) for code in found)
    assert language is None or None not in found


def test_without_languages_of_their_own_segments_have_the_videos() -> None:
    features = Features("v", {"segments": ["a", "b"]}, language="de")
    assert features.segment_languages == ("de", "de")
    assert features.restrict({"segments"}).segment_languages == ("de", "de")
    assert features.in_languages({"en"}).tolist() == [False, False]
    assert features.unread_note({"en"}) == "text in language de was not read"
    assert features.unread_note({"de"}) is None
    unknown = Features("v", {"segments": ["a"]})
    assert unknown.in_languages({"en"}).all()


@pytest.fixture(scope="module")
def out(engine, tmp_path_factory):
    """Results of a transcript in four languages, and of its English part alone."""
    folder = tmp_path_factory.mktemp("mixed")
    manifest = Path(folder) / "talks.jsonl"
    manifest.write_text("\n".join(json.dumps({"id": name, "text": text}) for name, text in (
        ("mixed", MIXED), ("english", [*ENGLISH, "Ok."]), ("german", [FOREIGN[1], "Ja, genau."]))))
    result = engine.run(
        [manifest], ["sentiment", "moderation", "qa", "summarisation", "classification"],
        out=folder / "results", questions=["How long does the dough rest?"],
        options={"classification": {"labels": "baking bread, driving a car"}})
    assert not result.report.failures
    return folder / "results"


@pytest.fixture(scope="module")
def mixed(out):
    """Their tables."""
    return {name: vbkit.load_table(out, name) for name in vbkit.list_tables(out)}


def of(tables, table: str, video: str) -> pd.DataFrame:
    return tables[table][tables[table]["video_id"] == video].reset_index(drop=True)


def test_the_table_of_segments_says_the_language(mixed) -> None:
    assert of(mixed, "segments", "mixed")["language"].tolist() == LANGUAGES
    assert of(mixed, "segments", "german")["language"].tolist() == ["de", "de"]


def test_sentiment_declines_foreign_segments_only(mixed) -> None:
    rows = of(mixed, "sentiment", "mixed")
    foreign = rows["segment"].isin(FOREIGN)
    assert rows.loc[foreign, ["label", "score"]].isna().all(axis=None)
    assert rows.loc[foreign, "note"].tolist() == [
        f"text in language {code} was not read" for code in ("de", "fr", "zh")]
    assert rows.loc[~foreign, "label"].notna().all()
    assert rows.loc[~foreign, "note"].isna().all()
    # a segment in another language is no neighbour either
    alone = of(mixed, "sentiment", "english")
    assert rows.loc[~foreign, "score"].tolist() == pytest.approx(alone["score"].tolist(), abs=1e-5)
    assert of(mixed, "sentiment_videos", "mixed")["n_rows"][0] == len(ENGLISH) + 1


def test_moderation_says_what_it_did_not_read(mixed) -> None:
    (note,) = of(mixed, "moderation_videos", "mixed")["note"]
    assert note == "3 of 8 segments, in de, fr, zh, were not read"
    whole = of(mixed, "moderation_videos", "german").iloc[0]
    assert pd.isna(whole["decision"])
    assert whole["note"] == "text in language de was not read"
    ours, alone = (of(mixed, "moderation_videos", name)["score"][0] for name in (
        "mixed", "english"))
    assert ours == pytest.approx(alone, abs=1e-5)


def test_questions_are_answered_from_what_is_read(mixed) -> None:
    first = of(mixed, "qa", "mixed").iloc[0]
    assert "rests for an hour" in first["answer"]
    assert not any(text in first["answer"] for text in FOREIGN.values())
    assert first["best_segment"] in (0, 2, 4, 6)
    assert first["note"] == "3 of 8 segments, in de, fr, zh, were not read"
    assert of(mixed, "qa", "german")["no_answer"].all()


def test_summaries_select_from_what_is_read(mixed) -> None:
    rows = of(mixed, "summarisation_segments", "mixed")
    foreign = rows["segment"].isin(FOREIGN)
    assert rows.loc[foreign, ["score", "rank"]].isna().all(axis=None)
    assert not rows.loc[foreign, "selected"].any()
    assert rows.loc[~foreign, "score"].notna().all()
    whole = of(mixed, "summarisation", "mixed").iloc[0]
    assert whole["note"] == "3 of 8 segments, in de, fr, zh, were not read"
    assert any(text in whole["summary"] for text in ENGLISH)
    assert pd.isna(of(mixed, "summarisation", "german")["summary"][0])


@pytest.mark.parametrize("table", ["sentiment", "sentiment_videos", "moderation_videos", "qa",
                                   "summarisation_segments", "classification"])
def test_nothing_is_explained_by_what_is_not_read(engine, out, mixed, table) -> None:
    rows = mixed[table]
    if "segment" in rows.columns:  # one that is read, amid others, and those that are not
        rows = rows[rows["segment"].eq(2) & rows["video_id"].eq("mixed") | rows["score"].isna()]
    else:
        rows = rows[rows["video_id"] != "english"].groupby("video_id").head(1)
    found = engine.explain(out, table, list(rows.index))
    assert set(rows["video_id"]) == {"mixed", "german"}
    assert set(found["video_id"]) == {"mixed"}
    assert not (set(found["first_segment"]) | set(found["last_segment"])) & set(FOREIGN)
    if table == "sentiment":  # the neighbours are those that are read
        assert set(found["first_segment"]) >= {0, 2, 4}
