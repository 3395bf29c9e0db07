"""Which predictions on unlabelled images are trusted: pseudo-labels and their masks.

Shapes: probs [B,K] (softmax rows, or sigmoid per label); pseudo and mask [B], or [B,K] for multi-label.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


def fixed(probs: torch.Tensor, *, threshold: float, multi_label: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Trust predictions above one threshold (FixMatch, Sohn et al. 2020).

    Args:
        probs: Of the weak views, [B,K].
        threshold: In (0,1). For a label of a multi-label task, p or 1 - p must exceed it.

    Returns:
        Hard pseudo-labels and a 0/1 mask.
    """
    if multi_label:
        confident = torch.maximum(probs, 1 - probs) >= threshold
        return (probs >= 0.5).long(), confident.to(probs)
    confidence, pseudo = probs.max(dim=1)
    return pseudo, (confidence >= threshold).to(probs)


@dataclass(frozen=True)
class FreeMatchState:
    """Running statistics of FreeMatch: `confidence` [] and `class_probs` [K] (multi-label: both [K])."""

    confidence: torch.Tensor
    class_probs: torch.Tensor

    def to(self, device: torch.device) -> FreeMatchState:
        """Return the state on a device."""
        return FreeMatchState(self.confidence.to(device), self.class_probs.to(device))


def freematch_start(num_outputs: int, *, multi_label: bool = False) -> FreeMatchState:
    """Return the state before the first batch: confidence 1/K, uniform classes (multi-label: 1/2)."""
    if multi_label:
        return FreeMatchState(torch.full((num_outputs,), 0.5), torch.full((num_outputs,), 0.5))
    return FreeMatchState(torch.tensor(1 / num_outputs), torch.full((num_outputs,), 1 / num_outputs))


def freematch(
    probs: torch.Tensor, state: FreeMatchState, *, decay: float = 0.9, multi_label: bool = False
) -> tuple[torch.Tensor, torch.Tensor, FreeMatchState]:
    """Trust predictions above a threshold that follows each class's own learning (FreeMatch, Wang et al. 2023).

    The global threshold is the running mean confidence; a class whose running mean probability is below the
    largest gets a proportionally lower one (their equations 5 to 8).

    Args:
        probs: Of the weak views, [B,K].
        state: Of the batch before.
        decay: Of the running means, in [0,1); the paper's 0.999 is for runs a thousand times longer.

    Returns:
        Hard pseudo-labels, a 0/1 mask, and the new state.
    """
    if multi_label:
        confidence = torch.maximum(probs, 1 - probs)
        running = decay * state.confidence + (1 - decay) * confidence.mean(dim=0)
        mask = confidence >= running
        return (probs >= 0.5).long(), mask.to(probs), FreeMatchState(running, state.class_probs)
    top, pseudo = probs.max(dim=1)
    confidence = decay * state.confidence + (1 - decay) * top.mean()
    class_probs = decay * state.class_probs + (1 - decay) * probs.mean(dim=0)
    thresholds = confidence * class_probs / class_probs.max()
    return pseudo, (top >= thresholds[pseudo]).to(probs), FreeMatchState(confidence, class_probs)
