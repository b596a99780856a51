"""Pretraining: a corpus of videos and texts, the examples made of it, and the training loop."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "BatchStream": "vbkit.training.examples",
    "Corpus": "vbkit.training.corpus",
    "CorpusItem": "vbkit.training.corpus",
    "ExampleOptions": "vbkit.training.config",
    "PretrainConfig": "vbkit.training.config",
    "build_corpus": "vbkit.training.build",
    "pretrain": "vbkit.training.pretraining",
    "write_corpus": "vbkit.training.corpus",
}

__all__ = [
    "BatchStream",
    "Corpus",
    "CorpusItem",
    "ExampleOptions",
    "PretrainConfig",
    "build_corpus",
    "pretrain",
    "write_corpus",
]

if TYPE_CHECKING:
    from vbkit.training.build import build_corpus
    from vbkit.training.config import ExampleOptions, PretrainConfig
    from vbkit.training.corpus import Corpus, CorpusItem, write_corpus
    from vbkit.training.examples import BatchStream
    from vbkit.training.pretraining import pretrain


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'vbkit.training' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
