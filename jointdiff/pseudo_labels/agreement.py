"""Two teachers, one target: local and global predictions, the less agreed upon the more the global one's."""

from __future__ import annotations

import math

import torch

from jointdiff.pseudo_labels.judgement import Judgement

# The local share halves with every 0.05 of difference in confidence, as the authors have it.
KAPPA = math.log(2) / 0.05


def agreed(
    local: Judgement, other: Judgement, difference: torch.Tensor, *, num_outputs: int, multi_label: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend two judgements of the same images by how far their confidences lie apart (SAGE, Liu et al., CVPR 2025).

        target = share y_local + (1 - share) y_global,     share = w_local exp(-kappa |c_local - c_global|)
        weight = max(w_local, w_global)

    With 0/1 weights this is their confidence-driven soft correction: where the local model is not sure the global one's
    label stands alone. Soft weights take the place of the mask.

    Args:
        local, other: What one policy says of the local and of the global model's predictions.
        difference: |c_local - c_global| of the two confidences: [B], or [B,K] for multi-label.
        num_outputs: K.

    Returns:
        Soft targets [B,K] (multi-class: rows that sum to 1), and weights shaped as the judgements'.
    """
    share = local.weight * torch.exp(-KAPPA * difference)
    mine, theirs = local.pseudo, other.pseudo
    if not multi_label:
        classes = torch.arange(num_outputs, device=mine.device)
        mine, theirs, share = mine[:, None] == classes, theirs[:, None] == classes, share[:, None]
    target = share * mine.to(share) + (1 - share) * theirs.to(share)
    return target, torch.maximum(local.weight, other.weight)
