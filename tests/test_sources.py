"""What the caller names becomes sources with ids; what is wrong costs itself only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from vbkit.errors import ManifestError
from vbkit.sources import Source, expand_inputs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def ids(*inputs: Path | str) -> list[str]:
    return [source.video_id for source in expand_inputs(inputs)]


def test_a_folder_is_walked_for_media_files_only(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.mkv", "sub/c.MOV", "sub/deep/d.jpg", "sound.mp3", "b.srt",
          "lone.srt", "notes.txt", "data.csv", ".hidden.mp4", ".cache/x.mp4", "README", "c.pdf")
    found = expand_inputs([tmp_path])
    assert [s.video_id for s in found] == ["a.mkv", "b.mp4", "sound.mp3", "sub/c.MOV",
                                           "sub/deep/d.jpg"]
    assert [s.kind for s in found] == ["video", "video", "audio", "video", "image"]
    assert found.notes == ()
    assert found.sources[1].path == tmp_path / "b.mp4"


def test_linked_files_and_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.mp4")
    root = tmp_path / "root"
    touch(root, "own.mp4")
    (root / "link").symlink_to(tmp_path / "real")
    (root / "file.mp4").symlink_to(tmp_path / "real" / "a.mp4")
    (root / "loop").symlink_to(root)
    (root / "broken.mp4").symlink_to(tmp_path / "gone.mp4")
    found = {s.video_id: s.problem for s in expand_inputs([root])}
    assert set(found) == {"own.mp4", "link/a.mp4", "file.mp4", "broken.mp4"}
    assert "does not exist" in found["broken.mp4"]


def test_single_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.jpg", "c.wav", "d.srt", "e.bin")
    kinds = {}
    for name in ("a.mp4", "b.jpg", "c.wav", "d.srt", "e.bin"):
        (source,) = expand_inputs([tmp_path / name])
        assert source.video_id == name
        assert source.problem is None
        kinds[name] = source.kind
    assert list(kinds.values()) == ["video", "image", "audio", "transcript", "video"]
    (subtitles,) = expand_inputs([tmp_path / "d.srt"])
    assert (subtitles.path, subtitles.transcript) == (None, tmp_path / "d.srt")


def test_several_inputs_have_their_names_in_front(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.mp4", "two/a.mp4", "x/one/a.mp4", "solo.mp4")
    assert ids(tmp_path / "one", tmp_path / "two") == ["one/a.mp4", "two/a.mp4"]
    assert ids(tmp_path / "one", tmp_path / "solo.mp4") == ["one/a.mp4", "solo.mp4"]
    unique = ids(tmp_path / "one", tmp_path / "x" / "one")
    assert len(set(unique)) == 2
    assert unique[1] == "x/one/a.mp4"
    assert ids(tmp_path / "one/a.mp4", tmp_path / "two/a.mp4") == ["one/a.mp4", "two/a.mp4"]


def test_the_current_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "here/a.mp4", "there/b.mp4")
    monkeypatch.chdir(tmp_path / "here")
    assert ids(".") == ["a.mp4"]
    assert ids(".", "../there") == ["here/a.mp4", "there/b.mp4"]


def test_the_same_input_twice_is_used_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    found = expand_inputs([tmp_path, tmp_path / "."])
    assert [s.video_id for s in found] == ["a.mp4"]
    assert "twice" in found.notes[0]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path, "v/b.mp4", "v/a.mp4", "v/a.srt", "v/sub/c.mp4", "v/[odd].mp4")
    assert ids(f"{tmp_path}/v/*.mp4") == ["[odd].mp4", "a.mp4", "b.mp4"]
    assert ids(f"{tmp_path}/v/**/*") == ["[odd].mp4", "a.mp4", "b.mp4", "sub/c.mp4"]
    assert ids(f"{tmp_path}/v/[odd].mp4") == ["[odd].mp4"]
    two = ids(f"{tmp_path}/v/a*", f"{tmp_path}/v/b*")
    assert len(set(two)) == 2
    nothing = expand_inputs([f"{tmp_path}/v/*.avi"])
    assert nothing.sources == ()
    assert "matches" in nothing.notes[0]


def test_nothing_to_do_is_a_note(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt")
    found = expand_inputs([tmp_path])
    assert len(found) == 0
    assert str(tmp_path) in found.notes[0]
    assert expand_inputs([]).notes == ("no input was given",)


def test_a_missing_file_is_a_problem_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    found = expand_inputs([tmp_path / "missing.mp4", tmp_path / "a.mp4", "https://x.org/talk.mp4"])
    problems = {s.video_id: s.problem for s in found}
    assert problems["a.mp4"] is None
    assert "no such file" in problems["missing.mp4"]
    assert "download" in problems["https://x.org/talk.mp4"]
    assert all("\n" not in (p or "") for p in problems.values())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads all")
def test_an_unreadable_file_is_a_problem_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "a.mp4").chmod(0)
    assert "permission" in expand_inputs([tmp_path]).sources[0].problem


def test_names_that_are_no_utf8_become_ids_that_are(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    try:
        with open(name, "wb"):
            pass
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    (source,) = expand_inputs([tmp_path])
    assert source.video_id == "caf\\xe9.mp4"
    assert source.problem is None
    source.location.encode()


# Manifests


def manifest(folder: Path, rows: list[dict[str, object]], suffix: str) -> Path:
    path = folder / f"list{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        flat = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
                for row in rows]
        pd.DataFrame(flat).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifests(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, "v/a.mp4", "v/b.jpg", "a.srt")
    path = manifest(tmp_path, [
        {"id": "first", "video": "v/a.mp4", "transcript": "a.srt", "question": "Who, then?",
         "label": "fight", "caption": "two people"},
        {"id": None, "video": "v/b.jpg", "label": None},
        {"id": "words", "text": ["one", "", "three"], "label": "none"},
        {"id": "subs", "transcript": "a.srt"},
        {"id": "first", "video": "v/a.mp4", "transcript": "a.srt", "question": "When?",
         "label": "gun"},
    ], suffix)
    first, second, words, subs = expand_inputs([path])
    assert first.video_id == "first"
    assert first.path == tmp_path / "v/a.mp4"
    assert first.transcript == tmp_path / "a.srt"
    assert first.questions == ("Who, then?", "When?")
    assert first.labels == {"label": "fight", "caption": "two people"}
    assert [row["label"] for row in first.rows] == ["fight", "gun"]
    assert first.rows[1]["question"] == ["When?"]
    assert (second.video_id, second.kind, second.labels) == ("v/b.jpg", "image", {})
    assert (words.kind, words.text, words.path) == ("text", ["one", "", "three"], None)
    assert (subs.kind, subs.transcript) == ("transcript", tmp_path / "a.srt")
    assert all(source.problem is None for source in (first, second, words, subs))


def test_text_in_csv_is_json_or_words(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('id,text,label\n'
                    '007,"[""a"", {""text"": ""b"", ""start"": 1, ""end"": 2}]","[""gun""]"\n'
                    '2,[laughs] hello,x\n'
                    '3,"""quoted""",x\n'
                    '4,42,x\n', encoding="utf-8-sig")
    found = expand_inputs([path]).sources
    assert [s.video_id for s in found] == ["007", "2", "3", "4"]
    assert found[0].text == ["a", {"text": "b", "start": 1, "end": 2}]
    assert found[0].labels["label"] == ["gun"]
    assert [s.text for s in found[1:]] == ["[laughs] hello", "quoted", "42"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_with_other_delimiters_and_latin1(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(f"id{delimiter}text\r\n1{delimiter}déjà vu\r\n".encode("latin-1"))
    (source,) = expand_inputs([path])
    assert (source.video_id, source.text) == ("1", "déjà vu")


def test_rows_with_problems_cost_themselves(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "folder/x.mp4")
    path = manifest(tmp_path, [
        {"video": "a.mp4"}, {"video": "missing.mp4"}, {"video": "folder"},
        {"video": "a.mp4", "id": "b", "transcript": "missing.srt"}, {"id": "empty"},
        {"video": str(tmp_path / "a.mp4"), "id": "absolute"},
    ], ".jsonl")
    problems = {s.video_id: s.problem for s in expand_inputs([path])}
    assert problems["a.mp4"] is None
    assert problems["absolute"] is None
    assert "no such file" in problems["missing.mp4"]
    assert "row 2" in problems["missing.mp4"]
    assert "folder" in problems["folder"]
    assert "missing.srt" in problems["b"]
    assert "neither" in problems["empty"]


@pytest.mark.parametrize(("content", "words"), [
    ("id,label\n1,a\n", "video, transcript or text"),
    ("", "video, transcript or text"),
    ("id,video\n1,a.mp4\n1,b.mp4\n", "two sources"),
    ("id,text\n1,a\n1,b\n", "two sources"),
    ("text\na,b\n", "more values"),
    ("text,text\na,b\n", "occurs twice"),
])
def test_wrong_csv_manifests(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(content)
    with pytest.raises(ManifestError) as caught:
        expand_inputs([path])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("m.jsonl", b'{"video": "a.mp4"}\n{oops\n', "line 2"),
    ("m.jsonl", b'{"video": "a.mp4"}\n[1]\n', "line 2"),
    ("m.jsonl", b'{"video": 3}\n', "row 1"),
    ("m.jsonl", b'{"text": 3}\n', "row 1"),
    ("m.jsonl", b'{"text": "a", "question": 3}\n', "row 1"),
    ("m.parquet", b"no parquet", "not a Parquet file"),
    ("m.csv", bytes(range(256)) * 20, "not text"),
])
def test_wrong_manifests(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ManifestError) as caught:
        expand_inputs([path])
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_features_stand_for_a_video_or_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.npy", "b.npy")
    path = manifest(tmp_path, [
        {"video": "a.mp4", "features": "a.npy"},
        {"features": "b.npy", "caption": "one"}, {"features": "b.npy", "caption": "two"},
        {"features": "gone.npy"},
    ], ".jsonl")
    both, alone, gone = expand_inputs([path])
    assert (both.video_id, both.kind, both.features) == ("a.mp4", "video", tmp_path / "a.npy")
    assert (alone.video_id, alone.kind, alone.path) == ("b.npy", "features", None)
    assert [row["caption"] for row in alone.rows] == ["one", "two"]
    assert alone.location == str(tmp_path / "b.npy")
    assert "no such file" in str(gone.problem)


def test_lists_in_csv_are_json_or_python(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    path = tmp_path / "m.csv"
    path.write_text('video,caption\n'
                    'a.jpg,"[""a dog"", ""it runs""]"\n'
                    'b.jpg,"[\'a cat\', ""it\'s asleep""]"\n'
                    'c.jpg,[sic] a cow\n')
    found = [source.labels["caption"] for source in expand_inputs([path])]
    assert found == [["a dog", "it runs"], ["a cat", "it's asleep"], "[sic] a cow"]


def test_a_jsonl_of_segments_is_a_transcript(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text('{"text": "hello", "start": 0, "end": 1}\n')
    (source,) = expand_inputs([path])
    assert (source.kind, source.transcript) == ("transcript", path)


def test_a_row_and_a_folder_may_name_the_same_file(tmp_path: Path) -> None:
    touch(tmp_path, "v/a.mp4")
    path = manifest(tmp_path, [{"video": "v/a.mp4", "question": "Who?"}], ".jsonl")
    assert ids(path, tmp_path / "v") == ["list.jsonl/v/a.mp4", "v/a.mp4"]


def test_sources_are_values() -> None:
    assert Source("a") == Source("a")
    assert Source("a").location is None


def test_sources_import_neither_torch_nor_pandas() -> None:
    code = ("import sys, vbkit.sources; vbkit.sources.expand_inputs(['.'])\n"
            "assert not {'torch', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)
