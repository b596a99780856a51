from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vbkit.errors import ModelError, UsageError
from vbkit.model.backbones import (
    Backbone,
    ImageBackbone,
    VideoBackbone,
    fold_batch_norms,
    load_backbone,
    load_weights,
)
from vbkit.plugins import PluginManager

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    yield
    torch.set_grad_enabled(True)


@pytest.fixture(scope="module")
def manager() -> PluginManager:
    return PluginManager()


def make_clips(clips: int, frames: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures, as videos are, each different."""
    generator = np.random.default_rng(seed)
    pictures = []
    for _ in range(clips * frames):
        small = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pictures.append(np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(pictures)).unflatten(0, (clips, frames))


def randomise(network: nn.Module) -> nn.Module:
    """Give batch normalisations statistics that a trained network could have."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return network.eval()


def save(network: nn.Module, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def normalised(frames: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W), as torchvision does it."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255
    return torchvision.transforms.functional.normalize(pixels, mean, std)


# The base classes


class Means(nn.Module):
    """Mean of each channel: features whose values are known."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3))


def means(**arguments: Any) -> ImageBackbone:
    given = {"width": 3, "image_size": 8, "mean": HALF, "std": HALF, **arguments}
    return ImageBackbone(Means(), **given)


def test_pooling_over_frames() -> None:
    clips = torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8)
    clips[1, ::2] = 255
    backbone = means()
    assert backbone.dim == 3
    close = {"atol": 1e-6, "rtol": 0.0}
    expected = torch.tensor([[-1.0] * 3 + [0.0] * 3, [0.0] * 3 + [1.0] * 3])
    torch.testing.assert_close(backbone(clips), expected[:, :3], **close)
    backbone = means(pooling="mean_std")
    assert backbone.dim == 6
    torch.testing.assert_close(backbone(clips), expected, **close)
    torch.testing.assert_close(backbone(clips[:1, :1]), expected[:1], **close)
    assert backbone(clips[:0]).shape == (0, 6)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 15), (14, 8), (8, 100)])
def test_crop_takes_the_centre(height: int, width: int) -> None:
    frames = make_clips(1, 2, height, width)[0]
    expected = torchvision.transforms.functional.center_crop(frames.permute(0, 3, 1, 2), [8, 8])
    square = means().square(frames)
    assert torch.equal(square, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize(("height", "width"), [(5, 5), (4, 9), (30, 17), (1, 300)])
def test_frames_of_any_size_become_squares(height: int, width: int) -> None:
    frames = make_clips(1, 2, height, width)[0]
    for fit in ("crop", "squash"):
        square = means(fit=fit).square(frames)
        assert (square.shape, square.dtype) == ((2, 8, 8, 3), torch.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_squash_resizes_as_torchvision_does(interpolation: str) -> None:
    frames = make_clips(1, 2, 24, 40)[0]
    expected = torchvision.transforms.v2.functional.resize(
        frames.permute(0, 3, 1, 2), [8, 8], antialias=True,
        interpolation=torchvision.transforms.InterpolationMode(interpolation),
    ).permute(0, 2, 3, 1)
    square = means(fit="squash", interpolation=interpolation).square(frames)
    assert torch.equal(square, expected)


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.zeros(1, 4, 8, 8, 3), "uint8"),
        (torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "clips must be"),
        (torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8), "clips must be"),
        (torch.zeros(1, 0, 8, 8, 3, dtype=torch.uint8), "no pictures"),
    ],
)
def test_wrong_clips_are_refused(clips: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        means()(clips)


@pytest.mark.parametrize(
    "arguments", [{"pooling": "max"}, {"fit": "pad"}, {"interpolation": "cubic"}, {"image_size": 0}]
)
def test_wrong_settings_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=re_of(next(iter(arguments)))):
        means(**arguments)


def re_of(name: str) -> str:
    return name.replace("_", ".")


def test_precision_is_checked() -> None:
    with pytest.raises(ModelError, match="precision 'float16'"):
        means().prepare("cpu", "float16")  # type: ignore[arg-type]


# Folding


@pytest.mark.parametrize(
    ("name", "left"), [("test_efficientnet", 0), ("test_resnet", 0), ("test_vit", 0),
                       ("mobilenetv3_small_050", 0)]
)
def test_batch_norms_are_folded_and_outputs_kept(name: str, left: int) -> None:
    network = randomise(timm.create_model(name, num_classes=0))
    example = torch.randn(2, 3, *timm.get_pretrained_cfg(name).input_size[1:])
    folded = fold_batch_norms(network, example)
    norms = [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == left
    torch.testing.assert_close(folded(example), network(example), atol=1e-4, rtol=1e-4)


def test_a_norm_that_cannot_be_folded_is_left_alone() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            pixels = self.conv(pixels)
            return (self.norm(pixels) + pixels).mean((2, 3))

    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.inner(pixels if pixels.sum() > 0 else -pixels).mean((2, 3))

    example = torch.randn(2, 3, 8, 8)
    for network in map(randomise, (Branches(), Untraceable())):
        expected = network(example)
        folded = fold_batch_norms(network, example)
        assert any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        torch.testing.assert_close(folded(example), expected)


# Each backbone against its own library


def test_declaring_imports_no_torch() -> None:
    code = (
        "import sys, vbkit_backbones; assert len(list(vbkit_backbones.vbkit_backbones())) == 6\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def compare(
    backbone: Backbone, clips: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5
) -> None:
    """Outputs equal the library's, before and after preparation, and nearly so in bfloat16."""
    torch.testing.assert_close(backbone(clips), expected, atol=tolerance, rtol=tolerance)
    prepared = backbone.prepare("cpu", "float32")
    assert prepared is backbone
    got = prepared(clips)
    assert (got.shape, got.dtype) == ((len(clips), backbone.dim), torch.float32)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    got = backbone.prepare("cpu", "bfloat16")(clips)
    assert got.dtype == torch.float32
    assert nn.functional.cosine_similarity(got, expected).min() > 0.99


def test_efficientnet_lite0(manager: PluginManager, tmp_path: Path) -> None:
    own = randomise(timm.create_model("tf_efficientnet_lite0", num_classes=10))
    weights = save(own, tmp_path / "lite0.safetensors")
    backbone = load_backbone(manager, "efficientnet_lite0", weights, pooling="mean_std")
    assert (backbone.dim, backbone.image_size, backbone.frames_per_clip) == (2560, 224, 4)
    assert backbone.fit == "crop"
    clips = make_clips(2, 2, 224, 260)
    own.reset_classifier(0)
    frames = own(normalised(clips[..., 18:242, :].flatten(0, 1), HALF, HALF)).unflatten(0, (2, 2))
    expected = torch.cat((frames.mean(1), frames.std(1, unbiased=False)), 1)
    compare(backbone, clips, expected)


def test_resnet50(manager: PluginManager, tmp_path: Path) -> None:
    own = randomise(torchvision.models.resnet50())
    weights = save(own, tmp_path / "model.safetensors")
    backbone = load_backbone(manager, "resnet50", tmp_path, image_size=64)
    assert weights.parent == tmp_path
    clips = make_clips(2, 1, 64, 64)
    own.fc = nn.Identity()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    compare(backbone, clips, own(normalised(clips.flatten(0, 1), mean, std)), 1e-4)
    assert backbone.dim == 2048


@pytest.mark.slow
def test_s3d(manager: PluginManager, tmp_path: Path) -> None:
    own = randomise(torchvision.models.video.s3d())
    backbone = load_backbone(manager, "s3d", save(own, tmp_path / "s3d.safetensors"))
    assert isinstance(backbone, VideoBackbone)
    assert (backbone.dim, backbone.image_size, backbone.frames_per_clip) == (1024, 224, 16)
    clips = make_clips(1, 16, 224, 224)
    mean, std = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
    pixels = normalised(clips[0], mean, std).transpose(0, 1)[None]
    features = backbone(clips)
    # the library averages after its classifier, which is linear
    logits = own.classifier(features[:, :, None, None, None]).flatten(1)
    torch.testing.assert_close(logits, own(pixels), atol=1e-5, rtol=1e-5)
    compare(backbone, clips, features.clone())
    with pytest.raises(ValueError, match="wants 16 frames a clip, got 8"):
        backbone(clips[:, :8])


def test_s3d_needs_enough_frames(manager: PluginManager) -> None:
    with pytest.raises(ModelError, match="at least 14 frames"):
        load_backbone(manager, "s3d", "x.safetensors", frames_per_clip=8)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_timm(manager: PluginManager, tmp_path: Path, name: str) -> None:
    own = randomise(timm.create_model(name, num_classes=5))
    weights = save(own, tmp_path / "w.safetensors")
    backbone = load_backbone(manager, f"timm/{name}", weights)
    own.reset_classifier(0)
    data = timm.data.resolve_model_data_config(own)
    assert backbone.image_size == data["input_size"][1]
    size = backbone.image_size
    clips = make_clips(2, 1, size, size)
    compare(backbone, clips, own(normalised(clips.flatten(0, 1), data["mean"], data["std"])))


TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "patch_size": 8}


def test_clip(manager: PluginManager, tmp_path: Path) -> None:
    own = CLIPVisionModelWithProjection(
        CLIPVisionConfig(image_size=32, projection_dim=24, **TINY)
    ).eval()
    own.save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 32},
                                   crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    clips = make_clips(3, 1, 32, 50)
    pixels = processor(images=list(clips.flatten(0, 1).numpy()), return_tensors="pt")
    for name, weights in ((f"clip/{tmp_path}", None), ("clip", tmp_path)):
        backbone = load_backbone(manager, name, weights)
        assert (backbone.dim, backbone.image_size, backbone.fit) == (24, 32, "crop")
        compare(backbone, clips, own(**pixels).image_embeds)


