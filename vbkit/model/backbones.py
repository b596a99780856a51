"""Visual backbones: the pictures of a clip in, one feature vector out.

A backbone takes uint8 frames as decoded, `(B, T, H, W, 3)`, and does its own cropping, scaling and
normalisation, so that whoever feeds it needs to know two numbers only: `image_size` and
`frames_per_clip`. `ImageBackbone` sees each frame by itself and pools over the clip;
`VideoBackbone` sees the clip as a whole.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vbkit.errors import ModelError, UsageError, VbkitError
from vbkit.specs import load_object

if TYPE_CHECKING:
    from vbkit.plugins import PluginManager

__all__ = [
    "Backbone",
    "Fit",
    "ImageBackbone",
    "Pooling",
    "Precision",
    "Spatial",
    "SpatialPool",
    "VideoBackbone",
    "fold_batch_norms",
    "load_backbone",
    "load_weights",
]

Fit = Literal["crop", "squash"]
Interpolation = Literal["bilinear", "bicubic"]
Pooling = Literal["mean", "mean_std"]
Precision = Literal["float32", "bfloat16"]
Spatial = Literal["mean", "mean_max_std"]

_FOLD_TOLERANCE = 1e-4
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+\Z")


class Backbone(nn.Module):
    """Base class of visual backbones.

    Args:
        network: the network behind it, which gets what `preprocess` gives.
        dim: number of features of one clip.
        image_size: side of the square that the network sees, px. Frames arrive with their short
            side that long, in any aspect.
        frames_per_clip: how many frames of a clip it wants, evenly spaced.
        mean, std: of each channel (R, G, B), for pixels scaled to 0–1.
        fit: how a frame becomes a square: its centre is cut out, or it is resized.
        interpolation: used where a frame has to be resized.
    """

    mean: Tensor
    std: Tensor
    _memory_format = torch.channels_last

    def __init__(
        self,
        network: nn.Module,
        *,
        dim: int,
        image_size: int,
        frames_per_clip: int,
        mean: Sequence[float],
        std: Sequence[float],
        fit: Fit = "crop",
        interpolation: Interpolation = "bilinear",
    ) -> None:
        super().__init__()
        if min(dim, image_size, frames_per_clip) < 1:
            raise ModelError(
                f"a backbone needs positive sizes, got dim {dim}, image_size {image_size}, "
                f"frames_per_clip {frames_per_clip}"
            )
        for name, value, known in (("fit", fit, ("crop", "squash")),
                                   ("interpolation", interpolation, ("bilinear", "bicubic"))):
            if value not in known:
                raise ModelError(f"{name} is {value!r}, but must be {' or '.join(known)}")
        self.network = network.eval()
        self.dim = dim
        self.image_size = image_size
        self.frames_per_clip = frames_per_clip
        self.fit: Fit = fit
        self.interpolation: Interpolation = interpolation
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(3, 1, 1),
                             persistent=False)
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(3, 1, 1),
                             persistent=False)
        self._dtype = torch.float32

    def forward(self, clips: Tensor) -> Tensor:
        """Features of clips, each independent of the others.

        Args:
            clips: (B, T, H, W, 3) uint8, RGB.

        Returns:
            (B, dim) float32.

        Raises:
            ValueError: `clips` has another shape or dtype.
        """
        raise NotImplementedError

    def prepare(self, device: torch.device | str, precision: Precision = "float32") -> Self:
        """Make it ready to be used: on `device`, in `precision`, as fast as it gets.

        Batch normalisations are folded into the convolutions before them where float32 outputs
        agree to 1e-4; weights are laid out channels last. Training ends here: parameters lose
        their gradients.

        Returns:
            The backbone itself.

        Raises:
            ModelError: `precision` is unknown.
        """
        self.network, self._dtype = prepared(self.network, self._dtype, self._example, precision,
                                             self._memory_format)
        self.eval().requires_grad_(False)
        return self.to(device)

    def square(self, frames: Tensor) -> Tensor:
        """Frames cut or resized to the network's square.

        Args:
            frames: (N, H, W, 3) uint8, of any size.

        Returns:
            (N, image_size, image_size, 3) uint8.
        """
        size = self.image_size
        height, width = frames.shape[1:3]
        if self.fit == "squash":
            return self._resize(frames, size, size)
        short = min(height, width)
        if short != size:
            height, width = (max(size, round(side * size / short)) for side in (height, width))
            frames = self._resize(frames, height, width)
        top, left = round((height - size) / 2), round((width - size) / 2)
        return frames[:, top : top + size, left : left + size]

    def preprocess(self, frames: Tensor) -> Tensor:
        """What the network sees of frames.

        Args:
            frames: (N, H, W, 3) uint8, of any size.

        Returns:
            (N, 3, image_size, image_size), channels last in memory, normalised, in the network's
            precision.
        """
        pixels = self.square(frames).permute(0, 3, 1, 2)
        # in float32, and rounded once: the scale itself would not survive bfloat16
        pixels = torch.addcmul(-self.mean / self.std, pixels.float(), 1 / (255 * self.std))
        return pixels.to(self._dtype)

    def _resize(self, frames: Tensor, height: int, width: int) -> Tensor:
        if tuple(frames.shape[1:3]) == (height, width):
            return frames
        pixels = frames.permute(0, 3, 1, 2)
        native = pixels.device.type == "cpu"  # the only device that resizes bytes
        resized = nn.functional.interpolate(
            pixels if native else pixels.float(), (height, width),
            mode=self.interpolation, antialias=True, align_corners=False,
        )
        if not native:
            resized = resized.round_().clamp_(0, 255).to(torch.uint8)
        return resized.permute(0, 2, 3, 1)

    def _check(self, clips: Tensor) -> None:
        if clips.ndim != 5 or clips.shape[-1] != 3 or clips.dtype != torch.uint8:
            raise ValueError(
                f"clips must be (B, T, H, W, 3) uint8, got {tuple(clips.shape)} {clips.dtype}"
            )
        if 0 in clips.shape[1:]:
            raise ValueError(f"clips hold no pictures: {tuple(clips.shape)}")

    def _example(self) -> Tensor:
        """An input of the network, for checks."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, 3, self.image_size, self.image_size)
        return torch.randn(shape, generator=generator)

    def extra_repr(self) -> str:
        return (f"dim={self.dim}, image_size={self.image_size}, "
                f"frames_per_clip={self.frames_per_clip}, fit={self.fit!r}")


