"""Weights as int8 with a scale for each row: half the bytes of float16, and no import of torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCALE", "from_int8", "to_int8"]

SCALE = ".scale"
"""What the name of an int8 tensor's scales ends in."""


def to_int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A floating tensor (N, …) as int8 of the same shape, and the scales (N,) float32 of its rows.

    A row is the int8 times its scale, off by at most half a scale, 1/254 of the row's largest.
    """
    rows = tensor.float().flatten(1)
    scale = (rows.abs().amax(1) / 127).clamp(min=1e-12)
    return (rows / scale[:, None]).round().char().view_as(tensor), scale


def from_int8(tensor: Tensor, scale: Tensor) -> Tensor:
    """What `to_int8` was given, float32.

    Raises:
        ValueError: `scale` has another shape than (N,).
    """
    if scale.shape != tensor.shape[:1]:
        raise ValueError(f"scales have shape {tuple(scale.shape)}, but must have "
                         f"({tensor.shape[0] if tensor.ndim else 1},)")
    return tensor.float() * scale.float().view(-1, *(1,) * (tensor.ndim - 1))
