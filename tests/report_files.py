"""Results folders of any size, in the tables' real schemas, made without a model."""

from __future__ import annotations

import datetime as dt
import io
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vbkit import Column, TableSchema
from vbkit.plugins import default_manager
from vbkit.tables import CORE_TABLES

SCHEMAS: dict[str, TableSchema] = {
    **CORE_TABLES,
    **{table.name: table for name in ("moderation", "sentiment", "summarisation", "qa",
                                      "classification")
       for table in default_manager().get_task(name).spec.tables},
    "explanations": TableSchema("explanations", (
        Column("of_table", "string"), Column("of_row", "int64"), Column("target", "string"),
        Column("score", "float64"), Column("score_hidden", "float64"), Column("method", "string"),
        Column("kind", "string"), Column("rank", "int64"), Column("weight", "float64"),
        Column("start_s", "float64", "s", True), Column("end_s", "float64", "s", True),
        Column("text", "string", nullable=True),
    )),
    "people": TableSchema("people", (
        Column("start_s", "float64", "s", doc="start of the clip"),
        Column("end_s", "float64", "s", doc="end of the clip"),
        Column("score", "float64", "0..1", doc="how much it looks like people"),
        Column("who", "string", nullable=True, doc="who it may be"),
    ), doc="a clip with somebody in it"),
    "loudness": TableSchema("loudness", (
        Column("level", "string", doc="quiet or loud"),
        Column("lufs", "float64", "LUFS", True, doc="integrated loudness"),
    ), doc="how loud a video is"),
}
TEXT = """today we look at how the heat goes through a wall and why it matters for every house
then the carpenter measures twice and cuts once nobody knows what happens after that please hold the
ladder while I paint the ceiling it was a wonderful afternoon by the sea this is terrible and I am
really sorry about it"""
WORDS = TEXT.split()
NOON = dt.datetime(2026, 11, 26, 12, tzinfo=dt.UTC)
CLIP_S = 1.5


def write_tables(out: Path, tables: Mapping[str, Iterable[tuple[str, Mapping[str, Any]]]]) -> None:
    """Write rows, each with its video_id, as one file a table."""
    for name, rows in tables.items():
        rows = list(rows)
        schema = SCHEMAS[name]
        frame = schema.frame([row for _, row in rows])
        if schema.per_video:
            frame.insert(0, "video_id", [video_id for video_id, _ in rows])
        data = pa.Table.from_pandas(frame, schema=schema.arrow_schema(), preserve_index=False)
        data = data.replace_schema_metadata({b"vbkit.doc": schema.doc.encode()})
        folder = out / "tables" / name
        folder.mkdir(parents=True)
        pq.write_table(data, folder / "all.parquet")


