"""`vbkit pretrain`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vbkit.errors import UsageError

if TYPE_CHECKING:
    from vbkit.training.config import PretrainConfig
    from vbkit.training.corpus import CorpusInfo
    from vbkit.training.pretraining import Plan, PretrainResult

__all__ = ["pretrain"]

_LISTED = 5


@click.command()
@click.option("--manifest", type=click.Path(path_type=Path), metavar="FILE",
              help="Videos and texts (.csv, .jsonl, .parquet); also a folder of videos. They "
                   "become a corpus first.")
@click.option("--corpus", "corpora", multiple=True, metavar="DIR",
              help="A corpus; may be repeated. With --manifest, where it is written.  "
                   "[default: OUT/corpus]")
@click.option("--out", required=True, type=click.Path(path_type=Path),
              help="Folder of the trained model.")
@click.option("--model", metavar="NAME|PATH",
              help="The model to start from.  [default: mini]")
@click.option("--init-text", metavar="PATH|ID",
              help="A BERT checkpoint to start from instead.")
@click.option("--backbone", metavar="NAME|PATH",
              help="With --init-text: the model whose visual backbone is used.  [default: mini]")
@click.option("--vocabulary", metavar="DIR", help="A visual vocabulary (`vbkit vocab`).")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE",
              help="Settings, as JSON or YAML.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="A setting, e.g. mixture.joint=2 or examples.mask_rate=[0.15,1.0]; may be "
                   "repeated.")
@click.option("--steps", type=click.IntRange(1), help="Optimizer steps.")
@click.option("--epochs", type=click.FloatRange(0, min_open=True),
              help="How often to go through everything, where --steps says nothing.  [default: 1]")
@click.option("--batch-size", type=click.IntRange(1), help="Examples of a batch.  [default: 32]")
@click.option("--learning-rate", type=click.FloatRange(0), help="[default: 1e-4]")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]),
              help="bfloat16 is mixed precision.  [default: float32]")
@click.option("--seed", type=click.IntRange(0), help="[default: 0]")
@click.option("--save-dtype", type=click.Choice(["float32", "float16"]),
              help="Of the finished weights.  [default: float32]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option("--transcript", default="auto", show_default=True, metavar="auto|none|PATH",
              help="For --manifest, as for `vbkit run`.")
@click.option("--cache", type=click.Path(path_type=Path), envvar="VBKIT_CACHE",
              help="For --manifest: folder of the feature cache, e.g. that of a results folder.")
@click.option("--val-share", type=click.FloatRange(0, 1, max_open=True), default=0.05,
              show_default=True, help="For --manifest: share of the videos kept for validation, "
              "where the manifest has no column split.")
@click.option("--corpus-only", is_flag=True, help="Make the corpus, and stop.")
@click.option("--resume", is_flag=True, help="Go on with the training in OUT.")
@click.option("--profile", is_flag=True,
              help="Write a profiler's trace of a few steps to OUT/profile.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON report.")
def pretrain(
    manifest: Path | None,
    corpora: tuple[str, ...],
    out: Path,
    file: Path | None,
    assignments: tuple[str, ...],
    device: str,
    transcript: str,
    cache: Path | None,
    val_share: float,
    corpus_only: bool,
    resume: bool,
    profile: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Train a VideoBERT on videos, their transcripts and captions.

    OUT becomes a model that `vbkit run --model OUT` loads. A run that was cut short goes on with
    `vbkit pretrain --out OUT --resume`, to the same losses. For several GPUs:
    torchrun --nproc-per-node N -m vbkit pretrain …

    Exit status: 0 all done, 1 failed, 2 wrong usage.
    """
    given = _settings(file, options, assignments)
    if manifest is not None and len(corpora) > 1:
        raise UsageError("with --manifest, name at most one --corpus: where it is written")
    if manifest is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("make the corpus first (vbkit pretrain --manifest … --out … "
                         "--corpus-only), then start torchrun with --corpus")
    folders = corpora or ((str(out / "corpus"),) if manifest is not None else ())
    if folders:
        given["corpus"] = list(folders)
    config = _config(out, given, resume)
    if not config.corpus:
        raise UsageError("name what to train on: --manifest or --corpus")
    if manifest is not None and not (resume and _complete(Path(config.corpus[0]))):
        info = _build(manifest, Path(config.corpus[0]), config, device, transcript, cache,
                      val_share)
        if corpus_only:
            _report_corpus(info, Path(config.corpus[0]), as_json)
            return 0
    elif corpus_only:
        raise UsageError("--corpus-only needs --manifest")
    reporter = _Reporter()
    from vbkit.training.pretraining import pretrain as train

    result = train(config, out, device=device, resume=resume, profile=profile,
                   planned=reporter.plan, logged=reporter.log)
    if int(os.environ.get("RANK", "0")) == 0:
        _report(result, reporter, as_json)
    return 0