class ImageBackbone(Backbone):
    """A backbone that sees each frame by itself and pools over the frames of a clip.

    Args:
        network: (N, 3, S, S) -> (N, D) pooled features.
        width: D.
        pooling: `"mean"` over the frames gives D features; `"mean_std"` adds their population
            standard deviation, so that features tell what changes in a clip.
        deviations: of how many features, from the first, `"mean_std"` adds it; all by default.
        frames_per_clip, image_size, mean, std, fit, interpolation: as in `Backbone`.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        width: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        frames_per_clip: int = 4,
        pooling: Pooling = "mean",
        deviations: int | None = None,
        fit: Fit = "crop",
        interpolation: Interpolation = "bilinear",
    ) -> None:
        if pooling not in ("mean", "mean_std"):
            raise ModelError(f"pooling is {pooling!r}, but must be mean or mean_std")
        deviations = width if deviations is None else deviations
        if not 0 < deviations <= width:
            raise ModelError(f"deviations is {deviations}, but must be from 1 to {width}")
        self.deviations = deviations
        super().__init__(
            network, dim=width + (deviations if pooling == "mean_std" else 0),
            image_size=image_size,
            frames_per_clip=frames_per_clip, mean=mean, std=std, fit=fit,
            interpolation=interpolation,
        )
        self.width = width
        self.pooling: Pooling = pooling

    def forward(self, clips: Tensor) -> Tensor:
        self._check(clips)
        if not len(clips):
            return torch.zeros(0, self.dim, device=clips.device)
        features = self.frame_features(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        mean = features.mean(1)
        if self.pooling == "mean":
            return mean
        return torch.cat((mean, features[..., : self.deviations].std(1, correction=0)), 1)

    def frame_features(self, frames: Tensor) -> Tensor:
        """Features of single frames: (N, H, W, 3) uint8 -> (N, width) float32."""
        return self.network(self.preprocess(frames)).float()


class SpatialPool(nn.Module):
    """Feature maps (N, D, h, w) to their mean, maximum and standard deviation over space, (N, 3·D).

    The mean says what fills a picture, the maximum what is anywhere in it, and the deviation
    whether it keeps to one place.
    """

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps.float()
        return torch.cat((maps.mean((2, 3)), maps.amax((2, 3)), maps.std((2, 3))), 1)


class VideoBackbone(Backbone):
    """A backbone whose network sees a clip's frames together.

    Args:
        network: (B, 3, T, S, S) -> (B, dim) pooled features.
    """

    _memory_format = torch.channels_last_3d

    def forward(self, clips: Tensor) -> Tensor:
        self._check(clips)
        if clips.shape[1] != self.frames_per_clip:
            raise ValueError(
                f"this backbone wants {self.frames_per_clip} frames a clip, got {clips.shape[1]}"
            )
        if not len(clips):
            return torch.zeros(0, self.dim, device=clips.device)
        pixels = self.preprocess(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        pixels = pixels.transpose(1, 2).contiguous(memory_format=self._memory_format)
        return self.network(pixels).float()

    def _example(self) -> Tensor:
        frames = super()._example()[:1].unsqueeze(2)
        return frames.repeat(1, 1, self.frames_per_clip, 1, 1)


class _Adjacency(torch.fx.Tracer):
    """Traces down to convolutions and normalisations, also those of other libraries."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*_CONVOLUTIONS, nn.modules.batchnorm._BatchNorm)) or (
            super().is_leaf_module(m, module_qualified_name)
        )


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prepared(network: nn.Module, dtype: torch.dtype, example: Callable[[], Tensor],
             precision: Precision, memory_format: torch.memory_format,
             ) -> tuple[nn.Module, torch.dtype]:
    """A network for inference: batch normalisations folded, in a precision and a memory format.

    Args:
        network: its parameters lose their gradients.
        dtype: in which it is; what is not float32 was prepared before.
        example: makes an input of it, to fold by.
        precision: wanted.
        memory_format: of the weights that have as many dimensions as it is for.

    Returns:
        The network, and the dtype that it is in now.

    Raises:
        ModelError: `precision` is unknown.
    """
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in dtypes:
        raise ModelError(f"precision {precision!r} is neither float32 nor bfloat16")
    network.eval().requires_grad_(False)
    if dtype == torch.float32:
        network = fold_batch_norms(network.float(), example())
    network.to(dtype=dtypes[precision])
    for parameter in network.parameters():
        if parameter.ndim == (5 if memory_format is torch.channels_last_3d else 4):
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
    return network, dtypes[precision]


