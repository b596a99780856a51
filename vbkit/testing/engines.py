"""An isolated plugin manager, and an engine that is loaded once a process."""

from __future__ import annotations

import copy
from functools import cache
from typing import TYPE_CHECKING, Any

from vbkit.plugins import PluginManager, default_manager

if TYPE_CHECKING:
    from vbkit.engine import Engine

__all__ = ["isolated_manager", "shared_engine"]


def isolated_manager(**plugins: Any) -> PluginManager:
    """A manager of vbkit's own plugins and of `plugins`, whatever else is installed.

    Args:
        plugins: modules or objects with hook implementations, by the name that they get.

    Raises:
        PluginError: one of them has failed; the message says how.
    """
    from importlib.metadata import distribution

    from vbkit.errors import PluginError
    from vbkit.hookspecs import ENTRY_POINT_GROUP

    points = distribution("vbkit").entry_points.select(group=ENTRY_POINT_GROUP)
    manager = PluginManager(entry_points=points)
    for name, plugin in plugins.items():
        record = manager.register(plugin, name)
        if record.status == "failed":
            raise PluginError(f"plugin {record.label} failed: {record.error}")
    return manager


def shared_engine(manager: PluginManager | None = None) -> Engine:
    """An engine with `mini` on the CPU, whose weights are loaded once a process.

    Args:
        manager: its plugins; None for the installed ones.
    """
    engine = copy.copy(_loaded())
    engine.manager = manager if manager is not None else default_manager()
    return engine


@cache
def _loaded() -> Engine:
    import vbkit

    return vbkit.Engine(model="mini", device="cpu", manager=isolated_manager())
