"""vbkit: tables out of videos.

One VideoBERT engine reads each video once; task heads, which are plugins, consume the outputs that
they share and write pandas tables. Importing this package imports neither torch nor pandas: what
needs them is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "BackboneSpec": "vbkit.specs",
    "Column": "vbkit.tables",
    "Engine": "vbkit.engine",
    "Example": "vbkit.heads",
    "Features": "vbkit.features",
    "FitOptions": "vbkit.heads",
    "FrameBatch": "vbkit.media.types",
    "Head": "vbkit.heads",
    "HeadContext": "vbkit.heads",
    "ModelSpec": "vbkit.specs",
    "NoOptions": "vbkit.specs",
    "TableSchema": "vbkit.tables",
    "TaskSpec": "vbkit.specs",
    "TranscriberSpec": "vbkit.specs",
    "VbkitError": "vbkit.errors",
    "hookimpl": "vbkit.hookspecs",
    "list_tables": "vbkit.store",
    "load_features": "vbkit.engine.stored",
    "load_table": "vbkit.store",
    "option": "vbkit.specs",
}

__all__ = [
    "BackboneSpec",
    "Column",
    "Engine",
    "Example",
    "Features",
    "FitOptions",
    "FrameBatch",
    "Head",
    "HeadContext",
    "ModelSpec",
    "NoOptions",
    "TableSchema",
    "TaskSpec",
    "TranscriberSpec",
    "VbkitError",
    "__version__",
    "hookimpl",
    "list_tables",
    "load_features",
    "load_table",
    "option",
]

if TYPE_CHECKING:
    from vbkit.engine import Engine
    from vbkit.engine.stored import load_features
    from vbkit.errors import VbkitError
    from vbkit.features import Features
    from vbkit.heads import Example, FitOptions, Head, HeadContext
    from vbkit.hookspecs import hookimpl
    from vbkit.media.types import FrameBatch
    from vbkit.specs import (
        BackboneSpec,
        ModelSpec,
        NoOptions,
        TaskSpec,
        TranscriberSpec,
        option,
    )
    from vbkit.store import list_tables, load_table
    from vbkit.tables import Column, TableSchema


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vbkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
