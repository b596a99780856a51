"""Every task that comes with vbkit keeps the contract that third parties' are held to."""

from __future__ import annotations

from typing import Any

import pytest

from vbkit.plugins import default_manager
from vbkit.testing import check_task, checks_of

# Here a declared output that the head never reads is an error.
pytestmark = pytest.mark.filterwarnings("error:.*never reads:vbkit.testing.ContractWarning")

SHIPPED = [task.spec.name for task in default_manager().tasks() if task.distribution == "vbkit"]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "classification": {"options": {"labels": "a street, a meadow, a kitchen", "clips": True},
                       "labels": [{"label": "street"}, {"label": "meadow"}]},
    "sentiment": {"labels": [{"label": ["negative", "positive", "neutral"] * 2},
                             {"label": ["positive", "neutral", "negative"] * 2}]},
}


@pytest.mark.parametrize(("task", "check"), [
    (task, check) for task in SHIPPED for check in checks_of(f"vbkit:{task}")])
def test_shipped_task(task: str, check: str) -> None:
    check_task(f"vbkit:{task}", checks=check, **ARGUMENTS.get(task, {}))
