"""Pseudo-labels of one round at one site: a teacher's voices, aligned, judged by a policy, and made one target.

The page that puts jointdiff/teachers.py and jointdiff/pseudo_labels/ together. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from jointdiff import pseudo_labels
from jointdiff.augment import PIXEL_VIEWS, View
from jointdiff.config import Config
from jointdiff.data.base import ImageSet
from jointdiff.evaluation import predict
from jointdiff.model import JointModel
from jointdiff.pseudo_label_keys import check_pseudo_labels
from jointdiff.pseudo_labels import POLICIES, Judgement, State, Task
from jointdiff.teachers import VOICES, voices_of

STATE_PARTS = ("thresholds.", "alignment.")  # prefixes of what a labeller remembers from round to round


class PseudoLabels(NamedTuple):
    """What a batch of unlabelled images is taught."""

    target: torch.Tensor  # int64 [B], or soft [B,K]; multi-label [B,K]
    weight: torch.Tensor  # [B], or [B,K], in [0,1]
    confidence: torch.Tensor  # []: mean of the teacher's largest probabilities, before alignment

    def hard(self) -> torch.Tensor:
        """Return the targets as classes [B], or 0 and 1 per label [B,K]."""
        if not self.target.is_floating_point():
            return self.target
        return self.target.argmax(dim=1) if self.weight.ndim == 1 else (self.target >= 0.5).long()


class PseudoLabeller:
    """Makes the pseudo-labels of one round.

    Args:
        model: Holds the weights the server sent.
        train: The site's images, at least one without a label.
        config: Names teacher, alignment and policy.
        state: What `state` returned in the round before, or None. What does not fit starts afresh: another
            number of unlabelled images, for a policy that remembers each.
        device: Where the model is.
        weak_view: Of the images that `label` gets.

    Raises:
        ConfigError: Policy, teacher and alignment do not go together.
    """

    def __init__(
        self,
        model: JointModel,
        train: ImageSet,
        config: Config,
        *,
        state: Mapping[str, torch.Tensor] | None,
        device: torch.device,
        weak_view: View = PIXEL_VIEWS.weak,
    ) -> None:
        training, multi_label = config.training, config.model.task == "multi-label"
        check_pseudo_labels(training, config.model.task)
        unlabelled = torch.as_tensor(np.flatnonzero(~train.labelled), device=device)
        self._task = Task(config.model.num_outputs, len(unlabelled), training.threshold, multi_label)
        self._policy = POLICIES[training.pseudo_policy]
        self._position = torch.zeros(len(train), dtype=torch.int64, device=device)
        self._position[unlabelled] = torch.arange(len(unlabelled), device=device)

        table = None
        if "global" in VOICES[training.teacher] or training.alignment == "estimated":
            table = torch.as_tensor(predict(model, train.images, device=device), device=device)
        labels = torch.as_tensor(train.labels, device=device)
        self._shares = None
        if training.alignment == "uniform":
            self._shares = pseudo_labels.uniform(self._task.num_outputs).to(device)
        elif table is not None and training.alignment == "estimated":
            self._shares = pseudo_labels.shares(table, labels, unlabelled, multi_label=multi_label)
        if table is not None and self._policy.revise:
            table = self._policy.revise(table, labels, multi_label=multi_label)
        self._voices = voices_of(model, training, table, weak_view)

        self._thresholds: dict[str, State] = {}
        self._means: dict[str, torch.Tensor] = {}
        for voice in self._voices:
            start = self._policy.start(self._task)
            self._thresholds[voice] = _restored(start, state, "thresholds." + self._suffix(voice), device)
            if self._shares is not None:
                mean = _restored({"mean": self._shares}, state, "alignment." + self._suffix(voice), device)
                self._means[voice] = mean["mean"]

    def label(self, x: torch.Tensor, index: torch.Tensor, generator: torch.Generator) -> PseudoLabels:
        """Return the pseudo-labels of a batch, and remember what the policy learned from it.

        Args:
            x: Images without a label, [B,C,H,W] in [-1,1]: what the weak view is made of.
            index: Their places among the site's training images, int64 [B].
            generator: Of the weak views.
        """
        task = self._task
        judged: list[tuple[torch.Tensor, Judgement]] = []
        told = []
        for name, voice in self._voices.items():
            probs = voice.probs(x, index, generator)
            told.append(pseudo_labels.confidence_of(probs, multi_label=task.multi_label)[0].mean())
            if self._shares is not None:
                probs, self._means[name] = pseudo_labels.aligned(
                    probs, self._means[name], self._shares, multi_label=task.multi_label
                )
            judgement = self._policy.judge(probs, self._thresholds[name], self._position[index], task)
            self._thresholds[name] = judgement.state
            judged.append((pseudo_labels.confidence_of(probs, multi_label=task.multi_label)[0], judgement))
        (sure, main), *others = judged
        target, weight = main.pseudo, main.weight
        for other_sure, other in others:
            target, weight = pseudo_labels.agreed(
                main, other, (sure - other_sure).abs(), num_outputs=task.num_outputs, multi_label=task.multi_label
            )
        return PseudoLabels(target, weight, torch.stack(told).mean())

    def follow(self) -> None:
        """Take note that the model has made a step."""
        for voice in self._voices.values():
            voice.follow()

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next round needs, on the CPU: thresholds.*, and alignment.* where there is one."""
        kept = {}
        for voice in self._voices:
            for name, tensor in self._thresholds[voice].items():
                kept["thresholds." + self._suffix(voice) + name] = tensor.cpu()
            if voice in self._means:
                kept["alignment." + self._suffix(voice) + "mean"] = self._means[voice].cpu()
        return kept

    def _suffix(self, voice: str) -> str:
        """Return what a second voice's state is told apart by."""
        return "" if voice == next(iter(self._voices)) else voice + "."


def carried_over(state: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Return a labeller's part of a state: of a round that needs no pseudo-labels, for one that does."""
    return {name: tensor for name, tensor in (state or {}).items() if name.startswith(STATE_PARTS)}


def _restored(
    start: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor] | None, prefix: str, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return what a state holds under a prefix, where it has the names and shapes of `start`; else `start`."""
    found = {name: state[prefix + name] for name in start if state is not None and prefix + name in state}
    fits = found.keys() == start.keys() and all(found[name].shape == start[name].shape for name in start)
    return {name: tensor.to(device) for name, tensor in (found if fits else start).items()}
