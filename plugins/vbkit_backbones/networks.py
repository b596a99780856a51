"""Convolutional and other networks of timm and torchvision as backbones."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vbkit.errors import ModelError
from vbkit.model.backbones import (
    Backbone,
    Fit,
    ImageBackbone,
    Pooling,
    Spatial,
    SpatialPool,
    VideoBackbone,
    load_weights,
)

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
_LITE = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_S3D_MIN_FRAMES = 14
"""Fewer leave less than the two time steps that its average pooling spans."""


def efficientnet_lite0(
    weights: str | Path | None = None,
    *,
    frames_per_clip: int = 4,
    pooling: Pooling = "mean",
    spatial: Spatial = "mean",
    image_size: int = 224,
    fit: Fit = "crop",
) -> Backbone:
    """EfficientNet-Lite0 (Tan and Le, ICML 2019, as adapted by the TensorFlow authors).

    Args:
        weights: safetensors with timm's names of `tf_efficientnet_lite0`, or a hub id; None lets
            timm download its ImageNet weights.
        frames_per_clip, pooling, image_size, fit: as in `ImageBackbone`. Deviations over the frames
            are those of the 1280 means over space.
        spatial: `"mean"` over a frame's feature maps gives 1280 features, `"mean_max_std"` adds
            their maximum and deviation (`SpatialPool`): 3840.
    """
    if spatial not in ("mean", "mean_max_std"):
        raise ModelError(f"spatial is {spatial!r}, but must be mean or mean_max_std")
    network = _timm_create("tf_efficientnet_lite0", pretrained=weights is None)
    if weights is not None:
        load_weights(network, weights, ignore=("classifier.",))
    width = 1280
    if spatial == "mean_max_std":
        network.global_pool = SpatialPool()
        width *= 3
    mean, std = _LITE
    return ImageBackbone(
        network, width=width, image_size=image_size, mean=mean, std=std,
        frames_per_clip=frames_per_clip, pooling=pooling, deviations=1280, fit=fit,
        interpolation="bicubic",
    )


def resnet50(
    weights: str | Path | None = None,
    *,
    frames_per_clip: int = 4,
    pooling: Pooling = "mean",
    image_size: int = 224,
) -> Backbone:
    """ResNet-50 (He et al., CVPR 2016).

    Args:
        weights: safetensors with torchvision's names; None lets torchvision download its default
            ImageNet weights.
        frames_per_clip, pooling, image_size: as in `ImageBackbone`.
    """
    import torchvision

    default = torchvision.models.ResNet50_Weights.DEFAULT if weights is None else None
    network = torchvision.models.resnet50(weights=default)
    network.fc = nn.Identity()
    if weights is not None:
        load_weights(network, weights, ignore=("fc.",))
    mean, std = _IMAGENET
    return ImageBackbone(
        network, width=2048, image_size=image_size, mean=mean, std=std,
        frames_per_clip=frames_per_clip, pooling=pooling,
    )


class _S3DFeatures(nn.Module):
    """S3D up to its classifier, mean over what is left of time and space."""

    def __init__(self, s3d: Any) -> None:
        super().__init__()
        self.features: nn.Module = s3d.features
        self.avgpool: nn.Module = s3d.avgpool

    def forward(self, clips: Tensor) -> Tensor:
        features = self.features(clips).float()  # this pooling knows no bfloat16 on a CPU
        return self.avgpool(features).mean((2, 3, 4))


def s3d(
    weights: str | Path | None = None,
    *,
    frames_per_clip: int = 16,
    image_size: int = 224,
) -> Backbone:
    """S3D (Xie et al., ECCV 2018), the backbone of VideoBERT (Sun et al., ICCV 2019).

    Args:
        weights: safetensors with torchvision's names; None lets torchvision download its
            Kinetics-400 weights.
        frames_per_clip: at least 14.
        image_size: px, at least 224.
    """
    import torchvision

    if frames_per_clip < _S3D_MIN_FRAMES or image_size < 224:
        raise ModelError(
            f"s3d needs at least {_S3D_MIN_FRAMES} frames a clip of 224 px, got "
            f"{frames_per_clip} of {image_size} px"
        )
    default = torchvision.models.video.S3D_Weights.DEFAULT if weights is None else None
    network = _S3DFeatures(torchvision.models.video.s3d(weights=default))
    if weights is not None:
        load_weights(network, weights, ignore=("classifier.",))
    mean, std = _KINETICS
    return VideoBackbone(
        network, dim=1024, image_size=image_size, mean=mean, std=std,
        frames_per_clip=frames_per_clip,
    )


def timm_network(
    weights: str | Path | None = None,
    *,
    variant: str | None,
    frames_per_clip: int = 4,
    pooling: Pooling = "mean",
    image_size: int | None = None,
) -> Backbone:
    """An image network of timm, with its own mean, standard deviation and image size.

    Args:
        weights: safetensors with timm's names, or a hub id; None lets timm download its own.
        variant: timm's name of the network, such as `resnet18.a1_in1k`.
        frames_per_clip, pooling: as in `ImageBackbone`.
        image_size: px; None for what its weights were trained or tested at.
    """
    import timm

    if variant is None:
        raise ModelError("name the network, as timm/NAME")
    network = _timm_create(variant, pretrained=weights is None)
    if weights is not None:
        configuration = timm.get_pretrained_cfg(variant)
        heads = (configuration.classifier if configuration is not None else None) or "fc"
        heads = [heads] if isinstance(heads, str) else list(heads)
        load_weights(network, weights, ignore=[f"{head}." for head in heads])
    data = timm.data.resolve_model_data_config(network)
    return ImageBackbone(
        network, width=getattr(network, "head_hidden_size", None) or network.num_features,
        image_size=image_size or data["input_size"][-1], mean=data["mean"], std=data["std"],
        frames_per_clip=frames_per_clip, pooling=pooling,
        fit="squash" if data.get("crop_mode") == "squash" else "crop",
        interpolation="bilinear" if data["interpolation"] == "bilinear" else "bicubic",
    )


def _timm_create(name: str, pretrained: bool) -> Any:
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except RuntimeError as error:
        if "Unknown model" not in str(error):
            raise
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ModelError(f"timm {timm.__version__} has no network {name!r}{hint}") from error
