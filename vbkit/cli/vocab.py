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
    from vbkit.model.vocabulary import BuildProgress, VisualVocabulary, VocabularyQuality
    from vbkit.training.feature_files import FeatureFile, FeatureSpill

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
    found = _sort_inputs(inputs, "clip_embeddings" if space == "embeddings" else "clip_features")
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
            data = _collect(found, engine, space, spilled, silent=as_json)
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
            train = vocabulary.quality(data.train.batches)
            held_out = vocabulary.quality(data.held_out.batches) if data.held_out.rows else None
            path = vocabulary.save(out)
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

    media: list[str] = field(default_factory=list)
    files: list[FeatureFile] = field(default_factory=list)
    corpora: list[Path] = field(default_factory=list)


def _sort_inputs(inputs: Sequence[str], tensor: str) -> _Found:
    from vbkit.training.feature_files import FeatureFile, find_feature_files

    found = _Found()
    for text in inputs:
        path = Path(text).expanduser()
        files = find_feature_files(path)
        if (path / "corpus.json").is_file():
            found.corpora.append(path)
        elif files is not None:
            found.files += [FeatureFile.open(file, tensor) for file in files]
        else:
            found.media.append(text)
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


def _collect(found: _Found, engine: Engine, space: str, folder: Path, silent: bool) -> _Data:
    """Bring all features to disk: memory does not grow with the number of videos."""
    from vbkit.sources import expand_inputs
    from vbkit.training.feature_files import FeatureSpill

    data = _Data(FeatureSpill(folder / "train"), FeatureSpill(folder / "held_out"))
    sources = expand_inputs(found.media) if found.media else None
    if sources is not None:
        data.notes += sources.notes
    single = (len(sources) if sources is not None else 0) + len(found.files)
    # Clips of one video are alike, so whole videos are held out where there are enough.
    whole = single >= _HELD_OUT_EVERY
    if single and not whole:
        data.notes.append(f"with fewer than {_HELD_OUT_EVERY} inputs, every tenth clip is held "
                          "out; it resembles its neighbours, so held-out numbers look better than "
                          "on other videos")
    row = 0

    def add(rows: np.ndarray) -> None:
        nonlocal row
        if whole:
            held = data.inputs % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
            (data.held_out if held else data.train).add(rows)
        else:
            import numpy as np

            held_rows = (np.arange(row, row + len(rows)) % _HELD_OUT_EVERY) == _HELD_OUT_EVERY - 1
            data.train.add(rows[~held_rows])
            data.held_out.add(rows[held_rows])
        row += len(rows)

    for folder_ in found.corpora:
        _collect_corpus(folder_, engine, space, data)
    for file in found.files:
        convert = _converter(engine, space, file.width, str(file.path),
                             made=file.tensor == "clip_embeddings" and space == "embeddings")
        position = 0
        for batch in file.batches():
            add(convert(batch, position))
            position += len(batch)
        data.inputs += 1
    if sources is not None and len(sources):
        _collect_media(found.media, len(sources), engine, space, data, add, silent)
    data.train.flush()
    data.held_out.flush()
    if not data.train.rows:
        if data.failed:
            _tell_failures(data)
            raise VbkitError(f"none of {data.inputs} inputs could be used: "
                             f"{data.failed[0][0]}: {data.failed[0][1]}")
        raise UsageError("there are no clips in what was given: name videos, pictures, a corpus, "
                         "or files of features")
    return data


def _collect_corpus(folder: Path, engine: Engine, space: str, data: _Data) -> None:
    from vbkit.training.corpus import Corpus

    corpus = Corpus.open(folder)
    info = corpus.info
    if info.backbone and info.backbone != engine.bundle.visual_key:
        raise UsageError(f"the clip features of {folder} were made by backbone {info.backbone} "
                         f"in {info.precision}, but model {engine.bundle.name} has "
                         f"{engine.bundle.visual_key} in {engine.bundle.precision}: name the model "
                         "that it was made with (--model, --precision)")
    data.inputs += info.items
    for split, spill in (("train", data.train), ("val", data.held_out)):
        if not info.feature_size:
            data.notes.append(f"{folder}: this corpus has no clips")
            return
        convert = _converter(engine, space, info.feature_size, str(folder))
        position = 0
        for batch in corpus.feature_batches(split):  # type: ignore[arg-type]
            spill.add(convert(batch.astype("float32"), position))
            position += len(batch)


def _collect_media(media: Sequence[str], total: int, engine: Engine, space: str, data: _Data,
                   add: Callable[[np.ndarray], None], silent: bool) -> None:
    need = "clip_embeddings" if space == "embeddings" else "clip_features"
    said = time.monotonic()
    for done, features in enumerate(engine.encode(list(media), {need}, transcript="none"), 1):
        error: Exception | None = features.error
        if error is None:
            rows = getattr(features, need)
            try:
                add(_converter(engine, space, rows.shape[-1], features.video_id,
                               made=space == "embeddings")(rows.cpu().numpy(), 0))
                data.empty += not len(rows)
            except UsageError as refused:  # not finite: this input's own fault
                error = refused
        if error is not None:
            data.failed.append((features.video_id, str(error)))
        data.inputs += 1
        if not silent and time.monotonic() - said > _SAY_S:
            said = time.monotonic()
            failed = f", {len(data.failed)} failed" if data.failed else ""
            click.echo(f"vbkit: {done} of {total} inputs{failed}", err=True)


def _converter(engine: Engine, space: str, width: int, where: str,
               made: bool = False) -> Callable[[np.ndarray, int], np.ndarray]:
    """From clip features, as the backbone makes them, to what the words are made of.

    Args:
        width: of what comes in.
        where: it comes from, for messages.
        made: whether it is of that space already.
    """
    import numpy as np
    import torch

    config = engine.bundle.config
    if made and width != config.shared_size:
        raise UsageError(f"{where}: embeddings {width} wide, but those of model "
                         f"{engine.bundle.name} are {config.shared_size}")
    if not made and width != config.visual_feature_size and (
            width < config.visual_feature_size or width != engine.bundle.backbone.dim):
        raise UsageError(f"{where}: features {width} wide, but model {engine.bundle.name} reads "
                         f"{config.visual_feature_size}: they come from another backbone")

    def convert(rows: np.ndarray, position: int) -> np.ndarray:
        if not np.isfinite(rows).all():
            first = position + int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise UsageError(f"{where}: the features of row {first} (from 0) are NaN or infinite")
        if made:
            return rows
        with torch.no_grad():
            given = torch.from_numpy(rows).to(engine.device)
            out = (engine.encoder.embed_clips(given) if space == "embeddings"
                   else engine.bundle.model.standardise(given))
        return out.float().cpu().numpy()

    return convert


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
