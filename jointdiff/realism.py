"""How real edited scans look: KID against real scans of the class they aim at, and the model's denoising loss.

Both compare: KID values of the fixed feature net with each other, and the loss of edits with that of their originals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from jointdiff.diffusion import add_noise, target
from jointdiff.fidelity import kid
from jointdiff.losses import denoising_loss
from jointdiff.model import JointModel, to_network

MIN_KID_SCANS = 10  # of either side in a group; the error of fewer is too rough to print
LOSS_LEVELS = (0.1, 0.25, 0.4, 0.55)  # timesteps of the denoising loss, as shares of all


@dataclass(frozen=True)
class KidSide:
    """Images that KID compares: [N] of them."""

    features: np.ndarray  # FeatureNet.features, [N, D]
    groups: np.ndarray  # int [N], e.g. the class that each shows
    scans: np.ndarray  # int [N]: the scan that each is, or was made from

    def select(self, where: np.ndarray) -> KidSide:
        """Return some of the images: `where` is bool [N]."""
        return KidSide(self.features[where], self.groups[where], self.scans[where])


def grouped_kid(first: KidSide, second: KidSide) -> tuple[float, float, int] | None:
    """Return KID between two sets of images, group by group, as a mean weighted by the first set's sizes.

    In a group, the second set goes without the scans that the first was made from: an edit lies near its own scan, and
    KID between sets that share images is below zero, which says nothing of how real they look. Groups that then have
    fewer than MIN_KID_SCANS images of either set are left out.

    Returns:
        KID, its standard error (groups taken as independent), and how many images of the first set are behind it; None
        where no group is large enough.
    """
    values, errors, sizes = [], [], []
    for group in np.unique(first.groups):
        own = first.groups == group
        others = (second.groups == group) & ~np.isin(second.scans, first.scans[own])
        a, b = first.features[own], second.features[others]
        if min(len(a), len(b)) >= MIN_KID_SCANS:
            found = kid(a, b)
            values.append(found.value)
            errors.append(found.standard_error)
            sizes.append(len(a))
    if not sizes:
        return None
    share = np.array(sizes) / sum(sizes)
    return float(share @ values), math.sqrt(float((share * errors) @ (share * errors))), sum(sizes)


@torch.no_grad()
def denoising_losses(
    model: JointModel,
    images: np.ndarray,
    alpha_bar: torch.Tensor,
    *,
    prediction: str,
    generator: torch.Generator,
    batch_size: int = 128,
) -> np.ndarray:
    """Return the squared error per pixel of the model's denoiser on each image, averaged over LOSS_LEVELS.

    Compare edits with originals on the same noise: call once for each, with generators of the same seed.

    Args:
        images: uint8 [N, H, W, C].
        alpha_bar: [T], on the model's device; alpha_bar and prediction are those of the model's training.
        generator: Draws the noise, on the CPU.

    Returns:
        float64 [N], in units of what the model predicts.
    """
    levels = [int(share * (len(alpha_bar) - 1)) for share in LOSS_LEVELS]
    parts = []
    for start in range(0, len(images), batch_size):
        x0 = to_network(images[start : start + batch_size], alpha_bar.device)
        losses = torch.zeros(len(x0), device=x0.device)
        for level in levels:
            t = torch.full((len(x0),), level, device=x0.device, dtype=torch.int64)
            eps = torch.randn(x0.shape, generator=generator).to(x0)
            wanted = target(x0, eps, t, alpha_bar, prediction=prediction)
            output = model.denoise(add_noise(x0, eps, t, alpha_bar), t)
            losses += denoising_loss(output, wanted, torch.ones_like(losses)) / len(levels)
        parts.append(losses.double().cpu().numpy())
    return np.concatenate(parts) if parts else np.zeros(0)
