"""The parts of a model that an evaluation needs, or an error that says which is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vbkit.errors import ModelError

if TYPE_CHECKING:
    from vbkit.engine.bundle import Bundle
    from vbkit.model import VideoBertForPreTraining

__all__ = ["check_decoder", "pretraining_model"]

_PARTS = {"word_head": "word head, which predicts masked words",
          "alignment_head": "alignment head, which tells whether text and video belong together"}


def pretraining_model(bundle: Bundle, part: str) -> VideoBertForPreTraining:
    """The model with its pretraining heads.

    Args:
        bundle: the model.
        part: the head that is needed, "word_head" or "alignment_head".

    Raises:
        ModelError: its weights do not have that head.
    """
    if not bundle.has(part):
        raise ModelError(f"model {bundle.name} has no {_PARTS[part]}: its model.safetensors came "
                         "without; train one with vbkit pretrain, or take another --model")
    return bundle.pretraining


def check_decoder(bundle: Bundle) -> None:
    """Raise where a model cannot write captions.

    Raises:
        ModelError: it has no decoder.
    """
    if bundle.generator is None:
        raise ModelError(f"model {bundle.name} has no decoder, so it writes no captions; train one "
                         "with vbkit pretrain, or take another --model")
