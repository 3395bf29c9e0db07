"""What all pseudo-label policies have in common: what they are told, what they answer, what they remember.

Shapes: probs [B,K] (softmax rows, or sigmoid per label); pseudo and weight [B], or [B,K] for multi-label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

DECAY = 0.9  # of all running means, from batch to batch; the papers' 0.999 is for runs a thousand times longer

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Task:
    """What a policy is told beside the probabilities."""

    num_outputs: int  # K: classes, or labels of a multi-label task
    num_images: int  # unlabelled images of the site
    threshold: float  # in [0,1], of the policies that are given one
    multi_label: bool = False


class Judgement(NamedTuple):
    """Hard pseudo-labels (int64), how far each is trusted, in [0,1], and the state after this batch."""

    pseudo: torch.Tensor
    weight: torch.Tensor
    state: State


@dataclass(frozen=True)
class Policy:
    """One way to decide which predictions on unlabelled images are trusted."""

    start: Callable[[Task], State]  # the state before the first batch
    judge: Callable[[torch.Tensor, State, torch.Tensor, Task], Judgement]  # probs, state, index, task
    revise: Callable[..., torch.Tensor] | None = None  # probs of all of a site's images at once -> better ones


def nothing(task: Task) -> State:
    """Return the state of a policy that remembers nothing."""
    return {}


def confidence_of(probs: torch.Tensor, *, multi_label: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how sure each prediction is, and what it says: [B] and int64 [B], multi-label [B,K] each.

    >>> confidence_of(torch.tensor([[0.25, 0.75]]), multi_label=True)
    (tensor([[0.7500, 0.7500]]), tensor([[0, 1]]))
    """
    if multi_label:
        return torch.maximum(probs, 1 - probs), (probs >= 0.5).long()
    confidence, pseudo = probs.max(dim=1)
    return confidence, pseudo
