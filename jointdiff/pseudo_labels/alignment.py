"""Distribution alignment: predictions whose running mean leans to a class are drawn back to a target.

    p'_k  ~  p_k * target_k / running mean of p_k         (ReMixMatch, Berthelot et al. 2020)

ReMixMatch takes the labelled images' class shares as the target. Kept labels are as many of each class as can be, so
they say nothing of how common a class is; the target is either assumed (`uniform`, as SoftMatch does) or
estimated from the unlabelled images themselves (`shares`; DARP, Kim et al. 2020, says why it must be estimated).
"""

from __future__ import annotations

import torch

from jointdiff.pseudo_labels.judgement import DECAY
from jointdiff.pseudo_labels.mixture import mixture

_LEAST = 1e-6


def aligned(
    probs: torch.Tensor, mean: torch.Tensor, target: torch.Tensor, *, multi_label: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the aligned probabilities [B,K] and the new running mean [K].

    Args:
        probs: The teacher's, [B,K].
        mean: Running mean of the probabilities up to the batch before, [K]; start from the target.
        target: Shares of the classes, [K], or of the images that have each label.
        multi_label: Every label is a question of two classes, absent and present.
    """
    mean = DECAY * mean + (1 - DECAY) * probs.mean(dim=0)
    if multi_label:
        target, held = target.clamp(_LEAST, 1 - _LEAST), mean.clamp(_LEAST, 1 - _LEAST)
        present, absent = probs * target / held, (1 - probs) * (1 - target) / (1 - held)
        return present / (present + absent), mean
    scaled = probs * target.clamp(min=_LEAST) / mean.clamp(min=_LEAST)
    return scaled / scaled.sum(dim=1, keepdim=True), mean


def uniform(num_outputs: int) -> torch.Tensor:
    """Return the target that takes all classes for equally common: [K]."""
    return torch.full((num_outputs,), 1 / num_outputs)


def shares(
    probs: torch.Tensor, labels: torch.Tensor, unlabelled: torch.Tensor, *, multi_label: bool = False
) -> torch.Tensor:
    """Estimate how common the classes are among the unlabelled images of a site, as the policy `mixture` does: [K].

    Args:
        probs: Of one classifier on all of the site's training images, [N,K].
        labels: int64 [N] or [N,K]; below 0 where unknown.
        unlabelled: Indices of the images that count, int64 [M], M >= 1: labelled ones were chosen by their class.
    """
    return mixture(probs, labels, multi_label=multi_label, labelled_count=False)[unlabelled].mean(dim=0)
