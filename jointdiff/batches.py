"""The batches of one round: which images each step sees, drawn before the first, and the images on the device.

Shapes: N images of a site; B of a batch; S steps of the round.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from jointdiff.data.base import ImageSet
from jointdiff.model import to_network

DEVICE_SHARE = 0.25  # of a GPU's free memory that a site's images may take: up to four sites train on one


class Batches:
    """A hospital's training images, and the places of every batch of a round.

    The images lie on the device as uint8 where they fit; else a step's batch is sent there, without waiting for it.
    Which they are is drawn, and sent there, once for the whole round: no step waits for the device.

    Args:
        train: The hospital's training images.
        wanted: How many images of which pool a step takes: all | labelled | unlabelled; in the order of the draws.
        num_steps: Of the round.
        device: Where the network is.
        generator: Of the draws, on the CPU.
        memory_format: Of the batches.
    """

    def __init__(
        self,
        train: ImageSet,
        wanted: Mapping[str, int],
        *,
        num_steps: int,
        device: torch.device,
        generator: torch.Generator,
        memory_format: torch.memory_format,
    ) -> None:
        pools = {
            "all": torch.arange(len(train)),
            "labelled": torch.as_tensor(np.flatnonzero(train.labelled)),
            "unlabelled": torch.as_tensor(np.flatnonzero(~train.labelled)),
        }
        rows: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}
        for _ in range(num_steps):
            for name, count in wanted.items():
                at = torch.randint(len(pools[name]), (count,), generator=generator)
                rows[name].append(pools[name][at])
        drawn = {name: torch.stack(parts) for name, parts in rows.items()}
        self._resident = fits(train.images.nbytes, device)
        self._images = torch.as_tensor(train.images, device=device if self._resident else "cpu")
        self._labels = torch.as_tensor(train.labels, device=device)
        self._device, self._memory_format = device, memory_format
        self._index = {name: places.to(device) for name, places in drawn.items()}
        self._host_index = self._index if self._resident else drawn

    def has(self, pool: str) -> bool:
        """Return whether steps take images of a pool."""
        return pool in self._index

    def index(self, pool: str, step: int) -> torch.Tensor:
        """Return the places of a step's images among all: int64 [B], on the device."""
        return self._index[pool][step]

    def take(self, pool: str, step: int) -> torch.Tensor:
        """Return a step's images of a pool: float32 [B,C,H,W] in [-1,1], on the device."""
        batch = self._images[self._host_index[pool][step]]
        if batch.device != self._device and self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return to_network(batch, self._device).contiguous(memory_format=self._memory_format)

    def labels(self, pool: str, step: int) -> torch.Tensor:
        """Return a step's labels: int64 [B], or [B,K] for multi-label."""
        return self._labels[self.index(pool, step)]


def fits(num_bytes: int, device: torch.device) -> bool:
    """Return whether a site's images may lie on the device: on a CPU always, on a GPU by its free memory."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return num_bytes <= DEVICE_SHARE * free
