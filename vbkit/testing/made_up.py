"""`Features` of any size, made up from a seed: no video, no model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbkit.errors import FeatureError
from vbkit.features import Features, JointOutput
from vbkit.specs import CONTEXT_OUTPUTS, FEATURE_OUTPUTS

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vbkit.media.types import FrameBatch

__all__ = ["FRAMES_PER_CLIP", "ModelSizes", "make_features"]

CLIP_S = 1.5
FRAMES_PER_CLIP = 4
_WORDS = ("a", "about", "and", "at", "come", "day", "for", "from", "go", "good", "great", "have",
          "here", "in", "is", "it", "little", "look", "make", "new", "no", "not", "now", "of", "on",
          "our", "out", "over", "people", "right", "see", "some", "street", "that", "the", "there",
          "they", "this", "time", "to", "two", "up", "water", "we", "where", "with", "you")


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model's outputs; by default those of `mini`.

    Args:
        visual: Dv, of `clip_features`.
        motion: M, of `motion`.
        shared: D, of the space that video and text share.
        hidden: H, of the joint encoder.
        visual_words: ids in the visual vocabulary.
        frame: height and width of the pictures in `frames`, px.
    """

    visual: int = 5120
    motion: int = 128
    shared: int = 384
    hidden: int = 384
    visual_words: int = 512
    frame: tuple[int, int] = (48, 64)


def make_features(
    clips: int = 4,
    segments: int | Sequence[str] = 3,
    *,
    needs: Iterable[str] | None = None,
    outputs: Mapping[str, Any] | None = None,
    timed: bool = True,
    questions: Sequence[str] = (),
    language: str | None = "en",
    segment_languages: Sequence[str | None] | None = None,
    seed: int = 0,
    device: str = "cpu",
    sizes: ModelSizes | None = None,
    video_id: str = "made-up",
) -> Features:
    """Outputs as the engine hands them to heads, in shape, dtype and range, with made-up values.

    Each output follows from `seed` and its own name alone, so the same seed gives the same values
    whatever else is asked for, and on any device. `encode_text` gives each text a unit vector of
    its own, which has nothing to do with its meaning.

    Args:
        clips: C, clips of 1.5 s; 0 for an input without a picture.
        segments: S, how many segments are said; or the texts themselves.
        needs: names of the outputs that are there; None for all.
        outputs: values that are not made up, by name, such as a list of `FrameBatch` as `frames`;
            their shapes are the caller's business.
        timed: whether the segments have times.
        questions: asked of the video.
        language: of the transcript, or None.
        segment_languages: of each of its segments; None where all are in `language`.
        seed: another one, other values.
        device: where floats are, e.g. `"cuda"`; times stay on the CPU.
        sizes: of the model; None for those of `mini`.
        video_id: the input's id.

    Raises:
        FeatureError: `needs` names what is no output, or `segment_languages` are not as many as
            the segments.
    """
    import numpy as np

    from vbkit.media.types import VideoInfo

    wanted = frozenset(FEATURE_OUTPUTS if needs is None else needs)
    unknown = sorted(wanted - set(FEATURE_OUTPUTS))
    if unknown:
        raise FeatureError(f"{unknown[0]!r} is no output of the encoder; "
                           f"outputs are {', '.join(FEATURE_OUTPUTS)}")
    wanted -= CONTEXT_OUTPUTS
    made = _Made(clips, segments, timed, seed, device, sizes or ModelSizes())
    if segment_languages is not None and len(segment_languages) != len(made.texts):
        raise FeatureError(f"{len(segment_languages)} segment_languages for {len(made.texts)} "
                           "segments")
    length = max(1, clips) * CLIP_S
    info = VideoInfo(
        length, made.sizes.frame[1], made.sizes.frame[0], max(1, clips) * FRAMES_PER_CLIP,
        codec="made up", reader="made up") if clips else None
    starts = np.arange(clips) * CLIP_S
    return Features(
        video_id,
        {name: getattr(made, name)() for name in sorted(wanted)} | dict(outputs or {}),
        info=info, language=language if made.texts else None,
        segment_languages=segment_languages, questions=questions,
        keyframe_times=(starts + CLIP_S / 2).tolist())


