"""The backbone and the motion network on several batches at once, beside the decoder.

On a CPU each lane is one thread that runs whole batches by itself: lanes never wait for each other,
as the threads of one convolution would whenever the decoder takes a core from one of them. On a
GPU there is one lane, so that its work overlaps with what the main thread does.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

__all__ = ["Lanes"]

_LONGEST_START_S = 30.0
_MOST_LANES = 8  # one decoder feeds no more, and each holds a batch


class Lanes:
    """Threads that run networks on batches of clips.

    Args:
        device: where the networks are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count = min(torch.get_num_threads(), _MOST_LANES) if device.type == "cpu" else 1
        self._threads = ThreadPoolExecutor(self.count, thread_name_prefix="vbkit-lane")
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

    def submit(self, network: nn.Module, frames: Tensor) -> Future[Tensor]:
        """Run a network on a batch of B clips' pictures; gives (B, D) float16 on the CPU.

        Args:
            network: a backbone or a motion network, prepared, on the device.
            frames: what it takes, uint8.
        """
        return self._threads.submit(self._run, network, frames)

    def _run(self, network: nn.Module, frames: Tensor) -> Tensor:
        with torch.no_grad():
            return network(frames.to(self.device)).half().cpu()

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(cancel_futures=True)
