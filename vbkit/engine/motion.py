"""`features.motion`: how things move in chosen clips, which are decoded a second time for it.

Frames that no other frame refers to are skipped in ordinary decoding, and a motion network wants
nearly all. So only the clips that somebody asks for are decoded so finely, and none twice.
"""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vbkit.errors import FeatureError, MediaError, StoreError
from vbkit.media.content import content_id
from vbkit.media.decode import DecodeJob, DecodePool
from vbkit.media.views import PLAIN, View

if TYPE_CHECKING:
    from vbkit.engine.bundle import Bundle
    from vbkit.engine.cache import FeatureCache
    from vbkit.sources import Source

__all__ = ["ClipMotion", "SecondDecoder"]

logger = logging.getLogger("vbkit")


class SecondDecoder:
    """A decoding process beside those that run ahead, started when it is first needed.

    Args:
        timeout_s: how long it may be silent.
        plugin_openers: whether it asks plugins (`vbkit_open_video`).

    Attributes:
        stays: whether the process waits for more after a use, until `close`.
    """

    def __init__(self, timeout_s: float, plugin_openers: bool) -> None:
        self.stays = False
        self._timeout_s = timeout_s
        self._plugin_openers = plugin_openers
        self._lock = threading.Lock()
        self._pool: DecodePool | None = None

    @contextmanager
    def pool(self) -> Iterator[DecodePool]:
        """A pool for one job."""
        with self._lock:
            if self._pool is None:
                self._pool = DecodePool(1, self._timeout_s, plugin_openers=self._plugin_openers)
            try:
                yield self._pool
            finally:
                if not self.stays:
                    self.close()

    def close(self) -> None:
        """End the process; a later use starts one for itself."""
        self.stays = False
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


class ClipMotion:
    """The method `motion` of one video's features.

    Args:
        source: the video.
        identity: hash of its content.
        clips: C, of the video.
        still: whether it is a single picture.
        bundle: a model with a motion network.
        decoder: what decodes the clips.
        cache: where rows are kept between runs, or None.
        fresh: whether to ignore what the cache holds.
        reader: `"pyav"` or `"decord"`; None for what suits the file.
        view: how the video is seen; the clips are its clips.
    """

    def __init__(self, source: Source, identity: str, clips: int, *, still: bool, bundle: Bundle,
                 decoder: SecondDecoder, cache: FeatureCache | None, fresh: bool,
                 reader: str | None, view: View = PLAIN) -> None:
        network = bundle.motion
        assert network is not None  # Encoder.check_needs
        self._source, self._identity, self._clips = source, identity, clips
        self._still, self._bundle, self._network = still, bundle, network
        self._decoder, self._cache, self._fresh, self._reader = decoder, cache, fresh, reader
        self._view, self._key = view, bundle.motion_key + view.key
        self._lock = threading.Lock()
        self._rows: dict[int, Tensor] = {}  # (M,) float16 of each clip that is known

    def __call__(self, clips: Sequence[int]) -> Tensor:
        """How things move in clips: (len(clips), M) float32, on the engine's device.

        A row depends on its clip alone, and is zero where nothing can move, in a picture. What is
        not known yet is decoded again, so ask once for all clips that are needed.

        Args:
            clips: indices, in any order, also several times.

        Raises:
            FeatureError: an index is out of range.
            MediaError: the clips are not in the cache, and cannot be decoded.
        """
        wanted = [operator.index(clip) for clip in clips]
        strange = [clip for clip in wanted if not 0 <= clip < self._clips]
        if strange:
            raise FeatureError(f"motion: {self._source.video_id} has no clip {strange[0]}; it has "
                               f"{self._clips}, counted from 0")
        if self._still or not wanted:
            return torch.zeros(len(wanted), self._network.config.outputs,
                               device=self._bundle.device)
        with self._lock:
            if not self._fresh:
                self._recall(wanted)
            missing = sorted(set(wanted) - set(self._rows))
            if missing:
                self._make(missing)
            rows = torch.stack([self._rows[clip] for clip in wanted])
        return rows.to(self._bundle.device).float()

    def _recall(self, wanted: Sequence[int]) -> None:
        """Take over what the cache holds, where something is missing."""
        if self._cache is None or self._rows.keys() >= set(wanted):
            return
        found = self._cache.load(self._identity, "motion", self._key)
        if found is not None:
            rows = found[0]["motion"].clone()  # what is loaded is mapped from the file
            self._rows |= zip(found[0]["clips"].tolist(), rows, strict=True)

    def _make(self, clips: list[int]) -> None:
        """Decode clips, run the network on them and keep the rows, also where it breaks off."""
        source = self._source
        if source.path is None or not source.path.exists():
            raise MediaError(
                f"{source.video_id}: how things move in {len(clips)} of its clips is not in the "
                f"feature cache, and there is no video at {source.path} any more to see it in; put "
                "it back, or run it again from where it is")
        if self._cache is not None and (
                content_id(source.path, self._cache.folder) != self._identity):
            raise MediaError(f"{source.path} has changed since it was read: run it again")
        config = self._network.config
        job = DecodeJob(
            source.video_id, source.path, clip_s=self._bundle.config.clip_seconds,
            frames_per_clip=config.frames, grey_clips=tuple(clips), grey_size=config.size,
            height=self._bundle.backbone.image_size, keyframes=False, reader=self._reader,
            view=self._view)
        known = len(self._rows)
        try:
            with self._decoder.pool() as pool:
                video = pool.decode(job)
                for batch in video.clips():
                    made = self._run(torch.from_numpy(batch.frames))
                    self._rows |= zip(clips[batch.first : batch.first + len(batch)], made,
                                      strict=True)
                if video.damaged:
                    logger.warning("%s: %d frames cannot be decoded, in which motion was to be "
                                   "seen; the last good frame before each was used instead",
                                   source.path, video.damaged)
        finally:
            if len(self._rows) > known:
                self._keep()

    @torch.no_grad()
    def _run(self, pictures: Tensor) -> Tensor:
        """(N, T, S, S) uint8 -> (N, M) float16 on the CPU.

        In batches of one size, as libraries choose other kernels for others: a row must not
        depend on what else is asked for. On a CPU, single clips are the quickest.
        """
        device = self._bundle.device
        size = 1 if device.type == "cpu" else 16
        rows = []
        for batch in pictures.split(size):
            padding = batch.new_zeros(size - len(batch), *batch.shape[1:])
            made = self._network(torch.cat([batch, padding]).to(device))
            rows.append(made[: len(batch)].half().cpu())
        return torch.cat(rows)

    def _keep(self) -> None:
        if self._cache is None:
            return
        clips = sorted(self._rows)
        try:
            self._cache.save(self._identity, "motion", self._key, {
                "clips": torch.tensor(clips, dtype=torch.int64),
                "motion": torch.stack([self._rows[clip] for clip in clips])}, {})
        except StoreError as error:  # the next run has to decode them again
            logger.warning("%s: %s", self._source.path, error)
