"""Measure vbkit's speed and memory, and write the numbers into docs/benchmarks.md.

    python -m benchmarks              all of them (about half an hour on two cores)
    python -m benchmarks startup      one: startup, backbone, tasks, second, overlap, memory, batch,
                                      library, pretraining, kmeans

Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.media import looped, upscaled

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
TASKS = ("moderation", "qa", "sentiment", "summarisation")
QUESTION = "Who passes the waiting cars?"


@dataclass(frozen=True)
class Measurement:
    """A number beside what it should be.

    Args:
        what: what was measured.
        value: the number.
        unit: its unit.
        limit: what it must not exceed (or, where `at_least`, must reach); None where it is shown
            for information.
    """

    what: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False

    @property
    def kept(self) -> bool | None:
        if self.limit is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def startup(folder: Path) -> Iterator[Measurement]:
    """Wall time of commands that must not load anything heavy; the best of seven."""
    for arguments in (["--help"], ["tasks"], ["plugins"]):
        times = []
        for _ in range(7):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "vbkit", *arguments], check=True,
                           capture_output=True)
            times.append(time.perf_counter() - began)
        yield Measurement(f"`vbkit {' '.join(arguments)}`", min(times), "s", 0.4)


def backbone(folder: Path) -> Iterator[Measurement]:
    """Images a second of the mode that the engine picks, beside plain float32."""
    import timm
    import torch

    import vbkit

    engine = vbkit.Engine(device="cpu")
    clips = torch.randint(0, 256, (8, 4, 224, 224, 3), dtype=torch.uint8)
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    pictures = torch.randn(32, 3, 224, 224)
    rates = {}
    for name, call in (("plain float32", lambda: plain(pictures)),
                       (f"engine, {engine.bundle.precision}",
                        lambda: engine.bundle.backbone(clips))):
        with torch.inference_mode():
            rates[name] = 32 / _best(call, 9)
        yield Measurement(f"backbone, {name}", rates[name], "images/s")
    first, second = rates.values()
    limit = 4.0 if engine.bundle.precision == "bfloat16" else 1.7
    yield Measurement("backbone, engine's mode over plain float32", second / first, "×", limit,
                      at_least=True)


def tasks(folder: Path) -> Iterator[Measurement]:
    """All four tasks beside the dearest alone, over a three-minute video, start-up aside."""
    import vbkit

    video = three_minutes(folder)
    engine = vbkit.Engine(device="cpu")
    _warm_up(engine)

    def seconds(*names: str) -> float:
        runs = []
        for _ in range(3):
            with tempfile.TemporaryDirectory() as out:
                result = engine.run([video], names, out=out, questions=[QUESTION])
            assert not result.report.failures, result.report.failures
            runs.append(result.report.seconds["total"])
        return statistics.median(runs)

    alone = {name: seconds(name) for name in TASKS}
    for name, value in alone.items():
        yield Measurement(f"3 minutes of 480p, {name} alone", value, "s")
    together = seconds(*TASKS)
    yield Measurement("3 minutes of 480p, four tasks", together, "s")
    yield Measurement("four tasks over the dearest one", together / max(alone.values()), "×", 1.15)


def second(folder: Path) -> Iterator[Measurement]:
    """A second question and a second task over a video that is in the cache."""
    import vbkit

    video = three_minutes(folder)
    engine = vbkit.Engine(device="cpu")
    _warm_up(engine)
    with tempfile.TemporaryDirectory() as out:
        def run(name: str, question: str) -> Any:
            return engine.run([video], [name], out=out, questions=[question]).report.seconds

        first = run("qa", QUESTION)["total"]
        yield Measurement("3 minutes of 480p, first run of qa", first, "s")
        for what, again in (("a second question", run("qa", "Who takes a bicycle?")),
                            ("a second task", run("sentiment", QUESTION))):
            assert "backbone" not in again
            yield Measurement(f"{what} over the first run", again["total"] / first, "×", 0.1)


def overlap(folder: Path) -> Iterator[Measurement]:
    """End to end beside the processor time of its parts.

    Start-up (processes, heads, one padded batch) is left out by taking off a video of one clip, on
    both sides.
    """
    import av
    import torch

    import vbkit

    video, short = three_minutes(folder), looped(upscaled(folder), folder / "clip.mp4", 1.5)
    cores = os.cpu_count() or 1
    decoding = 0.0
    for path, sign in ((video, 1), (short, -1)):
        began = time.process_time()
        with av.open(str(path)) as container:
            container.streams.video[0].thread_count = 1
            for _ in container.decode(video=0):
                pass
        decoding += sign * (time.process_time() - began)
    engine = vbkit.Engine(device="cpu")
    _warm_up(engine)
    batch = torch.randint(0, 256, (8, 4, 224, 224, 3), dtype=torch.uint8)
    batches = 120 // 8 - 1
    began = time.process_time()
    with torch.inference_mode():
        for _ in range(batches):
            engine.bundle.backbone(batch)
    encoding = time.process_time() - began
    walls = {video: [], short: []}
    for path in (video, short) * 3:
        with tempfile.TemporaryDirectory() as out:
            result = engine.run([path], TASKS, out=out, questions=[QUESTION])
        walls[path].append(result.report.seconds["total"])
    long, start = (statistics.median(times) for times in walls.values())
    yield Measurement("3 minutes of 480p, bare decoding", decoding, "CPU-s")
    yield Measurement("3 minutes of 480p, bare backbone", encoding, "CPU-s")
    yield Measurement("3 minutes of 480p, four tasks, end to end", long, "s")
    yield Measurement("of that, start-up: the same with a video of one clip", start, "s")
    yield Measurement(f"end to end over the parts on {cores} cores, start-up aside",
                      (long - start) / ((decoding + encoding) / cores), "×", 1.15)


def memory(folder: Path) -> Iterator[Measurement]:
    """Peak memory of all processes of a run, a long video beside a short one."""
    peaks = {}
    for name, minutes in (("5 minutes", 5), ("2 hours", 120)):
        video = looped(upscaled(folder), folder / f"{minutes}min.mp4", minutes * 60)
        with tempfile.TemporaryDirectory() as out:
            peaks[name] = _peak_memory(["run", str(video), "--out", out, "--device", "cpu",
                                        *(x for task in TASKS for x in ("--task", task)),
                                        "--question", QUESTION])
        yield Measurement(f"peak memory, {name} of 480p", peaks[name] / 2**20, "MiB")
    yield Measurement("peak memory, 2 hours over 5 minutes", peaks["2 hours"] / peaks["5 minutes"],
                      "×", 1.25)


def batch(folder: Path) -> Iterator[Measurement]:
    """The largest difference of any score between a video alone and among others."""
    import vbkit

    videos = [ROOT / "tests" / "data" / "sample.mp4"]
    videos += [looped(upscaled(folder), folder / f"{s}s.mp4", s) for s in (4, 9, 21)]
    engine = vbkit.Engine(device="cpu")
    together = engine.run(videos, TASKS, questions=[QUESTION]).tables
    largest = 0.0
    for video in videos:
        alone = engine.run([video], TASKS, questions=[QUESTION]).tables
        for name in TASKS:
            ours = together[name][together[name]["video_id"] == video.name].reset_index(drop=True)
            assert len(ours) == len(alone[name]), f"{name}: another number of rows"
            if "score" in ours:
                difference = (ours["score"] - alone[name]["score"]).abs().max()
                largest = max(largest, 0.0 if difference != difference else float(difference))
    yield Measurement("largest difference of a score, alone and among others", largest, "", 1e-4)


def library(folder: Path) -> Iterator[Measurement]:
    """Questions to a results folder of a thousand videos, from its cache."""
    from benchmarks.library import measure

    for row in measure(folder):
        yield Measurement(*row)


def pretraining(folder: Path) -> Iterator[Measurement]:
    """A pretraining step beside transformers' BERT of the same size."""
    from benchmarks.pretraining import measure

    for row in measure(folder):
        yield Measurement(*row)


