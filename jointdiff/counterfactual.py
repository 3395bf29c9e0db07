"""Counterfactual explanations: what would have to change in this scan for the other diagnosis?

DDIM inversion keeps the patient's anatomy; the way back is guided by the model's own classifier on the estimate of
x_0, with an L1 term that holds the edit small; of several strengths the weakest that convinces the classifier is kept,
and then the smallest region of the edit that still does. Where none does, the answer is "no explanation found".

Shapes: images [N,C,H,W] in [-1,1]; targets [N] int64; probabilities [N,K].
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from jointdiff.model import JointModel
from jointdiff.sampling import LogProb, denoiser, guide_input, invert_ddim, sample_ddim, spaced_timesteps


@dataclass(frozen=True)
class CounterfactualSettings:
    """How an edit is searched."""

    depth: float = 0.3  # timestep of the inversion, as a share of all timesteps
    num_steps: int = 8  # DDIM steps each way
    scales: tuple[float, ...] = (8.0, 20.0, 50.0, 120.0)  # strengths of guidance, weakest first
    l1_weight: float = 0.02  # of the mean absolute edit, in units of log-probability per pixel
    confidence: float = 0.75  # the target's probability at which the search stops
    shares: tuple[float, ...] = (0.02, 0.04, 0.07, 0.1, 0.15, 0.25, 0.5)  # regions tried, as shares of the pixels


@dataclass(frozen=True)
class Counterfactuals:
    """Edits and how convincing they are."""

    images: torch.Tensor  # [N,C,H,W]
    probs_before: torch.Tensor  # [N,K]
    probs_after: torch.Tensor  # [N,K]
    found: torch.Tensor  # [N] bool: the target became the decision
    seconds_per_image: float


def wanted_log_prob(model: JointModel, targets: torch.Tensor, wanted: torch.Tensor) -> LogProb:
    """Return log p(target) of images: softmax, or for a label of a multi-label task the sigmoid of its wanted value.

    Args:
        targets: Class, or label index: [N].
        wanted: Of a multi-label task, 1.0 to show the finding and 0.0 to remove it: [N].
    """

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        logits = model.classify(x)
        if model.config.task == "multi-class":
            return logits.log_softmax(dim=1).gather(1, targets[:, None])[:, 0]
        logit = logits.gather(1, targets[:, None])[:, 0]
        return F.logsigmoid(torch.where(wanted > 0.5, logit, -logit))

    return log_prob


def default_targets(probs: torch.Tensor, *, task: str) -> torch.Tensor:
    """Return the nearest other class (the second most probable), or the least certain label: [N]."""
    if task == "multi-class":
        return probs.topk(2, dim=1).indices[:, 1]
    return (probs - 0.5).abs().argmin(dim=1)


def explain(
    model: JointModel,
    images: torch.Tensor,
    targets: torch.Tensor,
    alpha_bar: torch.Tensor,
    *,
    prediction: str,
    settings: CounterfactualSettings | None = None,
) -> Counterfactuals:
    """Search an edit of each image that makes the model decide for the target. Deterministic.

    Args:
        images: Scans on the model's device.
        targets: Wanted class of each, or the label to flip.
        alpha_bar, prediction: Of the model's training.

    Returns:
        Edits; where none was found, the last attempt, marked.
    """
    settings = settings or CounterfactualSettings()
    began = time.perf_counter()
    with torch.no_grad():
        before = model.probabilities(model.classify(images))
        wanted = (before.gather(1, targets[:, None])[:, 0] < 0.5).float()
        timesteps = spaced_timesteps(settings.num_steps, int(settings.depth * len(alpha_bar)))
        denoise = denoiser(model, alpha_bar, prediction=prediction)
        noised = invert_ddim(denoise, images, timesteps, alpha_bar)
        edited, open_ = images.clone(), torch.ones(len(images), dtype=torch.bool, device=images.device)
        for scale in settings.scales:
            index = open_.nonzero()[:, 0]
            if len(index) == 0:
                break
            log_prob = wanted_log_prob(model, targets[index], wanted[index])
            objective = _held_back(log_prob, images[index], settings.l1_weight)
            guided = guide_input(denoise, objective, alpha_bar, scale=scale)
            attempt = sample_ddim(guided, noised[index], timesteps, alpha_bar)
            plain = attempt
            edited[index] = plain
            open_[index] = log_prob(plain).exp() < settings.confidence
        log_prob = wanted_log_prob(model, targets, wanted)
        edited = smallest_region(images, edited, log_prob, confidence=settings.confidence, shares=settings.shares)
        after = model.probabilities(model.classify(edited))
        found = log_prob(edited).exp() > 0.5 if model.config.task == "multi-label" else after.argmax(dim=1) == targets
    return Counterfactuals(edited, before, after, found, (time.perf_counter() - began) / max(1, len(images)))


def _held_back(log_prob: LogProb, originals: torch.Tensor, l1_weight: float) -> LogProb:
    def objective(x: torch.Tensor) -> torch.Tensor:
        return log_prob(x) - l1_weight * (x - originals).abs().sum(dim=(1, 2, 3))

    return objective


def smallest_region(
    images: torch.Tensor, edited: torch.Tensor, log_prob: LogProb, *, confidence: float, shares: Sequence[float]
) -> torch.Tensor:
    """Keep of each edit only the smallest region, by strength of the change, that still convinces the classifier.

    Args:
        images, edited: [N,C,H,W].
        confidence: The target's probability to hold; an edit that never had it is returned whole.
        shares: Regions tried, as shares of the pixels, rising.

    Returns:
        Edits [N,C,H,W], unchanged outside their region (soft over one pixel).
    """
    change = F.avg_pool2d((edited - images).abs().mean(dim=1, keepdim=True), 3, stride=1, padding=1)
    flat = change.flatten(1)
    best = edited.clone()
    open_ = torch.ones(len(images), dtype=torch.bool, device=images.device)
    for share in shares:
        level = flat.quantile(1 - share, dim=1).view(-1, 1, 1, 1)
        mask = F.avg_pool2d((change > level).float(), 3, stride=1, padding=1)
        candidate = images + mask * (edited - images)
        good = open_ & (log_prob(candidate).exp() >= confidence)
        best[good] = candidate[good]
        open_ &= ~good
    return best
