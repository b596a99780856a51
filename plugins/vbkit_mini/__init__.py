"""The embedded model `mini`: works without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vbkit import ModelSpec, hookimpl

MODEL = Path(__file__).parent / "model"


@hookimpl
def vbkit_models() -> Iterator[ModelSpec]:
    yield ModelSpec(
        name="mini",
        summary="Small VideoBERT that comes with vbkit: EfficientNet-Lite0 and MiniLM, English.",
        location=str(MODEL),
        licence="Apache-2.0 code and base weights; trained on Flickr8k (research use)",
    )