def kmeans(folder: Path, rows: int = 1_000_000) -> Iterator[Measurement]:
    """The visual vocabulary's k-means beside scikit-learn's (5 GB of memory)."""
    from benchmarks.kmeans import measure

    for row in measure(rows):
        yield Measurement(*row)


BENCHMARKS: dict[str, Callable[[Path], Iterator[Measurement]]] = {
    function.__name__: function
    for function in (startup, backbone, tasks, second, overlap, batch, memory, library,
                     pretraining, kmeans)
}


def three_minutes(folder: Path) -> Path:
    return looped(upscaled(folder), folder / "3min.mp4", 180)


def _warm_up(engine: Any) -> None:
    """Load the backbone, the heads and the decoder's code: start-up is not measured here."""
    engine.run([ROOT / "tests" / "data" / "sample.mp4"], TASKS, questions=[QUESTION])


def _best(call: Callable[[], object], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _peak_memory(arguments: list[str]) -> int:
    """Largest sum of the proportional memory of a command and its children (bytes)."""
    process = subprocess.Popen([sys.executable, "-m", "vbkit", *arguments],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    with _sampler() as pause:
        while process.poll() is None:
            total = 0
            try:
                main = psutil.Process(process.pid)
                for each in (main, *main.children(recursive=True)):
                    total += each.memory_full_info().pss if hasattr(
                        each.memory_full_info(), "pss") else each.memory_info().rss
            except psutil.Error:
                pass
            peak = max(peak, total)
            pause()
    if process.returncode:
        raise RuntimeError(f"vbkit {' '.join(arguments)} ended with {process.returncode}")
    return peak


@contextmanager
def _sampler() -> Iterator[Callable[[], None]]:
    event = threading.Event()
    yield lambda: event.wait(0.25) and None


def write(results: dict[str, Any]) -> None:
    """Keep the numbers, and put their table into the page."""
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    machines = list(dict.fromkeys(results["machines"].values()))
    lines = []
    for place, each in enumerate(machines):
        names = [name for name, on in results["machines"].items() if on == each]
        what = f" ({', '.join(names)})" if len(machines) > 1 else ""
        lines.append(f"{'Measured' if not place else 'And'} on {each}{what}.")
    lines += ["", "| what | measured | wanted | kept | command |", "|---|---|---|---|---|"]
    for name, rows in results["benchmarks"].items():
        for row in rows:
            wanted = "" if row["limit"] is None else (
                f"{'≥' if row['at_least'] else '≤'} {row['limit']:g} {row['unit']}")
            kept = {True: "yes", False: "**no**", None: ""}[row["kept"]]
            value = f"{_number(row['value'])} {row['unit']}"
            lines.append(f"| {row['what']} | {value} | {wanted} | {kept} "
                         f"| `python -m benchmarks {name}` |")
    marker = "<!-- benchmarks -->"
    text = PAGE.read_text() if PAGE.exists() else f"# Benchmarks\n\n{marker}\n"
    head, _, rest = text.partition(marker)
    _, _, tail = rest.partition("<!-- end -->")
    body = "\n".join(lines)
    PAGE.write_text(f"{head}{marker}\n\n{body}\n\n<!-- end -->{tail or chr(10)}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def machine() -> str:
    """The processor and the software that the numbers depend on."""
    import torch

    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path(
            "/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    bfloat16 = torch.cpu._is_avx512_bf16_supported()
    return (f"{os.cpu_count()} cores ({name}, {'with' if bfloat16 else 'without'} AVX512-BF16), no "
            f"GPU, torch {torch.__version__.partition('+')[0]}, Python {platform.python_version()}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME")
    parser.add_argument("--folder", type=Path, help="where the test videos are kept")
    parser.add_argument("--rows", type=int, default=1_000_000, help="features of kmeans")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.gettempdir()) / "vbkit-benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {
        "benchmarks": {}, "machines": {}}
    missed = 0
    for name in arguments.names or BENCHMARKS:
        rows = []
        benchmark = partial(kmeans, rows=arguments.rows) if name == "kmeans" else BENCHMARKS[name]
        for row in benchmark(folder):
            rows.append({**vars(row), "kept": row.kept})
            missed += row.kept is False
            print(f"{name}: {row.what}: {row.value:.3g} {row.unit}"
                  f"{'' if row.kept is None else '  ok' if row.kept else '  NOT KEPT'}", flush=True)
        results["benchmarks"][name] = rows
        results["machines"][name] = machine()
    results["benchmarks"] = {name: results["benchmarks"][name] for name in BENCHMARKS
                             if name in results["benchmarks"]}
    write(results)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
