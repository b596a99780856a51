"""`vbkit finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from vbkit.cli.labelled import check_task, labelled_options, speech_options, task_options

__all__ = ["finetune"]


@click.command()
@click.option("--task", "-t", required=True, metavar="T", help="The task whose head is trained.")
@labelled_options("Labelled videos")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False),
              metavar="DIR", help="Folder of the head, new or empty.")
@click.option("--val", type=click.Path(path_type=Path), metavar="FILE",
              help="Manifest of validation videos.  [default: the column split, else at random]")
@click.option("--val-share", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              default=0.2, show_default=True, help="Share of the videos that validate.")
@click.option("--head", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="A head to go on from.  [default: the shipped one, if any]")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the videos, at most.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True))
@click.option("--unfreeze", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Upper layers of the head's own branch of the encoder that learn, too.")
@click.option("--word-dropout", type=click.FloatRange(0, 1, max_open=True), default=0.05,
              show_default=True, help="Share of words left out at random, with --unfreeze.")
@click.option("--augment", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Learn from N further views of each training video's picture, too: parts of "
                   "the frame, mirrored, moved in time. Each is encoded once, as a video is.")
@click.option("--no-mirror", "mirror", flag_value=False, type=bool, default=True,
              help="Mirror no view: for labels that tell left from right.")
@click.option("--resume", is_flag=True, help="Go on with a training that was cut short in --out.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def finetune(
    task: str,
    manifest: Path,
    out: Path,
    val: Path | None,
    val_share: float,
    head: Path | None,
    assignments: tuple[str, ...],
    model: str,
    device: str,
    precision: str,
    transcript: str,
    cache: Path | None,
    epochs: int | None,
    learning_rate: float | None,
    unfreeze: int,
    word_dropout: float,
    augment: int,
    mirror: bool,
    resume: bool,
    seed: int,
) -> int:
    """Train a task's head on labelled videos; print how well it does as one JSON object.

    The manifest names videos, transcripts or texts, and has the label columns of the task. Use the
    head with `vbkit run --head TASK=DIR`.

    Exit status: 0 all done, 1 some videos could not be read (the rest was learnt from), 2 wrong
    usage.
    """
    check_task(task, "finetune")
    if augment:
        check_task(task, "augment")
    import pandas as pd

    from vbkit.cli.printing import print_json, records
    from vbkit.cli.run import _progress

    def say(numbers: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:g}" for name, value in numbers.items())
        click.echo(f"vbkit: {shown}", err=True)

    with _progress(False) as reporter:
        from vbkit.engine import Engine
        from vbkit.engine.run import Progress
        from vbkit.heads import FitOptions
        from vbkit.training.finetune import finetune as train

        result = train(
            Engine(model, device, precision=precision, cache=cache,
                   options=speech_options(task, assignments)), task, manifest, out, val=val,
            val_share=val_share, head=head, options=task_options(task, assignments),
            transcript=transcript, augment=augment, mirror=mirror, resume=resume,
            fit=FitOptions(seed=seed, epochs=epochs, learning_rate=learning_rate,
                           unfreeze=unfreeze, word_dropout=word_dropout, logged=say),
            progress=lambda done, total, video_id, ok: reporter(
                Progress(done, total, video_id, "ok" if ok else "failed")))
    for failure in result.failures:
        click.echo(f"vbkit: {failure.video_id}: {failure.message}", err=True)
    (found,) = records(pd.DataFrame([result.as_dict()], dtype=object))
    print_json(found)
    return 1 if result.failures else 0
