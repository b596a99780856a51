"""What heads are set up with, branches of `mini`'s text encoder among it."""

from __future__ import annotations

from functools import cache
from typing import Any

from vbkit import Engine
from vbkit.engine.bundle import Bundle
from vbkit.heads import HeadContext


@cache
def bundle() -> Bundle:
    return Engine("mini", device="cpu", cache=None).bundle


def context(**given: Any) -> HeadContext:
    """A context of a head that reads text through a branch of its own."""
    return HeadContext(text_branch=bundle().text_branch, **given)
