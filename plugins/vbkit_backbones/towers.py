"""Vision towers of CLIP and SigLIP as backbones, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vbkit.errors import ModelError
from vbkit.model.backbones import Backbone, Fit, ImageBackbone, Interpolation, Pooling


class _Tower(nn.Module):
    """A vision model of transformers, reduced to one of its outputs."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, pixels: Tensor) -> Tensor:
        return getattr(self.model(pixel_values=pixels), self.output)


def clip(
    weights: str | Path | None = None,
    *,
    variant: str | None,
    frames_per_clip: int = 4,
    pooling: Pooling = "mean",
) -> Backbone:
    """The vision tower and projection of a CLIP (Radford et al., ICML 2021).

    Args:
        weights: a folder that `save_pretrained` wrote, or a hub id; None for `variant`.
        variant: the same, as part of the backbone's name.
        frames_per_clip, pooling: as in `ImageBackbone`.
    """
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    location = _location("clip", weights, variant)
    model = _load(CLIPVisionModelWithProjection, location, use_safetensors=True)
    return _backbone(
        model, "image_embeds", model.config.projection_dim,
        _load(CLIPImageProcessor, location), frames_per_clip, pooling,
    )


def siglip(
    weights: str | Path | None = None,
    *,
    variant: str | None,
    frames_per_clip: int = 4,
    pooling: Pooling = "mean",
) -> Backbone:
    """The vision tower of a SigLIP (Zhai et al., ICCV 2023), attention-pooled.

    Args:
        weights, variant, frames_per_clip, pooling: as for `clip`.
    """
    from transformers import SiglipImageProcessor, SiglipVisionModel

    location = _location("siglip", weights, variant)
    model = _load(SiglipVisionModel, location, use_safetensors=True)
    return _backbone(
        model, "pooler_output", model.config.hidden_size,
        _load(SiglipImageProcessor, location), frames_per_clip, pooling,
    )


def _location(family: str, weights: str | Path | None, variant: str | None) -> str:
    location = weights if weights is not None else variant
    if location is None:
        raise ModelError(f"name a folder or a hub id, as {family}/PATH")
    return str(location)


def _load(kind: Any, location: str, **arguments: Any) -> Any:
    """`kind.from_pretrained`, in float32, refusing weights that do not fill the model."""
    weights = "use_safetensors" in arguments
    if weights:
        arguments["dtype"] = "float32"
        arguments["output_loading_info"] = True
    try:
        loaded = kind.from_pretrained(location, **arguments)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{location}: {' '.join(str(error).split())}") from error
    if not weights:
        return loaded
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{location}: the weights lack tensor {missing[0]}")
    return model


def _backbone(
    model: Any, output: str, width: int, processor: Any, frames_per_clip: int, pooling: Pooling
) -> Backbone:
    """The tower with the settings of its `preprocessor_config.json`."""
    size = model.config.image_size
    fit: Fit = "crop" if processor.do_center_crop else "squash"
    interpolation: Interpolation = "bilinear" if int(processor.resample) == 2 else "bicubic"
    return ImageBackbone(
        _Tower(model, output), width=width, image_size=size, mean=processor.image_mean,
        std=processor.image_std, frames_per_clip=frames_per_clip, pooling=pooling, fit=fit,
        interpolation=interpolation,
    )