def test_siglip(manager: PluginManager, tmp_path: Path) -> None:
    own = SiglipVisionModel(SiglipVisionConfig(image_size=32, **TINY)).eval()
    own.save_pretrained(tmp_path)
    processor = SiglipImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    clips = make_clips(3, 1, 32, 50)
    backbone = load_backbone(manager, f"siglip/{tmp_path}")
    assert (backbone.dim, backbone.image_size, backbone.fit) == (32, 32, "squash")
    pixels = processor(images=list(clips.flatten(0, 1).numpy()), return_tensors="pt")
    compare(backbone, clips, own(**pixels).pooler_output)


# A clip does not depend on its neighbours


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["test_efficientnet", "mobilenetv3_small_050"])
def test_features_do_not_depend_on_the_batch(
    manager: PluginManager, tmp_path: Path, name: str, precision: Any
) -> None:
    own = randomise(timm.create_model(name, num_classes=0))
    backbone = load_backbone(manager, f"timm/{name}", save(own, tmp_path / "w.safetensors"),
                             pooling="mean_std").prepare("cpu", precision)
    clips = make_clips(7, 4, backbone.image_size, backbone.image_size)
    together = backbone(clips)
    for size in (1, 2, 3, 5):
        apart = torch.cat([backbone(part) for part in clips.split(size)])
        torch.testing.assert_close(apart, together, atol=1e-4, rtol=0)
    torch.testing.assert_close(backbone(clips.flip(0)), together.flip(0), atol=1e-4, rtol=0)


