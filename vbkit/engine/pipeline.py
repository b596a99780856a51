"""Many sources through decode, backbone and encoder at once.

Decoding runs ahead in processes of its own, hashing and transcripts in a thread; the backbone's
batches are filled with clips of whatever videos are there, and always have the same size, so that
a video's features do not depend on its neighbours. What is in the cache is not decoded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vbkit.engine.bundle import Bundle
from vbkit.engine.cache import FeatureCache
from vbkit.engine.encoder import JOINT_OUTPUTS, Encoder
from vbkit.engine.lanes import BackboneLanes
from vbkit.engine.motion import ClipMotion, SecondDecoder
from vbkit.errors import MediaError, StoreError, VbkitError
from vbkit.features import Features
from vbkit.media.audio import audio_duration
from vbkit.media.content import content_id
from vbkit.media.decode import DecodedVideo, DecodeJob, DecodePool
from vbkit.media.language import detect_language, segment_languages
from vbkit.media.sizes import clip_sample_times
from vbkit.media.speech import SpeechToText, transcript_from_json, transcript_json
from vbkit.media.transcripts import resolve_transcript
from vbkit.media.types import FrameBatch, Transcript, VideoInfo
from vbkit.media.views import PLAIN, View
from vbkit.model.backbones import ImageBackbone
from vbkit.plugins import strict
from vbkit.runs import Failure

if TYPE_CHECKING:
    from vbkit.sources import Source

__all__ = ["Encoded", "Pipeline", "Prepared", "Request", "transcript_hash"]

_FRAMES_SHORT_SIDE = 480
_PATIENCE_S = 0.2
TEXT_OUTPUTS = frozenset({
    "segments", "segment_times", "segment_embeddings", "encode_text", "text_branch"})
"""Outputs that need no picture."""
_WITHOUT_SUBTITLES = frozenset({".avi", ".flv", ".gif", ".mpeg", ".mpg", ".wmv"})

logger = logging.getLogger("vbkit")


@dataclass(frozen=True)
class Prepared:
    """A source before any decoding.

    Args:
        source: the source.
        content_id: hash of the file's content, or of the text where there is no file.
        transcript: its transcript.
        transcript_id: hash of the transcript.
        language: ISO 639-1 code of the transcript, or None.
        segment_languages: of each of its segments, or None.
        failures: what already went wrong; a failure of stage open leaves nothing to encode.
        notes: what an operator should know.
        sound_s: duration of a sound file (s).
    """

    source: Source
    content_id: str = ""
    transcript: Transcript = field(default_factory=Transcript)
    transcript_id: str = ""
    language: str | None = None
    segment_languages: tuple[str | None, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    sound_s: float | None = None

    @property
    def visible(self) -> bool:
        """Whether there is a picture to decode."""
        return self.source.kind in ("video", "image")

    @property
    def broken(self) -> bool:
        return any(failure.stage == "open" for failure in self.failures)


@dataclass(frozen=True)
class Request:
    """A prepared source, and what is wanted of it.

    Args:
        prepared: the source.
        needs: names of the outputs to make.
        questions: handed on as `features.questions`.
        wanted: False where the source is up to date: nothing is decoded or encoded.
        picture: False where nothing visual is needed: nothing is decoded.
        view: how the video is seen. There are no keyframes but of the video as it is.
        token: the caller's own, handed back.
    """

    prepared: Prepared
    needs: frozenset[str]
    questions: tuple[str, ...] = ()
    wanted: bool = True
    picture: bool = True
    view: View = PLAIN
    token: Any = None

    @property
    def decodes(self) -> bool:
        """Whether clip features are needed, from the cache or the decoder."""
        return (self.wanted and self.picture and self.prepared.visible
                and not self.prepared.broken)


@dataclass(frozen=True)
class Encoded:
    """A source's outputs, or what kept them from being made.

    Args:
        request: what was asked.
        features: its outputs; `features.error` is set where there are none.
        clip_times: (C, 2) float64, s.
        keyframes: (time in s, JPEG) pairs.
        failures: everything that went wrong so far.
        complete: False where decoding was cut short, so that another try may give more.
    """

    request: Request
    features: Features
    clip_times: np.ndarray
    keyframes: tuple[tuple[float, bytes], ...] = ()
    failures: tuple[Failure, ...] = ()
    complete: bool = True

    @property
    def failure(self) -> Failure | None:
        """What kept all outputs from being made, or None."""
        error = self.features.error
        if error is None:
            return None
        stage = self.failures[-1].stage if self.failures else "encode"
        return Failure(self.features.video_id, stage, type(error).__name__, str(error))


class _Item:
    """A source on its way through the pipeline."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.info: VideoInfo | None = None
        self.clip_times = np.zeros((0, 2))
        self.features: Tensor | None = None
        self.missing = 0
        self.keyframes: list[tuple[float, bytes]] = []
        self.failures = list(request.prepared.failures)
        self.submitted = False
        self.ready = False
        self.complete = True

    def fail(self, stage: str, error: Exception) -> None:
        self.failures.append(Failure(self.request.prepared.source.video_id, stage,
                                     type(error).__name__, str(error)))


