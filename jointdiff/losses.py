"""The joint loss of the diffusion-classifier (Deja et al. 2023; Kaleta et al. 2025), per record.

    L = ||eps - eps_theta(x_t, t)||^2  +  w_c * CE(y, f(x))  +  w_u * m * CE(pseudo(x_weak), f(x_strong))

Every function returns per-record values [B]; the caller reduces. A label of -1 means unknown.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def denoising_loss(output: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the weighted squared error of each record, averaged over pixels: [B].

    Args:
        output, target: [B,C,H,W].
        weight: [B], for example min-SNR.
    """
    return weight * (output.float() - target).square().mean(dim=(1, 2, 3))


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of each record, 0 where the label is unknown: [B].

    Args:
        logits: [B,K].
        labels: int64 [B] for multi-class, or [B,K] of 0, 1 and -1 for multi-label (mean over the known labels).
    """
    logits = logits.float()
    if labels.ndim == 1:
        known = labels >= 0
        return F.cross_entropy(logits, labels.clamp(min=0), reduction="none") * known
    known = (labels >= 0).to(logits)
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).to(logits), reduction="none")
    return (each * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)


def pseudo_label_loss(logits: torch.Tensor, pseudo: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy of the strong view against pseudo-labels, where the mask trusts them: [B].

    Args:
        logits: Of the strong views, [B,K].
        pseudo: Class [B] or shares of the classes [B,K]; for multi-label 0/1 or a share per label [B,K].
        mask: Weight of each pseudo-label, in [0,1]: [B], or [B,K] for multi-label.
    """
    logits = logits.float()
    if mask.ndim == 1:
        return F.cross_entropy(logits, pseudo, reduction="none") * mask
    each = F.binary_cross_entropy_with_logits(logits, pseudo.to(logits), reduction="none")
    return (each * mask).mean(dim=1)
