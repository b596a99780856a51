"""The engine: sources in, shared encoder outputs and result tables out.

    bundle    a model folder, loaded
    windows   how long inputs are cut for the joint encoder
    encoder   clip features and segments into `Features` outputs
    cache     encoder outputs on disk
    lanes     the backbone on several batches at once
    pipeline  decode, backbone and encoder over many sources at once
    run       task heads over `Features`, and their tables into the results folder
    engine    `Engine`, the face of all this
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Engine", "RunResult"]

if TYPE_CHECKING:
    from vbkit.engine.engine import Engine
    from vbkit.engine.run import RunResult


def __getattr__(name: str) -> Any:
    if name in ("Engine", "RunResult"):
        from vbkit.engine import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'vbkit.engine' has no attribute {name!r}")
