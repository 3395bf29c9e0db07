"""The policy `flexmatch`: a lower threshold for classes that are learned later."""

from __future__ import annotations

import torch

from jointdiff.pseudo_labels.judgement import Judgement, State, Task, confidence_of


def flexmatch_start(task: Task) -> State:
    """Return the state before the first batch: `settled` [N,1] (multi-label [N,K]), -1 = not yet confident of any."""
    num_questions = task.num_outputs if task.multi_label else 1
    return {"settled": torch.full((task.num_images, num_questions), -1, dtype=torch.int64)}


def flexmatch(probs: torch.Tensor, state: State, index: torch.Tensor, task: Task) -> Judgement:
    """Scale the threshold of every class by its learning effect (FlexMatch, Zhang et al. 2021).

    `settled` remembers for every unlabelled image what the teacher last said of it with a confidence of the whole
    threshold tau. With sigma(c) images settled on class c, and sigma(-1) on none (equations 5 to 8, 11):

        beta(c) = sigma(c) / max(max_c' sigma(c'), sigma(-1)),     T(c) = tau beta(c) / (2 - beta(c))

    So at first everything passes, and the thresholds rise with what is learned. A multi-label task is one question of
    two classes, absent and present, per label.

    Args:
        probs: The teacher's, [B,K].
        state: Of the batch before.
        index: Position of each image among the site's unlabelled ones, int64 [B]; may repeat.
        task: Its threshold is tau.
    """
    confidence, pseudo = confidence_of(probs, multi_label=task.multi_label)
    sure, said = confidence.reshape(len(probs), -1), pseudo.reshape(len(probs), -1)  # [B,1] or [B,K]
    settled = state["settled"]
    needed = task.threshold * mapped(learning_effect(settled, 2 if task.multi_label else task.num_outputs))
    passed = sure >= needed.T.gather(0, said)
    # An image drawn twice with different answers takes the larger class: the order of a batch decides nothing.
    answers = torch.where(sure >= task.threshold, said, -1)
    drawn = torch.full_like(settled, -1).scatter_reduce(0, index[:, None].expand_as(answers), answers, "amax")
    weight = passed.reshape(confidence.shape).to(probs)
    return Judgement(pseudo, weight, {"settled": torch.where(drawn >= 0, drawn, settled)})


def learning_effect(settled: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return beta of every class: [Q,C] in [0,1].

    Args:
        settled: Class that each image is settled on, or -1: int64 [N,Q]; N >= 1.
        num_classes: C.

    >>> learning_effect(torch.tensor([[0], [0], [1], [-1]]), 2)
    tensor([[1.0000, 0.5000]])
    """
    counts = torch.zeros(settled.shape[1], num_classes + 1, device=settled.device)
    counts = counts.scatter_add(1, settled.T + 1, torch.ones_like(settled.T, dtype=counts.dtype))
    none, learned = counts[:, :1], counts[:, 1:]
    return learned / torch.maximum(learned.max(dim=1, keepdim=True).values, none)


def mapped(effect: torch.Tensor) -> torch.Tensor:
    """Return x / (2 - x): thresholds rise slowly while little is learned (the paper's convex mapping)."""
    return effect / (2 - effect)
