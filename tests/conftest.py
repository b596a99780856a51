"""What the tests share: the sample clip and one engine with the real model."""

from __future__ import annotations

from pathlib import Path

import pytest

SAMPLE = Path(__file__).parent / "data" / "sample.mp4"


@pytest.fixture(scope="session")
def sample() -> Path:
    """15 s of video with sound and a subtitle file beside it."""
    return SAMPLE


@pytest.fixture(scope="session")
def engine():
    """An engine with the embedded model, on the CPU."""
    import torch

    import vbkit

    torch.set_num_threads(2)
    return vbkit.Engine(model="mini", device="cpu")
