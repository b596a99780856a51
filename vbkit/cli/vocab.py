"""`vbkit vocab`."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vbkit.cli.run import engine_options
from vbkit.errors import UsageError, VbkitError

if TYPE_CHECKING:
    import numpy as np

    from vbkit.engine import Engine
    from vbkit.features import Features
    from vbkit.model.vocabulary import BuildProgress, VisualVocabulary, VocabularyQuality
    from vbkit.sources import Source
    from vbkit.training.feature_files import FeatureSpill

__all__ = ["vocab"]

_CHECKPOINT = "vocabulary.checkpoint.safetensors"
_HELD_OUT_EVERY = 10
_LEAST_PER_WORD = 4  # features: with fewer, words are single features
_GOOD_PER_WORD = 50
_LISTED = 5
_SAY_S = 10.0


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="Folder that gets vocabulary.safetensors.")
@engine_options
@click.option("--space", type=click.Choice(["embeddings", "features"]), default="features",
              show_default=True,
              help="What words are made of: clip features as the model reads them, or these "
                   "projected into the space that video and text share.")
@click.option("--depth", type=click.IntRange(1, 8), default=3, show_default=True,
              help="Levels of the tree.")
@click.option("--branching", type=click.IntRange(2), default=12, show_default=True,
              help="Children of each node; BRANCHING to the power of DEPTH words at most.")
@click.option("--batch-size", type=click.IntRange(1), default=16384, show_default=True,
              help="Features handled at a time.")
@click.option("--iterations", type=click.IntRange(1), default=30, show_default=True,
              help="Of k-means, at most, for each node.")
@click.option("--memory", type=click.FloatRange(0, min_open=True), default=4.0, show_default=True,
              metavar="GIB", help="Memory that features may take.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--resume/--fresh", default=True, show_default=True,
              help="Go on with a build that was cut short, or start anew.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON report.")
def vocab(
    inputs: tuple[str, ...],
    out: Path,
    model: str | None,
    device: str,
    precision: str,
    cache: Path | None,
    space: str,
    depth: int,
    branching: int,
    batch_size: int,
    iterations: int,
    memory: float,
    seed: int,
    resume: bool,
    as_json: bool,
) -> int:
    """Build a visual vocabulary: the words that a model sees clips as.

    INPUT is what `vbkit run` takes, or features that were made before: a corpus of `vbkit
    pretrain`, a .npy or .safetensors file with an (N, D) array of clip features as the model's
    backbone makes them, or a folder of these. Every tenth input is held out, to measure on. OUT
    gets vocabulary.safetensors; a build that was cut short goes on where it stopped when the same
    command is run again.

    Exit status: 0 all done, 1 some inputs failed (the words are of the others), 2 wrong usage.
    """
    began = time.monotonic()
    found = _sort_inputs(inputs)
    from vbkit.engine import Engine
    from vbkit.model.vocabulary import build_vocabulary
    from vbkit.store.lock import FolderLock

    with FolderLock(out).hold():
        engine = Engine(model or "mini", device, precision=precision, cache=cache or out / "cache")
        spilled = out / "features.part"
        checkpoint = out / _CHECKPOINT
        if not resume:
            checkpoint.unlink(missing_ok=True)
        with _removed(spilled):
            data = _Collector(found, engine, space, spilled, silent=as_json).collect()
            wanted = (depth, branching)
            depth, branching = _affordable(data.train.rows, depth, branching)
            if (depth, branching) != wanted:
                data.notes.append(
                    f"{data.train.rows} features are too few for {wanted[1]}^{wanted[0]} words: "
                    f"the tree has depth {depth} and branching {branching}; give more videos")
            elif data.train.rows < _GOOD_PER_WORD * branching ** depth:
                data.notes.append(
                    f"{data.train.rows} features are {data.train.rows / branching ** depth:.0f} "
                    f"for each of {branching ** depth:,} words; {_GOOD_PER_WORD} make words that "
                    "hold on other videos")
            vocabulary = build_vocabulary(
                data.train.batches, depth=depth, branching=branching, seed=seed,
                device=engine.device, batch_size=batch_size, iterations=iterations, space=space,
                backbone=engine.bundle.visual_key, memory=int(memory * 2**30),
                checkpoint=checkpoint, progress=_Reporter(as_json))
            path = vocabulary.save(out)
            train = vocabulary.quality(data.train.batches)
            held_out = vocabulary.quality(data.held_out.batches) if data.held_out.rows else None
    seconds = time.monotonic() - began
    if as_json:
        _print_json(vocabulary, train, held_out, path, data, seconds)
    else:
        _print(vocabulary, train, held_out, path, data, seconds)
    return 1 if data.failed else 0


# --- inputs -----------------------------------------------------------------------------------


@dataclass
class _Found:
    """The inputs, by what they are."""

    sources: list[Source] = field(default_factory=list)
    files: list[tuple[str, Path]] = field(default_factory=list)
    corpora: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _sort_inputs(inputs: Sequence[str]) -> _Found:
    from vbkit.sources import expand_inputs
    from vbkit.training.feature_files import find_feature_files

    found = _Found()
    media: list[str | Path] = []
    for text in inputs:
        path = Path(text).expanduser()
        files = find_feature_files(path)
        if (path / "corpus.json").is_file():
            found.corpora.append(path)
        elif files is not None:
            found.files += [(str(file), file) for file in files]
        else:
            media.append(path)
    if media:
        expanded = expand_inputs(media)
        found.notes += expanded.notes
        for source in expanded:
            if source.features is not None:
                found.files.append((source.video_id, source.features))
            else:
                found.sources.append(source)
    return found


@dataclass
class _Data:
    """The features, in the space of the words, and what was left out."""

    train: FeatureSpill
    held_out: FeatureSpill
    inputs: int = 0
    empty: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Collector:
    """Brings all features to disk, so that memory does not grow with the number of videos."""

    def __init__(self, found: _Found, engine: Engine, space: str, folder: Path,
                 silent: bool) -> None:
        from vbkit.training.feature_files import FeatureSpill

        self.found = found
        self.engine = engine
        self.space = space
        self.silent = silent
        self.data = _Data(FeatureSpill(folder / "train"), FeatureSpill(folder / "held_out"),
                          notes=list(found.notes))
        # Clips of one video are alike, so whole videos are held out where there are enough.
        self.single = len(found.sources) + len(found.files)
        self.whole = self.single >= _HELD_OUT_EVERY
        self._row = 0
        self._said = time.monotonic()

    def collect(self) -> _Data:
        data = self.data
        for folder in self.found.corpora:
            self._corpus(folder)
        if self.single and not self.whole:
            data.notes.append(f"with fewer than {_HELD_OUT_EVERY} inputs, every tenth clip is held "
                              "out; it resembles its neighbours, so held-out numbers look better "
                              "than on other videos")
        for name, file in self.found.files:
            self._input(name, lambda file=file: self._file(file))  # type: ignore[misc]
        if self.found.sources:
            self._videos()
        data.train.flush()
        data.held_out.flush()
        if data.train.rows:
            return data
        if data.failed:
            _tell_failures(data)
            raise VbkitError(f"none of {data.inputs} inputs could be used; the first: "
                             f"{data.failed[0][1]}")
        raise UsageError("there are no clips in what was given: name videos, pictures, a corpus, "
                         "or files of features")

    def _input(self, name: str, add: Callable[[], None]) -> None:
        """One input: added, or counted as failed."""
        try:
            add()
        except UsageError as error:
            self.data.failed.append((name, str(error)))
        self.data.inputs += 1
        if not self.silent and time.monotonic() - self._said > _SAY_S:
            self._said = time.monotonic()
            failed = f", {len(self.data.failed)} failed" if self.data.failed else ""
            click.echo(f"vbkit: {self.data.inputs} of {self.single} inputs{failed}", err=True)

    def _add(self, rows: np.ndarray) -> None:
        import numpy as np

        number = np.arange(self._row, self._row + len(rows))
        if self.whole:
            number = np.full(len(rows), self.data.inputs)
        held_out = number % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
        self.data.train.add(rows[~held_out])
        self.data.held_out.add(rows[held_out])
        self._row += len(rows)

    def _videos(self) -> None:
        from vbkit.engine.cache import FeatureCache
        from vbkit.engine.pipeline import Request

        need = "clip_embeddings" if self.space == "embeddings" else "clip_features"
        cache = FeatureCache(self.engine.cache) if self.engine.cache is not None else None
        pipeline = self.engine.pipeline(cache, "none", keyframes=False)
        requests = (Request(prepared, frozenset({need}))
                    for prepared in pipeline.prepare(self.found.sources))
        for encoded in pipeline.encode(requests):
            features = encoded.features

            def add(features: Features = features) -> None:
                if features.error is not None:
                    raise UsageError(str(features.error))
                rows = getattr(features, need).cpu().numpy()
                _check_finite(rows, features.video_id)
                self.data.empty += not len(rows)
                self._add(rows if self.space == "embeddings" else self._converted(rows))

            self._input(features.video_id, add)

    def _file(self, path: Path) -> None:
        from vbkit.training.feature_files import FeatureFile

        file = FeatureFile.open(path, "clip_embeddings" if self.space == "embeddings"
                                else "clip_features")
        made = file.tensor == "clip_embeddings" and self.space == "embeddings"
        self._check_width(file.width, str(path), made)
        position = 0
        for batch in file.batches():
            _check_finite(batch, str(path), position)
            position += len(batch)
        self.data.empty += not position
        for batch in file.batches():
            self._add(batch if made else self._converted(batch))

    def _corpus(self, folder: Path) -> None:
        from vbkit.training.corpus import Corpus

        corpus, bundle = Corpus.open(folder), self.engine.bundle
        info = corpus.info
        if info.backbone and info.backbone != bundle.visual_key:
            raise UsageError(f"the clip features of {folder} were made by backbone {info.backbone} "
                             f"in {info.precision}, but model {bundle.name} has "
                             f"{bundle.visual_key} in {bundle.precision}: name the model that it "
                             "was made with (--model, --precision)")
        self.data.inputs += info.items
        if not info.feature_size:
            self.data.notes.append(f"{folder}: this corpus has no clips")
            return
        self._check_width(info.feature_size, str(folder))
        for batch in corpus.feature_batches("train"):
            self.data.train.add(self._converted(batch))
        for batch in corpus.feature_batches("val"):
            self.data.held_out.add(self._converted(batch))

    def _check_width(self, width: int, where: str, made: bool = False) -> None:
        """That features may be this model's: `made` ones are embeddings, others its backbone's."""
        bundle = self.engine.bundle
        read = bundle.config.visual_feature_size
        if made and width != bundle.config.shared_size:
            raise UsageError(f"{where}: embeddings {width} wide, but those of model {bundle.name} "
                             f"are {bundle.config.shared_size}")
        if not made and width != read and (width < read or width != bundle.backbone.dim):
            raise UsageError(f"{where}: features {width} wide, but model {bundle.name} reads "
                             f"{read}: they come from another backbone")

    def _converted(self, rows: np.ndarray) -> np.ndarray:
        """Clip features, as the backbone makes them, to what the words are made of."""
        import torch

        with torch.no_grad():
            given = torch.from_numpy(rows).to(self.engine.device, torch.float32)
            made = self.engine.bundle.model.in_space(given, self.space)
        return made.cpu().numpy()


def _check_finite(rows: np.ndarray, where: str, position: int = 0) -> None:
    import numpy as np

    finite = np.isfinite(rows).all(1)
    if not finite.all():
        raise UsageError(f"{where}: the features of row {position + int((~finite).argmax())} "
                         "(from 0) are NaN or infinite")


def _affordable(features: int, depth: int, branching: int) -> tuple[int, int]:
    """Depth and branching of the largest tree that so many features can fill."""
    while depth > 1 and branching ** depth * _LEAST_PER_WORD > features:
        depth -= 1
    if depth == 1:
        branching = max(1, min(branching, features // _LEAST_PER_WORD))
    return depth, branching


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """A folder that is gone before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- what is said -----------------------------------------------------------------------------


