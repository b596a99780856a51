"""VideoBERT with the conventions of Hugging Face transformers."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "VideoBertConfig": "vbkit.model.configuration",
    "VideoBertModel": "vbkit.model.modeling",
    "VideoBertOutput": "vbkit.model.modeling",
    "VideoBertForConditionalGeneration": "vbkit.model.generation",
    "VideoBertForConditionalGenerationOutput": "vbkit.model.generation",
    "VideoBertForPreTraining": "vbkit.model.modeling",
    "VideoBertForPreTrainingOutput": "vbkit.model.modeling",
    "VideoBertProcessor": "vbkit.model.processing",
}

__all__ = [
    "VideoBertConfig",
    "VideoBertForConditionalGeneration",
    "VideoBertForConditionalGenerationOutput",
    "VideoBertForPreTraining",
    "VideoBertForPreTrainingOutput",
    "VideoBertModel",
    "VideoBertOutput",
    "VideoBertProcessor",
]

if TYPE_CHECKING:
    from vbkit.model.configuration import VideoBertConfig
    from vbkit.model.generation import (
        VideoBertForConditionalGeneration,
        VideoBertForConditionalGenerationOutput,
    )
    from vbkit.model.modeling import (
        VideoBertForPreTraining,
        VideoBertForPreTrainingOutput,
        VideoBertModel,
        VideoBertOutput,
    )
    from vbkit.model.processing import VideoBertProcessor


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'vbkit.model' has no attribute {name!r}")
    _register()
    return getattr(import_module(_LAZY[name]), name)


def _register() -> None:
    """Make `AutoConfig`, `AutoModel` and `AutoProcessor` know VideoBERT."""
    from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

    from vbkit.model.configuration import VideoBertConfig
    from vbkit.model.modeling import VideoBertForPreTraining, VideoBertModel
    from vbkit.model.processing import VideoBertProcessor

    AutoConfig.register(VideoBertConfig.model_type, VideoBertConfig, exist_ok=True)
    AutoModel.register(VideoBertConfig, VideoBertModel, exist_ok=True)
    AutoModelForPreTraining.register(VideoBertConfig, VideoBertForPreTraining, exist_ok=True)
    AutoProcessor.register(VideoBertConfig, VideoBertProcessor, exist_ok=True)
