"""`Engine`: the face of vbkit in Python."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vbkit.engine.bundle import Bundle
from vbkit.engine.cache import FeatureCache
from vbkit.engine.encoder import Encoder
from vbkit.engine.listening import check_transcriber, choose_transcriber, split_options
from vbkit.engine.pipeline import TEXT_OUTPUTS, Pipeline, Request
from vbkit.engine.run import HeadRunner, Progress, Runner, RunResult, check_head_path
from vbkit.errors import MediaError, UsageError
from vbkit.features import Features
from vbkit.heads import HeadContext
from vbkit.media.open import READERS
from vbkit.media.speech import SpeechToText
from vbkit.options import parse_options
from vbkit.plugins import Declared, PluginManager, check_tables, default_manager, strict
from vbkit.sources import expand_inputs
from vbkit.specs import TaskSpec
from vbkit.store import ResultStore

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Engine", "RunResult"]

Inputs = str | Path | Sequence[str | Path]

logger = logging.getLogger("vbkit")


class Engine:
    """A loaded model, and all that can be done with it.

    Args:
        model: a declared name (`vbkit models`), a folder, or a hub id.
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`.
        precision: of the visual backbone: `"auto"`, `"float32"` or `"bfloat16"`. Its features
            agree to a cosine of 0.995; everything after it is float32.
        cache: folder of the feature cache. None: inside the results folder, or no cache where
            there is none.
        decode_workers: decoding processes.
        decode_timeout_s: a decoder that is silent for so long is stopped.
        reader: `"pyav"`, `"decord"`, or `"auto"` for what suits the file.
        manager: the plugins; the installed ones by default.
        options: of speech to text, as `{"whisper": {"model": "small"}}` (`vbkit transcribers`).

    Raises:
        UsageError: an option is unknown or wrong.
        ModelError: the model or the device cannot be used.
    """

    def __init__(
        self,
        model: str = "mini",
        device: str = "auto",
        *,
        precision: str = "auto",
        cache: str | Path | None = None,
        decode_workers: int | None = None,
        decode_timeout_s: float = 60.0,
        reader: str = "auto",
        manager: PluginManager | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.manager = manager if manager is not None else default_manager()
        self.options = {name: dict(values) for name, values in (options or {}).items()}
        if self.options:
            check_transcriber(self.manager, self.options)
        self.bundle = Bundle(self.manager, str(model), device, precision)
        self.encoder = Encoder(self.bundle)
        self.cache = Path(cache) if cache is not None else None
        self.decode_workers = decode_workers or (1 if self.device.type == "cpu" else 4)
        self.decode_timeout_s = decode_timeout_s
        if reader not in ("auto", *READERS):
            raise UsageError(f"reader {reader!r} is none of auto, {', '.join(READERS)}")
        self.reader = None if reader == "auto" else reader

    def __repr__(self) -> str:
        return (f"Engine(model={self.bundle.name!r}, device={str(self.device)!r}, "
                f"precision={self.bundle.precision!r})")

    @property
    def device(self) -> torch.device:
        return self.bundle.device

    # --- features -----------------------------------------------------------------------------

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts into the space that video and text share: (N, D) float32 unit vectors."""
        return self.encoder.encode_text(texts)

    def encode(
        self,
        inputs: Inputs,
        needs: Iterable[str],
        *,
        transcript: str | Path = "auto",
        questions: Sequence[str] = (),
        fresh: bool = False,
    ) -> Iterator[Features]:
        """Encode inputs, in order, each as soon as it is ready.

        Args:
            inputs: as `vbkit run` takes them.
            needs: names of `vbkit.specs.FEATURE_OUTPUTS`.
            transcript: `"auto"`, `"none"`, or a path.
            questions: handed on as `features.questions`.
            fresh: whether to ignore the cache.

        Yields:
            Features; for a source that failed, features whose `error` is set.

        Raises:
            FeatureError: an output is unknown.
            ModelError: this model does not have one.
        """
        wanted = frozenset(needs)
        self.encoder.check_needs(wanted)
        sources = expand_inputs(_listed(inputs)).sources
        cache = self._cache(None)
        pipeline = self.pipeline(cache, transcript, fresh, keyframes=cache is not None)
        requests = (
            Request(prepared, wanted,
                    tuple(dict.fromkeys((*questions, *prepared.source.questions))),
                    picture=not wanted <= TEXT_OUTPUTS)
            for prepared in pipeline.prepare(sources)
        )
        for encoded in pipeline.encode(requests):
            yield encoded.features.restrict(wanted)

    def caption(self, inputs: Inputs, *, num_beams: int = 4) -> list[str]:
        """One sentence a source, written by the model's decoder.

        Args:
            inputs: videos and pictures, as `vbkit run` takes them.
            num_beams: of the beam search; 1 is greedy.

        Raises:
            ModelError: the model has no decoder.
            MediaError: a source cannot be read, or has no picture.
        """
        self.encoder.check_needs({"generate"})
        sequences = []
        for features in self.encode(inputs, {"clip_features"}, transcript="none"):
            if features.error is not None:
                raise features.error
            if not len(features.clip_features):
                raise MediaError(f"{features.video_id} has no picture to describe")
            sequences.append(features.clip_features)
        return self.encoder.describe(sequences, num_beams=num_beams)

    # --- tasks --------------------------------------------------------------------------------

    def run(
        self,
        inputs: Inputs,
        tasks: Sequence[str],
        *,
        out: str | Path | None = None,
        questions: Sequence[str] = (),
        options: Mapping[str, Mapping[str, Any]] | None = None,
        heads: Mapping[str, str | Path] | None = None,
        transcript: str | Path = "auto",
        fresh: bool = False,
        captions: bool = False,
        wait_s: float = 0.0,
        progress: Callable[[Progress], None] | None = None,
        command: str = "vbkit.Engine.run",
    ) -> RunResult:
        """Run tasks over inputs.

        Args:
            inputs: files, folders, globs or manifests, as `vbkit run` takes them.
            tasks: names of tasks.
            out: the results folder; None keeps the tables in memory.
            questions: asked of every video, for `qa`.
            options: name of a task, or of a transcriber, to option name to value.
            heads: task name to the folder of a fine-tuned head.
            transcript: `"auto"`, `"none"`, or a path.
            fresh: redo everything, and ignore the cache.
            captions: write a caption for each clip into the table `clips`.
            wait_s: how long to wait for another run that uses `out`.
            progress: called after each input.
            command: what `runs.command` will say.

        Returns:
            Tables, and a report of what was done and what failed.

        Raises:
            UsageError: a task or option is unknown.
            ModelError: a task needs an output that the model does not have.
            StoreError: `out` cannot be written, or another run uses it.
        """
        store = ResultStore(out) if out is not None else None
        cache = self._cache(store)
        if captions:
            self.encoder.check_needs({"generate"})
        of_tasks, of_speech = split_options(self.manager, tasks, options or {})
        runners = self.heads(tasks, of_tasks, heads, cache)
        found = expand_inputs(_listed(inputs))
        pipeline = self.pipeline(cache, transcript, fresh, keyframes=store is not None,
                                 options=of_speech)
        notes = list(found.notes)
        if (of_speech or self.options) and transcript != "auto":
            notes.append(f"options of {', '.join(of_speech or self.options)} are for --transcript "
                         "auto: they are ignored")
        if questions and not any(runner.by_question for runner in runners):
            notes.append("questions are for the task qa, which was not asked for: they are ignored")
        runner = Runner(
            self.bundle, pipeline, runners, self.manager, store=store, questions=questions,
            fresh=fresh, captions=captions, progress=progress,
            describe={"command": command, "versions": _versions()})
        if store is None:
            return runner.run(found.sources, notes)
        with store.lock(wait_s):
            store.clean()
            result = runner.run(found.sources, notes)
            self._keep_index(store.out)
        return result

    def explain(self, out: str | Path, table: str, rows: int | Sequence[int], *,
                head: str | Path | None = None, save: bool = False) -> pd.DataFrame:
        """Which clips, segments and words made rows of a results folder.

        No video is opened, except for a task that reads the motion of clips that are not in the
        feature cache.

        Args:
            out: the results folder, made with this model.
            table: a table of a task that explains its rows.
            rows: number or numbers of rows in `vbkit.load_table(out, table)`, from 0.
            head: folder of a fine-tuned head; None for the one that wrote the rows.
            save: write what is found into the table `explanations`, too.

        Returns:
            The table `explanations` of these rows, the strongest evidence first.

        Raises:
            UsageError: there is no such row, or it cannot be explained.
            StoreError: the folder cannot be read or written, or its features are no longer in
                the cache.
        """
        from vbkit.engine.explain import choose_rows, explain_rows

        numbers = [rows] if isinstance(rows, int) else list(rows)
        if not numbers:
            raise UsageError("name at least one row to explain")
        chosen = choose_rows(self.manager, out, table, numbers)
        return explain_rows(self, out, chosen, head=head, save=save)

    def heads(
        self,
        tasks: Sequence[str],
        options: Mapping[str, Mapping[str, Any]] | None = None,
        heads: Mapping[str, str | Path] | None = None,
        cache: FeatureCache | None = None,
    ) -> list[HeadRunner]:
        """The heads of tasks, not yet set up; for the engine's own modules.

        Raises:
            UsageError: a task or option is unknown, or two tasks write the same table.
        """
        options, heads = options or {}, heads or {}
        if isinstance(tasks, str):
            raise UsageError(f"tasks must be a list of names, got the string {tasks!r}")
        if not tasks:
            raise UsageError("name at least one task; `vbkit tasks` lists them")
        declared: dict[str, Declared[TaskSpec]] = {}
        for name in dict.fromkeys(tasks):
            found = self.manager.get_task(name)
            declared[found.spec.name] = found
        check_tables(declared.values())
        bare = {name: name.rpartition(":")[2] for name in (*options, *heads)}
        for name, task in bare.items():
            if task not in declared:
                raise UsageError(f"{name!r} is given options or a head, but is not among the tasks "
                                 f"of this run: {', '.join(declared)}{_or_transcriber(self)}")
        runners = []
        for name, found in declared.items():
            self.encoder.check_needs(found.spec.needs, name)
            given: dict[str, Any] = {}
            for key, values in options.items():
                if bare[key] == name:
                    given |= values
            parsed: Any = parse_options(found.spec.options, given, task=name)
            head = next((Path(path) for key, path in heads.items() if bare[key] == name), None)
            context = HeadContext(
                options=parsed, device=str(self.device),
                head_path=check_head_path(name, head) if head is not None else None,
                cache_dir=cache.folder / "heads" / name if cache is not None else None,
                logger=logger.getChild(name), model_name=self.bundle.name,
                text_branch=(self.bundle.text_branch if "text_branch" in found.spec.needs
                             else None),
                model_fingerprint=self.bundle.fingerprint_of(found.spec.needs))
            origin = f"{found.distribution} {found.version}".strip()
            runners.append(HeadRunner(found.spec, origin, parsed, context))
        return runners

    def _keep_index(self, out: Path) -> None:
        """Keep what `ask` and `search` look through; what is at hand costs milliseconds a video."""
        from vbkit.engine.library import Library

        try:
            Library(self, out).index(cheap=True)
        except Exception:  # it is made when it is first asked for, and then says what is wrong
            if strict():
                raise
            logger.debug("the index of %s was not made", out, exc_info=True)

    def _cache(self, store: ResultStore | None) -> FeatureCache | None:
        folder = self.cache or (store.out / "cache" if store is not None else None)
        return FeatureCache(folder) if folder is not None else None

    def pipeline(
        self, cache: FeatureCache | None, transcript: str | Path = "auto", fresh: bool = False,
        keyframes: bool = True, options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Pipeline:
        """A pipeline over this engine's model; for the engine's own modules."""
        speech: SpeechToText | str | None = None
        if transcript == "auto":
            speech = choose_transcriber(self.manager, options or self.options, str(self.device))
        return Pipeline(
            self.bundle, self.encoder, cache=cache, transcript=transcript, fresh=fresh,
            keyframes=keyframes, workers=self.decode_workers, timeout_s=self.decode_timeout_s,
            speech=speech, plugin_openers=self.manager.implements("vbkit_open_video"),
            reader=self.reader)


def _or_transcriber(engine: Engine) -> str:
    names = [declared.name for declared in engine.manager.transcribers()]
    return f"; nor is it speech to text: {', '.join(names)}" if names else ""


def _listed(inputs: Inputs) -> list[str | Path]:
    return [inputs] if isinstance(inputs, str | Path) else list(inputs)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("vbkit", "torch", "transformers", "timm", "decord2", "av", "pandas", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