def video_rows(video_id: str, *, clips: int = 20, seed: int = 0, said: str | None = None,
               keyframes: bool = True, status: str = "ok",
               untimed: bool = False) -> dict[str, list[dict[str, Any]]]:
    """The rows of one video in all tables.

    Args:
        said: the text of its second segment.
        untimed: whether it is a text without times and pictures.
    """
    rng = random.Random(seed)
    length = clips * CLIP_S
    spans = [(i * CLIP_S, (i + 1) * CLIP_S) for i in range(clips)]
    segments = [(2.0 * i, 2.0 * i + 1.9) for i in range(int(length // 2))]
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) for _ in segments]
    if said is not None:
        texts[1] = said
    moods = [max(-0.95, min(0.95, 0.7 * np.sin(i / 4 + seed) + rng.uniform(-0.3, 0.3)))
             for i in range(len(segments))]
    label = ["negative" if mood < -0.33 else "positive" if mood > 0.33 else "neutral"
             for mood in moods]
    flagged = seed % 5 in (1, 3)
    decision = ("review" if seed % 5 == 1 else "block") if flagged else "allow"
    third = length / 3
    labels = ["cooking", "sport", "interview"]
    rng.shuffle(labels)
    mean = float(np.mean(moods))
    overall = "negative" if mean < -0.1 else "positive" if mean > 0.1 else "neutral"
    rows: dict[str, list[dict[str, Any]]] = {
        "videos": [{
            "path": f"/videos/{video_id}", "content_id": f"{seed:040x}", "status": status,
            "error": "3 frames cannot be decoded" if status != "ok" else None,
            "duration_s": length, "start_offset_s": 0.0, "width": 640, "height": 360,
            "n_frames": int(length * 25), "n_clips": clips, "n_segments": len(segments),
            "transcript_source": "sidecar", "language": "en"}],
        "segments": [{"segment": i, "start_s": start, "end_s": end, "text": text}
                     for i, ((start, end), text) in enumerate(zip(segments, texts, strict=True))],
        "words": [{"segment": i, "word": 0, "start_s": start, "end_s": start + 0.2,
                   "text": text.split()[0]}
                  for i, ((start, _), text) in enumerate(zip(segments, texts, strict=True))
                  if text.strip()],
        "clips": [{"clip": i, "start_s": start, "end_s": end,
                   "caption": f"a person {rng.choice(['walks', 'cooks', 'speaks'])} in a room",
                   "keyframe": f"keyframes/{seed % 50:02d}/{i % 40:02d}.jpg" if keyframes else None}
                  for i, (start, end) in enumerate(spans)],
        "errors": [{"stage": "decode", "task": None, "error_type": "MediaError",
                    "message": "3 frames cannot be decoded"}] if status != "ok" else [],
        "moderation": [{
            "start_s": 3.0, "end_s": 7.5, "category": "gun", "parent_category": "weapons",
            "score": 0.91, "decision": decision, "modality": "visual",
            "evidence": "clips 2 to 4", "first_clip": 2, "last_clip": 4}] if flagged else [],
        "moderation_videos": [{
            "decision": decision, "category": "gun" if flagged else None,
            "score": 0.91 if flagged else 0.1, "nearest_category": "gun",
            "n_flagged": int(flagged)}],
        "sentiment": [{
            "start_s": start, "end_s": end, "segment": i, "clip": None, "modality": "text",
            "label": label[i], "score": moods[i], "p_negative": max(0.0, -moods[i]),
            "p_neutral": 1 - abs(moods[i]), "p_positive": max(0.0, moods[i]), "text": texts[i]}
            for i, (start, end) in enumerate(segments)],
        "sentiment_videos": [{
            "label": overall, "score": mean, "p_negative": 0.2, "p_neutral": 0.5,
            "p_positive": 0.3, "n_rows": len(segments)}],
        "summarisation": [{"summary": ". ".join(texts[:2]).capitalize() + ".", "n_selected": 2,
                           "compression": 0.2}],
        "summarisation_segments": [{
            "start_s": start, "end_s": end, "segment": i, "rank": i + 1, "score": 1 / (i + 1),
            "selected": i < 2, "text": texts[i], "keyframe_s": start + 0.5}
            for i, (start, end) in enumerate(segments)],
        "chapters": [{"start_s": third * i, "end_s": third * (i + 1), "title": title}
                     for i, title in enumerate(["How it begins", "What they do", "The end"])],
        "classification": [{"label": name, "score": score, "rank": i + 1}
                           for i, (name, score) in enumerate(zip(labels, (0.7, 0.2, 0.1),
                                                                 strict=True))],
        "classification_clips": [],
        "qa": [{"question": "Who is speaking?", "rank": 1, "answer": texts[3], "score": 0.7,
                "no_answer": False, "start_s": segments[3][0], "end_s": segments[3][1],
                "first_segment": 3, "last_segment": 3, "best_segment": 3, "modality": "text"},
               {"question": "What does it cost?", "rank": 1, "answer": texts[4], "score": 0.1,
                "no_answer": True, "start_s": segments[4][0], "end_s": segments[4][1],
                "first_segment": 4, "last_segment": 4, "best_segment": 4, "modality": "text"}],
        "explanations": [{
            "of_table": "moderation", "of_row": 0, "target": "score of gun", "score": 0.91,
            "score_hidden": 0.2, "method": "shapley", "kind": "clip", "rank": rank,
            "weight": weight, "start_s": at, "end_s": at + CLIP_S, "text": None}
            for rank, (at, weight) in enumerate(((3.0, 0.5), (4.5, 0.25), (6.0, -0.04)), start=1)
        ] if flagged else [],
        "people": [{"start_s": start, "end_s": end, "score": rng.random(),
                    "who": "a man" if i % 2 else None} for i, (start, end) in enumerate(spans[:4])],
        "loudness": [{"level": "loud" if seed % 2 else "quiet", "lufs": -23.5}],
    }
    if untimed:
        for name in ("clips", "chapters", "people", "moderation", "explanations"):
            rows[name] = []
        rows["videos"][0] |= dict.fromkeys(("duration_s", "width", "height", "n_frames"))
        rows["videos"][0]["n_clips"] = 0
        for name in ("segments", "sentiment", "summarisation_segments", "qa"):
            for row in rows[name]:
                row |= {"start_s": None, "end_s": None}
        for row in rows["summarisation_segments"]:
            row["keyframe_s"] = None
    return rows


def write_keyframes(out: Path, folders: int = 50, each: int = 40) -> None:
    """Pictures that look a little like frames, 320 px wide."""
    made: dict[int, bytes] = {}
    for number in range(8):
        rng = np.random.default_rng(number)
        low = Image.fromarray(rng.integers(0, 255, (6, 9, 3), dtype=np.uint8))
        file = io.BytesIO()
        low.resize((320, 180), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        made[number] = file.getvalue()
    for folder in range(folders):
        path = out / "keyframes" / f"{folder:02d}"
        path.mkdir(parents=True)
        for number in range(each):
            (path / f"{number:02d}.jpg").write_bytes(made[(folder + number) % len(made)])


def run_row(number: int = 1) -> dict[str, Any]:
    return {
        "run_id": f"r{number}", "started": NOON + dt.timedelta(days=number),
        "finished": NOON + dt.timedelta(days=number, seconds=75), "command": "vbkit run videos",
        "versions": "{}", "tasks": "{}", "model": "mini abc", "device": "cpu float32",
        "cache": None, "n_ok": 1, "n_partial": 0, "n_failed": 0, "n_skipped": 0,
        "seconds": json.dumps({"decode": 12.5, "backbone": 41.0, "joint": 6.0, "text": 2.0,
                               "head:moderation": 1.5, "total": 75.0})}


def write_results(out: Path, videos: Mapping[str, Mapping[str, Any]] | int,
                  keyframes: bool = True) -> Path:
    """A results folder of `videos`: how many, or arguments of `video_rows` by video_id."""
    if isinstance(videos, int):
        videos = {f"talks/{i:04d}.mp4": {"seed": i} for i in range(videos)}
    tables: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for video_id, arguments in videos.items():
        for name, rows in video_rows(video_id, **{"keyframes": keyframes, **arguments}).items():
            tables.setdefault(name, []).extend((video_id, row) for row in rows)
    tables["runs"] = [("", run_row(1)), ("", run_row(2))]
    write_tables(out, tables)
    if keyframes:
        write_keyframes(out, min(50, len(videos)) or 1)
    return out
