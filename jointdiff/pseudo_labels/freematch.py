"""The policy `freematch`: thresholds that follow each class's own learning."""

from __future__ import annotations

import torch

from jointdiff.pseudo_labels.judgement import DECAY, Judgement, State, Task, confidence_of


def freematch_start(task: Task) -> State:
    """Return the state before the first batch: confidence 1/K [], class_probs 1/K [K] (multi-label: 1/2, both [K])."""
    if task.multi_label:
        return {name: torch.full((task.num_outputs,), 0.5) for name in ("confidence", "class_probs")}
    share = 1 / task.num_outputs
    return {"confidence": torch.tensor(share), "class_probs": torch.full((task.num_outputs,), share)}


def freematch(probs: torch.Tensor, state: State, index: torch.Tensor, task: Task) -> Judgement:
    """Trust predictions above a threshold that follows each class's own learning (FreeMatch, Wang et al. 2023).

    The global threshold is the running mean confidence; a class whose running mean probability is below the
    largest gets a proportionally lower one (their equations 5 to 8). For multi-label each label's running mean
    confidence is its threshold. Their self-adaptive fairness, a further term of the loss, is left out.

    Args:
        probs: The teacher's, [B,K].
        state: Of the batch before.
        index: Not looked at.
        task: Its threshold is not used.
    """
    top, pseudo = confidence_of(probs, multi_label=task.multi_label)
    if task.multi_label:
        running = DECAY * state["confidence"] + (1 - DECAY) * top.mean(dim=0)
        return Judgement(pseudo, (top >= running).to(probs), {**state, "confidence": running})
    confidence = DECAY * state["confidence"] + (1 - DECAY) * top.mean()
    class_probs = DECAY * state["class_probs"] + (1 - DECAY) * probs.mean(dim=0)
    thresholds = confidence * class_probs / class_probs.max()
    weight = (top >= thresholds[pseudo]).to(probs)
    return Judgement(pseudo, weight, {"confidence": confidence, "class_probs": class_probs})
