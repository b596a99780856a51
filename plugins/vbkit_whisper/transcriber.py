"""Sound into sentences: voice activity, batches of stretches, and what is not to be believed."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from vbkit.errors import ModelError
from vbkit.media import Sound, SoundPiece, Transcript
from vbkit_whisper import WhisperOptions
from vbkit_whisper.models import digest, find_on_disk, locate
from vbkit_whisper.sentences import Heard, sentences

__all__ = ["Stretch", "Whisper", "blocks", "stretches"]

RATE = 16_000
_VERSION = 1  # of the method, for the cache
_INSTALL = 'faster-whisper is not installed: pip install "vbkit[asr]"'

_BLOCK_S = 240.0  # sound that is held at once
_STRETCH_S = 29.5  # Whisper reads 30 s
_JOINED_GAP_S = 0.5  # a shorter silence does not end a stretch
_SILENCE_MS = 200
_PAD_MS = 400

# What is not to be believed. Whisper's paper (section 4.5) rejects text that repeats itself (ratio
# of compression above 2.4), and text of which the model is unsure (mean log-probability of the word
# pieces below −1) where it also says that there is probably no speech (0.6). It wants every word;
# here no word is better than an invented one, so the bounds are tighter.
_UNSURE = -0.8
_NO_SPEECH, _UNSURE_WITHOUT_SPEECH = 0.25, -0.5
_REPETITIVE = 2.4
_TEMPERATURES = (0.4, 0.8)

_SURE_LANGUAGE = 0.6
_LANGUAGE_S = 4.0  # in a shorter stretch the language is not told by itself
_CODES = {"jw": "jv", "yue": "zh", "nn": "no"}

logger = logging.getLogger("vbkit.whisper")


@dataclass(frozen=True)
class Stretch:
    """Samples `start:end` of a block that Whisper reads as one."""

    start: int
    end: int

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / RATE


class Whisper:
    """A `vbkit.media.Transcriber`.

    Args:
        options: the options.
        device: `"cpu"`, `"cuda"` or `"cuda:N"`; on others the CPU is used.
    """

    def __init__(self, options: WhisperOptions, device: str) -> None:
        self.options = options
        self.gpu, _, index = device.partition(":")
        self.index = int(index or 0)
        self._model: Any = None
        self._notes: list[str] = []

    # --- in vbkit's own process ---------------------------------------------------------------

    def missing(self) -> str | None:
        """What keeps it from listening without a download that nobody asked for."""
        if importlib.util.find_spec("faster_whisper") is None:
            return _INSTALL
        if self._name() is None:
            return "no model is on disk: name one, such as -o whisper.model=small"
        return None

    def prepare(self) -> str:
        """Get the model; what transcripts depend on."""
        o = self.options
        return json.dumps([_VERSION, digest(self._folder()), o.language, o.precision,
                           o.vad_threshold, o.beam_size])

    def _name(self) -> str | None:
        if self.options.model != "auto":
            return self.options.model
        return find_on_disk(self.gpu == "cuda")

    def _folder(self) -> Path:
        name = self._name()
        if name is None:
            raise ModelError("no Whisper model is on disk: name one, such as "
                             "-o whisper.model=small")
        return locate(name)

    # --- in the process that listens ----------------------------------------------------------

    def transcribe(self, sound: Sound) -> Transcript:
        """What is said, in sentences with the times of their words."""
        if importlib.util.find_spec("faster_whisper") is None:
            raise ModelError(_INSTALL)
        if self._model is None:
            self._load()
        code: str | None = None
        heard: list[Heard] = []
        for start_s, samples, spans in blocks(sound.pieces(RATE, 30.0), self._speech):
            languages = self._languages(samples, found := stretches(spans), code)
            for code, group in groupby(found, key=languages.__getitem__):
                heard += self._read(samples, start_s, list(group), code)
        segments = sentences(heard)
        return Transcript(tuple(segments), "speech", notes=tuple(self._notes))

    def _load(self) -> None:
        from faster_whisper import BatchedInferencePipeline, WhisperModel

        folder, o = str(self._folder()), self.options
        threads = o.cpu_threads or min(8, max(1, (os.cpu_count() or 1) // 2))
        if self.gpu == "cuda":
            precision = "float16" if o.precision == "auto" else o.precision
            try:
                model = WhisperModel(folder, "cuda", self.index, precision)
                size = model.feature_extractor.nb_max_frames
                model.encode(np.zeros((1, model.model.n_mels, size), np.float32))
            except (RuntimeError, ValueError) as error:
                self.gpu = "cpu"
                self._notes = [f"Whisper ran on the CPU, since the GPU cannot be used: {error}"]
        if self.gpu != "cuda":
            precision = "int8" if o.precision == "auto" else o.precision
            try:
                model = WhisperModel(folder, "cpu", compute_type=precision, cpu_threads=threads)
            except (RuntimeError, ValueError) as error:
                raise ModelError(f"Whisper model {o.model} ({folder}) cannot be loaded: "
                                 f"{error}") from error
        if o.language not in ("auto", "en") and not model.model.is_multilingual:
            raise ModelError(f"Whisper model {o.model} knows English only, but the language is "
                             f"{o.language}: name a model without .en")
        self._model, self._batched = model, BatchedInferencePipeline(model)
        self._batch = o.batch_size or (16 if self.gpu == "cuda" else 4)

    def _speech(self, samples: np.ndarray) -> list[Stretch]:
        """Where somebody speaks, by Silero's voice activity detection."""
        from faster_whisper.vad import VadOptions, get_speech_timestamps

        found = get_speech_timestamps(samples, VadOptions(
            threshold=self.options.vad_threshold, max_speech_duration_s=_STRETCH_S,
            min_silence_duration_ms=_SILENCE_MS, speech_pad_ms=_PAD_MS))
        most = round(_STRETCH_S * RATE)
        return [Stretch(span["start"], min(span["end"], span["start"] + most)) for span in found]

    def _languages(self, samples: np.ndarray, found: Sequence[Stretch],
                   before: str | None) -> dict[Stretch, str]:
        """The language of each stretch of a block: named, or heard.

        A stretch too short to tell it by, or of which the model is not sure, has the language of
        the one before it, `before` at the start; where there is none, of the first that tells it.
        """
        if self.options.language != "auto":
            return dict.fromkeys(found, self.options.language)
        if not self._model.model.is_multilingual:
            return dict.fromkeys(found, "en")
        told = [s for s in found if s.seconds >= _LANGUAGE_S]
        if not told and before is None and found:
            told = [max(found, key=lambda stretch: stretch.seconds)]
        ranked: dict[Stretch, tuple[str, float]] = {}
        for first in range(0, len(told), self._batch):
            some = told[first : first + self._batch]
            features = np.stack([self._features(samples[s.start : s.end]) for s in some])
            results = self._model.model.detect_language(self._model.encode(features))
            for stretch, ((token, probability), *_) in zip(some, results, strict=True):
                ranked[stretch] = token.strip("<|>"), probability
        sure = {s: code for s, (code, probability) in ranked.items()
                if probability >= _SURE_LANGUAGE}
        if before is None and found:
            best = max(ranked.values(), key=lambda guess: guess[1])[0]
            before = next(iter(sure.values()), best)
        codes: dict[Stretch, str] = {}
        for stretch in found:
            before = codes[stretch] = sure.get(stretch, before or "en")
        return codes

    def _features(self, samples: np.ndarray) -> np.ndarray:
        from faster_whisper.audio import pad_or_trim

        return pad_or_trim(self._model.feature_extractor(samples)[..., :-1])

    def _read(self, samples: np.ndarray, start_s: float, group: Sequence[Stretch],
              code: str) -> list[Heard]:
        """The words of stretches in one language."""
        made, _ = self._batched.transcribe(
            samples, language=code, beam_size=self.options.beam_size, word_timestamps=True,
            clip_timestamps=[{"start": s.start / RATE, "end": s.end / RATE} for s in group],
            batch_size=self._batch)
        told = _CODES.get(code, code) if self._model.model.is_multilingual else None
        heard = []
        for stretch, segment in zip(group, made, strict=True):
            segments, shift = [segment], start_s
            if segment.compression_ratio > _REPETITIVE:
                segments = self._read_again(samples, stretch, code)
                shift += stretch.start / RATE
            for each in segments:
                if not _believable(each):
                    logger.debug("not believed at %.1f s: %s", shift + each.start, each.text)
                    continue
                heard += [Heard(word.word, shift + word.start, shift + word.end,
                                float(word.probability), told) for word in each.words or ()]
        return heard

    def _read_again(self, samples: np.ndarray, stretch: Stretch, code: str) -> list[Any]:
        """One stretch, by sampling, since the beam search repeated itself."""
        import ctranslate2

        ctranslate2.set_random_seed(0)
        made, _ = self._model.transcribe(
            samples[stretch.start : stretch.end], language=code, word_timestamps=True,
            beam_size=self.options.beam_size, condition_on_previous_text=False,
            temperature=_TEMPERATURES, compression_ratio_threshold=_REPETITIVE,
            log_prob_threshold=_UNSURE)
        return list(made)


