"""What heads are set up with, branches of `mini`'s text encoder among it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from vbkit import Engine
from vbkit.engine.bundle import Bundle
from vbkit.heads import HeadContext


@cache
def engine() -> Engine:
    return Engine("mini", device="cpu", cache=None)


def bundle() -> Bundle:
    return engine().bundle


def embed(texts: Sequence[str]) -> Tensor:
    """`segment_embeddings` of texts."""
    return engine().encode_text(texts)


def context(**given: Any) -> HeadContext:
    """A context of a head that reads text through a branch of its own."""
    return HeadContext(text_branch=bundle().text_branch, **given)
