"""A device that runs out of memory: the passes of a step are done in two halves, once, and the batch stays what it was.

Written for the error that a GPU's allocator raises; a system that runs out of memory on the CPU ends the process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from jointdiff.errors import DeviceMemoryError

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Halving:
    """Does the passes of a step in one part, or in two from the first time that the device has no memory for one.

    Args:
        device: Where they are done.
        batch: The key that says how large a pass is, and its value; for the messages.
    """

    def __init__(self, device: torch.device, batch: str) -> None:
        self._device, self._batch = device, batch
        self.parts = 1

    def run(self, work: Callable[[int], T], undo: Callable[[], None]) -> T:
        """Return what the work returns.

        Args:
            work: Does the passes in as many parts as it is told, with the same result but for rounding. It may be
                broken off at any point.
            undo: Takes back what a broken-off work has left.

        Raises:
            DeviceMemoryError: Two parts are too large, too.
        """
        while True:
            try:
                return work(self.parts)
            except torch.OutOfMemoryError:
                pass  # the exception holds the tensors of the broken-off pass: what follows must stand outside
            undo()
            _empty_queue(self._device)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if self.parts > 1:
                raise DeviceMemoryError(
                    f"{self._device} has no memory for half a batch either ({self._batch}): lower that, take a smaller "
                    "model, or free the device."
                )
            self.parts = 2
            _log.warning(
                "%s has no memory for a whole batch (%s): each is done in two halves from here on in this round. "
                "What a step learns from stays the same.",
                self._device, self._batch,
            )  # fmt: skip


def _empty_queue(device: torch.device) -> None:
    """Let go of what a broken-off backward pass was still to do: its tensors wait in autograd's queue for the next one.

    The next backward pass drops it, but while it does so, its own tensors are there already.
    """
    torch.zeros((), device=device, requires_grad=True).backward()


def split(total: int, parts: int) -> list[slice]:
    """Return the places of the parts of a batch, in order; none is empty unless the batch has fewer than parts.

    >>> split(5, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return [slice(total * k // parts, total * (k + 1) // parts) for k in range(parts)]