# Errors


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    good = save(network, tmp_path / "good.safetensors")
    load_weights(network, good)

    def attempt(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, tmp_path / name)
        load_weights(network, tmp_path / name, ignore=("head.",))

    state = network.state_dict()
    half = {name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in state.items() if name != "1.num_batches_tracked"}
    attempt("half.safetensors", {**half, "head.weight": torch.zeros(1)})
    assert network[0].weight.dtype == torch.float32
    with pytest.raises(ModelError, match=r"lack tensor 0\.weight"):
        attempt("lack.safetensors", {k: v for k, v in state.items() if k != "0.weight"})
    with pytest.raises(ModelError, match=r"unknown tensor other and 1 more"):
        attempt("more.safetensors", {**state, "other": torch.zeros(1), "third": torch.zeros(1)})
    with pytest.raises(ModelError, match=r"0\.bias has shape \(4,\), the network wants \(3,\)"):
        attempt("shape.safetensors", {**state, "0.bias": torch.zeros(4)})


@pytest.mark.parametrize("name", ["nowhere.safetensors", "nowhere/deep/er", "folder", "w.pth"])
def test_weights_that_are_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    torch.save({}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"no such file|only safetensors"):
        load_weights(nn.Linear(2, 3), tmp_path / name)


def test_weights_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    for content in (b"", b"not a safetensors file", json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="are no safetensors file"):
            load_weights(nn.Linear(2, 3), path)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("resnet_50", {}, UsageError, "unknown backbone 'resnet_50'; did you mean 'resnet50'"),
        ("timm", {}, UsageError, "write timm/VARIANT"),
        ("timm/resnet9999", {"weights": "x.safetensors"}, ModelError, "no network 'resnet9999'"),
        ("resnet50/x", {}, UsageError, "has no variants"),
        ("resnet50", {"weights": "/nowhere.safetensors"}, ModelError, "no such file"),
        ("resnet50", {"weights": "x", "depth": 3}, ModelError, "depth"),
        ("resnet50", {"weights": "/x.safetensors", "pooling": "max"}, ModelError, "resnet50"),
        ("clip//nowhere", {}, ModelError, "backbone clip//nowhere: "),
    ],
)
def test_what_cannot_be_loaded(
    manager: PluginManager, name: str, arguments: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_backbone(manager, name, **arguments)
    assert "\n" not in str(caught.value)


def test_a_tower_with_foreign_weights_is_refused(manager: PluginManager, tmp_path: Path) -> None:
    CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=32, **TINY)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="processor"):
        load_backbone(manager, f"clip/{tmp_path}")
    CLIPImageProcessor().save_pretrained(tmp_path)
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="lack tensor"):
        load_backbone(manager, f"clip/{tmp_path}")
