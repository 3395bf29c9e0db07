"""The policy `fixed`: one threshold for all, for ever."""

from __future__ import annotations

import torch

from jointdiff.pseudo_labels.judgement import Judgement, State, Task, confidence_of


def fixed(probs: torch.Tensor, state: State, index: torch.Tensor, task: Task) -> Judgement:
    """Trust predictions above one threshold (FixMatch, Sohn et al. 2020).

    Args:
        probs: The teacher's, [B,K].
        state: Empty.
        index: Not looked at.
        task: Its threshold; for a label of a multi-label task, p or 1 - p must reach it.
    """
    pseudo, weight = trusted(probs, threshold=task.threshold, multi_label=task.multi_label)
    return Judgement(pseudo, weight, state)


def trusted(probs: torch.Tensor, *, threshold: float, multi_label: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hard pseudo-labels and a 0/1 weight: each record by itself, as private training needs it.

    >>> trusted(torch.tensor([[0.97, 0.03], [0.6, 0.4]]), threshold=0.9)
    (tensor([0, 0]), tensor([1., 0.]))
    """
    confidence, pseudo = confidence_of(probs, multi_label=multi_label)
    return pseudo, (confidence >= threshold).to(probs)
