"""`vbkit evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vbkit.errors import UsageError

if TYPE_CHECKING:
    from vbkit.runs import Failure

__all__ = ["evaluate"]

_TASKS = ("cloze", "retrieval", "caption", "alignment")


@click.command()
@click.option("--task", "-t", required=True, metavar="T", help=f"One of {', '.join(_TASKS)}.")
@click.option("--manifest", "-m", required=True, type=click.Path(path_type=Path), metavar="FILE",
              help="Captioned videos (.csv, .jsonl, .parquet).")
@click.option("--model", default="mini", show_default=True, metavar="NAME|PATH",
              help="Model: a name (`vbkit models`), a folder, or a hub id.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--precision", default="auto", show_default=True,
              type=click.Choice(["auto", "float32", "bfloat16"]), help="Of the visual backbone.")
@click.option("--cache", type=click.Path(path_type=Path), envvar="VBKIT_CACHE",
              help="Folder of a feature cache, so that a second evaluation decodes nothing.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write the JSON object into this file too.")
@click.option("--predictions", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.csv",
              help="Write what the model said of each video.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N videos.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True,
              help="Of masking (cloze) and shuffling (alignment).")
@click.option("--words", type=click.Path(path_type=Path), metavar="FILE.json",
              help="Cloze: the nouns and verbs to choose from.  [default: the model's cloze.json]")
@click.option("--template", metavar="TEXT",
              help="Cloze: the sentence, with [NOUN] and [VERB], in place of the file's.")
@click.option("--beams", type=click.IntRange(1, 32), default=4, show_default=True,
              help="Caption: width of the beam search; 1 is greedy.")
@click.option("--max-pieces", type=click.IntRange(1), metavar="N",
              help="Caption: word pieces of a caption at most.  [default: the model's]")
def evaluate(
    task: str,
    manifest: Path,
    model: str,
    device: str,
    precision: str,
    cache: Path | None,
    out: Path | None,
    predictions: Path | None,
    limit: int | None,
    seed: int,
    words: Path | None,
    template: str | None,
    beams: int,
    max_pieces: int | None,
) -> int:
    """Measure a model on captioned videos; print one JSON object.

    cloze: masked nouns and verbs from the video, and from the sentence alone. retrieval: text to
    video and back. caption: the decoder's captions. alignment: whether text and video belong
    together. What each number means is in the documentation under "Evaluation".

    The manifest has the columns video (or features, a file of clip features) and caption (a
    string or a list); rows that name the same video are put together.

    Exit status: 0 all done, 1 some videos could not be read (the rest is evaluated), 2 wrong usage.
    """
    _check_task(task)
    for path in (out, predictions):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.absolute().parent}")
    from vbkit.cli.printing import print_json, records
    from vbkit.cli.run import _progress

    with _progress(False) as reporter:
        from vbkit.engine import Engine
        from vbkit.engine.run import Progress
        from vbkit.evaluation.evaluate import evaluate as measure

        engine = Engine(model, device, precision=precision, cache=cache)
        result = measure(
            engine, task, manifest, limit=limit, seed=seed, words=words, template=template,
            num_beams=beams, max_new_tokens=max_pieces, warned=_warn,
            progress=lambda done, total, video_id, ok: reporter(
                Progress(done, total, video_id, "ok" if ok else "failed")))
    import pandas as pd

    for failure in result.failures:
        click.echo(f"vbkit: {failure.video_id}: {failure.message}", err=True)
    (found,) = records(pd.DataFrame([result.as_dict()], dtype=object))
    if predictions is not None:
        _write(predictions, pd.DataFrame(result.predictions).to_csv(index=False))
    if out is not None:
        _write(out, json.dumps(found, ensure_ascii=False, indent=2) + "\n")
    print_json(found)
    return 1 if result.failures else 0


def _check_task(task: str) -> None:
    if task in _TASKS:
        return
    from vbkit.plugins import default_manager

    manager = default_manager()
    known = ", ".join(_TASKS)
    names = {name for declared in manager.tasks()
             for name in (declared.spec.name, declared.qualified_name)}
    if task in names:
        raise UsageError(f"the head of task {task} cannot be evaluated yet; vbkit evaluate knows "
                         f"{known}")
    raise UsageError(f"no evaluation {task!r}; known are {known}")


def _warn(failure: Failure) -> None:
    click.echo(f"vbkit: {failure.video_id}: {failure.message}", err=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None
