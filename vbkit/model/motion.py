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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vbkit.errors import ModelError
from vbkit.files import renamed
from vbkit.model.backbones import fold_batch_norms

if TYPE_CHECKING:
    from vbkit.model.backbones import Precision

__all__ = ["MOTION_FILE", "MotionConfig", "MotionNetwork"]

MOTION_FILE = "motion.safetensors"

_FORMAT = "vbkit.motion_network"
_VERSION = "1"
_SCALE = ".scale"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class MotionConfig:
    """What a motion network reads and gives, and how large it is.

    Args:
        frames: T, pictures of a clip, evenly spaced over it.
        size: S, side of a picture (px): the whole frame in grey, squeezed to a square.
        channels: of each stage of the network.
        outputs: M, how many numbers it gives for a clip.

    Raises:
        ModelError: a value cannot be.
    """

    frames: int = 24
    size: int = 112
    channels: tuple[int, ...] = (24, 48, 96, 160)
    outputs: int = 128

    def __post_init__(self) -> None:
        for name, most in (("frames", 256), ("size", 512), ("outputs", 65536)):
            _check_count(name, getattr(self, name), most)
        if isinstance(self.channels, str) or not isinstance(self.channels, (list, tuple)):
            raise ModelError(f"channels must be a list of numbers, got {self.channels!r}")
        object.__setattr__(self, "channels", tuple(self.channels))
        if not self.channels:
            raise ModelError("channels must name at least one stage")
        for channels in self.channels:
            _check_count("channels", channels, 65536)
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
        return {**dataclasses.asdict(self), "channels": list(self.channels)}


class MotionStages(nn.Module):
    """The network itself: (B, 1, T, S, S) pixels from -1 to 1 -> (B, M).

    Each stage is a convolution over time and space. The first halves the pictures' size, each
    further one size and time; the mean over what is left is mapped to the outputs.
    """

    def __init__(self, config: MotionConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        before = 1
        for number, channels in enumerate(config.channels):
            stride = (2 if number else 1, 2, 2)
            stages += [nn.Conv3d(before, channels, 3, stride, padding=1, bias=False),
                       nn.BatchNorm3d(channels), nn.ReLU(inplace=True)]
            before = channels
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, config.outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.stages(pixels).mean((2, 3, 4)))


class MotionNetwork(nn.Module):
    """What moves in a clip, as M numbers.

    Args:
        config: its configuration; the weights begin at random.
    """

    def __init__(self, config: MotionConfig | None = None) -> None:
        super().__init__()
        self.config = config or MotionConfig()
        self.network: nn.Module = MotionStages(self.config)
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
        pixels = (frames.float() / 127.5 - 1).to(self._dtype).unsqueeze(1)
        return self.network(pixels.contiguous(memory_format=torch.channels_last_3d)).float()

    def prepare(self, device: torch.device | str, precision: Precision = "float32") -> Self:
        """Make it ready to be used, as `Backbone.prepare` does. Training and saving end here.

        Raises:
            ModelError: `precision` is unknown.
        """
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        if precision not in dtypes:
            raise ModelError(f"precision {precision!r} is neither float32 nor bfloat16")
        self.eval().requires_grad_(False)
        if self._dtype == torch.float32:
            config = self.config
            example = torch.randn(2, 1, config.frames, config.size, config.size,
                                  generator=torch.Generator().manual_seed(0))
            self.network = fold_batch_norms(self.network.float(), example)
        self._dtype = dtypes[precision]
        self.network.to(dtype=self._dtype)
        for parameter in self.network.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(
                    memory_format=torch.channels_last_3d)
        return self.to(device)

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
                rows = tensor.float().flatten(1)
                scale = (rows.abs().amax(1) / 127).clamp(min=1e-12)
                tensors[name] = (rows / scale[:, None]).round().to(torch.int8).view_as(tensor)
                tensors[name + _SCALE] = scale
            if not tensors[name].isfinite().all():
                raise ModelError(f"{path}: weight {name} is not finite, or too large for {dtype}")
        metadata = {"format": _FORMAT, "version": _VERSION,
                    "config": json.dumps(self.config.to_dict())}
        try:
            with renamed(path) as temporary:
                save_file({name: tensor.detach().cpu().contiguous()
                           for name, tensor in tensors.items()}, temporary, metadata=metadata)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be written: {error}; free some space, or name another "
                             "folder") from error
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
        scales = {name + _SCALE for name, tensor in tensors.items() if tensor.dtype == torch.int8}
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
                scale = tensors[name + _SCALE]
                if scale.shape != tensor.shape[:1]:
                    raise ModelError(f"{path}: {name}{_SCALE} has shape {tuple(scale.shape)}, but "
                                     f"must have ({tensor.shape[0] if tensor.ndim else 1},)")
                tensor = tensor.float() * scale.float().view(-1, *(1,) * (tensor.ndim - 1))
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
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ModelError(f"{path} is no motion network")
            if metadata.get("version") != _VERSION:
                raise ModelError(f"{path} has version {metadata.get('version')}, but this vbkit "
                                 f"reads version {_VERSION}: update vbkit, or train it anew")
            settings = json.loads(metadata.get("config", ""))
            if not isinstance(settings, dict):
                raise ModelError(f"{path}: its configuration is no table of settings")
            try:
                config = MotionConfig.from_dict(settings)
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
            return {name: file.get_tensor(name) for name in file.keys()}, config  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file") from error
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is no whole motion network: {error}") from error