def _settings(file: Path | None, options: Mapping[str, Any],
              assignments: tuple[str, ...]) -> dict[str, Any]:
    """What was given: the file, over it the options, over these the assignments."""
    import yaml

    from vbkit.training.config import merged, read_settings

    values = read_settings(file) if file is not None else {}
    values |= {name: value for name, value in options.items() if value is not None}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {assignment!r}: write it as KEY=VALUE")
        try:
            values = merged(values, key.strip(), yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise UsageError(f"--set {assignment!r}: {text!r} is no value ({error})") from None
    return values


def _config(out: Path, given: dict[str, Any], resume: bool) -> PretrainConfig:
    from vbkit.training.config import CONFIG_FILE, PretrainConfig

    if resume and (out / CONFIG_FILE).exists():
        before = PretrainConfig.from_file(out / CONFIG_FILE).to_dict()
        return PretrainConfig.from_dict({**before, **given})
    return PretrainConfig.from_dict(given)


def _complete(folder: Path) -> bool:
    from vbkit.training.corpus import CorpusInfo

    return (folder / "corpus.json").exists() and CorpusInfo.read(folder).complete


def _build(manifest: Path, folder: Path, config: PretrainConfig, device: str, transcript: str,
           cache: Path | None, val_share: float) -> CorpusInfo:
    from vbkit.engine import Engine
    from vbkit.training.build import build_corpus

    tokenizer = None
    if config.init_text is not None:
        from vbkit.training.pretraining import videobert_tokenizer

        tokenizer = videobert_tokenizer(config.init_text)[0]
    engine = Engine(config.model if config.init_text is None else config.backbone, device,
                    cache=cache)
    last = time.monotonic()

    def progress(done: int, skipped: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            _say(f"corpus: {done} of {total} rows" + (f", {skipped} skipped" if skipped else ""))

    return build_corpus(manifest, folder, engine=engine, tokenizer=tokenizer,
                        transcript=transcript, val_share=val_share, progress=progress).info


def _report_corpus(info: CorpusInfo, folder: Path, as_json: bool) -> None:
    if as_json:
        import dataclasses

        from vbkit.cli.printing import print_json

        print_json({"corpus": str(folder), **dataclasses.asdict(info)})
        return
    for line in _corpus_lines(info):
        _say(line)
    click.echo(f"The corpus is in {folder}.")


def _corpus_lines(info: CorpusInfo) -> list[str]:
    lines = [f"corpus: {info.items:,} items with {info.clips:,} clips, {info.segments:,} segments "
             f"and {info.captions:,} captions ({info.word_pieces:,} word pieces)"]
    if info.unaligned:
        lines.append(f"transcripts that do not overlap their videos: {info.unaligned}; they are "
                     "used as text alone, and the videos without them")
    if info.skipped:
        lines.append(f"rows that were skipped: {info.skipped}")
        lines += [f"  {each.id}: {each.reason}" for each in info.skipped_examples[:_LISTED]]
    return lines


def _say(message: str) -> None:
    from vbkit.cli import settings

    if not settings().quiet:
        click.echo(f"vbkit: {message}", err=True)


class _Reporter:
    """Says on stderr what is trained on, and how it goes."""

    def __init__(self) -> None:
        self.chosen: Plan | None = None
        self.first: int | None = None
        self.began = time.monotonic()

    def plan(self, plan: Plan) -> None:
        self.chosen = plan
        for line in _corpus_lines(plan.corpus.info):
            _say(line)
        total = sum(plan.config.mixture.values())
        for kind, weight in plan.config.mixture.items():
            size = plan.train.batch_sizes[kind]
            _say(f"batches: {weight / total:4.0%} {kind}, {size} of {plan.units[kind]:,} "
                 f"examples each ({plan.val_units[kind]:,} for validation)")
        if plan.vocabulary is not None:
            _say(f"visual words: {len(plan.vocabulary):,}")
        for note in plan.start.notes:
            _say(f"note: {note}")
        trained = sum(p.numel() for p in plan.start.model.parameters() if p.requires_grad)
        _say(f"{plan.steps:,} steps, {trained / 1e6:.1f} million parameters")
        self.began = time.monotonic()

    def log(self, numbers: Mapping[str, float]) -> None:
        if self.chosen is None or "train_runtime" in numbers:
            return
        step, steps = int(numbers["step"]), self.chosen.steps
        prefix = "eval_" if "eval_loss" in numbers else ""
        losses = ", ".join(f"{name.removeprefix(prefix).removesuffix('_loss')} {value:.3f}"
                           for name, value in numbers.items()
                           if name.endswith("_loss") and name != "eval_loss")
        line = f"step {step:,} of {steps:,}: loss {numbers[f'{prefix}loss']:.3f} ({losses})"
        if prefix:
            accuracy = numbers.get("eval_word_accuracy")
            found = f", hidden words found {accuracy:.1%}" if accuracy is not None else ""
            _say(f"validation: {line}{found}")
            return
        if self.first is None:
            self.first = step
        left = ""
        if step > self.first:
            each = (time.monotonic() - self.began) / (step - self.first + 1)
            left = f", {_span(each * (steps - step))} left"
        _say(f"{line}, {numbers['tokens_per_second']:,.0f} tokens/s{left}")


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _report(result: PretrainResult, reporter: _Reporter, as_json: bool) -> None:
    info = reporter.chosen.corpus.info if reporter.chosen is not None else None
    if as_json:
        from vbkit.cli.printing import print_json

        print_json({
            "out": str(result.out), "steps": result.steps, "stopped_early": result.stopped_early,
            "seconds": round(result.seconds, 1), "metrics": result.metrics,
            "items": info.items if info else 0, "skipped": info.skipped if info else 0,
            "units": reporter.chosen.units if reporter.chosen is not None else {},
        })
        return
    early = ", stopped early" if result.stopped_early else ""
    click.echo(f"{result.steps:,} steps in {_span(result.seconds)}{early}. The model is in "
               f"{result.out}; use it with: vbkit run … --model {result.out}", file=sys.stdout)
