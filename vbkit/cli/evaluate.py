"""`vbkit evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vbkit.cli.labelled import check_task, labelled_options, speech_options, task_options
from vbkit.errors import UsageError

if TYPE_CHECKING:
    from vbkit.runs import Failure

__all__ = ["evaluate"]

_OF_MODELS = ("cloze", "retrieval", "caption", "alignment")


@click.command()
@click.option("--task", "-t", required=True, metavar="T",
              help=f"A task (`vbkit tasks`), or one of {', '.join(_OF_MODELS)}.")
@labelled_options("Labelled or captioned videos")
@click.option("--head", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Task: a head that vbkit finetune wrote.  [default: the shipped one]")
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
    head: Path | None,
    assignments: tuple[str, ...],
    transcript: str,
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
    """Measure a task's head on labelled videos, or a model on captioned ones; print one JSON
    object.

    A task, such as moderation: its head against the manifest's label columns, under the task's
    options and default policy. cloze: masked nouns and verbs from the video, and from the sentence
    alone. retrieval: text to video and back. caption: the decoder's captions. alignment: whether
    text and video belong together. What each number means is in the documentation under
    "Evaluation".

    For a task, the manifest has videos, transcripts or texts, and the task's label columns; else
    the columns video (or features, a file of clip features) and caption (a string or a list).
    Rows that name the same video are put together.

    Exit status: 0 all done, 1 some videos could not be read (the rest is evaluated), 2 wrong usage.
    """
    of_task = _is_task(task)
    if of_task:
        check_task(task, "evaluate")
    options = task_options(task, assignments)
    if not of_task and (head is not None or options):
        raise UsageError(f"--head and -o are for tasks; {task} is measured of the model itself")
    for path in (out, predictions):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.absolute().parent}")
    from vbkit.cli.printing import print_json, records
    from vbkit.cli.run import _progress

    with _progress(False) as reporter:
        from vbkit.engine import Engine
        from vbkit.engine.run import Progress
        from vbkit.evaluation.evaluate import evaluate as measure
        from vbkit.evaluation.tasks import evaluate_task

        def progress(done: int, total: int, video_id: str, ok: bool) -> None:
            reporter(Progress(done, total, video_id, "ok" if ok else "failed"))

        engine = Engine(model, device, precision=precision, cache=cache,
                        options=speech_options(task, assignments))
        if of_task:
            result = evaluate_task(
                engine, task, manifest, head=head, options=options, transcript=transcript,
                limit=limit, predictions=predictions is not None, progress=progress)
        else:
            result = measure(
                engine, task, manifest, limit=limit, seed=seed, words=words, template=template,
                num_beams=beams, max_new_tokens=max_pieces, warned=_warn, progress=progress)
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


def _is_task(name: str) -> bool:
    """Whether a task's head is meant, not an evaluation of models.

    Raises:
        UsageError: it is neither.
    """
    if name in _OF_MODELS:
        return False
    from vbkit.options import close_matches
    from vbkit.plugins import default_manager

    names = {each for declared in default_manager().tasks()
             for each in (declared.spec.name, declared.qualified_name)}
    if name in names:
        return True
    known = [*_OF_MODELS, *sorted(each for each in names if ":" not in each)]
    raise UsageError(f"no evaluation {name!r}{close_matches(name, known)}; known are "
                     f"{', '.join(known)}")


def _warn(failure: Failure) -> None:
    click.echo(f"vbkit: {failure.video_id}: {failure.message}", err=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error})") from None
