"""Visual backbones of torchvision, timm and transformers. Declaring them imports none of these."""

from __future__ import annotations

from collections.abc import Iterator

from vbkit import BackboneSpec, hookimpl


@hookimpl
def vbkit_backbones() -> Iterator[BackboneSpec]:
    yield BackboneSpec(
        "efficientnet_lite0",
        "EfficientNet-Lite0 (timm), 1280 features a frame, 224 px",
        "vbkit_backbones.networks:efficientnet_lite0",
    )
    yield BackboneSpec(
        "resnet50",
        "ResNet-50 (torchvision), 2048 features a frame, 224 px",
        "vbkit_backbones.networks:resnet50",
    )
    yield BackboneSpec(
        "s3d",
        "S3D (torchvision), VideoBERT's own: 1024 features of 16 frames, 224 px",
        "vbkit_backbones.networks:s3d",
    )
    yield BackboneSpec(
        "timm",
        "any image network of timm, as timm/NAME",
        "vbkit_backbones.networks:timm_network",
        prefix=True,
    )
    yield BackboneSpec(
        "clip",
        "vision tower of a CLIP, as clip/PATH or clip/HUB-ID",
        "vbkit_backbones.towers:clip",
        prefix=True,
    )
    yield BackboneSpec(
        "siglip",
        "vision tower of a SigLIP, as siglip/PATH or siglip/HUB-ID",
        "vbkit_backbones.towers:siglip",
        prefix=True,
    )