class Pipeline:
    """Prepares and encodes sources, in order.

    Args:
        bundle: the model.
        encoder: its encoder.
        cache: where outputs are kept between runs, or None.
        transcript: `"auto"`, `"none"`, or a path that serves every source.
        fresh: whether to ignore what the cache holds.
        workers: decoding processes.
        timeout_s: how long a decoder may be silent.
        keyframes: whether to make pictures of clips.
        speech: speech to text, or in words why there is none, or None.
        plugin_openers: whether the decoder asks plugins (`vbkit_open_video`).
        reader: `"pyav"` or `"decord"`; None for what suits the file.
    """

    def __init__(
        self,
        bundle: Bundle,
        encoder: Encoder,
        *,
        cache: FeatureCache | None = None,
        transcript: str | Path = "auto",
        fresh: bool = False,
        keyframes: bool = True,
        workers: int = 1,
        timeout_s: float = 60.0,
        speech: SpeechToText | str | None = None,
        plugin_openers: bool = False,
        reader: str | None = None,
    ) -> None:
        self.bundle = bundle
        self.encoder = encoder
        self.cache = cache
        self.transcript = transcript
        self.fresh = fresh
        self.keyframes = keyframes
        self.workers = workers
        self.timeout_s = timeout_s
        self.speech = speech
        self.plugin_openers = plugin_openers
        self.reader = reader
        # Sources that are hashed, read for transcripts and given to the decoder ahead of time.
        self._ahead = max(3, workers + 2)
        self.seconds: dict[str, float] = defaultdict(float)
        # Clips that wait for a full batch, by their number of frames.
        self._waiting: dict[int, list[tuple[_Item, int, Tensor]]] = defaultdict(list)
        self._running: deque[tuple[list[tuple[_Item, int]], Future[Tensor]]] = deque()
        self._lanes: BackboneLanes | None = None
        self._pool: DecodePool | None = None
        self._prober: DecodePool | None = None
        self._again = SecondDecoder(timeout_s, plugin_openers)
        self._preparing: deque[Future[Prepared]] = deque()

    # --- before decoding ----------------------------------------------------------------------

    def prepare(self, sources: Iterable[Source]) -> Iterator[Prepared]:
        """Hash sources and find their transcripts, some sources ahead, in order."""
        waiting = self._preparing = deque()
        if isinstance(self.speech, SpeechToText):
            self.speech.open()
        thread = ThreadPoolExecutor(1, thread_name_prefix="vbkit-prepare")
        try:
            for source in sources:
                waiting.append(thread.submit(self._prepare, source))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            waiting.clear()
            if isinstance(self.speech, SpeechToText):
                self.speech.close()
            thread.shutdown(cancel_futures=True)
            if self._prober is not None:
                self._prober.close()
                self._prober = None

    def _embedded(self, path: Path | None) -> Transcript | None:
        """Subtitles inside a file, read in another process: the file may crash who opens it."""
        if path is None or path.suffix.lower() in _WITHOUT_SUBTITLES:
            return None
        if self._prober is None:
            self._prober = DecodePool(1, self.timeout_s, plugin_openers=False)
        video = self._prober.decode(DecodeJob(
            str(path), path, embedded_transcript=True, keyframes=False, decode=False))
        try:
            return video.embedded_transcript
        except MediaError:
            return None  # said when it is decoded

    def _listen(self, path: Path, identity: str) -> Transcript:
        """What is said in a file, from the cache or by speech to text."""
        speech = self.speech
        assert isinstance(speech, SpeechToText)
        cache = self.cache if identity else None
        key = _hash([speech.name, speech.identity])[:16]
        if cache is not None and not self.fresh:
            found = cache.load(identity, "speech", key)
            if found is not None:
                try:
                    return transcript_from_json(found[1]["transcript"])
                except (KeyError, TypeError, ValueError):
                    pass  # written by another version
        began = time.perf_counter()
        try:
            transcript = speech.transcribe(path)
        finally:
            self.seconds["speech"] += time.perf_counter() - began
        if cache is not None:
            try:
                cache.save(identity, "speech", key, {}, {"transcript": transcript_json(transcript)})
            except StoreError as error:  # the next run has to listen again
                logger.warning("%s: %s", path, error)
        return transcript

    def _prepare(self, source: Source) -> Prepared:
        failures: list[Failure] = []

        def fail(stage: str, error: Exception | str, kind: str = "") -> None:
            failures.append(Failure(source.video_id, stage, kind or type(error).__name__,
                                    str(error)))

        if source.problem is not None:
            fail("open", source.problem, "MediaError")
            return Prepared(source, failures=tuple(failures))
        identity = ""
        if source.path is not None:
            try:
                memo = self.cache.folder if self.cache is not None else None
                identity = content_id(source.path, memo)
            except Exception as error:
                fail("open", error)
        speech: Callable[[Path], Transcript] | str | None
        if isinstance(self.speech, SpeechToText):
            speech = partial(self._listen, identity=identity)
        else:
            speech = self.speech
        try:
            transcript = resolve_transcript(
                source, self.transcript, speech=speech,
                embedded=lambda: self._embedded(source.path))
        except VbkitError as error:
            transcript = Transcript()
            fail("transcript", error)
        except Exception as error:  # a parser's surprise costs the transcript, not the video
            transcript = Transcript()
            fail("transcript", error)
        texts = [segment.text for segment in transcript.segments]
        transcript_id = transcript_hash(transcript)
        if source.path is None:
            identity = transcript_id
        if source.path is None and not transcript.segments and not failures:
            fail("open", "there is neither a video nor a transcript", "MediaError")
        sound_s = None
        if source.kind == "audio" and source.path is not None:
            try:
                sound_s = audio_duration(source.path)
            except Exception as error:
                fail("open", error)
        language, languages = transcript.language, (transcript.language,) * len(texts)
        if texts:
            try:
                language = language or detect_language(texts)
                # Who heard it knows better than its text tells.
                languages = tuple(segment.language or told for segment, told in zip(
                    transcript.segments, segment_languages(texts, language), strict=True))
            except Exception as error:
                fail("transcript", error)
        return Prepared(source, identity, transcript, transcript_id, language, languages,
                        tuple(failures), transcript.notes, sound_s)

    # --- decode and backbone ------------------------------------------------------------------

    def encode(self, requests: Iterable[Request]) -> Iterator[Encoded]:
        """Encode what is asked for, in the order of the requests."""
        stream = iter(requests)
        waiting: deque[_Item] = deque()
        started: deque[_Item] = deque()
        exhausted = False
        self._again.stays = True
        try:
            while True:
                while not exhausted and len(waiting) < self._ahead:
                    if self._listening(0.0 if waiting else _PATIENCE_S):
                        if waiting:
                            break  # what is there is encoded meanwhile
                        self._flush()
                        while started:
                            yield self._finish(started.popleft())
                    request = next(stream, None)
                    if request is None:
                        exhausted = True
                    else:
                        waiting.append(self._enter(request, waiting, started))
                if not waiting:
                    self._flush()
                    while started:
                        yield self._finish(started.popleft())
                    return
                item = waiting.popleft()
                started.append(item)
                self._read(item)
                if len(started) > 2 * self._batch_size(1):
                    self._flush()
                while started and started[0].ready:
                    yield self._finish(started.popleft())
        finally:
            self._waiting.clear()
            self._running.clear()
            self._again.close()
            if self._lanes is not None:
                self._lanes.close()
                self._lanes = None
            if self._pool is not None:
                self._pool.close()
                self._pool = None

    def _listening(self, patience_s: float) -> bool:
        """Whether the next source may be listened to for minutes: it is not ready in time."""
        if not isinstance(self.speech, SpeechToText) or not self._preparing:
            return False
        return not wait([self._preparing[0]], patience_s).done

    def _enter(self, request: Request, *queues: Iterable[_Item]) -> _Item:
        item = _Item(request)
        prepared = request.prepared
        if not request.decodes:
            return item
        if self.cache is not None:
            twin = any(other.submitted and other.request.view == request.view and
                       other.request.prepared.content_id == prepared.content_id
                       for items in queues for other in items)
            if twin or (not self.fresh and
                        self.cache.has(prepared.content_id, "visual", self._key(request))):
                return item
        self._submit(item)
        return item

    def _key(self, request: Request) -> str:
        """Names what decides the clip features of a request, beside the file."""
        return self.bundle.visual_key + request.view.key

    def _submit(self, item: _Item) -> None:
        if self._pool is None:
            self._pool = DecodePool(self.workers, self.timeout_s,
                                    plugin_openers=self.plugin_openers)
        source = item.request.prepared.source
        assert source.path is not None
        backbone, still = self.bundle.backbone, source.kind == "image"
        # Pooled over one frame or over four equal ones, a picture's features are the same.
        frames = 1 if still and isinstance(backbone, ImageBackbone) else backbone.frames_per_clip
        self._pool.submit(DecodeJob(
            source.video_id, source.path, "image" if still else "video",
            clip_s=self.bundle.config.clip_seconds, frames_per_clip=frames,
            height=backbone.image_size, reader=self.reader, view=item.request.view,
            keyframes=self.keyframes and item.request.view == PLAIN))
        item.submitted = True

    def _read(self, item: _Item) -> None:
        """Get an item's clip features, from the cache or from the decoder."""
        if not item.request.decodes:
            item.ready = True
            return
        if not item.submitted:
            if self._from_cache(item):
                return
            # The entry has gone, or its twin failed; this one is decoded out of turn.
            self._flush()
            if self._from_cache(item):
                return
            self._decode_alone(item)
            return
        assert self._pool is not None
        self._decode(item, next(self._pool.results()))

    def _decode_alone(self, item: _Item) -> None:
        pool, self._pool = self._pool, None
        try:
            self._submit(item)
            assert self._pool is not None
            self._decode(item, next(self._pool.results()))
        finally:
            if self._pool is not None:
                self._pool.close()
            self._pool = pool

    def _decode(self, item: _Item, video: DecodedVideo) -> None:
        backbone = self.bundle.backbone
        done = 0
        item.keyframes = video.keyframes  # filled while the clips are consumed
        try:
            began = time.perf_counter()
            item.info = video.open()
            item.clip_times = np.array(video.clip_times)
            item.missing = len(item.clip_times) + 1  # one for the end of decoding
            item.features = torch.zeros(len(item.clip_times), backbone.dim, dtype=torch.float16)
            for batch in video.clips():
                self.seconds["decode"] += time.perf_counter() - began
                pictures = torch.from_numpy(batch.frames)
                frames = backbone.square(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
                for offset in range(len(batch)):
                    self._add(item, batch.first + offset, frames[offset])
                done = batch.first + len(batch)
                began = time.perf_counter()
            self.seconds["decode"] += time.perf_counter() - began
            if video.damaged:
                item.fail("decode", MediaError(
                    f"{video.job.path}: {video.damaged} frames cannot be decoded; the last good "
                    "frame before each was used instead"))
            self._settle(item, 1)
        except MediaError as error:
            item.complete = False
            if item.info is None or done == 0:
                item.fail("open" if item.info is None else "decode", error)
                item.features, item.clip_times, item.ready = None, np.zeros((0, 2)), True
            else:  # keep what was read before
                item.fail("decode", error)
                lost = len(item.clip_times) - done
                item.features = item.features[:done] if item.features is not None else None
                item.clip_times = item.clip_times[:done]
                self._settle(item, lost + 1)

    def _add(self, item: _Item, clip: int, frames: Tensor) -> None:
        rows = self._waiting[len(frames)]
        rows.append((item, clip, frames))
        if len(rows) >= self._batch_size(len(frames)):
            self._run_backbone(self._waiting.pop(len(frames)))

    def _batch_size(self, frames: int) -> int:
        """Clips of so many frames in a batch: about 32 pictures on a CPU, 512 on a GPU."""
        return max(1, (32 if self.bundle.device.type == "cpu" else 512) // frames)

    def _flush(self) -> None:
        """Run the backbone on all that waits for a full batch, and wait for all batches."""
        while self._waiting:
            self._run_backbone(self._waiting.popitem()[1])
        self._collect(0)

    def _run_backbone(self, rows: list[tuple[_Item, int, Tensor]]) -> None:
        """Start on some clips, in a batch that is padded to its full size."""
        if self._lanes is None:
            self._lanes = BackboneLanes(self.bundle.backbone, self.bundle.device)
        frames = torch.stack([frames for _, _, frames in rows])
        size = self._batch_size(frames.shape[1])
        if len(rows) < size:
            frames = torch.cat([frames, frames.new_zeros(size - len(rows), *frames.shape[1:])])
        places = [(item, clip) for item, clip, _ in rows]
        self._running.append((places, self._lanes.submit(frames)))
        self._collect(2 * self._lanes.count)

    def _collect(self, most: int) -> None:
        """Take over features that are ready, and wait until at most `most` batches are running."""
        if not self._running:
            return
        began = time.perf_counter()
        while self._running and (len(self._running) > most or self._running[0][1].done()):
            places, future = self._running.popleft()
            for (item, clip), row in zip(places, future.result(), strict=False):
                if item.features is not None and clip < len(item.features):
                    item.features[clip] = row
                self._settle(item, 1)
        self.seconds["backbone"] += time.perf_counter() - began

    def _settle(self, item: _Item, count: int) -> None:
        item.missing -= count
        if item.missing == 0:
            self._arrived(item)

    # --- cache --------------------------------------------------------------------------------

    def _arrived(self, item: _Item) -> None:
        item.ready = True
        if self.cache is None or not item.complete or item.features is None:
            return
        assert item.info is not None
        pictures = b"".join(jpeg for _, jpeg in item.keyframes)
        tensors = {
            "clip_times": torch.from_numpy(item.clip_times),
            "clip_features": item.features,
            "keyframe_times": torch.tensor([t for t, _ in item.keyframes], dtype=torch.float64),
            "keyframe_sizes": torch.tensor([len(j) for _, j in item.keyframes], dtype=torch.int64),
            "keyframes": torch.frombuffer(bytearray(pictures or b"\0"), dtype=torch.uint8),
        }
        damage = [failure.message for failure in item.failures if failure.stage == "decode"]
        self._save(item, item.request.prepared.content_id, "visual", self._key(item.request),
                   tensors, {"info": vars(item.info), "damage": damage})

    def _from_cache(self, item: _Item) -> bool:
        assert self.cache is not None
        prepared = item.request.prepared
        found = self.cache.load(prepared.content_id, "visual", self._key(item.request))
        if found is None:
            return False
        tensors, metadata = found
        try:
            item.info = VideoInfo(**metadata["info"])
        except (KeyError, TypeError, ValueError):
            return False  # written by another version
        item.clip_times = tensors["clip_times"].numpy()
        item.features = tensors["clip_features"]
        data, start = tensors["keyframes"].numpy().tobytes(), 0
        for moment, size in zip(tensors["keyframe_times"].tolist(),
                                tensors["keyframe_sizes"].tolist(), strict=True):
            item.keyframes.append((moment, data[start : start + size]))
            start += size
        for message in metadata["damage"]:
            item.fail("decode", MediaError(message))
        item.ready = True
        return True

    def _save(self, item: _Item, identity: str, kind: str, key: str,
              tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        assert self.cache is not None
        try:
            self.cache.save(identity, kind, key, tensors, metadata)
        except StoreError as error:  # the run goes on, the next one has to encode again
            item.fail("store", error)

    # --- encoder ------------------------------------------------------------------------------

    def _finish(self, item: _Item) -> Encoded:
        request, prepared = item.request, item.request.prepared
        source = prepared.source
        usable = item.features is not None or len(prepared.transcript.segments) > 0
        error: Exception | None = None
        outputs: dict[str, Any] = {}
        if item.failures and (prepared.broken or not usable):
            error = MediaError(item.failures[-1].message)
        elif request.wanted:
            try:
                outputs = self._outputs(item)
            except Exception as failure:  # costs this video only
                if strict():
                    raise
                logger.debug("encoding %s", source.video_id, exc_info=True)
                item.fail("encode", failure)
                error = failure
        features = Features(
            source.video_id, outputs, info=item.info, language=prepared.language,
            segment_languages=prepared.segment_languages, questions=request.questions,
            keyframe_times=[moment for moment, _ in item.keyframes], error=error)
        encoded = Encoded(request, features, item.clip_times, tuple(item.keyframes),
                          tuple(item.failures), item.complete)
        item.features = None
        return encoded

    def _outputs(self, item: _Item) -> dict[str, Any]:
        needs, prepared = item.request.needs, item.request.prepared
        device, encoder = self.bundle.device, self.encoder
        texts = [segment.text for segment in prepared.transcript.segments]
        times = np.array([[s.start_s, s.end_s] for s in prepared.transcript.segments],
                         dtype=np.float64).reshape(-1, 2)
        clips = torch.zeros(0, self.bundle.config.visual_feature_size, device=device)
        if item.features is not None:
            clips = item.features.to(device).float()
        out: dict[str, Any] = {
            "clip_times": _read_only(item.clip_times), "clip_features": clips,
            "segments": texts, "segment_times": _read_only(times),
        }
        if needs & {"clip_embeddings"}:
            out["clip_embeddings"] = encoder.embed_clips(clips)
        if "visual_words" in needs:
            out["visual_words"] = encoder.visual_words(clips)
        if "segment_embeddings" in needs:
            began = time.perf_counter()
            key = self.bundle.fingerprint_of({"segment_embeddings"})
            out["segment_embeddings"] = self._cached(
                item, prepared.transcript_id, "text", key,
                lambda: {"segment_embeddings": encoder.encode_text(texts)})["segment_embeddings"]
            self.seconds["text"] += time.perf_counter() - began
        if needs & JOINT_OUTPUTS:
            began = time.perf_counter()
            out |= self._joint(item, clips, texts, times)
            self.seconds["joint"] += time.perf_counter() - began
        if "encode_text" in needs:
            out["encode_text"] = encoder.encode_text
        if "joint" in needs:
            out["joint"] = lambda questions, segments, shown: encoder.joint(
                clips, texts, questions, segments, shown)
        if "generate" in needs:
            out["generate"] = partial(encoder.generate, clips)
        if "frames" in needs:
            out["frames"] = _Frames(lambda: self._frames(item))
        if "motion" in needs:
            out["motion"] = ClipMotion(
                prepared.source, prepared.content_id, len(item.clip_times),
                still=item.info is not None and item.info.n_frames == 1, bundle=self.bundle,
                decoder=self._again, cache=self.cache, fresh=self.fresh, reader=self.reader,
                view=item.request.view)
        return {name: value for name, value in out.items() if name in needs}

    def _joint(self, item: _Item, clips: Tensor, texts: Sequence[str],
               times: np.ndarray) -> dict[str, Any]:
        def compute() -> dict[str, Any]:
            return self.encoder.joint_outputs(item.clip_times, clips, texts, times)

        if item.request.needs & {"tokens", "token_hidden"}:  # large, and quick to make again
            return compute()
        kept = ("clip_hidden", "segment_hidden", "pooled")
        prepared = item.request.prepared
        key = _hash([self.bundle.fingerprint, self._key(item.request),
                     prepared.transcript_id])[:16]
        return self._cached(item, prepared.content_id, "joint", key,
                            lambda: {name: value for name, value in compute().items()
                                     if name in kept})

    def _cached(self, item: _Item, identity: str, kind: str, key: str,
                compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        device = self.bundle.device
        if self.cache is not None and not self.fresh:
            found = self.cache.load(identity, kind, key)
            if found is not None:
                return {name: tensor.to(device) for name, tensor in found[0].items()}
        computed = compute()
        damaged = any(failure.stage == "decode" for failure in item.failures)
        whole = item.complete and (item.features is not None or not item.request.decodes)
        if self.cache is not None and (kind == "text" or (whole and not damaged)):
            self._save(item, identity, kind, key, computed, {})
        return computed

    def _frames(self, item: _Item) -> Iterator[FrameBatch]:
        """The pictures themselves, decoded again, at up to 480 px, four to a clip."""
        source = item.request.prepared.source
        if item.info is None or source.path is None:
            return
        short = min(item.info.width, item.info.height, _FRAMES_SHORT_SIDE)
        job = DecodeJob(source.video_id, source.path,
                        "image" if source.kind == "image" else "video",
                        clip_s=self.bundle.config.clip_seconds, height=short, keyframes=False,
                        reader=self.reader, view=item.request.view)
        with DecodePool(1, self.timeout_s, plugin_openers=self.plugin_openers) as pool:
            video = pool.decode(job)
            times = video.clip_times
            for batch in video.clips():
                count = job.frames_per_clip
                span = times[batch.first : batch.first + len(batch)]
                length = (span[:, 1] - span[:, 0]) / count
                at = clip_sample_times(span, count, job.view.phase)
                yield FrameBatch(batch.frames.reshape(-1, *batch.frames.shape[2:]), at.ravel(),
                                 np.repeat(length, count))


def transcript_hash(transcript: Transcript) -> str:
    """Of a transcript's texts and times."""
    return _hash([[s.text, _nan(s.start_s), _nan(s.end_s)] for s in transcript.segments])


class _Frames:
    """Frames that are decoded anew by each head that asks for them."""

    def __init__(self, start: Callable[[], Iterator[FrameBatch]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[FrameBatch]:
        return self._start()


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _nan(value: float) -> float | None:
    return None if np.isnan(value) else value


def _read_only(array: np.ndarray) -> np.ndarray:
    array = np.array(array, dtype=np.float64)
    array.setflags(write=False)
    return array


