"""Every task that comes with vbkit keeps the contract that third parties' are held to."""

from __future__ import annotations

from typing import Any

import pytest

from vbkit.plugins import default_manager
from vbkit.testing import ContractWarning, check_task, checks_of

# Here a declared output that the head never reads is an error.
pytestmark = pytest.mark.filterwarnings("error:.*never reads:vbkit.testing.ContractWarning")

SHIPPED = [task.spec.name for task in default_manager().tasks() if task.distribution == "vbkit"]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "classification": {"options": {"labels": "a street, a meadow, a kitchen", "clips": True},
                       "labels": [{"label": "street"}, {"label": "meadow"}]},
    # One for each of the five segments that the videos have.
    "sentiment": {"labels": [{"label": ["negative", "positive", "neutral", "neutral", "positive"]},
                             {"label": "positive"}, {"label": "negative"}]},
}


@pytest.mark.parametrize(("task", "check"), [
    (task, check) for task in SHIPPED for check in checks_of(f"vbkit:{task}")])
def test_shipped_task(task: str, check: str) -> None:
    arguments = ARGUMENTS.get(task, {})
    if (task, check) == ("classification", "needs"):  # a trained head reads them
        with pytest.warns(ContractWarning, match="never reads features.clip_features"):
            check_task(f"vbkit:{task}", checks=check, **arguments)
    else:
        check_task(f"vbkit:{task}", checks=check, **arguments)
