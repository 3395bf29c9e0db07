"""The scale of latents, from sums that add up over hospitals; and how near a reconstruction is to its image. Pure.

Shapes: images [N,C,H,W] in [-1,1]; latents [N,4,h,w].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

PEAK = 2.0  # of images in [-1,1]
MAX_PSNR = 100.0  # dB, of two equal images


def latent_sums(mean: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the sums over the latents of some images that their scale follows from, float64.

    Args:
        mean: Latents [N,4,h,w], not scaled.

    Returns:
        `count` () of images; `sum` and `squares` [4], of each image's means over its positions. Hospitals' add up.
    """
    z = mean.double().flatten(2)
    sums = {"sum": z.mean(dim=2).sum(dim=0), "squares": z.square().mean(dim=2).sum(dim=0)}
    return {"count": np.array(float(len(mean)))} | {name: value.cpu().numpy() for name, value in sums.items()}


@dataclass(frozen=True)
class LatentScale:
    """Mean and standard deviation of each latent channel over all images and positions."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_sums(cls, sums: Mapping[str, np.ndarray]) -> LatentScale:
        """Return the scale of the images that sums of `latent_sums`, added up over hospitals, are over.

        Raises:
            ValueError: They are over no image, or a channel is the same everywhere: the autoencoder has collapsed.
        """
        count = float(sums["count"])
        if not count > 0:
            raise ValueError("The scale of the latents cannot be measured: the sums are over no image.")
        mean = sums["sum"] / count
        std = np.sqrt(np.clip(sums["squares"] / count - mean**2, 0, None))
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and std.min() > 1e-6):
            raise ValueError(
                f"The scale of the latents cannot be used: its standard deviations are {std.tolist()}, and each must "
                "be above 0. The autoencoder has collapsed: train it longer, or with a smaller kl-weight."
            )
        return cls(*(tuple(float(value) for value in values.astype(np.float32)) for values in (mean, std)))


def psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each image y to x, in dB, at most 100: [N].

    Args:
        x: [N,C,H,W] in [-1,1].
        y: As x; what lies beyond [-1,1] is clamped first, as it is in a picture.
    """
    mse = (x.float() - y.float().clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(PEAK**2 / mse.clamp(min=1e-12))).clamp(max=MAX_PSNR)
