"""The policy `softmatch`: every prediction counts, the unsure ones less."""

from __future__ import annotations

import torch

from jointdiff.pseudo_labels.judgement import DECAY, Judgement, State, Task, confidence_of

_LEAST_VARIANCE = 1e-8


def softmatch_start(task: Task) -> State:
    """Return the state before the first batch: mean 1/K and variance 1, both [] (multi-label: 1/2 and 1, both [K])."""
    if task.multi_label:
        return {"mean": torch.full((task.num_outputs,), 0.5), "variance": torch.ones(task.num_outputs)}
    return {"mean": torch.tensor(1 / task.num_outputs), "variance": torch.tensor(1.0)}


def softmatch(probs: torch.Tensor, state: State, index: torch.Tensor, task: Task) -> Judgement:
    """Weight predictions by a Gaussian of their confidence, cut off above its mean (SoftMatch, Chen et al. 2023).

    With running mean mu and unbiased variance s2 of the batches' confidences (their equations 6 to 8):

        weight = exp(-(p - mu)^2 / (2 s2)) where p < mu,     1 elsewhere

    Their uniform alignment is the key `alignment`. For multi-label every label has its own mean and variance.

    Args:
        probs: The teacher's, [B,K].
        state: Of the batch before.
        index: Not looked at.
        task: Its threshold is not used.
    """
    confidence, pseudo = confidence_of(probs, multi_label=task.multi_label)
    variance = confidence.var(dim=0, correction=0) * (len(probs) / max(1, len(probs) - 1))
    new = {
        "mean": DECAY * state["mean"] + (1 - DECAY) * confidence.mean(dim=0),
        "variance": DECAY * state["variance"] + (1 - DECAY) * variance,
    }
    below = (confidence - new["mean"]).clamp(max=0)
    weight = torch.exp(-below.square() / (2 * new["variance"].clamp(min=_LEAST_VARIANCE)))
    return Judgement(pseudo, weight.to(probs), new)
