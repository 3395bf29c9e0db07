"""The policy `mixture`: how common the classes are is estimated first, and moves the border between them."""

from __future__ import annotations

import torch


def mixture(
    probs: torch.Tensor,
    labels: torch.Tensor,
    *,
    multi_label: bool = False,
    num_iterations: int = 100,
    labelled_count: bool = True,
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
        labelled_count: Whether the labelled images, too, say how common the classes are. Where they are few it makes no
            difference; where they are many, and were chosen by their class, they must not.

    Returns:
        Posteriors [N,K]: rows that sum to 1; for multi-label the probability of each label.
    """
    if multi_label:
        both = [torch.stack([1 - p, p], dim=1) for p in probs.unbind(dim=1)]
        fitted = [
            mixture(b, y, num_iterations=num_iterations, labelled_count=labelled_count)
            for b, y in zip(both, labels.unbind(dim=1), strict=True)
        ]
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
        common = count if labelled_count else (posterior * ~is_known).sum(dim=0) + 1.0
        posterior = torch.where(is_known, known, ((common / common.sum()).log() - distance / 2).softmax(dim=1))
    return posterior.to(probs)
