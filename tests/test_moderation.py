"""The task moderation: policy, spans, tables, and what the shipped head flags."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contexts import context, embed
from hypothesis import given
from hypothesis import strategies as st

import vbkit_moderation
from vbkit.errors import ModelError, OptionError
from vbkit.explanations import Piece, hide
from vbkit.features import Features
from vbkit_moderation import MODERATION, MODERATION_VIDEOS, ModerationOptions
from vbkit_moderation.head import SHIPPED, ModerationHead
from vbkit_moderation.model import VisualModel, supported
from vbkit_moderation.policy import NEVER, Rule, canonical_policy, make_policy
from vbkit_moderation.spans import clip_spans, gravest, merge, segment_spans, shorten
from vbkit_moderation.taxonomy import CATEGORIES, children, help_text, quality_table

SHIPPED_RULES = {"gun": Rule(0.6, 0.9, ("visual",)), "fire": Rule(0.5, 0.8, ("visual",)),
                 "offensive": Rule(0.5, NEVER, ("text",)), "hate": Rule(0.7, 0.95, ("text",))}


def features(
    clips: int = 0, segments: Sequence[str] = (), seed: int = 0, timed: bool = True,
    language: str | None = "en",
) -> Features:
    generator = torch.Generator().manual_seed(seed)
    starts = np.arange(clips) * 1.5
    times = np.stack([np.arange(len(segments)) * 2.0, np.arange(len(segments)) * 2.0 + 1.9], 1)
    return Features(
        "a.mp4",
        {
            "clip_times": np.stack([starts, starts + 1.5], 1),
            "clip_features": torch.rand(clips, 2560, generator=generator),
            "motion": lambda chosen: torch.linspace(-1, 1, 128).repeat(len(chosen), 1),
            "segments": list(segments), "segment_embeddings": embed(segments),
            "encode_text": embed,
            "segment_times": times if timed else np.full((len(segments), 2), np.nan),
        },
        language=language,
    )


def head(policy: str = "", **options: Any) -> ModerationHead:
    result = ModerationHead()
    result.setup(context(options=ModerationOptions(policy=policy, **options)))
    return result


EVERYTHING = json.dumps({name: {"review": 0, "block": "never"}
                         for name in ("fight", "gun", "fire", "hate", "offensive", "threat")})


# -- taxonomy ----------------------------------------------------------------------------------


def test_taxonomy_is_that_of_the_contract() -> None:
    parents = {c.name: c.parent for c in CATEGORIES}
    assert parents == {
        "fight": "violence", "gun": "weapons", "fire": "danger", "nudity": "sexual",
        "hate": "hate", "offensive": "abuse", "threat": "abuse", "self_harm": "self_harm",
        "drugs": "drugs",
    }
    assert children("abuse") == ("offensive", "threat")
    assert children("hate") == ("hate",)
    assert children("gun") == ("gun",)
    assert children("cats") == ()


def test_what_is_said_to_be_detected_is_what_the_weights_hold() -> None:
    settings = json.loads((SHIPPED / "head.json").read_text(encoding="utf-8"))
    detected = {c.name: c.modalities for c in CATEGORIES if c.detected}
    assert {n: (p["modality"],) for n, p in settings["categories"].items()} == detected


def test_help_names_detected_and_missing_categories_with_measured_numbers() -> None:
    text = help_text()
    found, missing = text.split("; not detected: ")
    assert "gun (visual, AUROC 0.9" in found
    assert set(missing.split(", ")) == {"nudity", "self_harm", "drugs"}
    gun = next(row for row in quality_table() if row["category"] == "gun")
    assert gun["n_positive"] > 100
    assert gun["roc_auc"][1] <= gun["roc_auc"][0] <= gun["roc_auc"][2]


# -- policy ------------------------------------------------------------------------------------


def test_empty_policy_is_the_shipped_one() -> None:
    policy, undetected = make_policy("", SHIPPED_RULES)
    assert dict(policy.rules) == SHIPPED_RULES
    assert undetected == ()


def test_policy_file(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "gun: {review: 0.7}\nabuse: {enabled: false}\nhate:\n  block: never\n"
        "danger: {review: 0.2, modality: visual}\n", encoding="utf-8")
    policy, undetected = make_policy(canonical_policy(str(file)), SHIPPED_RULES)
    assert policy.rules["gun"] == Rule(0.7, 0.9, ("visual",))
    assert policy.rule("offensive", "text") is None
    assert policy.rules["hate"].block == NEVER
    assert policy.rules["fire"].review == 0.2
    assert undetected == ()


def test_category_goes_before_parent_in_any_order() -> None:
    for text in ("{abuse: {review: 0.1}, offensive: {review: 0.9}}",
                 "{offensive: {review: 0.9}, abuse: {review: 0.1}}"):
        policy, undetected = make_policy(canonical_policy(text), SHIPPED_RULES)
        assert policy.rules["offensive"].review == 0.9
        assert undetected == ("threat",)


def test_block_alone_below_the_shipped_review_blocks() -> None:
    policy, _ = make_policy(canonical_policy("{gun: {block: 0.3}}"), SHIPPED_RULES)
    assert policy.rules["gun"].decide(0.4) == "block"


def test_review_raised_above_the_shipped_block() -> None:
    policy, _ = make_policy(canonical_policy("{gun: {review: 0.95}}"), SHIPPED_RULES)
    assert policy.rules["gun"].decide(0.93) == "allow"
    assert policy.rules["gun"].decide(0.96) == "block"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{cats: {review: 0.5}}", "unknown category 'cats'; known are abuse,"),
        ("{gun: 0.5}", "gun: must be a mapping of review, block, modality, enabled, got 0.5"),
        ("{gun: {revew: 0.5}}", "gun: unknown key 'revew'"),
        ("{gun: {review: high}}", "gun: review must be a number from 0 to 1, or never; got 'high'"),
        ("{gun: {review: 1.5}}", "gun: review must be a number from 0 to 1"),
        ("{gun: {review: .nan}}", "gun: review must be a number from 0 to 1"),
        ("{gun: {review: true}}", "gun: review must be a number from 0 to 1"),
        ("{gun: {review: 0.8, block: 0.5}}", "gun: block (0.5) must not be below review (0.8)"),
        ("{gun: {modality: [sound]}}", "gun: modality must be a list of visual, text"),
        ("{gun: {enabled: 3}}", "gun: enabled must be true or false; got 3"),
        ("- gun\n- fire", "must map categories to rules"),
        ("{gun: [", "is not YAML"),
    ],
)
def test_bad_policy_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        ModerationOptions(policy=text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_policy_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"nowhere\.yaml: cannot be read: No such file"):
        ModerationOptions(policy=str(tmp_path / "nowhere.yaml"))


def test_options_keep_the_policy_itself(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("gun: {review: 0.7}", encoding="utf-8")
    options = ModerationOptions(policy=str(file))
    file.write_text("gun: {review: 0.8}", encoding="utf-8")
    assert options != ModerationOptions(policy=str(file))
    assert ModerationOptions(policy=options.policy) == options


def test_undetected_category_in_a_policy_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vbkit"):
        head("{sexual: {review: 0.5}}")
    assert "the policy names nudity, which this head cannot detect" in caplog.text


# -- spans -------------------------------------------------------------------------------------


def test_merge_bridges_small_gaps_only() -> None:
    times = np.stack([np.arange(8) * 1.5, np.arange(8) * 1.5 + 1.5], 1)
    flagged = np.array([1, 1, 0, 1, 0, 0, 1, 0], dtype=bool)
    assert list(merge(flagged, times, 1.5)) == [(0, 3), (6, 6)]
    assert list(merge(flagged, times, 0.0)) == [(0, 1), (3, 3), (6, 6)]
    assert list(merge(flagged, times, 10.0)) == [(0, 6)]


def test_merge_of_untimed_segments_joins_neighbours() -> None:
    flagged = np.array([1, 1, 0, 1], dtype=bool)
    assert list(merge(flagged, np.full((4, 2), np.nan), 5.0)) == [(0, 1), (3, 3)]


@given(st.lists(st.booleans(), max_size=30), st.floats(0, 20))
def test_merge_covers_exactly_the_flagged(flags: list[bool], gap: float) -> None:
    flagged = np.array(flags, dtype=bool)
    starts = np.arange(len(flags)) * 1.5
    spans = list(merge(flagged, np.stack([starts, starts + 1.5], 1), gap))
    covered = {i for first, last in spans for i in range(first, last + 1)}
    assert set(np.flatnonzero(flagged)) <= covered
    assert all(flagged[first] and flagged[last] for first, last in spans)
    assert all(a[1] < b[0] for a, b in pairwise(spans))


def test_rows_of_a_visual_category() -> None:
    times = np.stack([np.arange(4) * 1.5, np.arange(4) * 1.5 + 1.5], 1)
    rows = clip_spans("gun", np.array([0.1, 0.7, 0.95, 0.2]), times, Rule(0.6, 0.9), 1.5)
    assert len(rows) == 1
    row = rows[0]
    assert (row["start_s"], row["end_s"]) == (1.5, 4.5)
    assert (row["category"], row["parent_category"]) == ("gun", "weapons")
    assert (row["score"], row["decision"]) == (0.95, "block")
    assert row["evidence"] == "clips 1–2, gun probability 0.95"
    MODERATION.frame(rows)


def test_rows_of_a_text_category_quote_the_worst_segment() -> None:
    rows = segment_spans("hate", np.array([0.8, 0.9, np.nan]), np.full((3, 2), np.nan),
                         ["bad", "very  bad words", "?"], Rule(0.7, NEVER), 1.5, 120)
    assert [row["evidence"] for row in rows] == ["very bad words"]
    assert rows[0]["start_s"] is None
    assert rows[0]["decision"] == "review"


def test_gravest_prefers_block_to_a_higher_score() -> None:
    rows = [{"decision": "review", "score": 0.99}, {"decision": "block", "score": 0.9}]
    assert gravest(rows) is rows[1]
    assert gravest([]) is None


@given(st.text(max_size=300), st.integers(1, 150))
def test_shorten_keeps_to_its_length(text: str, length: int) -> None:
    short = shorten(text, length)
    assert len(short) <= length
    assert "\n" not in short
    if len(" ".join(text.split())) <= length:
        assert short == " ".join(text.split())


# -- model -------------------------------------------------------------------------------------


def test_a_single_clip_blip_is_damped_and_a_lasting_one_is_not() -> None:
    logits = torch.tensor([[-4.0], [2.0], [-4.0], [3.0], [3.0]])
    assert supported(logits).flatten().tolist() == [-1.0, -1.0, -0.5, 3.0, 3.0]
    assert supported(logits[:1]).tolist() == [[-4.0]]


def test_supported_keeps_a_clip_beside_one_that_cannot_be_judged() -> None:
    logits = torch.tensor([[2.0], [float("-inf")]])
    assert supported(logits).flatten().tolist() == [2.0, float("-inf")]


def test_motion_is_not_judged_where_nothing_moves() -> None:
    model = VisualModel(4, 3, 1, 1)
    clips = torch.cat([torch.rand(2, 4), torch.tensor([[0.0] * 4, [0.5] * 4])], 1)
    logits = model(clips, torch.rand(2, 3))
    assert torch.isfinite(logits[:, 0]).all()
    assert logits[0, 1] == float("-inf")
    assert torch.isfinite(logits[1, 1])


def test_a_moving_category_needs_motion_and_setting() -> None:
    model = VisualModel(4, 1, 1, 1)
    with torch.no_grad():
        for part in (model.motion, model.scene):
            part.weight.fill_(10.0)
            part.bias.fill_(-5.0)
    clips = torch.tensor([[each] * 4 + [0.5] * 4 for each in (1.0, 1.0, 0.0, 1.0)])
    motion = torch.tensor([[1.0], [0.0], [1.0], [torch.nan]])
    fight, calm, elsewhere, unseen = torch.sigmoid(model(clips, motion))[:, 1].tolist()
    assert fight > 0.9
    assert calm < 0.1
    assert elsewhere < 0.1
    assert unseen < 0.1


# -- head --------------------------------------------------------------------------------------


@pytest.mark.parametrize("clips", [0, 1, 2, 40])
@pytest.mark.parametrize("segments", [0, 1, 7])
@pytest.mark.parametrize("policy", ["", EVERYTHING])
def test_tables_keep_their_schemas(clips: int, segments: int, policy: str) -> None:
    tables = head(policy).predict(features(clips, [f"words {i}" for i in range(segments)]))
    rows, videos = tables["moderation"], tables["moderation_videos"]
    assert tuple(rows.columns) == MODERATION.column_names
    assert tuple(videos.columns) == MODERATION_VIDEOS.column_names
    assert len(videos) == 1
    assert videos["n_flagged"][0] == len(rows)
    assert rows["score"].between(0, 1).all()
    assert set(rows["decision"]) <= {"review", "block"}
    assert set(rows["category"]) <= {c.name for c in CATEGORIES if c.detected}
    if policy and (clips or segments):
        assert len(rows)
        assert videos["decision"][0] == "review"
        assert videos["score"][0] == rows["score"].max()


def test_motion_is_looked_at_only_where_a_fight_could_be() -> None:
    asked: list[int] = []

    def scores(judge: ModerationHead, scene: float) -> np.ndarray:
        asked.clear()
        judge.visual.scene.bias.data.fill_(scene)
        judge.visual.scene.weight.data.zero_()
        video = features(3)
        looked = video.motion
        video._outputs["motion"] = lambda clips: (asked.extend(clips), looked(clips))[1]
        return judge.visual_scores(video)["fight"]

    judge = head()
    assert scores(judge, -9.0).max() < 0.05
    assert asked == []
    assert scores(judge, 9.0).shape == (3,)
    assert asked == [0, 1, 2]
    scores(head("{fight: {enabled: false}}"), 9.0)
    assert asked == []


def test_nothing_to_judge_has_no_verdict() -> None:
    videos = head().predict(features())["moderation_videos"]
    assert videos["decision"].isna().all()
    assert videos["score"].isna().all()
    assert "nothing to judge" in videos["note"][0]


def test_other_languages_are_not_scored() -> None:
    tables = head(EVERYTHING).predict(features(0, ["guten Tag"], language="de"))
    assert tables["moderation"].empty
    assert tables["moderation_videos"]["decision"].isna().all()
    assert tables["moderation_videos"]["note"][0] == "text in language de was not read"


def test_picture_is_judged_when_the_language_is_unknown_to_the_head() -> None:
    tables = head(EVERYTHING).predict(features(3, ["guten Tag"], language="de"))
    assert set(tables["moderation"]["modality"]) == {"visual"}
    assert tables["moderation_videos"]["decision"][0] == "review"


def test_empty_segments_are_never_flagged() -> None:
    tables = head(EVERYTHING, gap_s=0.0).predict(features(0, ["", "words", "  "]))
    assert set(tables["moderation"]["first_segment"]) == {1}
    assert set(tables["moderation"]["last_segment"]) == {1}


def test_untimed_text_has_no_times() -> None:
    rows = head(EVERYTHING).predict(features(0, ["a", "b"], timed=False))["moderation"]
    assert rows["start_s"].isna().all()
    assert rows["end_s"].isna().all()


def test_disabled_categories_are_not_written() -> None:
    policy = json.dumps({**json.loads(EVERYTHING), "gun": {"enabled": False}})
    rows = head(policy).predict(features(5, ["a"]))["moderation"]
    assert "gun" not in set(rows["category"])
    assert "fire" in set(rows["category"])


def test_head_can_be_saved_and_loaded(tmp_path: Path) -> None:
    first = head(EVERYTHING)
    first.save_pretrained(tmp_path)
    second = ModerationHead()
    second.setup(context(options=first.options, head_path=tmp_path))
    a, b = (h.predict(features(4, ["x", "y"]))["moderation"] for h in (first, second))
    assert a.equals(b)


def test_head_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="was trained on model 'mini', not on 'large'"):
        ModerationHead().setup(context(options=ModerationOptions(), model_name="large"))


def test_shipped_thresholds_keep_what_they_promise() -> None:
    settings = json.loads((SHIPPED / "head.json").read_text(encoding="utf-8"))
    for name, part in settings["categories"].items():
        ordinary = part["measured"]["false_alarms_at_review"]
        for source in ("flickr8k", "imagenet", "captioned_clips", "lectures", "cooking",
                       "captions"):
            assert ordinary.get(source, 0.0) <= 0.03, (name, source)


THREATS = ("I will find you and I will kill you.",
           "If you come back here, I will shoot you in the head.",
           "I hope somebody beats you to death.", "Those people should all be hanged.")
HARMLESS = ("Beat the eggs and cut the butter into small pieces.",
            "We shot this video in one afternoon.", "My back is killing me after all that digging.",
            "Two men were killed in the attack, the police said.",
            "Our team beat theirs in the final.", "I could die for this cake.",
            "The rocket will burn its engines for ninety seconds.",
            "Hang the picture on the wall and knock the nail in.")


def threat_scores(judge: ModerationHead, texts: Sequence[str]) -> np.ndarray:
    return judge.text_scores(texts, embed(texts))["threat"]


def flagged_as_threats(texts: Sequence[str]) -> list[str]:
    judge = head()
    review = judge.policy.rules["threat"].review
    return [text for text, score in zip(texts, threat_scores(judge, texts), strict=True)
            if score >= review]


def test_threats_are_flagged_where_they_are_made() -> None:
    said = [*HARMLESS, THREATS[0], *HARMLESS]
    rows = head("{offensive: {enabled: false}, hate: {enabled: false}}").predict(
        features(0, said))["moderation"]
    assert rows["category"].tolist() == ["threat"]
    row = rows.iloc[0]
    assert (row["parent_category"], row["modality"]) == ("abuse", "text")
    assert (row["start_s"], row["end_s"]) == (16.0, 17.9)
    assert (row["first_segment"], row["last_segment"]) == (8, 8)
    assert row["evidence"] == THREATS[0]


def test_threats_are_told_from_other_talk_of_violence() -> None:
    judge = head()
    scores = threat_scores(judge, [*THREATS, *HARMLESS])
    threats, harmless = np.split(scores, [len(THREATS)])
    review = judge.policy.rules["threat"].review
    assert (threats >= review).mean() > 0.5
    assert (harmless < review).all()


def test_policy_of_threats() -> None:
    def found(policy: str) -> set[tuple[str, str]]:
        rows = head(policy).predict(features(0, [THREATS[0]]))["moderation"]
        return set(zip(rows["category"], rows["decision"], strict=True))

    assert ("threat", "review") in found("")
    assert ("threat", "block") in found("{threat: {block: 0.1}}")
    assert not {name for name, _ in found("{threat: {enabled: false}}")} & {"threat"}
    assert found("{abuse: {enabled: false}}") <= {("hate", "review")}


def test_ordinary_speech_is_no_threat() -> None:
    """Transcripts of ordinary videos that are at hand: a launch, recipes and lessons."""
    said = [
        "Three, two, one, and liftoff of the rocket.", "The engines burn for two minutes.",
        "Main engine cut off, and separation.", "The crew is doing well, and so is the ship.",
        "Welcome back to my kitchen, everybody.", "Smash the garlic and throw it into the pan.",
        "Today we attack the problem from both ends.", "I am going to show you how it is done.",
        "You will get what you deserve: a very good grade.", "I'm gonna miss you so much!",
        "Don't you dare eat my sandwich!", "Oh my God, I'm so going to win this.",
    ]
    assert flagged_as_threats(said) == []


@pytest.mark.parametrize("said", [
    ["You are a stupid worthless idiot.", "What a pathetic fat liar you are.",
     "Nobody likes you, you ugly witch.", "She is the dumbest person I have ever met.",
     "Shut your mouth, you filthy swine.", "Those people are nothing but lazy parasites."],
    ["Kill the process before you start it again.", "Shoot the portrait in the morning light.",
     "Cut the second paragraph and keep the third.", "Knock down the wall between both rooms.",
     "Burn the sugar until it is dark brown.", "Attack the king with both of your rooks."],
], ids=["insults", "things"])
def test_what_harms_nobody_bodily_is_no_threat(said: list[str]) -> None:
    assert flagged_as_threats(said) == []


def test_long_segments_are_judged_by_their_worst_part() -> None:
    filler = "We went to the market and bought some apples. " * 30
    judge = head()
    alone, buried = threat_scores(judge, [filler, filler + THREATS[0]])
    assert buried > 2 * alone


def test_only_threats_are_read_off_the_shared_embedding_too() -> None:
    judge = head()
    texts = [*THREATS, *HARMLESS]
    right, other = (judge.text_scores(texts, embed(texts).roll(shift, 0)) for shift in (0, 5))
    assert np.abs(right["threat"] - other["threat"]).max() > 0.05
    for name in ("hate", "offensive"):
        assert np.array_equal(right[name], other[name])


def test_hidden_words_are_hidden_from_the_embedding_too() -> None:
    judge = head()
    said = "Yes. I will find you and I will kill you."
    hidden = hide(features(0, [said]), [Piece("word", 0, 0, 0, 4)])
    shorter = features(0, [said[5:]])
    assert hidden.segments == shorter.segments
    assert judge.scores_of(hidden, "text", "threat") == pytest.approx(
        judge.scores_of(shorter, "text", "threat"), abs=1e-5)


def test_declaring_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = ("import sys, vbkit_moderation as m; list(m.vbkit_tasks()); "
            "assert not {'torch', 'yaml', 'pandas'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert next(iter(vbkit_moderation.vbkit_tasks())).name == "moderation"
