"""For the tests of plugins: made-up features, a real clip, and a check of a task's contract.

Installed with vbkit, this also is a pytest plugin, whose fixtures `vbkit.testing.plugin` describes.
Importing it imports neither torch nor pandas.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = [
    "CHECKS",
    "CLIP",
    "Contract",
    "ContractError",
    "ContractWarning",
    "ModelSizes",
    "check_task",
    "checks_of",
    "isolated_manager",
    "make_features",
    "shared_engine",
]

CLIP = Path(__file__).parent / "data" / "clip.mp4"
"""A real video of 4.5 s with a subtitle file beside it: a clip of a meadow, two of a street."""

_LAZY = {
    "CHECKS": "contract",
    "Contract": "contract",
    "ContractError": "contract",
    "ContractWarning": "contract",
    "ModelSizes": "made_up",
    "check_task": "contract",
    "checks_of": "contract",
    "isolated_manager": "engines",
    "make_features": "made_up",
    "shared_engine": "engines",
}

if TYPE_CHECKING:
    from vbkit.testing.contract import (
        CHECKS,
        Contract,
        ContractError,
        ContractWarning,
        check_task,
        checks_of,
    )
    from vbkit.testing.engines import isolated_manager, shared_engine
    from vbkit.testing.made_up import ModelSizes, make_features


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
