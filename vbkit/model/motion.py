"""The motion network: many small grey pictures of a clip in, what moves in it out.

The backbone sees a clip in a few large pictures, too far apart to tell how something moves. This
network sees it in many small ones. It is a part of a model bundle that may be left out, a file of
its own: `motion.safetensors`, with the configuration in the file's metadata.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vbkit.errors import ModelError
from vbkit.int8 import SCALE, from_int8, to_int8
from vbkit.model.backbones import prepared
from vbkit.model.stored_tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from vbkit.model.backbones import Precision

__all__ = ["MOTION_FILE", "MotionConfig", "MotionNetwork"]

MOTION_FILE = "motion.safetensors"

_FORMAT = "vbkit.motion_network"
_VERSION = "1"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class MotionConfig:
    """What a motion network reads and gives, and how large it is.

    Args:
        frames: T, pictures of a clip, evenly spaced over it.
        size: S, side of a picture (px): the whole frame in grey, squeezed to a square.
        crop: side of the two parts of a picture (px) that the network looks at, in opposite
            corners, overlapping where they are larger than half of it; what it gives is their
            mean. None: it looks at whole pictures.
        channels: of each stage of the network.
        depth: blocks of each stage.
        outputs: M, how many numbers it gives for a clip.

    Raises:
        ModelError: a value cannot be.
    """

    frames: int = 24
    size: int = 112
    crop: int | None = None
    channels: tuple[int, ...] = (32, 64, 104, 168)
    depth: tuple[int, ...] = (1, 2, 2, 2)
    outputs: int = 128

    def __post_init__(self) -> None:
        for name, most in (("frames", 256), ("size", 512), ("outputs", 65536)):
            _check_count(name, getattr(self, name), most)
        if self.crop is not None:
            _check_count("crop", self.crop, self.size)
        for name in ("channels", "depth"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)):
                raise ModelError(f"{name} must be a list of numbers, got {values!r}")
            for value in values:
                _check_count(name, value, 65536 if name == "channels" else 64)
            object.__setattr__(self, name, tuple(values))
        if not self.channels:
            raise ModelError("channels must name at least one stage")
        if len(self.depth) != len(self.channels):
            raise ModelError(f"channels are of {len(self.channels)} stages, but depth of "
                             f"{len(self.depth)}")
        if self.frames < 2:
            raise ModelError("frames must be at least 2: nothing moves in one picture")

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` gave; what is left out is as by default.

        Raises:
            ModelError: a setting is unknown, or cannot be.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ModelError(f"setting {unknown[0]!r} of the motion network is unknown; known are "
                             f"{', '.join(known)}")
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(self).items()}


def _convolution(before: int, after: int, kernel: tuple[int, int],
                 stride: int | tuple[int, int] = 1) -> nn.Conv2d:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return nn.Conv2d(before, after, kernel, stride, padding, bias=False)


class _OverTime(nn.Module):
    """A convolution of each pixel over three pictures: (B·T, C, H, W) -> (B·T', C, H, W).

    It runs as a 2-D one over (T, H·W): 3-D ones are slow on a CPU. Where channels are last in
    memory, nothing is copied for it.
    """

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = _convolution(channels, channels, (3, 1), (stride, 1))
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, pictures: Tensor, clips: int) -> Tensor:
        size = pictures.shape[2:]
        over_time = pictures.unflatten(0, (clips, -1)).permute(0, 2, 1, 3, 4).flatten(3)
        over_time = self.norm(self.convolution(over_time)).unflatten(3, size)
        return over_time.permute(0, 2, 1, 3, 4).flatten(0, 1)


class _Block(nn.Module):
    """A convolution of each picture and one over time, beside a shortcut.

    With a stride, the pictures' height and width and their number become so many times smaller.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convolution = _convolution(before, after, (3, 3), stride)
        self.norm = nn.BatchNorm2d(after)
        self.over_time = _OverTime(after, stride)
        self.shortcut: nn.Module | None = None
        if before != after or stride > 1:
            self.shortcut = nn.Sequential(_convolution(before, after, (1, 1), stride),
                                          nn.BatchNorm2d(after))

    def forward(self, pictures: Tensor, clips: int) -> Tensor:
        made = self.over_time(functional.relu(self.norm(self.convolution(pictures))), clips)
        if self.shortcut is not None:
            if self.stride > 1:
                pictures = pictures.unflatten(0, (clips, -1))[:, ::self.stride].flatten(0, 1)
            pictures = self.shortcut(pictures)
        return functional.relu(made + pictures)


class MotionLayers(nn.Module):
    """The network itself: (B, T, S, S, 2) -> (B, M).

    Its two channels are the pixels, from -1 to 1, and twice their change since the picture before.
    Convolutions of pictures and over time alternate, as in R(2+1)D (Tran et al., CVPR 2018). What
    is left is pooled twice, by its mean and by the mean over time of its maxima.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        width = config.channels[0]
        self.stem = _convolution(2, width, (7, 7), 4)
        self.stem_norm = nn.BatchNorm2d(width)
        self.stem_over_time = _OverTime(width)
        self.blocks = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(config.channels, config.depth, strict=True)):
            for number in range(depth):
                self.blocks.append(_Block(width, channels, 2 if stage and not number else 1))
                width = channels
        self.head = nn.Linear(2 * width, config.outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        clips = pixels.shape[0]
        pictures = pixels.flatten(0, 1).permute(0, 3, 1, 2)
        pictures = functional.relu(self.stem_norm(self.stem(pictures)))
        pictures = functional.relu(self.stem_over_time(pictures, clips))
        for block in self.blocks:
            pictures = block(pictures, clips)
        left = pictures.unflatten(0, (clips, -1))
        return self.head(torch.cat([left.mean((1, 3, 4)), left.amax((3, 4)).mean(1)], 1))


class MotionNetwork(nn.Module):
    """What moves in a clip, as M numbers.

    Args:
        config: its configuration; the weights begin at random.
    """

    def __init__(self, config: MotionConfig | None = None) -> None:
        super().__init__()
        self.config = config or MotionConfig()
        self.network: nn.Module = MotionLayers(self.config)
        self._dtype = torch.float32

    def forward(self, frames: Tensor) -> Tensor:
        """What moves in clips, each independent of the others.

        Args:
            frames: (B, T, S, S) uint8, grey, in the order of time.

        Returns:
            (B, M) float32.

        Raises:
            ValueError: `frames` has another shape or dtype.
        """
        config = self.config
        wanted = (config.frames, config.size, config.size)
        if frames.ndim != 4 or tuple(frames.shape[1:]) != wanted or frames.dtype != torch.uint8:
            raise ValueError(f"frames must be (B, {', '.join(map(str, wanted))}) uint8, got "
                             f"{tuple(frames.shape)} {frames.dtype}")
        if not len(frames):
            return torch.zeros(0, config.outputs, device=frames.device)
        pixels = self._crops(frames).float() / 127.5 - 1
        # in float32, and rounded once: small changes would not survive bfloat16
        change = functional.pad(2 * (pixels[:, 1:] - pixels[:, :-1]), (0, 0, 0, 0, 1, 0))
        made = self.network(torch.stack([pixels, change], -1).to(self._dtype)).float()
        return made.unflatten(0, (len(frames), -1)).mean(1)

    def _crops(self, frames: Tensor) -> Tensor:
        """(B, T, S, S) -> (B·2, T, crop, crop), or as it is."""
        size, crop = self.config.size, self.config.crop
        if crop is None:
            return frames
        far = size - crop
        places = ((0, far), (far, 0))
        return torch.stack([frames[:, :, top : top + crop, left : left + crop]
                            for top, left in places], 1).flatten(0, 1)

    def prepare(self, device: torch.device | str, precision: Precision = "float32") -> Self:
        """Make it ready to be used, as `Backbone.prepare` does. Training and saving end here.

        Raises:
            ModelError: `precision` is unknown.
        """
        self.network, self._dtype = prepared(self.network, self._dtype, self._example, precision,
                                             torch.channels_last)
        self.eval().requires_grad_(False)
        return self.to(device)

    def _example(self) -> Tensor:
        config = self.config
        side = config.crop or config.size
        return torch.randn(2, config.frames, side, side, 2,
                           generator=torch.Generator().manual_seed(0))

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float16) -> Path:
        """Write `motion.safetensors` into a folder; the file is whole or absent.

        Args:
            folder: where to.
            dtype: of the weights: float32, float16, bfloat16 or int8. In int8 a weight of two or
                more dimensions is stored with a float32 `NAME.scale` for each output channel, by
                which it is to be multiplied; the rest is float32.

        Returns:
            The file.

        Raises:
            ModelError: it cannot be written, or weights are not finite or too large for `dtype`.
        """
        if dtype not in (*_FLOATS, torch.int8):
            raise ModelError(f"weights cannot be stored as {dtype}; take float16 or int8")
        path = Path(folder) / MOTION_FILE
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.network.state_dict().items():
            if not tensor.is_floating_point():
                tensors[name] = tensor
            elif dtype != torch.int8:
                tensors[name] = tensor.to(dtype)
            elif tensor.ndim < 2:
                tensors[name] = tensor.float()
            else:
                tensors[name], tensors[name + SCALE] = to_int8(tensor)
            if not tensors[name].isfinite().all():
                raise ModelError(f"{path}: weight {name} is not finite, or too large for {dtype}")
        metadata = {"format": _FORMAT, "version": _VERSION,
                    "config": json.dumps(self.config.to_dict())}
        write_tensors(path, tensors, metadata)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read `motion.safetensors` from a folder, in float32, on the CPU, for evaluation.

        Args:
            folder: the folder, or the file itself.

        Raises:
            ModelError: the file is missing, damaged, of a newer version, or its weights do not
                fit its configuration.
        """
        path = Path(folder)
        path = path / MOTION_FILE if path.is_dir() or not path.suffix else path
        tensors, config = _read(path)
        network = cls(config)
        wanted = network.network.state_dict()
        # counters of training that files may leave out
        lacking = [name for name in wanted
                   if name not in tensors and not name.endswith("num_batches_tracked")]
        scales = {name + SCALE for name, tensor in tensors.items() if tensor.dtype == torch.int8}
        unknown = [name for name in tensors if name not in wanted and name not in scales]
        for what, names in (("lacks", [*lacking, *sorted(scales - set(tensors))]),
                            ("holds the unknown", unknown)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise ModelError(f"{path} {what} tensor {names[0]}{more}: it is another network's")
        state = {}
        for name in wanted.keys() & tensors.keys():
            tensor = tensors[name]
            if tensor.shape != wanted[name].shape:
                raise ModelError(f"{path}: {name} has shape {tuple(tensor.shape)}, but its "
                                 f"configuration says {tuple(wanted[name].shape)}")
            if tensor.dtype == torch.int8:
                try:
                    tensor = from_int8(tensor, tensors[name + SCALE])
                except ValueError as error:
                    raise ModelError(f"{path}: {name}{SCALE}: {error}") from error
            if not tensor.isfinite().all():
                raise ModelError(f"{path}: {name} is not finite")
            state[name] = tensor.to(wanted[name].dtype)
        network.network.load_state_dict(state, strict=False)
        return network.eval()

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.config.to_dict().items())


def _check_count(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ModelError(f"{name} must be a whole number from 1 to {most}, got {value!r}")


def _read(path: Path) -> tuple[dict[str, Tensor], MotionConfig]:
    tensors, metadata = read_tensors(path, "motion network", _FORMAT, _VERSION,
                                     renew="train it anew")
    try:
        settings = json.loads(metadata.get("config", ""))
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is no whole motion network: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: its configuration is no table of settings")
    try:
        return tensors, MotionConfig.from_dict(settings)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