def fold_batch_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `network` whose batch normalisations are part of the convolutions before them.

    A network that cannot be traced, has no batch normalisation or whose outputs for `example`
    would change by more than 1e-4 (of the largest output, where that exceeds 1) comes back as it
    is.

    Args:
        network: in evaluation mode, float32.
        example: an input of it.
    """
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
        return network
    try:
        nodes = list(_Adjacency().trace(network).nodes)
    except Exception:  # control flow on values; whatever the network does is then left alone
        return network
    folded = copy.deepcopy(network)
    calls = [node.target for node in nodes if node.op == "call_module"]
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, torch.fx.Node) or before.op != "call_module":
            continue
        if len(before.users) > 1 or max(map(calls.count, (node.target, before.target))) > 1:
            continue
        norm = folded.get_submodule(str(node.target))
        convolution = folded.get_submodule(str(before.target))
        if not (
            isinstance(convolution, _CONVOLUTIONS)
            and isinstance(norm, nn.modules.batchnorm._BatchNorm)
            and norm.track_running_stats
        ):
            continue
        folded.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
        # timm's normalisations bring their activation with them
        rest = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
        rest = [module for module in rest if not isinstance(module, nn.Identity)]
        folded.set_submodule(
            str(node.target), rest[0] if len(rest) == 1 else nn.Sequential(*rest)
        )
    with torch.no_grad():
        example = example.to(next(network.parameters()).device)
        expected, got = network(example), folded(example)
    tolerance = _FOLD_TOLERANCE * max(1.0, float(expected.abs().max()))
    return folded if float((expected - got).abs().max()) <= tolerance else network


def load_weights(network: nn.Module, weights: str | Path, *, ignore: Sequence[str] = ()) -> None:
    """Load a network's weights from a safetensors file.

    Args:
        network: filled in place; values take on its dtypes.
        weights: a file, a folder that holds `model.safetensors`, or the hub id of such a folder,
            which is then downloaded.
        ignore: prefixes of tensors that the file may hold and the network does without.

    Raises:
        ModelError: the file is missing, is no safetensors, or does not fit the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _weights_file(weights)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"weights {path} are no safetensors file: {error}") from error
    own = network.state_dict()
    tensors = {
        name: tensor for name, tensor in tensors.items()
        if name in own or not name.startswith(tuple(ignore))
    }
    # counters of training that files leave out at will
    missing = [n for n in own if n not in tensors and not n.endswith("num_batches_tracked")]
    extra = [name for name in tensors if name not in own]
    for what, names in (("lack", missing), ("hold the unknown", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(f"weights {path} {what} tensor {names[0]}{more}: another network's?")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise ModelError(
                f"weights {path}: tensor {name} has shape {tuple(tensor.shape)}, the network "
                f"wants {tuple(own[name].shape)}"
            )
    network.load_state_dict(tensors, strict=False)


def _weights_file(weights: str | Path) -> Path:
    path = Path(weights).expanduser()
    if path.is_dir():
        path = path / "model.safetensors"
    elif not path.exists() and not path.suffix and _HUB_ID.match(str(weights)):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(str(weights), "model.safetensors"))
        except Exception as error:  # its errors have no common base
            raise ModelError(
                f"weights {weights}: no such file, and no download from the hub: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not path.exists():
        raise ModelError(f"weights {path}: there is no such file")
    if path.suffix != ".safetensors":
        raise ModelError(f"weights {path}: only safetensors files are read; convert it first")
    return path


def load_backbone(
    manager: PluginManager, name: str, weights: str | Path | None = None, **arguments: Any
) -> Backbone:
    """The backbone that a plugin declares as `name`.

    Args:
        manager: knows the plugins.
        name: a `BackboneSpec`'s name; `family/variant`, such as `timm/resnet18`, for a family's.
        weights: path or hub id of the weights; None for the backbone's own default.
        arguments: its further arguments, such as `pooling`.

    Raises:
        UsageError: there is no such backbone.
        ModelError: it cannot be built: the message says why.
    """
    declared, variant = manager.get_backbone(name)
    spec = declared.spec
    if spec.prefix:
        if variant is None and weights is None:
            raise UsageError(f"backbone {name} is a family: write {name}/VARIANT")
        arguments = {"variant": variant, **arguments}
    factory = cast("Callable[..., Any]", load_object(spec.factory))
    try:
        inspect.signature(factory).bind(weights, **arguments)
    except TypeError as error:
        raise ModelError(f"backbone {name}: {error}") from error
    try:
        backbone = factory(weights, **arguments)
    except VbkitError as error:
        raise ModelError(f"backbone {name}: {error}") from error
    except Exception as error:
        raise ModelError(f"backbone {name}: {type(error).__name__}: {error}") from error
    if not isinstance(backbone, Backbone):
        raise ModelError(f"backbone {name}: {spec.factory} gave a {type(backbone).__name__}")
    return backbone
