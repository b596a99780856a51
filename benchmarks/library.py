"""Questions to a results folder of a thousand videos, from its cache."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VIDEOS, CLIPS, SEGMENTS = 1000, 40, 60
QUESTIONS = ("How do you fix the engine?", "Where does the old farmer hide the letters?",
             "When does a dog run on the beach?", "Who teaches the children to swim?",
             "What do they build in the garden?")
_WORDS = (
    ("The old farmer", "My neighbour", "A young teacher", "The engineer", "Our captain",
     "The children", "A tired nurse", "The whole team", "Nobody", "Her brother"),
    ("repairs", "hides", "forgets", "builds", "sells", "paints", "explains", "carries", "studies",
     "cooks"),
    ("the engine", "an old letter", "the wooden boat", "a pot of soup", "the map", "two violins",
     "the broken lamp", "a bag of seeds", "the budget", "an answer"),
    ("in the garden.", "near the harbour.", "after lunch.", "at the station.", "in the snow.",
     "with great care.", "for the third time.", "before the meeting.", "on the beach."),
)


def measure(folder: Path) -> Iterator[tuple[Any, ...]]:
    """Make the folder where it is not there yet, and ask.

    The videos are not decoded: clip features at random are put into the cache under the content of
    a small file each; texts are drawn from 3,000 sentences. All else is as `vbkit run` does it.

    Yields:
        What was measured, the number, its unit, and the limit where there is one.
    """
    import vbkit
    from vbkit.engine.library import Library

    out = folder / "thousand"
    if not (out / "index").is_dir():
        make(folder, out)
    vbkit.Engine(device="cpu").encode_text(["imports"])
    began = time.perf_counter()
    Library(vbkit.Engine(device="cpu"), out).ask(QUESTIONS[0])
    first = time.perf_counter() - began
    what = f"{VIDEOS:,} videos"
    yield f"`ask`, {what}: model, index and answer, imports aside", first, "s", 2.0
    engine = vbkit.Engine(device="cpu")
    library, times = Library(engine, out), []
    for question in QUESTIONS:
        began = time.perf_counter()
        answers = library.ask(question)
        times.append(time.perf_counter() - began)
        assert len(answers) == 5
    yield f"`ask`, {what}: the slowest of five questions, one by one", max(times), "s", 2.0
    began = time.perf_counter()
    library.ask(QUESTIONS)
    yield f"`ask`, {what}: five questions at once", time.perf_counter() - began, "s"
    began = time.perf_counter()
    assert len(library.search("a dog on a beach")) == 10
    yield f"`search`, {what}", time.perf_counter() - began, "s", 2.0
    (out / "index" / "embeddings.safetensors").unlink()
    began = time.perf_counter()
    Library(engine, out).index()
    yield f"the index of {what}, from the cache", time.perf_counter() - began, "s"
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vbkit", "ask", str(out), QUESTIONS[0], "--device",
                    "cpu"], check=True, capture_output=True)
    yield f"`vbkit ask`, {what}, the whole command", time.perf_counter() - began, "s"


def make(folder: Path, out: Path) -> None:
    """A results folder of `VIDEOS` videos, with their features in its cache."""
    import torch

    import vbkit
    from vbkit.engine.cache import FeatureCache
    from vbkit.media.content import content_id

    engine = vbkit.Engine(device="cpu")
    cache, rng = FeatureCache(out / "cache"), random.Random(0)
    torch.manual_seed(0)
    sentences = rng.sample([" ".join(words) for words in itertools.product(*_WORDS)], 3000)
    starts = torch.arange(CLIPS, dtype=torch.float64) * 1.5
    times = torch.stack([starts, starts + 1.5], 1)
    rows = []
    for number in range(VIDEOS):
        path = folder / "thousand-videos" / f"{number:04d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"stands for video {number}")
        cache.save(content_id(path), "visual", engine.bundle.visual_key, {
            "clip_times": times,
            "clip_features": torch.rand(CLIPS, engine.bundle.config.visual_feature_size).half(),
            "keyframe_times": torch.zeros(0, dtype=torch.float64),
            "keyframe_sizes": torch.zeros(0, dtype=torch.int64),
            "keyframes": torch.zeros(1, dtype=torch.uint8),
        }, {"info": {"duration_s": CLIPS * 1.5, "width": 640, "height": 360,
                     "n_frames": CLIPS * 45}, "damage": []})
        rows.append({"id": f"video {number}", "video": str(path), "text": [
            {"text": text, "start": float(place), "end": place + 0.9}
            for place, text in enumerate(rng.sample(sentences, SEGMENTS))]})
    manifest = folder / "thousand.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    report = engine.run([manifest], ["qa"], out=out).report
    assert report.n_ok == VIDEOS, report.failures[:3]