class _Made:
    """One method for each output, of its name."""

    def __init__(self, clips: int, segments: int | Sequence[str], timed: bool, seed: int,
                 device: str, sizes: ModelSizes) -> None:
        self.clips, self.timed, self.seed, self.device = clips, timed, seed, device
        self.sizes = sizes
        if isinstance(segments, int):
            draw = self._numbers("segments")
            self.texts = [" ".join(draw.choice(_WORDS, draw.integers(3, 13))).capitalize() + "."
                          for _ in range(segments)]
        else:
            self.texts = list(segments)

    def _numbers(self, *name: object) -> np.random.Generator:
        import numpy as np

        digest = hashlib.blake2b(repr((self.seed, *name)).encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def _normal(self, name: object, *shape: int) -> torch.Tensor:
        import numpy as np
        import torch

        values = self._numbers(name).standard_normal(shape, dtype=np.float32)
        return torch.from_numpy(values).to(self.device)

    def _unit(self, name: object, *shape: int) -> torch.Tensor:
        import torch

        # On the CPU, so that every device gets the same bits.
        values = self._normal(name, *shape).cpu()
        return torch.nn.functional.normalize(values, dim=-1).to(self.device)

    def clip_times(self) -> np.ndarray:
        import numpy as np

        starts = np.arange(self.clips, dtype=np.float64) * CLIP_S
        return np.stack([starts, starts + CLIP_S], 1)

    def clip_features(self) -> torch.Tensor:
        return self._normal("clip_features", self.clips, self.sizes.visual).abs()

    def visual_words(self) -> torch.Tensor:
        import torch

        ids = self._numbers("visual_words").integers(0, self.sizes.visual_words, self.clips)
        return torch.from_numpy(ids).to(self.device)

    def segments(self) -> list[str]:
        return list(self.texts)

    def segment_times(self) -> np.ndarray:
        import numpy as np

        count = len(self.texts)
        if not self.timed:
            return np.full((count, 2), np.nan)
        length = self.clips * CLIP_S / count if self.clips and count else 2.0
        starts = np.arange(count, dtype=np.float64) * length
        return np.stack([starts, starts + 0.9 * length], 1)

    def clip_embeddings(self) -> torch.Tensor:
        return self._unit("clip_embeddings", self.clips, self.sizes.shared)

    def segment_embeddings(self) -> torch.Tensor:
        return self._unit("segment_embeddings", len(self.texts), self.sizes.shared)

    def clip_hidden(self) -> torch.Tensor:
        return self._normal("clip_hidden", self.clips, self.sizes.hidden)

    def segment_hidden(self) -> torch.Tensor:
        return self._normal("segment_hidden", len(self.texts), self.sizes.hidden)

    def pooled(self) -> torch.Tensor:
        return self._normal("pooled", self.sizes.hidden)

    def tokens(self) -> list[list[str]]:
        return [text.lower().replace(".", " .").split() for text in self.texts]

    def token_hidden(self) -> list[torch.Tensor]:
        return [self._normal(("token_hidden", place), len(pieces), self.sizes.hidden)
                for place, pieces in enumerate(self.tokens())]

    def frames(self) -> Iterable[FrameBatch]:
        return _Frames(self._frames)

    def _frames(self) -> Iterator[FrameBatch]:
        import numpy as np

        from vbkit.media.types import FrameBatch

        height, width = self.sizes.frame
        draw = self._numbers("frames")
        length = CLIP_S / FRAMES_PER_CLIP
        for clip in range(self.clips):
            data = draw.integers(0, 256, (FRAMES_PER_CLIP, height, width, 3), dtype=np.uint8)
            at = clip * CLIP_S + (np.arange(FRAMES_PER_CLIP) + 0.5) * length
            yield FrameBatch(data, at, np.full(FRAMES_PER_CLIP, length))

    def motion(self) -> Callable[[Sequence[int]], torch.Tensor]:
        def motion(clips: Sequence[int]) -> torch.Tensor:
            import torch

            self._check_indices("motion", [clips], self.clips)
            rows = [self._normal(("motion", int(clip)), self.sizes.motion) for clip in clips]
            return torch.stack(rows) if rows else torch.zeros(0, self.sizes.motion,
                                                              device=self.device)

        return motion

    def encode_text(self) -> Callable[[Sequence[str]], torch.Tensor]:
        def encode_text(texts: Sequence[str]) -> torch.Tensor:
            import torch

            if isinstance(texts, str):
                raise FeatureError("encode_text takes a list of strings, not one string")
            if not len(texts):
                return torch.zeros(0, self.sizes.shared, device=self.device)
            return torch.stack([self._unit(("text", text), self.sizes.shared) for text in texts])

        return encode_text

    def joint(self) -> Callable[..., JointOutput]:
        def joint(texts: Sequence[str], segments: Sequence[Sequence[int]],
                  clips: Sequence[Sequence[int]]) -> JointOutput:
            if not len(texts) == len(segments) == len(clips):
                raise FeatureError(
                    f"joint: {len(texts)} texts, {len(segments)} lists of segments and "
                    f"{len(clips)} lists of clips; give as many of each")
            self._check_indices("joint", segments, len(self.texts))
            self._check_indices("joint", clips, self.clips)
            hidden = self.sizes.hidden
            return JointOutput(
                self._normal(("pooled", tuple(texts)), len(texts), hidden),
                [self._normal(("text", text), len(text.split()), hidden) for text in texts],
                [self._normal(("said", text), len(chosen), hidden)
                 for text, chosen in zip(texts, segments, strict=True)],
                [self._normal(("shown", text), len(chosen), hidden)
                 for text, chosen in zip(texts, clips, strict=True)])

        return joint

    def generate(self) -> Callable[..., list[str]]:
        def generate(clips: Sequence[Sequence[int]], *, num_beams: int = 4,
                     max_new_tokens: int | None = None) -> list[str]:
            self._check_indices("generate", clips, self.clips)
            if any(not len(chosen) for chosen in clips):
                raise FeatureError("generate: a list of clips is empty")
            return [" ".join(self._numbers("generate", tuple(chosen)).choice(_WORDS, 7)) + "."
                    for chosen in clips]

        return generate

    def _check_indices(self, method: str, lists: Sequence[Sequence[int]], count: int) -> None:
        if any(not 0 <= index < count for chosen in lists for index in chosen):
            raise FeatureError(f"{method}: an index is out of range")


class _Frames:
    """Pictures that begin anew for each head, as the engine's do."""

    def __init__(self, start: Callable[[], Iterator[Any]]) -> None:
        self._start = start

    def __iter__(self) -> Iterator[Any]:
        return self._start()
