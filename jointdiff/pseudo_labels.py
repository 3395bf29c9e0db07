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


def mixture(
    probs: torch.Tensor, labels: torch.Tensor, *, multi_label: bool = False, num_iterations: int = 100
) -> torch.Tensor:
    """Return the classes' posteriors under a Gaussian mixture fitted to a classifier's logits on all images at once.

    A head learned from as many labels of each class does not know how common the classes are, so its own
    probabilities put the border in the wrong place. Expectation maximisation (Dempster et al. 1977) with one Gaussian
    per class, one covariance for all, and the labelled images' classes held fixed, estimates the classes' shares from
    the unlabelled images; it starts from the classifier's own probabilities.

    Args:
        probs: Of a classifier on a site's training images, [N,K].
        labels: int64 [N] or, for multi-label, [N,K]; below 0 where unknown.
        multi_label: Fit every label on its own.
        num_iterations: Of expectation and maximisation; >= 1.

    Returns:
        Posteriors [N,K]: rows that sum to 1; for multi-label the probability of each label.
    """
    if multi_label:
        both = [torch.stack([1 - p, p], dim=1) for p in probs.unbind(dim=1)]
        fitted = [mixture(b, y, num_iterations=num_iterations) for b, y in zip(both, labels.unbind(dim=1), strict=True)]
        return torch.stack([f[:, 1] for f in fitted], dim=1)
    num_classes = probs.shape[1]
    logits = probs.double().clamp(min=1e-12).log()
    z = (logits - logits.mean(dim=1, keepdim=True))[:, :-1]  # softmax ignores what all logits share: [N,K-1]
    known = torch.nn.functional.one_hot(labels.clamp(min=0), num_classes).double()
    is_known = (labels >= 0)[:, None]
    ridge = 1e-3 * torch.eye(num_classes - 1, dtype=z.dtype, device=z.device)
    posterior = torch.where(is_known, known, probs.double())
    for _ in range(num_iterations):
        count = posterior.sum(dim=0) + 1.0  # one image more in each class: a share of 0 could never grow again
        means = (posterior.T @ z + z.mean(dim=0)) / count[:, None]
        centred = z[:, None] - means  # [N,K,K-1]
        covariance = torch.einsum("nk,nki,nkj->ij", posterior, centred, centred) / len(z) + ridge
        distance = torch.einsum("nki,ij,nkj->nk", centred, torch.linalg.inv(covariance), centred)
        posterior = torch.where(is_known, known, ((count / count.sum()).log() - distance / 2).softmax(dim=1))
    return posterior.to(probs)