def _believable(segment: Any) -> bool:
    """Whether a segment is likely to have been said."""
    if segment.avg_logprob < _UNSURE or segment.compression_ratio > _REPETITIVE:
        return False
    return segment.no_speech_prob <= _NO_SPEECH or segment.avg_logprob >= _UNSURE_WITHOUT_SPEECH


def blocks(
    pieces: Iterable[SoundPiece], speech: Callable[[np.ndarray], list[Stretch]],
    seconds: float = _BLOCK_S,
) -> Iterator[tuple[float, np.ndarray, list[Stretch]]]:
    """Sound in blocks that end where nobody speaks, with where somebody does.

    Args:
        pieces: the sound.
        speech: called with samples, gives the `Stretch`es of speech in them, in order, each short
            against a block.
        seconds: about how long a block is.

    Yields:
        Start of the block (s), its samples, and the speech in it.
    """
    parts: list[np.ndarray] = []
    size, start_s = 0, 0.0

    def cut(last: bool) -> Iterator[tuple[float, np.ndarray, list[Stretch]]]:
        nonlocal parts, size, start_s
        samples = np.concatenate(parts)
        found = speech(samples)
        end = len(samples)
        if not last and found and found[-1].end > end - RATE and found[-1].start > 0:
            end = found.pop().start  # it may go on in the next block
        parts = [samples[end:]]
        size = len(samples) - end
        yield start_s, samples[:end], found
        start_s += end / RATE

    for piece in pieces:
        if size and abs(piece.start_s - start_s - size / RATE) > 0.01:
            yield from cut(last=True)
            parts, size = [], 0
        if not size:
            start_s = piece.start_s
            parts = []
        parts.append(piece.samples)
        size += len(piece.samples)
        if size >= seconds * RATE:
            yield from cut(last=False)
    if size:
        yield from cut(last=True)


def stretches(spans: Sequence[Stretch]) -> list[Stretch]:
    """Neighbouring spans of speech put together, up to what Whisper reads at once."""
    out: list[Stretch] = []
    for span in spans:
        before = out[-1] if out else None
        if (before is not None and span.start - before.end <= _JOINED_GAP_S * RATE
                and span.end - before.start <= _STRETCH_S * RATE):
            out[-1] = Stretch(before.start, span.end)
        else:
            out.append(span)
    return out