class _Reporter:
    """A line on stderr, now and then, about the clustering."""

    def __init__(self, silent: bool) -> None:
        self.silent = silent
        self._said = time.monotonic()

    def __call__(self, progress: BuildProgress) -> None:
        if self.silent or time.monotonic() - self._said < _SAY_S:
            return
        self._said = time.monotonic()
        what = {"read": f"{progress.done:,} features read",
                "cluster": f"level {progress.level}: {progress.done:,} of {progress.total:,} nodes",
                "refine": f"level {progress.level}: pass {progress.done} of {progress.total}"}
        distortion = ("" if progress.distortion is None
                      else f", distortion {progress.distortion:.4g}")
        click.echo(f"vbkit: {what[progress.stage]}{distortion}", err=True)


def _tell_failures(data: _Data) -> None:
    for video_id, message in data.failed[:_LISTED]:
        click.echo(f"vbkit: {video_id}: {message}", err=True)
    if len(data.failed) > _LISTED:
        click.echo(f"vbkit: {len(data.failed) - _LISTED} more inputs failed", err=True)


def _print(vocabulary: VisualVocabulary, train: VocabularyQuality,
           held_out: VocabularyQuality | None, path: Path, data: _Data, seconds: float) -> None:
    from vbkit.cli.printing import print_table

    for note in data.notes:
        click.echo(f"vbkit: note: {note}", err=True)
    if data.empty:
        click.echo(f"vbkit: note: {data.empty} inputs have no clips", err=True)
    _tell_failures(data)
    columns = ["measure", "train", *(["held-out"] if held_out is not None else [])]
    sets = [train, *([held_out] if held_out is not None else [])]
    print_table(columns, [
        ["features", *(f"{each.features:,}" for each in sets)],
        ["words used", *(f"{each.used:,} of {each.words:,}" for each in sets)],
        ["perplexity of their use", *(f"{each.perplexity:,.1f}" for each in sets)],
        ["distortion", *(f"{each.distortion:.4g}" for each in sets)],
        ["variance explained", *("–" if math.isnan(each.explained) else f"{each.explained:.1%}"
                                 for each in sets)],
    ])
    failed = f", {len(data.failed)} failed" if data.failed else ""
    click.echo(f"\n{len(vocabulary):,} visual words (depth {vocabulary.depth}, branching "
               f"{vocabulary.branching}) of {vocabulary.feature_size} {vocabulary.space}, from "
               f"{data.inputs:,} inputs{failed}, in {seconds:.0f} s: {path}")


def _print_json(vocabulary: VisualVocabulary, train: VocabularyQuality,
                held_out: VocabularyQuality | None, path: Path, data: _Data,
                seconds: float) -> None:
    from vbkit.cli.printing import print_json

    def report(quality: VocabularyQuality | None) -> dict[str, Any] | None:
        if quality is None:
            return None
        explained = quality.explained
        return {**asdict(quality), "perplexity": quality.perplexity,
                "explained": None if math.isnan(explained) else explained}

    print_json({
        "vocabulary": str(path), "words": len(vocabulary), "depth": vocabulary.depth,
        "branching": vocabulary.branching, "space": vocabulary.space,
        "feature_size": vocabulary.feature_size, "backbone": vocabulary.backbone,
        "n_inputs": data.inputs, "n_failed": len(data.failed), "n_without_clips": data.empty,
        "failures": [{"video_id": video_id, "message": message}
                     for video_id, message in data.failed],
        "notes": data.notes, "train": report(train), "held_out": report(held_out),
        "seconds": round(seconds, 3),
    })
