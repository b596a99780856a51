"""The backbone on several batches at once, beside the decoder.

On a CPU each lane is one thread that runs whole batches by itself: lanes never wait for each other,
as the threads of one convolution would whenever the decoder takes a core from one of them. On a
GPU there is one lane, so that its work overlaps with what the main thread does.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vbkit.model.backbones import Backbone

__all__ = ["BackboneLanes"]

_LONGEST_START_S = 30.0
_MOST_LANES = 8  # one decoder feeds no more, and each holds a batch


class BackboneLanes:
    """Threads that run a backbone.

    Args:
        backbone: prepared, on its device.
        device: where it is.
    """

    def __init__(self, backbone: Backbone, device: torch.device) -> None:
        self.backbone = backbone
        self.device = device
        self.count = min(torch.get_num_threads(), _MOST_LANES) if device.type == "cpu" else 1
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="vbkit-backbone")
        if device.type == "cpu":
            self._use_one_core_each()

    def _use_one_core_each(self) -> None:
        threads = torch.get_num_threads()
        together = threading.Barrier(self.count, timeout=_LONGEST_START_S)

        def start() -> None:
            torch.set_num_threads(1)
            torch.get_num_threads()  # settles it for this thread, whatever is set later elsewhere
            together.wait()

        for started in [self._threads.submit(start) for _ in range(self.count)]:
            started.result()
        torch.set_num_threads(threads)  # what later threads, the caller's own, begin with

    def submit(self, frames: Tensor) -> Future[Tensor]:
        """Run the backbone on (B, T, S, S, 3) uint8 clips; gives (B, Dv) float16 on the CPU."""
        return self._threads.submit(self._run, frames)

    def _run(self, frames: Tensor) -> Tensor:
        with torch.no_grad():
            return self.backbone(frames.to(self.device)).half().cpu()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)
