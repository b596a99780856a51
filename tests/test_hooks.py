# ruff: noqa: F811 (a fixture's name is an argument's)
"""Every hook does what docs/hooks.md says of it, shown by the example there.

`tests/test_docs.py` checks that each hook has an example there and a test here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plugin_files import make_distribution, site  # noqa: F401 (a fixture)
from test_docs import files_of

import vbkit.media
from vbkit.plugins import PluginManager, default_manager


@pytest.fixture
def example(site: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PluginManager]:
    """Makes the example of a hook a plugin of an isolated manager."""
    monkeypatch.chdir(site)

    def make(hook: str, plugins: PluginManager) -> PluginManager:
        files = files_of(f"hook_{hook}")
        for name, code in files.items():
            (site / name).write_text(code)
        module = Path(next(iter(files))).stem
        record = plugins.register(import_module(module), module)
        assert record.error is None
        return plugins

    return make


def test_vbkit_tasks(example: Any, vbkit_plugins, vbkit_engine, vbkit_clip) -> None:
    example("vbkit_tasks", vbkit_plugins)
    rows = vbkit_engine.run([vbkit_clip], ["word_count"]).tables["word_count"]
    assert rows["n_words"].tolist() == [16]


def test_vbkit_models(example: Any, vbkit_plugins, site: Path) -> None:
    plugins = example("vbkit_models", vbkit_plugins)
    (site / "films_model").symlink_to(plugins.get_model("mini").spec.location)
    films = vbkit.Engine(model="films", device="cpu", manager=plugins)
    assert films.encode_text(["a street"]).shape == (1, 384)
    assert plugins.get_model("films").spec.licence == "CC BY 4.0"


def test_vbkit_backbones(example: Any, vbkit_plugins) -> None:
    import torch

    from vbkit.model.backbones import load_backbone

    plugins = example("vbkit_backbones", vbkit_plugins)
    backbone = load_backbone(plugins, "colours", None, frames_per_clip=2).prepare("cpu")
    red = torch.zeros(1, 2, 64, 90, 3, dtype=torch.uint8)
    red[..., 0] = 255
    features = backbone(red)
    assert features.shape == (1, 48)
    assert torch.allclose(features[0, :16], torch.ones(16), atol=1e-5)
    assert torch.allclose(features[0, 16:], -torch.ones(32), atol=1e-5)


def test_vbkit_transcribers(example: Any, vbkit_plugins, vbkit_engine, sample: Path, site: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(vbkit.media, "Transcriber"):
        pytest.skip("this vbkit has the older interface of transcribers")
    example("vbkit_transcribers", vbkit_plugins)
    monkeypatch.setenv("PYTHONPATH", str(site))  # it listens in a process of its own
    shutil.copy(sample, site / "talk.mp4")  # without its subtitles
    result = vbkit_engine.run([site / "talk.mp4"], ["summarisation"],
                              options={"loudness": {"threshold": 0.001}})
    assert not result.report.failures
    segments = result.tables["segments"]
    assert set(segments["text"]) == {"[sound]"}
    assert segments["end_s"].max() < 7  # the street is silent
    assert result.tables["videos"]["transcript_source"].tolist() == ["speech"]


def test_vbkit_open_video(example: Any, vbkit_plugins, vbkit_engine, site: Path,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = example("vbkit_open_video", vbkit_plugins)
    make_distribution(site, "acme-arrays", {}, {"arrays": "vbkit_arrays"})
    monkeypatch.setenv("PYTHONPATH", str(site))  # of the decoding process
    draw = np.random.default_rng(0)
    np.save(site / "noise.npy", draw.integers(0, 256, (45, 240, 320, 3), dtype=np.uint8))
    np.save(site / "numbers.npy", np.zeros(3))
    assert plugins.implements("vbkit_open_video")
    result = vbkit_engine.run([site / "noise.npy", site / "numbers.npy"], ["classification"],
                              options={"classification": {"labels": "noise, a street"}})
    videos = result.tables["videos"].set_index("video_id")
    assert videos.loc["noise.npy", ["status", "n_clips", "duration_s"]].tolist() == ["ok", 3, 4.5]
    assert "not an array of pictures" in str(videos.at["numbers.npy", "error"])


def test_vbkit_before_run(example: Any, vbkit_plugins, vbkit_engine, vbkit_clip) -> None:
    example("vbkit_before_run", vbkit_plugins)
    result = vbkit_engine.run([vbkit_clip.with_suffix(".srt")], ["sentiment"])
    assert Path("runs.log").read_text() == (
        f"{result.run.run_id} begins: sentiment on 1 inputs\n")


def test_vbkit_after_video(example: Any, vbkit_plugins, vbkit_engine, vbkit_clip) -> None:
    example("vbkit_after_video", vbkit_plugins)
    worse = vbkit_clip.with_name("worse.srt")
    worse.write_text("1\n00:00:00,000 --> 00:00:02,000\nYou are a disgusting stupid idiot.\n")
    result = vbkit_engine.run([vbkit_clip.with_suffix(".srt"), worse], ["moderation"])
    assert set(result.tables["moderation_videos"]["decision"]) > {"allow"}
    assert Path("look-at-these.txt").read_text() == "worse.srt\n"
    vbkit_engine.run([worse], ["sentiment"])  # without that table, it has nothing to say
    assert Path("look-at-these.txt").read_text() == "worse.srt\n"


def test_vbkit_on_error(example: Any, vbkit_plugins, vbkit_engine, site: Path) -> None:
    example("vbkit_on_error", vbkit_plugins)
    (site / "empty.mp4").touch()
    result = vbkit_engine.run(["empty.mp4"], ["moderation"])
    (failure,) = result.report.failures
    assert Path("failures.log").read_text() == (
        f"{result.run.run_id} empty.mp4 open: {failure.message}\n")


def test_vbkit_after_run(example: Any, vbkit_plugins, vbkit_engine, vbkit_clip) -> None:
    example("vbkit_after_run", vbkit_plugins)
    result = vbkit_engine.run([vbkit_clip.with_suffix(".srt")], ["sentiment"])
    (line,) = Path("durations.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["run"] == result.run.run_id
    assert found["failed"] == 0
    assert found["total"] > found["head:sentiment"] > 0


def test_examples_are_gone_from_the_installed_plugins() -> None:
    assert not {record.name for record in default_manager().plugins()} & {
        "vbkit_words", "vbkit_films", "vbkit_alarm"}
