"""`DecodePool`: decoding in other processes, and what happens when they hang or die."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from media_files import flip_bits, make_sound, make_video, read_number
from PIL import Image

from vbkit.errors import MediaError
from vbkit.media import DecodedVideo, DecodeJob, DecodePool
from vbkit.media.worker import keyframe_clips

FAKE = ["media_openers:opener"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("decode") / "talk.mp4", n=160, audio=True,
                      subtitles=[(0.5, 1.5, "Hello there")])


def consume(video: DecodedVideo) -> np.ndarray:
    """(C, F, H, W, 3): all clips."""
    batches = list(video.clips())
    assert [batch.first for batch in batches] == np.cumsum([0, *map(len, batches)])[:-1].tolist()
    return np.concatenate([batch.frames for batch in batches])


def outcomes(pool: DecodePool) -> list[str]:
    found = []
    for result in pool.results():
        try:
            found.append(f"{len(consume(result))} clips")
        except MediaError as error:
            found.append(str(error))
    return found


def test_a_video_given_up_before_a_worker_took_it_does_not_end_the_worker(video: Path) -> None:
    with DecodePool(plugin_openers=False) as pool:
        with pool._lock:  # the worker's thread cannot come in between
            pool.submit(DecodeJob("a", video, height=64))
            assert [result.job.key for result in pool.results()] == ["a"]
        deadline = time.monotonic() + 10
        while pool._waiting and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not pool._waiting
        assert pool.decode(DecodeJob("b", video, height=64)).open().n_frames == 160


def test_a_video_becomes_clips_of_the_right_frames(video: Path) -> None:
    with DecodePool(plugin_openers=False) as pool:
        pool.submit(DecodeJob("a", video, height=64, frames_per_clip=4, embedded_transcript=True))
        (result,) = pool.results()
        with pytest.raises(MediaError, match="given up"):  # `results` was asked for the next one
            result.open()
        result = pool.decode(DecodeJob("a", video, height=64, embedded_transcript=True))
        assert result.info.n_frames == 160
        assert result.info.has_audio
        assert result.clip_times.tolist() == [[0, 1.5], [1.5, 3], [3, 4.5], [4.5, 6.4]]
        assert [s.text for s in result.embedded_transcript.segments] == ["Hello there"]
        frames = consume(result)
    assert frames.shape == (4, 4, 64, 160, 3)
    for (start, end), clip in zip(result.clip_times, frames, strict=True):
        times = start + (end - start) * (np.arange(4) + 0.5) / 4
        assert [read_number(frame) for frame in clip] == [int(t * 25 + 1e-6) for t in times]
    assert result.damaged == 0
    assert len(result.keyframes) == 4
    for (moment, jpeg), (start, end) in zip(result.keyframes, result.clip_times, strict=True):
        assert start < moment < end
        picture = Image.open(io.BytesIO(jpeg))
        assert picture.size == (160, 64)
        assert read_number(np.asarray(picture)) == int(moment * 25 + 1e-6)


def test_results_come_in_order_and_bad_files_cost_themselves_only(
    video: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    still = tmp_path / "still.png"
    Image.new("RGB", (300, 200), "red").save(still)
    sound = make_sound(tmp_path / "tone.wav")
    damaged = flip_bits(make_video(tmp_path / "whole.mp4", n=60), tmp_path / "damaged.mp4", 40)
    paths = [video, text, still, tmp_path / "missing.mp4", sound, damaged, video]
    with DecodePool(workers=2, plugin_openers=False) as pool:
        for i, path in enumerate(paths):
            pool.submit(DecodeJob(str(i), path, height=64, kind="image" if i == 2 else "video"))
        keys, seen, damage = [], [], []
        for result in pool.results():
            keys.append(result.job.key)
            try:
                seen.append(len(consume(result)))
                damage.append(result.damaged)
            except MediaError as error:
                seen.append(str(error))
                damage.append(None)
    assert keys == [str(i) for i in range(len(paths))]
    assert (seen[0], seen[2], seen[6]) == (4, 1, 4)
    assert "not a video" in seen[1]
    assert "no such file" in seen[3]
    assert "no picture" in seen[4]
    assert seen[5] == 2
    assert damage[5] > 0
    assert damage[0] == 0


@pytest.mark.parametrize(
    ("trouble", "words"),
    [("hang", "hung"), ("crash", "crashed (SIG"), ("exit", "ended early (exit status 7)"),
     ("raise", "it went wrong in two lines")],
)
@pytest.mark.parametrize("where", ["atopen", "midway"])
def test_trouble_with_one_file_does_not_reach_the_next(
    video: Path, trouble: str, where: str, words: str
) -> None:
    bad = Path(f"{trouble}-{where}.fake")
    with DecodePool(plugin_openers=FAKE, timeout_s=2.0) as pool:
        for path in (video, bad, video):
            pool.submit(DecodeJob("", path, height=64))
        first, second, third = outcomes(pool)
    if (trouble, where) == ("raise", "atopen"):  # a plugin that fails to open declines
        words = "no such file"
    assert (first, third) == ("4 clips", "4 clips")
    assert words in second
    assert second.startswith(f"{bad}: ")
    assert "\n" not in second


def test_a_plugin_can_read_what_nothing_else_can(tmp_path: Path) -> None:
    with DecodePool(plugin_openers=FAKE) as pool:
        result = pool.decode(DecodeJob("", tmp_path / "fine.fake", height=32))
        frames = consume(result)
    assert result.info.reader == "test"
    assert frames.shape == (4, 4, 32, 32, 3)
    assert frames[:, :, 0, 0, 0].ravel().tolist() == list(range(16))
    assert result.damaged == 3


def test_decoding_ahead_is_bounded_and_giving_up_is_quick() -> None:
    with DecodePool(plugin_openers=FAKE) as pool:
        for name in ("long1.fake", "long2.fake", "short.fake"):
            pool.submit(DecodeJob(name, Path(name), height=224))
        results = pool.results()
        first = next(results)
        first.open()
        time.sleep(1.0)
        queued = pool._ahead
        assert queued < 100 << 20  # of 241 MB that the first has alone
        assert len(next(first.clips())) >= 1
        begun = time.monotonic()
        assert next(results).job.key == "long2.fake"
        third = next(results)
        assert len(consume(third)) == 4
        assert time.monotonic() - begun < 10


def test_keyframes_are_thinned_evenly() -> None:
    assert keyframe_clips(5, 10).tolist() == [0, 1, 2, 3, 4]
    thinned = keyframe_clips(1000, 10)
    assert len(thinned) == 10
    assert set(np.diff(thinned)) <= {110, 111, 112}
    with DecodePool(plugin_openers=FAKE) as pool:
        result = pool.decode(DecodeJob("", Path("long.fake"), height=16, max_keyframes=7))
        assert len(consume(result)) == 400
        assert len(result.keyframes) == 7
        quiet = pool.decode(DecodeJob("", Path("fine.fake"), height=16, keyframes=False))
        consume(quiet)
        assert quiet.keyframes == []


def test_closing_ends_the_workers(video: Path) -> None:
    before = set(psutil.Process().children())
    pool = DecodePool(workers=2, plugin_openers=FAKE)
    for _ in range(4):
        pool.submit(DecodeJob("", Path("long.fake")))
    next(pool.results()).open()
    assert set(psutil.Process().children()) - before
    begun = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - begun < 5
    assert not set(psutil.Process().children()) - before
    with pytest.raises(ValueError, match="closed"):
        pool.submit(DecodeJob("", video))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_workers_die_with_their_parent_even_while_decoding() -> None:
    code = (
        "import psutil, sys, time\n"
        "from pathlib import Path\n"
        "from vbkit.media import DecodeJob, DecodePool\n"
        "pool = DecodePool(plugin_openers=['media_openers:opener'])\n"
        "pool.submit(DecodeJob('', Path('hang-midway.fake')))\n"
        "next(pool.results()).open()\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "time.sleep(100)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
                              env=environment)
    with parent, parent.stdout as stdout:
        worker = psutil.Process(int(stdout.readline()))
        parent.kill()
    assert worker.wait(timeout=10) is None or not worker.is_running()


def test_the_pool_works_in_a_script_without_a_main_guard(video: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from vbkit.media import DecodeJob, DecodePool\n"
        "with DecodePool() as pool:\n"
        "    video = pool.decode(DecodeJob('', Path(sys.argv[1])))\n"
        "    print(sum(len(batch) for batch in video.clips()), 'torch' in sys.modules)\n"
    )
    (tmp_path / "numpy.py").write_text("raise RuntimeError('a file of the user')\n")
    run = subprocess.run([sys.executable, "-P", str(script), str(video)], cwd=tmp_path,
                         capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["4", "False"]


def test_the_worker_imports_no_torch_and_starts_quickly() -> None:
    code = "import sys, vbkit.media.worker; assert 'torch' not in sys.modules; " \
           "assert 'pandas' not in sys.modules; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
