"""`vbkit run`, `ask` and `search` as an operator types them."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

import vbkit
from vbkit.cli import cli
from vbkit.cli.run import _Reporter
from vbkit.engine.run import Progress


@pytest.fixture(scope="module")
def out(tmp_path_factory, sample):
    """A results folder of the four tasks on the sample clip, made by the command line."""
    out = tmp_path_factory.mktemp("cli") / "results"
    result = CliRunner().invoke(cli, [
        "run", str(sample), "--out", str(out), "--device", "cpu",
        "--task", "summarisation", "--task", "qa", "--task", "sentiment", "--task", "moderation",
        "--question", "Who passes the waiting cars?"])
    assert result.exit_code == 0, result.output
    assert "1 done" in result.stdout
    return out


def test_four_tasks_write_what_a_stranger_would_believe(out) -> None:
    videos = vbkit.load_table(out, "videos")
    assert videos["status"].tolist() == ["ok"]
    summary = vbkit.load_table(out, "summarisation").iloc[0]
    assert summary["n_selected"] >= 1
    segments = vbkit.load_table(out, "summarisation_segments")
    assert len(segments) == 5
    assert sorted(segments["rank"]) == [1, 2, 3, 4, 5]
    assert summary["summary"].split()[0] in " ".join(segments["text"])
    answers = vbkit.load_table(out, "qa").sort_values("rank")
    assert answers["question"].unique().tolist() == ["Who passes the waiting cars?"]
    best = answers.iloc[0]
    assert not best["no_answer"]
    assert best["modality"] == "text"
    assert "cyclists" in best["answer"]
    assert best["start_s"] < 11.6
    assert best["end_s"] > 8.4  # that is when the cyclists are seen and spoken of
    feelings = vbkit.load_table(out, "sentiment").sort_values("start_s")
    assert len(feelings) >= 5
    by_text = feelings.set_index("text")["score"]
    good = next(v for t, v in by_text.items() if t == t and "beautiful sunny" in str(t))
    bad = next(v for t, v in by_text.items() if t == t and "terrible traffic" in str(t))
    assert good > 0 > bad
    assert vbkit.load_table(out, "moderation_videos")["decision"].tolist() == ["allow"]
    assert len(vbkit.load_table(out, "moderation")) == 0


def test_an_old_question_is_not_asked_again(out, sample) -> None:
    result = CliRunner().invoke(cli, ["run", str(sample), "--out", str(out), "--device", "cpu",
                                      "--task", "qa", "--question", "Who passes the waiting cars?",
                                      "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["n_ok"], report["n_skipped"]) == (0, 1)


def test_search_finds_the_moment(out) -> None:
    result = CliRunner().invoke(cli, ["search", str(out), "cars in a traffic jam", "--json",
                                      "--device", "cpu"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    text = next(row for row in rows if row["modality"] == "text")
    assert "traffic jam" in text["text"]
    seen = next(row for row in rows if row["modality"] == "visual")
    assert seen["start_s"] >= 4.5  # the rabbit's part ends at 5.3 s


def test_ask_answers_from_the_cache(out, tmp_path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    shutil.rmtree(moved / "keyframes")
    result = CliRunner().invoke(cli, ["ask", str(moved), "What is the city stuck in?", "--json",
                                      "--device", "cpu"])
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)
    assert [row["rank"] for row in answers] == list(range(1, len(answers) + 1))
    assert any("traffic jam" in str(row["answer"]) for row in answers)


def test_several_questions_are_answered_one_after_the_other(out) -> None:
    questions = ["What is the city stuck in?", "Who wrote the constitution of Mars?"]
    result = CliRunner().invoke(cli, ["ask", str(out), *questions, "-n", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "question" in lines[0]
    asked = [line.split(" ")[0] for line in lines if line[:1] == "W"]
    assert asked in (["What"] * 2 + ["Who"] * count for count in (1, 2))
    assert "nothing in these videos seems to answer “Who wrote" in result.stderr
    assert CliRunner().invoke(cli, ["ask", str(out)]).exit_code == 2


@pytest.mark.parametrize(("arguments", "status", "message"), [
    (["--task", "moderatoin"], 2, "moderation"),
    (["--task", "sentiment", "-o", "sentiment.nope=1"], 2, "nope"),
    (["--task", "sentiment", "--model", "minni"], 1, "mini"),
    (["--task", "sentiment", "--device", "cuda:77"], 1, "cuda:77"),
    (["--task", "sentiment", "--policy", "policy.yaml"], 2, "--policy"),
    (["--task", "sentiment", "--head", "sentiment"], 2, "TASK=PATH"),
    ([], 2, "--task"),
])
def test_wrong_use_is_told_in_one_line(sample, tmp_path, arguments, status, message) -> None:
    result = CliRunner().invoke(cli, ["run", str(sample), "--out", str(tmp_path / "o"),
                                      *arguments])
    assert result.exit_code == status, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_missing_input_fails_and_the_others_are_done(sample, tmp_path) -> None:
    result = CliRunner().invoke(cli, ["run", str(sample), str(tmp_path / "nope.mp4"), "--out",
                                      str(tmp_path / "o"), "--task", "sentiment"])
    assert result.exit_code == 1
    assert "nope.mp4" in result.stderr
    assert vbkit.load_table(tmp_path / "o", "videos")["status"].tolist().count("ok") == 1


def test_nothing_to_do_is_said(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    result = CliRunner().invoke(cli, ["run", str(tmp_path / "in"), "--out", str(tmp_path / "o"),
                                      "--task", "sentiment"])
    assert result.exit_code == 0
    assert "nothing to do" in result.stderr


def test_progress_says_how_long_it_will_take() -> None:
    reporter = _Reporter(silent=True)
    # how long the first one took tells nothing: until it was done, a model was loaded
    assert reporter._line(Progress(1, 6, "a.mp4", "ok", 3.0)) == "1 of 6 inputs"
    reporter(Progress(1, 6, "a.mp4", "ok", 3.0))
    assert reporter._first is not None
    reporter._first -= 30
    line = reporter._line(Progress(2, 6, "b.mp4", "ok", 3.0))
    assert line.startswith("2 of 6 inputs")
    assert line.endswith("2 min left")
